//! The HTTP server: one request for each connection, bounded in size, number and time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderName};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::Source;
use super::exposition::{Format, as_text, open_metrics};
use crate::stream::BoxStream;

/// Connections served at once; further ones wait in the listener's own queue.
const CONNECTIONS: usize = 16;
/// Bytes of a request's line and headers, the least that hyper can be set to.
const HEADERS: usize = 8192;
/// How long a request's headers may take to arrive.
const HEADER_LIMIT: Duration = Duration::from_secs(5);
/// How long a connection may last, from its first byte to the end of the answer.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// How long the node may take to show that it is alive.
const ALIVE_LIMIT: Duration = Duration::from_secs(5);
/// Requests within this time after a reading share it, so that many requests read the node's state
/// no more often than this.
const SHARED: Duration = Duration::from_secs(1);
/// Pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_secs(1);

/// What the server answers with.
pub struct Exporter {
    source: Arc<dyn Source>,
    last: Mutex<Option<Arc<Answer>>>,
}

/// The answers made from one reading.
struct Answer {
    at: Instant,
    /// Empty if it could not be written.
    open_metrics: String,
    /// Why the node does not serve clients; `None` if it does.
    unready: Option<String>,
}

impl Exporter {
    /// Answers with the state of this node.
    pub fn new(source: Arc<dyn Source>) -> Self {
        Self { source, last: Mutex::default() }
    }

    /// A reading that is at most [`SHARED`] old.
    async fn answer(&self) -> Arc<Answer> {
        let mut last = self.last.lock().await;
        if let Some(answer) = last.as_ref().filter(|answer| answer.at.elapsed() < SHARED) {
            return Arc::clone(answer);
        }
        let reading = self.source.read();
        let unready = reading.status.unready();
        let open_metrics = open_metrics(reading).unwrap_or_default();
        let answer = Arc::new(Answer { at: Instant::now(), open_metrics, unready });
        *last = Some(Arc::clone(&answer));
        answer
    }

    async fn respond(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let text = |status, text: String| response(status, (CONTENT_TYPE, "text/plain; charset=utf-8"), text);
        if ![Method::GET, Method::HEAD].contains(method) {
            let why = "only GET and HEAD are answered\n";
            return response(StatusCode::METHOD_NOT_ALLOWED, (ALLOW, "GET, HEAD"), why.into());
        }
        match path {
            "/metrics" => {
                let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
                let (format, answer) = (Format::accepted(accept), self.answer().await);
                let body = match format {
                    Format::OpenMetrics => answer.open_metrics.clone(),
                    Format::Text => as_text(&answer.open_metrics),
                };
                response(StatusCode::OK, (CONTENT_TYPE, format.content_type()), body)
            }
            "/health" => match timeout(ALIVE_LIMIT, self.source.answers()).await {
                Ok(()) => text(StatusCode::OK, "alive\n".into()),
                Err(_) => {
                    let why = format!("the task that decides for this node has not answered for {ALIVE_LIMIT:?}\n");
                    text(StatusCode::SERVICE_UNAVAILABLE, why)
                }
            },
            "/ready" => match &self.answer().await.unready {
                None => text(StatusCode::OK, "ready\n".into()),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /health and /ready\n".into()),
        }
    }
}

fn response(status: StatusCode, header: (HeaderName, &'static str), body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header.0, hyper::header::HeaderValue::from_static(header.1));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}

/// Where the server listens.
pub enum MetricsListener {
    /// A Unix socket, whose mode decides who may ask.
    Unix(UnixListener),
    /// A loopback address: every user of this host may ask.
    Loopback(TcpListener),
}

impl MetricsListener {
    /// Listens on a loopback address.
    ///
    /// # Errors
    /// The system refuses, or the address can be reached from other hosts.
    pub async fn loopback(address: SocketAddr) -> io::Result<Self> {
        if !address.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a loopback address"));
        }
        #[expect(clippy::disallowed_methods, reason = "a loopback address, if the operator wants it")]
        let listener = TcpListener::bind(address).await?;
        Ok(Self::Loopback(listener))
    }

    async fn accept(&self) -> io::Result<BoxStream> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
            Self::Loopback(listener) => Box::new(listener.accept().await?.0),
        })
    }

    /// Whether a request with these headers may be answered. A web page can have its name resolve
    /// to 127.0.0.1, and so have a browser on this host ask the server and read the answer. But
    /// then the browser names the page's host.
    fn allows(&self, headers: &HeaderMap) -> bool {
        let Self::Loopback(_) = self else { return true };
        // HTTP/1.0 has no such header, and browsers do not speak it.
        headers.get(HOST).is_none_or(|host| host.to_str().is_ok_and(is_loopback))
    }
}

/// Whether the value of `Host`, with or without a port, is a loopback address or `localhost`.
fn is_loopback(host: &str) -> bool {
    let without_port = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let address = |text: &str| text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    without_port.eq_ignore_ascii_case("localhost")
        || [host, without_port].into_iter().filter_map(address).any(|address| address.is_loopback())
}

/// Answers requests until `stop`. Then removes the Unix socket.
pub async fn serve(listener: MetricsListener, exporter: Arc<Exporter>, stop: CancellationToken) {
    let (listener, room, tasks) = (Arc::new(listener), Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new());
    let accepting = async {
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok(stream) => {
                    let (listener, exporter) = (Arc::clone(&listener), Arc::clone(&exporter));
                    tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
                        answer(stream, &listener, &exporter).await;
                        drop(permit);
                    }));
                }
                Err(error) => {
                    // Most likely there is no free file descriptor: retrying at once would spin.
                    warn!(name: "monitor_accept_failed", %error, "cannot accept a connection of a monitor");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
    tasks.close();
    tasks.wait().await;
    if let MetricsListener::Unix(listener) = &*listener
        && let Some(path) = listener.local_addr().ok().as_ref().and_then(|address| address.as_pathname())
    {
        remove(path);
    }
}

fn remove(path: &Path) {
    // The next start removes a socket that is left over.
    let _ = std::fs::remove_file(path);
}

/// Answers the one request of a connection.
async fn answer(stream: BoxStream, listener: &MetricsListener, exporter: &Exporter) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let response = match listener.allows(request.headers()) {
            true => exporter.respond(request.method(), request.uri().path(), request.headers()).await,
            false => {
                let why = "ask by a loopback address or as localhost: another name in Host may be a web page's\n";
                response(StatusCode::FORBIDDEN, (CONTENT_TYPE, "text/plain; charset=utf-8"), why.into())
            }
        };
        Ok::<_, std::convert::Infallible>(response)
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(HEADERS).timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection of a monitor broke off"),
        Err(_) => debug!("a connection of a monitor took too long"),
    }
}

#[cfg(test)]
mod tests;
