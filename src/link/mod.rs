//! Links: authenticated, framed, two-way connections between members, over whatever [`Route`] reaches them by.
//!
//! One enters with [`Links::start`]. It dials the neighbours that the member set asks for, again and again with
//! growing pauses, and takes the streams that [`Links::accept`] is handed. `handshake` says who may, `connection` runs
//! one link, `pool` decides which links there should be, `path` by which route the frames to a peer go, `task` does what
//! they decide. Out of it come a [`Carrier`] for the mesh and the streams of joiners that other members pass on.

#[cfg(test)]
mod conformance;
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

/// The virtual port of a node's own onion service that takes links.
pub const LINK_PORT: u16 = 7440;

/// What links are made with.
pub struct LinkConfig {
    /// Reaches every member, and takes the frames for a peer that no faster route is proven for: Tor.
    pub base: Arc<dyn Route>,
    /// Further routes, best first. Each peer's frames go by the best that is proven.
    pub faster: Vec<Arc<dyn Route>>,
    /// This node's key.
    pub identity: NodeSecret,
    /// This node's certificates.
    pub membership: Member,
    /// The newest discovery key, to be handed to whoever may have it.
    pub discovery: watch::Receiver<Option<Arc<Discovery>>>,
    /// Bounds: the latest hold for what begins, a link or a handshake.
    pub limits: watch::Receiver<LinkLimits>,
    /// Counts what is refused.
    pub counters: Counters,
}

/// Bounds on links. All of them are this node's own; no peer needs to have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkLimits {
    /// Links that this node opens; as many again and more may be opened to it.
    pub neighbours: usize,
    /// Mesh links at once over each route, in both directions together.
    pub links: usize,
    /// Streams whose dialler has not proved itself yet, at once.
    pub handshakes: usize,
    /// New streams a second, and at once after a pause.
    pub accepts_per_second: (u64, u64),
    /// Joiners' streams that others pass on, at once; and of one member.
    pub carried: (usize, usize),
    /// For how long a dial may take.
    pub dial: Duration,
    /// For how long the handshake may take.
    pub handshake: Duration,
    /// Pause between pings.
    pub ping: Duration,
    /// Silence after which a link is closed.
    pub silence: Duration,
    /// For how long one frame may take to be written.
    pub write: Duration,
    /// Messages that may wait on one link.
    pub queue: usize,
    /// Bytes of gossip taken from one peer in a second.
    pub bytes_per_second: u64,
    /// Bytes of gossip taken from one peer at once after a pause.
    pub bytes_burst: u64,
    /// What each message counts besides its length, in bytes.
    pub bytes_per_message: u64,
    /// Shortest and longest pause between two dials of one node.
    pub pause: (Duration, Duration),
    /// Between two looks at the whole.
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

/// Whom to have links with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberSet {
    /// Members that live, or of which nothing is known yet; with this node or without.
    pub members: BTreeSet<NodeId>,
    /// Those of them that are publishers: only a link with one shows that this node was not
    /// evicted.
    pub publishers: BTreeSet<NodeId>,
    /// Evicted, or for another reason no members whatever their certificate says; with the authority's word.
    pub revoked: BTreeMap<NodeId, Verified<Revocation>>,
    /// What is compared with each peer, and handed over where it lacks some.
    pub facts: Arc<SharedFacts>,
}

/// How far this node reaches the other members.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    /// Some link is open.
    pub linked: bool,
    /// Some member that is not reached over Tor is there, but its onion service accepts none of this node's discovery
    /// keys.
    pub refused: bool,
    /// This node seems to have been shut out. Only Tor can say so ([`RouteError::ShutOut`]); a link with a publisher
    /// refutes it, by whatever route. See [`rustbalance_gossip::coordinator::Event::ShutOut`].
    pub shut_out: bool,
}

/// One link, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// With whom.
    pub peer: NodeId,
    /// Over which route.
    pub route: RouteKind,
    /// What is known of that route to that peer.
    pub state: RouteState,
    /// True if frames to the peer go over this link.
    pub carries: bool,
    /// True if this node dialled.
    pub outgoing: bool,
    /// For how long it has been open.
    pub age: Duration,
    /// Frames read.
    pub frames_in: u64,
    /// Frames written.
    pub frames_out: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// Messages dropped in either direction.
    pub dropped: u64,
    /// Time of the latest ping and its answer.
    pub round_trip: Option<Duration>,
}

/// A joiner's stream that a member passes on.
pub struct CarriedJoin {
    /// Who passes it on.
    pub from: NodeId,
    /// The joiner's bytes, as they come.
    pub stream: BoxStream,
}

/// What comes out of the links.
pub struct LinkOutputs {
    /// For the mesh.
    pub carrier: Carrier,
    /// For the one who admits joiners; dropped, such streams are refused as busy.
    pub joins: mpsc::Receiver<CarriedJoin>,
    /// The authority's word that this node is no member any more, as a peer has shown it.
    pub revoked: mpsc::Receiver<Verified<Revocation>>,
    /// Discovery keys that peers have handed over.
    pub offered: mpsc::Receiver<Offer>,
    /// Facts that peers have handed over, one message each. Not verified.
    pub facts: mpsc::Receiver<Vec<Update>>,
}

/// Why there is no link. Worth another try unless it was refused.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It could not be reached.
    #[error(transparent)]
    Dial(#[from] RouteError),
    /// It answered, and that was all.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The stream broke during the handshake.
    #[error("the link to {0} broke while it was opened")]
    Broken(NodeId, #[source] FrameError),
    /// The handshake took too long.
    #[error("{0} did not finish the handshake in time")]
    Slow(NodeId),
}

/// The links of this node; dropped, all of them close.
pub struct Links {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Links {
    /// Begins to open links to those of `members` that are this node's neighbours, and to take them.
    pub fn start(config: LinkConfig, members: watch::Receiver<MemberSet>) -> (Self, LinkOutputs) {
        let (shared, outputs) = Shared::new(config, members);
        let stop = shared.stop.clone();
        tokio::spawn(task::reconcile(Arc::clone(&shared)));
        tokio::spawn(task::probe(Arc::clone(&shared)));
        (Self { shared, stop }, outputs)
    }

    /// Takes a stream that a peer has opened to [`LINK_PORT`]. Returns at once; a stream too many is dropped.
    pub fn accept(&self, channel: Channel) {
        task::accept(&self.shared, channel);
    }

    /// Opens a stream to `to` on which a joiner's bytes can be passed on.
    pub async fn carry_join(&self, to: NodeId) -> Result<BoxStream, LinkError> {
        self.shared.dial_for_join(to).await
    }

    /// Counts a stream that was not even handed to [`Links::accept`], because too many came at once.
    pub fn count_crowd(&self) {
        self.shared.counters.count(Counter::LinkCrowd);
    }

    /// Counts a discovery key that a member has handed over and that is not the authority's.
    pub fn count_false_key(&self) {
        self.shared.counters.count(Counter::LinkFalseKey);
    }

    /// The open links.
    pub fn status(&self) -> Vec<LinkStatus> {
        self.shared.pool().status(tokio::time::Instant::now())
    }

    /// How far this node reaches the others, changing.
    pub fn reach(&self) -> watch::Receiver<Reach> {
        self.shared.reach.subscribe()
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
