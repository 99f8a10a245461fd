//! Several services on a network without faults: one publisher publishes them all, and a change of
//! one does not touch the others.

use std::time::Duration;

use super::checks::period_at;
use super::faults::{Scenario, Weights};
use super::takeover::until_settled;
use super::world::World;
use crate::id::ServiceId;
use crate::source::Source;

/// How often the points of the last service change.
const CHANGES: usize = 3;

/// Wait after the nodes agree, so that pending changes are published.
const QUIET: Duration = Duration::from_secs(60);

/// The outcome of a run with several services.
#[derive(Debug, Clone)]
pub struct Services {
    /// Number of nodes that publish once all agree.
    pub publishers: usize,
    /// Whether the publisher serves all of the services itself.
    pub publisher_serves_all: bool,
    /// The revision of each service's descriptor on the directories, when the nodes first agree.
    pub before: Vec<u64>,
    /// The same revisions, after the introduction points of the last service were changed three
    /// times.
    pub after: Vec<u64>,
    /// Time from the death of a node until no descriptor of the first and the last service has a
    /// point of it.
    pub gone: Duration,
}

/// Forms a cluster with this number of services, changes the points of the last service, and kills
/// a node that serves all of them. `None` if the cluster does not settle or an invariant breaks.
pub fn services(seed: u64, nodes: usize, services: u32) -> Option<Services> {
    let mut world = World::new(Scenario { services, weights: Weights::NONE, ..Scenario::new(seed, nodes) });
    world.calm = true;
    until_settled(&mut world)?;
    world.run_until(world.now + QUIET);
    let publishers =
        world.hosts.iter().filter(|host| host.process.as_ref().is_some_and(|process| process.leading.is_some()));
    let publishers = publishers.count();
    let publisher = world.publisher_now()?;
    let (first, last) = (*world.services.first()?, *world.services.last()?);
    let serves_all = |world: &World, host: usize| world.services.iter().all(|service| world.serves(host, service));
    let publisher_serves_all = serves_all(&world, publisher);
    let before = revisions(&world, publisher)?;
    let victim = (0..nodes).find(|host| *host != publisher && serves_all(&world, *host))?;
    for _ in 0..CHANGES {
        let points = world.hosts[victim].disk.points.get(&last)?.iter().skip(1).cloned().collect();
        world.set_points(victim, last, points);
        world.run_until(world.now + Duration::from_secs(10));
        until_settled(&mut world)?;
    }
    let after = revisions(&world, world.publisher_now()?)?;
    world.kill(victim);
    let (died, source) = (world.now, Source::Node(world.hosts[victim].id()));
    while [first, last].iter().any(|service| names(&world, service, source)) {
        world.run_until(world.now + Duration::from_millis(250));
        if world.now > died + Duration::from_secs(120) {
            return None;
        }
    }
    let gone = world.now - died;
    world.violations.is_empty().then_some(Services { publishers, publisher_serves_all, before, after, gone })
}

/// The revision of each service on the directories now.
fn revisions(world: &World, publisher: usize) -> Option<Vec<u64>> {
    let period = period_at(world.hosts[publisher].clock(world.now).unix);
    world.services.iter().map(|service| Some(world.directories.get(&(*service, period))?.revision)).collect()
}

/// Whether a descriptor of this service has a point of this source.
fn names(world: &World, service: &ServiceId, source: Source) -> bool {
    let of_service = world.directories.iter().filter(|((of, _), _)| of == service);
    of_service.flat_map(|(_, directory)| &directory.points).any(|(of, _)| *of == source)
}
