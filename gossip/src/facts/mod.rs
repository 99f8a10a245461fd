//! The authority's facts as a node keeps them: each the merger of all statements about one thing, bounded, announced again
//! in the node's own gossip, compared with neighbours, stored.
//!
//! Publishers that are cut off from each other may sign different statements about one thing. The merger is a
//! semilattice (any order, any repetition, one result), so replayed statements are harmless.

mod sync;
mod unknown;

use std::collections::BTreeMap;

use crate::record::{AnyFact, Fact, OutOfBounds, RecordKind, Role};
use crate::record_kinds;
use crate::signed::Verified;
pub use sync::{CarriedFact, FactStep, FactSync, FactsDigest, SharedFacts};
pub use unknown::UnknownFacts;

/// Why a fact was not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactError {
    /// A field that no signature makes good.
    #[error(transparent)]
    Bounds(#[from] OutOfBounds),
    /// The container is full of facts of its kind, and needs all of them.
    #[error("too many {0}")]
    Full(&'static str),
}

/// What is known of one thing.
#[derive(Debug, Clone)]
struct Known<T> {
    merged: T,
    /// The signed statement that says all that is known, if one does.
    whole: Option<Verified<T>>,
}

/// All facts of one kind.
#[derive(Debug, Clone)]
pub struct Facts<T: Fact> {
    known: BTreeMap<T::Id, Known<T>>,
}

impl<T: Fact> Default for Facts<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new() }
    }
}

impl<T: Fact> Facts<T> {
    /// Merges a statement whose signature has been checked. True if it says anything new, or is the first to say all.
    pub(crate) fn fold(&mut self, statement: Verified<T>, unix: u64) -> Result<bool, FactError> {
        statement.check_bounds()?;
        let id = statement.id();
        let Some(known) = self.known.get_mut(&id) else {
            self.make_room(unix)?;
            self.known.insert(id, Known { merged: (*statement).clone(), whole: Some(statement) });
            return Ok(true);
        };
        let before = known.merged.clone();
        known.merged.merge(&statement);
        let says_more = known.merged != before;
        if *statement == known.merged {
            // Of two that say the same the longer one has fields of a later version, which its readers must not lack.
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
        if self.known.len() < T::MOST {
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

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Each one, merged from all its statements, by id.
    pub fn iter(&self) -> impl Iterator<Item = &T> + '_ {
        self.known.values().map(|known| &known.merged)
    }

    /// One, merged from all its statements.
    pub fn get(&self, id: &T::Id) -> Option<&T> {
        self.known.get(id).map(|known| &known.merged)
    }

    /// The mergers that no known statement says as a whole: a holder of the authority key should sign them.
    pub fn unsigned(&self) -> impl Iterator<Item = &T> + '_ {
        self.known.values().filter(|known| known.whole.is_none()).map(|known| &known.merged)
    }

    /// The signed statement that says all that is known of one.
    pub fn whole(&self, id: &T::Id) -> Option<&Verified<T>> {
        self.known.get(id).and_then(|known| known.whole.as_ref())
    }

    /// The same of all that have one, by id.
    pub fn wholes(&self) -> impl Iterator<Item = &Verified<T>> + '_ {
        self.known.values().filter_map(|known| known.whole.as_ref())
    }

    fn entries(&self, kind: impl Fn(T::Id) -> RecordKind) -> impl Iterator<Item = FactEntry<'_>> {
        self.known.iter().map(move |(id, known)| FactEntry {
            kind: kind(*id),
            kept_until: known.merged.kept_until(),
            by_workers: T::BY_WORKERS,
            whole: known.whole.as_ref().map(|whole| whole as &dyn Whole),
        })
    }
}

/// Orders signed statements that say the same: all nodes keep the same one.
fn rank<T: Fact>(statement: &Verified<T>) -> (usize, &[u8]) {
    (statement.encoded().len(), statement.encoded())
}

