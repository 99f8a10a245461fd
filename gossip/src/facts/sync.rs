//! Synchronises facts between two neighbours over their link.
//!
//! Gossip spreads facts, but a hostile member can make a node believe that it already has all of
//! them. So neighbours compare facts on every link: each sends the digest of its facts when it
//! changes, and once a minute. A node hands all its facts to a peer whose digest differs
//! ([`FactSync`]); after both have done so they know the union, and the digests agree.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha3::{Digest, Sha3_256};

use super::FactEntry;
use crate::bytes::{FixedBytes, VarBytes};
use crate::hash::{Label, labelled};
use crate::record::{MAX_RECORD, RecordKind, Signer};

/// Interval at which an unchanged digest is sent again: the peer may have had no room for the facts
/// handed over.
const SEND_AGAIN: Duration = Duration::from_secs(60);
/// Time for which two digests may differ before facts are handed over: gossip usually delivers news
/// sooner.
const DIFFERING: Duration = Duration::from_secs(2);
/// Time that a peer may take to send a new digest after a hand-over.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Shortest pause between two hand-overs on one link. It doubles while they change nothing, up to
/// [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(2);
/// Longest pause between two hand-overs that change nothing: one of the nodes may reject some fact
/// for good.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Size in bytes above which no further fact is added to a message.
const MAX_BATCH: usize = 32_768;

/// The digest of all facts that a node knows.
pub type FactsDigest = FixedBytes<32>;

/// A fact as it is sent to a neighbour. Not to be trusted before its signature is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedFact {
    /// Its key, as [`RecordKind::key`] returns it. Bounded only by the size of a frame.
    pub kind: String,
    /// The signed record.
    pub record: VarBytes,
}

impl CarriedFact {
    /// The kind and the record; `None` if the kind is not one of facts or the record is too long.
    pub fn read(self) -> Option<(RecordKind, Vec<u8>)> {
        let kind = RecordKind::from_key(&self.kind).filter(|kind| kind.signer() != Signer::Node)?;
        (self.record.0.len() <= MAX_RECORD).then_some((kind, self.record.0))
    }
}

/// The facts that a node sends to its neighbours, and their digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedFacts {
    digest: FactsDigest,
    /// The signed records, by the key of their kind.
    records: BTreeMap<String, Vec<u8>>,
}

impl SharedFacts {
    /// Collects the facts. The digest is SHA3-256 over a label and, in the order of the keys, each
    /// key, a zero byte and the hash of the content.
    pub(super) fn of<'a>(entries: impl Iterator<Item = FactEntry<'a>>) -> Self {
        let (mut records, mut contents) = (BTreeMap::new(), BTreeMap::new());
        for (key, whole) in entries.filter_map(|entry| Some((entry.kind.key(), entry.whole?))) {
            if let Some(record) = whole.record() {
                records.insert(key.clone(), record);
                contents.insert(key, whole.content());
            }
        }
        let mut listed = Vec::new();
        for (key, content) in contents {
            listed.extend_from_slice(key.as_bytes());
            listed.push(0);
            listed.extend_from_slice(&Sha3_256::digest(content));
        }
        Self { digest: FixedBytes(labelled(Label::Facts, &[&listed])), records }
    }

    /// The digest, which is equal at two nodes that know the same facts.
    pub fn digest(&self) -> FactsDigest {
        self.digest
    }

    /// All facts, in messages of at most some 35 kB: `MAX_BATCH` and the encoding.
    pub fn batches(&self) -> Vec<Vec<CarriedFact>> {
        let mut batches = vec![Vec::new()];
        let mut size = 0;
        for (key, record) in &self.records {
            let fact = CarriedFact { kind: key.clone(), record: VarBytes(record.clone()) };
            let bytes = fact.kind.len() + fact.record.0.len();
            if size > 0 && size + bytes > MAX_BATCH {
                batches.push(Vec::new());
                size = 0;
            }
            size += bytes;
            if let Some(batch) = batches.last_mut() {
                batch.push(fact);
            }
        }
        batches.retain(|batch| !batch.is_empty());
        batches
    }
}

