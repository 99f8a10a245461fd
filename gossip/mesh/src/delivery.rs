//! Chooses the values in chitchat's state that are delivered next: a few of each incarnation in
//! turn, so that a node which changes its values without end does not delay those of others for
//! long.
//!
//! Values are delivered by version, and the highest delivered version of each incarnation is
//! remembered. A value that is superseded before its turn is never delivered; the latest one always
//! is.

use std::collections::BTreeMap;
use std::ops::Bound;

use chitchat::{ChitchatId, NodeState};
use data_encoding::BASE64;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::{MAX_RECORD, RecordKind, Signer};

use crate::Update;

/// Most updates taken from chitchat's state at a time, so that its lock is held briefly.
const BATCH: usize = 64;
/// Most updates of one incarnation in a batch.
const SHARE: usize = 8;

/// The versions delivered so far.
#[derive(Default)]
pub(super) struct Delivery {
    /// The highest version delivered, by incarnation.
    handed: BTreeMap<ChitchatId, u64>,
    /// The incarnation whose turn was last.
    last: Option<ChitchatId>,
}

/// One batch of values for delivery.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) updates: Vec<Update>,
    /// Values that cannot be records.
    pub(super) nonsense: usize,
    /// Whether there may be more to deliver.
    pub(super) more: bool,
}

impl Delivery {
    /// The next values that have not been delivered, of all incarnations but this node's present
    /// one. Begins after the incarnation whose turn was last.
    pub(super) fn next(&mut self, states: &BTreeMap<ChitchatId, NodeState>, own: &ChitchatId) -> Batch {
        let mut batch = Batch::default();
        let last = self.last.clone();
        let after = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let upto = last.as_ref().map_or(Bound::Unbounded, Bound::Included);
        let wrapped = states.range((Bound::Unbounded, upto)).filter(|_| last.is_some());
        for (id, state) in states.range((after, Bound::Unbounded)).chain(wrapped) {
            let handed = self.handed.get(id).copied().unwrap_or(0);
            if state.max_version() == handed || id == own {
                continue;
            }
            let Ok(origin) = id.node_id.parse::<NodeId>() else { continue };
            if batch.updates.len() == BATCH {
                batch.more = true;
                break;
            }
            // A state whose version fell was reset by chitchat: it is delivered again.
            let handed = if state.max_version() < handed { 0 } else { handed };
            let (values, upto, nonsense) = newer(state, handed, SHARE.min(BATCH - batch.updates.len()));
            batch.nonsense += nonsense;
            batch.updates.extend(values.into_iter().map(|(kind, bytes)| Update { origin, kind, bytes }));
            batch.more |= upto < state.max_version();
            self.handed.insert(id.clone(), upto);
            self.last = Some(id.clone());
        }
        batch
    }

    /// Forgets incarnations that are gone.
    pub(super) fn forget(&mut self, gone: impl Fn(&ChitchatId) -> bool) {
        self.handed.retain(|id, _| !gone(id));
    }
}

/// At most `room` values above version `handed`, in the order of their versions; the version up to
/// which this covers the state; and the number of values that cannot be records. Among those,
/// values of kinds unknown to this version are not counted.
fn newer(state: &NodeState, handed: u64, room: usize) -> (Vec<(RecordKind, Vec<u8>)>, u64, usize) {
    let mut fresh: Vec<_> = state.key_values_including_deleted().filter(|(_, value)| value.version > handed).collect();
    fresh.sort_by_key(|(_, value)| value.version);
    let last = fresh.get(room.saturating_sub(1)).filter(|_| fresh.len() > room);
    let upto = last.map_or(state.max_version(), |(_, value)| value.version);
    let (mut records, mut nonsense) = (Vec::new(), 0);
    for (key, value) in fresh.into_iter().take(room).filter(|(_, value)| !value.is_deleted()) {
        let Some(kind) = RecordKind::from_key(key) else { continue };
        match BASE64.decode(value.value.as_bytes()) {
            Ok(bytes) if bytes.len() <= MAX_RECORD => records.push((kind, bytes)),
            _ => nonsense += usize::from(kind.signer() != Signer::Unknown),
        }
    }
    (records, upto, nonsense)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustbalance_gossip::address::mesh_socket;
    use rustbalance_gossip::id::InvitationId;

    fn id(i: u8, generation: u64) -> ChitchatId {
        let node = NodeId::from_public_key([i; 32]);
        ChitchatId::new(node.to_string(), generation, mesh_socket(&node))
    }

    fn set_value(state: &mut NodeState, i: u8, value: &str) {
        let kind = RecordKind::Invitation(InvitationId::from_public_key([i; 32]));
        state.set(kind.key(), BASE64.encode(value.as_bytes()));
    }

    /// Nineteen incarnations come first, and each changes more than one batch can deliver.
    #[test]
    fn a_node_with_endless_changes_does_not_delay_the_values_of_others() {
        let mut ids: Vec<_> = (1..=20).map(|i| id(i, 1)).collect();
        ids.sort();
        let own = id(99, 1);
        let mut states: BTreeMap<_, _> = ids.iter().map(|id| (id.clone(), NodeState::for_test())).collect();
        let mut delivery = Delivery::default();
        let quiet: NodeId = ids[19].node_id.parse().unwrap();
        let mut heard = 0;
        for round in 0..40 {
            for loud in &ids[..19] {
                let state = states.get_mut(loud).unwrap();
                (0..100).for_each(|i| set_value(state, i, &format!("again {round}")));
            }
            set_value(states.get_mut(&ids[19]).unwrap(), 1, &format!("value {round}"));
            let batch = delivery.next(&states, &own);
            assert!(batch.more && batch.updates.len() == BATCH);
            heard += batch.updates.iter().filter(|update| update.origin == quiet).count();
        }
        // Twenty incarnations, of which a batch serves eight.
        assert!(heard >= 40 / 3 - 1, "{heard}");
    }

    #[test]
    fn every_value_is_delivered_once_except_those_of_the_own_incarnation() {
        let own = id(1, 2);
        let mut states = BTreeMap::new();
        for id in [id(1, 1), own.clone(), id(2, 1)] {
            let mut state = NodeState::for_test();
            (0..20).for_each(|i| set_value(&mut state, i, "value"));
            states.insert(id, state);
        }
        let mut delivery = Delivery::default();
        let mut updates = Vec::new();
        loop {
            let batch = delivery.next(&states, &own);
            updates.extend(batch.updates);
            if !batch.more {
                break;
            }
        }
        assert_eq!(updates.len(), 40, "of an earlier incarnation of this node and of another node");
        assert!(delivery.next(&states, &own).updates.is_empty());
        set_value(states.get_mut(&id(2, 1)).unwrap(), 3, "another");
        assert_eq!(delivery.next(&states, &own).updates.len(), 1);
    }
}
