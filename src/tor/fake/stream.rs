//! Bytes between two nodes: delayed, held up while either is cut off, ended together.

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

/// Bytes that may be under way in one direction: about a stream's window on the real network.
const WINDOW: usize = 64 * 1024;
/// Bytes that travel together.
const CHUNK: usize = 16 * 1024;

/// What is wrong with the network now.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    /// Each way, for every chunk and every step of a handshake.
    pub(super) latency: Duration,
    /// Nodes to and from which nothing gets through.
    pub(super) frozen: BTreeSet<usize>,
    /// Pairs of nodes between which nothing gets through.
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

/// The way between two nodes.
#[derive(Clone)]
pub(super) struct Path {
    pub(super) faults: watch::Receiver<Faults>,
    pub(super) between: (usize, usize),
}

impl Path {
    /// Travels it once: waits until it is passable, and for the latency.
    pub(super) async fn pass(&self) {
        let mut faults = self.faults.clone();
        let passable = faults.wait_for(|faults| faults.passable(self.between)).await;
        let Some(latency) = passable.ok().map(|faults| faults.latency) else {
            // The network has gone; so has everybody on it.
            return std::future::pending().await;
        };
        if !latency.is_zero() {
            sleep(latency).await;
        }
    }
}

/// A circuit from a client to a service: later streams to the same address use it again, as real clients do.
pub(super) struct Circuit {
    pub(super) client: Node,
    pub(super) server: Node,
    pub(super) path: Path,
    pub(super) streams: mpsc::Sender<Incoming>,
    /// Bounds on the streams; a node's own service has none here.
    pub(super) limits: Option<Arc<ServiceGuard>>,
    /// Counts what a node's own service refuses.
    pub(super) refused: Option<Arc<RefusedCounts>>,
    /// Ports of a node's own service; streams to the master address are offered whatever their port.
    pub(super) ports: Option<Vec<u16>>,
    /// Ends it besides the death of either node.
    pub(super) ended: CancellationToken,
    pub(super) open_streams: Places,
    /// Held while the circuit is open; one to a node's own service has none here.
    pub(super) place: Option<Arc<Place>>,
}

impl Circuit {
    /// True while streams can be opened on it.
    pub(super) fn usable(&self) -> bool {
        !self.ended.is_cancelled() && !self.server.dead.is_cancelled() && !self.client.dead.is_cancelled()
    }

    /// Counts a stream too many.
    fn count(&self) {
        let refused = self.limits.as_ref().map(|limits| &limits.refused).or(self.refused.as_deref());
        if let Some(refused) = refused {
            refused.count(Refused::Stream);
        }
    }

    /// Asks for a stream and waits for the answer.
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
            return Err(StreamRefused::Rejected);
        };
        let (client, client_end) = duplex(WINDOW);
        let (server, server_end) = duplex(WINDOW);
        let (answer, answered) = oneshot::channel();
        let request = Box::new(Request { answer, stream: server });
        let circuit = self.place.as_ref().map_or(CircuitId(0), |place| place.id());
        self.streams.try_send(Incoming { port, circuit, request }).map_err(|_| {
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

    /// Moves the bytes of one stream until either side ends it: as on Tor, that ends both directions.
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

/// Why there is no stream.
pub(super) enum StreamRefused {
    /// The service says no.
    Rejected,
    /// The circuit is no more.
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
            kept.moved();
        }
        to.write_all(&chunk[..length]).await?;
    }
}

/// A stream asked for. Dropped without an answer, its client is told no.
struct Request {
    answer: oneshot::Sender<()>,
    stream: DuplexStream,
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
}
