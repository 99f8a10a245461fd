//! Which of several nodes keeps a relay at which all of them have an introduction point: clients can use only one.

use sha3::{Digest, Sha3_256};

use crate::id::NodeId;
use crate::record::RelayId;

/// The lot of a node at a relay; the lowest keeps the relay.
///
/// Each relay has lots of its own, so a node that chooses its id wins some relays and not all. Both identities of the
/// relay are drawn for and the higher lot counts, so adding another relay's identity to the true one wins nothing.
pub(crate) fn relay_lot(relay: &RelayId, node: NodeId) -> [u8; 32] {
    let lot = |identity: &[u8]| -> [u8; 32] {
        let label = b"rustbalance relay v1\0";
        let hash = Sha3_256::new().chain_update(label).chain_update(identity).chain_update(node.public_key());
        hash.finalize().into()
    };
    relay.identities().map(lot).into_iter().max().unwrap_or_default()
}
