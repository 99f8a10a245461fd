//! Output for people: how numbers and times are formatted, and how lines are printed.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use crate::clock::date;

/// Prints a line.
pub(super) fn print_line(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

/// Prints a note on standard error. A failure to print it is ignored, so that it does not hide the
/// error that the command ends with.
pub(super) fn print_note(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "note: {line}");
}

/// A duration in its two largest units.
pub(super) fn time(seconds: u64) -> String {
    let (minute, hour, day) = (60, 3600, 24 * 3600);
    let two = |large: u64, name: &str, small: u64, small_name: &str| match (seconds / large, seconds % large / small) {
        (count, 0) => format!("{count}{name}"),
        (count, rest) => format!("{count}{name} {rest}{small_name}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => two(minute, "m", 1, "s"),
        3600..86_400 => two(hour, "h", minute, "m"),
        _ => two(day, "d", hour, "h"),
    }
}

/// The date and time of a moment given in seconds since the Unix epoch; `never` if it has no date.
pub(super) fn moment(unix: u64) -> String {
    date(unix).map_or("never".into(), |date| date.replace('T', " ").replace('Z', " UTC"))
}

/// A number of bytes.
pub(super) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            return match unit {
                "B" => format!("{count} B"),
                _ => format!("{value:.1} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} PiB")
}

/// A count with its noun.
pub(super) fn plural(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// Whether to print colours: only on a terminal, and not if `NO_COLOR` is set.
#[derive(Clone, Copy)]
pub(super) struct Paint(pub(super) bool);

impl Paint {
    /// For standard output.
    pub(super) fn for_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(io::stdout().is_terminal() && !unwanted)
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(super) fn good(self, text: &str) -> String {
        self.with("1;32", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_bytes_read_well() {
        assert_eq!(
            ["0s", "59s", "1m", "1m 1s", "2h", "2h 5m", "1d 1h"].map(String::from),
            [0, 59, 60, 61, 7200, 7530, 90_001].map(time)
        );
        assert_eq!(["0 B", "1023 B", "1.0 KiB", "1.5 MiB"].map(String::from), [0, 1023, 1024, 1_572_864].map(bytes));
        assert_eq!(moment(1_795_362_000), "2026-11-22 15:40:00 UTC");
        assert_eq!(moment(u64::MAX), "never");
        assert_eq!((plural(1, "node"), plural(2, "node")), ("1 node".into(), "2 nodes".into()));
    }
}
