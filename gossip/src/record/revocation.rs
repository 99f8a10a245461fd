//! A revocation: the end of a membership.

use serde::{Deserialize, Serialize};

use super::{Fact, OutOfBounds};
use crate::id::{ClusterId, NodeId};
use crate::signed::Statement;

/// A statement of the authority: a node is no longer a member. Final: the node comes back only
/// under a new key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The node that is no longer a member.
    pub node: NodeId,
    /// When it was revoked, in seconds since the Unix epoch.
    pub revoked: u64,
}

impl Statement for Revocation {
    const CONTEXT: &'static str = "rustbalance revocation v1";
    const MAX_SIZE: usize = 512;
}

impl Fact for Revocation {
    type Id = NodeId;
    const PLURAL: &'static str = "revocations";
    const MAX_KEPT: usize = 4096;
    /// A revocation must survive even if only a worker knows it.
    const BY_WORKERS: bool = true;

    fn cluster(&self) -> ClusterId {
        self.cluster
    }

    fn id(&self) -> NodeId {
        self.node
    }

    fn check_bounds(&self) -> Result<(), OutOfBounds> {
        Ok(())
    }

    /// Keeps the first statement: all others mean the same.
    fn merge(&mut self, _other: &Self) {}

    fn kept_until(&self) -> u64 {
        u64::MAX
    }

    /// Empty: two publishers may each have signed a revocation of this node, and both mean the
    /// same.
    fn content(_statement: &[u8]) -> &[u8] {
        &[]
    }
}
