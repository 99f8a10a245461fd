//! What a search for an address shows: its odds, its progress, and what it finds; as text or JSON.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use rustbalance_gossip::id::ServiceId;
use rustbalance_vanity::Prefixes;
use serde::Serialize;

use super::output::{print_line, print_note};
use super::progress::Progress;
use crate::display::{plural, time};
use crate::shell;
use crate::vanity::Plan;

/// A search that takes longer than this in the mean, in seconds, is announced with a note.
const LONG: f64 = 3600.0;
/// Longest interval between two lines off a terminal.
const SELDOM: Duration = Duration::from_secs(60);
/// Seconds of a year.
const YEAR: f64 = 365.25 * 86_400.0;

/// How likely a search is to have ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Odds {
    /// The share of keys that fit, from 0 to 1.
    probability: f64,
    /// Keys to find.
    count: usize,
}

impl Odds {
    pub(super) fn new(prefixes: &Prefixes, count: usize) -> Self {
        Self { probability: prefixes.probability(), count }
    }

    /// Keys that are tested in the mean until enough are found.
    fn expected(self) -> f64 {
        self.count as f64 / self.probability
    }

    /// The probability that enough of this number of tested keys fit, from 0 to 1.
    fn so_far(self, tested: u64) -> f64 {
        let mean = tested as f64 * self.probability;
        // Finds are rare and independent, so their number has the distribution of Poisson. Its
        // terms come from their logarithms, because the first may be too small for a number.
        let (mut logarithm, mut fewer) = (-mean, 0.0);
        for found in 0..self.count {
            fewer += logarithm.exp();
            logarithm += mean.ln() - (found as f64 + 1.0).ln();
        }
        1.0 - fewer
    }

    /// The error of a search that ended before it has found enough.
    pub(super) fn stopped(self, reason: &str, found: usize, tested: u64) -> String {
        let percent = 100.0 * self.so_far(tested);
        format!(
            "ended by {reason} after {tested} keys with {found} of {} found, where {percent:.0}% of such searches are done. \
             Start it again to go on: a search has no memory, so no time is lost",
            plural(self.count, "address")
        )
    }
}

/// A duration in seconds for people, of any length.
fn long_time(seconds: f64) -> String {
    if !seconds.is_finite() {
        "unknown".into()
    } else if seconds < 1.0 {
        "less than 1s".into()
    } else if seconds < 2.0 * YEAR {
        time(seconds as u64)
    } else {
        format!("{:.0} years", seconds / YEAR)
    }
}

/// A line of `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    /// The search begins.
    Begin {
        prefixes: Vec<String>,
        path: String,
        /// The graphics processor.
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<&'a str>,
        threads: usize,
        /// Keys that are tested in the mean.
        expected_keys: f64,
        /// Time in the mean.
        expected_seconds: f64,
        keys_per_second: f64,
    },
    Progress(Numbers),
    Found {
        address: String,
        /// The key's folder, or the offset file.
        file: String,
    },
    End {
        found: usize,
        /// What ended the search before enough was found: a signal, or `deadline`.
        stopped: Option<&'a str>,
        #[serde(flatten)]
        numbers: Numbers,
    },
}

/// How far a search is.
#[derive(Clone, Copy, Serialize)]
struct Numbers {
    keys: u64,
    seconds: f64,
    keys_per_second: f64,
    /// The probability that a search is done after this number of keys, from 0 to 1.
    probability: f64,
    /// Time in the mean, from the beginning, at the present rate.
    expected_seconds: f64,
}

/// Shows one search.
pub(super) struct View {
    json: bool,
    progress: Option<Progress>,
    odds: Odds,
    /// When the next line is due, counted from the beginning.
    due: Duration,
}

impl View {
    pub(super) fn new(json: bool) -> Self {
        Self { json, progress: None, odds: Odds { probability: 1.0, count: 1 }, due: Duration::ZERO }
    }

