//! The Tor engine: everything this daemon asks of the Tor network, behind one trait.
//!
//! [`Engine`] has two implementations, which pass the same conformance suite: `arti/` uses Arti's
//! public crates, `fake/` runs in memory, so that all code above it can be tested without a
//! network. The trait uses only the plain types below and those of `rustbalance_gossip`, no type
//! of Arti.
//!
//! There are two kinds of onion service, which must not be confused:
//! * the node's **own** service: one per node, with restricted discovery, for other members only.
//!   `tor-hsservice` runs all of it: [`Engine::listen`];
//! * the cluster's **services**: one address served by many nodes. We run the service side
//!   ourselves: [`Engine::open_intro_point`] on every node, and [`Engine::publication`],
//!   [`Engine::upload`] and [`Engine::fetch`] on the publisher.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::id::{NodeId, OnionAddress, ServiceId};
use rustbalance_gossip::record::{IntroPoint, PeriodId, RelayId};
use tokio::sync::{mpsc, watch};

use crate::keys::{DiscoveryPublic, DiscoverySecret, NodeSecret};
use crate::stream::BoxStream;

pub(crate) use circuits::CircuitBounds;
pub use circuits::{CircuitCounts, CircuitId, ExportedCircuitId, ExportedCircuitIdError, OpenCircuit};
pub use error::TorError;
pub use refused::{Refused, RefusedCounts};
pub use replay::{IntroPointKeys, ReplayLog};
pub use visit::{Visit, VisitError, VisitStage};

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
pub mod subprotocols;
mod visit;

/// One Tor client, with the operations that the daemon needs.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Progress of the bootstrap. The channel closes when the engine has stopped for good: from
    /// then on every call returns [`TorError::Stopped`], and a new engine has to be started.
    fn bootstrap(&self) -> watch::Receiver<Bootstrap>;

    /// Connects to `port` of the onion service `to`, within `limit`. Its circuits carry nothing for
    /// other addresses.
    async fn dial(&self, to: OnionAddress, port: u16, limit: Duration) -> Result<BoxStream, TorError>;

    /// Sets the discovery keys for the own (restricted) service of `node`, in place of earlier
    /// ones. The key that most likely decrypts its descriptor comes first.
    fn trust_discovery(&self, node: NodeId, keys: &[&DiscoverySecret]) -> Result<(), TorError>;

    /// Runs this node's own onion service until the returned handle is dropped. Streams to the
    /// ports in [`OwnService::ports`] arrive on `streams`; others are refused.
    async fn listen(
        &self,
        service: OwnService,
        streams: mpsc::Sender<Incoming>,
    ) -> Result<Box<dyn Listening>, TorError>;

    /// Opens one introduction point for a service of the cluster and serves it until the returned
    /// handle is dropped.
    ///
    /// The engine answers every introduction itself (replay filter, rendezvous, virtual hop),
    /// within the request's limits, and sends the client streams to `streams`. It may try several
    /// relays, and sets no timeout: the caller does.
    async fn open_intro_point(
        &self,
        request: IntroRequest,
        streams: mpsc::Sender<Incoming>,
    ) -> Result<Box<dyn OpenIntroPoint>, TorError>;

    /// What the Tor network says about the time.
    fn time(&self) -> NetworkTime;

    /// How many circuits of clients of the cluster's services there are now.
    fn client_circuits(&self) -> CircuitCounts;

    /// The open circuits of clients of the cluster's services.
    fn open_client_circuits(&self) -> Vec<OpenCircuit>;

    /// Closes a circuit of a client with all its streams; false if there is none with this id.
    fn close_client_circuit(&self, id: ExportedCircuitId) -> bool;

    /// Closes the circuits of clients of the cluster's services that have had no stream for `idle`.
    fn close_idle_circuits(&self, idle: Duration);

    /// The current time periods, with the responsible directories and the revision clock of each.
    /// [`Engine::network_changes`] rises when the periods or the directories may have changed.
    async fn publication(&self, service: ServiceId) -> Result<Vec<Period>, TorError>;

    /// A counter that rises whenever the network's directory has changed, and with it possibly
    /// the result of [`Engine::publication`].
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

    /// The period and the directories of `service` that a client would ask now, in an order that
    /// each call draws again, as clients draw it.
    async fn client_directories(&self, service: ServiceId) -> Result<(PeriodId, Vec<Directory>), TorError>;

    /// Connects to a service of the cluster as a client does that has chosen this introduction
    /// point, on circuits of its own, and closes the connection at once.
    async fn visit(&self, visit: Visit, limit: Duration) -> Result<(), VisitError>;

    /// Gives up the circuits that wait to be used, so that new ones take their place. Circuits in
    /// use stay.
    fn renew_circuits(&self);

    /// Stops all circuits and services; returns once they have ended, or after 5 s.
    async fn shutdown(&self);
}

