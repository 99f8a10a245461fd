//! Links: authenticated, framed, two-way connections between members, over any [`Route`].
//!
//! [`Links::start`] is the entry. It keeps links open to the neighbours that the member set asks
//! for, redials with growing pauses, and takes the streams that are passed to [`Links::accept`]. It
//! returns a [`Carrier`] for the mesh and the joiners' streams that other members carry here.
//!
//! Modules: `handshake` authenticates both sides, `connection` runs one link, `pool` decides which
//! links there should be, `path` chooses the route for the frames to a peer, and `task` does the IO
//! for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::facts::SharedFacts;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::neighbours::DEFAULT_NEIGHBOURS;
use rustbalance_gossip::record::{Member, Revocation};
use rustbalance_gossip::signed::Verified;
use rustbalance_mesh::{Carrier, Update};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::counters::{Counter, Counters};
use crate::discovery::{Discovery, Offer};
use crate::frame::FrameError;
use crate::keys::NodeSecret;
use crate::stream::BoxStream;
pub use connection::Frame;
pub use frame::MessageError;
use handshake::HandshakeError;
pub use path::RouteState;
pub use route::{Channel, ChannelBinding, Route, RouteError, RouteKind};
use task::Shared;
pub use tor::TorRoute;

#[cfg(test)]
pub(crate) mod conformance;
mod connection;
mod frame;
pub mod handshake;
mod path;
mod pool;
mod queue;
mod route;
mod task;
#[cfg(test)]
mod tests;
mod tor;

/// The virtual port of a node's own onion service that takes links.
pub const LINK_PORT: u16 = 7440;

/// The configuration of [`Links`].
pub struct LinkConfig {
    /// The route that reaches every member (Tor). It takes the frames for a peer to which no faster
    /// route is proven.
    pub base: Arc<dyn Route>,
    /// Further routes, best first. The frames to a peer go by the best proven one.
    pub faster: Vec<Arc<dyn Route>>,
    /// This node's key.
    pub identity: NodeSecret,
    /// This node's certificates at its start.
    pub membership: Member,
    /// The newest discovery key. Links hand it to each peer that may have it.
    pub discovery: watch::Receiver<Option<Arc<Discovery>>>,
    /// Bounds. A change applies to links and handshakes that start after it.
    pub limits: watch::Receiver<LinkLimits>,
    /// Counts what is refused.
    pub counters: Counters,
}

/// Bounds on links. They are local: no peer needs to have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkLimits {
    /// Number of neighbours that this node keeps links open to. Peers may open links to it on top
    /// of these.
    pub neighbours: usize,
    /// Mesh links open at the same time over each route, in both directions together.
    pub links: usize,
    /// Handshakes in progress: streams whose dialler has not proved itself yet.
    pub handshakes: usize,
    /// Streams accepted per second, and the burst that is allowed after a pause.
    pub accepts_per_second: (u64, u64),
    /// Joiners' streams that members carry here at the same time: in total, and from one member.
    pub carried: (usize, usize),
    /// Time limit for a dial.
    pub dial: Duration,
    /// Time limit for the handshake.
    pub handshake: Duration,
    /// Pause between pings.
    pub ping: Duration,
    /// Silence after which a link is closed.
    pub silence: Duration,
    /// Time limit for writing one frame.
    pub write: Duration,
    /// Messages that may wait on one link; beyond that the oldest is dropped.
    pub queue: usize,
    /// Bytes of gossip accepted from one peer per second.
    pub bytes_per_second: u64,
    /// Bytes of gossip accepted from one peer at once after a pause.
    pub bytes_burst: u64,
    /// Bytes charged for each message in addition to its length.
    pub bytes_per_message: u64,
    /// Shortest and longest pause between two dials of one node.
    pub pause: (Duration, Duration),
    /// Interval at which all links are reviewed.
    pub tick: Duration,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            neighbours: DEFAULT_NEIGHBOURS,
            links: 64,
            handshakes: 16,
            accepts_per_second: (10, 30),
            carried: (16, 4),
            dial: Duration::from_secs(60),
            handshake: Duration::from_secs(15),
            ping: Duration::from_secs(5),
            silence: Duration::from_secs(20),
            write: Duration::from_secs(20),
            queue: 64,
            bytes_per_second: 512 * 1024,
            bytes_burst: 4 * 1024 * 1024,
            bytes_per_message: 1024,
            pause: (Duration::from_secs(1), Duration::from_secs(60)),
            tick: Duration::from_secs(1),
        }
    }
}

/// The members to have links with, and what links must know of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberSet {
    /// All members, alive or not; may include this node.
    pub members: BTreeSet<NodeId>,
    /// The publishers among `members`: only a link with one of them shows that this node is not
    /// evicted.
    pub publishers: BTreeSet<NodeId>,
    /// Nodes that are not members, evicted or otherwise, even if their certificate is valid; each
    /// with the authority's revocation.
    pub revoked: BTreeMap<NodeId, Verified<Revocation>>,
    /// The end of each member's certificate, in seconds since the Unix epoch. A link lasts as long
    /// as the later of this and the one that its handshake showed.
    pub ends: BTreeMap<NodeId, u64>,
    /// This node's certificates, which handshakes show from now on. `None`: those in
    /// [`LinkConfig`].
    pub own: Option<Arc<Member>>,
    /// The facts of this node. Links compare them with each peer's, and hand over those the peer
    /// lacks.
    pub facts: Arc<SharedFacts>,
}