/// A signed fact of any kind.
pub(crate) trait Whole {
    /// The signature, which tells two statements apart.
    fn signature(&self) -> [u8; 64];
    /// The bytes for the wire.
    fn record(&self) -> Option<Vec<u8>>;
    /// What two nodes agree in that know the same.
    fn content(&self) -> &[u8];
}

impl<T: Fact> Whole for Verified<T> {
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

/// One fact of any kind, on its way out.
pub(crate) struct FactEntry<'a> {
    pub(crate) kind: RecordKind,
    kept_until: u64,
    by_workers: bool,
    /// The signed statement that says all that is known, if one does.
    pub(crate) whole: Option<&'a dyn Whole>,
}

impl FactEntry<'_> {
    /// True while it is worth sending, at `unix` seconds since the epoch.
    pub(crate) fn is_kept(&self, unix: u64) -> bool {
        unix <= self.kept_until
    }

    /// Whether a node with this role announces it in its gossip.
    pub(crate) fn is_announced_by(&self, role: Role) -> bool {
        self.by_workers || role == Role::Publisher
    }
}

/// Generates what holds the facts of every kind in the table.
macro_rules! all_facts {
    (
        own { $($Own:ident($own:literal): $OwnType:ty => $own_fold:ident;)* }
        keyed { $($Keyed:ident($keyed:literal, $Key:ty): $KeyedType:ty => $keyed_fold:ident;)* }
        facts { $($Fact:ident($fact:literal, $Id:ty): $FactType:ty, $facts:ident => $learn:ident;)* }
    ) => {
        /// The facts that a node knows, of every kind.
        #[derive(Debug, Clone, Default)]
        pub struct AllFacts {
            $(#[doc = concat!("Those under `", $fact, "/`.")] pub $facts: Facts<$FactType>,)*
            /// Those of kinds that a later version has.
            pub unknown: UnknownFacts,
        }

        impl AllFacts {
            /// The statement that is known as a whole.
            fn whole(&self, kind: RecordKind) -> Option<&dyn Whole> {
                match kind {
                    $(RecordKind::$Fact(id) => self.$facts.whole(&id).map(|whole| whole as &dyn Whole),)*
                    RecordKind::Unknown(key) => self.unknown.get(&key).map(|fact| fact as &dyn Whole),
                    $(RecordKind::$Own => None,)*
                    $(RecordKind::$Keyed(_) => None,)*
                }
            }

            /// Merges a fact whose signature has been checked, at `unix` seconds since the epoch. True if it says
            /// anything new, or is the first to say all.
            ///
            /// # Errors
            /// If it is out of its bounds, or there is no room for it.
            pub fn put(&mut self, fact: AnyFact, unix: u64) -> Result<bool, FactError> {
                match fact {
                    $(AnyFact::$Fact(statement) => self.$facts.fold(statement, unix),)*
                    AnyFact::Unknown(fact) => self.unknown.fold(fact, unix),
                }
            }

            /// Every signed statement that says all that is known of one thing.
            pub fn wholes(&self) -> Vec<AnyFact> {
                let unknown = self.unknown.iter().cloned().map(AnyFact::Unknown);
                std::iter::empty()$(.chain(self.$facts.wholes().cloned().map(AnyFact::$Fact)))*.chain(unknown).collect()
            }

            /// Every one of every kind.
            pub(crate) fn entries(&self) -> impl Iterator<Item = FactEntry<'_>> {
                std::iter::empty()$(.chain(self.$facts.entries(RecordKind::$Fact)))*.chain(self.unknown.entries())
            }
        }
    };
}

record_kinds!(all_facts);

impl AllFacts {
    /// True if the bytes are what is known under the key of `kind`.
    pub(crate) fn has(&self, kind: RecordKind, bytes: &[u8]) -> bool {
        self.whole(kind).and_then(|whole| whole.record()).is_some_and(|record| record == bytes)
    }

    /// Those that are worth sending to a neighbour at `unix` seconds since the epoch, and their digest.
    pub fn shared(&self, unix: u64) -> SharedFacts {
        SharedFacts::of(self.entries().filter(|entry| entry.is_kept(unix)))
    }
}
