//! Posts an alert to a webhook: to an onion service through Tor, or to a loopback address.
//!
//! The request is plain HTTP: a connection to an onion service is encrypted, and proves the
//! service's identity by itself. Redirects are not followed, because they could lead to other
//! hosts. The onion address is dialled for the webhook alone, and Tor never shares a circuit
//! between two onion services, so the webhook's service cannot see what else this node does.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustbalance_gossip::id::OnionAddress;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::headers::{self, HeadersError};
use crate::blocking::on_disk;
use crate::stream::BoxStream;
use crate::tor::{Engine, TorError};

/// Port of a URL that names none.
const HTTP_PORT: u16 = 80;
/// Longest URL, in bytes.
const LONGEST: usize = 2048;
/// Bytes of the answer's line and headers that are read, the least that hyper can be set to.
const ANSWER: usize = 8192;

/// The URL of a webhook. Its path may be a secret, so only the host is ever shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    host: Host,
    port: u16,
    /// As it was written, with the query.
    path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    Onion(OnionAddress),
    Loopback(IpAddr),
}

/// Why a text is not the URL of a webhook. Never shows the path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// Not a URL.
    #[error("it is not a URL of at most {LONGEST} bytes: {FORMS}")]
    Form,
    /// HTTPS or something else.
    #[error(
        "it begins with {0:?}: write http://, because a connection to an onion service is encrypted anyway, and one to \
         this host needs no encryption"
    )]
    Scheme(String),
    /// A name and a password before the host.
    #[error("it has a user name before the host: put an Authorization header into the file that webhook_headers names")]
    User,
    /// Another host: the request would leave Tor.
    #[error(
        "{0:?} is neither an onion address nor a loopback address: alerts never leave this host outside of Tor; {FORMS}"
    )]
    OtherHost(String),
    /// An onion address that is mistyped.
    #[error("{0}")]
    Onion(String),
    /// Port 0.
    #[error("it has port 0, which nothing listens on")]
    PortZero,
}

/// What a URL looks like.
const FORMS: &str = "write \"http://<address>.onion/path\" or \"http://127.0.0.1:8080/path\"";

impl FromStr for Webhook {
    type Err = WebhookError;

    fn from_str(text: &str) -> Result<Self, WebhookError> {
        let uri: Uri = Some(text)
            .filter(|text| text.len() <= LONGEST)
            .and_then(|text| text.parse().ok())
            .ok_or(WebhookError::Form)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(other) => return Err(WebhookError::Scheme(format!("{other}://"))),
            None => return Err(WebhookError::Form),
        }
        let authority = uri.authority().ok_or(WebhookError::Form)?;
        if authority.as_str().contains('@') {
            return Err(WebhookError::User);
        }
        let port = match authority.port() {
            // A port that is not one, such as 99999.
            None if authority.as_str() != authority.host() => return Err(WebhookError::Form),
            None => HTTP_PORT,
            Some(port) if port.as_u16() == 0 => return Err(WebhookError::PortZero),
            Some(port) => port.as_u16(),
        };
        let host = host(authority.host())?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { host, port, path })
    }
}

fn host(text: &str) -> Result<Host, WebhookError> {
    let lower = text.to_ascii_lowercase();
    if lower.ends_with(".onion") {
        return lower
            .parse()
            .map(Host::Onion)
            .map_err(|error: <OnionAddress as FromStr>::Err| WebhookError::Onion(error.to_string()));
    }
    let address: Option<IpAddr> = lower.trim_start_matches('[').trim_end_matches(']').parse().ok();
    match address.filter(IpAddr::is_loopback) {
        Some(address) => Ok(Host::Loopback(address)),
        None => Err(WebhookError::OtherHost(text.chars().take(80).collect())),
    }
}

impl Webhook {
    /// The URL as it was configured.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.authority(), self.path)
    }

    /// Whether it is reached through Tor, as text without the address and the path.
    pub fn shown(&self) -> &'static str {
        match self.host {
            Host::Onion(_) => "an onion service",
            Host::Loopback(_) => "a loopback address",
        }
    }

    fn authority(&self) -> String {
        match (self.host, self.port) {
            (Host::Onion(address), HTTP_PORT) => address.to_string(),
            (Host::Onion(address), port) => format!("{address}:{port}"),
            (Host::Loopback(ip), port) => SocketAddr::new(ip, port).to_string(),
        }
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Webhook(to {})", self.shown())
    }
}

