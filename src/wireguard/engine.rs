//! What an engine is: a running WireGuard that carries byte streams between nodes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::hash::{Label, labelled};
use rustbalance_gossip::id::NodeId;

use super::{KernelError, WireguardKey, WireguardSecret};
use crate::link::ChannelBinding;
use crate::stream::BoxStream;

/// Most peers of one engine; those with the highest ids are left out beyond it. A cluster has some
/// hundreds of nodes, and a peer costs about 17 KiB of memory.
pub const MOST_PEERS: usize = 512;
/// Most endpoints of one peer that are tried; an engine ignores further ones.
pub const MOST_ENDPOINTS: usize = 4;

/// A running WireGuard. Its start also returns the receiver of the streams that peers open: their
/// [`TunnelStream::peer`] is the peer whose keys protect them.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Sets the whole desired state. Sessions of keys and peers that it does not name end at once;
    /// a peer or key that is new gets a packet at once. Returns before that is done.
    fn apply(&self, desired: Desired);

    /// Whether the session with `to` is up, so that a dial is worth trying.
    fn reaches(&self, to: NodeId) -> bool;

    /// Opens a TCP stream to [`rustbalance_gossip::address::mesh_socket`] of the peer, through the
    /// tunnel.
    ///
    /// # Errors
    /// See [`EngineError`].
    async fn dial(&self, to: NodeId, limit: Duration) -> Result<TunnelStream, EngineError>;

    /// What is known of each peer of the desired state. Up to a second old.
    fn status(&self) -> BTreeMap<NodeId, PeerStatus>;
}

/// The own keys and the peers that an engine works towards.
#[derive(Debug, Default)]
pub struct Desired {
    /// One key, or two during a rotation: first the one to use, then one that is coming or going.
    /// Without a key the engine is silent.
    pub own: Vec<WireguardSecret>,
    /// The peers. This node itself is ignored.
    pub peers: BTreeMap<NodeId, Peer>,
}

/// One peer of a [`Desired`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// One key, or two during the peer's rotation: first the one to use, then one that is coming or
    /// going.
    pub keys: Vec<WireguardKey>,
    /// Where the peer may be, best first, at most [`MOST_ENDPOINTS`]. They are tried in turn while
    /// the session is not up. Empty for a peer that must send first.
    pub endpoints: Vec<SocketAddr>,
}

/// A stream through the tunnel.
pub struct TunnelStream {
    /// The node at the other end, by the keys of the tunnel. It has not proved its identity as a
    /// member yet.
    pub peer: NodeId,
    /// See [`channel_binding`].
    pub binding: ChannelBinding,
    /// The stream.
    pub stream: BoxStream,
}

/// What is known of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Whether the session is up.
    pub up: bool,
    /// Where packets to the peer go: learnt from its authenticated packets, or the endpoint that is
    /// being tried.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last handshake; `None` before the first and after the session has expired.
    pub last_handshake: Option<Duration>,
    /// Bytes of authenticated datagrams from the peer, without IP and UDP headers.
    pub bytes_in: u64,
    /// Bytes of datagrams sent to the peer, without IP and UDP headers.
    pub bytes_out: u64,
    /// Why the session is not up, or why packets are lost.
    pub problem: Option<PeerProblem>,
}

/// Why a session is not up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerProblem {
    /// No endpoint is known: the peer has to reach this node.
    #[error("its address is not known, so it has to connect first")]
    NoEndpoint,
    /// All its endpoints are of an address family that this node does not use, or cannot be a
    /// host's.
    #[error("none of its addresses can be reached from the addresses of this node")]
    NoUsableEndpoint,
    /// Another member announced the same key first.
    #[error("another member announces the same WireGuard key")]
    KeyInUse,
    /// Handshakes are sent and none is answered.
    #[error("{tried} does not answer: UDP may be blocked, the peer may be behind a NAT, or it may not be running")]
    NoAnswer {
        /// The endpoint that was tried last.
        tried: SocketAddr,
    },
    /// The host does not send packets to the peer.
    #[error("this host cannot send to {to}: {error}")]
    NotSent {
        /// The endpoint.
        to: SocketAddr,
        /// The system's reason, such as `Operation not permitted` for a firewall's rule.
        error: String,
    },
}

/// Why an engine gives no stream, or does not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The address cannot be used.
    #[error("cannot use {address} for WireGuard: choose another address or port of this host")]
    Bind {
        /// The address that was to be bound.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The addresses to bind are not one of IPv4, one of IPv6, or one of each.
    #[error("WireGuard needs one IPv4 address, one IPv6 address, or one of each, not {0:?}")]
    Addresses(Vec<SocketAddr>),
    /// The peer is not in the desired state.
    #[error("{0} is not a WireGuard peer of this node")]
    UnknownPeer(NodeId),
    /// The most streams that are allowed are open with the peer.
    #[error("too many WireGuard streams are open with {0}")]
    TooManyStreams(NodeId),
    /// The peer has refused the stream, or the keys have changed while it was opened.
    #[error("{0} has refused a stream through the tunnel")]
    Refused(NodeId),
    /// No answer came in time.
    #[error("{peer} did not answer through the tunnel within {limit:?}")]
    Timeout {
        /// The peer.
        peer: NodeId,
        /// The time limit.
        limit: Duration,
    },
    /// The engine has stopped.
    #[error("WireGuard has stopped")]
    Stopped,
    /// The kernel's WireGuard cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// The channel binding of streams in the tunnel between two static keys; the same at both ends. A
/// man in the middle would need a tunnel of his own to each side, with other keys.
pub fn channel_binding(one: &WireguardKey, other: &WireguardKey) -> ChannelBinding {
    let (low, high) = if one < other { (one, other) } else { (other, one) };
    ChannelBinding(labelled(Label::WireguardBinding, &[low.as_bytes(), high.as_bytes()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_derive_the_same_binding_and_other_tunnels_another() {
        let key = || WireguardSecret::generate(&mut rand::rng()).public();
        let (one, other, third) = (key(), key(), key());
        assert_eq!(channel_binding(&one, &other), channel_binding(&other, &one));
        assert_ne!(channel_binding(&one, &other), channel_binding(&one, &third));
        assert_ne!(channel_binding(&one, &other), ChannelBinding::BY_ID);
    }
}
