//! Gossip as anti-entropy: each node keeps the latest of everything it has heard and compares with a few others at a
//! time. The same contract as chitchat's: only the newest value of a key is ever passed on, by anybody, unchecked.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::id::NodeId;
use crate::record::RecordKind;

/// Orders the values of one origin: the start at which it was said, then a counter.
pub(super) type Stamp = (u64, u64);

/// One value of one origin; `None` once it was retracted.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) origin: NodeId,
    pub(super) kind: RecordKind,
    pub(super) stamp: Stamp,
    pub(super) bytes: Option<Rc<[u8]>>,
}

/// What is said between two nodes. `from`: a machine and its life; an answer to what an earlier process there asked
/// would leave gaps in what the present one has.
#[derive(Debug, Clone)]
pub(super) enum Message {
    /// "This is how far I am with everybody, and this is what I say myself."
    Syn { from: (usize, u64), digest: BTreeMap<NodeId, Stamp>, own: Vec<Value> },
    /// "This is what you lack, and how far I am."
    Ack { from: (usize, u64), digest: BTreeMap<NodeId, Stamp>, values: Vec<Value> },
    /// "And this is what you lack."
    Delta { values: Vec<Value> },
}

/// All that a node has heard.
#[derive(Debug, Default)]
pub(super) struct Store {
    values: BTreeMap<NodeId, BTreeMap<RecordKind, Value>>,
    reached: BTreeMap<NodeId, Stamp>,
}

impl Store {
    /// Says something of its own.
    pub(super) fn say(&mut self, origin: NodeId, boot: u64, kind: RecordKind, bytes: Option<Vec<u8>>) {
        let (last_boot, count) = self.reached.get(&origin).copied().unwrap_or_default();
        let stamp = if last_boot == boot { (boot, count + 1) } else { (boot, 1) };
        self.put(Value { origin, kind, stamp, bytes: bytes.map(Rc::from) });
    }

    fn put(&mut self, value: Value) {
        let reached = self.reached.entry(value.origin).or_default();
        let kinds = self.values.entry(value.origin).or_default();
        if value.stamp.0 > reached.0 {
            kinds.clear();
        }
        *reached = (*reached).max(value.stamp);
        kinds.insert(value.kind, value);
    }

    /// Takes in what others say; returns what was news. A delta is taken whole or not at all, per origin.
    pub(super) fn merge(&mut self, values: Vec<Value>) -> Vec<Value> {
        let mut news: Vec<Value> = values
            .into_iter()
            .filter(|value| self.reached.get(&value.origin).is_none_or(|reached| value.stamp > *reached))
            .collect();
        news.sort_by_key(|value| value.stamp);
        for value in &news {
            self.put(value.clone());
        }
        news
    }

    pub(super) fn digest(&self) -> BTreeMap<NodeId, Stamp> {
        self.reached.clone()
    }

    /// What somebody with this digest lacks.
    pub(super) fn lacking(&self, digest: &BTreeMap<NodeId, Stamp>) -> Vec<Value> {
        let mut lacking = Vec::new();
        for (origin, reached) in &self.reached {
            let theirs = digest.get(origin).copied().unwrap_or_default();
            if theirs < *reached {
                let kinds = self.values.get(origin).into_iter().flat_map(BTreeMap::values);
                lacking.extend(kinds.filter(|value| value.stamp > theirs).cloned());
            }
        }
        lacking
    }

    /// All that one origin says.
    pub(super) fn of(&self, origin: &NodeId) -> Vec<Value> {
        self.values.get(origin).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }
}
