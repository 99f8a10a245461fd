//! Copies bytes both ways between a client and its target until both sides have ended or one fails.
//! If the operator has set these times, also until nothing has moved for the idle time, or one side
//! has not taken a byte for the stall time.
//!
//! Tor streams have no half-close: a client's END closes both ways. Targets do not know that, and
//! neither does code written for TCP sockets. So the end of one direction is passed on as a
//! shutdown, and the other direction goes on as long as it moves within the (shorter) half-close
//! time: a target may finish what it writes, but cannot linger.
//!
//! While the node stops, a stream on which nothing has moved for [`SLEEP`] since the target wrote
//! ends too. It is most likely a connection that a browser keeps for its next request.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::stream::BoxStream;

/// Minimum time between two reports that bytes move: each report takes a lock.
const REPORT: Duration = Duration::from_millis(500);

/// While the node stops: time without a byte since the target wrote after which a stream ends. A
/// stream whose client waits for an answer goes on.
pub(super) const SLEEP: Duration = Duration::from_secs(10);
/// Longest interval between two looks at a stream while the node stops.
const LOOK: Duration = Duration::from_secs(1);

/// Size of one read, in bytes: the payload of 32 relay cells, so that full cells go out.
const BUFFER: usize = 32 * 498;

thread_local! {
    /// Receives what is read. One for each thread is enough: a stream that waits for bytes then
    /// needs no buffer of its own, and most streams wait.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// The timeouts of one stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Longest time in which nothing moves either way; `None` for no bound.
    pub(super) idle: Option<Duration>,
    /// Longest time in which one side takes no byte that the other has sent; `None` for no bound.
    pub(super) stall: Option<Duration>,
    /// Longest time in which nothing moves after one side has ended.
    pub(super) half_closed: Duration,
}

/// How a stream ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Both sides have ended.
    Whole,
    /// One side had ended, and nothing moved for the half-close time.
    HalfClosed,
    /// Nothing moved for the idle time.
    Idle,
    /// The node stops, and nothing moved for [`SLEEP`] since the target wrote.
    Asleep,
    /// One side stopped taking bytes.
    Stalled,
    /// One side failed.
    Broken(io::Error),
}

/// The activity of a stream, reported to those that may have to close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamActivity {
    /// The client has sent its first bytes.
    Used,
    /// Bytes have moved, either way.
    Moved,
}

/// How a stream is watched while it is copied.
#[derive(Clone, Copy)]
pub(super) struct Watching<'a> {
    /// Takes its activity, at most every half second.
    pub(super) report: &'a (dyn Fn(StreamActivity) + Sync),
    /// Takes each number of bytes delivered; returns how long to pause then, if at all.
    pub(super) pace: &'a (dyn Fn(u64) -> Option<Duration> + Sync),
}

/// The direction in which bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromClient,
    ToClient,
}

/// When something last moved, and whether one side has ended.
struct Activity<'a> {
    times: Mutex<Times>,
    half_closed: AtomicBool,
    watching: Watching<'a>,
}

struct Times {
    last: Instant,
    /// The direction in which bytes moved last; to the client if none have moved.
    way: Direction,
    reported: Instant,
    used: bool,
}

impl<'a> Activity<'a> {
    fn new(watching: Watching<'a>) -> Self {
        let now = Instant::now();
        let times = Mutex::new(Times { last: now, way: Direction::ToClient, reported: now, used: false });
        Self { times, half_closed: AtomicBool::new(false), watching }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock()
    }

    /// Notes that bytes have moved, and reports the client's first bytes at once, others at most
    /// every [`REPORT`].
    fn touch(&self, direction: Direction) {
        let now = Instant::now();
        let activity = {
            let mut times = self.times();
            (times.last, times.way) = (now, direction);
            if direction == Direction::FromClient && !times.used {
                times.used = true;
                Some(StreamActivity::Used)
            } else if now >= times.reported + REPORT {
                times.reported = now;
                Some(StreamActivity::Moved)
            } else {
                None
            }
        };
        if let Some(activity) = activity {
            (self.watching.report)(activity);
        }
    }

