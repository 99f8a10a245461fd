//! The faults of a run, drawn before it begins. Each has its own seed, so that one can be left out
//! without changing the others: this is how a failing run is made smaller.

use std::time::Duration;

use super::faults::{Scenario, Weights};
use super::rng::Rng;

/// A kind of fault. [`Weights`] describes what each does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A process is killed.
    Crash,
    /// A killed process is started again.
    Restart,
    /// A process is stopped for a while.
    Freeze,
    /// A machine sleeps for a while.
    Sleep,
    /// The network splits into two halves.
    Partition,
    /// Messages pass in one direction only.
    OneWay,
    /// All partitions end.
    Heal,
    /// A wall clock jumps.
    Clock,
    /// A disk is slow for a while.
    SlowDisk,
    /// A disk is full for a while.
    FullDisk,
    /// A node joins.
    Join,
    /// Two nodes join with one token.
    Race,
    /// A node leaves for good.
    Leave,
    /// A node is evicted.
    Evict,
    /// A node begins or ends draining.
    Drain,
    /// A target fails, or answers again.
    Target,
    /// A node loses an introduction point.
    Point,
    /// A member sends a forged record.
    Forge,
    /// The faster routes fail, lose packets, or work again.
    Udp,
}

impl Fault {
    /// All kinds of faults.
    pub const ALL: [Self; 19] = [
        Self::Crash,
        Self::Restart,
        Self::Freeze,
        Self::Sleep,
        Self::Partition,
        Self::OneWay,
        Self::Heal,
        Self::Clock,
        Self::SlowDisk,
        Self::FullDisk,
        Self::Join,
        Self::Race,
        Self::Leave,
        Self::Evict,
        Self::Drain,
        Self::Target,
        Self::Point,
        Self::Forge,
        Self::Udp,
    ];

    fn weight(self, of: &Weights) -> usize {
        match self {
            Self::Crash => of.crash,
            Self::Restart => of.restart,
            Self::Freeze => of.freeze,
            Self::Sleep => of.sleep,
            Self::Partition => of.partition,
            Self::OneWay => of.one_way,
            Self::Heal => of.heal,
            Self::Clock => of.clock,
            Self::SlowDisk => of.slow_disk,
            Self::FullDisk => of.full_disk,
            Self::Join => of.join,
            Self::Race => of.race,
            Self::Leave => of.leave,
            Self::Evict => of.evict,
            Self::Drain => of.drain,
            Self::Target => of.target,
            Self::Point => of.point,
            Self::Forge => of.forge,
            Self::Udp => of.udp,
        }
    }
}

/// One fault of the script.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    /// Its position in the script.
    pub(super) number: usize,
    /// When it strikes, since the chaos began.
    pub(super) at: Duration,
    pub(super) fault: Fault,
    /// Seed that decides which nodes it strikes and how long it lasts.
    pub(super) dice: u64,
    /// Share of messages lost from then on, 0 to 1.
    pub(super) loss: f64,
}

/// The script of a scenario. A shorter chaos gets a prefix of the same script.
pub(super) fn script(scenario: &Scenario) -> Vec<Planned> {
    let mut rng = Rng::new(scenario.seed.rotate_left(32) ^ 0x5c41);
    let total = Fault::ALL.iter().map(|fault| fault.weight(&scenario.weights)).sum();
    let mut script = Vec::new();
    let mut at = scenario.every;
    while at < scenario.chaos && total > 0 {
        let mut lot = rng.below(total);
        let drawn = Fault::ALL.into_iter().find(|fault| {
            let weight = fault.weight(&scenario.weights);
            let hit = lot < weight;
            lot = lot.saturating_sub(weight);
            hit
        });
        let (dice, loss) = (rng.bits(), scenario.loss * (rng.below(5) as f64 / 4.0));
        script.extend(drawn.map(|fault| Planned { number: script.len(), at, fault, dice, loss }));
        at += rng.between(scenario.every / 4, scenario.every * 4);
    }
    script
}
