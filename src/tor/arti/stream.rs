//! Streams as the rest of the daemon sees them: client requests on a circuit, and the bytes once one is accepted.
//!
//! [`serve`] runs one circuit: it takes each request off it, bounds and offers it, and ends the circuit when nobody has
//! used it for a while.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
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

use crate::tor::{BoxStream, Incoming, RefusedCounts, StreamRequest, TorError};

/// For the answer to a request to reach the circuit.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A circuit without any stream is closed after this. Longer than a C tor client keeps one itself (10 minutes).
const IDLE_LIMIT: Duration = Duration::from_secs(15 * 60);

/// A circuit on which the client has not asked for anything at all is closed after this: clients make one because they
/// have a request waiting.
const FIRST_REQUEST_LIMIT: Duration = Duration::from_secs(120);

/// How often an idle circuit is looked at.
const IDLE_CHECK: Duration = Duration::from_secs(30);

/// A client's request on a circuit, on the master's circuits and on those of the node's own service alike.
#[async_trait]
pub(super) trait Pending: Send + 'static {
    /// What is asked for.
    fn request(&self) -> &IncomingStreamRequest;
    /// Tells the client that it is connected.
    async fn connect(self) -> Result<DataStream, Box<dyn std::error::Error + Send + Sync>>;
    /// Tells the client why not.
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

/// Offers the requests of one circuit on `streams` until the circuit closes, nobody takes them any more, or the circuit
/// has been idle for long. Only BEGIN for a port that `open` has is offered; what does not fit is refused and counted.
pub(super) async fn serve<P: Pending>(
    requests: impl Stream<Item = P>,
    streams: &mpsc::Sender<Incoming>,
    open: impl Fn(u16) -> bool,
    refused: &RefusedCounts,
) {
    let mut requests = std::pin::pin!(requests);
    // Each stream holds one: so we know how many are open.
    let in_use = Arc::new(());
    let mut idle = Duration::ZERO;
    let mut patience = FIRST_REQUEST_LIMIT;
    loop {
        match timeout(IDLE_CHECK, requests.next()).await {
            Ok(Some(request)) => {
                (idle, patience) = (Duration::ZERO, IDLE_LIMIT);
                let port = begin_port(request.request()).filter(|port| open(*port));
                let Some(port) = port else {
                    refuse(request, EndReason::CONNECTREFUSED).await;
                    continue;
                };
                let request = Box::new(Request { pending: Some(request), in_use: Arc::clone(&in_use) });
                match streams.try_send(Incoming { port, request }) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(incoming)) => {
                        refused.queue.fetch_add(1, Ordering::Relaxed);
                        incoming.request.reject().await;
                    }
                    Err(mpsc::error::TrySendError::Closed(_)) => return,
                }
            }
            Ok(None) => return,
            Err(_) if Arc::strong_count(&in_use) > 1 => idle = Duration::ZERO,
            Err(_) => {
                idle += IDLE_CHECK;
                if idle >= patience {
                    return;
                }
            }
        }
    }
}

/// The port of a BEGIN; the host does not matter: it is the address that the client typed.
fn begin_port(request: &IncomingStreamRequest) -> Option<u16> {
    match request {
        IncomingStreamRequest::Begin(begin) => Some(begin.port()).filter(|port| *port != 0),
        _ => None,
    }
}

/// Tells the client, unless the circuit does not take the message in time.
async fn refuse<P: Pending>(request: P, reason: EndReason) {
    let _ = timeout(ANSWER_LIMIT, request.refuse(End::new_with_reason(reason))).await;
}

/// A request on its way to whoever answers it.
struct Request<P: Pending> {
    pending: Option<P>,
    in_use: Arc<()>,
}

