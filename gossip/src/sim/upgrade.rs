//! A node of a later version in a cluster of this version.

use std::collections::BTreeMap;
use std::time::Duration;

use super::faults::{Scenario, Weights};
use super::gossip::AnnouncedValue;
use super::monitor::Violation;
use super::takeover::until_settled;
use super::world::World;
use super::{Founder, Identity};
use crate::record::{RecordKind, Role, Signer};

/// Time allowed for a record to reach all nodes.
const SPREADING: Duration = Duration::from_secs(60);

/// Signed records as bytes, by kind.
pub type Records = BTreeMap<RecordKind, Vec<u8>>;

/// The records of a node of a later version (the *later node*) that have reached other nodes.
#[derive(Debug)]
pub struct Upgrade {
    /// At a node that ran all the time, before the later node died.
    pub neighbour: Records,
    /// At a node that was restarted after the later node had died: from its disk and from gossip.
    pub restarted: Records,
    /// At a node that joined after the later node had died.
    pub newcomer: Records,
    /// Broken invariants.
    pub violations: Vec<Violation>,
}

/// Forms a cluster, has one of its nodes announce the records that `later` makes for it, kills that
/// node, restarts another one, and adds a new one. `None` if the cluster does not settle.
pub fn upgrade(seed: u64, nodes: usize, later: impl FnOnce(&Founder, &Identity) -> Records) -> Option<Upgrade> {
    let mut world = World::new(Scenario { weights: Weights::NONE, ..Scenario::new(seed, nodes) });
    world.calm = true;
    until_settled(&mut world)?;
    let [speaker, neighbour, restarted] = [1, 0, 2];
    let announced = later(&world.founder, &world.hosts[speaker].identity);
    for (kind, bytes) in &announced {
        world.announce(speaker, AnnouncedValue { kind: *kind, bytes: Some(bytes.clone()), claim: None });
    }
    world.run_until(world.now + SPREADING);
    let heard_by_neighbour = world.carried(neighbour, speaker, &announced);
    world.kill(speaker);
    world.kill(restarted);
    until_settled(&mut world)?;
    world.start(restarted);
    let identity = world.founder.node(nodes as u32, Role::Publisher);
    let newcomer = world.add(identity);
    world.hosts[newcomer].disk.members = (0..=nodes).collect();
    world.start(newcomer);
    until_settled(&mut world)?;
    world.run_until(world.now + SPREADING);
    Some(Upgrade {
        neighbour: heard_by_neighbour,
        restarted: world.carried(restarted, speaker, &announced),
        newcomer: world.carried(newcomer, speaker, &announced),
        violations: world.violations,
    })
}

impl World {
    /// The records of the announced kinds that a node has: from its view if it knows the kind, else
    /// from the gossip state that it carries.
    fn carried(&self, host: usize, speaker: usize, announced: &Records) -> Records {
        let Some(process) = &self.hosts[host].process else { return Records::new() };
        let view = process.coordinator.view();
        let known = view.node(&self.hosts[speaker].id()).into_iter().flat_map(|node| node.records());
        let known = known.filter_map(|record| Some((record.kind(), record.to_bytes().ok()?)));
        let facts = view
            .facts()
            .complete_statements()
            .into_iter()
            .filter_map(|fact| Some((fact.kind(), fact.to_bytes().ok()?)));
        let gossip = process.store.of(speaker).into_iter();
        let gossip = gossip.filter_map(|value| Some((value.announced.kind, value.announced.bytes.clone()?)));
        let gossip = gossip.filter(|(kind, _)| kind.signer() == Signer::Unknown);
        let all: Records = gossip.chain(known).chain(facts).collect();
        all.into_iter().filter(|(kind, _)| announced.contains_key(kind)).collect()
    }
}
