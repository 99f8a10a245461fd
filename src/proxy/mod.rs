//! Carries clients' streams from the Tor engine to the targets.
//!
//! Enter with [`Proxy::run`] (a queue of streams) or [`Proxy::serve`] (one). For each stream the
//! target of its virtual port is connected **first**; only then is the stream accepted, so that a
//! client of a dead target sees a refused stream and not an empty answer. Then bytes are copied
//! both ways until the stream ends (see `copy`). The number of open streams is bounded, and `plan`
//! decides which of them stay when there are too many; it also decides what one circuit may do.
//! Refused and closed streams are counted by reason. `header` tells a target which streams come on
//! one circuit, if it wants to know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustbalance_gossip::id::ServiceId;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::bucket::Rate;
use crate::counters::{Counter, Counters, PortCounters, ServiceCounters, add_one};
use crate::tor::{CircuitId, Incoming, Rejection, TorError};
use copy::{Bounds, Ended, StreamActivity, Watching, copy_both};
use plan::RateBounds;
use room::{Admitted, StreamRoom};

pub use check::{CheckKind, ExpectedHeader, HeaderLine, Pin, PortCheck, StatusRange};
pub use connect::{Connector, ONION_LIMIT, OnionDialer, Resolver, is_out_of_descriptors};
pub use denied::is_denied;
pub use header::ProxyProtocol;
pub use private::{HostName, is_private};
pub use target::{MAX_UNIX_PATH, PortTarget, Target, TargetError};

mod check;
mod connect;
mod copy;
mod denied;
mod header;
mod plan;
mod private;
mod room;
mod target;

/// Time limit for accepting a stream, that is for sending CONNECTED to the client.
const ACCEPT_LIMIT: Duration = Duration::from_secs(30);

/// Bounds on the streams of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyLimits {
    /// Streams open at once, including those that are being connected.
    pub streams: usize,
    /// How long connecting to a target may take.
    pub connect: Duration,
    /// A stream on which nothing has moved for this long is closed. `None`: never, as with C tor,
    /// unless its place is needed for another stream.
    pub idle: Option<Duration>,
    /// A stream is closed if one side has not taken a byte for this long. `None`: never, likewise.
    pub stall: Option<Duration>,
    /// A stream is closed if one side has ended and nothing has moved for this long.
    pub half_closed: Duration,
    /// Streams that a circuit may open per second, and the burst; `None` for no bound.
    pub circuit_streams_per_second: Option<(u32, u32)>,
    /// Bytes that the streams of a circuit may carry per second, both ways together; `None` for no
    /// bound.
    pub circuit_bytes_per_second: Option<u64>,
    /// How long a node that stops serves the streams that are open.
    pub shutdown: Duration,
}

impl ProxyLimits {
    fn rates(&self) -> RateBounds {
        let streams = self.circuit_streams_per_second.map(|(rate, burst)| Rate::per_second(rate.into(), burst.into()));
        // After a pause a circuit may carry at once what it may carry in a second.
        let bytes = self.circuit_bytes_per_second.map(|rate| Rate::per_second(rate, rate));
        RateBounds { streams, bytes }
    }
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            streams: 4096,
            connect: Duration::from_secs(5),
            idle: None,
            stall: None,
            half_closed: Duration::from_secs(30),
            circuit_streams_per_second: None,
            circuit_bytes_per_second: None,
            shutdown: Duration::from_secs(60),
        }
    }
}

/// Counts a stream as open until it is dropped, however its task ends.
struct OpenStream<'a>(&'a PortCounters);

impl<'a> OpenStream<'a> {
    fn new(counters: &'a PortCounters) -> Self {
        add_one(&counters.streams_accepted);
        add_one(&counters.streams_open);
        Self(counters)
    }
}

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        self.0.streams_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The proxy of one service; a clone is a second handle on the same.
#[derive(Clone)]
pub struct Proxy {
    targets: watch::Receiver<Vec<PortTarget>>,
    of_service: Arc<ServiceCounters>,
    connector: Connector,
    /// Takes the ports whose target a client's stream could not be connected to.
    failures: Option<mpsc::Sender<u16>>,
    shared: Arc<Shared>,
}

