//! How each kind of record changes the view, once it has been checked.

use std::time::Duration;

use super::services::start;
use super::{Changes, MemberView, RecordRejection, View};
use crate::lease::TERMS_PER_SECOND;
use crate::record::{
    AnyRecord, Endpoint, Heartbeat, IntroPoints, Lease, NodeCard, NodeName, NodeReport, Phase, Publication, Role,
};
use crate::record_kinds;
use crate::signed::Verified;
use crate::time::Now;

/// A heartbeat older than this proves nothing about a node that has been silent at least as long:
/// it may be a replay. 30 min = 2 x 10 min of permitted clock skew plus gossip delay, and half of
/// the hour for which nodes keep a dead node's records.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// Announced revisions above this count as this one when the next revision is chosen: a node that
/// ever held the master key could otherwise announce the highest number and leave no valid
/// successor. The record of a publisher that went above it is still accepted.
pub const MAX_FENCE: u64 = 1 << 56;
/// Most time periods of one publisher and service whose highest revision is remembered, in memory
/// and on disk. At most three are current at once.
pub const MAX_REVISIONS: usize = 16;

/// Generates `View::fold_record`: it calls the method that the table names for each kind of record.
macro_rules! folds {
    (
        own { $($Own:ident($own:literal): $OwnType:ty => $own_fold:ident;)* }
        keyed { $($Keyed:ident($keyed:literal, $Key:ty): $KeyedType:ty => $keyed_fold:ident;)* }
        facts $facts:tt
    ) => {
        impl View {
            /// Folds a record that has been checked, or that is this node's own.
            pub(crate) fn fold_record(&mut self, record: AnyRecord, now: Now) -> Result<Changes, RecordRejection> {
                match record {
                    $(AnyRecord::$Own(record) => self.$own_fold(record, now),)*
                    $(AnyRecord::$Keyed(record) => self.$keyed_fold(record, now),)*
                }
            }
        }
    };
}

record_kinds!(folds);

impl View {
    /// Replaces the node's previous record of this kind, and changes nothing else.
    fn keep(&mut self, record: impl Into<AnyRecord>, _now: Now) -> Result<Changes, RecordRejection> {
        let record = record.into();
        if let Some(node) = self.nodes.get_mut(&record.node()) {
            node.records.insert(record.kind(), record);
        }
        Ok(Changes::default())
    }

    pub(crate) fn fold_card(&mut self, card: Verified<NodeCard>, now: Now) -> Result<Changes, RecordRejection> {
        let known = self.nodes.get(&card.node).and_then(MemberView::card);
        // A card is re-announced every few minutes under a new sequence number. That alone does not
        // count as a change, so that nothing is written to disk for it.
        let again = |known: &Verified<NodeCard>| NodeCard { seq: card.seq, ..(**known).clone() } == *card;
        let changed = !known.is_some_and(again);
        self.keep(card, now)?;
        Ok(Changes { members: changed, points: changed, ..Changes::default() })
    }

