//! Routes: how a link reaches a peer.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::id::NodeId;

use crate::stream::BoxStream;

/// A way to reach members. Each transport has one; links know nothing else of it.
#[async_trait]
pub trait Route: Send + Sync + 'static {
    /// What kind it is.
    fn kind(&self) -> RouteKind;

    /// Opens a stream to the port of `to` that takes links, within `limit`.
    ///
    /// # Errors
    /// See [`RouteError`].
    async fn dial(&self, to: NodeId, limit: Duration) -> Result<BoxStream, RouteError>;
}

/// Names a kind of route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKind(&'static str);

impl RouteKind {
    /// Over Tor, to the node's own onion service. Every member has it.
    pub const TOR: Self = Self("tor");
}

impl fmt::Display for RouteKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
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
