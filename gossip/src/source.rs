//! Sources of introduction points. A descriptor may name a relay only once, so where several
//! sources have a point at one relay, a lot decides which source keeps it.

use std::fmt;

use crate::hash::{Label, labelled};
use crate::id::NodeId;
use crate::record::{Fitness, IntroPoint, RelayId, Subprotocol};

/// The origin of a candidate for the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A node of the cluster.
    Node(NodeId),
}

impl Source {
    /// The public key that identifies the source; no two sources have the same one.
    pub fn public_key(&self) -> &[u8; 32] {
        match self {
            Self::Node(node) => node.public_key(),
        }
    }

    /// The node; `None` if the source is not a node.
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

/// Displayed as an onion address.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => fmt::Display::fmt(node, f),
        }
    }
}

/// The introduction points that one source offers for the descriptor of one service.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The source.
    pub source: Source,
    /// Whether it can serve the clients of this service.
    pub fitness: Fitness,
    /// Weight of its share relative to the other sources, 1 to 100.
    pub weight: u8,
    /// Its introduction points, the preferred ones first.
    pub points: &'a [IntroPoint],
    /// The subprotocols that clients may request at them.
    pub subprotocols: &'a [Subprotocol],
}

/// The lot of a source at a relay; the source with the lowest lot keeps the relay.
///
/// Each relay has its own lots, so a source with a chosen key wins some relays and not all. A lot
/// is drawn for both identities of the relay and the higher one counts, so combining one identity
/// of the true relay with a foreign one wins nothing.
pub(crate) fn relay_lot(relay: &RelayId, source: Source) -> [u8; 32] {
    let lot = |identity: &[u8]| -> [u8; 32] { labelled(Label::Relay, &[identity, source.public_key()]) };
    relay.identities().map(lot).into_iter().max().unwrap_or_default()
}