    pub(crate) fn fold_heartbeat(&mut self, beat: Verified<Heartbeat>, now: Now) -> Result<Changes, RecordRejection> {
        let (id, phase) = (beat.node, beat.phase);
        let of_other = id != self.me;
        if of_other && self.is_too_old(&beat, now) {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.stale_heartbeat_at = Some(now.mono);
            }
            return Err(RecordRejection::Old);
        }
        let turned = of_other && self.liveness.on_heartbeat(id, phase == Phase::Gone, now.mono);
        let alive = !of_other || self.liveness.is_alive(&id);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(Changes::default()) };
        let changed = turned || node.phase() != phase || node.heartbeat().is_none();
        let restarted = node.heartbeat().is_some_and(|known| start(known.seq) != start(beat.seq));
        if of_other && node.instances.take(&beat) {
            node.duplicate_key_seen = Some(now.mono);
        }
        node.alive = alive;
        node.been_alive |= alive;
        node.last_heard = Some(now.mono);
        node.heard_unix = Some(now.unix);
        self.keep(beat, now)?;
        Ok(Changes { members: changed, points: changed || restarted, endpoints: restarted, ..Changes::default() })
    }

    /// Whether a heartbeat may be a replay: it is older than [`MAX_AGE`], and its node has been
    /// silent here for longer than that, so the newer record that would make it stale may have been
    /// forgotten. While a node is heard its dates are not checked, so a clock that jumps does not
    /// silence it. A future date is accepted: a replay has none, and our own clock may be slow.
    fn is_too_old(&self, beat: &Heartbeat, now: Now) -> bool {
        let heard = self.nodes.get(&beat.node).and_then(|node| node.last_heard);
        let lost = heard.is_none_or(|at| now.mono.saturating_sub(at) > MAX_AGE);
        lost && beat.unix.saturating_add(MAX_AGE.as_secs()) < now.unix
    }

    /// A heartbeat numbered below the newest can show only one thing: that a second process signs
    /// with the node's key.
    pub(super) fn on_stale_heartbeat(&mut self, beat: &Heartbeat, now: Now) {
        if let Some(node) = self.nodes.get_mut(&beat.node).filter(|node| node.instances.runs_beside_current(beat)) {
            node.duplicate_key_seen = Some(now.mono);
        }
    }

    pub(crate) fn fold_points(&mut self, points: Verified<IntroPoints>, now: Now) -> Result<Changes, RecordRejection> {
        let sound = points.node == self.me || points.served().all(|served| (self.point_check)(points.node, &served));
        if !sound {
            return Err(RecordRejection::Points);
        }
        let Some(node) = self.nodes.get_mut(&points.node) else { return Ok(Changes::default()) };
        let (id, service) = (points.node, points.service);
        node.make_service_room(service, points.seq)?;
        let moved = node
            .intro_points(&service)
            .is_none_or(|known| (&known.points, &known.subprotocols) != (&points.points, &points.subprotocols));
        let before = node.fitness(&service);
        self.keep(points, now)?;
        let after = self.nodes.get(&id).map(|node| node.fitness(&service));
        Ok(Changes { points: moved || after != Some(before), ..Changes::default() })
    }

    pub(crate) fn fold_lease(&mut self, lease: Verified<Lease>, now: Now) -> Result<Changes, RecordRejection> {
        let Some(node) = self.nodes.get_mut(&lease.holder) else { return Ok(Changes::default()) };
        if node.member.role() != Role::Publisher {
            return Err(RecordRejection::Role);
        }
        if lease.holder != self.me && lease.term > now.unix.saturating_mul(TERMS_PER_SECOND) {
            return Err(RecordRejection::Jump("term"));
        }
        self.highest_term = self.highest_term.max(lease.term);
        // A lease with ttl 0 claims nothing: each node gives up any lease of an earlier process
        // when it starts.
        if lease.ttl_ms > 0 {
            node.claimed = node.claimed.max(lease.term);
            self.claimed_term = self.claimed_term.max(lease.term);
        }
        node.lease_seen = now.mono;
        // A node that gives up a lease which it does not hold, as each does at its start, does not
        // change the ranking.
        let ranks = lease.ttl_ms > 0 || self.best.is_some_and(|best| best.holder == lease.holder);
        self.keep(lease, now)?;
        if ranks {
            self.rank_claims();
        }
        Ok(Changes { leases: true, ..Changes::default() })
    }

    pub(crate) fn fold_endpoint(&mut self, endpoint: Verified<Endpoint>, now: Now) -> Result<Changes, RecordRejection> {
        let known = self.nodes.get(&endpoint.node).and_then(MemberView::endpoint);
        let changed = known.is_none_or(|known| known.sealed != endpoint.sealed);
        self.keep(endpoint, now)?;
        Ok(Changes { endpoints: changed, ..Changes::default() })
    }

    pub(crate) fn fold_report(&mut self, report: Verified<NodeReport>, now: Now) -> Result<Changes, RecordRejection> {
        let known = self.nodes.get(&report.node).and_then(MemberView::report);
        let name = known.and_then(|known| known.name.as_ref());
        if report.name.is_some() && report.name.as_ref() != name {
            let name = report.name.as_ref().map(NodeName::as_str);
            match known {
                None => {
                    tracing::info!(name: "member_named", node = %report.node.short(), name, "a member has this name");
                }
                // A hostile member may change it with each record.
                Some(_) => tracing::debug!(node = %report.node.short(), name, "a member has another name"),
            }
        }
        self.keep(report, now)
    }

    pub(crate) fn fold_publication(
        &mut self,
        publication: Verified<Publication>,
        now: Now,
    ) -> Result<Changes, RecordRejection> {
        let Some(node) = self.nodes.get_mut(&publication.node) else { return Ok(Changes::default()) };
        if node.member.role() != Role::Publisher {
            return Err(RecordRejection::Role);
        }
        node.make_service_room(publication.service, publication.seq)?;
        let revisions = node.revisions.entry(publication.service).or_default();
        for period in &publication.periods {
            let highest = revisions.entry(period.period).or_default();
            *highest = (*highest).max(period.revision.min(MAX_FENCE));
        }
        while revisions.len() > MAX_REVISIONS {
            // Periods of the far past or future must not displace the present one.
            let furthest = revisions.keys().copied().max_by_key(|id| (id.start().abs_diff(now.unix), *id));
            furthest.map(|id| revisions.remove(&id));
        }
        let known = node.publication(&publication.service);
        let changed = known.is_none_or(|known| known.periods != publication.periods);
        self.keep(publication, now)?;
        Ok(Changes { publications: changed, ..Changes::default() })
    }
}
