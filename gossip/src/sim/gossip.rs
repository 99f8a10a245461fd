//! Anti-entropy gossip. Each node keeps the newest values that it has received and compares them
//! with a few other nodes at a time. The contract is that of chitchat: any node forwards the newest
//! value of a key, unchecked, and never an older one.
//!
//! Nodes are numbers here (machines of the run) and values are shared, so that hundreds of nodes
//! can hold the values of hundreds of others.

use std::rc::Rc;

use crate::lease::Claim;
use crate::record::RecordKind;

/// Orders the values of one origin. Upper 32 bits: the start of the origin that announced it. Lower
/// 32 bits: a counter.
pub(super) type Stamp = u64;

/// The newest stamp that a node has of each machine.
pub(super) type Digest = Rc<[Stamp]>;

/// A value as its origin announced it, and what the harness knows of it independently of the code
/// that it checks.
#[derive(Debug)]
pub(super) struct AnnouncedValue {
    pub(super) kind: RecordKind,
    /// `None` once it was retracted.
    pub(super) bytes: Option<Vec<u8>>,
    /// The claim of a lease; `None` for a lease given up and for other kinds.
    pub(super) claim: Option<Claim>,
}

/// One value of one origin.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) origin: usize,
    pub(super) stamp: Stamp,
    pub(super) announced: Rc<AnnouncedValue>,
}

/// A gossip message. `from` is the sending machine and its `Host::process_number`. A reply to an
/// earlier process on that machine is dropped: it would leave gaps in the state of the present one.
#[derive(Debug, Clone)]
pub(super) enum Message {
    /// The digest of the sender. Sometimes also its own values, which the receiver has not asked
    /// for.
    Syn { from: (usize, u64), digest: Digest, own: Vec<Value> },
    /// The answer to `Syn`: the values that the other lacks, and the digest of the sender.
    Ack { from: (usize, u64), digest: Digest, values: Vec<Value> },
    /// The answer to `Ack`: the values that the other lacks.
    Delta { values: Vec<Value> },
}

/// The newest values that a node has, by machine of origin.
#[derive(Debug, Default)]
pub(super) struct Store {
    values: Vec<Vec<Value>>,
    reached: Vec<Stamp>,
}

impl Store {
    /// Announces a value of the node itself.
    pub(super) fn announce(&mut self, origin: usize, boot: u64, announced: AnnouncedValue) {
        let last = self.reached.get(origin).copied().unwrap_or_default();
        let stamp = last.max(boot << 32) + 1;
        self.put(Value { origin, stamp, announced: Rc::new(announced) });
    }

    fn put(&mut self, value: Value) {
        if self.reached.len() <= value.origin {
            self.reached.resize(value.origin + 1, 0);
            self.values.resize(value.origin + 1, Vec::new());
        }
        let reached = &mut self.reached[value.origin];
        let kinds = &mut self.values[value.origin];
        if value.stamp >> 32 > *reached >> 32 {
            kinds.clear();
        }
        *reached = (*reached).max(value.stamp);
        match kinds.iter_mut().find(|known| known.announced.kind == value.announced.kind) {
            Some(known) => *known = value,
            None => kinds.push(value),
        }
    }

    /// Takes in the values that are newer than all known of their origin, and returns them.
    pub(super) fn merge(&mut self, mut values: Vec<Value>) -> Vec<Value> {
        values.retain(|value| self.reached.get(value.origin).is_none_or(|reached| value.stamp > *reached));
        values.sort_by_key(|value| (value.stamp, value.origin));
        for value in &values {
            self.put(value.clone());
        }
        values
    }

    pub(super) fn digest(&self) -> Digest {
        Rc::from(self.reached.as_slice())
    }

    /// The values that a node with this digest lacks.
    pub(super) fn lacking(&self, digest: &[Stamp]) -> Vec<Value> {
        let mut lacking = Vec::new();
        for (origin, reached) in self.reached.iter().enumerate() {
            let theirs = digest.get(origin).copied().unwrap_or_default();
            if theirs < *reached {
                lacking.extend(self.values[origin].iter().filter(|value| value.stamp > theirs).cloned());
            }
        }
        lacking
    }

    /// All values of one origin.
    pub(super) fn of(&self, origin: usize) -> Vec<Value> {
        self.values.get(origin).cloned().unwrap_or_default()
    }
}
