//! An invitation: the public half of a token, and what has become of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::own::within;
use super::{Fact, OutOfBounds, Role};
use crate::id::{ClusterId, InvitationId, NodeId};
use crate::signed::Statement;

/// The authority's word that whoever holds the secret half of `token` may join.
///
/// Every publisher keeps and gossips the invitations it knows; several versions of one are merged: who redeemed it is
/// the union, revoked once is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The public half of the token.
    pub token: InvitationId,
    /// What the joiner becomes.
    pub role: Role,
    /// How many nodes may join with it.
    pub uses: u16,
    /// When it was made, in seconds since the Unix epoch.
    pub issued: u64,
    /// Until when it is good, in seconds since the Unix epoch.
    pub expires: u64,
    /// Who has joined with it so far.
    pub redeemed: BTreeSet<NodeId>,
    /// Taken back before it was used up.
    pub revoked: bool,
}

impl Statement for Invitation {
    const CONTEXT: &'static str = "rustbalance invitation v1";
    const MAX_SIZE: usize = 16_384;
}

impl Invitation {
    /// Largest number of uses of one invitation: its record must stay small enough to gossip.
    pub const MAX_USES: u16 = 256;
    /// How long it is kept after its end, in seconds: its redeemers may still race.
    pub(crate) const KEPT_SECONDS: u64 = 7 * 24 * 3600;

    /// True until it may be forgotten, a week after its end.
    pub fn is_kept(&self, unix: u64) -> bool {
        unix <= self.kept_until()
    }
}

impl Fact for Invitation {
    type Id = InvitationId;
    const PLURAL: &'static str = "invitations";
    const MOST: usize = 512;
    /// Workers admit no node.
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

    /// The stricter of every bound.
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
