//! Circuits and streams between two nodes of the fake network.
//!
//! Bytes are delayed by the latency and wait while either node is frozen or the two are severed.
//! The end of one direction ends both, as on Tor.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::world::Node;
use crate::places::{self, Places};
use crate::stream::BoxStream;
use crate::tor::circuits::{CircuitId, Place, StreamUse};
use crate::tor::{Incoming, Refused, RefusedCounts, Rejection, ServiceGuard, StreamRequest, TorError};

/// Bytes buffered at each end, per direction: about a stream's window on the real network.
const WINDOW: usize = 64 * 1024;
/// Largest chunk of bytes that is delayed and delivered at once.
const CHUNK: usize = 16 * 1024;

/// The faults that are set on the network now.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    /// One-way delay of every chunk and every step of a handshake.
    pub(super) latency: Duration,
    /// Nodes whose traffic is stopped.
    pub(super) frozen: BTreeSet<usize>,
    /// Pairs of nodes between which traffic is stopped, the lower number first.
    pub(super) severed: BTreeSet<(usize, usize)>,
}

impl Faults {
    pub(super) fn pair(one: usize, other: usize) -> (usize, usize) {
        (one.min(other), one.max(other))
    }

    fn passable(&self, (one, other): (usize, usize)) -> bool {
        !self.frozen.contains(&one) && !self.frozen.contains(&other) && !self.severed.contains(&Self::pair(one, other))
    }
}

/// The path between two nodes.
#[derive(Clone)]
pub(super) struct Path {
    pub(super) faults: watch::Receiver<Faults>,
    pub(super) between: (usize, usize),
}

impl Path {
    /// Waits until no fault blocks the path, and then for the latency.
    pub(super) async fn pass(&self) {
        let mut faults = self.faults.clone();
        let passable = faults.wait_for(|faults| faults.passable(self.between)).await;
        let Some(latency) = passable.ok().map(|faults| faults.latency) else {
            // The network was dropped.
            return std::future::pending().await;
        };
        if !latency.is_zero() {
            sleep(latency).await;
        }
    }
}

/// A circuit from a client to a service. As in real clients, later streams to the same address use
/// it again.
pub(super) struct Circuit {
    pub(super) client: Node,
    pub(super) server: Node,
    pub(super) path: Path,
    pub(super) streams: mpsc::Sender<Incoming>,
    /// Bounds on the streams; `None` for a node's own service, which the fake does not bound.
    pub(super) limits: Option<Arc<ServiceGuard>>,
    /// Counts the refusals of a node's own service; `None` for a service of the cluster.
    pub(super) refused: Option<Arc<RefusedCounts>>,
    /// Open ports of a node's own service; `None` for a service of the cluster, which is offered
    /// streams to any port.
    pub(super) ports: Option<Vec<u16>>,
    /// Cancelled when the circuit must close. The death of either node ends it too.
    pub(super) ended: CancellationToken,
    pub(super) open_streams: Places,
    /// Held while the circuit is open; `None` for a node's own service.
    pub(super) place: Option<Arc<Place>>,
}

impl Circuit {
    /// True while streams can be opened on it.
    pub(super) fn usable(&self) -> bool {
        !self.ended.is_cancelled() && !self.server.dead.is_cancelled() && !self.client.dead.is_cancelled()
    }

    /// Counts a stream that exceeds a bound.
    fn count(&self) {
        let refused = self.limits.as_ref().map(|limits| &limits.refused).or(self.refused.as_deref());
        if let Some(refused) = refused {
            refused.count(Refused::Stream);
        }
    }

    /// Requests a stream and waits for the answer.
    pub(super) async fn open_stream(self: &Arc<Self>, port: u16) -> Result<BoxStream, StreamRefused> {
        self.path.pass().await;
        if !self.usable() {
            return Err(StreamRefused::Gone);
        }
        if self.ports.as_ref().is_some_and(|ports| !ports.contains(&port)) {
            return Err(StreamRefused::Rejected);
        }
        let most = self.limits.as_ref().map_or(usize::MAX, |limits| limits.now().streams_per_circuit);
        let Some(open) = self.open_streams.take(most) else {
            self.count();
            if let Some(place) = &self.place {
                place.exceeded();
            }
            return Err(StreamRefused::Rejected);
        };
        let (client, client_end) = duplex(WINDOW);
        let (server, server_end) = duplex(WINDOW);
        let (answer, answered) = oneshot::channel();
        let request = Box::new(Request { answer, stream: server, place: self.place.clone() });
        let circuit = self.place.as_ref().map_or(CircuitId(0), |place| place.id());
        let _asked = self.place.as_ref().map(Place::asked);
        let exported = self.place.as_ref().map(|place| place.exported());
        self.streams.try_send(Incoming { port, circuit, exported, request }).map_err(|_| {
            self.count();
            StreamRefused::Rejected
        })?;
        let ended = async {
            tokio::select! {
                () = self.ended.cancelled() => {}
                () = self.server.dead.cancelled() => {}
            }
        };
        tokio::select! {
            answer = answered => answer.map_err(|_| StreamRefused::Rejected)?,
            () = ended => return Err(StreamRefused::Gone),
        }
        let kept = self.place.as_ref().map(Place::accepted);
        tokio::spawn(Arc::clone(self).carry(client_end, server_end, open, kept));
        self.path.pass().await;
        Ok(Box::new(client))
    }

    /// Moves the bytes of one stream until either side ends it, which ends both directions.
    async fn carry(
        self: Arc<Self>,
        client: DuplexStream,
        server: DuplexStream,
        _open: places::Place,
        kept: Option<StreamUse>,
    ) {
        let (client_out, client_in) = split(client);
        let (server_out, server_in) = split(server);
        let kept = Mutex::new(kept);
        tokio::select! {
            _ = one_way(client_out, server_in, &self.path, &kept) => {}
            _ = one_way(server_out, client_in, &self.path, &kept) => {}
            () = self.ended.cancelled() => {}
            () = self.client.dead.cancelled() => {}
            () = self.server.dead.cancelled() => {}
        }
    }
}

/// Why a stream was not opened.
pub(super) enum StreamRefused {
    /// The service rejected it.
    Rejected,
    /// The circuit is closed.
    Gone,
}

async fn one_way(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    path: &Path,
    kept: &Mutex<Option<StreamUse>>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        path.pass().await;
        if length == 0 {
            return Ok(());
        }
        if let Some(kept) = kept.lock().as_mut() {
            kept.moved(length);
        }
        to.write_all(&chunk[..length]).await?;
    }
}

/// A stream request. Dropping it rejects the stream.
struct Request {
    answer: oneshot::Sender<()>,
    stream: DuplexStream,
    place: Option<Arc<Place>>,
}

#[async_trait]
impl StreamRequest for Request {
    async fn accept(self: Box<Self>) -> Result<BoxStream, TorError> {
        self.answer.send(()).map_err(|()| TorError::Unreachable {
            to: "the client".into(),
            why: "it has given up".into(),
            source: None,
        })?;
        Ok(Box::new(self.stream))
    }

    async fn reject(self: Box<Self>, _why: Rejection) {}

    fn refuse_excess(self: Box<Self>) {
        if let Some(place) = &self.place {
            place.exceeded();
        }
    }
}
