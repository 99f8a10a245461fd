//! A replay attack: old records of a dead node, sent to nodes that have forgotten it.

use std::time::Duration;

use super::monitor::Violation;
use super::takeover::until_settled;
use super::world::{ProcessEvent, SimEvent, World};
use super::{Scenario, Weights};
use crate::record::RecordKind;

/// How long all nodes are off: longer than the hour for which honest nodes forward a dead node's
/// records.
const OFF: Duration = Duration::from_secs(2 * 3600);
/// Time between two replayed heartbeats: short enough that fresh ones at this rate would prove
/// liveness.
const PAUSE: Duration = Duration::from_secs(10);

/// The outcome of a replay.
#[derive(Debug)]
pub struct Replay {
    /// Broken invariants.
    pub violations: Vec<Violation>,
    /// How often each receiving node refused a heartbeat as too old.
    pub refused: Vec<u64>,
}

/// Forms a cluster and records what one of its nodes announces. All nodes are switched off, and all
/// but that one start again. Then a member sends the recorded records to each of them for minutes:
/// genuine, in their order, and new to the receiver. `None` if the cluster does not settle.
pub fn replay(seed: u64, nodes: usize) -> Option<Replay> {
    let mut world = World::new(Scenario { weights: Weights::NONE, ..Scenario::new(seed, nodes) });
    world.calm = true;
    until_settled(&mut world)?;
    let dead = seed as usize % nodes;
    let (mut beats, mut others) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        world.run_until(world.now + Duration::from_secs(2));
        let values = world.hosts[dead].process.as_ref()?.store.of(dead);
        let records =
            values.into_iter().filter_map(|value| Some((value.announced.kind, value.announced.bytes.clone()?)));
        let (new, rest): (Vec<_>, Vec<_>) = records.partition(|(kind, _)| *kind == RecordKind::Heartbeat);
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
                let due = ProcessEvent::Record { origin, kind: *kind, bytes: bytes.clone() };
                world.at(PAUSE * number as u32, SimEvent::At { host: *host, process_number: None, due });
            }
        }
    }
    world.run_until(world.now + Duration::from_secs(300));
    let refused = |host: &usize| Some(world.hosts[*host].process.as_ref()?.coordinator.view().refused().of("old"));
    Some(Replay { refused: readers.iter().filter_map(refused).collect(), violations: world.violations })
}
