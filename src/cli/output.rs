//! Output for people: how lines are printed.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// Prints a line.
pub(super) fn print_line(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

/// Prints a note on standard error. A failure to print it is ignored, so that it does not hide the
/// error that the command ends with.
pub(super) fn print_note(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "note: {line}");
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
