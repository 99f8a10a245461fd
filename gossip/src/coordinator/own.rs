//! This node's own records: builds and announces them, and processes those that come back by
//! gossip.

use std::time::Duration;

use super::speaker::DueRecords;
use super::{Action, Coordinator, Now, Preferences};
use crate::address::mesh_address;
use crate::id::ServiceId;
use crate::record::{
    AnyRecord, Endpoint, Heartbeat, IntroPoints, Lease, MAX_SUBPROTOCOLS, NodeCard, NodeReport, Publication,
    RecordKind, Role,
};
use crate::view::{Changes, RecordRejection};

impl Coordinator {
    /// Announces the records that are due, and those of its services that have changed.
    pub(super) fn announce(&mut self, due: DueRecords, now: Now, out: &mut Vec<Action>) -> Changes {
        let mut changes = Changes::default();
        if due.slow {
            self.announce_card(now, out);
            changes |= self.announce_endpoint(now, out);
            changes |= self.announce_report(now, out);
            for service in self.serving.keys().copied().collect::<Vec<_>>() {
                self.announce_points(service, true, now, out);
            }
            for service in self.publishing.keys().copied().collect::<Vec<_>>() {
                self.announce_publication(service, now, out);
            }
        }
        if due.lease {
            match self.election.leading() {
                Some(term) => self.announce_lease(term, self.settings.timing.ttl, now, out),
                None => self.announce_lease(self.election.stored_term(), Duration::ZERO, now, out),
            }
        }
        for service in self.serving.keys().copied().collect::<Vec<_>>() {
            changes |= self.announce_points(service, false, now, out);
        }
        if due.heartbeat {
            changes |= self.announce_heartbeat(now, out);
        }
        changes
    }

    /// Takes other preferences, and announces those that the other nodes must know.
    pub(super) fn prefer(&mut self, preferences: Preferences, now: Now, out: &mut Vec<Action>) -> Changes {
        if preferences == self.settings.preferences {
            return Changes::default();
        }
        self.view.set_waiting(preferences.waiting);
        self.settings.preferences = preferences;
        if let Some(term) = self.election.leading() {
            self.announce_lease(term, self.settings.timing.ttl, now, out);
        }
        let mut changes = self.announce_card(now, out);
        changes |= self.announce_report(now, out);
        // Whether outages are hidden matters to the plan, even if the card says the same.
        changes.points = true;
        changes
    }

    pub(super) fn announce_card(&mut self, now: Now, out: &mut Vec<Action>) -> Changes {
        let card = |seq| NodeCard {
            cluster: self.cluster,
            node: self.me,
            seq,
            chain: self.member.chain(),
            address: mesh_address(&self.me),
            priority: self.settings.preferences.priority,
            weight: self.settings.preferences.weight.clamp(1, 100),
            version: self.settings.version.chars().filter(|it| it.is_ascii_graphic()).take(64).collect(),
            ports: self.settings.preferences.ports.iter().copied().take(NodeCard::MAX_PORTS).collect(),
        };
        let Some((card, bytes)) = self.speaker.sign(card) else { return Changes::default() };
        out.push(Action::Gossip { kind: RecordKind::Card, bytes });
        self.fold(|view| view.fold_card(card, now))
    }

    /// Announces the WireGuard keys and addresses, if this node has had any since its start.
    pub(super) fn announce_endpoint(&mut self, now: Now, out: &mut Vec<Action>) -> Changes {
        let Some(sealed) = self.endpoint.clone() else { return Changes::default() };
        let (cluster, node) = (self.cluster, self.me);
        let Some((record, bytes)) = self.speaker.sign(|seq| Endpoint { cluster, node, seq, sealed }) else {
            return Changes::default();
        };
        out.push(Action::Gossip { kind: RecordKind::Endpoint, bytes });
        self.fold(|view| view.fold_endpoint(record, now))
    }

    /// Announces the name and the problems of this node, if there is anything to say.
    pub(super) fn announce_report(&mut self, now: Now, out: &mut Vec<Action>) -> Changes {
        let name = self.settings.preferences.name.clone();
        if name.is_none() && self.problems.is_empty() && !self.reported {
            return Changes::default();
        }
        let (cluster, node) = (self.cluster, self.me);
        let problems = self.problems.iter().take(NodeReport::MAX_PROBLEMS).cloned().collect();
        let record = |seq| NodeReport { cluster, node, seq, name, problems };
        let Some((report, bytes)) = self.speaker.sign(record) else { return Changes::default() };
        self.reported = true;
        out.push(Action::Gossip { kind: RecordKind::Report, bytes });
        self.fold(|view| view.fold_report(report, now))
    }

