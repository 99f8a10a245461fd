//! The last lines of the log, in memory, for a report.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// Most lines that are kept.
const LINES: usize = 400;
/// Longest such line, in bytes; together they take 200 kB at most.
const LENGTH: usize = 500;

/// The last lines, the oldest first.
pub(super) struct RecentLines(Mutex<VecDeque<String>>);

impl RecentLines {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    /// The last lines, the oldest first.
    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().iter().cloned().collect()
    }

    /// Keeps a line, with its whole addresses: a report removes them, and can tell them apart.
    pub(super) fn push(&self, line: &str) {
        let mut lines = self.0.lock();
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(kept(line));
    }
}

/// The part of a line that is kept. A long line is cut at a space, because half an address would
/// not be found and removed from a bug report.
fn kept(line: &str) -> String {
    let line = line.trim_end();
    if line.len() < LENGTH {
        return line.to_owned();
    }
    let start = String::from_utf8_lossy(&line.as_bytes()[..LENGTH]);
    start.rsplit_once(char::is_whitespace).map(|(whole, _)| whole.to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_at_a_space() {
        let start = "a ".repeat(LENGTH / 2 - 10);
        let long = format!("{start}{}.onion failed", "b".repeat(56));
        assert_eq!(kept(&long), start.trim_end());
        assert_eq!(kept(&"b".repeat(LENGTH + 1)), "");
        let fitting = "c".repeat(LENGTH - 1);
        assert_eq!(kept(&format!("{fitting}\n")), fitting);
    }

    #[test]
    fn the_oldest_lines_give_way() {
        let lines = RecentLines::new();
        for number in 0..=LINES {
            lines.push(&number.to_string());
        }
        let all = lines.all();
        assert_eq!((all.len(), all[0].as_str()), (LINES, "1"));
    }
}
