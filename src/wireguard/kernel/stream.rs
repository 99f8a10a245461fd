//! Streams through the interface: TCP sockets of the kernel, bound to the mesh address and to the
//! interface. An address alone would not do: Linux takes packets for any address of the host on
//! every interface.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Pending streams of all peers.
const BACKLOG: u32 = 32;
/// Silence after which a stream ends, and the interval at which a silent one asks, as in the
/// userspace engine: a stream to a peer that has restarted must not hang.
const SILENCE: Duration = Duration::from_secs(8);
const KEEPALIVE: Duration = Duration::from_secs(1);

/// What a stream holds while it is open.
pub(super) struct Hold {
    /// Cancelled when the node is no longer a peer.
    pub(super) cut: CancellationToken,
    pub(super) _place: Arc<()>,
}

/// Listens for the streams of peers.
#[expect(clippy::disallowed_methods, reason = "on the tunnel's own address and interface")]
pub(super) fn listen(interface: &str, own: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound_to(interface)?;
    socket.set_reuseaddr(true)?;
    socket.bind(own)?;
    socket.listen(BACKLOG)
}

/// Opens a stream to a peer. The port of `own` is any.
#[expect(clippy::disallowed_methods, reason = "through the tunnel alone: the socket is bound to its interface")]
pub(super) async fn connect(interface: &str, own: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = bound_to(interface)?;
    socket.bind(SocketAddr::new(own.ip(), 0))?;
    socket.connect(to).await
}

fn bound_to(interface: &str) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v6()?;
    socket.bind_device(Some(interface.as_bytes()))?;
    Ok(socket)
}

/// A stream that ends when its node is no longer a peer.
pub(super) struct KernelStream {
    tcp: TcpStream,
    hold: Hold,
    /// One for each direction: reader and writer may be different tasks, and both must wake.
    cut: [Pin<Box<WaitForCancellationFutureOwned>>; 2],
}

const READ: usize = 0;
const WRITE: usize = 1;

impl KernelStream {
    /// Takes an open stream.
    pub(super) fn new(tcp: TcpStream, hold: Hold) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let silence = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(&tcp, silence)?;
        sockopt::set_socket_keepalive(&tcp, true)?;
        sockopt::set_tcp_keepidle(&tcp, KEEPALIVE)?;
        sockopt::set_tcp_keepintvl(&tcp, KEEPALIVE)?;
        let cut = [READ, WRITE].map(|_| Box::pin(hold.cut.clone().cancelled_owned()));
        Ok(Self { tcp, hold, cut })
    }

    /// Fails if the stream is cut; else lets the task wake when it is.
    fn check(&mut self, direction: usize, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut[direction].as_mut().poll(context) {
            Poll::Ready(()) => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the node is no longer a peer of the tunnel"))
            }
            Poll::Pending => Ok(()),
        }
    }
}

impl Drop for KernelStream {
    fn drop(&mut self) {
        if self.hold.cut.is_cancelled() {
            // Else the kernel would keep trying to send the rest.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for KernelStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(READ, context)?;
        Pin::new(&mut self.tcp).poll_read(context, buf)
    }
}

impl AsyncWrite for KernelStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(WRITE, context)?;
        Pin::new(&mut self.tcp).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(WRITE, context)?;
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(WRITE, context)?;
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
