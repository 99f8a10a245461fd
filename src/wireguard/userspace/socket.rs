//! The UDP sockets of the engine: one for each family, bound to exactly one address.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::tunnel::LONGEST_DATAGRAM;
use crate::wireguard::EngineError;

/// Datagrams that are read before anything is sent.
const AT_ONCE: usize = 64;
/// How long a datagram may wait for room in the socket's buffer. Then it is lost, like others.
const ROOM: Duration = Duration::from_millis(100);

/// A datagram with its source. One that fills the buffer is longer than any valid one.
pub(super) type Received = (SocketAddr, Vec<u8>);

/// Sends and receives the datagrams of the engine.
pub(super) trait Datagrams: Send + Sync + 'static {
    /// The addresses that it sends from.
    fn addresses(&self) -> Vec<SocketAddr>;

    /// Waits for datagrams, and returns those at hand. Cancel-safe.
    fn receive(&self) -> impl Future<Output = Vec<Received>> + Send;

    /// Sends a datagram.
    ///
    /// # Errors
    /// The system's reason why it is not sent.
    fn send(&self, to: SocketAddr, datagram: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

/// One socket, or one of each family.
pub(super) struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Sockets {
    /// Binds the addresses.
    ///
    /// # Errors
    /// [`EngineError::Addresses`] and [`EngineError::Bind`].
    #[expect(clippy::disallowed_methods, reason = "the one port of the host, and only with --wireguard")]
    pub(super) async fn bind(addresses: &[SocketAddr]) -> Result<Self, EngineError> {
        let refused = || EngineError::Addresses(addresses.to_vec());
        let mut sockets = Self { v4: None, v6: None };
        for address in addresses {
            let place = if address.is_ipv4() { &mut sockets.v4 } else { &mut sockets.v6 };
            // The socket must neither listen on nor send from any other address of the host.
            if place.is_some() || address.ip().is_unspecified() {
                return Err(refused());
            }
            let socket = UdpSocket::bind(address).await;
            *place = Some(socket.map_err(|source| EngineError::Bind { address: *address, source })?);
        }
        if addresses.is_empty() { Err(refused()) } else { Ok(sockets) }
    }

    fn all(&self) -> impl Iterator<Item = &UdpSocket> {
        self.v4.iter().chain(&self.v6)
    }
}

impl Datagrams for Sockets {
    /// With the ports that the system has chosen for port 0.
    fn addresses(&self) -> Vec<SocketAddr> {
        self.all().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// An error of a socket is that of an earlier datagram and says nothing about the next.
    async fn receive(&self) -> Vec<Received> {
        tokio::select! {
            () = readable(self.v4.as_ref()) => {}
            () = readable(self.v6.as_ref()) => {}
        }
        let mut received = Vec::new();
        for socket in self.all() {
            let mut buffer = [0; LONGEST_DATAGRAM + 1];
            for _ in 0..AT_ONCE {
                match socket.try_recv_from(&mut buffer) {
                    Ok((length, from)) => received.push((from, buffer[..length].to_vec())),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => {}
                }
            }
        }
        received
    }

    async fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let Some(socket) = socket else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
        match socket.try_send_to(datagram, to) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let sent = timeout(ROOM, socket.send_to(datagram, to)).await;
                sent.unwrap_or_else(|_| Err(io::ErrorKind::WouldBlock.into())).map(drop)
            }
            sent => sent.map(drop),
        }
    }
}

/// Waits until a socket may have a datagram; forever without a socket.
async fn readable(socket: Option<&UdpSocket>) {
    match socket {
        // An error is returned again by the read that follows.
        Some(socket) => drop(socket.readable().await),
        None => std::future::pending().await,
    }
}
