//! What this node says of itself: each word signed, with a sequence number above all before it.

use std::time::Duration;

use super::{Action, Coordinator, Now, REISSUE_PAUSE, REPEAT};
use crate::address::mesh_address;
use crate::id::{NodeId, ServiceId};
use crate::record::{Heartbeat, IntroPoints, Lease, NodeCard, Publication, RecordKind, Role};
use crate::signed::{Sign, Statement, Unverified, Verified};
use crate::view::{Changes, OwnWord, Rejection};

/// The node's voice.
pub(super) struct Voice {
    key: Box<dyn Sign + Send + Sync>,
    node: NodeId,
    next: u64,
}

/// Highest sequence number of our own that is believed when it comes back from elsewhere.
const MAX_SEQ: u64 = 1 << 62;

impl Voice {
    /// Speaks with the sequence numbers of the `boot`th start.
    pub(super) fn new(key: Box<dyn Sign + Send + Sync>, boot: u64) -> Self {
        let node = NodeId::from_public_key(key.public_key());
        Self { key, node, next: boot.min(MAX_SEQ >> 32) << 32 | 1 }
    }

    /// Signs what `word` makes of a new sequence number. `None` only if it cannot be encoded, which no word of ours
    /// within its bounds is.
    pub(super) fn say<T: Statement>(&mut self, word: impl FnOnce(u64) -> T) -> Option<(Verified<T>, Vec<u8>)> {
        let seq = self.next;
        self.next += 1;
        let signed = Verified::sign(word(seq), &*self.key).and_then(|word| Ok((word.to_bytes()?, word)));
        match signed {
            Ok((bytes, word)) => Some((word, bytes)),
            Err(error) => {
                tracing::error!(node = %self.node, %error, "cannot encode a record of our own");
                None
            }
        }
    }

    /// Whether a sequence number of ours is above all that this process has used.
    pub(super) fn is_ahead(&self, seq: u64) -> bool {
        seq >= self.next && seq < MAX_SEQ
    }

    /// A word of ours with this sequence number is out there. True if it was not said by this process: then the disk
    /// is older than what we said before, or another node has our key. All is said anew above it.
    pub(super) fn heard(&mut self, seq: u64) -> bool {
        let ahead = self.is_ahead(seq);
        if ahead {
            self.next = seq + 1;
        }
        ahead
    }
}

impl Coordinator {
    /// Says everything anew, above a number of ours that came back.
    pub(super) fn say_all(&mut self, now: Now, out: &mut Vec<Action>) {
        self.repeat(now, out);
        self.next_beat = now.mono;
        match self.election.leading() {
            Some(term) => self.say_lease(term, self.settings.timing.ttl, now, out),
            None => self.say_lease(self.election.stored_term(), Duration::ZERO, now, out),
        }
    }

    /// Says again, under new numbers, what changes seldom: whoever had it kept from it hears it now.
    pub(super) fn repeat(&mut self, now: Now, out: &mut Vec<Action>) {
        self.repeat_at = now.mono + REPEAT;
        self.say_card(out);
        let (serving, publishing): (Vec<ServiceId>, Vec<ServiceId>) = (
            self.serving.iter().filter(|(_, it)| it.is_announced()).map(|(service, _)| *service).collect(),
            self.publishing.keys().copied().collect(),
        );
        for service in serving {
            self.say_points(service, out);
        }
        for service in publishing {
            self.say_publication(service, now, out);
        }
    }

    /// Announces what has changed of the services that this node serves.
    pub(super) fn announce_services(&mut self, out: &mut Vec<Action>) -> Changes {
        let draining = self.draining;
        let news = self.serving.iter_mut().filter_map(|(service, it)| it.has_news(draining).then_some(*service));
        let news: Vec<ServiceId> = news.collect();
        let mut changes = Changes::default();
        for service in news {
            changes |= self.say_points(service, out);
        }
        changes
    }

