//! Streams for the rest of the daemon: the requests on a circuit, and the bytes of accepted ones.
//!
//! [`serve`] serves one circuit: it offers each stream request to the daemon, until the circuit
//! closes or loses its place (see `crate::tor::circuits`) because it was idle or another circuit
//! needs the place.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tor_cell::relaycell::msg::{Connected, End, EndReason};
use tor_proto::client::stream::DataStream;
use tor_proto::stream::{IncomingStream, IncomingStreamRequest};

use crate::stream::BoxStream;
use crate::tor::circuits::{Place, StreamQuestion, StreamUse};
use crate::tor::{Incoming, Refused, RefusedCounts, Rejection, StreamRequest, TorError};

/// Time limit for the circuit to take the answer to a request.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A stream request that is not answered yet: on a circuit of a service of the cluster, or of the
/// node's own service.
#[async_trait]
pub(super) trait Pending: Send + 'static {
    /// The message with which the client requested the stream.
    fn request(&self) -> &IncomingStreamRequest;
    /// Sends CONNECTED to the client.
    async fn connect(self) -> Result<DataStream, Box<dyn std::error::Error + Send + Sync>>;
    /// Sends this END to the client.
    async fn refuse(self, end: End);
}

#[async_trait]
impl Pending for IncomingStream {
    fn request(&self) -> &IncomingStreamRequest {
        IncomingStream::request(self)
    }

    async fn connect(self) -> Result<DataStream, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.accept_data(Connected::new_empty()).await?)
    }

    async fn refuse(self, end: End) {
        let _ = self.reject(end).await;
    }
}

#[async_trait]
impl Pending for tor_hsservice::StreamRequest {
    fn request(&self) -> &IncomingStreamRequest {
        tor_hsservice::StreamRequest::request(self)
    }

    async fn connect(self) -> Result<DataStream, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.accept(Connected::new_empty()).await?)
    }

    async fn refuse(self, end: End) {
        let _ = self.reject(end).await;
    }
}

