//! The owner's end of a stream through the tunnel.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::Shared;
use super::machine::StreamId;
use super::stack::Blocked;

/// A stream. Dropping it delivers what was written, and ends it.
pub(super) struct TunnelEnd {
    pub(super) shared: Arc<Shared>,
    pub(super) id: StreamId,
}

/// The tasks that wait for a stream.
#[derive(Default)]
pub(super) struct Wakers {
    read: Option<Waker>,
    write: Option<Waker>,
}

impl Wakers {
    pub(super) fn wake(self) {
        self.read.into_iter().chain(self.write).for_each(Waker::wake);
    }
}

/// The error of a stream whose peer is gone, or whose engine has stopped.
fn broken() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "the peer does not answer through the tunnel, or has ended the stream",
    )
}

impl TunnelEnd {
    /// Reads or writes, or waits until that is possible. Wakes the engine if bytes have moved.
    fn attempt(
        &self,
        waker: impl FnOnce(&mut Wakers) -> &mut Option<Waker>,
        context: &Context<'_>,
        attempt: impl FnOnce(&mut super::Machine) -> Result<usize, Blocked>,
    ) -> Poll<io::Result<usize>> {
        let mut state = self.shared.state.lock();
        if state.has_stopped {
            return Poll::Ready(Err(broken()));
        }
        match attempt(&mut state.machine) {
            Ok(count) => {
                drop(state);
                if count > 0 {
                    self.shared.changed.notify_one();
                }
                Poll::Ready(Ok(count))
            }
            Err(Blocked::Broken) => Poll::Ready(Err(broken())),
            Err(Blocked::Wait) => {
                let waker = waker(state.wakers.entry(self.id).or_default());
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncRead for TunnelEnd {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let id = self.id;
        let room = buffer.initialize_unfilled();
        if room.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let read = self.attempt(|wakers| &mut wakers.read, context, |machine| machine.read(id, room));
        read.map_ok(|count| buffer.advance(count))
    }
}

impl AsyncWrite for TunnelEnd {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let id = self.id;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.attempt(|wakers| &mut wakers.write, context, |machine| machine.write(id, bytes))
    }

    /// What is written is sent without a flush.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.state.lock().machine.close(self.id);
        self.shared.changed.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelEnd {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.wakers.remove(&self.id);
        state.dials.remove(&self.id);
        state.machine.release(self.id, Instant::now());
        drop(state);
        self.shared.changed.notify_one();
    }
}
