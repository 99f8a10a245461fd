//! The client side, for the commands.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{ControlError, MAX_RESPONSE, Request, Response, read_line, socket_path};

/// Sends a request to the daemon of the state directory `dir`, and waits at most `limit` for its
/// answer.
pub async fn call(dir: &Path, request: &Request, limit: Duration) -> Result<Response, ControlError> {
    let path = socket_path(dir)?;
    let failed = |action| {
        let path = path.clone();
        move |source| ControlError::Io { action, path, source }
    };
    let mut line = serde_json::to_vec(request).map_err(ControlError::Garbled)?;
    line.push(b'\n');
    let asked = async {
        let mut stream = UnixStream::connect(&path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NotRunning(dir.into()),
            io::ErrorKind::PermissionDenied => ControlError::NotAllowed(path.clone()),
            _ => failed("connect to")(error),
        })?;
        stream.write_all(&line).await.map_err(failed("write to"))?;
        read_line(&mut stream, MAX_RESPONSE).await.map_err(failed("read from"))
    };
    let answer = timeout(limit, asked).await.map_err(|_| ControlError::Timeout(limit))??;
    let answer = zeroize::Zeroizing::new(answer.ok_or(ControlError::BrokenOff)?);
    serde_json::from_slice(&answer).map_err(ControlError::Garbled)
}