impl Default for SharedFacts {
    fn default() -> Self {
        Self::of(std::iter::empty())
    }
}

/// The next step on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactStep {
    /// Send the peer the digest of our facts.
    SendDigest,
    /// Send the peer all our facts.
    HandOver,
    /// Do nothing until this time, measured from the start of the link.
    Wait(Duration),
}

/// The state of the comparison at one end of a link. Times are measured from the start of the link.
#[derive(Debug, Default)]
pub struct FactSync {
    sent: Option<(FactsDigest, Duration)>,
    theirs: Option<FactsDigest>,
    /// When the digests began to differ; `None` if they agree.
    differ: Option<Duration>,
    handed: Option<HandedOver>,
}

#[derive(Debug, Clone, Copy)]
struct HandedOver {
    ours: FactsDigest,
    theirs: FactsDigest,
    /// When these facts of ours were first handed over, and when last.
    first: Duration,
    at: Duration,
    pause: Duration,
}

impl FactSync {
    /// Processes a digest sent by the peer.
    pub fn set_peer_digest(&mut self, theirs: FactsDigest) {
        self.theirs = Some(theirs);
    }

    /// The next step for our facts with the digest `ours`; the returned step counts as done.
    pub fn step(&mut self, ours: FactsDigest, now: Duration) -> FactStep {
        let send_at = match self.sent {
            Some((sent, at)) if sent == ours => at + SEND_AGAIN,
            _ => now,
        };
        if now >= send_at {
            self.sent = Some((ours, now));
            return FactStep::SendDigest;
        }
        let Some(theirs) = self.theirs.filter(|theirs| *theirs != ours) else {
            self.differ = None;
            return FactStep::Wait(send_at);
        };
        let differ_at = *self.differ.get_or_insert(now) + DIFFERING;
        let same = self.handed.filter(|last| (last.ours, last.theirs) == (ours, theirs));
        let rested = self.handed.map_or(now, |last| last.at + same.map_or(PAUSE, |last| last.pause));
        let hand_at = rested.max(differ_at);
        if now < hand_at {
            return FactStep::Wait(send_at.min(hand_at));
        }
        let pause = same.map_or(PAUSE, |last| (last.pause * 2).min(LONGEST_PAUSE));
        let first = self.handed.filter(|last| last.ours == ours).map_or(now, |last| last.first);
        self.handed = Some(HandedOver { ours, theirs, first, at: now, pause });
        FactStep::HandOver
    }

    /// True if the peer knows our facts with the digest `ours`: it sent the same digest, or it was
    /// handed all of them more than `ANSWER_TIME` ago and either knows more or rejects some.
    pub fn has_facts(&self, ours: FactsDigest, now: Duration) -> bool {
        let handed = self.handed.is_some_and(|last| last.ours == ours && now >= last.first + ANSWER_TIME);
        self.theirs == Some(ours) || handed
    }
}

#[cfg(test)]
mod tests {
    use super::super::AllFacts;
    use super::*;
    use crate::codec;
    use crate::record::{AnyFact, Role};
    use crate::signed::Strict;
    use crate::sim::{FOUNDED, Founder};