    fn end_one_way(&self) {
        self.times().last = Instant::now();
        self.half_closed.store(true, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.times().last
    }

    /// Returns once nothing has moved for the idle time, for the half-close time if one side has
    /// ended, or for [`SLEEP`] after `stopping` if the client waits for no answer.
    async fn watch(&self, bounds: Bounds, stopping: &CancellationToken) -> Ended {
        // Looking again at least this often notices a half-close in time, without a channel for it.
        let wake_interval = bounds.idle.map_or(bounds.half_closed, |idle| idle.min(bounds.half_closed));
        loop {
            let stops = stopping.is_cancelled();
            let sleeps = stops && self.times().way == Direction::ToClient;
            let (limit, ended) = match self.half_closed.load(Ordering::Relaxed) {
                true => (Some(bounds.half_closed), Ended::HalfClosed),
                false if sleeps => (Some(bounds.idle.map_or(SLEEP, |idle| idle.min(SLEEP))), Ended::Asleep),
                false => (bounds.idle, Ended::Idle),
            };
            let look = Instant::now() + if stops { wake_interval.min(LOOK) } else { wake_interval };
            let deadline = limit.map(|limit| self.last() + limit);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return ended;
            }
            tokio::select! {
                () = sleep_until(deadline.map_or(look, |deadline| deadline.min(look))) => {}
                () = stopping.cancelled(), if !stops => {}
            }
        }
    }
}

/// Copies until the stream ends. `from_client` and `to_client` count the bytes delivered.
/// `stopping` is cancelled when the node stops.
pub(super) async fn copy_both(
    client: BoxStream,
    target: BoxStream,
    bounds: Bounds,
    watching: Watching<'_>,
    stopping: &CancellationToken,
    from_client: &AtomicU64,
    to_client: &AtomicU64,
) -> Ended {
    let (client_read, client_write) = tokio::io::split(client);
    let (target_read, target_write) = tokio::io::split(target);
    let activity = Activity::new(watching);
    let up = copy_one_way(client_read, target_write, bounds.stall, (&activity, Direction::FromClient), from_client);
    let down = copy_one_way(target_read, client_write, bounds.stall, (&activity, Direction::ToClient), to_client);
    tokio::select! {
        done = futures::future::try_join(up, down) => done.err().unwrap_or(Ended::Whole),
        ended = activity.watch(bounds, stopping) => ended,
    }
}

/// Copies one way until the reader ends, then shuts the writer down.
async fn copy_one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    stall: Option<Duration>,
    (activity, direction): (&Activity<'_>, Direction),
    bytes: &AtomicU64,
) -> Result<(), Ended> {
    // What was read and is not written yet; without memory while the stream waits.
    let mut buffer = Vec::new();
    let mut unflushed = false;
    loop {
        let read = match read_into(&mut from, &mut buffer).now_or_never() {
            Some(read) => read,
            // There is no more input yet: flush what is held back to fill a cell.
            None if unflushed => {
                within(stall, to.flush()).await?;
                unflushed = false;
                continue;
            }
            None => {
                buffer = Vec::new();
                read_into(&mut from, &mut buffer).await
            }
        };
        read.map_err(Ended::Broken)?;
        if buffer.is_empty() {
            break;
        }
        activity.touch(direction);
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let written = within(stall, to.write(rest)).await?;
            if written == 0 {
                return Err(Ended::Broken(io::ErrorKind::WriteZero.into()));
            }
            activity.touch(direction);
            bytes.fetch_add(written as u64, Ordering::Relaxed);
            rest = rest.get(written..).unwrap_or_default();
            if let Some(pause) = (activity.watching.pace)(written as u64) {
                // The other side gets what was written before the pause.
                within(stall, to.flush()).await?;
                sleep(pause).await;
            }
        }
        unflushed = true;
    }
    activity.end_one_way();
    within(stall, to.shutdown()).await
}

/// Replaces the content of `buffer` by the next bytes of the stream; by nothing at its end.
async fn read_into(from: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<()> {
    poll_fn(|context| {
        READ.with_borrow_mut(|read| {
            let mut read = ReadBuf::new(read);
            ready!(Pin::new(&mut *from).poll_read(context, &mut read))?;
            buffer.clear();
            buffer.extend_from_slice(read.filled());
            Poll::Ready(Ok(()))
        })
    })
    .await
}

/// Bounds a write by the stall time, if there is one.
async fn within<T>(stall: Option<Duration>, write: impl Future<Output = io::Result<T>>) -> Result<T, Ended> {
    let written = match stall {
        Some(stall) => timeout(stall, write).await.map_err(|_| Ended::Stalled)?,
        None => write.await,
    };
    written.map_err(Ended::Broken)
}