/// Progress of the bootstrap.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bootstrap {
    /// Share of the bootstrap that is done, from 0.0 to 1.0.
    pub fraction: f32,
    /// True once circuits can be built. Stays true; the message reports later problems.
    pub ready: bool,
    /// The current step, or the obstacle, as text for the operator.
    pub message: String,
    /// Why the engine will never be ready until the operator acts; `None` otherwise. The channel
    /// closes after this is set.
    pub hopeless: Option<String>,
}

/// What the Tor network says about the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkTime {
    /// When the network's newest directory became valid, in seconds since the Unix epoch. Most
    /// directory authorities have signed it. `None` before there is one.
    pub valid_after: Option<u64>,
    /// Seconds by which this machine's clock is ahead of the relays' clocks, if at least eight
    /// relays were asked within the hour and agree on more than a quarter of an hour.
    pub ahead: Option<i64>,
}

/// A node's own onion service.
pub struct OwnService {
    /// The node's identity key, from which its onion address follows.
    pub identity: NodeSecret,
    /// The client keys that can decrypt the descriptor. An empty list would let anyone read it, and
    /// is refused.
    pub discovery: Vec<DiscoveryPublic>,
    /// Virtual ports that are open.
    pub ports: Vec<u16>,
    /// Counts requests of members that exceed the bounds of the service.
    pub refused: Arc<RefusedCounts>,
}

/// A node's own onion service while it runs; it stops when this is dropped.
#[async_trait]
pub trait Listening: Send + Sync {
    /// Replaces the client keys that can decrypt the descriptor (a rotation after an eviction).
    async fn authorize(&self, discovery: Vec<DiscoveryPublic>) -> Result<(), TorError>;
    /// True while the service is believed reachable.
    fn reachable(&self) -> watch::Receiver<bool>;
}

/// A client's stream request that is not answered yet.
pub struct Incoming {
    /// The virtual port asked for.
    pub port: u16,
    /// The circuit it came on: streams of one circuit belong to one client.
    pub circuit: CircuitId,
    /// The id of that circuit outside of this program; `None` on the fake engine's circuits between
    /// members.
    pub exported: Option<ExportedCircuitId>,
    /// Accepts or rejects the stream.
    pub request: Box<dyn StreamRequest>,
}

/// A client that waits for an answer to its stream request. Dropping it rejects the request.
#[async_trait]
pub trait StreamRequest: Send {
    /// Sends CONNECTED to the client.
    async fn accept(self: Box<Self>) -> Result<BoxStream, TorError>;
    /// Sends the END cell that [`Rejection`] names to the client.
    async fn reject(self: Box<Self>, why: Rejection);
    /// Rejects the stream, because its circuit exceeds a limit, and reports that: a circuit that
    /// does so again and again is closed ([`ServiceLimits::refusals_per_circuit`]).
    fn refuse_excess(self: Box<Self>);
}

/// Why a stream is rejected. C tor 0.4.9 sends the same END reason in each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The target refuses the connection: END with reason CONNECTREFUSED.
    Refused,
    /// The port has no target, or the client has too many streams: END with reason DONE.
    /// The circuit stays open, but its time limit is not extended. C tor does the same unless
    /// HiddenServiceAllowUnknownPorts is 1 (its manual says the opposite; see
    /// `hs_service_set_conn_addr_port` in its source).
    Unavailable,
}

/// Parameters of a new introduction point.
pub struct IntroRequest {
    /// The service whose clients are introduced there.
    pub service: ServiceId,
    /// The point's keys and replay log: new ones, or those from before a restart.
    pub keys: IntroPointKeys,
    /// The relay, or how to choose it.
    pub relay: RelayChoice,
    /// Bounds against floods, shared by all points of this node.
    pub limits: Arc<ServiceGuard>,
}