    pub(super) fn say_card(&mut self, out: &mut Vec<Action>) {
        let card = |seq| NodeCard {
            cluster: self.cluster,
            node: self.me,
            seq,
            chain: self.member.chain(),
            address: mesh_address(&self.me),
            priority: self.settings.priority,
            weight: self.settings.weight.clamp(1, 100),
            version: self.settings.version.chars().filter(|it| it.is_ascii_graphic()).take(64).collect(),
            ports: self.settings.ports.iter().copied().take(NodeCard::MAX_PORTS).collect(),
        };
        if let Some((card, bytes)) = self.voice.say(card) {
            out.push(Action::Gossip { kind: RecordKind::Card, bytes });
            self.view.fold_card(card);
        }
    }

    fn say_points(&mut self, service: ServiceId, out: &mut Vec<Action>) -> Changes {
        let Some(serving) = self.serving.get_mut(&service) else { return Changes::default() };
        let (cluster, node) = (self.cluster, self.me);
        let (fitness, points, nonces) = serving.announce(self.draining);
        let record = |seq| IntroPoints { cluster, node, seq, service, fitness, points, nonces };
        let Some((record, bytes)) = self.voice.say(record) else { return Changes::default() };
        out.push(Action::Gossip { kind: RecordKind::IntroPoints(service), bytes });
        self.fold(|view| view.fold_points(record))
    }

    pub(super) fn say_lease(&mut self, term: u64, ttl: Duration, now: Now, out: &mut Vec<Action>) {
        if self.member.role() != Role::Publisher {
            return;
        }
        let ttl_ms = u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX);
        let (cluster, holder, priority) = (self.cluster, self.me, self.settings.priority);
        let Some((lease, bytes)) = self.voice.say(|seq| Lease { cluster, holder, seq, term, priority, ttl_ms }) else {
            return;
        };
        out.push(Action::Gossip { kind: RecordKind::Lease, bytes });
        self.fold(|view| view.fold_lease(lease, now));
    }

    pub(super) fn say_publication(&mut self, service: ServiceId, now: Now, out: &mut Vec<Action>) -> Changes {
        let periods = self.publishing.get(&service).map(|publishing| publishing.periods.clone()).unwrap_or_default();
        if self.member.role() != Role::Publisher || periods.is_empty() {
            return Changes::default();
        }
        let (cluster, node, term) = (self.cluster, self.me, self.last_term);
        let record = |seq| Publication { cluster, node, seq, service, term, periods };
        let Some((publication, bytes)) = self.voice.say(record) else { return Changes::default() };
        out.push(Action::Gossip { kind: RecordKind::Publication(service), bytes });
        self.fold(|view| view.fold_publication(publication, now))
    }

    /// Takes in a record of this node that came back. It changes nothing that this node says, only
    /// how high it must count from here; and it may show that another process signs with the same
    /// key.
    pub(super) fn hear_own(&mut self, kind: RecordKind, bytes: &[u8], now: Now) {
        let heard = match kind {
            RecordKind::Card => self.own::<NodeCard>(bytes).map(|card| card.seq),
            RecordKind::IntroPoints(_) => self.own::<IntroPoints>(bytes).map(|points| points.seq),
            RecordKind::Publication(_) => self.own::<Publication>(bytes).map(|publication| publication.seq),
            RecordKind::Heartbeat => self.own::<Heartbeat>(bytes).map(|beat| {
                self.isolation.hear_own(&beat, self.voice.is_ahead(beat.seq), now);
                beat.seq
            }),
            RecordKind::Lease => self.own::<Lease>(bytes).map(|lease| {
                self.view.raise_term(lease.term);
                lease.seq
            }),
            RecordKind::Invitation(_) | RecordKind::Revocation(_) => return,
        };
        if heard.is_some_and(|seq| self.voice.heard(seq)) {
            tracing::warn!(
                "a newer record of this node came back than it has made: an old backup, or a second node with its key"
            );
            self.view.count_refusal(&Rejection::Own);
            let rested = self.reissued.map_or(now.mono, |at| (at + REISSUE_PAUSE).max(now.mono));
            self.reissue_at = self.reissue_at.or(Some(rested));
        }
    }

    /// Opens a record that this node's key has signed for this cluster.
    fn own<T: OwnWord>(&self, bytes: &[u8]) -> Option<Verified<T>> {
        let record = Unverified::<T>::from_bytes(bytes).ok()?;
        let record = record.verify_with(self.me.public_key(), self.view.check()).ok()?;
        (record.speaker() == self.me && record.cluster() == self.cluster).then_some(record)
    }
}
