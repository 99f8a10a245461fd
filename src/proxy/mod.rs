//! Takes clients' streams from the Tor engine to the targets on this host.
//!
//! One enters with [`Proxy::run`] (a queue of streams) or [`Proxy::serve`] (one). For each stream,
//! the target of its virtual port is connected **first**; only then is the client told that it is
//! connected, so that a dead target is a refused stream and not an empty answer. Then bytes go both
//! ways until the stream ends (see `copy`). Streams at once are bounded, and which stay when there
//! is no room for all is decided in `plan`. What was refused or closed for that is counted by
//! reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::tor::{CircuitId, Incoming, Rejection, TorError};
use copy::{Bounds, Ended, Sign, copy_both};
use room::{Admitted, Room};

pub use target::{MAX_UNIX_PATH, PortTarget, Target, TargetError};

mod copy;
mod plan;
mod room;
mod target;

/// The longest that telling a client "connected" may take.
const ACCEPT_LIMIT: Duration = Duration::from_secs(30);

/// Bounds on what the proxy holds open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyLimits {
    /// Streams open at once, those that are being connected included.
    pub streams: usize,
    /// How long connecting to a target may take.
    pub connect: Duration,
    /// A stream on which nothing has moved for this long is closed; `None`: never, as with C tor,
    /// unless others need the room.
    pub idle: Option<Duration>,
    /// A stream of which one side has not taken a byte for this long is closed; `None`: never,
    /// likewise.
    pub stall: Option<Duration>,
    /// A stream of which one side has ended and nothing has moved for this long is closed.
    pub half_closed: Duration,
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            streams: 4096,
            connect: Duration::from_secs(5),
            idle: None,
            stall: None,
            half_closed: Duration::from_secs(30),
        }
    }
}

/// What has gone through, since start.
#[derive(Debug, Default)]
pub struct Traffic {
    streams_open: AtomicU64,
    streams_total: AtomicU64,
    from_clients: AtomicU64,
    to_clients: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
}

/// Why a stream was refused or cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No target is configured for its virtual port.
    UnknownPort,
    /// `[limits] streams` were open, and none of them could be closed for it.
    TooManyStreams,
    /// While most of the allowed streams were open, its circuit had its share.
    OverShare,
    /// It was closed because another needed the room.
    Evicted,
    /// The target refused, or did not answer in time.
    TargetDown,
    /// Nothing moved for the idle time.
    Idle,
    /// One side stopped reading.
    Stalled,
}

impl Refusal {
    /// All of them, in the order of `status`.
    pub const ALL: [Self; 7] = [
        Self::UnknownPort,
        Self::TooManyStreams,
        Self::OverShare,
        Self::Evicted,
        Self::TargetDown,
        Self::Idle,
        Self::Stalled,
    ];

    /// The name of its counter in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownPort => "streams_unknown_port",
            Self::TooManyStreams => "streams_over_limit",
            Self::OverShare => "streams_over_share",
            Self::Evicted => "streams_evicted",
            Self::TargetDown => "streams_target_down",
            Self::Idle => "streams_idle",
            Self::Stalled => "streams_stalled",
        }
    }
}

/// [`Traffic`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrafficCount {
    /// Streams open now.
    pub streams_open: u64,
    /// Streams accepted since start.
    pub streams_total: u64,
    /// Bytes that clients sent and targets took.
    pub from_clients: u64,
    /// Bytes that targets sent and clients took.
    pub to_clients: u64,
}

impl Traffic {
    /// The counts now.
    pub fn count(&self) -> TrafficCount {
        TrafficCount {
            streams_open: self.streams_open.load(Ordering::Relaxed),
            streams_total: self.streams_total.load(Ordering::Relaxed),
            from_clients: self.from_clients.load(Ordering::Relaxed),
            to_clients: self.to_clients.load(Ordering::Relaxed),
        }
    }

