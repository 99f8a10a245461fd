//! How fast another node takes over from a dead publisher, on a network without faults.

use std::time::Duration;

use super::faults::{Scenario, Weights};
use super::world::World;

/// How a publisher ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It is killed, and started again afterwards.
    Killed,
    /// It is stopped with its connections up, and goes on afterwards.
    Frozen,
    /// It announces that it stops, and is started again afterwards.
    Goodbye,
}

/// The measured times of a takeover.
#[derive(Debug, Clone)]
pub struct Takeover {
    /// Time from the start of a new cluster until all agree.
    pub formed: Duration,
    /// Time from the death until all agree on another publisher and its descriptor, without the
    /// dead node's points, is on the directories.
    pub followed: Duration,
    /// Time from the return of the dead node until all agree and its points are in the descriptor
    /// again.
    pub returned: Duration,
    /// Whether the node that returned has the lease again.
    pub taken_back: bool,
    /// Number of nodes that stand in at each point of the dead node: while it is dead, and after
    /// its return.
    pub stand_ins: [Vec<usize>; 2],
}

/// Runs until the cluster has settled and returns how long that took; `None` after two minutes. The
/// first check is after 250 ms, so that a fault just before the call has had its effect.
pub(super) fn until_settled(world: &mut World) -> Option<Duration> {
    let since = world.now;
    while world.now < since + Duration::from_secs(120) {
        world.run_until(world.now + Duration::from_millis(250));
        if world.unsettled().is_none() {
            return Some(world.now - since);
        }
    }
    None
}

/// Forms a cluster, ends its publisher, waits for the next one and brings the old one back. `None`
/// if the cluster does not settle or an invariant breaks.
/// The first `fast` nodes have faster routes to each other.
pub fn takeover(seed: u64, nodes: usize, fast: usize, death: Death) -> Option<Takeover> {
    let mut world = World::new(Scenario { fast, weights: Weights::NONE, ..Scenario::new(seed, nodes) });
    world.calm = true;
    let formed = until_settled(&mut world)?;
    world.run_until(world.now + Duration::from_secs(60));
    let first = world.publisher_now()?;
    match death {
        Death::Killed => world.kill(first),
        Death::Frozen => world.freeze_host(first),
        Death::Goodbye => world.say_goodbye(first),
    }
    let followed = until_settled(&mut world)?;
    let second = world.publisher_now()?;
    world.run_until(world.now + Duration::from_secs(20));
    let stand_ins = world.stand_ins(first);
    match death {
        Death::Frozen => world.thaw(first, None),
        Death::Killed | Death::Goodbye => world.start(first),
    }
    let returned = until_settled(&mut world)?;
    let taken_back = world.publisher_now()? != second;
    let stand_ins = [stand_ins, world.stand_ins(first)];
    world.violations.is_empty().then_some(Takeover { formed, followed, returned, taken_back, stand_ins })
}