    fn digest(i: u8) -> FactsDigest {
        FixedBytes([i; 32])
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn facts(founder: &Founder, revoked: impl IntoIterator<Item = u32>) -> AllFacts {
        let mut facts = AllFacts::default();
        for number in revoked {
            let node = founder.node(number, Role::Worker).node();
            facts.put(founder.revoke(node).into(), FOUNDED).unwrap();
        }
        facts
    }

    /// Hands all facts of one node to another.
    fn hand_over(founder: &Founder, from: &AllFacts, to: &mut AllFacts) {
        let authority = founder.node(0, Role::Publisher).member.authority_id();
        for fact in from.shared(FOUNDED).batches().into_iter().flatten() {
            let (kind, bytes) = fact.read().unwrap();
            let fact = AnyFact::read(kind, &bytes, authority.public_key(), &Strict).unwrap();
            to.put(fact, FOUNDED).unwrap();
        }
    }

    #[test]
    fn two_nodes_agree_once_each_has_handed_its_facts_over() {
        let founder = Founder::new(1);
        let (mut one, mut other) = (facts(&founder, 1..300), facts(&founder, 250..400));
        one.put(founder.invitation(1, 3, &[]).into(), FOUNDED).unwrap();
        let used = founder.invitation(1, 3, &[founder.node(1, Role::Worker).node()]);
        other.put(used.into(), FOUNDED).unwrap();
        assert_ne!(one.shared(FOUNDED).digest(), other.shared(FOUNDED).digest());
        hand_over(&founder, &one, &mut other);
        hand_over(&founder, &other, &mut one);
        assert_eq!(one.shared(FOUNDED), other.shared(FOUNDED));
        assert_eq!(one.revocations.len(), 399);
        let batches = one.shared(FOUNDED).batches();
        assert!(batches.len() > 2 && batches.iter().all(|batch| codec::encode(batch).unwrap().len() < 100_000));
    }

    #[test]
    fn only_facts_are_read() {
        let founder = Founder::new(1);
        let node = founder.node(1, Role::Worker);
        for kind in ["card".to_string(), "LATER/1".into(), format!("rev/{}", node.node()).to_uppercase()] {
            assert_eq!(CarriedFact { kind, record: VarBytes(vec![1]) }.read(), None);
        }
        let kind = RecordKind::Revocation(node.node()).key();
        assert_eq!(CarriedFact { kind, record: VarBytes(vec![0; MAX_RECORD + 1]) }.read(), None);
    }

    #[test]
    fn a_digest_is_sent_at_once_after_a_change_and_once_a_minute() {
        let mut sync = FactSync::default();
        assert_eq!(sync.step(digest(1), seconds(0)), FactStep::SendDigest);
        assert_eq!(sync.step(digest(1), seconds(1)), FactStep::Wait(seconds(60)));
        assert_eq!(sync.step(digest(2), seconds(5)), FactStep::SendDigest);
        assert_eq!(sync.step(digest(2), seconds(65)), FactStep::SendDigest);
    }

    #[test]
    fn facts_are_handed_over_while_digests_differ_with_growing_pauses() {
        let mut sync = FactSync::default();
        assert!(!sync.has_facts(digest(1), seconds(0)));
        sync.step(digest(1), seconds(0));
        sync.set_peer_digest(digest(2));
        assert_eq!(sync.step(digest(1), seconds(1)), FactStep::Wait(seconds(3)), "gossip may bring them");
        assert_eq!(sync.step(digest(1), seconds(3)), FactStep::HandOver);
        assert!(!sync.has_facts(digest(1), seconds(12)) && sync.has_facts(digest(1), seconds(13)));
        let mut handed = 0;
        for at in 4..3600 {
            handed += u32::from(sync.step(digest(1), seconds(at)) == FactStep::HandOver);
        }
        assert!((10..20).contains(&handed), "{handed}");
        // The peer has learnt some facts, but not all.
        sync.set_peer_digest(digest(3));
        assert_eq!(sync.step(digest(1), seconds(3600)), FactStep::SendDigest);
        assert_eq!(sync.step(digest(1), seconds(3601)), FactStep::HandOver);
        sync.set_peer_digest(digest(1));
        assert!(sync.has_facts(digest(1), seconds(3602)), "it knows the same");
        assert!(matches!(sync.step(digest(1), seconds(3700)), FactStep::SendDigest));
        assert!(matches!(sync.step(digest(1), seconds(3701)), FactStep::Wait(_)));
    }
}
