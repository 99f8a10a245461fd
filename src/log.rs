//! The log on standard error: its levels and its formats.
//!
//! Enter with [`init`], once. Our own crates log at the requested level (the daemon: `info`, the
//! other commands: `warn`, one more for each `-v`); [`set_level`] changes it, for `[log] level` in
//! the configuration. Everything else, Arti included, logs at `warn`,
//! except warnings that only repeat themselves ([`REPEATED_WARNINGS`]). The environment variable
//! `RUSTBALANCE_LOG` replaces all of these filters, in the syntax of `tracing`
//! (`info,tor_hsservice=debug`).
//!
//! Each line of ours has a name that does not change with its text (`warn!(name: "...", ...)`),
//! which JSON shows as `event`; `docs/EVENTS.md` lists them. Lines are written with shortened onion
//! addresses and without IP addresses of other hosts, unless [`set_safe`] says otherwise.
//!
//! Arti redacts sensitive values in its own messages (`safelog`), which is left on; our secrets
//! have types that do not show them. Lines for systemd's journal have no time and no colour, which
//! the journal adds itself, and carry the level in the journal's notation.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::redact::shortened;
use crate::tor::arti::REPEATED_WARNINGS;

/// boringtun reports each handshake that is not answered as a warning; `status` shows that by peer.
const WIREGUARD: &str = "defguard_boringtun=off";
/// The crate for the kernel's WireGuard logs the addresses of members, and at the finest level
/// private keys. No filter allows that.
const NEVER: &str = "defguard_wireguard_rs=error";

/// The environment variable with the filters.
pub const FILTER_VARIABLE: &str = "RUSTBALANCE_LOG";

/// The format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person or the journal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The level at which our own crates log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// What an operator should look at.
    Warn,
    /// Also what happens rarely.
    Info,
    /// Also each decision.
    Debug,
    /// Also each event.
    Trace,
}