    fn announce_heartbeat(&mut self, now: Now, out: &mut Vec<Action>) -> Changes {
        let (cluster, node, phase) = (self.cluster, self.me, self.phase());
        let (unix, instance) = (now.unix, self.settings.instance);
        let hears = u16::try_from(self.view.hears()).unwrap_or(u16::MAX);
        let record = |seq| Heartbeat { cluster, node, seq, phase, hears, unix, instance };
        let Some((beat, bytes)) = self.speaker.sign(record) else { return Changes::default() };
        out.push(Action::Gossip { kind: RecordKind::Heartbeat, bytes });
        self.fold(|view| view.fold_heartbeat(beat, now))
    }

    /// Announces the intro points for a service if they have changed, or even if they have not
    /// (`again`).
    fn announce_points(&mut self, service: ServiceId, again: bool, now: Now, out: &mut Vec<Action>) -> Changes {
        let draining = self.life.is_draining();
        let Some(serving) = self.serving.get_mut(&service) else { return Changes::default() };
        if !(serving.has_news(draining) || (again && serving.is_announced())) {
            return Changes::default();
        }
        let (cluster, node) = (self.cluster, self.me);
        let (fitness, points, nonces) = serving.announce(draining);
        let subprotocols = self.settings.subprotocols.iter().copied().take(MAX_SUBPROTOCOLS).collect();
        let record = |seq| IntroPoints { cluster, node, seq, service, fitness, points, nonces, subprotocols };
        let Some((record, bytes)) = self.speaker.sign(record) else { return Changes::default() };
        out.push(Action::Gossip { kind: RecordKind::IntroPoints(service), bytes });
        self.fold(|view| view.fold_points(record, now))
    }

    pub(super) fn announce_lease(&mut self, term: u64, ttl: Duration, now: Now, out: &mut Vec<Action>) {
        if self.member.role() != Role::Publisher {
            return;
        }
        let ttl_ms = u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX);
        let (cluster, holder, priority) = (self.cluster, self.me, self.settings.preferences.priority);
        let record = |seq| Lease { cluster, holder, seq, term, priority, ttl_ms };
        let Some((lease, bytes)) = self.speaker.sign(record) else { return };
        out.push(Action::Gossip { kind: RecordKind::Lease, bytes });
        self.fold(|view| view.fold_lease(lease, now));
    }

    pub(super) fn announce_publication(&mut self, service: ServiceId, now: Now, out: &mut Vec<Action>) -> Changes {
        let periods = self.publishing.get(&service).map(|publishing| publishing.periods.clone()).unwrap_or_default();
        if self.member.role() != Role::Publisher || periods.is_empty() {
            return Changes::default();
        }
        let (cluster, node, term) = (self.cluster, self.me, self.queue.last_term());
        let record = |seq| Publication { cluster, node, seq, service, term, periods };
        let Some((publication, bytes)) = self.speaker.sign(record) else { return Changes::default() };
        out.push(Action::Gossip { kind: RecordKind::Publication(service), bytes });
        self.fold(|view| view.fold_publication(publication, now))
    }

    /// Processes a record of this node that came back by gossip. It changes nothing that this node
    /// announces except its sequence numbers and terms, which must be higher than those of the
    /// record. It may also show that another process signs with the same key.
    pub(super) fn on_own_record(&mut self, kind: RecordKind, bytes: &[u8], now: Now) {
        let Ok(Some(record)) = self.view.open_own(self.me, kind, bytes, None) else { return };
        if let AnyRecord::Heartbeat(beat) = &record {
            self.life.on_own_heartbeat(beat, self.speaker.is_ahead(beat.seq), now);
        }
        if let AnyRecord::Lease(lease) = &record {
            self.view.raise_term(lease.term);
        }
        if self.speaker.adopt_seq(record.seq()) {
            tracing::warn!(
                name: "own_record_newer",
                "received a newer record of this node than it has made: its state is an old backup, or a second node has its key"
            );
            self.view.count_refusal(&RecordRejection::Own);
            self.announcements.schedule_reannouncement(now.mono);
        }
    }
}
