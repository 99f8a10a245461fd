//! Gossip as anti-entropy: each node keeps the latest of everything it has heard and compares with a few others at a
//! time. The same contract as chitchat's: only the newest value of a key is ever passed on, by anybody, unchecked.
//!
//! Nodes are numbers here (machines of the run) and values are shared, so that hundreds of nodes can hold what hundreds
//! of others said.

use std::rc::Rc;

use crate::lease::Claim;
use crate::record::RecordKind;

/// Orders the values of one origin: the start at which it was said (upper half), then a counter.
pub(super) type Stamp = u64;

/// How far a node is with each machine.
pub(super) type Digest = Rc<[Stamp]>;

/// What an origin said, word for word, and what the harness knows of it without asking the code it checks.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) kind: RecordKind,
    /// `None` once it was retracted.
    pub(super) bytes: Option<Vec<u8>>,
    /// What a lease claims; `None` if it gives up, and for all else.
    pub(super) claim: Option<Claim>,
}

/// One value of one origin.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) origin: usize,
    pub(super) stamp: Stamp,
    pub(super) said: Rc<Said>,
}

/// What is said between two nodes. `from`: a machine and its life; an answer to what an earlier process there asked
/// would leave gaps in what the present one has.
#[derive(Debug, Clone)]
pub(super) enum Message {
    /// "This is how far I am with everybody, and this is what I say myself."
    Syn { from: (usize, u64), digest: Digest, own: Vec<Value> },
    /// "This is what you lack, and how far I am."
    Ack { from: (usize, u64), digest: Digest, values: Vec<Value> },
    /// "And this is what you lack."
    Delta { values: Vec<Value> },
}

/// All that a node has heard, by machine.
#[derive(Debug, Default)]
pub(super) struct Store {
    values: Vec<Vec<Value>>,
    reached: Vec<Stamp>,
}

impl Store {
    /// Says something of its own.
    pub(super) fn say(&mut self, origin: usize, boot: u64, said: Said) {
        let last = self.reached.get(origin).copied().unwrap_or_default();
        let stamp = last.max(boot << 32) + 1;
        self.put(Value { origin, stamp, said: Rc::new(said) });
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
        match kinds.iter_mut().find(|known| known.said.kind == value.said.kind) {
            Some(known) => *known = value,
            None => kinds.push(value),
        }
    }

    /// Takes in what others say; returns what was news. A delta is taken whole or not at all, per origin.
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

    /// What somebody with this digest lacks.
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

    /// All that one origin says.
    pub(super) fn of(&self, origin: usize) -> Vec<Value> {
        self.values.get(origin).cloned().unwrap_or_default()
    }
}
