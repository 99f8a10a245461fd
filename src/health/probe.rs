//! One check of one target: connects, and if wanted sends an HTTP request and looks at the answer.
//!
//! The request says what it is (`User-Agent: RustBalance/0.1.0 health check`). Nothing of the
//! answer is trusted: its headers and what is read of its body are bounded, redirects are not
//! followed, and the whole check has one time limit. The body is read only if a text is expected in
//! it, and only until the text is found.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderMap, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::tls::{self, TlsError};
use crate::causes::with_causes;
use crate::proxy::{
    CheckKind, Connector, ExpectedHeader, PortCheck, PortTarget, StatusRange, Target, is_denied, is_out_of_descriptors,
};
use crate::stream::BoxStream;

/// Most bytes of an answer's status line and headers, the least that hyper can be set to.
const MOST_HEADER_BYTES: usize = 8192;
/// Most headers of an answer.
const MOST_HEADERS: usize = 100;
/// Most bytes of a body in which a text is looked for.
const MOST_BODY_BYTES: usize = 64 * 1024;

/// Why a target fails its check. The texts reach `status`, the log and `rustbalance check`.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("{0}")]
    Connect(String),
    #[error("TLS fails")]
    Tls(#[from] TlsError),
    #[error("the target does not answer in HTTP")]
    Http(#[source] hyper::Error),
    #[error("the headers of the answer are larger than {MOST_HEADER_BYTES} bytes, or more than {MOST_HEADERS}")]
    TooManyHeaders,
    #[error("the request cannot be made: correct [port.health]")]
    Request(#[source] hyper::http::Error),
    #[error("the answer has status {got}, and {expected} is expected{hint}")]
    Status { got: StatusCode, expected: StatusRange, hint: &'static str },
    #[error("the answer does not have the header \"{0}\"")]
    Header(ExpectedHeader),
    #[error("{0:?} is not in the body, of which at most {MOST_BODY_BYTES} bytes are read")]
    Body(String),
}

/// Checks a target once, within `limit`. An error says why it failed; `None` if this process had no
/// free file descriptor.
pub async fn ask(port: &PortTarget, limit: Duration, connector: &Connector) -> Option<Result<(), String>> {
    let why = match timeout(limit, probe(port, limit, connector)).await {
        Ok(Ok(())) => return Some(Ok(())),
        Ok(Err(Failed::NoDescriptors(error))) => {
            warn!(
                name: "target_check_lacks_files",
                %error,
                "cannot check a target: this process has too many files open, raise its limit (ulimit -n)"
            );
            return None;
        }
        Ok(Err(Failed::Check(error @ ProbeError::Connect(_)))) => {
            explain_denied(with_causes(&error), is_denied(&port.target).await)
        }
        Ok(Err(Failed::Check(error))) => with_causes(&error),
        Err(_) => explain_denied(format!("no answer within {limit:?}"), is_denied(&port.target).await),
    };
    Some(Err(described(&port.check, &why)))
}

/// Why a target does not answer. If this host denies its network to the daemon, says so: the
/// operator reaches it by hand, and the unit's rules only drop what the daemon sends.
fn explain_denied(why: String, denied: bool) -> String {
    if !denied {
        return why;
    }
    format!(
        "{why}; this host keeps the daemon from private networks, because rustbalance.service has IPAddressDeny=: \
         unless IPAddressAllow= names this one already, install the drop-in private-network.conf"
    )
}

/// The failure with what was asked, unless that was only to connect.
fn described(check: &PortCheck, why: &str) -> String {
    match check.kind() {
        CheckKind::Connect => why.to_owned(),
        CheckKind::Http | CheckKind::Https => format!("{check}: {why}"),
    }
}

/// Why a check did not succeed.
enum Failed {
    /// This process has no free file descriptor.
    NoDescriptors(io::Error),
    Check(ProbeError),
}

impl From<ProbeError> for Failed {
    fn from(error: ProbeError) -> Self {
        Self::Check(error)
    }
}

async fn probe(port: &PortTarget, limit: Duration, connector: &Connector) -> Result<(), Failed> {
    let (target, check) = (&port.target, &port.check);
    let stream = match connector.connect_port(port, None, limit).await {
        Ok(stream) => stream,
        Err(error) if error.raw_os_error().is_some_and(is_out_of_descriptors) => {
            return Err(Failed::NoDescriptors(error));
        }
        Err(error) => return Err(ProbeError::Connect(explain(target, &error)).into()),
    };
    match check.kind() {
        CheckKind::Connect => Ok(()),
        CheckKind::Http => Ok(request(stream, target, check).await?),
        CheckKind::Https => {
            let stream = tls::connect(stream, &name_of(target, check), check).await.map_err(ProbeError::Tls)?;
            Ok(request(Box::new(stream), target, check).await?)
        }
    }
}

/// The value of `Host`.
fn host_of(target: &Target, check: &PortCheck) -> String {
    match (&check.host, target) {
        (Some(host), _) => host.clone(),
        (None, Target::Unix(_)) => "localhost".into(),
        (None, target) => target.to_string(),
    }
}

/// The name that the target's certificate must have: the host without its port.
fn name_of(target: &Target, check: &PortCheck) -> String {
    let host = host_of(target, check);
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => &host,
    };
    name.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// Sends the request, and looks at the answer.
async fn request(stream: BoxStream, target: &Target, check: &PortCheck) -> Result<(), ProbeError> {
    let mut request = Request::get(check.path.as_deref().unwrap_or("/"))
        .header(HOST, host_of(target, check))
        .header(USER_AGENT, concat!("RustBalance/", env!("CARGO_PKG_VERSION"), " health check"))
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close");
    for header in &check.headers {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(ProbeError::Request)?;
    let mut http = http1::Builder::new();
    http.max_buf_size(MOST_HEADER_BYTES).max_headers(MOST_HEADERS);
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(ProbeError::Http)?;
    // Ends with this function. Its error is also the sender's.
    let _connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
    let answer = sender.send_request(request).await.map_err(|error| match error.is_parse_too_large() {
        true => ProbeError::TooManyHeaders,
        false => ProbeError::Http(error),
    })?;
    judge(answer, check).await
}

async fn judge(answer: Response<Incoming>, check: &PortCheck) -> Result<(), ProbeError> {
    let expected = check.expect_status.clone().unwrap_or_default();
    let got = answer.status();
    if !expected.contains(got.as_u16()) {
        let hint = if got.is_redirection() { " (a check does not follow redirects)" } else { "" };
        return Err(ProbeError::Status { got, expected, hint });
    }
    if let Some(missing) = check.expect_headers.iter().find(|expected| !has(answer.headers(), expected)) {
        return Err(ProbeError::Header(missing.clone()));
    }
    match &check.expect_body {
        Some(text) => find(answer.into_body(), text).await,
        None => Ok(()),
    }
}

fn has(headers: &HeaderMap, expected: &ExpectedHeader) -> bool {
    let mut values = headers.get_all(&expected.name).iter();
    match &expected.value {
        Some(value) => values.any(|candidate| candidate == value),
        None => values.next().is_some(),
    }
}

/// Reads a body until it contains `text`.
async fn find(mut body: Incoming, text: &str) -> Result<(), ProbeError> {
    let (mut read, text_bytes) = (Vec::new(), text.as_bytes());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(ProbeError::Http)?.into_data() else { continue };
        // The text may begin in an earlier frame.
        let from = (read.len() + 1).saturating_sub(text_bytes.len());
        let room = MOST_BODY_BYTES - read.len();
        read.extend_from_slice(&data[..data.len().min(room)]);
        if read[from..].windows(text_bytes.len().max(1)).any(|window| window == text_bytes) {
            return Ok(());
        }
        if read.len() >= MOST_BODY_BYTES {
            break;
        }
    }
    Err(ProbeError::Body(text.to_owned()))
}

/// Directories that `rustbalance.service` hides from the daemon: it sees them empty (`PrivateTmp=`)
/// or not at all (`ProtectHome=`).
const HIDDEN_BY_THE_UNIT: [&str; 5] = ["/tmp", "/var/tmp", "/home", "/root", "/run/user"];

/// Why a target could not be reached. If the sandbox of `rustbalance.service` may hide the path,
/// says so, because the operator, who is outside of it, does see the socket.
fn explain(target: &Target, error: &io::Error) -> String {
    let unseen = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
    match target {
        Target::Unix(path) if unseen && HIDDEN_BY_THE_UNIT.iter().any(|hidden| path.starts_with(hidden)) => format!(
            "{error}; under systemd the daemon does not see this path even if the socket is there, because \
             rustbalance.service has PrivateTmp= and ProtectHome=: put the socket under /run"
        ),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
