//! The driver decides which fault comes next, given which nodes are whole.
//!
//! Every 4 to 20 s it begins one fault or, one time in eight, several at once. It never
//!
//! * leaves less than one publisher whole (a worker alone cannot publish); that one must have been
//!   whole for a while, so that its introduction points are on the directories;
//! * lets more than [`Rules::max_down_nodes`] nodes fail or recover at once;
//! * kills more than [`Rules::max_dead_relays`] relays or half of the authorities: Tor itself must
//!   go on;
//! * ends the process of the *witness*, a node drawn at the start: memory over time is meaningful
//!   only in a process that runs for long.
//!
//! A node is *whole* while it has no fault and has recovered from its last one. It is whole again
//! when the caller says so ([`Event::Whole`]), after observing it. From [`Rules::calm`] on no fault
//! begins, and all faults end.

use std::time::Duration;

/// How long a publisher must have been whole before it may be the only one left.
const PROVEN: Duration = Duration::from_secs(15);
/// Minimum time between the deaths of two relays.
const RELAY_PAUSE: Duration = Duration::from_secs(20);

/// A fault of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// It is killed, as by a power failure, and started again later.
    Kill,
    /// It is asked to end, as systemd does, and started again.
    Restart,
    /// It is frozen: its connections stay up, but it answers nothing.
    Freeze,
    /// It is cut off from the network.
    Cut,
    /// Its disk is full.
    FullDisk,
}

impl Fault {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Restart => "restart",
            Self::Freeze => "freeze",
            Self::Cut => "partition",
            Self::FullDisk => "full disk",
        }
    }

    /// Whether the node's process ends, or may end: Arti does not survive every failed write.
    fn ends_process(self) -> bool {
        matches!(self, Self::Kill | Self::Restart | Self::FullDisk)
    }

    /// Whether peers do not notice at once: connections stay up, but nothing answers.
    fn is_silent(self) -> bool {
        matches!(self, Self::Freeze | Self::Cut)
    }

    /// How long it lasts, in seconds.
    fn seconds(self) -> std::ops::Range<u64> {
        match self {
            Self::Kill => 2..75,
            Self::Restart => 1..4,
            Self::Freeze | Self::Cut => 3..60,
            Self::FullDisk => 10..60,
        }
    }
}

/// What the driver may let fail, and how much of it.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Number of nodes that can publish; they come first.
    pub publishers: usize,
    /// Number of all nodes.
    pub nodes: usize,
    /// Number of relays that are not authorities.
    pub relays: usize,
    /// Number of directory authorities.
    pub authorities: usize,
    /// Maximum number of nodes that fail or recover at once.
    pub max_down_nodes: usize,
    /// Maximum number of nodes that are silent (frozen or cut off) at once.
    pub max_silent_nodes: usize,
    /// Maximum number of relays that are dead at once.
    pub max_dead_relays: usize,
    /// Whether disks can be filled on this machine.
    pub disks: bool,
    /// When the calm begins, since the start.
    pub calm: Duration,
}

/// The driver's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// A node has been observed to be whole.
    Whole(usize),
    /// A node has failed without a fault of the driver.
    Failed(usize),
}

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin this fault at this node.
    Begin(usize, Fault),
    /// End this fault at this node.
    End(usize, Fault),
    /// Kill this relay; the number does not count authorities.
    KillRelay(usize),
    /// Start this relay again.
    ReviveRelay(usize),
    /// Kill this authority.
    KillAuthority(usize),
    /// Start this authority again.
    ReviveAuthority(usize),
}

#[derive(Clone, Copy, Debug)]
enum Condition {
    Whole { since: Duration },
    Failing { fault: Fault, until: Duration },
    Recovering,
}

/// Decides, from a seed, which fault begins and ends when.
#[derive(Debug)]
pub struct Driver {
    rules: Rules,
    dice: Dice,
    witness: usize,
    nodes: Vec<Condition>,
    /// When each dead relay, and each dead authority, comes back; `None` while it runs.
    relays: Vec<Option<Duration>>,
    authorities: Vec<Option<Duration>>,
    next_node: Duration,
    next_relay: Duration,
}

impl Driver {
    /// A driver for nodes that are all whole at time 0.
    pub fn new(rules: Rules, seed: u64) -> Self {
        let mut dice = Dice(seed);
        let witness = dice.below(rules.nodes);
        let nodes = vec![Condition::Whole { since: Duration::ZERO }; rules.nodes];
        let (relays, authorities) = (vec![None; rules.relays], vec![None; rules.authorities]);
        let next_node = dice.seconds(&(4..10));
        let next_relay = dice.seconds(&(10..40));
        Self { rules, dice, witness, nodes, relays, authorities, next_node, next_relay }
    }

