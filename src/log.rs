//! The log on standard error: its levels and its formats.
//!
//! Enter with [`init`], once. Our own crates log at the requested level (the daemon: `info`, the
//! other commands: `warn`, one more for each `-v`). Everything else, Arti included, logs at `warn`,
//! except warnings that only repeat themselves ([`REPEATED_WARNINGS`]). The environment variable
//! `RUSTBALANCE_LOG` replaces all of these filters, in the syntax of `tracing`
//! (`info,tor_hsservice=debug`).
//!
//! Arti redacts sensitive values in its own messages (`safelog`), which is left on; our secrets
//! have types that do not show them. Lines for systemd's journal have no time and no colour, which
//! the journal adds itself, and carry the level in the journal's notation.

use std::fmt;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

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
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(format!("{text},{NEVER}")).map_err(|error| LogError::Filter(text, error))?
        }
        _ => EnvFilter::new(default_filter(verbosity)),
    };
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let ansi = io::stderr().is_terminal() && !plain;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(ansi);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text if is_journal() => builder.event_format(Journal(Format::default().without_time())).try_init(),
        LogFormat::Text => builder.try_init(),
    }
    .map_err(|_| LogError::Twice)
}

/// The filters of this verbosity.
fn default_filter(verbosity: u8) -> String {
    let ours = match verbosity {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    format!("warn,{REPEATED_WARNINGS},{WIREGUARD},{NEVER},rustbalance={ours},rustbalance_gossip={ours}")
}

/// Whether standard error goes to systemd's journal: `JOURNAL_STREAM` must name this very file,
/// because it may be inherited from a parent process whose standard error was another one.
fn is_journal() -> bool {
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
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

    use parking_lot::Mutex;

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
    fn own_messages_are_logged_and_artis_details_are_not() {
        assert_eq!(
            logged(&default_filter(1)),
            "<4> WARN tor_guardmgr: guard\n<6> INFO rustbalance::node: ours count=3\n"
        );
        assert_eq!(logged(&default_filter(0)), "<4> WARN tor_guardmgr: guard\n");
        assert!(logged(&default_filter(2)).contains("<7>DEBUG rustbalance_gossip: detail\n"));
    }
}
