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
//! addresses and without IP addresses of other hosts, unless [`set_safe`] says otherwise. A line
//! that repeats itself is written once, and then counted (see `repeats`).
//!
//! Arti redacts sensitive values in its own messages (`safelog`), which is left on; our secrets
//! have types that do not show them. Where standard error is systemd's journal, lines go to it as
//! entries with fields (see `journal`); if it takes none, as text without time and colour that
//! carries the level in the journal's notation.

use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, OnceLock};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::tor::arti::REPEATED_WARNINGS;
use journal::Journal;
use output::{Log, LogLayer, Sink};

mod format;
mod journal;
mod line;
mod output;
mod recent;
mod repeats;

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

/// The log of the process, once logging has started.
static STARTED: OnceLock<Started> = OnceLock::new();

struct Started {
    log: Arc<Log>,
    filter: reload::Handle<EnvFilter, Registry>,
    /// The level that the command line asks for.
    at_start: LogLevel,
    /// True if [`FILTER_VARIABLE`] has the filters.
    is_fixed: bool,
}

/// Has our own crates log at this level from now on; `None`: at that of the command line. False if
/// it has no effect, because [`FILTER_VARIABLE`] has the filters.
pub fn set_level(level: Option<LogLevel>) -> bool {
    let Some(started) = STARTED.get().filter(|started| !started.is_fixed) else { return false };
    let wanted = EnvFilter::new(default_filter(level.unwrap_or(started.at_start)));
    // It fails only if the subscriber is gone, and it lasts as long as the process.
    started.filter.reload(wanted).is_ok()
}

/// Has lines written with shortened onion addresses and without IP addresses of other hosts from
/// now on, or as they are: `[log] safe_logging` in the configuration. Shortened is the default.
pub fn set_safe(safe: bool) {
    if let Some(started) = STARTED.get() {
        started.log.set_safe(safe);
    }
}

/// The last lines of this process's log, the oldest first.
pub fn recent() -> Vec<String> {
    STARTED.get().map(|started| started.log.recent()).unwrap_or_default()
}

/// Writes how often lines were repeated when that is due, also if no other line comes. Runs without
/// end.
pub async fn report_repeated() {
    match STARTED.get() {
        Some(started) => started.log.report_repeated().await,
        None => std::future::pending().await,
    }
}

/// Writes how often lines were repeated since the last report. For the end of the process.
pub fn finish() {
    if let Some(started) = STARTED.get() {
        started.log.finish();
    }
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
    let (layer, filter) = reload::Layer::new(filter);
    let log = Arc::new(Log::new(sink(format)));
    let subscriber = tracing_subscriber::registry().with(layer).with(LogLayer(Arc::clone(&log)));
    subscriber.try_init().map_err(|_| LogError::Twice)?;
    // Set once: a second start of logging has failed above.
    let _ = STARTED.set(Started { log, filter, at_start, is_fixed });
    Ok(())
}

/// Where lines go.
fn sink(format: LogFormat) -> Sink {
    let to = Box::new(io::stderr());
    match format {
        LogFormat::Json => Sink::Json(to),
        LogFormat::Text if is_journal() => match Journal::open() {
            Ok(journal) => Sink::Journal { journal, instead: to },
            Err(_) => Sink::JournalText(to),
        },
        LogFormat::Text => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            Sink::Text { to, ansi: io::stderr().is_terminal() && !plain }
        }
    }
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

#[cfg(test)]
mod tests;