    /// How many streams were refused or cut off for this reason.
    pub fn refused(&self, why: Refusal) -> u64 {
        self.refused.get(why as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn refuse(&self, why: Refusal) {
        if let Some(count) = self.refused.get(why as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Counts a stream as open until it is dropped, whichever way its task ends.
struct OpenStream<'a>(&'a Traffic);

impl<'a> OpenStream<'a> {
    fn new(traffic: &'a Traffic) -> Self {
        traffic.streams_total.fetch_add(1, Ordering::Relaxed);
        traffic.streams_open.fetch_add(1, Ordering::Relaxed);
        Self(traffic)
    }
}

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        self.0.streams_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The proxy; a clone is a second handle on the same.
#[derive(Clone)]
pub struct Proxy {
    inner: Arc<Inner>,
}

struct Inner {
    ports: Vec<PortTarget>,
    limits: watch::Receiver<ProxyLimits>,
    /// Streams for which the process may open files.
    files: usize,
    room: Arc<Room>,
    traffic: Arc<Traffic>,
}

impl Proxy {
    /// A proxy for these virtual ports. It holds a stream to the latest `limits` when that begins, and never serves
    /// more than `files` streams at once.
    pub fn new(ports: Vec<PortTarget>, limits: watch::Receiver<ProxyLimits>, files: usize) -> Self {
        Self { inner: Arc::new(Inner { ports, limits, files, room: Arc::default(), traffic: Arc::default() }) }
    }

    /// The counters.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.inner.traffic.clone()
    }

    /// Serves every stream that comes until `shutdown`; then takes no more, lets the open ones end for `grace`, and
    /// cuts off the rest.
    pub async fn run(self, mut streams: mpsc::Receiver<Incoming>, shutdown: CancellationToken, grace: Duration) {
        let tasks = TaskTracker::new();
        let cut = CancellationToken::new();
        while let Some(Some(incoming)) = shutdown.run_until_cancelled(streams.recv()).await {
            // The place is taken before the task is made, so the tasks are bounded by it too.
            // Dropped, a request is rejected: a flood makes no tasks at all.
            let Some(admitted) = self.admit(incoming.circuit) else { continue };
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
            Some(admitted) => self.serve_admitted(incoming, admitted).await,
            None => incoming.request.reject(Rejection::Unavailable).await,
        }
    }

    fn admit(&self, circuit: CircuitId) -> Option<Admitted> {
        let Inner { limits, files, room, traffic, .. } = &*self.inner;
        let streams = limits.borrow().streams.min(*files);
        room.admit(circuit, streams).map_err(|why| traffic.refuse(why)).ok()
    }

    /// Serves a stream until it ends, or until another needs its room.
    async fn serve_admitted(&self, incoming: Incoming, admitted: Admitted) {
        let served = self.serve_whole(incoming, &admitted);
        if admitted.closed().run_until_cancelled(served).await.is_none() {
            self.inner.traffic.refuse(Refusal::Evicted);
        }
    }

    async fn serve_whole(&self, incoming: Incoming, admitted: &Admitted) {
        let Inner { ports, traffic, .. } = &*self.inner;
        let limits = self.inner.limits.borrow().clone();
        let Incoming { port, request, .. } = incoming;
        let Some(PortTarget { target, .. }) = ports.iter().find(|candidate| candidate.port == port) else {
            traffic.refuse(Refusal::UnknownPort);
            debug!(port, "refused a stream: no target is configured for its port");
            return request.reject(Rejection::Unavailable).await;
        };
        let connected = match timeout(limits.connect, target.connect()).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {:?}", limits.connect)),
        };
        let upstream = match connected {
            Ok(upstream) => upstream,
            Err(error) => {
                traffic.refuse(Refusal::TargetDown);
                debug!(port, %target, error, "refused a stream: its target cannot be reached");
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
        let _open = OpenStream::new(traffic);
        let bounds = Bounds { idle: limits.idle, stall: limits.stall, half_closed: limits.half_closed };
        let report = |sign: Sign| admitted.report(sign);
        match copy_both(client, upstream, bounds, &report, &traffic.from_clients, &traffic.to_clients).await {
            Ended::Whole | Ended::HalfClosed => {}
            Ended::Idle => traffic.refuse(Refusal::Idle),
            Ended::Stalled => traffic.refuse(Refusal::Stalled),
            Ended::Broken(error) => debug!(port, %error, "a stream broke off"),
        }
    }
}

#[cfg(test)]
mod tests;