/// The relay at which to open an introduction point.
#[derive(Debug, Clone)]
pub enum RelayChoice {
    /// Any suitable relay but these. A descriptor must not name a relay twice: stock clients would
    /// use only one of its points there.
    AnyBut(BTreeSet<RelayId>),
    /// This relay: after a restart, so that clients with an old descriptor are still served.
    Exactly(RelayId),
}

/// An established introduction point. Dropping it closes its circuit.
#[async_trait]
pub trait OpenIntroPoint: Send + Sync {
    /// The point as it appears in a descriptor. Contains no secret.
    fn describe(&self) -> IntroPoint;
    /// Returns the reason once the point is lost (circuit closed, relay gone). Cancel-safe.
    async fn lost(&self) -> String;
    /// Introductions received since the point was opened. Replays and cells that do not decrypt are
    /// not counted.
    fn introductions(&self) -> u64;
}

/// A time period, as the network's directory has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period {
    /// Number, length and offset of the period.
    pub id: PeriodId,
    /// The responsible directories, replica by replica, each once.
    pub directories: Vec<Directory>,
    /// Time since the start of the period's shared-random run: the plaintext of the
    /// order-preserving encryption that gives the revision counter (see
    /// [`descriptor::PeriodCredentials::revision`]).
    pub revision_clock: Duration,
    /// The network's parameters for descriptors.
    pub parameters: descriptor::DescriptorParameters,
}

/// A directory relay responsible for a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Directory {
    /// The relay's identities.
    pub relay: RelayId,
}

/// Bounds on what clients can make this node do, enforced inside the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Most rendezvous circuits being built at once, node-wide.
    pub pending_rendezvous: usize,
    /// Most rendezvous circuits open at once, node-wide.
    pub open_rendezvous: usize,
    /// Most streams open on one rendezvous circuit.
    pub streams_per_circuit: usize,
    /// Streams refused on one circuit within a minute, because it exceeds its limits on streams, at
    /// which the circuit is closed; `None`: it stays open.
    pub refusals_per_circuit: Option<u32>,
    /// Length of a point's queue of introductions; the point drops what exceeds it.
    pub introduction_queue: usize,
    /// The DoS extension of ESTABLISH_INTRO: how many introductions per second the relay forwards,
    /// and the burst. `None` omits the extension.
    pub introductions_per_second: Option<(u32, u32)>,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self {
            pending_rendezvous: 256,
            open_rendezvous: 4096,
            streams_per_circuit: 128,
            refusals_per_circuit: None,
            introduction_queue: 256,
            introductions_per_second: None,
        }
    }
}

/// The current limits, which may change, with the counters of refused requests.
#[derive(Debug)]
pub struct ServiceGuard {
    limits: watch::Receiver<ServiceLimits>,
    /// The most circuits for which there is memory.
    room: usize,
    /// Counts the requests that exceed a limit or are not valid.
    pub refused: RefusedCounts,
}

impl ServiceGuard {
    /// Applies the latest value of `limits` to new introductions, circuits and streams; those
    /// already open stay. Never allows more than `room` circuits of clients to be open.
    pub fn new(limits: watch::Receiver<ServiceLimits>, room: usize, refused: RefusedCounts) -> Self {
        Self { limits, room, refused }
    }

    /// A guard whose limits never change, with its own counters.
    pub fn fixed(limits: ServiceLimits) -> Self {
        Self::new(watch::channel(limits).1, usize::MAX, RefusedCounts::default())
    }

    /// The same guard for one service of the cluster, whose clients it counts.
    pub fn of_service(&self, service: ServiceId) -> Self {
        Self { limits: self.limits.clone(), room: self.room, refused: self.refused.of_service(service) }
    }

    /// The current limits.
    pub fn now(&self) -> ServiceLimits {
        *self.limits.borrow()
    }

    /// The current bounds on clients' circuits.
    pub(crate) fn circuits(&self) -> CircuitBounds {
        let ServiceLimits { pending_rendezvous, open_rendezvous, refusals_per_circuit: refusals, .. } = self.now();
        CircuitBounds { making: pending_rendezvous.max(1), open: open_rendezvous.min(self.room), refusals }
    }
}