    /// The node whose process the driver never ends.
    pub fn witness(&self) -> usize {
        self.witness
    }

    /// The fault from which a node suffers now.
    pub fn fault(&self, node: usize) -> Option<Fault> {
        match self.nodes.get(node)? {
            Condition::Failing { fault, .. } => Some(*fault),
            _ => None,
        }
    }

    /// Whether a node is known to be whole.
    pub fn is_whole(&self, node: usize) -> bool {
        matches!(self.nodes.get(node), Some(Condition::Whole { .. }))
    }

    /// Whether all nodes, relays and authorities are whole.
    pub fn is_all_whole(&self) -> bool {
        let relays = self.relays.iter().chain(&self.authorities);
        (0..self.nodes.len()).all(|node| self.is_whole(node)) && relays.flatten().next().is_none()
    }

    /// Processes an event that has happened by `now`, and returns what the caller must do.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Tick => {}
            Event::Whole(node) => {
                if let Some(condition @ Condition::Recovering) = self.nodes.get_mut(node) {
                    *condition = Condition::Whole { since: now };
                }
            }
            Event::Failed(node) => {
                if let Some(condition @ Condition::Whole { .. }) = self.nodes.get_mut(node) {
                    *condition = Condition::Recovering;
                }
            }
        }
        let calm = now >= self.rules.calm;
        let mut actions = self.ends(now, calm);
        if calm {
            return actions;
        }
        if now >= self.next_node {
            self.next_node = now + self.dice.seconds(&(4..20));
            let several = self.dice.below(8) == 0;
            for _ in 0..if several { self.rules.max_down_nodes } else { 1 } {
                actions.extend(self.draw_node_fault(now));
            }
        }
        if now >= self.next_relay {
            self.next_relay = now + RELAY_PAUSE + self.dice.seconds(&(0..30));
            actions.extend(self.draw_relay_death(now));
        }
        actions
    }

    /// The faults that end by `now`; in the calm, all of them.
    fn ends(&mut self, now: Duration, calm: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        for (node, condition) in self.nodes.iter_mut().enumerate() {
            if let Condition::Failing { fault, until } = *condition
                && (calm || now >= until)
            {
                *condition = Condition::Recovering;
                actions.push(Action::End(node, fault));
            }
        }
        let over = |until: &mut Option<Duration>| until.take_if(|until| calm || now >= *until).is_some();
        for (relay, until) in self.relays.iter_mut().enumerate() {
            actions.extend(over(until).then_some(Action::ReviveRelay(relay)));
        }
        for (authority, until) in self.authorities.iter_mut().enumerate() {
            actions.extend(over(until).then_some(Action::ReviveAuthority(authority)));
        }
        actions
    }

    fn draw_node_fault(&mut self, now: Duration) -> Option<Action> {
        let node = self.dice.below(self.nodes.len());
        let faults: &[Fault] = match self.rules.disks {
            true => &[Fault::Kill, Fault::Kill, Fault::Restart, Fault::Freeze, Fault::Cut, Fault::FullDisk],
            false => &[Fault::Kill, Fault::Kill, Fault::Restart, Fault::Freeze, Fault::Cut],
        };
        let fault = faults[self.dice.below(faults.len())];
        let lasts = self.dice.seconds(&fault.seconds());
        if !self.may_fail(node, fault, now) {
            return None;
        }
        self.nodes[node] = Condition::Failing { fault, until: now + lasts };
        Some(Action::Begin(node, fault))
    }

    fn may_fail(&self, node: usize, fault: Fault, now: Duration) -> bool {
        if !self.is_whole(node) || (node == self.witness && fault.ends_process()) {
            return false;
        }
        let proven = |other: usize| match self.nodes[other] {
            Condition::Whole { since } => since.is_zero() || now >= since + PROVEN,
            _ => false,
        };
        let left = (0..self.rules.publishers).any(|other| other != node && proven(other));
        let down = (0..self.nodes.len()).filter(|other| !self.is_whole(*other)).count();
        let is_silent =
            |condition: &&Condition| matches!(condition, Condition::Failing { fault, .. } if fault.is_silent());
        let silent = self.nodes.iter().filter(is_silent).count();
        left && down < self.rules.max_down_nodes && (!fault.is_silent() || silent < self.rules.max_silent_nodes)
    }

    fn draw_relay_death(&mut self, now: Duration) -> Option<Action> {
        let until = Some(now + self.dice.seconds(&(10..90)));
        let dead = |relays: &[Option<Duration>]| relays.iter().flatten().count();
        // Each relay and each authority is drawn with the same probability.
        let drawn = self.dice.below(self.relays.len() + self.authorities.len());
        match drawn.checked_sub(self.relays.len()) {
            None if self.relays[drawn].is_none() && dead(&self.relays) < self.rules.max_dead_relays => {
                self.relays[drawn] = until;
                Some(Action::KillRelay(drawn))
            }
            Some(drawn)
                if self.authorities[drawn].is_none() && 2 * (dead(&self.authorities) + 1) < self.authorities.len() =>
            {
                self.authorities[drawn] = until;
                Some(Action::KillAuthority(drawn))
            }
            _ => None,
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): the same numbers on every machine for one seed.
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound.max(1) as u64).unwrap_or(0)
    }

    /// A duration in a range of seconds, in steps of a millisecond.
    pub(super) fn seconds(&mut self, range: &std::ops::Range<u64>) -> Duration {
        let width = (range.end - range.start).max(1) * 1000;
        Duration::from_millis(range.start * 1000 + self.roll() % width)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const CALM: Duration = Duration::from_secs(1200);

    fn rules() -> Rules {
        Rules {
            publishers: 3,
            nodes: 5,
            relays: 13,
            authorities: 3,
            max_down_nodes: 3,
            max_silent_nodes: 2,
            max_dead_relays: 2,
            disks: true,
            calm: CALM,
        }
    }

    /// Plays a driver whose nodes are whole again 7 s after their fault has ended. Returns its
    /// actions, with their times.
    fn play(seed: u64, mut look: impl FnMut(&Driver, Duration)) -> Vec<(Duration, Action)> {
        let mut driver = Driver::new(rules(), seed);
        let (mut done, mut whole_at) = (Vec::new(), Vec::new());
        for second in 0..1300 {
            let now = Duration::from_secs(second);
            let due: Vec<usize> = whole_at.extract_if(.., |(at, _)| *at <= now).map(|(_, node)| node).collect();
            let events = due.into_iter().map(Event::Whole).chain([Event::Tick]);
            for action in events.flat_map(|event| driver.handle(event, now)).collect::<Vec<_>>() {
                if let Action::End(node, _) = action {
                    whole_at.push((now + Duration::from_secs(7), node));
                }
                done.push((now, action));
            }
            look(&driver, now);
        }
        done
    }

    #[test]
    fn one_publisher_is_always_whole_and_tor_keeps_working() {
        for seed in 0..200 {
            play(seed, |driver, now| {
                assert!((0..3).any(|node| driver.is_whole(node)), "seed {seed}: no publisher is whole at {now:?}");
                let down = (0..5).filter(|node| !driver.is_whole(*node)).count();
                assert!(down <= 3, "seed {seed}: {down} nodes are down at {now:?}");
                assert!(driver.relays.iter().flatten().count() <= 2, "seed {seed}: too many relays are dead");
                assert!(driver.authorities.iter().flatten().count() <= 1, "seed {seed}: no majority of authorities");
            });
        }
    }

    #[test]
    fn every_kind_of_fault_occurs_and_the_witness_is_never_ended() {
        for seed in 0..50 {
            let done = play(seed, |_, _| {});
            let witness = Driver::new(rules(), seed).witness();
            let mut kinds = BTreeSet::new();
            for (_, action) in &done {
                if let Action::Begin(node, fault) = *action {
                    assert!(node != witness || !fault.ends_process(), "seed {seed}: the witness was ended");
                    kinds.insert(fault);
                }
            }
            assert_eq!(kinds.len(), 5, "seed {seed}: only {kinds:?}");
            let relays = done.iter().filter(|(_, action)| matches!(action, Action::KillRelay(_))).count();
            assert!(relays >= 5, "seed {seed}: only {relays} relays died");
        }
    }

    #[test]
    fn every_fault_ends_in_the_calm() {
        for seed in 0..50 {
            let done = play(seed, |driver, now| {
                assert!(
                    now < CALM + Duration::from_secs(8) || driver.is_all_whole(),
                    "seed {seed}: not whole at {now:?}"
                );
            });
            let begun =
                |action: &Action| matches!(action, Action::Begin(..) | Action::KillRelay(_) | Action::KillAuthority(_));
            let late = done.iter().find(|(at, action)| *at >= CALM && begun(action));
            assert!(late.is_none(), "seed {seed}: {late:?} in the calm");
        }
    }

    #[test]
    fn a_seed_replays_the_same_run() {
        assert_eq!(play(7, |_, _| {}), play(7, |_, _| {}));
        assert_ne!(play(7, |_, _| {}), play(8, |_, _| {}));
    }
}