    /// Announces the search. `rate` is the number of keys that all threads may test in a second.
    pub(super) fn begin(&mut self, plan: &Plan, odds: Odds, rate: f64) -> io::Result<()> {
        self.odds = odds;
        let prefixes: Vec<String> = plan.prefixes.all().iter().map(ToString::to_string).collect();
        let (path, device, threads) = (plan.engine.path(), plan.engine.device(), plan.engine.threads());
        let expected = odds.expected() / rate;
        if self.json {
            return print_json(&Event::Begin {
                prefixes,
                path,
                device,
                threads,
                expected_keys: odds.expected(),
                expected_seconds: expected,
                keys_per_second: rate,
            });
        }
        let (list, mean) = (prefixes.join(", "), long_time(expected));
        let _ = writeln!(
            io::stderr(),
            "searching {list}: one address in {:.0}, about {mean} on this machine ({path}, {})",
            1.0 / odds.probability,
            device.map_or_else(|| plural(threads, "thread"), String::from)
        );
        if expected > LONG {
            print_note(format_args!(
                "{mean} is the mean. Half of such searches take more than {}, and each character less makes it 32 times \
                 shorter. Ctrl-C ends the search",
                long_time(expected * std::f64::consts::LN_2)
            ));
        }
        self.progress = Some(Progress::new());
        Ok(())
    }

    /// Shows how far the search is, if that is due.
    pub(super) fn progress(&mut self, tested: u64, elapsed: Duration) -> io::Result<()> {
        if elapsed < self.due || tested == 0 {
            return Ok(());
        }
        let numbers = self.numbers(tested, elapsed);
        if !io::stderr().is_terminal() || self.json {
            self.due = elapsed + elapsed.clamp(Duration::from_secs(1), SELDOM);
        }
        if self.json {
            return print_json(&Event::Progress(numbers));
        }
        let line = format!(
            "{:.1} million keys/s, {} of about {}; {:.1}% of such searches are done by now",
            numbers.keys_per_second / 1e6,
            time(elapsed.as_secs()),
            long_time(numbers.expected_seconds),
            100.0 * numbers.probability
        );
        if let Some(progress) = &mut self.progress {
            progress.step(&line, Some(numbers.probability as f32));
        }
        Ok(())
    }

    /// Prints a find: where it was written.
    pub(super) fn found(&mut self, address: ServiceId, file: &Path) -> io::Result<()> {
        match self.json {
            true => print_json(&Event::Found { address: address.to_string(), file: file.display().to_string() }),
            false => print_line(shell::path(file)),
        }
    }

    /// Ends the display.
    pub(super) fn end(
        &mut self,
        tested: u64,
        elapsed: Duration,
        found: usize,
        stopped: Option<&str>,
    ) -> io::Result<()> {
        self.progress = None;
        match self.json {
            true => print_json(&Event::End { found, stopped, numbers: self.numbers(tested, elapsed) }),
            false => Ok(()),
        }
    }

    fn numbers(&self, tested: u64, elapsed: Duration) -> Numbers {
        let rate = tested as f64 / elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        Numbers {
            keys: tested,
            seconds: elapsed.as_secs_f64(),
            keys_per_second: rate,
            probability: self.odds.so_far(tested),
            expected_seconds: self.odds.expected() / rate,
        }
    }
}

fn print_json(event: &Event<'_>) -> io::Result<()> {
    print_line(serde_json::to_string(event)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_odds_are_those_of_independent_draws() {
        let of = |prefixes: &[&str], count| {
            let prefixes: Vec<_> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
            Odds::new(&Prefixes::new(&prefixes), count)
        };
        assert_eq!(of(&["abcd"], 1).expected(), 1_048_576.0);
        // A prefix that begins with another adds nothing; a different one halves the time.
        assert_eq!(of(&["abcd", "abcde", "abcd"], 1).expected(), 1_048_576.0);
        assert_eq!(of(&["abcd", "efgh"], 3).expected(), 3.0 * 524_288.0);
        let one = of(&["abcd"], 1);
        assert!((one.so_far(1_048_576) - 0.632).abs() < 0.001 && one.so_far(0) == 0.0);
        // Two finds: 1 - (1 + m) / e^m.
        assert!((of(&["abcd"], 2).so_far(2 * 1_048_576) - 0.594).abs() < 0.001);
    }

    #[test]
    fn times_of_any_length_read_well() {
        let texts = [0.2, 17.0, 33_000.0, 3e8, f64::INFINITY].map(long_time);
        assert_eq!(texts, ["less than 1s", "17s", "9h 10m", "10 years", "unknown"]);
    }
}
