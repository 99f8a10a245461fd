//! The Tor engine: everything this daemon asks of the Tor network, behind one trait.
//!
//! [`Engine`] is the seam. `arti/` answers it with Arti's public crates; `fake/` answers it in memory with the same
//! conformance suite, so that everything above runs in a test without a network. No Arti type crosses this line: what
//! goes in and out are the plain types below and those of `rustbalance_gossip`.
//!
//! Two onion services are in play and must not be confused:
//! * the node's **own** service (one per node, restricted discovery), run whole by `tor-hsservice`: [`Engine::listen`];
//! * the **master** service (one address, many nodes), whose service side we run ourselves:
//!   [`Engine::open_intro_point`] on every node, and [`Engine::publication`], [`Engine::upload`], [`Engine::fetch`] on
//!   the publisher.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::id::{NodeId, OnionAddress, ServiceId};
use rustbalance_gossip::record::{IntroPoint, PeriodId, RelayId};
use tokio::sync::{mpsc, watch};

use crate::keys::{DiscoveryPublic, DiscoverySecret, NodeSecret};
use crate::stream::BoxStream;

pub use circuits::CircuitId;
pub use error::TorError;
pub use refused::{Refused, RefusedCounts};
pub use replay::{IntroPointKeys, ReplayLog};

pub mod arti;
mod circuits;
#[cfg(test)]
mod conformance;
pub mod descriptor;
mod error;
pub mod fake;
pub mod keystore;
mod refused;
mod replay;

/// What the daemon needs of Tor.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// How far the connection to the network is. The channel closes when the engine has stopped for good: from then on
    /// every call answers [`TorError::Stopped`], and another engine has to be started.
    fn bootstrap(&self) -> watch::Receiver<Bootstrap>;

    /// Connects to `port` of the onion service `to`. Bounded by `limit`.
    async fn dial(&self, to: OnionAddress, port: u16, limit: Duration) -> Result<BoxStream, TorError>;

    /// Lets this client read the descriptors of `node`'s own (restricted) service with one of `keys` from now on; the one
    /// that most likely opens them first.
    fn trust_discovery(&self, node: NodeId, keys: &[&DiscoverySecret]) -> Result<(), TorError>;

    /// Runs this node's own onion service until the returned handle is dropped. Streams to any port in
    /// [`OwnService::ports`] arrive on `streams`; others are refused.
    async fn listen(
        &self,
        service: OwnService,
        streams: mpsc::Sender<Incoming>,
    ) -> Result<Box<dyn Listening>, TorError>;

    /// Makes one introduction point for the master address and serves it until the returned handle is dropped.
    ///
    /// Every introduction is answered (replay filter, rendezvous, virtual hop) inside the engine, within `limits`;
    /// what comes out are client streams. Several relays may be tried: the caller bounds the time.
    async fn open_intro_point(
        &self,
        request: IntroRequest,
        streams: mpsc::Sender<Incoming>,
    ) -> Result<Box<dyn OpenIntroPoint>, TorError>;

    /// For each current time period: its id, the directories responsible for the master address, the revision that
    /// the clock alone would give. Changes of the network's directory are told by [`Engine::network_changes`].
    async fn publication(&self, service: ServiceId) -> Result<Vec<Period>, TorError>;

    /// A counter that rises whenever the network's directory (and so perhaps [`Engine::publication`]) has changed.
    fn network_changes(&self) -> watch::Receiver<u64>;

    /// Uploads one descriptor to one directory; `Ok` only once the directory has accepted it.
    async fn upload(&self, to: &Directory, period: PeriodId, descriptor: &str, limit: Duration)
    -> Result<(), TorError>;

    /// Reads back what `from` holds for `service` in `period`; `None` if it holds nothing.
    async fn fetch(
        &self,
        from: &Directory,
        service: ServiceId,
        period: PeriodId,
        limit: Duration,
    ) -> Result<Option<String>, TorError>;
}

/// How far the bootstrap is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bootstrap {
    /// 0.0 to 1.0.
    pub fraction: f32,
    /// True once circuits can be built. Stays true; what is wrong later is in the message.
    pub ready: bool,
    /// What is waited for, or what blocks, in words for a person.
    pub message: String,
    /// Why it never will be ready, where only the operator can mend that; the channel closes then.
    pub hopeless: Option<String>,
}

/// A node's own onion service.
pub struct OwnService {
    /// The node's identity: its onion address and its signature.
    pub identity: NodeSecret,
    /// Who may read the descriptor. Empty would mean everybody and is refused.
    pub discovery: Vec<DiscoveryPublic>,
    /// Virtual ports that are open.
    pub ports: Vec<u16>,
    /// Counts what members asked for beyond the bounds of the service.
    pub refused: Arc<RefusedCounts>,
}

/// A running own onion service; dropped, it stops.
#[async_trait]
pub trait Listening: Send + Sync {
    /// Replaces the set of clients who may read the descriptor (a rotation after an eviction).
    async fn authorize(&self, discovery: Vec<DiscoveryPublic>) -> Result<(), TorError>;
    /// True while the service is believed reachable.
    fn reachable(&self) -> watch::Receiver<bool>;
}

