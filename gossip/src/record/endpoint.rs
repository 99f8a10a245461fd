//! Where and with which keys a node takes WireGuard packets, sealed so that only members read it.

use serde::{Deserialize, Serialize};

use crate::bytes::VarBytes;
use crate::id::{ClusterId, NodeId};
use crate::signed::Statement;

/// A node's WireGuard keys and addresses. This crate has no key to open it: the daemon seals and
/// opens the content (docs/PROTOCOL.md, section 15).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The cluster it is in.
    pub cluster: ClusterId,
    /// The node that signs.
    pub node: NodeId,
    /// Sequence number: rises with every change, also over restarts.
    pub seq: u64,
    /// The sealed content, at most [`Endpoint::MAX_SEALED`] bytes. Empty: the node takes no
    /// WireGuard packets any more.
    pub sealed: VarBytes,
}

impl Endpoint {
    /// Maximum size of the sealed content, in bytes: two keys and eight addresses need 400.
    pub const MAX_SEALED: usize = 512;
}

impl Statement for Endpoint {
    const CONTEXT: &'static str = "rustbalance record endpoint";
    const MAX_SIZE: usize = 1024;
}