#[async_trait]
impl<P: Pending> StreamRequest for Request<P> {
    async fn accept(mut self: Box<Self>) -> Result<BoxStream, TorError> {
        let Some(pending) = self.pending.take() else {
            return Err(TorError::Invalid("this request was answered before".into(), None));
        };
        match timeout(ANSWER_LIMIT, pending.connect()).await {
            Ok(Ok(inner)) => Ok(Box::new(TorStream::new(inner, Some(Arc::clone(&self.in_use))))),
            Ok(Err(e)) => Err(TorError::Unreachable {
                to: "the client".into(),
                why: "it went away before it was answered".into(),
                source: Some(e),
            }),
            Err(_) => Err(TorError::Timeout { what: "accepting a client's stream".into(), limit: ANSWER_LIMIT }),
        }
    }

    async fn reject(mut self: Box<Self>) {
        if let Some(pending) = self.pending.take() {
            refuse(pending, EndReason::CONNECTREFUSED).await;
        }
    }
}

/// A stream over Tor that ends as a TCP stream would.
///
/// Arti's own services close streams with END(MISC), there is no public way to send another reason, and Arti's client
/// side takes that for an error; here it is the end of the stream. Tor knows no half-close: once we have closed, what
/// has arrived can still be read, and then the stream ends.
pub(super) struct TorStream {
    inner: DataStream,
    /// The other side has closed.
    ended: bool,
    /// We have closed.
    closed: bool,
    _in_use: Option<Arc<()>>,
}

impl TorStream {
    /// Wraps it; `in_use` lives as long as the stream.
    pub(super) fn new(inner: DataStream, in_use: Option<Arc<()>>) -> Self {
        Self { inner, ended: false, closed: false, _in_use: in_use }
    }
}

/// True if this error is but how Arti reports an ordinary END.
fn is_plain_end(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|e| e.downcast_ref::<tor_proto::Error>());
    matches!(cause, Some(tor_proto::Error::EndReceived(EndReason::MISC | EndReason::DONE)))
}

impl AsyncRead for TorStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match ready!(AsyncRead::poll_read(Pin::new(&mut self.inner), cx, buf)) {
            Ok(()) => self.ended = buf.filled().len() == before,
            Err(e) if self.closed || is_plain_end(&e) => self.ended = true,
            Err(e) => return Poll::Ready(Err(e)),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TorStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.inner), cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.inner), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Where either side has closed before there is nothing left to close, which Arti reports as an error.
        let was_over = self.ended || self.closed;
        let outcome = ready!(AsyncWrite::poll_shutdown(Pin::new(&mut self.inner), cx));
        self.closed = true;
        Poll::Ready(if was_over { Ok(()) } else { outcome })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tor_cell::relaycell::msg::{Begin, Resolve};

    /// Tells how it was answered.
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

    #[tokio::test]
    async fn only_what_is_open_and_fits_is_offered() {
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
        serve(asked, &streams, |port| port != 81, &refused).await;
        drop((answer, streams));
        let first = offered.recv().await.unwrap();
        assert_eq!(first.port, 80);
        assert!(first.request.accept().await.is_err());
        offered.recv().await.unwrap().request.reject().await;
        assert!(offered.recv().await.is_none());
        let mut all = Vec::new();
        while let Some(answer) = answers.recv().await {
            all.push(answer);
        }
        let refusal = Some(EndReason::CONNECTREFUSED);
        assert_eq!(all, [refusal, refusal, refusal, refusal, None, refusal]);
        assert_eq!(refused.queue.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_circuit_ends_when_nobody_takes_its_streams() {
        let (answer, _answers) = mpsc::channel(9);
        let (streams, offered) = mpsc::channel(1);
        drop(offered);
        let endless = futures::stream::repeat_with(|| Asked(begin("", 80), answer.clone()));
        serve(endless, &streams, |_| true, &RefusedCounts::default()).await;
    }

    #[test]
    fn an_ordinary_end_is_told_from_an_error() {
        let io = |reason| io::Error::from(tor_proto::Error::EndReceived(reason));
        assert!(is_plain_end(&io(EndReason::MISC)));
        assert!(is_plain_end(&io(EndReason::DONE)));
        assert!(!is_plain_end(&io(EndReason::CONNRESET)));
        assert!(!is_plain_end(&io::Error::from(tor_proto::Error::CircuitClosed)));
    }
}
