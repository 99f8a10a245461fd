//! A node of a later version lives in a cluster of this one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::faults::{Scenario, Weights};
use super::gossip::Said;
use super::monitor::Violation;
use super::takeover::until_settled;
use super::world::World;
use super::{Founder, Identity};
use crate::record::{RecordKind, Role, Signer};

/// How long what is announced may take to reach all.
const SPREADING: Duration = Duration::from_secs(60);

/// Records by kind.
pub type Records = BTreeMap<RecordKind, Vec<u8>>;

/// What others have of what a node of a later version has announced.
#[derive(Debug)]
pub struct Upgrade {
    /// A node that was there.
    pub neighbour: Records,
    /// A node that was restarted after the later one had died: its disk, and what the others still carry.
    pub restarted: Records,
    /// A node that has joined after the later one had died.
    pub newcomer: Records,
    /// Broken invariants.
    pub violations: Vec<Violation>,
}

/// Forms a cluster, has one of its nodes announce what `later` makes for it, kills that node, restarts another one, and
/// has a new one join. `None` if the cluster does not settle after each of these.
pub fn upgrade(seed: u64, nodes: usize, later: impl FnOnce(&Founder, &Identity) -> Records) -> Option<Upgrade> {
    let mut world = World::new(Scenario { weights: Weights::NONE, ..Scenario::new(seed, nodes) });
    world.calm = true;
    until_settled(&mut world)?;
    let [speaker, neighbour, restarted] = [1, 0, 2];
    let announced = later(&world.founder, &world.hosts[speaker].identity);
    for (kind, bytes) in &announced {
        world.say(speaker, Said { kind: *kind, bytes: Some(bytes.clone()), claim: None });
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
    /// What a node has of these kinds: facts and records that it knows in its view, others in the gossip that it carries.
    fn carried(&self, host: usize, speaker: usize, announced: &Records) -> Records {
        let Some(process) = &self.hosts[host].process else { return Records::new() };
        let view = process.coordinator.view();
        let known = view.node(&self.hosts[speaker].id()).into_iter().flat_map(|node| node.records());
        let known = known.filter_map(|record| Some((record.kind(), record.to_bytes().ok()?)));
        let facts = view.facts().wholes().into_iter().filter_map(|fact| Some((fact.kind(), fact.to_bytes().ok()?)));
        let gossip = process.store.of(speaker).into_iter();
        let gossip = gossip.filter_map(|value| Some((value.said.kind, value.said.bytes.clone()?)));
        let gossip = gossip.filter(|(kind, _)| kind.signer() == Signer::Unknown);
        let all: Records = gossip.chain(known).chain(facts).collect();
        all.into_iter().filter(|(kind, _)| announced.contains_key(kind)).collect()
    }
}
