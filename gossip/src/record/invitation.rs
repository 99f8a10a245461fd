//! An invitation: the public half of a token, and the nodes that have used it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::own::within;
use super::{Fact, OutOfBounds, Role};
use crate::id::{ClusterId, InvitationId, NodeId};
use crate::signed::Statement;

/// A statement of the authority: a node with the secret half of `token` may join.
///
/// Every publisher keeps and announces the invitations it knows. Several versions of one are
/// merged: the redeeming nodes are united, and it is revoked if any version is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The public half of the token.
    pub token: InvitationId,
    /// The role of a node that joins with it.
    pub role: Role,
    /// Number of nodes that may join with it, 1 to [`Invitation::MAX_USES`].
    pub uses: u16,
    /// When it was made, in seconds since the Unix epoch.
    pub issued: u64,
    /// When it expires, in seconds since the Unix epoch.
    pub expires: u64,
    /// The nodes that have joined with it so far.
    pub redeemed: BTreeSet<NodeId>,
    /// True if it was revoked before it was used up.
    pub revoked: bool,
}

impl Statement for Invitation {
    const CONTEXT: &'static str = "rustbalance invitation v1";
    const MAX_SIZE: usize = 16_384;
}

impl Invitation {
    /// Maximum number of uses of one invitation: its record must stay small enough for gossip.
    pub const MAX_USES: u16 = 256;
    /// Time for which it is kept after it expires, in seconds: concurrent redemptions may still
    /// arrive.
    pub(crate) const KEPT_SECONDS: u64 = 7 * 24 * 3600;

    /// True until it may be forgotten, a week after it expires.
    pub fn is_kept(&self, unix: u64) -> bool {
        unix <= self.kept_until()
    }
}

impl Fact for Invitation {
    type Id = InvitationId;
    const PLURAL: &'static str = "invitations";
    const MAX_KEPT: usize = 512;
    /// Only publishers admit nodes.
    const BY_WORKERS: bool = false;

    fn cluster(&self) -> ClusterId {
        self.cluster
    }

    fn id(&self) -> InvitationId {
        self.token
    }

    fn check_bounds(&self) -> Result<(), OutOfBounds> {
        within((1..=Self::MAX_USES).contains(&self.uses), "number of uses")
    }

    /// Takes the stricter value of every field.
    fn merge(&mut self, other: &Self) {
        self.redeemed.extend(other.redeemed.iter().copied());
        self.revoked |= other.revoked;
        self.uses = self.uses.min(other.uses);
        self.expires = self.expires.min(other.expires);
        self.issued = self.issued.min(other.issued);
        self.role = self.role.max(other.role);
    }

    fn kept_until(&self) -> u64 {
        self.expires.saturating_add(Self::KEPT_SECONDS)
    }
}
