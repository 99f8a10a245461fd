//! Records that arrived before their signer's card. Gossip delivers a value once, so they are kept
//! until the card arrives.

use std::collections::{BTreeMap, VecDeque};

use crate::id::NodeId;
use crate::record::RecordKind;

/// Default limit on the records that wait for a card (see [`super::View::with_waiting`]).
pub const DEFAULT_WAITING: usize = 2048;
/// Limit on the bytes of all records that wait: 4 MiB.
const MAX_BYTES: usize = 4 << 20;

/// Records that wait, none of them verified. Bounded: the oldest are dropped first.
#[derive(Debug)]
pub(super) struct Pending {
    /// Most records that wait.
    pub(super) most: usize,
    records: BTreeMap<(NodeId, RecordKind), Vec<u8>>,
    order: VecDeque<(NodeId, RecordKind)>,
    bytes: usize,
}

impl Default for Pending {
    fn default() -> Self {
        Self { most: DEFAULT_WAITING, records: BTreeMap::new(), order: VecDeque::new(), bytes: 0 }
    }
}

impl Pending {
    /// Keeps a record until its origin's card arrives, in place of an earlier one of the same kind
    /// and origin. Returns how many records were dropped to make room.
    pub(super) fn keep(&mut self, origin: NodeId, kind: RecordKind, bytes: &[u8]) -> usize {
        let mut dropped = 0;
        match self.records.insert((origin, kind), bytes.to_vec()) {
            Some(old) => self.bytes -= old.len(),
            None => self.order.push_back((origin, kind)),
        }
        self.bytes += bytes.len();
        while self.records.len() > self.most || self.bytes > MAX_BYTES {
            let Some(oldest) = self.order.pop_front() else { break };
            self.drop_record(&oldest);
            dropped += 1;
        }
        dropped
    }

    /// Removes and returns the records that wait for this node's card, in order of arrival.
    pub(super) fn take(&mut self, origin: NodeId) -> Vec<(RecordKind, Vec<u8>)> {
        let kinds: Vec<RecordKind> = self.order.iter().filter(|key| key.0 == origin).map(|key| key.1).collect();
        self.order.retain(|key| key.0 != origin);
        kinds.into_iter().filter_map(|kind| self.drop_record(&(origin, kind)).map(|bytes| (kind, bytes))).collect()
    }

    fn drop_record(&mut self, key: &(NodeId, RecordKind)) -> Option<Vec<u8>> {
        let record = self.records.remove(key)?;
        self.bytes -= record.len();
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u32) -> NodeId {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        NodeId::from_public_key(key)
    }

    #[test]
    fn the_last_record_of_each_kind_waits_for_its_origin() {
        let mut pending = Pending::default();
        pending.keep(node(1), RecordKind::Lease, b"old");
        pending.keep(node(1), RecordKind::Lease, b"new");
        pending.keep(node(2), RecordKind::Lease, b"other");
        assert_eq!(pending.take(node(1)), vec![(RecordKind::Lease, b"new".to_vec())]);
        assert_eq!(pending.take(node(1)), vec![]);
        assert_eq!(pending.bytes, 5);
    }

    #[test]
    fn waiting_records_are_bounded_and_the_oldest_are_dropped() {
        let mut pending = Pending::default();
        let dropped: usize = (0..3000).map(|n| pending.keep(node(n), RecordKind::Heartbeat, &[0; 4000])).sum();
        assert!(pending.records.len() <= DEFAULT_WAITING && pending.bytes <= MAX_BYTES);
        assert_eq!(pending.records.len() + dropped, 3000);
        assert_eq!(pending.records.len(), pending.order.len());
        assert!(pending.take(node(0)).is_empty());
        assert_eq!(pending.take(node(2999)).len(), 1);
    }
}
