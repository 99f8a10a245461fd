//! A connection to a tor's control port.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a command may take to be answered.
const PATIENCE: Duration = Duration::from_secs(20);

/// One line of a reply, with the data that follows it if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyLine {
    /// The text after the code.
    pub text: String,
    /// The data lines up to the lone dot, joined by line feeds; `None` if no data follows.
    pub data: Option<String>,
}

/// An answer to a command, or an event (code 650).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code; 250 is success.
    pub code: u16,
    /// At least one line.
    pub lines: Vec<ReplyLine>,
}

impl Reply {
    /// The text of the first line.
    pub fn text(&self) -> &str {
        self.lines.first().map_or("", |line| line.text.as_str())
    }
}

/// An authenticated connection to a tor's control port.
#[derive(Debug)]
pub struct Control {
    input: BufReader<TcpStream>,
    /// The part of a line that was read before the deadline.
    partial: Vec<u8>,
    /// The lines of a reply that were read before the deadline.
    pending: Vec<ReplyLine>,
    /// Whether the last of `pending` awaits its lone dot.
    in_data: bool,
    events: VecDeque<Reply>,
}

impl Control {
    /// Connects, and authenticates with the cookie in tor's folder.
    pub fn connect(address: SocketAddr, folder: &Path) -> Result<Self> {
        let path = folder.join("control_auth_cookie");
        let cookie = fs::read(&path).with_context(|| format!("cannot read {}; is its tor running?", path.display()))?;
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
            .with_context(|| format!("cannot connect to the control port {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut control = Self {
            input: BufReader::new(stream),
            partial: Vec::new(),
            pending: Vec::new(),
            in_data: false,
            events: VecDeque::new(),
        };
        let mut hex = String::new();
        for byte in cookie {
            let _ = write!(hex, "{byte:02x}");
        }
        control.command(&format!("AUTHENTICATE {hex}"))?;
        Ok(control)
    }

    /// Sends a command and returns its reply; a code other than 2xx is an error.
    pub fn command(&mut self, command: &str) -> Result<Reply> {
        self.send(command)?;
        self.reply(command)
    }

    /// The text after `KEY=` of a `GETINFO KEY`, quotes removed.
    pub fn get_info(&mut self, key: &str) -> Result<String> {
        let reply = self.command(&format!("GETINFO {key}"))?;
        let line =
            reply.lines.iter().find_map(|line| Some((line.text.strip_prefix(key)?.strip_prefix('=')?, &line.data)));
        match line {
            Some((_, Some(data))) => Ok(data.clone()),
            Some((text, None)) => Ok(text.trim_matches('"').to_owned()),
            None => bail!("tor answered GETINFO {key} with {:?}", reply.text()),
        }
    }

    /// Sends a command without awaiting its reply; the caller must then call [`Control::reply`].
    pub(crate) fn send(&mut self, command: &str) -> Result<()> {
        self.input
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())
            .context("cannot write to tor's control port; has it died?")
    }

    /// The next reply that is not an event.
    pub(crate) fn reply(&mut self, command: &str) -> Result<Reply> {
        let verb = command.split(' ').next().unwrap_or_default();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.read(deadline)? {
                Some(reply) if reply.code == 650 => self.events.push_back(reply),
                Some(reply) if (200..300).contains(&reply.code) => return Ok(reply),
                Some(reply) => bail!("tor refused {verb}: {} {}", reply.code, reply.text()),
                None => bail!("tor did not answer {verb} within {PATIENCE:?}"),
            }
        }
    }

    /// The next event asked for with `SETEVENTS`; `None` if there was none until `deadline`.
    pub fn event(&mut self, deadline: Instant) -> Result<Option<Reply>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        self.read(deadline)
    }

    /// Reads one reply; `None` if it isn't whole by `deadline`.
    fn read(&mut self, deadline: Instant) -> Result<Option<Reply>> {
        loop {
            let Some(line) = self.read_line(deadline)? else {
                return Ok(None);
            };
            if self.in_data {
                if line == "." {
                    self.in_data = false;
                } else if let Some(last) = self.pending.last_mut() {
                    let data = last.data.get_or_insert_default();
                    data.push_str(line.strip_prefix('.').unwrap_or(&line));
                    data.push('\n');
                }
                continue;
            }
            let (Some(code), Some(kind)) =
                (line.get(..3).and_then(|code| code.parse::<u16>().ok()), line.as_bytes().get(3))
            else {
                bail!("tor's control port said {line:?}, which is not a reply");
            };
            self.in_data = *kind == b'+';
            self.pending.push(ReplyLine {
                text: line.get(4..).unwrap_or_default().to_owned(),
                data: self.in_data.then(String::new),
            });
            if *kind == b' ' {
                let lines = std::mem::take(&mut self.pending);
                return Ok(Some(Reply { code, lines }));
            }
        }
    }

    /// Reads one line without its end; `None` if it isn't whole by `deadline`.
    fn read_line(&mut self, deadline: Instant) -> Result<Option<String>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && self.input.buffer().is_empty() {
                return Ok(None);
            }
            self.input.get_ref().set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.input.read_until(b'\n', &mut self.partial) {
                Ok(0) => bail!("tor closed its control connection; has it died?"),
                Ok(_) if self.partial.last() == Some(&b'\n') => {
                    let line = std::mem::take(&mut self.partial);
                    let line = String::from_utf8_lossy(&line);
                    return Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()));
                }
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                }
                Err(error) => return Err(error).context("cannot read from tor's control port"),
            }
        }
    }
}