/// A client's stream request that has no answer yet.
pub struct Incoming {
    /// The virtual port asked for.
    pub port: u16,
    /// The circuit it came on: streams of one circuit belong to one client.
    pub circuit: CircuitId,
    /// Answers it.
    pub request: Box<dyn StreamRequest>,
}

/// The two answers to a stream request. Dropped without one, it is rejected.
#[async_trait]
pub trait StreamRequest: Send {
    /// Accepts: the client learns that it is connected.
    async fn accept(self: Box<Self>) -> Result<BoxStream, TorError>;
    /// Rejects: the client gets the END cell that [`Rejection`] names.
    async fn reject(self: Box<Self>, why: Rejection);
}

/// What a rejected client learns; C tor 0.4.9 gives the same answer in each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The target does not take the connection: END with reason CONNECTREFUSED.
    Refused,
    /// No target stands behind the port, or the client has too many streams: END with reason DONE.
    /// The circuit stays open, but its time limit goes on. C tor does the same unless
    /// HiddenServiceAllowUnknownPorts is 1 (its manual says the opposite; see
    /// `hs_service_set_conn_addr_port` in its source).
    Unavailable,
}

/// What makes an introduction point.
pub struct IntroRequest {
    /// Whose clients come.
    pub service: ServiceId,
    /// The point's keys and replay log, new or from before a restart.
    pub keys: IntroPointKeys,
    /// Which relay.
    pub relay: RelayChoice,
    /// Bounds against floods, shared by all the points of this node.
    pub limits: Arc<ServiceGuard>,
}

/// Which relay to be an introduction point.
#[derive(Debug, Clone)]
pub enum RelayChoice {
    /// Any suitable relay but these (one relay may stand only once in a descriptor: stock clients can use only one).
    AnyBut(BTreeSet<RelayId>),
    /// This one (after a restart, so that clients with an old descriptor are still served).
    Exactly(RelayId),
}

/// An established introduction point; dropped, its circuit is closed and its introductions end.
#[async_trait]
pub trait OpenIntroPoint: Send + Sync {
    /// What the publisher must know of it. Public.
    fn describe(&self) -> IntroPoint;
    /// Ends when the point is lost (circuit closed, relay gone). Cancel-safe.
    async fn lost(&self) -> String;
    /// Introductions seen since it was opened, replays not counted.
    fn introductions(&self) -> u64;
}

/// One time period at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period {
    /// Which.
    pub id: PeriodId,
    /// The responsible directories, replica by replica, each once.
    pub directories: Vec<Directory>,
    /// The time since the start of the period's shared-random run: what the order-preserving encryption of the
    /// revision counter is fed with (see [`descriptor::PeriodCredentials::revision`]).
    pub revision_clock: Duration,
    /// What the network's directory says about descriptors.
    pub parameters: descriptor::DescriptorParameters,
}

/// A directory relay responsible for a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Directory {
    /// Its identities.
    pub relay: RelayId,
}

/// Bounds on what clients can make this node do, enforced inside the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Rendezvous circuits that may be in the making at once.
    pub pending_rendezvous: usize,
    /// Rendezvous circuits open at once.
    pub open_rendezvous: usize,
    /// Streams open on one rendezvous circuit.
    pub streams_per_circuit: usize,
    /// Introductions that may wait for their turn, per point; further ones are dropped.
    pub introduction_queue: usize,
    /// The DoS extension of ESTABLISH_INTRO: introductions a second that the relay passes on (rate and burst); `None`
    /// for no limit.
    pub introductions_per_second: Option<(u32, u32)>,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self {
            pending_rendezvous: 256,
            open_rendezvous: 4096,
            streams_per_circuit: 128,
            introduction_queue: 256,
            introductions_per_second: None,
        }
    }
}

/// The limits in use, which may change, and what was refused for them.
#[derive(Debug)]
pub struct ServiceGuard {
    limits: watch::Receiver<ServiceLimits>,
    /// What was refused.
    pub refused: RefusedCounts,
}

impl ServiceGuard {
    /// Enforces the latest value of `limits` on what begins from then on.
    pub fn new(limits: watch::Receiver<ServiceLimits>, refused: RefusedCounts) -> Self {
        Self { limits, refused }
    }

    /// Enforces limits that never change, with counters of its own.
    pub fn fixed(limits: ServiceLimits) -> Self {
        Self::new(watch::channel(limits).1, RefusedCounts::default())
    }

    /// The limits now.
    pub fn now(&self) -> ServiceLimits {
        *self.limits.borrow()
    }

    /// The bounds on clients' circuits now.
    pub(crate) fn circuits(&self) -> circuits::CircuitBounds {
        let ServiceLimits { pending_rendezvous, open_rendezvous, .. } = self.now();
        circuits::CircuitBounds { making: pending_rendezvous.max(1), open: open_rendezvous }
    }
}
