//! A node's cable: everything that its Tor client sends and receives passes through it, and it can
//! be cut.
//!
//! It is a SOCKS5 proxy on loopback, named as `[channel] outbound_proxy` in Arti's configuration.
//! So every connection to a relay runs through it, and no privileges are needed. A cut acts like a
//! pulled plug: connections stay open, nothing moves in either direction, new connections hang, and
//! neither side is notified. After the cable is mended, the bytes that were on their way arrive
//! late.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::{Condvar, Mutex};

/// How long a handshake may take, not counting the time in which the cable is cut.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes that are moved at once.
const CHUNK: usize = 16 * 1024;
/// Stack size, in bytes, of a thread that moves bytes.
const STACK: usize = 128 * 1024;

/// A cable. Dropping it refuses new connections; existing ones last until either side ends.
#[derive(Debug)]
pub(crate) struct Cable {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// False while the cable is cut.
    whole: Mutex<bool>,
    mended: Condvar,
    closed: AtomicBool,
}

impl Shared {
    /// Waits while the cable is cut.
    fn pass(&self) {
        let mut whole = self.whole.lock();
        self.mended.wait_while(&mut whole, |whole| !*whole);
    }

    fn set(&self, whole: bool) {
        *self.whole.lock() = whole;
        self.mended.notify_all();
    }
}

impl Cable {
    /// Starts a proxy on a free port.
    pub(crate) fn lay() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen for a cable")?;
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Shared { whole: Mutex::new(true), mended: Condvar::new(), closed: AtomicBool::new(false) });
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("cable".into())
            .stack_size(STACK)
            .spawn(move || accept(&listener, &for_thread))
            .context("cannot start a thread")?;
        Ok(Self { address, shared })
    }

    /// The section to be added to Arti's configuration.
    pub(crate) fn arti_toml(&self) -> String {
        format!("\n[channel]\noutbound_proxy = \"socks5://{}\"\n", self.address)
    }

    pub(crate) fn cut(&self) {
        self.shared.set(false);
    }

    pub(crate) fn mend(&self) {
        self.shared.set(true);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.mend();
        // Wakes the thread that accepts connections, so that it ends and closes the port.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        shared.pass();
        if shared.closed.load(Ordering::SeqCst) {
            break;
        }
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        // If no thread can be started, the connection is closed.
        let _ = std::thread::Builder::new().name("cable-connection".into()).stack_size(STACK).spawn(move || {
            let _ = serve(stream, &shared);
        });
    }
}

/// Serves one connection until it ends.
fn serve(mut near: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    near.set_nodelay(true)?;
    near.set_read_timeout(Some(HANDSHAKE_PATIENCE))?;
    let Some(to) = asked(&mut near)? else {
        // SOCKS reply 1: general failure.
        return near.write_all(&[5, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    };
    shared.pass();
    let far = match TcpStream::connect(to) {
        Ok(far) => far,
        // SOCKS reply 5: connection refused, because the relay is dead.
        Err(_) => return near.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]),
    };
    far.set_nodelay(true)?;
    near.set_read_timeout(None)?;
    near.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    let (near_input, far_output, for_thread) = (near.try_clone()?, far.try_clone()?, Arc::clone(shared));
    std::thread::Builder::new()
        .name("cable-out".into())
        .stack_size(STACK)
        .spawn(move || carry(near_input, far_output, &for_thread))?;
    carry(far, near, shared);
    Ok(())
}

/// Reads a SOCKS5 request without authentication. Returns its destination; `None` if it is not a
/// CONNECT to an IPv4 address.
fn asked(near: &mut TcpStream) -> std::io::Result<Option<SocketAddr>> {
    let mut head = [0; 2];
    near.read_exact(&mut head)?;
    let mut methods = vec![0; usize::from(head[1])];
    near.read_exact(&mut methods)?;
    near.write_all(&[5, 0])?;
    let mut request = [0; 4];
    near.read_exact(&mut request)?;
    if head[0] != 5 || request != [5, 1, 0, 1] {
        return Ok(None);
    }
    let mut address = [0; 6];
    near.read_exact(&mut address)?;
    let [a, b, c, d, high, low] = address;
    Ok(Some(SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])))))
}

/// Moves bytes one way until one side ends, then closes both.
fn carry(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut buffer = [0; CHUNK];
    loop {
        let read = from.read(&mut buffer);
        // The end of a connection must not cross a cut cable either.
        shared.pass();
        match read {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
        }
    }
    // Relays and Tor clients do not use half-closed connections.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A connection through a cable to an echo server.
    fn connected(cable: &Cable) -> TcpStream {
        let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = echo.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = echo.accept().unwrap();
            let mut output = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut stream, &mut output);
        });
        let mut stream = TcpStream::connect(cable.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&[5, 1, 0]).unwrap();
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen).unwrap();
        let [high, low] = port.to_be_bytes();
        stream.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).unwrap();
        let mut reply = [0; 10];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!((chosen, reply[1]), ([5, 0], 0));
        stream
    }

    #[test]
    fn a_cut_holds_what_is_sent_and_mending_delivers_it() {
        let cable = Cable::lay().unwrap();
        let mut stream = connected(&cable);
        let mut answer = [0; 5];
        stream.write_all(b"first").unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"first");
        cable.cut();
        stream.write_all(b"later").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(stream.read_exact(&mut answer).is_err(), "something came through a cut cable");
        cable.mend();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"later");
    }

    #[test]
    fn the_end_of_a_connection_crosses_it() {
        let cable = Cable::lay().unwrap();
        let stream = connected(&cable);
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        (&stream).read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
}
