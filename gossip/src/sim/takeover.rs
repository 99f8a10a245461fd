//! How fast a dead publisher is followed, on a network that behaves.

use std::time::Duration;

use super::faults::{Scenario, Weights};
use super::world::World;

/// How a publisher ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Killed; it is started again afterwards.
    Killed,
    /// Stopped with its connections up; it goes on afterwards.
    Frozen,
    /// It says goodbye; it is started again afterwards.
    Goodbye,
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Takeover {
    /// From the start of a new cluster until all agree.
    pub formed: Duration,
    /// From the death until all agree on another publisher, and its descriptor without the dead is out.
    pub followed: Duration,
    /// From the return of the dead one until all agree, and it is back in the descriptor.
    pub returned: Duration,
    /// Whether the one who returned has the lease again.
    pub taken_back: bool,
    /// How many stand in at each point of the dead one: while it is dead, and once it is back.
    pub stand_ins: [Vec<usize>; 2],
}

/// Lets the world go on until it has settled; `None` if it does not in two minutes.
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

/// Forms a cluster, ends its publisher, waits for the next, brings the old one back.
pub fn takeover(seed: u64, nodes: usize, death: Death) -> Option<Takeover> {
    let mut world = World::new(Scenario { weights: Weights::NONE, ..Scenario::new(seed, nodes) });
    world.calm = true;
    let formed = until_settled(&mut world)?;
    world.run_until(world.now + Duration::from_secs(60));
    let first = world.publisher_now()?;
    match death {
        Death::Killed => world.kill(first),
        Death::Frozen => world.freeze_host(first),
        Death::Goodbye => world.say_goodbye(first),
    }
    // The gossip of the last moment may still settle on the dead one; a step lets the death be seen.
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
