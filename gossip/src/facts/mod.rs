//! The facts of the authority that a node knows. It merges all statements about one subject into
//! one fact. The number of facts is bounded; they are re-announced in the node's own gossip,
//! compared with neighbours, and stored.
//!
//! Publishers that are cut off from each other may sign different statements about one subject.
//! Merging forms a semilattice (any order and any repetition give one result), so replayed
//! statements are harmless.

use std::collections::BTreeMap;

use crate::record::{AnyFact, Fact, OutOfBounds, RecordKind, Role};
use crate::record_kinds;
use crate::signed::Verified;
pub use sync::{CarriedFact, FactStep, FactSync, FactsDigest, SharedFacts};
pub use unknown::UnknownFacts;

mod sync;
mod unknown;

/// Reason why a fact was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactError {
    /// A field is out of its bounds, which no signature permits.
    #[error(transparent)]
    Bounds(#[from] OutOfBounds),
    /// The container is full, and every fact in it must be kept. Holds the plural name of the kind.
    #[error("too many {0}")]
    Full(&'static str),
}

/// All that is known about one subject.
#[derive(Debug, Clone)]
struct KnownFact<T> {
    merged: T,
    /// The signed statement that equals the merger; `None` if there is none.
    whole: Option<Verified<T>>,
}

/// All facts of one kind that a node knows.
#[derive(Debug, Clone)]
pub struct Facts<T: Fact> {
    known: BTreeMap<T::Id, KnownFact<T>>,
}

impl<T: Fact> Default for Facts<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new() }
    }
}

impl<T: Fact> Facts<T> {
    /// Merges a statement whose signature has been checked. Returns true if it adds anything, or is
    /// the first signed statement that equals the merged fact.
    pub(crate) fn fold(&mut self, statement: Verified<T>, unix: u64) -> Result<bool, FactError> {
        statement.check_bounds()?;
        let id = statement.id();
        let Some(known) = self.known.get_mut(&id) else {
            self.make_room(unix)?;
            self.known.insert(id, KnownFact { merged: (*statement).clone(), whole: Some(statement) });
            return Ok(true);
        };
        let before = known.merged.clone();
        known.merged.merge(&statement);
        let says_more = known.merged != before;
        if *statement == known.merged {
            // Two statements can be equal to this version and differ in fields that only a later
            // version reads. The longer one is kept, so that those fields are not lost.
            let is_better = known.whole.as_ref().is_none_or(|whole| rank(&statement) > rank(whole));
            if says_more || is_better {
                known.whole = Some(statement);
            }
            return Ok(says_more || is_better);
        }
        if says_more {
            known.whole = None;
        }
        Ok(says_more)
    }

    fn make_room(&mut self, unix: u64) -> Result<(), FactError> {
        if self.known.len() < T::MAX_KEPT {
            return Ok(());
        }
        let oldest = self.known.iter().min_by_key(|(_, known)| known.merged.kept_until());
        match oldest.map(|(id, known)| (*id, known.merged.kept_until())) {
            Some((id, until)) if until < unix => {
                self.known.remove(&id);
                Ok(())
            }
            _ => Err(FactError::Full(T::PLURAL)),
        }
    }

    /// Number of facts.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Each fact, merged from all its statements, by id.
    pub fn iter(&self) -> impl Iterator<Item = &T> + '_ {
        self.known.values().map(|known| &known.merged)
    }

    /// The fact with this id, merged from all its statements; `None` if it is unknown.
    pub fn get(&self, id: &T::Id) -> Option<&T> {
        self.known.get(id).map(|known| &known.merged)
    }

    /// The merged facts that no signed statement equals yet: a holder of the authority key should
    /// sign them.
    pub fn unsigned(&self) -> impl Iterator<Item = &T> + '_ {
        self.known.values().filter(|known| known.whole.is_none()).map(|known| &known.merged)
    }

    /// The signed statement that equals one merged fact; `None` if there is none.
    pub fn whole(&self, id: &T::Id) -> Option<&Verified<T>> {
        self.known.get(id).and_then(|known| known.whole.as_ref())
    }

    /// The signed statements that equal their merged facts, by id.
    pub fn complete_statements(&self) -> impl Iterator<Item = &Verified<T>> + '_ {
        self.known.values().filter_map(|known| known.whole.as_ref())
    }

    fn entries(&self, kind: impl Fn(T::Id) -> RecordKind) -> impl Iterator<Item = FactEntry<'_>> {
        self.known.iter().map(move |(id, known)| FactEntry {
            kind: kind(*id),
            kept_until: known.merged.kept_until(),
            by_workers: T::BY_WORKERS,
            whole: known.whole.as_ref().map(|whole| whole as &dyn CompleteStatement),
        })
    }
}

