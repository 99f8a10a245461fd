//! Where introduction points come from, and which source keeps a relay at which several have one: clients can use only
//! one of them.

use std::fmt;

use crate::hash::{Label, labelled};
use crate::id::NodeId;
use crate::record::{Fitness, IntroPoint, RelayId};

/// Where a candidate for the descriptor comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A node of the cluster.
    Node(NodeId),
}

impl Source {
    /// The key that names it; no two sources share one.
    pub fn public_key(&self) -> &[u8; 32] {
        match self {
            Self::Node(node) => node.public_key(),
        }
    }

    /// The node, if it is one.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Node(node) => Some(*node),
        }
    }
}

impl From<NodeId> for Source {
    fn from(node: NodeId) -> Self {
        Self::Node(node)
    }
}

/// Its name as an onion address.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => fmt::Display::fmt(node, f),
        }
    }
}

/// What one source offers for the descriptor of one service.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The source.
    pub source: Source,
    /// Whether it can serve the clients of this service.
    pub fitness: Fitness,
    /// Share relative to the others', 1 to 100.
    pub weight: u8,
    /// Where it waits for clients, those it prefers first.
    pub points: &'a [IntroPoint],
}

/// The lot of a source at a relay; the lowest keeps the relay.
///
/// Each relay has lots of its own, so a source that chooses its key wins some relays and not all. Both identities of the
/// relay are drawn for and the higher lot counts, so adding another relay's identity to the true one wins nothing.
pub(crate) fn relay_lot(relay: &RelayId, source: Source) -> [u8; 32] {
    let lot = |identity: &[u8]| -> [u8; 32] { labelled(Label::Relay, &[identity, source.public_key()]) };
    relay.identities().map(lot).into_iter().max().unwrap_or_default()
}