/// How far this node reaches the other members.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    /// At least one link is open.
    pub linked: bool,
    /// Some member has no link with this node over Tor, and its onion service, though reachable,
    /// accepts none of this node's discovery keys.
    pub refused: bool,
    /// This node seems to be shut out. Only Tor can show that ([`RouteError::ShutOut`]); a link
    /// with a publisher over any route refutes it. See
    /// [`rustbalance_gossip::coordinator::Event::ShutOut`].
    pub shut_out: bool,
}

/// One link, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// The other end of the link.
    pub peer: NodeId,
    /// The route of the link.
    pub route: RouteKind,
    /// The state of that route to that peer.
    pub state: RouteState,
    /// True if frames to the peer go over this link.
    pub carries: bool,
    /// True if the links with the peer show soon when it stops to answer
    /// ([`rustbalance_gossip::contact`]).
    pub watched: bool,
    /// True if this node dialled.
    pub outgoing: bool,
    /// Time since it opened.
    pub age: Duration,
    /// Frames read.
    pub frames_in: u64,
    /// Frames written.
    pub frames_out: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// Messages dropped, in both directions together.
    pub dropped: u64,
    /// Round-trip time of the latest ping; `None` before the first answer.
    pub round_trip: Option<Duration>,
}

/// A joiner's stream that a member carries to this node.
pub struct CarriedJoin {
    /// The member that carries it.
    pub from: NodeId,
    /// The joiner's end of it: its bytes, unread by the member.
    pub stream: BoxStream,
}

/// The receiving ends of everything that links deliver.
pub struct LinkOutputs {
    /// Sends and receives the messages of the mesh.
    pub carrier: Carrier,
    /// Joiners' streams to be admitted. If the receiver is dropped, such streams are refused as
    /// busy.
    pub joins: mpsc::Receiver<CarriedJoin>,
    /// Revocations of this node by the authority, as peers show them when they refuse a link.
    pub revoked: mpsc::Receiver<Verified<Revocation>>,
    /// Discovery keys handed over by peers. Not verified.
    pub offered: mpsc::Receiver<Offer>,
    /// Facts handed over by peers, one message each. Not verified.
    pub facts: mpsc::Receiver<Vec<Update>>,
}

/// Why there is no link. Worth another try unless the peer refused it.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer could not be reached.
    #[error(transparent)]
    Dial(#[from] RouteError),
    /// The peer answered, and the handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The stream broke during the handshake.
    #[error("the link to {0} broke while it was opened")]
    Broken(NodeId, #[source] FrameError),
    /// The handshake took too long.
    #[error("{0} did not finish the handshake in time")]
    Slow(NodeId),
}

/// The links of this node. Dropping it closes all of them.
pub struct Links {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Links {
    /// Starts to open links to the neighbours among `members`, and to accept links.
    pub fn start(config: LinkConfig, members: watch::Receiver<MemberSet>) -> (Self, LinkOutputs) {
        let (shared, outputs) = Shared::new(config, members);
        let stop = shared.stop.clone();
        tokio::spawn(task::reconcile(Arc::clone(&shared)));
        tokio::spawn(task::probe(Arc::clone(&shared)));
        (Self { shared, stop }, outputs)
    }

    /// Takes a stream that a peer has opened to [`LINK_PORT`]. Returns at once; a stream over the
    /// limits is dropped and counted.
    pub fn accept(&self, channel: Channel) {
        task::accept(&self.shared, channel);
    }

    /// Opens a stream to `to` that can carry a joiner's bytes.
    pub async fn carry_join(&self, to: NodeId) -> Result<BoxStream, LinkError> {
        self.shared.dial_for_join(to).await
    }

    /// Counts a stream that was dropped before [`Links::accept`] because too many came at once.
    pub fn count_excess_stream(&self) {
        self.shared.counters.count(Counter::LinkOverRate);
    }

    /// Counts a discovery key from a member that the authority has not signed.
    pub fn count_false_key(&self) {
        self.shared.counters.count(Counter::LinkUnsignedKey);
    }

    /// The open links.
    pub fn status(&self) -> Vec<LinkStatus> {
        self.shared.pool().status(tokio::time::Instant::now())
    }

    /// How far this node reaches the others, updated on each change.
    pub fn reach(&self) -> watch::Receiver<Reach> {
        self.shared.reach.subscribe()
    }

    /// The peers that have stopped to answer on all routes, updated on each change.
    pub fn unreachable(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.shared.unreachable.subscribe()
    }

    /// Closes all links.
    pub fn shutdown(&self) {
        self.stop.cancel();
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
