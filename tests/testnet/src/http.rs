//! A plain HTTP request through a SOCKS port.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Response {
    /// The HTTP status, such as 200.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
    /// Time from the start until the stream was connected.
    pub connected: Duration,
    /// Time from the start until the first byte of the answer.
    pub first_byte: Duration,
    /// Time from the start until the end of the answer.
    pub elapsed: Duration,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A stream whose reads and writes fail once a common deadline has passed.
struct Bounded {
    stream: TcpStream,
    start: Instant,
    timeout: Duration,
}

impl Bounded {
    /// Connects to a client's SOCKS port; the deadline is `timeout` from now.
    fn to_socks(socks: SocketAddr, timeout: Duration) -> Result<Self> {
        let start = Instant::now();
        let stream = TcpStream::connect_timeout(&socks, timeout)
            .with_context(|| format!("cannot connect to the client's SOCKS port {socks}"))?;
        Ok(Self { stream, start, timeout })
    }

    fn left(&self) -> std::io::Result<Duration> {
        let left = self.timeout.saturating_sub(self.start.elapsed());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Bounded {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Sends one request and reads its answer. Requests with different values of `user` do not share
/// circuits.
pub(crate) fn request(
    socks: SocketAddr,
    user: Option<&str>,
    url: &str,
    post: Option<&[u8]>,
    timeout: Duration,
) -> Result<Response> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url:?} is not a URL that begins with http://"))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, port.parse().with_context(|| format!("{port:?} is not a port"))?),
        None => (authority, 80),
    };

    let mut stream = Bounded::to_socks(socks, timeout)?;
    let start = stream.start;
    let late = |what: &str| format!("{url}: {what}, {:.1} s after the start", start.elapsed().as_secs_f64());
    connect(&mut stream, user, host, port).with_context(|| late("no stream"))?;
    let connected = start.elapsed();

    let mut head = format!(
        "{} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n",
        if post.is_some() { "POST" } else { "GET" }
    );
    if let Some(body) = post {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut message = head.into_bytes();
    message.extend_from_slice(post.unwrap_or_default());
    stream.write_all(&message).with_context(|| late("the request broke off"))?;

    let mut answer = Vec::new();
    let mut first_byte = None;
    let mut buffer = vec![0; 64 * 1024];
    let (status, body_start, length) = loop {
        let count = stream.read(&mut buffer).with_context(|| late("no answer"))?;
        if count == 0 {
            bail!(late("the stream ended before an answer"));
        }
        first_byte.get_or_insert_with(|| start.elapsed());
        answer.extend_from_slice(&buffer[..count]);
        if let Some(head) = parse_head(&answer)? {
            break head;
        }
    };
    while length.is_none_or(|length| answer.len() < body_start + length) {
        match stream.read(&mut buffer).with_context(|| late("the answer broke off"))? {
            0 if length.is_some() => bail!(late("the answer ended too early")),
            0 => break,
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
    answer.drain(..body_start);
    Ok(Response {
        status,
        body: answer,
        connected,
        first_byte: first_byte.unwrap_or_default(),
        elapsed: start.elapsed(),
    })
}

/// Opens a stream on circuits that it shares only with the same `user`.
pub(crate) fn open(socks: SocketAddr, user: &str, host: &str, port: u16, timeout: Duration) -> Result<TcpStream> {
    let mut stream = Bounded::to_socks(socks, timeout)?;
    connect(&mut stream, Some(user), host, port).with_context(|| format!("no stream to {host}:{port}"))?;
    Ok(stream.stream)
}

/// Once the head is complete: the status, the offset of the body, and its length if the head states
/// it.
fn parse_head(answer: &[u8]) -> Result<Option<(u16, usize, Option<usize>)>> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&answer[..end]);
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("not an HTTP answer: {head:?}"))?;
    let mut length = None;
    for line in lines {
        if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok();
            }
            if name.eq_ignore_ascii_case("transfer-encoding") {
                bail!("this small client cannot read a chunked answer");
            }
        }
    }
    Ok(Some((status, end + 4, length)))
}

/// Asks a SOCKS5 server for a stream.
fn connect(stream: &mut Bounded, user: Option<&str>, host: &str, port: u16) -> Result<()> {
    let method = if user.is_some() { 2 } else { 0 };
    stream.write_all(&[5, 1, method])?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen)?;
    if chosen != [5, method] {
        bail!("the SOCKS port requires another authentication method ({chosen:?})");
    }
    if let Some(user) = user {
        let length = u8::try_from(user.len()).context("a SOCKS user name has at most 255 bytes")?;
        let mut message = vec![1, length];
        message.extend_from_slice(user.as_bytes());
        message.extend_from_slice(&[1, b'x']);
        stream.write_all(&message)?;
        stream.read_exact(&mut chosen)?;
        if chosen[1] != 0 {
            bail!("the SOCKS port refused the user {user:?}");
        }
    }
    let length = u8::try_from(host.len()).context("a host name has at most 255 bytes")?;
    let mut message = vec![5, 1, 0, 3, length];
    message.extend_from_slice(host.as_bytes());
    message.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&message)?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply)?;
    if reply[1] != 0 {
        bail!(Refusal(reply[1]));
    }
    let mut address = vec![
        0;
        match reply[3] {
            1 => 6,
            4 => 18,
            other => bail!("the SOCKS port answered with address type {other}"),
        }
    ];
    stream.read_exact(&mut address)?;
    Ok(())
}

/// Why tor's SOCKS port refused a stream: its reply code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal(pub u8);

impl std::error::Error for Refusal {}

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "tor says: {} (SOCKS reply {:#04x})", meaning(self.0), self.0)
    }
}

/// The meaning of a reply code of tor's SOCKS port.
fn meaning(code: u8) -> &'static str {
    match code {
        1 => "general failure",
        2 => "not allowed",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "time is up",
        0xF0 => "onion service descriptor can not be found",
        0xF1 => "onion service descriptor is invalid",
        0xF2 => "onion service introduction failed",
        0xF3 => "onion service rendezvous failed",
        0xF4 => "onion service missing client authorization",
        0xF5 => "onion service wrong client authorization",
        0xF6 => "invalid onion address",
        0xF7 => "onion service introduction timed out",
        _ => "an unknown error",
    }
}