/// The state that the proxies of all services of a node share.
struct Shared {
    limits: watch::Receiver<ProxyLimits>,
    /// Most streams for which the process has file descriptors.
    files: usize,
    room: Arc<StreamRoom>,
    counters: Counters,
    /// Cancelled when the node stops.
    stopping: CancellationToken,
}

impl Proxy {
    /// A proxy without ports, to make the proxies of services from. A stream keeps the `limits`
    /// that applied when it began. Never serves more than `files` streams at once.
    pub fn new(limits: watch::Receiver<ProxyLimits>, files: usize, counters: Counters) -> Self {
        let targets = watch::channel(Vec::new()).1;
        let shared =
            Arc::new(Shared { limits, files, room: Arc::default(), counters, stopping: CancellationToken::new() });
        Self { targets, of_service: Arc::default(), connector: Connector::without_tor(), failures: None, shared }
    }

    /// Connects targets with `connector` from now on.
    pub fn connecting_with(self, connector: Connector) -> Self {
        Self { connector, ..self }
    }

    /// Reports the port of each stream whose target could not be connected to `failures`.
    pub fn reporting_to(self, failures: mpsc::Sender<u16>) -> Self {
        Self { failures: Some(failures), ..self }
    }

    /// A proxy for the virtual ports of a service. A stream keeps the target that its port had when
    /// it began. The proxies of a node share the bounds and the counters, so the bound on open
    /// streams holds for all of them together.
    pub fn with_targets(&self, service: ServiceId, targets: watch::Receiver<Vec<PortTarget>>) -> Self {
        let of_service = self.shared.counters.service(service);
        // A port is counted from the start, not from its first stream.
        for PortTarget { port, .. } in &*targets.borrow() {
            of_service.port(*port);
        }
        Self { targets, of_service, ..self.clone() }
    }

    /// Most streams that may be open at once now, over all services of the node.
    pub fn most_streams(&self) -> usize {
        self.shared.limits.borrow().streams.min(self.shared.files)
    }

    /// How long a node that stops serves the streams that are open.
    pub fn shutdown_limit(&self) -> Duration {
        self.shared.limits.borrow().shutdown
    }

    /// Ends the streams of all services that no client waits at, from now on: the node stops.
    pub fn end_sleeping(&self) {
        self.shared.stopping.cancel();
    }

    /// Serves every stream that comes until `shutdown`; then accepts no more, gives the open ones
    /// `grace` to end, and cuts off the rest.
    pub async fn run(self, mut streams: mpsc::Receiver<Incoming>, shutdown: CancellationToken, grace: Duration) {
        let tasks = TaskTracker::new();
        let cut = CancellationToken::new();
        while let Some(Some(incoming)) = shutdown.run_until_cancelled(streams.recv()).await {
            // Admitted before a task is spawned, so that a flood of requests spawns no tasks.
            // Dropping `incoming` rejects the stream.
            let admitted = match self.admit(incoming.circuit) {
                Ok(admitted) => admitted,
                Err(Counter::CircuitStreamsOverRate) => {
                    incoming.request.refuse_excess();
                    continue;
                }
                Err(_) => continue,
            };
            let (proxy, cut) = (self.clone(), cut.clone());
            tasks.spawn(async move { cut.run_until_cancelled(proxy.serve_admitted(incoming, admitted)).await });
        }
        streams.close();
        tasks.close();
        if timeout(grace, tasks.wait()).await.is_err() {
            debug!(open = tasks.len(), "cutting off the streams that are still open");
            cut.cancel();
            tasks.wait().await;
        }
    }

    /// Serves one stream to its end.
    pub async fn serve(&self, incoming: Incoming) {
        match self.admit(incoming.circuit) {
            Ok(admitted) => self.serve_admitted(incoming, admitted).await,
            Err(Counter::CircuitStreamsOverRate) => incoming.request.refuse_excess(),
            Err(_) => incoming.request.reject(Rejection::Unavailable).await,
        }
    }

