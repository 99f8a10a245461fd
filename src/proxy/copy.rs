//! Copies bytes both ways between a client and the target until one of four things happens: both sides have ended, one
//! fails, nothing has moved for the idle time, or one side has not taken a byte for the stall time.
//!
//! Tor streams have no half-close: a client's END closes both ways. Targets do not know that, and neither does the
//! code on a TCP socket. So the end of one direction is passed on as a shutdown, and the other direction goes on for as
//! long as it moves within the (shorter) half-close time: a target may finish what it writes, and none can linger.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

use crate::tor::BoxStream;

/// One read: 32 relay cells' worth of payload, so that whole cells go out.
const BUFFER: usize = 32 * 498;

/// The bounds of one stream's life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Nothing has moved either way.
    pub(super) idle: Duration,
    /// One side does not take what the other has sent.
    pub(super) stall: Duration,
    /// Nothing has moved since one side ended.
    pub(super) half_closed: Duration,
}

/// How a stream ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Both sides are done.
    Whole,
    /// One side had ended and the other did nothing for the half-close time.
    HalfClosed,
    /// Nothing moved for the idle time.
    Idle,
    /// One side stopped taking bytes.
    Stalled,
    /// One side broke off.
    Broken(io::Error),
}

/// When something last moved, and whether one side has ended.
struct Activity {
    last: Mutex<Instant>,
    half_closed: AtomicBool,
}

impl Activity {
    fn touch(&self) {
        *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Returns once nothing has moved for as long as is allowed now.
    async fn watch(&self, bounds: Bounds) -> Ended {
        // Looking again at least this often notices a half-close in time without a channel for it.
        let beat = bounds.half_closed.min(bounds.idle);
        loop {
            let (limit, ended) = match self.half_closed.load(Ordering::Relaxed) {
                true => (bounds.half_closed, Ended::HalfClosed),
                false => (bounds.idle, Ended::Idle),
            };
            let deadline = self.last() + limit;
            if Instant::now() >= deadline {
                return ended;
            }
            sleep_until(deadline.min(Instant::now() + beat)).await;
        }
    }
}

/// Copies until the stream ends. `from_client` and `to_client` count the bytes delivered.
pub(super) async fn copy_both(
    client: BoxStream,
    target: BoxStream,
    bounds: Bounds,
    from_client: &AtomicU64,
    to_client: &AtomicU64,
) -> Ended {
    let (client_read, client_write) = tokio::io::split(client);
    let (target_read, target_write) = tokio::io::split(target);
    let activity = Activity { last: Mutex::new(Instant::now()), half_closed: AtomicBool::new(false) };
    let up = copy_one_way(client_read, target_write, bounds.stall, &activity, from_client);
    let down = copy_one_way(target_read, client_write, bounds.stall, &activity, to_client);
    tokio::select! {
        done = futures::future::try_join(up, down) => done.err().unwrap_or(Ended::Whole),
        ended = activity.watch(bounds) => ended,
    }
}

/// Copies one way until the reader ends, and passes the end on.
async fn copy_one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    stall: Duration,
    activity: &Activity,
    bytes: &AtomicU64,
) -> Result<(), Ended> {
    let mut buffer = vec![0; BUFFER];
    let mut unflushed = false;
    loop {
        let read = match from.read(&mut buffer).now_or_never() {
            Some(read) => read,
            // Nothing more at once: what is held back for a fuller cell has to go out now.
            None if unflushed => {
                within(stall, to.flush()).await?;
                unflushed = false;
                continue;
            }
            None => from.read(&mut buffer).await,
        };
        let length = read.map_err(Ended::Broken)?;
        if length == 0 {
            break;
        }
        activity.touch();
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let written = within(stall, to.write(rest)).await?;
            if written == 0 {
                return Err(Ended::Broken(io::ErrorKind::WriteZero.into()));
            }
            activity.touch();
            bytes.fetch_add(written as u64, Ordering::Relaxed);
            rest = rest.get(written..).unwrap_or_default();
        }
        unflushed = true;
    }
    activity.touch();
    activity.half_closed.store(true, Ordering::Relaxed);
    within(stall, to.shutdown()).await
}

/// Bounds a write by the stall time.
async fn within<T>(stall: Duration, write: impl Future<Output = io::Result<T>>) -> Result<T, Ended> {
    timeout(stall, write).await.map_err(|_| Ended::Stalled)?.map_err(Ended::Broken)
}
