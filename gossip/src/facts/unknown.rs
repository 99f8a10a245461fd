//! Facts of kinds that only a later version knows. This version cannot read them, but keeps,
//! announces and hands them over, so that they reach nodes that can: a cluster is upgraded node by
//! node.
//!
//! Of two statements under one key, the one with the higher sequence number stays.

use std::collections::BTreeMap;

use super::{CompleteStatement, FactEntry, FactError};
use crate::record::{RecordKind, UnknownFact, UnknownKey};

/// Maximum number of facts of unknown kinds.
const MAX_KEPT: usize = 512;
/// Maximum total size of these facts in bytes: together with the records of known kinds they fit
/// into the quota that a peer grants to one node.
const MOST_BYTES: usize = 256 * 1024;

impl CompleteStatement for UnknownFact {
    fn signature(&self) -> [u8; 64] {
        *UnknownFact::signature(self)
    }

    fn record(&self) -> Option<Vec<u8>> {
        self.to_bytes().ok()
    }

    fn content(&self) -> &[u8] {
        self.encoded()
    }
}

/// The facts of unknown kinds. A full container refuses new ones.
#[derive(Debug, Clone, Default)]
pub struct UnknownFacts {
    known: BTreeMap<UnknownKey, UnknownFact>,
    bytes: usize,
}

impl UnknownFacts {
    /// Keeps a fact. Returns true if it is newer than the one known under its key. If there is no
    /// room, facts that need not be kept any longer are dropped; if that is not enough, the new
    /// fact is refused.
    pub(crate) fn fold(&mut self, fact: UnknownFact, unix: u64) -> Result<bool, FactError> {
        let (key, known) = (fact.key(), self.known.get(&fact.key()));
        if known.is_some_and(|known| known.rank() >= fact.rank()) {
            return Ok(false);
        }
        let replaced = known.map_or(0, size);
        let fits =
            |it: &Self| it.bytes - replaced + size(&fact) <= MOST_BYTES && (replaced > 0 || it.known.len() < MAX_KEPT);
        if !fits(self) {
            self.known.retain(|kept, fact| *kept == key || unix <= fact.kept_until());
            self.bytes = self.known.values().map(size).sum();
        }
        if !fits(self) {
            return Err(FactError::Full("facts of kinds that this version does not know"));
        }
        self.bytes = self.bytes - replaced + size(&fact);
        self.known.insert(key, fact);
        Ok(true)
    }

    /// Number of facts.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The fact under this key; `None` if it is unknown.
    pub fn get(&self, key: &UnknownKey) -> Option<&UnknownFact> {
        self.known.get(key)
    }

    /// Each fact, by key.
    pub fn iter(&self) -> impl Iterator<Item = &UnknownFact> + '_ {
        self.known.values()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = FactEntry<'_>> {
        self.known.iter().map(|(key, fact)| FactEntry {
            kind: RecordKind::Unknown(*key),
            kept_until: fact.kept_until(),
            by_workers: true,
            whole: Some(fact),
        })
    }
}

fn size(fact: &UnknownFact) -> usize {
    fact.encoded().len()
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;
    use crate::codec;
    use crate::id::ClusterId;
    use crate::record::{Invitation, OpenError, Role};
    use crate::signed::{Strict, VerifyError};
    use crate::sim::{FOUNDED, Founder};

    #[derive(Serialize)]
    struct Later {
        cluster: ClusterId,
        seq: u64,
        expires: Option<u64>,
        what: String,
    }

    struct Scene {
        founder: Founder,
        facts: UnknownFacts,
    }

    impl Scene {
        fn new() -> Self {
            Self { founder: Founder::new(1), facts: UnknownFacts::default() }
        }

        fn record(&self, name: &str, seq: u64, expires: Option<u64>, what: &str) -> Vec<u8> {
            let cluster = self.founder.node(0, Role::Publisher).cluster();
            let statement = codec::encode(&Later { cluster, seq, expires, what: what.into() }).unwrap();
            self.founder.sign_unknown_kind(&format!("rustbalance record {name}"), statement)
        }

        fn read(&self, key: UnknownKey, bytes: &[u8]) -> Result<UnknownFact, OpenError> {
            let authority = self.founder.node(0, Role::Publisher).member.authority_id();
            UnknownFact::read(key, bytes, authority.public_key(), &Strict)
        }

        fn take(&mut self, key: UnknownKey, bytes: &[u8], unix: u64) -> Result<bool, FactError> {
            let fact = self.read(key, bytes).unwrap();
            self.facts.fold(fact, unix)
        }
    }

    fn key(text: &str) -> UnknownKey {
        match RecordKind::from_key(text) {
            Some(RecordKind::Unknown(key)) => key,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_highest_version_of_an_unknown_fact_is_kept_byte_for_byte() {
        let mut scene = Scene::new();
        let key = key("later/x");
        let [old, new] = [1, 2].map(|seq| scene.record("later", seq, None, "something"));
        assert_eq!(scene.take(key, &old, FOUNDED), Ok(true));
        assert_eq!(scene.take(key, &old, FOUNDED), Ok(false));
        assert_eq!(scene.take(key, &new, FOUNDED), Ok(true));
        assert_eq!(scene.take(key, &old, FOUNDED), Ok(false));
        assert_eq!(scene.facts.get(&key).map(|fact| fact.to_bytes().unwrap()), Some(new));
    }

    #[test]
    fn only_what_the_authority_has_signed_for_this_kind_is_a_fact() {
        let scene = Scene::new();
        let of_another_kind = scene.record("other", 1, None, "something");
        let refused = scene.read(key("later/x"), &of_another_kind).err();
        assert_eq!(refused, Some(OpenError::Verify(VerifyError::Signature)));
        let node = scene.founder.node(1, Role::Publisher);
        let of_a_node = crate::sim::sign(node.card(1, 1), &node.key).to_bytes().unwrap();
        let refused = scene.read(key("later/x"), &of_a_node).err();
        assert_eq!(refused, Some(OpenError::Verify(VerifyError::Signer)));
    }

    #[test]
    fn unknown_facts_are_bounded_and_expired_ones_make_room() {
        let mut scene = Scene::new();
        let large = "x".repeat(15_000);
        let mut take = |number: usize, expires, unix| {
            let record = scene.record("later", 1, expires, &large);
            scene.take(key(&format!("later/{number}")), &record, unix).is_ok()
        };
        let kept = (0..30).take_while(|number| take(*number, (*number == 3).then_some(FOUNDED), FOUNDED)).count();
        assert_eq!(kept, 17);
        assert!(!take(30, None, FOUNDED + Invitation::KEPT_SECONDS));
        assert!(take(30, None, FOUNDED + Invitation::KEPT_SECONDS + 1));
        assert!(!take(31, None, FOUNDED + Invitation::KEPT_SECONDS + 1));
        let mut scene = Scene::new();
        for number in 0..MAX_KEPT + 10 {
            let record = scene.record("later", 1, None, "");
            assert_eq!(scene.take(key(&format!("later/{number}")), &record, FOUNDED).is_ok(), number < MAX_KEPT);
        }
    }
}
