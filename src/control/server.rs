//! The server side: one task for each caller, at most [`CALLERS`] at once.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::{ControlError, LINE_LIMIT, LINE_ROOM, MAX_REQUEST, Request, Response, SOCKET_NAME, path_of, read_line};

/// Callers served at once; further ones wait in the socket's own queue.
const CALLERS: usize = 16;
/// How long answering one request may take: `leave` waits until the other nodes know.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// How much more of an overlong line is read, in bytes, and for how long, so that its sender can
/// read the answer.
const MAX_REST: u64 = 65_536;
const REST_LIMIT: Duration = Duration::from_secs(1);

/// Answers the requests.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. Dropped after [`ANSWER_LIMIT`].
    async fn handle(&self, request: Request) -> Response;
}

/// Listens on the control socket in the state directory `dir`.
///
/// # Errors
/// See [`bind_socket`].
pub fn bind(dir: &Path) -> Result<UnixListener, ControlError> {
    bind_socket(dir, SOCKET_NAME)
}

/// Listens on the Unix socket `name` in the state directory `dir`. Its mode keeps other users out.
///
/// The caller holds the lock of the directory, so a socket found there is left over from a daemon
/// that is gone. A socket that still answers is left alone all the same.
///
/// # Errors
/// The path is too long, a socket there answers, or the system refuses.
pub fn bind_socket(dir: &Path, name: &str) -> Result<UnixListener, ControlError> {
    let path = path_of(dir, name)?;
    let failed = |action| {
        let path = path.clone();
        move |source| ControlError::Io { action, path, source }
    };
    match StdStream::connect(&path) {
        Ok(_) => return Err(ControlError::AlreadyRunning(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(&path).map_err(failed("remove"))?;
        }
        Err(error) => return Err(failed("make")(error)),
    }
    let listener = UnixListener::bind(&path).map_err(failed("make"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
    Ok(listener)
}

/// Answers callers until `shutdown`; then finishes the answers under way and removes the socket.
pub async fn serve(listener: UnixListener, handler: Arc<dyn Handler>, shutdown: CancellationToken) {
    let room = Arc::new(Semaphore::new(CALLERS));
    let tasks = TaskTracker::new();
    let accepting = async {
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let handler = handler.clone();
                    tasks.spawn(async move {
                        if let Err(error) = answer(stream, &*handler).await {
                            debug!(%error, "a control connection broke off");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Most likely there is no free file descriptor: retrying at once would spin.
                    warn!(name: "control_accept_failed", %error, "cannot accept a control connection");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    };
    shutdown.run_until_cancelled(accepting).await;
    tasks.close();
    // A `leave` triggers this shutdown and must still be answered.
    let _ = timeout(LINE_LIMIT, tasks.wait()).await;
    if let Some(path) = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_path_buf)) {
        let _ = fs::remove_file(path);
    }
}

/// Reads one request and writes one answer.
async fn answer(mut stream: UnixStream, handler: &dyn Handler) -> io::Result<()> {
    let line = timeout(LINE_LIMIT, read_line(&mut stream, MAX_REQUEST)).await??;
    let response = match line.as_deref().map(serde_json::from_slice::<Request>) {
        None => Response::refused(format!("a request is one line of at most {MAX_REQUEST} bytes")),
        Some(Err(error)) => Response::refused(format!("the request cannot be read: {error}")),
        Some(Ok(request)) => timeout(ANSWER_LIMIT, handler.handle(request))
            .await
            .unwrap_or_else(|_| Response::refused(format!("the request was not carried out within {ANSWER_LIMIT:?}"))),
    };
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_ROOM));
    serde_json::to_writer(&mut *line, &response)?;
    line.push(b'\n');
    timeout(LINE_LIMIT, stream.write_all(&line)).await??;
    stream.shutdown().await?;
    // If a Unix socket is closed with input unread, the caller loses the answer that it has not
    // read yet.
    let rest = timeout(REST_LIMIT, tokio::io::copy(&mut stream.take(MAX_REST), &mut tokio::io::sink())).await;
    rest.map(|_| ()).or(Ok(()))
}
