//! Counts lines that repeat themselves, so that one fault does not fill the log.
//!
//! A line is written at once, and remembered. If an equal one comes within an interval
//! ([`INTERVALS`]), it is only counted. At the end of the interval the line is written again with
//! its count, and the next interval begins, a longer one. If none came, the line is forgotten, and
//! written at once the next time. Equal lines are those with the same text, values and event: lines
//! that differ only in a number are different. They need not follow each other. What is remembered
//! is bounded: beyond [`MOST`] lines the oldest one that did not repeat itself gives way, and a
//! line longer than [`LONGEST`] is written each time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::line::Line;

/// The times from a line, or from a report of how often it was repeated, to the next report. The
/// first is short, so that a person who watches the log sees what goes on; the last one holds for
/// as long as the line repeats itself.
const INTERVALS: [Duration; 3] = [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(600)];
/// Most lines that are remembered.
const MOST: usize = 128;
/// Longest line that is remembered, in bytes. Together with [`MOST`] they take 512 KiB at most.
const LONGEST: usize = 2048;

/// What happens to the log.
pub(super) enum Event {
    /// A line comes.
    Line {
        /// As it is written.
        shown: Arc<Line>,
        /// With all addresses.
        whole: Arc<Line>,
    },
    /// The time of [`Repeats::next_timeout`] has come.
    Tick,
    /// The process ends.
    End,
}

/// A line to write.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// As it is written.
    pub(super) shown: Arc<Line>,
    /// With all addresses.
    pub(super) whole: Arc<Line>,
    /// `None`: it comes for the first time.
    pub(super) repeated: Option<Repeated>,
}

/// How often a line came, after it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Repeated {
    pub(super) times: u64,
    /// Since the line, or the last report about it.
    pub(super) within: Duration,
    /// Since it came last.
    pub(super) ago: Duration,
}

impl Repeated {
    /// [`Repeated::within`] in whole seconds, rounded up.
    pub(super) fn within_seconds(self) -> f64 {
        self.within.as_secs_f64().ceil()
    }
}

/// The lines of late. Times are those since any fixed moment.
#[derive(Default)]
pub(super) struct Repeats {
    recent: HashMap<Arc<Line>, Recent>,
    /// Lines that were remembered so far, as their order.
    count: u64,
}

struct Recent {
    whole: Arc<Line>,
    /// When the line, or the last report about it, was written.
    written: Duration,
    /// Which of [`INTERVALS`] runs.
    interval: usize,
    /// How often it has come since `written`, and when it came last.
    times: u64,
    last: Duration,
    number: u64,
}

impl Recent {
    fn ends(&self) -> Duration {
        self.written + INTERVALS[self.interval]
    }
}

impl Repeats {
    /// What to write now, in this order.
    pub(super) fn handle(&mut self, event: Event, now: Duration) -> Vec<Entry> {
        match event {
            Event::Line { shown, whole } => {
                let mut entries = self.report(now, |recent| recent.ends() <= now);
                entries.extend(self.take(shown, whole, now));
                entries
            }
            Event::Tick => self.report(now, |recent| recent.ends() <= now),
            Event::End => self.report(now, |_| true),
        }
    }

    /// When there is something to report, if no line comes before.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        self.recent.values().filter(|recent| recent.times > 0).map(Recent::ends).min()
    }

    /// Writes a line, or counts it.
    fn take(&mut self, shown: Arc<Line>, whole: Arc<Line>, now: Duration) -> Vec<Entry> {
        if let Some(recent) = self.recent.get_mut(&shown) {
            recent.times = recent.times.saturating_add(1);
            recent.last = now;
            return Vec::new();
        }
        let entry = Entry { shown, whole, repeated: None };
        let mut entries = Vec::new();
        if entry.shown.size().max(entry.whole.size()) <= LONGEST {
            if self.recent.len() == MOST {
                entries.extend(self.forget_one(now));
            }
            self.count += 1;
            let (whole, number) = (Arc::clone(&entry.whole), self.count);
            let recent = Recent { whole, written: now, interval: 0, times: 0, last: now, number };
            self.recent.insert(Arc::clone(&entry.shown), recent);
        }
        entries.push(entry);
        entries
    }

    /// Forgets the line that was written longest ago, if possible one that did not repeat itself.
    fn forget_one(&mut self, now: Duration) -> Option<Entry> {
        let order = |recent: &Recent| (recent.times > 0, recent.written, recent.number);
        let (shown, _) = self.recent.iter().min_by_key(|(_, recent)| order(recent))?;
        let shown = Arc::clone(shown);
        let recent = self.recent.remove(&shown)?;
        (recent.times > 0).then(|| entry(shown, &recent, now))
    }

    /// Reports the lines of those whose interval `ends`, and forgets those that were not repeated.
    fn report(&mut self, now: Duration, ends: impl Fn(&Recent) -> bool) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.recent.retain(|shown, recent| {
            if !ends(recent) {
                return true;
            }
            if recent.times == 0 {
                return false;
            }
            entries.push((recent.ends(), recent.number, entry(Arc::clone(shown), recent, now)));
            recent.written = now;
            recent.interval = (recent.interval + 1).min(INTERVALS.len() - 1);
            recent.times = 0;
            true
        });
        entries.sort_by_key(|(ends, number, _)| (*ends, *number));
        entries.into_iter().map(|(_, _, entry)| entry).collect()
    }
}

fn entry(shown: Arc<Line>, recent: &Recent, now: Duration) -> Entry {
    let within = now.saturating_sub(recent.written);
    let repeated = Some(Repeated { times: recent.times, within, ago: now.saturating_sub(recent.last) });
    Entry { shown, whole: Arc::clone(&recent.whole), repeated }
}

#[cfg(test)]
mod tests;
