//! The part of the view that is about each service: which nodes can serve its clients, at which
//! relays, and which revisions of its descriptor were used.

use std::collections::{BTreeMap, BTreeSet};

use super::{MemberView, RecordRejection, View};
use crate::id::{NodeId, ServiceId};
use crate::record::{
    Fitness, IntroPoint, IntroPoints, Listed, MAX_SERVICES, PeriodId, Phase, Publication, RecordKind, RelayId,
};
use crate::signed::Verified;
use crate::source::{Candidate, Source, relay_lot};

/// Which start of its node, counted from the first, signed a record: the upper 32 bits of the
/// sequence number.
pub(super) fn start(seq: u64) -> u64 {
    seq >> 32
}

impl MemberView {
    /// Its newest intro points for this service.
    pub fn intro_points(&self, service: &ServiceId) -> Option<&Verified<IntroPoints>> {
        self.newest(RecordKind::IntroPoints(*service))
    }

    /// Its newest intro points for each service, by service.
    pub fn all_intro_points(&self) -> impl Iterator<Item = &Verified<IntroPoints>> + '_ {
        self.records.values().filter_map(IntroPoints::of)
    }

    /// Its newest publication of this service.
    pub fn publication(&self, service: &ServiceId) -> Option<&Verified<Publication>> {
        self.newest(RecordKind::Publication(*service))
    }

    /// Whether it can serve clients of this service now. `Down` if it has announced nothing for
    /// this service since its last restart.
    pub fn fitness(&self, service: &ServiceId) -> Fitness {
        let record = self.intro_points(service).filter(|record| self.is_of_this_start(record.seq));
        record.map_or(Fitness::Down, |record| record.fitness)
    }

    /// Its fitness for each service that it has announced since its last restart.
    pub(super) fn all_fitness(&self) -> impl Iterator<Item = Fitness> + '_ {
        let records = self.all_intro_points();
        records.filter(move |record| self.is_of_this_start(record.seq)).map(|record| record.fitness)
    }

    /// Whether a record with this sequence number is of the node's latest start, or of a later one
    /// than that of its newest heartbeat.
    pub(super) fn is_of_this_start(&self, seq: u64) -> bool {
        self.heartbeat().is_some_and(|beat| start(seq) >= start(beat.seq))
    }

    /// This node as a candidate for the descriptor of this service, offering these of its points.
    pub(crate) fn candidate<'a>(&'a self, service: &ServiceId, points: &'a [IntroPoint]) -> Candidate<'a> {
        let subprotocols = self.intro_points(service).map_or(&[][..], |record| &record.subprotocols);
        let (source, fitness, weight) = (self.node().into(), self.fitness(service), self.weight());
        Candidate { source, fitness, weight, points, subprotocols }
    }

    /// Makes room for a record with sequence number `seq` about `service`. A node with
    /// [`MAX_SERVICES`] other services loses the records of the one for which its newest record is
    /// the oldest. The node may have served other services before.
    pub(super) fn make_service_room(&mut self, service: ServiceId, seq: u64) -> Result<(), RecordRejection> {
        let mut newest: BTreeMap<ServiceId, u64> = BTreeMap::new();
        for (kind, record) in &self.records {
            if let RecordKind::IntroPoints(of) | RecordKind::Publication(of) = kind {
                let known = newest.entry(*of).or_default();
                *known = record.seq().max(*known);
            }
        }
        if newest.contains_key(&service) || newest.len() < MAX_SERVICES {
            return Ok(());
        }
        let oldest = newest.into_iter().min_by_key(|(of, newest)| (*newest, *of));
        let Some((oldest, _)) = oldest.filter(|(_, newest)| *newest < seq) else {
            return Err(RecordRejection::TooMany("services"));
        };
        self.records.remove(&RecordKind::IntroPoints(oldest));
        self.records.remove(&RecordKind::Publication(oldest));
        self.revisions.remove(&oldest);
        Ok(())
    }
}

impl View {
    /// The services of the cluster: those that its facts name and have not removed. If there are
    /// more than [`MAX_SERVICES`], the oldest of them. The first service, whose key is the
    /// cluster's id, needs no fact.
    pub fn services(&self) -> BTreeSet<ServiceId> {
        let (first, facts) = (self.cluster.first_service(), &self.facts.services);
        let mut services: Vec<(u64, ServiceId)> = facts
            .iter()
            .filter(|service| !service.removed)
            .map(|service| (if service.service == first { 0 } else { service.issued }, service.service))
            .collect();
        if facts.get(&first).is_none() {
            services.push((0, first));
        }
        services.sort_unstable();
        services.into_iter().map(|(_, service)| service).take(MAX_SERVICES).collect()
    }

    /// The candidates of all living sources for the descriptor of this service.
    pub fn candidates<'a>(&'a self, service: &'a ServiceId) -> impl Iterator<Item = Candidate<'a>> + 'a {
        let serving = self.heard(service).filter(|(node, _)| !matches!(node.phase(), Phase::Gone | Phase::Joining));
        serving.map(move |(node, record)| node.candidate(service, &record.points))
    }

    /// Living members, each with its intro points for this service.
    fn heard<'a>(&'a self, service: &'a ServiceId) -> impl Iterator<Item = (&'a MemberView, &'a IntroPoints)> + 'a {
        let alive = self.members().filter(|node| node.alive);
        alive.filter_map(move |node| Some((node, &**node.intro_points(service)?)))
    }

    /// The relays at which other sources have introduction points for this service.
    pub fn relays_of_others(&self, service: &ServiceId) -> BTreeSet<RelayId> {
        let own = Source::Node(self.me);
        self.relays(service).filter(|(source, _)| *source != own).map(|(_, relay)| relay).collect()
    }

    /// The relays that this node must leave: another source with a lower lot has an introduction
    /// point for this service there too, and clients can use only one of the two.
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

    /// The relays of all living sources of this service. A joining node counts: its points return
    /// to the descriptor soon.
    fn relays<'a>(&'a self, service: &'a ServiceId) -> impl Iterator<Item = (Source, RelayId)> + 'a {
        let offered = self.heard(service).map(|(node, record)| (Source::Node(node.node()), &record.points));
        offered.flat_map(|(source, points)| points.iter().map(move |point| (source, point.relay)))
    }

    /// The highest revision that any publisher, evicted or not, is known to have used for a service
    /// in a period; `None` if there is none.
    pub fn highest_revision(&self, service: &ServiceId, period: &PeriodId) -> Option<u64> {
        let revisions = self.nodes.values().filter_map(|node| node.revisions.get(service));
        revisions.filter_map(|revisions| revisions.get(period)).max().copied()
    }

    /// The same for each period.
    pub fn revisions(&self, service: &ServiceId) -> BTreeMap<PeriodId, u64> {
        highest(self.nodes.values(), service)
    }

    /// For each period the highest revision that another member has announced.
    pub fn revisions_of_others(&self, service: &ServiceId) -> BTreeMap<PeriodId, u64> {
        let me: NodeId = self.me;
        highest(self.members().filter(move |node| node.node() != me), service)
    }
}

/// For each period the highest revision that any of these nodes has announced for this service.
fn highest<'a>(nodes: impl Iterator<Item = &'a MemberView>, service: &ServiceId) -> BTreeMap<PeriodId, u64> {
    let mut highest = BTreeMap::new();
    let revisions = nodes.filter_map(|node| node.revisions.get(service)).flatten();
    for (period, revision) in revisions {
        let known = highest.entry(*period).or_default();
        *known = (*revision).max(*known);
    }
    highest
}