impl LogLevel {
    /// All levels, from the least to the most.
    pub const ALL: [Self; 4] = [Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// The level that the command line asks for: 0 is [`LogLevel::Warn`], and so on.
    fn of_verbosity(verbosity: u8) -> Self {
        let last = Self::ALL.len() - 1;
        Self::ALL.get(usize::from(verbosity).min(last)).copied().unwrap_or(Self::Trace)
    }

    /// The name, as in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The filter of the process, once logging has started.
static FILTER: OnceLock<ChangeableFilter> = OnceLock::new();

struct ChangeableFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    /// The level that the command line asks for.
    at_start: LogLevel,
    /// True if [`FILTER_VARIABLE`] has the filters.
    is_fixed: bool,
}

/// Has our own crates log at this level from now on; `None`: at that of the command line. False if
/// it has no effect, because [`FILTER_VARIABLE`] has the filters.
pub fn set_level(level: Option<LogLevel>) -> bool {
    let Some(filter) = FILTER.get().filter(|filter| !filter.is_fixed) else { return false };
    let wanted = EnvFilter::new(default_filter(level.unwrap_or(filter.at_start)));
    // It fails only if the subscriber is gone, and it lasts as long as the process.
    filter.handle.reload(wanted).is_ok()
}

/// Whether lines are written with shortened addresses.
static SAFE: AtomicBool = AtomicBool::new(true);

/// Has lines written with shortened onion addresses and without IP addresses of other hosts from
/// now on, or as they are: `[log] safe_logging` in the configuration.
pub fn set_safe(safe: bool) {
    SAFE.store(safe, Ordering::Relaxed);
}

/// Writes lines as [`set_safe`] says. The formatter writes a line at once.
struct SafeWriter<W>(W);

impl<W: Write> Write for SafeWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if SAFE.load(Ordering::Relaxed) {
            self.0.write_all(shortened_between_escapes(&String::from_utf8_lossy(bytes)).as_bytes())?;
        } else {
            self.0.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The line with its texts shortened. An escape sequence, for a colour or in JSON, ends in a
/// letter, which would otherwise be taken for a part of what follows.
fn shortened_between_escapes(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find(['\u{1b}', '\\']) {
        let (text, from) = rest.split_at(start);
        let length = match from.strip_prefix('\\') {
            Some(escaped) => 1 + escaped.chars().next().map_or(0, char::len_utf8),
            None => from.find('m').map_or(1, |end| end + 1),
        };
        let (escape, after) = from.split_at(length);
        shown.push_str(&shortened(text));
        shown.push_str(escape);
        rest = after;
    }
    shown.push_str(&shortened(rest));
    shown
}

/// Most lines of the log that are kept in memory, for a report.
const RECENT_LINES: usize = 400;
/// Longest such line, in bytes; together they take 200 kB at most.
const RECENT_LENGTH: usize = 500;

/// The last lines of the log, the oldest first.
static RECENT: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// The last lines of this process's log, the oldest first.
pub fn recent() -> Vec<String> {
    RECENT.lock().iter().cloned().collect()
}

/// Keeps each line that is written to it. The formatter writes a line at once.
struct RecentWriter;

impl Write for RecentWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = kept(bytes);
        let mut lines = RECENT.lock();
        if lines.len() == RECENT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The part of a line that is kept. A long line is cut at a space, because half an address would
/// not be found and removed from a bug report.
fn kept(line: &[u8]) -> String {
    let Some(start) = line.get(..RECENT_LENGTH).filter(|start| start.len() < line.len()) else {
        return String::from_utf8_lossy(line).trim_end().to_owned();
    };
    let start = String::from_utf8_lossy(start);
    start.rsplit_once(char::is_whitespace).map(|(whole, _)| whole.to_owned()).unwrap_or_default()
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filters cannot be read.
    #[error("{FILTER_VARIABLE}={0:?} cannot be read: write it as in \"info,rustbalance=debug\"")]
    Filter(String, #[source] tracing_subscriber::filter::ParseError),
    /// Logging was started before.
    #[error("logging has been started already")]
    Twice,
}

/// Starts logging. `verbosity` is 0 for our warnings, 1 for `info`, 2 for `debug`, 3 for `trace`.
pub fn init(format: LogFormat, verbosity: u8) -> Result<(), LogError> {
    let given = std::env::var(FILTER_VARIABLE).ok().filter(|text| !text.is_empty());
    let (at_start, is_fixed) = (LogLevel::of_verbosity(verbosity), given.is_some());
    let filter = match given {
        Some(text) => EnvFilter::try_new(format!("{text},{NEVER}")).map_err(|error| LogError::Filter(text, error))?,
        None => EnvFilter::new(default_filter(at_start)),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let ansi = io::stderr().is_terminal() && !plain;
    let lines = tracing_subscriber::fmt::layer().with_writer(|| SafeWriter(io::stderr())).with_ansi(ansi);
    let lines = match format {
        LogFormat::Json => lines.fmt_fields(JsonFields::new()).event_format(named_json()).boxed(),
        LogFormat::Text if is_journal() => lines.event_format(Journal(Format::default().without_time())).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    // Without colours, and in one format, whatever the log has.
    let recent = tracing_subscriber::fmt::layer().with_writer(|| RecentWriter).with_ansi(false);
    tracing_subscriber::registry().with(filter).with(lines).with(recent).try_init().map_err(|_| LogError::Twice)?;
    // Set once: a second start of logging has failed above.
    let _ = FILTER.set(ChangeableFilter { handle, at_start, is_fixed });
    Ok(())
}

/// The filters of this level.
fn default_filter(level: LogLevel) -> String {
    let ours = level.name();
    format!("warn,{REPEATED_WARNINGS},{WIREGUARD},{NEVER},rustbalance={ours},rustbalance_gossip={ours}")
}

/// Whether standard error goes to systemd's journal: `JOURNAL_STREAM` must name this very file,
/// because it may be inherited from a parent process whose standard error was another one.
fn is_journal() -> bool {
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// Formats lines as JSON objects, with the event's name as `event` if it has one.
struct NamedJson(Format<Json>);

fn named_json() -> NamedJson {
    NamedJson(Format::default().json().flatten_event(true))
}

impl<S, N> FormatEvent<S, N> for NamedJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let name = event.metadata().name();
        // Without a name of its own an event is named after its place in the source text.
        if name.contains(' ') {
            return self.0.format_event(ctx, to, event);
        }
        let mut line = String::new();
        self.0.format_event(ctx, Writer::new(&mut line), event)?;
        match line.strip_prefix('{') {
            Some(rest) => write!(to, "{{\"event\":\"{name}\",{rest}"),
            None => to.write_str(&line),
        }
    }
}

/// Formats lines for the journal: the level in its notation (`sd-daemon(3)`), then the event.
struct Journal(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(to, "<{priority}>")?;
        self.0.format_event(ctx, to, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str) -> String {
        let lines = Lines::default();
        let sink = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(filter))
            .with_writer(move || sink.clone())
            .event_format(Journal(Format::default().without_time().with_ansi(false)))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "tor_guardmgr", "guard");
            tracing::info!(target: "tor_guardmgr", "chatter");
            tracing::warn!(target: "tor_netdir", "again");
            tracing::info!(target: "rustbalance::node", count = 3, "ours");
            tracing::debug!(target: "rustbalance_gossip", "detail");
        });
        let bytes = lines.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_in_json_have_the_name_of_their_event() {
        let lines = Lines::default();
        let sink = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || SafeWriter(sink.clone()));
        let layer = layer.fmt_fields(JsonFields::new()).event_format(named_json());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let peer = "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion";
            tracing::warn!(name: "peer_lost", peer, "lost");
            tracing::warn!("of another crate");
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        let parse = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let [named, other] = text.lines().map(parse).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((&named["event"], &named["message"]), (&"peer_lost".into(), &"lost".into()));
        assert_eq!(named["peer"], "duckduck…");
        assert_eq!((other["event"].as_str(), &other["level"]), (None, &"WARN".into()));
    }