/// Offers the requests of one circuit on `streams`, until the circuit closes, loses its place, or
/// the receiver of `streams` is dropped. Only BEGIN for a port for which `open` returns true is
/// offered. If `streams` is full, the request is refused and counted.
pub(super) async fn serve<P: Pending>(
    requests: impl Stream<Item = P>,
    streams: &mpsc::Sender<Incoming>,
    open: impl Fn(u16) -> bool,
    refused: &RefusedCounts,
    place: &Arc<Place>,
) {
    let mut requests = std::pin::pin!(requests);
    loop {
        let left = place.left();
        if left.is_zero() {
            return;
        }
        let next = tokio::select! {
            () = place.closed().cancelled() => return,
            next = timeout(left, requests.next()) => next,
        };
        let request = match next {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(_) => continue,
        };
        let (port, request) = Request::new(request, place);
        let Some(port) = port.filter(|port| open(*port)) else {
            request.reject(Rejection::Unavailable).await;
            continue;
        };
        match streams.try_send(Incoming { port, circuit: place.id(), exported: Some(place.exported()), request }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(incoming)) => {
                refused.count(Refused::Queue);
                incoming.request.reject(Rejection::Unavailable).await;
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
}

/// The port of a BEGIN. The host is ignored: it is the address that the client typed.
fn begin_port(request: &IncomingStreamRequest) -> Option<u16> {
    match request {
        IncomingStreamRequest::Begin(begin) => Some(begin.port()).filter(|port| *port != 0),
        _ => None,
    }
}

/// Sends END to the client; gives up if the circuit does not take the message in time.
async fn refuse<P: Pending>(request: P, why: Rejection) {
    let reason = match why {
        Rejection::Refused => EndReason::CONNECTREFUSED,
        Rejection::Unavailable => EndReason::DONE,
    };
    let _ = timeout(ANSWER_LIMIT, request.refuse(End::new_with_reason(reason))).await;
}

/// A request that was offered to the daemon; dropping it rejects the stream.
struct Request<P: Pending> {
    pending: Option<P>,
    question: StreamQuestion,
}

impl<P: Pending> Request<P> {
    /// The request, with the port that it asks for if it is valid. On the heap, so that the task of
    /// a circuit that waits for requests has no memory for one.
    fn new(pending: P, place: &Arc<Place>) -> (Option<u16>, Box<Self>) {
        (begin_port(pending.request()), Box::new(Self { pending: Some(pending), question: place.asked() }))
    }
}

#[async_trait]
impl<P: Pending> StreamRequest for Request<P> {
    async fn accept(mut self: Box<Self>) -> Result<BoxStream, TorError> {
        let Some(pending) = self.pending.take() else {
            return Err(TorError::Invalid("this request was answered before".into(), None));
        };
        match timeout(ANSWER_LIMIT, pending.connect()).await {
            Ok(Ok(inner)) => Ok(Box::new(TorStream::new(inner, Some(self.question.place().accepted())))),
            Ok(Err(error)) => Err(TorError::Unreachable {
                to: "the client".into(),
                why: "it went away before it was answered".into(),
                source: Some(error),
            }),
            Err(_) => Err(TorError::Timeout { what: "accepting a client's stream".into(), limit: ANSWER_LIMIT }),
        }
    }

    async fn reject(mut self: Box<Self>, why: Rejection) {
        if let Some(pending) = self.pending.take() {
            refuse(pending, why).await;
        }
    }

    fn refuse_excess(self: Box<Self>) {
        self.question.place().exceeded();
    }
}

/// A stream over Tor that ends as a TCP stream would.
///
/// Arti closes a service's streams with END(MISC), and its interface offers no other reason. Arti's
/// client side reports END(MISC) as an error; here it is the end of the stream. Tor has no
/// half-close: after we have closed, bytes that have arrived can still be read, then the stream
/// ends.
pub(super) struct TorStream {
    inner: DataStream,
    /// The other side has closed.
    ended: bool,
    /// We have closed.
    closed: bool,
    /// Keeps the circuit from ending as idle; `None` on the client's side.
    hold: Option<StreamUse>,
}

impl TorStream {
    /// Wraps Arti's stream; `hold` is dropped with it.
    pub(super) fn new(inner: DataStream, hold: Option<StreamUse>) -> Self {
        Self { inner, ended: false, closed: false, hold }
    }

    fn moved(&mut self, bytes: usize) {
        if let Some(hold) = &mut self.hold {
            hold.moved(bytes);
        }
    }
}

/// True if this error is Arti's report of an ordinary END.
fn is_plain_end(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|source| source.downcast_ref::<tor_proto::Error>());
    matches!(cause, Some(tor_proto::Error::EndReceived(EndReason::MISC | EndReason::DONE)))
}

impl AsyncRead for TorStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match ready!(AsyncRead::poll_read(Pin::new(&mut self.inner), cx, buf)) {
            Ok(()) => {
                let read = buf.filled().len() - before;
                self.ended = read == 0;
                self.moved(read);
            }
            Err(error) if self.closed || is_plain_end(&error) => self.ended = true,
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TorStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(AsyncWrite::poll_write(Pin::new(&mut self.inner), cx, data));
        self.moved(written.as_ref().map_or(0, |written| *written));
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.inner), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Arti reports an error if either side has closed before; then there is nothing to close.
        let was_over = self.ended || self.closed;
        let outcome = ready!(AsyncWrite::poll_shutdown(Pin::new(&mut self.inner), cx));
        self.closed = true;
        Poll::Ready(if was_over { Ok(()) } else { outcome })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tor::circuits::{CircuitBounds, Circuits, RendezvousPoint};
    use tor_cell::relaycell::msg::{Begin, Resolve};

    /// A request that sends its answer to a channel: `None` for accepted, else the reason of END.
    struct Asked(IncomingStreamRequest, mpsc::Sender<Option<EndReason>>);

    #[async_trait]
    impl Pending for Asked {
        fn request(&self) -> &IncomingStreamRequest {
            &self.0
        }

        async fn connect(self) -> Result<DataStream, Box<dyn std::error::Error + Send + Sync>> {
            self.1.send(None).await.unwrap();
            Err("the client has gone".into())
        }

        async fn refuse(self, end: End) {
            self.1.send(Some(end.reason())).await.unwrap();
        }
    }

    fn begin(host: &str, port: u16) -> IncomingStreamRequest {
        Begin::new(host, port, 0).unwrap().into()
    }

    /// The place of an open circuit.
    fn place() -> Arc<Place> {
        let (bounds, refused) = (CircuitBounds { making: 1, open: 1, refusals: None }, RefusedCounts::default());
        let at = RendezvousPoint { relay: [1; 20], listed: true };
        let place = Arc::<Circuits>::default().introduce(at, bounds, &refused).unwrap();
        assert!(place.met());
        Arc::new(place)
    }

    #[tokio::test]
    async fn only_valid_streams_to_open_ports_are_offered_while_the_queue_has_room() {
        let (answer, mut answers) = mpsc::channel(9);
        let (streams, mut offered) = mpsc::channel(2);
        let refused = RefusedCounts::default();
        let asked = [
            begin("", 80),
            begin("", 81),
            begin("", 0),
            Resolve::new("x").into(),
            begin("any.host", 80),
            begin("", 80),
        ];
        let asked = futures::stream::iter(asked.map(|request| Asked(request, answer.clone())));
        serve(asked, &streams, |port| port != 81, &refused, &place()).await;
        drop((answer, streams));
        let first = offered.recv().await.unwrap();
        assert_eq!(first.port, 80);
        assert!(first.request.accept().await.is_err());
        offered.recv().await.unwrap().request.reject(Rejection::Refused).await;
        assert!(offered.recv().await.is_none());
        let mut all = Vec::new();
        while let Some(answer) = answers.recv().await {
            all.push(answer);
        }
        let (done, refused_by_target) = (Some(EndReason::DONE), Some(EndReason::CONNECTREFUSED));
        assert_eq!(all, [done, done, done, done, None, refused_by_target]);
        assert_eq!(refused.get(Refused::Queue), 1);
    }

    #[tokio::test]
    async fn a_circuit_ends_if_its_streams_are_not_taken() {
        let (answer, _answers) = mpsc::channel(9);
        let (streams, offered) = mpsc::channel(1);
        drop(offered);
        let endless = futures::stream::repeat_with(|| Asked(begin("", 80), answer.clone()));
        serve(endless, &streams, |_| true, &RefusedCounts::default(), &place()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_not_accepted_do_not_keep_a_circuit() {
        let (answer, mut answers) = mpsc::channel(99);
        let (streams, _offered) = mpsc::channel(1);
        let start = tokio::time::Instant::now();
        // A BEGIN for a closed port, every ten seconds.
        let scan = futures::stream::unfold(answer, |answer| async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Some((Asked(begin("", 81), answer.clone()), answer))
        });
        serve(scan, &streams, |port| port == 80, &RefusedCounts::default(), &place()).await;
        assert_eq!(start.elapsed().as_secs(), 30);
        assert_eq!(answers.recv().await, Some(Some(EndReason::DONE)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_circuit_without_requests_ends_soon() {
        let (streams, _offered) = mpsc::channel(1);
        let start = tokio::time::Instant::now();
        serve(futures::stream::pending::<Asked>(), &streams, |_| true, &RefusedCounts::default(), &place()).await;
        assert_eq!(start.elapsed().as_secs(), 30);
    }

    #[tokio::test]
    async fn a_circuit_that_waits_for_requests_takes_little_memory() {
        let (streams, _offered) = mpsc::channel(1);
        let (refused, place) = (RefusedCounts::default(), place());
        let waiting = serve(futures::stream::pending::<Asked>(), &streams, |_| true, &refused, &place);
        let size = size_of_val(&waiting);
        assert!(size <= 1024, "{size} bytes");
    }

    #[test]
    fn an_ordinary_end_is_distinguished_from_an_error() {
        let io = |reason| io::Error::from(tor_proto::Error::EndReceived(reason));
        assert!(is_plain_end(&io(EndReason::MISC)));
        assert!(is_plain_end(&io(EndReason::DONE)));
        assert!(!is_plain_end(&io(EndReason::CONNRESET)));
        assert!(!is_plain_end(&io::Error::from(tor_proto::Error::CircuitClosed)));
    }
}
