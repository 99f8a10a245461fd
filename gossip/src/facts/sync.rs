//! Facts as two neighbours compare and hand them over, first-hand.
//!
//! Gossip spreads facts, but a hostile member can have a node believe that it has heard all of
//! them. So neighbours compare them on every link: each sends the digest of what it knows, when
//! that changes and once in a while. To a peer whose digest differs a node hands over all it knows
//! ([`FactSync`]); both then know the union, and the digests agree.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha3::{Digest, Sha3_256};

use super::FactEntry;
use crate::bytes::{FixedBytes, VarBytes};
use crate::hash::{Label, labelled};
use crate::record::{MAX_RECORD, RecordKind, Signer};

/// How often a digest that has not changed is sent again: the peer may have had no room for the
/// facts that were handed over.
const SEND_AGAIN: Duration = Duration::from_secs(60);
/// How long two digests may differ before facts are handed over: gossip brings news to all in less.
const DIFFERING: Duration = Duration::from_secs(2);
/// How long a peer may take to send a new digest after a hand-over.
const TAKEN: Duration = Duration::from_secs(10);
/// Shortest pause between two hand-overs on one link; doubled as long as they change nothing, up to
/// [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(2);
/// Longest pause between two hand-overs that change nothing: one of the two may refuse some fact
/// for good.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Most bytes of facts in one message, beyond the first fact.
const MAX_BATCH: usize = 32_768;

/// The digest of all facts that a node knows.
pub type FactsDigest = FixedBytes<32>;

/// One fact on its way to a neighbour. Not to be believed before its signature is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedFact {
    /// Its key, as [`RecordKind::key`] has it. At most a frame long.
    pub kind: String,
    /// The signed record.
    pub record: VarBytes,
}

impl CarriedFact {
    /// The kind and the record, if the kind can be one of facts and the record is not too long.
    pub fn read(self) -> Option<(RecordKind, Vec<u8>)> {
        let kind = RecordKind::from_key(&self.kind).filter(|kind| kind.signer() != Signer::Node)?;
        (self.record.0.len() <= MAX_RECORD).then_some((kind, self.record.0))
    }
}

/// The facts that a node sends to its neighbours, and their digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedFacts {
    digest: FactsDigest,
    /// By key.
    records: BTreeMap<String, Vec<u8>>,
}

impl SharedFacts {
    /// The digest is SHA3-256 over a label and, in the order of the keys, each key, a zero byte and the hash of the
    /// content.
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

    /// The digest of all of them: equal at two nodes that know the same facts.
    pub fn digest(&self) -> FactsDigest {
        self.digest
    }

    /// All of them, in messages of at most some 48 kB.
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

/// What is to be done on a link now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactStep {
    /// Send the peer the digest of our facts.
    Tell,
    /// Hand all our facts over.
    HandOver,
    /// Nothing before this much time on the link has passed.
    Wait(Duration),
}

/// What one end of a link remembers of the comparison. Times are measured from the start of the
/// link.
#[derive(Debug, Default)]
pub struct FactSync {
    sent: Option<(FactsDigest, Duration)>,
    theirs: Option<FactsDigest>,
    /// Since when the digests differ.
    differ: Option<Duration>,
    handed: Option<HandedOver>,
}

#[derive(Debug, Clone, Copy)]
struct HandedOver {
    ours: FactsDigest,
    theirs: FactsDigest,
    /// When these facts of ours were handed over first, and last.
    first: Duration,
    at: Duration,
    pause: Duration,
}

impl FactSync {
    /// Takes the digest that the peer has sent.
    pub fn hear(&mut self, theirs: FactsDigest) {
        self.theirs = Some(theirs);
    }

    /// What to do next with these facts of ours; what is returned counts as done.
    pub fn step(&mut self, ours: FactsDigest, now: Duration) -> FactStep {
        let send_at = match self.sent {
            Some((sent, at)) if sent == ours => at + SEND_AGAIN,
            _ => now,
        };
        if now >= send_at {
            self.sent = Some((ours, now));
            return FactStep::Tell;
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

    /// Whether the peer knows these facts of ours: it has told the same digest, or was handed all
    /// of them some time ago and may know more, or refuse some.
    pub fn is_given(&self, ours: FactsDigest, now: Duration) -> bool {
        let handed = self.handed.is_some_and(|last| last.ours == ours && now >= last.first + TAKEN);
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

    /// Gives all facts of one node to another.
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
        assert_eq!(sync.step(digest(1), seconds(0)), FactStep::Tell);
        assert_eq!(sync.step(digest(1), seconds(1)), FactStep::Wait(seconds(60)));
        assert_eq!(sync.step(digest(2), seconds(5)), FactStep::Tell);
        assert_eq!(sync.step(digest(2), seconds(65)), FactStep::Tell);
    }

    #[test]
    fn facts_are_handed_over_while_digests_differ_and_ever_more_seldom_if_that_changes_nothing() {
        let mut sync = FactSync::default();
        assert!(!sync.is_given(digest(1), seconds(0)));
        sync.step(digest(1), seconds(0));
        sync.hear(digest(2));
        assert_eq!(sync.step(digest(1), seconds(1)), FactStep::Wait(seconds(3)), "gossip may bring them");
        assert_eq!(sync.step(digest(1), seconds(3)), FactStep::HandOver);
        assert!(!sync.is_given(digest(1), seconds(12)) && sync.is_given(digest(1), seconds(13)));
        let mut handed = 0;
        for at in 4..3600 {
            handed += u32::from(sync.step(digest(1), seconds(at)) == FactStep::HandOver);
        }
        assert!((10..20).contains(&handed), "{handed}");
        // The peer has learnt something, but not all.
        sync.hear(digest(3));
        assert_eq!(sync.step(digest(1), seconds(3600)), FactStep::Tell);
        assert_eq!(sync.step(digest(1), seconds(3601)), FactStep::HandOver);
        sync.hear(digest(1));
        assert!(sync.is_given(digest(1), seconds(3602)), "it knows the same");
        assert!(matches!(sync.step(digest(1), seconds(3700)), FactStep::Tell));
        assert!(matches!(sync.step(digest(1), seconds(3701)), FactStep::Wait(_)));
    }
}