/// Why a webhook has not taken an alert.
#[derive(Debug, thiserror::Error)]
pub enum WebhookRefused {
    /// The file with headers cannot be used.
    #[error(transparent)]
    Headers(#[from] HeadersError),
    /// The onion service is not reached.
    #[error("cannot reach the webhook: {0}")]
    Tor(#[from] TorError),
    /// The loopback address is not reached.
    #[error("cannot reach the webhook on this host: {0}")]
    Io(#[from] std::io::Error),
    /// It does not speak HTTP, or breaks off.
    #[error("the webhook does not answer with HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// It took too long.
    #[error("the webhook has not answered within {0:?}")]
    TimedOut(Duration),
    /// It answered, but not with success.
    #[error("the webhook answers with status {0}")]
    Status(StatusCode),
    /// The request cannot be made.
    #[error("cannot make the request: {0}")]
    Request(#[from] hyper::http::Error),
}

/// Posts a JSON text, within `limit`. `headers`: the file with further headers.
pub(super) async fn post(
    engine: &dyn Engine,
    to: &Webhook,
    headers: Option<PathBuf>,
    json: String,
    limit: Duration,
) -> Result<(), WebhookRefused> {
    let posting = async {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(to.path.as_str())
            .header(HOST, to.authority())
            .header(CONTENT_TYPE, "application/json")
            .header(CONNECTION, "close")
            .body(Full::new(Bytes::from(json)))?;
        let own = HeaderValue::from_static(concat!("rustbalance/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, own);
        if let Some(file) = headers {
            request.headers_mut().extend(on_disk(|| headers::read(&file))?);
        }
        let stream = connect(engine, to, limit).await?;
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(ANSWER).handshake(TokioIo::new(stream)).await?;
        let status = tokio::select! {
            response = sender.send_request(request) => response?.status(),
            // It ends first only if it fails, and then the request does, too.
            Err(error) = connection => return Err(error.into()),
        };
        match status.is_success() {
            true => Ok(()),
            false => Err(WebhookRefused::Status(status)),
        }
    };
    timeout(limit, posting).await.unwrap_or(Err(WebhookRefused::TimedOut(limit)))
}

async fn connect(engine: &dyn Engine, to: &Webhook, limit: Duration) -> Result<BoxStream, WebhookRefused> {
    match to.host {
        Host::Onion(address) => Ok(engine.dial(address, to.port, limit).await?),
        Host::Loopback(ip) => {
            #[expect(clippy::disallowed_methods, reason = "a loopback address, never a name")]
            let stream = TcpStream::connect(SocketAddr::new(ip, to.port)).await?;
            Ok(Box::new(stream))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUCK: &str = "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion";

    #[test]
    fn a_webhook_is_an_onion_service_or_on_this_host() {
        for text in [
            &format!("http://{DUCK}/hook?key=1")[..],
            &format!("http://{DUCK}:8080/"),
            "http://127.0.0.1:8080/a/b",
            "http://[::1]:80/",
        ] {
            assert_eq!(text.parse::<Webhook>().map(|webhook| webhook.url()).as_deref(), Ok(text));
        }
        assert_eq!("http://127.0.0.1".parse::<Webhook>().unwrap().url(), "http://127.0.0.1:80/");
        let upper = format!("HTTP://{}/x", DUCK.to_ascii_uppercase());
        assert_eq!(upper.parse::<Webhook>().unwrap().url(), format!("http://{DUCK}/x"));
    }

    #[test]
    fn no_other_host_is_accepted_and_no_path_is_shown() {
        let mistyped = DUCK.replace("duckduck", "duckdukc");
        for (text, why) in [
            ("https://127.0.0.1/s3cret", "begins with \"https://\""),
            ("http://example.com/s3cret", "\"example.com\" is neither"),
            ("http://192.0.2.1/s3cret", "\"192.0.2.1\" is neither"),
            ("http://10.0.0.1:80/s3cret", "neither"),
            ("http://0.0.0.0/s3cret", "neither"),
            ("http://[::ffff:127.0.0.1]/s3cret", "neither"),
            ("http://localhost/s3cret", "neither"),
            ("http://127.0.0.1.example.com/s3cret", "neither"),
            ("http://s3cret@127.0.0.1/", "user name"),
            ("http://127.0.0.1:0/s3cret", "port 0"),
            ("http://127.0.0.1:99999/s3cret", "not a URL"),
            ("127.0.0.1:80", "not a URL"),
            ("/s3cret", "not a URL"),
            ("", "not a URL"),
            (&format!("http://{mistyped}/s3cret"), "checksum"),
            (&format!("http://www.{DUCK}/s3cret"), "characters"),
            (&format!("http://{DUCK}.example.com/s3cret"), "neither"),
            (&format!("http://127.0.0.1/{}", "a".repeat(LONGEST)), "at most 2048 bytes"),
        ] {
            let error = text.parse::<Webhook>().unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("s3cret"), "{text}: {error}");
        }
        let webhook: Webhook = "http://127.0.0.1/s3cret".parse().unwrap();
        assert_eq!(format!("{webhook:?}"), "Webhook(to a loopback address)");
    }
}
