//! Routes: how a link reaches a peer.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::id::NodeId;
use serde::{Deserialize, Serialize};

use crate::stream::BoxStream;

/// A way to reach members. Each transport has one; links know nothing else of it.
#[async_trait]
pub trait Route: Send + Sync + 'static {
    /// What kind it is.
    fn kind(&self) -> RouteKind;

    /// Whether `to` can be dialled by this route at all, as far as this node knows now. Asked at
    /// least every second (`LinkLimits::tick`).
    fn reaches(&self, to: NodeId) -> bool;

    /// Opens a stream to where `to` takes links, within `limit`.
    ///
    /// # Errors
    /// See [`RouteError`].
    async fn dial(&self, to: NodeId, limit: Duration) -> Result<Channel, RouteError>;
}

/// A kind of route: a number on the wire, a name in `status`. A build knows the kinds that it has a
/// [`Route`] for; any other number is legal, and names a route that this node has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RouteKind(u8);

impl RouteKind {
    /// Over Tor, to the node's own onion service. Every member has it.
    pub const TOR: Self = Self(0);

    /// The kind of this number (docs/PROTOCOL.md, section 5).
    pub const fn new(number: u8) -> Self {
        Self(number)
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TOR => formatter.write_str("tor"),
            Self(number) => write!(formatter, "route {number}"),
        }
    }
}

/// What both ends of a stream, and they alone, derive from the keys that protect it (a channel
/// binding, RFC 5056). The link handshake signs it, so that a peer in the middle of two streams
/// cannot pass the proofs of one on to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelBinding(pub [u8; 32]);

impl ChannelBinding {
    /// Of a route whose streams end at the key of the node's id itself, as those of Tor do: there is
    /// nothing else to bind.
    pub const BY_ID: Self = Self([0; 32]);
}

/// A stream to a peer, and how it came about. Whoever holds the other end has proved nothing yet.
pub struct Channel {
    /// The route.
    pub route: RouteKind,
    /// What identifies it to both ends.
    pub binding: ChannelBinding,
    /// The bytes. The route protects them: only its two ends can read or change them.
    pub stream: BoxStream,
}

impl Channel {
    /// A stream over Tor.
    pub fn tor(stream: BoxStream) -> Self {
        Self { route: RouteKind::TOR, binding: ChannelBinding::BY_ID, stream }
    }
}

/// Boxed cause.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a route gives no stream to a peer. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The peer's service is there, but none of this node's discovery keys opens its descriptor.
    /// Only Tor says so: what follows from it ([`super::Links::is_shut_out`]) does not follow from
    /// the failure of any other route.
    #[error("{0} accepts none of this node's discovery keys")]
    ShutOut(NodeId),
    /// No connection. Worth another try.
    #[error("cannot reach {peer} over {route}")]
    Unreachable {
        /// The peer.
        peer: NodeId,
        /// The route.
        route: RouteKind,
        /// What the transport says.
        #[source]
        source: Cause,
    },
    /// No connection within the bound. Worth another try.
    #[error("{peer} was not reached over {route} within {limit:?}")]
    Timeout {
        /// The peer.
        peer: NodeId,
        /// The route.
        route: RouteKind,
        /// The bound.
        limit: Duration,
    },
    /// The transport has ended. Every later dial fails, too, until it is started again.
    #[error("{route} has stopped")]
    Stopped {
        /// The route.
        route: RouteKind,
        /// What the transport says.
        #[source]
        source: Cause,
    },
}
