//! Old words of a dead node, said again to nodes that have forgotten it.

use std::time::Duration;

use super::monitor::Violation;
use super::takeover::until_settled;
use super::world::{Due, Happening, World};
use super::{Scenario, Weights};
use crate::record::RecordKind;

/// How long all are switched off: longer than any honest node repeats the last words of the dead.
const OFF: Duration = Duration::from_secs(2 * 3600);
/// Between two of the old words: just in time for a node whose beats are slow.
const PAUSE: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Debug)]
pub struct Replay {
    /// Broken invariants.
    pub violations: Vec<Violation>,
    /// How often each reader refused an old beat.
    pub refused: Vec<u64>,
}

/// Forms a cluster and notes what one of its nodes says. All are switched off, and all but that one start again. Then a
/// member says to each, for minutes, what it has noted: every word true, in its order, and new to who hears it. `None` if
/// the cluster does not settle.
pub fn replay(seed: u64, nodes: usize) -> Option<Replay> {
    let mut world = World::new(Scenario { weights: Weights::NONE, ..Scenario::new(seed, nodes) });
    world.calm = true;
    until_settled(&mut world)?;
    let dead = seed as usize % nodes;
    let (mut beats, mut others) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        world.run_until(world.now + Duration::from_secs(2));
        let said = world.hosts[dead].process.as_ref()?.store.of(dead);
        let words = said.into_iter().filter_map(|value| Some((value.said.kind, value.said.bytes.clone()?)));
        let (new, rest): (Vec<_>, Vec<_>) = words.partition(|(kind, _)| *kind == RecordKind::Heartbeat);
        beats.extend(new.into_iter().filter(|beat| beats.last() != Some(beat)).collect::<Vec<_>>());
        others = rest;
    }
    (0..nodes).for_each(|host| world.kill(host));
    world.run_until(world.now + OFF);
    let readers: Vec<usize> = (0..nodes).filter(|host| *host != dead).collect();
    readers.iter().for_each(|host| world.start(*host));
    until_settled(&mut world)?;
    let origin = world.hosts[dead].id();
    for (number, beat) in beats.into_iter().enumerate() {
        for (kind, bytes) in others.iter().chain([&beat]) {
            for host in &readers {
                let due = Due::Record { origin, kind: *kind, bytes: bytes.clone() };
                world.at(PAUSE * number as u32, Happening::At { host: *host, life: None, due });
            }
        }
    }
    world.run_until(world.now + Duration::from_secs(300));
    let refused = |host: &usize| Some(world.hosts[*host].process.as_ref()?.coordinator.view().refused().of("old"));
    Some(Replay { refused: readers.iter().filter_map(refused).collect(), violations: world.violations })
}