/// Orders equal signed statements, so that all nodes keep the same one.
fn rank<T: Fact>(statement: &Verified<T>) -> (usize, &[u8]) {
    (statement.encoded().len(), statement.encoded())
}

/// A signed fact of any kind.
pub(crate) trait CompleteStatement {
    /// The signature, which distinguishes two statements.
    fn signature(&self) -> [u8; 64];
    /// The bytes for the wire; `None` if encoding fails, which does not happen in practice.
    fn record(&self) -> Option<Vec<u8>>;
    /// The part of the statement that enters the digest: see [`Fact::content`].
    fn content(&self) -> &[u8];
}

impl<T: Fact> CompleteStatement for Verified<T> {
    fn signature(&self) -> [u8; 64] {
        *Verified::signature(self)
    }

    fn record(&self) -> Option<Vec<u8>> {
        self.to_bytes().ok()
    }

    fn content(&self) -> &[u8] {
        T::content(self.encoded())
    }
}

/// A fact of any kind, for announcing and handing over.
pub(crate) struct FactEntry<'a> {
    pub(crate) kind: RecordKind,
    kept_until: u64,
    by_workers: bool,
    /// The signed statement that equals the merger; `None` if there is none.
    pub(crate) whole: Option<&'a dyn CompleteStatement>,
}

impl FactEntry<'_> {
    /// True while it must be announced, at `unix` seconds since the epoch.
    pub(crate) fn is_kept(&self, unix: u64) -> bool {
        unix <= self.kept_until
    }

    /// True if a node with this role announces it in its gossip.
    pub(crate) fn is_announced_by(&self, role: Role) -> bool {
        self.by_workers || role == Role::Publisher
    }
}

/// Generates the container for the facts of every kind in the table.
macro_rules! all_facts {
    (
        own { $($Own:ident($own:literal): $OwnType:ty => $own_fold:ident;)* }
        keyed { $($Keyed:ident($keyed:literal, $Key:ty): $KeyedType:ty => $keyed_fold:ident;)* }
        facts { $($Fact:ident($fact:literal, $Id:ty): $FactType:ty, $facts:ident => $learn:ident;)* }
    ) => {
        /// The facts that a node knows, of every kind.
        #[derive(Debug, Clone, Default)]
        pub struct AllFacts {
            $(#[doc = concat!("The facts under `", $fact, "/`.")] pub $facts: Facts<$FactType>,)*
            /// The facts of kinds that only a later version knows.
            pub unknown: UnknownFacts,
        }

        impl AllFacts {
            /// The signed statement that equals the merger.
            fn whole(&self, kind: RecordKind) -> Option<&dyn CompleteStatement> {
                match kind {
                    $(RecordKind::$Fact(id) => self.$facts.whole(&id).map(|whole| whole as &dyn CompleteStatement),)*
                    RecordKind::Unknown(key) => self.unknown.get(&key).map(|fact| fact as &dyn CompleteStatement),
                    $(RecordKind::$Own => None,)*
                    $(RecordKind::$Keyed(_) => None,)*
                }
            }

            /// Merges a fact whose signature has been checked, at `unix` seconds since the epoch.
            /// Returns true if it adds anything, or is the first signed statement that equals the
            /// merged fact.
            ///
            /// # Errors
            /// It is out of its bounds, or there is no room for it.
            pub fn put(&mut self, fact: AnyFact, unix: u64) -> Result<bool, FactError> {
                match fact {
                    $(AnyFact::$Fact(statement) => self.$facts.fold(statement, unix),)*
                    AnyFact::Unknown(fact) => self.unknown.fold(fact, unix),
                }
            }

            /// Every signed statement that equals the merged fact about its subject.
            pub fn complete_statements(&self) -> Vec<AnyFact> {
                let unknown = self.unknown.iter().cloned().map(AnyFact::Unknown);
                std::iter::empty()$(.chain(self.$facts.complete_statements().cloned().map(AnyFact::$Fact)))*.chain(unknown).collect()
            }

            /// Every fact of every kind.
            pub(crate) fn entries(&self) -> impl Iterator<Item = FactEntry<'_>> {
                std::iter::empty()$(.chain(self.$facts.entries(RecordKind::$Fact)))*.chain(self.unknown.entries())
            }
        }
    };
}

record_kinds!(all_facts);

impl AllFacts {
    /// True if the bytes are the statement kept under the key of `kind`.
    pub(crate) fn has(&self, kind: RecordKind, bytes: &[u8]) -> bool {
        self.whole(kind).and_then(|whole| whole.record()).is_some_and(|record| record == bytes)
    }

    /// The facts to be handed to a neighbour at `unix` seconds since the epoch, and their digest.
    pub fn shared(&self, unix: u64) -> SharedFacts {
        SharedFacts::of(self.entries().filter(|entry| entry.is_kept(unix)))
    }
}
