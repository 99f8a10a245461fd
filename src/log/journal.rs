//! Lines as entries of systemd's journal, with fields that `journalctl` can search, over its native
//! protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
//!
//! An entry is one datagram: `NAME=value` and a line feed for each field; or, for a value that has
//! line feeds itself, the name, a line feed, the length as 64 bits in little endian, the value, and
//! a line feed. Long values are cut, so that an entry fits into a datagram.

use std::borrow::Cow;
use std::env;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::format::{message_text, priority};
use super::line::{Field, Line, Place};
use super::repeats::Repeated;

/// Where journald takes entries.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Names another socket, for tests.
const SOCKET_VARIABLE: &str = "RUSTBALANCE_JOURNAL_SOCKET";
/// `journalctl -t` finds entries by it, as it does what the unit's `SyslogIdentifier=` names.
const IDENTIFIER: &str = "rustbalance";
/// The facility of syslog, as a unit's standard error has it.
const DAEMON: &[u8] = b"3";
/// The fields of a line begin with it, so that none takes the name of a field of the journal.
const PREFIX: &str = "RUSTBALANCE_";
/// Longest name of a field, in bytes; journald ignores fields with longer ones.
const MAX_NAME: usize = 64;
/// Longest message, in bytes. journald cuts lines of standard error at 48 KiB.
const MAX_MESSAGE: usize = 32 * 1024;
/// Longest value of another field, in bytes.
const MAX_VALUE: usize = 4 * 1024;
/// Most fields of a line, spans included. With the bounds above an entry has at most 170 kB; Linux
/// takes 208 KiB unless `net.core.wmem_default` is lower.
const MAX_FIELDS: usize = 32;
/// Longest message, in bytes, of an entry that had been too large.
const SHORT_MESSAGE: usize = 1024;
/// How long a journal that hangs may hold up a line, which then goes to standard error.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long no line is sent to a journal that did not take one.
const PAUSE: Duration = Duration::from_secs(30);
/// What follows a text that was cut.
const CUT: &str = "… (cut)";

/// The socket of the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// Until when no line is sent.
    paused_until: Option<Instant>,
}

impl Journal {
    /// Gets ready to send.
    ///
    /// # Errors
    /// The system's, if it gives no socket or if no journal takes entries.
    pub(super) fn open() -> io::Result<Self> {
        Self::at(env::var_os(SOCKET_VARIABLE).map_or_else(|| SOCKET.into(), PathBuf::from))
    }

    /// Gets ready to send to this socket.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub(super) fn at(path: PathBuf) -> io::Result<Self> {
        // Only a try: what sends is not connected, so that it finds a journal that was restarted.
        UnixDatagram::unbound()?.connect(&path)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, path, paused_until: None })
    }

    /// Sends a line; one that is too large is sent with its message alone, which is cut.
    ///
    /// # Errors
    /// The system's, if the journal does not take it; at once, if it did not take one lately.
    pub(super) fn send(&mut self, line: &Line, repeated: Option<Repeated>) -> io::Result<()> {
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let sent = match self.socket.send_to(&entry(line, repeated), &self.path) {
            Err(error) if is_too_large(&error) => self.socket.send_to(&short_entry(line, repeated), &self.path),
            outcome => outcome,
        };
        // A journal that hangs would hold up every line.
        let hangs = sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.paused_until = hangs.then(|| Instant::now() + PAUSE);
        sent.map(drop)
    }
}

/// Whether this is EMSGSIZE, which has no stable `ErrorKind`.
fn is_too_large(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error())
}

/// The entry of a line.
fn entry(line: &Line, repeated: Option<Repeated>) -> Vec<u8> {
    let mut entry = heading(line, repeated, MAX_MESSAGE);
    put(&mut entry, "TARGET", cut(&line.target, MAX_VALUE).as_bytes());
    if let Some(Place { file, line }) = &line.place {
        put(&mut entry, "CODE_FILE", file.as_bytes());
        put(&mut entry, "CODE_LINE", line.to_string().as_bytes());
    }
    let of_spans = line.spans.iter().flat_map(|span| &span.fields);
    for Field { name, value } in of_spans.chain(&line.fields).take(MAX_FIELDS) {
        put(&mut entry, &field_name(name), cut(&value.to_string(), MAX_VALUE).as_bytes());
    }
    if let Some(report @ Repeated { times, ago, .. }) = repeated {
        put(&mut entry, "RUSTBALANCE_REPEATED", times.to_string().as_bytes());
        put(&mut entry, "RUSTBALANCE_REPEATED_SECONDS", report.within_seconds().to_string().as_bytes());
        put(&mut entry, "RUSTBALANCE_REPEATED_LAST_SECONDS", ago.as_secs().to_string().as_bytes());
    }
    entry
}

/// The entry without what may be large.
fn short_entry(line: &Line, repeated: Option<Repeated>) -> Vec<u8> {
    heading(line, repeated, SHORT_MESSAGE)
}

/// What each entry begins with, with a message of at most `most` bytes.
fn heading(line: &Line, repeated: Option<Repeated>, most: usize) -> Vec<u8> {
    let mut entry = Vec::new();
    put(&mut entry, "PRIORITY", priority(line.level).to_string().as_bytes());
    put(&mut entry, "SYSLOG_FACILITY", DAEMON);
    put(&mut entry, "SYSLOG_IDENTIFIER", IDENTIFIER.as_bytes());
    put(&mut entry, "MESSAGE", cut(&message_text(line, repeated), most).as_bytes());
    if let Some(event) = line.event {
        put(&mut entry, "RUSTBALANCE_EVENT", event.as_bytes());
    }
    entry
}

/// The name of a field in the journal: capital letters, digits and underscores.
fn field_name(name: &str) -> String {
    let capital = |it: char| if it.is_ascii_alphanumeric() { it.to_ascii_uppercase() } else { '_' };
    let name: String = name.chars().map(capital).collect();
    // These say something about the whole line.
    let prefix = if name == "EVENT" || name.starts_with("REPEATED") { "FIELD_" } else { "" };
    let mut name = format!("{PREFIX}{prefix}{name}");
    name.truncate(MAX_NAME);
    name
}

/// The text, or its beginning of at most `most` bytes.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let end = text.floor_char_boundary(most - CUT.len());
    format!("{}{CUT}", &text[..end]).into()
}

/// Adds a field.
fn put(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    match value.contains(&b'\n') {
        false => entry.push(b'='),
        true => {
            entry.push(b'\n');
            entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        }
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
pub(super) mod tests;
