//! What the view knows of each service: who can serve its clients, at which relays, and which revisions of its descriptor
//! were used.

use std::collections::{BTreeMap, BTreeSet};

use super::{MemberView, Rejection, View};
use crate::id::{NodeId, ServiceId};
use crate::record::{Fitness, Heartbeat, IntroPoint, IntroPoints, MAX_SERVICES, PeriodId, Phase, Publication, RelayId};
use crate::signed::Verified;
use crate::source::{Candidate, Source, relay_lot};

/// What a node has announced of one service.
#[derive(Debug, Clone, Default)]
pub struct ServiceRecords {
    /// Its newest intro points.
    pub intro_points: Option<Verified<IntroPoints>>,
    /// Its newest publication.
    pub publication: Option<Verified<Publication>>,
    /// The highest revision it has announced of each period. Each node has a map of its own, so that no node can have
    /// another's forgotten.
    pub(super) revisions: BTreeMap<PeriodId, u64>,
}

impl ServiceRecords {
    /// The highest sequence number of these records.
    fn seq(&self) -> u64 {
        let points = self.intro_points.as_ref().map(|record| record.seq);
        points.max(self.publication.as_ref().map(|record| record.seq)).unwrap_or_default()
    }
}

/// Which start of its node a record is from: the upper half of its sequence number counts them.
pub(super) fn start(seq: u64) -> u64 {
    seq >> 32
}

impl MemberView {
    /// Every service of which it has announced anything, by id.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceId, &ServiceRecords)> + '_ {
        self.services.iter()
    }

    /// Its newest intro points for this service.
    pub fn intro_points(&self, service: &ServiceId) -> Option<&Verified<IntroPoints>> {
        self.services.get(service)?.intro_points.as_ref()
    }

    /// Its newest publication of this service.
    pub fn publication(&self, service: &ServiceId) -> Option<&Verified<Publication>> {
        self.services.get(service)?.publication.as_ref()
    }

    /// Whether it can serve clients of this service now. A record from before its last restart says nothing of the
    /// present: then it is down.
    pub fn fitness(&self, service: &ServiceId) -> Fitness {
        let record = self.intro_points(service).filter(|record| self.is_of_this_start(record.seq));
        record.map_or(Fitness::Down, |record| record.fitness)
    }

    /// Its fitness for each service that it has announced since its last restart.
    pub(super) fn all_fitness(&self) -> impl Iterator<Item = Fitness> + '_ {
        let records = self.services.values().filter_map(|records| records.intro_points.as_ref());
        records.filter(move |record| self.is_of_this_start(record.seq)).map(|record| record.fitness)
    }

    fn is_of_this_start(&self, seq: u64) -> bool {
        let beat = |beat: &Verified<Heartbeat>| start(seq) >= start(beat.seq);
        self.heartbeat.as_ref().is_some_and(beat)
    }

    /// These points of it as a candidate for the descriptor of this service.
    pub(crate) fn candidate<'a>(&self, service: &ServiceId, points: &'a [IntroPoint]) -> Candidate<'a> {
        Candidate { source: self.node().into(), fitness: self.fitness(service), weight: self.weight(), points }
    }

    /// The records of a service, to be changed for one of that sequence number. A node beyond [`MAX_SERVICES`] gives up the
    /// service of which it has announced nothing for longest: it may have served others before.
    pub(super) fn records_mut(&mut self, service: ServiceId, seq: u64) -> Result<&mut ServiceRecords, Rejection> {
        if !self.services.contains_key(&service) && self.services.len() >= MAX_SERVICES {
            let oldest = self.services.iter().map(|(id, records)| (records.seq(), *id)).min();
            let Some((_, oldest)) = oldest.filter(|(of, _)| *of < seq) else {
                return Err(Rejection::TooMany("services"));
            };
            self.services.remove(&oldest);
        }
        Ok(self.services.entry(service).or_default())
    }
}

impl View {
    /// What all living sources offer for the descriptor of this service.
    pub fn candidates<'a>(&'a self, service: &'a ServiceId) -> impl Iterator<Item = Candidate<'a>> + 'a {
        let serving = self.heard(service).filter(|(node, _)| !matches!(node.phase(), Phase::Gone | Phase::Joining));
        serving.map(move |(node, record)| node.candidate(service, &record.points))
    }

    /// Living members, each with its intro points for this service.
    fn heard<'a>(&'a self, service: &'a ServiceId) -> impl Iterator<Item = (&'a MemberView, &'a IntroPoints)> + 'a {
        let alive = self.members().filter(|node| node.alive);
        alive.filter_map(move |node| Some((node, &**node.intro_points(service)?)))
    }

    /// The relays at which other sources wait for clients of this service.
    pub fn relays_of_others(&self, service: &ServiceId) -> BTreeSet<RelayId> {
        let own = Source::Node(self.me);
        self.relays(service).filter(|(source, _)| *source != own).map(|(_, relay)| relay).collect()
    }

    /// The relays that this node must leave: another source with a lower lot waits there for clients of this service, too,
    /// and clients can use only one of them.
    pub fn relays_to_leave(&self, service: &ServiceId) -> BTreeSet<RelayId> {
        let me = Source::Node(self.me);
        let own: Vec<RelayId> =
            self.relays(service).filter(|(source, _)| *source == me).map(|(_, relay)| relay).collect();
        let own: BTreeMap<&[u8], &RelayId> =
            own.iter().flat_map(|relay| relay.identities().map(|identity| (identity, relay))).collect();
        let mut leave = BTreeSet::new();
        for (source, theirs) in self.relays(service).filter(|(source, _)| *source != me) {
            let contested = theirs.identities().into_iter().filter_map(|identity| own.get(identity));
            leave.extend(contested.filter(|ours| relay_lot(&theirs, source) < relay_lot(ours, me)).copied());
        }
        leave
    }

    /// The relays of all living sources of this service. A node that still joins counts: its points come back.
    fn relays<'a>(&'a self, service: &'a ServiceId) -> impl Iterator<Item = (Source, RelayId)> + 'a {
        let offered = self.heard(service).map(|(node, record)| (Source::Node(node.node()), &record.points));
        offered.flat_map(|(source, points)| points.iter().map(move |point| (source, point.relay)))
    }

    /// The highest revision that any publisher, evicted or not, is known to have used for a service in a period.
    pub fn highest_revision(&self, service: &ServiceId, period: &PeriodId) -> Option<u64> {
        let records = self.nodes.values().filter_map(|node| node.services.get(service));
        records.filter_map(|records| records.revisions.get(period)).max().copied()
    }

    /// The same of every period.
    pub fn revisions(&self, service: &ServiceId) -> BTreeMap<PeriodId, u64> {
        highest(self.nodes.values(), service)
    }

    /// The highest of every period that another member has announced.
    pub fn revisions_of_others(&self, service: &ServiceId) -> BTreeMap<PeriodId, u64> {
        let me: NodeId = self.me;
        highest(self.members().filter(move |node| node.node() != me), service)
    }
}

/// The highest revision of every period that one of these nodes has announced for this service.
fn highest<'a>(nodes: impl Iterator<Item = &'a MemberView>, service: &ServiceId) -> BTreeMap<PeriodId, u64> {
    let mut highest = BTreeMap::new();
    let revisions = nodes.filter_map(|node| node.services.get(service)).flat_map(|records| &records.revisions);
    for (period, revision) in revisions {
        let known = highest.entry(*period).or_default();
        *known = (*revision).max(*known);
    }
    highest
}