    /// The target of a virtual port now.
    fn target(&self, port: u16) -> Option<PortTarget> {
        self.targets.borrow().iter().find(|candidate| candidate.port == port).cloned()
    }

    /// A place for a stream of this circuit; else the counter of the refusal, which is counted.
    fn admit(&self, circuit: CircuitId) -> Result<Admitted, Counter> {
        let Shared { room, counters, limits, .. } = &*self.shared;
        let rates = limits.borrow().rates();
        room.admit(circuit, self.most_streams(), rates).inspect_err(|why| counters.count(*why))
    }

    /// Serves a stream until it ends, or until another stream takes its place.
    async fn serve_admitted(&self, incoming: Incoming, admitted: Admitted) {
        // Boxed, because `run_until_cancelled` has memory for several copies of what it runs.
        let served = Box::pin(self.serve_whole(incoming, &admitted));
        if admitted.closed().run_until_cancelled(served).await.is_none() {
            self.shared.counters.count(Counter::StreamsEvicted);
        }
    }

    async fn serve_whole(&self, incoming: Incoming, admitted: &Admitted) {
        let counters = &self.shared.counters;
        let limits = self.shared.limits.borrow().clone();
        let Incoming { port, request, exported, .. } = incoming;
        let Some(target) = self.target(port) else {
            counters.count(Counter::StreamsUnknownPort);
            debug!(port, "refused a stream: no target is configured for its port");
            return request.reject(Rejection::Unavailable).await;
        };
        let of_port = self.of_service.port(port);
        let began = Instant::now();
        // Boxed: a stream that is served needs no memory for connecting.
        let connecting = Box::pin(self.connector.connect_port(&target, exported, limits.connect));
        let upstream = match connecting.await {
            Ok(upstream) => {
                of_port.connect_time.observe(began.elapsed());
                upstream
            }
            Err(error) => {
                counters.count(Counter::StreamsTargetDown);
                if let Some(failures) = &self.failures
                    && !error.raw_os_error().is_some_and(is_out_of_descriptors)
                {
                    // If the queue is full, enough failures wait in it already.
                    let _ = failures.try_send(port);
                }
                debug!(port, target = %target.target, %error, "refused a stream: its target cannot be reached");
                return request.reject(Rejection::Refused).await;
            }
        };
        let accepted = timeout(ACCEPT_LIMIT, request.accept()).await;
        let client = match accepted
            .unwrap_or_else(|_| Err(TorError::Timeout { what: "accepting a stream".into(), limit: ACCEPT_LIMIT }))
        {
            Ok(client) => client,
            Err(error) => return debug!(port, %error, "a client went away before its stream was accepted"),
        };
        let _open = OpenStream::new(&of_port);
        let bounds = Bounds { idle: limits.idle, stall: limits.stall, half_closed: limits.half_closed };
        let report = |activity: StreamActivity| admitted.report(activity);
        let slowed = AtomicBool::new(false);
        let pace = |bytes: u64| {
            let pause = admitted.carried(bytes);
            if pause.is_some() && !slowed.swap(true, Ordering::Relaxed) {
                counters.count(Counter::CircuitStreamsSlowed);
            }
            pause
        };
        let (from_client, to_client) = (&of_port.bytes_from_clients, &of_port.bytes_to_clients);
        let watching = Watching { report: &report, pace: &pace };
        let stopping = &self.shared.stopping;
        match copy_both(client, upstream, bounds, watching, stopping, from_client, to_client).await {
            Ended::Whole | Ended::HalfClosed | Ended::Asleep => {}
            Ended::Idle => counters.count(Counter::StreamsIdle),
            Ended::Stalled => counters.count(Counter::StreamsStalled),
            Ended::Broken(error) => debug!(port, %error, "a stream broke off"),
        }
    }
}

#[cfg(test)]
mod tests;