    #[test]
    fn escapes_hide_no_address() {
        let json = format!(r#"{{"error":"failed\n203.0.113.7:9\t{}\\end"}}"#, "d".repeat(56));
        assert_eq!(shortened_between_escapes(&json), r#"{"error":"failed\n(address)\tdddddddd…\\end"}"#);
        let line = "\u{1b}[3mpeer\u{1b}[0m\u{1b}[2m=\u{1b}[0m203.0.113.7:9 lost";
        assert_eq!(shortened_between_escapes(line), "\u{1b}[3mpeer\u{1b}[0m\u{1b}[2m=\u{1b}[0m(address) lost");
    }

    #[test]
    fn a_long_line_is_cut_at_a_space() {
        let start = "a ".repeat(RECENT_LENGTH / 2 - 10);
        let long = format!("{start}{}.onion failed", "b".repeat(56));
        assert_eq!(kept(long.as_bytes()), start.trim_end());
        assert_eq!(kept("b".repeat(RECENT_LENGTH + 1).as_bytes()), "");
        let fitting = "c".repeat(RECENT_LENGTH - 1);
        assert_eq!(kept(format!("{fitting}\n").as_bytes()), fitting);
    }

    #[test]
    fn own_messages_are_logged_and_artis_details_are_not() {
        assert_eq!(
            logged(&default_filter(LogLevel::Info)),
            "<4> WARN tor_guardmgr: guard\n<6> INFO rustbalance::node: ours count=3\n"
        );
        assert_eq!(logged(&default_filter(LogLevel::Warn)), "<4> WARN tor_guardmgr: guard\n");
        assert!(logged(&default_filter(LogLevel::Debug)).contains("<7>DEBUG rustbalance_gossip: detail\n"));
    }
}
