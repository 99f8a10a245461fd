//! A tiny web site on loopback: what an onion service leads to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

/// The largest body, in bytes, that `/echo` accepts.
const MAX_ECHO: u64 = 256 << 20;

/// A tiny HTTP/1.1 server on loopback; it stops when dropped.
///
/// `GET /` answers the site's name, `GET /bytes/N` answers N bytes, `POST /echo` answers the body
/// of the request.
#[derive(Debug)]
pub struct Site {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    requests: AtomicU64,
    stopped: AtomicBool,
}

impl Site {
    /// Starts a site on a free port.
    pub fn start(name: &str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .with_context(|| format!("cannot listen on loopback for the site {name}"))?;
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Shared { name: name.to_owned(), requests: AtomicU64::new(0), stopped: AtomicBool::new(false) });
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(format!("site-{name}"))
            .spawn(move || accept(&listener, &for_thread))
            .context("cannot start a thread")?;
        Ok(Self { address, shared })
    }

    /// The address on which it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Its name, which `GET /` answers.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How many requests it has begun to answer.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts connections, so that it ends and closes the port.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            break;
        }
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        // If no thread can be started, the connection is closed, as an overloaded site would do.
        let _ = std::thread::Builder::new().name("site-connection".into()).stack_size(256 * 1024).spawn(move || {
            let _ = serve(stream, &shared);
        });
    }
}

/// Answers the requests of one connection until it ends or fails.
fn serve(mut output: TcpStream, shared: &Shared) -> std::io::Result<()> {
    output.set_nodelay(true)?;
    output.set_read_timeout(Some(Duration::from_secs(120)))?;
    output.set_write_timeout(Some(Duration::from_secs(120)))?;
    let mut input = BufReader::new(output.try_clone()?);
    loop {
        let mut request = String::new();
        if (&mut input).take(8192).read_line(&mut request)? == 0 {
            break;
        }
        let (mut length, mut close) = (0_u64, false);
        loop {
            let mut header = String::new();
            if (&mut input).take(8192).read_line(&mut header)? == 0 {
                return Ok(());
            }
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            close |= header == "connection: close";
        }
        if shared.stopped.load(Ordering::SeqCst) {
            break;
        }
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let mut words = request.split_whitespace();
        match (words.next(), words.next()) {
            (Some("POST"), Some("/echo")) if length <= MAX_ECHO => {
                // The body is read whole before the answer: a client need not read while it writes.
                let mut body = Vec::new();
                (&mut input).take(length).read_to_end(&mut body)?;
                head(&mut output, "200 OK", body.len() as u64)?;
                output.write_all(&body)?;
            }
            (Some("GET"), Some("/")) => {
                head(&mut output, "200 OK", shared.name.len() as u64)?;
                output.write_all(shared.name.as_bytes())?;
            }
            (Some("GET"), Some(path)) if bytes_asked(path).is_some() => {
                let length = bytes_asked(path).unwrap_or(0);
                head(&mut output, "200 OK", length)?;
                std::io::copy(&mut std::io::repeat(b'x').take(length), &mut output)?;
            }
            _ => {
                head(&mut output, "404 Not Found", 0)?;
                close |= length > 0;
            }
        }
        if close {
            break;
        }
    }
    output.shutdown(Shutdown::Both)
}

fn bytes_asked(path: &str) -> Option<u64> {
    path.strip_prefix("/bytes/")?.parse().ok()
}

fn head(output: &mut impl Write, status: &str, length: u64) -> std::io::Result<()> {
    write!(output, "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n")
}
