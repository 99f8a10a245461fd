//! Routes: how a link reaches a peer.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::id::NodeId;
use serde::{Deserialize, Serialize};

use crate::stream::BoxStream;

/// A way to reach members. Each transport implements it; links know nothing else of a transport.
#[async_trait]
pub trait Route: Send + Sync + 'static {
    /// The kind of this route; the same for all peers.
    fn kind(&self) -> RouteKind;

    /// Whether this node can dial `to` by this route, as far as it knows now. Called at least every
    /// second (`LinkLimits::tick`).
    fn reaches(&self, to: NodeId) -> bool;

    /// Opens a stream to the place where `to` accepts links, within `limit`.
    ///
    /// # Errors
    /// See [`RouteError`].
    async fn dial(&self, to: NodeId, limit: Duration) -> Result<Channel, RouteError>;
}

/// A kind of route: a number on the wire, a name in `status`. A build knows the kinds for which it
/// has a [`Route`]. Any other number is legal, and names a route that this node does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RouteKind(u8);

impl RouteKind {
    /// Over Tor, to the node's own onion service. Every member has it.
    pub const TOR: Self = Self(0);

    /// Over WireGuard, between nodes that are willing to know each other's addresses.
    pub const WIREGUARD: Self = Self(1);

    /// The kind of this number (docs/PROTOCOL.md, section 5).
    pub const fn new(number: u8) -> Self {
        Self(number)
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TOR => formatter.write_str("tor"),
            Self::WIREGUARD => formatter.write_str("wireguard"),
            Self(number) => write!(formatter, "route {number}"),
        }
    }
}

/// A value that only the two ends of a stream can derive, from the keys that protect it (a channel
/// binding, RFC 5056). The link handshake signs it, so that a man in the middle cannot relay the
/// proofs of one stream on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelBinding(pub [u8; 32]);

impl ChannelBinding {
    /// For a route whose streams end at the key of the node's id itself, as Tor's do: there is
    /// nothing else to bind.
    pub const BY_ID: Self = Self([0; 32]);
}

/// A stream to a peer with its route and binding. The other end has not proved its identity yet.
pub struct Channel {
    /// The route that carries it.
    pub route: RouteKind,
    /// Identifies the stream to both ends.
    pub binding: ChannelBinding,
    /// The stream. The route protects it: only its two ends can read or change the bytes.
    pub stream: BoxStream,
}

impl Channel {
    /// A stream over Tor.
    pub fn tor(stream: BoxStream) -> Self {
        Self { route: RouteKind::TOR, binding: ChannelBinding::BY_ID, stream }
    }
}

/// The error of a transport.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a route gives no stream to a peer. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The peer's service is reachable, but none of this node's discovery keys opens its
    /// descriptor. Only Tor reports this, so no other route's failure can set
    /// [`super::Reach::shut_out`].
    #[error("{0} accepts none of this node's discovery keys")]
    ShutOut(NodeId),
    /// No connection. Worth another try.
    #[error("cannot reach {peer} over {route}")]
    Unreachable {
        /// The peer that was dialled.
        peer: NodeId,
        /// The route that was tried.
        route: RouteKind,
        /// The transport's error.
        #[source]
        source: Cause,
    },
    /// No connection within the bound. Worth another try.
    #[error("{peer} was not reached over {route} within {limit:?}")]
    Timeout {
        /// The peer that was dialled.
        peer: NodeId,
        /// The route that was tried.
        route: RouteKind,
        /// The time limit of the dial.
        limit: Duration,
    },
    /// The transport has stopped. Every later dial fails, too, until it is started again.
    #[error("{route} has stopped")]
    Stopped {
        /// The route that has stopped.
        route: RouteKind,
        /// The transport's error.
        #[source]
        source: Cause,
    },
}
