//! The ledger records what each visitor got, and derives from it failures by cause, and outages.
//!
//! An *outage* of a client lasts from the start of its first visit that was not served until an
//! answer came. A slow answer counts too, from its request on. The longest outage is the longest
//! wait of any client. The time that a client spent waiting for dead directories is also counted
//! separately, because it depends on Tor alone. The *service's* outage is the longest time in which
//! no client got an answer.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Duration;

use serde::Serialize;

use crate::http::Refusal;

/// Why a visit failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The client found no descriptor.
    NoDescriptor,
    /// The client was waiting for a descriptor from a directory that is dead.
    DeadDirectory,
    /// The client could not read the descriptor.
    BadDescriptor,
    /// No introduction point accepted the request.
    Introduction,
    /// Introduction points did not answer in time.
    IntroductionTimeout,
    /// The service did not come to the rendezvous.
    Rendezvous,
    /// Tor refused the stream for another reason.
    Stream,
    /// No answer came within the visitor's patience.
    Timeout,
    /// The stream was connected and broke off.
    BrokenOff,
    /// The answer is not the name of one of the nodes.
    WrongBody,
}

impl Cause {
    /// The cause of a request's error.
    pub fn of(error: &anyhow::Error) -> Self {
        for part in error.chain() {
            if let Some(Refusal(code)) = part.downcast_ref() {
                return match code {
                    0xF0 => Self::NoDescriptor,
                    0xF1 => Self::BadDescriptor,
                    0xF2 => Self::Introduction,
                    0xF3 => Self::Rendezvous,
                    0xF7 => Self::IntroductionTimeout,
                    _ => Self::Stream,
                };
            }
            if let Some(error) = part.downcast_ref::<std::io::Error>()
                && matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
            {
                return Self::Timeout;
            }
        }
        Self::BrokenOff
    }

    /// The name of the cause in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoDescriptor => "no descriptor",
            Self::DeadDirectory => "a dead directory",
            Self::BadDescriptor => "bad descriptor",
            Self::Introduction => "introduction failed",
            Self::IntroductionTimeout => "introduction timed out",
            Self::Rendezvous => "rendezvous failed",
            Self::Stream => "stream refused",
            Self::Timeout => "no answer in time",
            Self::BrokenOff => "broke off",
            Self::WrongBody => "wrong body",
        }
    }
}

/// One request of one visitor.
#[derive(Clone, Debug, Serialize)]
pub struct Visit {
    /// The visitor's name.
    pub visitor: String,
    /// When it began, since the start of the chaos.
    pub begun: Duration,
    /// When it ended, since the start of the chaos.
    pub ended: Duration,
    /// The name of the node that served it, or why it failed.
    pub outcome: Result<String, Cause>,
}

/// A time without an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outage {
    /// The client that waited; `None` if it is the service's outage.
    pub visitor: Option<String>,
    /// When it began, since the start of the chaos.
    pub from: Duration,
    /// How long it lasted.
    pub length: Duration,
    /// Whether an answer came at its end.
    pub ended: bool,
    /// How many visits failed in it.
    pub failures: usize,
    /// How much of it the client spent waiting for dead directories.
    pub on_directories: Duration,
}

impl Outage {
    /// The part of its length that the service is responsible for.
    pub fn of_service(&self) -> Duration {
        self.length.saturating_sub(self.on_directories)
    }
}

/// All visits so far.
#[derive(Debug, Default)]
pub struct Ledger(Vec<Visit>);

impl Ledger {
    /// Adds a visit that has ended.
    pub fn add(&mut self, visit: Visit) {
        self.0.push(visit);
    }

    /// All visits, in the order in which they ended.
    pub fn visits(&self) -> &[Visit] {
        &self.0
    }

    /// How many visits failed, by cause.
    pub fn failures(&self) -> BTreeMap<Cause, usize> {
        let mut counts = BTreeMap::new();
        for cause in self.0.iter().filter_map(|visit| visit.outcome.as_ref().err()) {
            *counts.entry(*cause).or_default() += 1;
        }
        counts
    }

    /// How many visits each node has served.
    pub fn served(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for name in self.0.iter().filter_map(|visit| visit.outcome.as_ref().ok()) {
            *counts.entry(name.clone()).or_default() += 1;
        }
        counts
    }

    /// Durations of the visits that were served, sorted.
    pub fn waits(&self) -> Vec<Duration> {
        let served = self.0.iter().filter(|visit| visit.outcome.is_ok());
        let mut waits: Vec<_> = served.map(|visit| visit.ended.saturating_sub(visit.begun)).collect();
        waits.sort_unstable();
        waits
    }

    /// The outages of all clients, sorted by [`Outage::of_service`], longest first.
    pub fn outages(&self) -> Vec<Outage> {
        let mut of_visitors: BTreeMap<&str, Vec<&Visit>> = BTreeMap::new();
        for visit in &self.0 {
            of_visitors.entry(&visit.visitor).or_default().push(visit);
        }
        let mut outages = Vec::new();
        for (visitor, mut visits) in of_visitors {
            visits.sort_by_key(|visit| visit.begun);
            let mut open: Option<Outage> = None;
            let mut visits = visits.into_iter().peekable();
            while let Some(visit) = visits.next() {
                let outage = open.get_or_insert_with(|| Outage {
                    visitor: Some(visitor.to_owned()),
                    from: visit.begun,
                    length: Duration::ZERO,
                    ended: false,
                    failures: 0,
                    on_directories: Duration::ZERO,
                });
                outage.length = visit.ended.saturating_sub(outage.from);
                outage.failures += usize::from(visit.outcome.is_err());
                if visit.outcome == Err(Cause::DeadDirectory) {
                    // The pause before the next visit is part of the wait.
                    let until = visits.peek().map_or(visit.ended, |next| next.begun);
                    outage.on_directories += until.saturating_sub(visit.begun);
                }
                if visit.outcome.is_ok() {
                    outage.ended = true;
                    outages.extend(open.take());
                }
            }
            outages.extend(open);
        }
        outages.sort_by_key(|outage| std::cmp::Reverse(outage.of_service()));
        outages
    }

    /// The longest time until `end` in which no client got an answer.
    pub fn longest_silence(&self, end: Duration) -> Outage {
        let mut answers: Vec<_> =
            self.0.iter().filter(|visit| visit.outcome.is_ok()).map(|visit| visit.ended).collect();
        answers.sort_unstable();
        let starts = [Duration::ZERO].into_iter().chain(answers.iter().copied());
        let ends = answers.iter().copied().chain([end]);
        let gaps = starts.zip(ends).map(|(from, to)| (from, to.saturating_sub(from)));
        let (from, length) = gaps.max_by_key(|(_, length)| *length).unwrap_or_default();
        let inside = |visit: &&Visit| visit.outcome.is_err() && visit.ended > from && visit.ended <= from + length;
        let failures = self.0.iter().filter(inside).count();
        let ended = from + length < end;
        Outage { visitor: None, from, length, ended, failures, on_directories: Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn ledger(visits: &[(&str, u64, u64, bool)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (visitor, begun, ended, served) in visits {
            let (begun, ended) = (Duration::from_secs(*begun), Duration::from_secs(*ended));
            let outcome = if *served { Ok("alpha".to_owned()) } else { Err(Cause::Timeout) };
            ledger.add(Visit { visitor: (*visitor).to_owned(), begun, ended, outcome });
        }
        ledger
    }

    #[test]
    fn an_outage_lasts_from_the_first_failed_request_until_an_answer() {
        let ledger = ledger(&[
            ("a", 0, 1, true),
            ("a", 3, 8, false),
            ("b", 4, 5, true),
            ("a", 9, 12, true),
            ("a", 14, 15, true),
        ]);
        let longest = &ledger.outages()[0];
        assert_eq!((longest.visitor.as_deref(), longest.from.as_secs(), longest.length.as_secs()), (Some("a"), 3, 9));
        assert_eq!((longest.ended, longest.failures), (true, 1));
    }

    #[test]
    fn an_answer_that_never_comes_is_an_outage_until_the_last_request() {
        let longest = &ledger(&[("a", 0, 1, true), ("a", 3, 8, false), ("a", 9, 20, false)]).outages()[0];
        assert_eq!((longest.length.as_secs(), longest.ended, longest.failures), (17, false, 2));
    }

    #[test]
    fn waiting_for_dead_directories_is_counted_separately() {
        let visit = |begun, ended, outcome| Visit {
            visitor: "a".into(),
            begun: Duration::from_secs(begun),
            ended: Duration::from_secs(ended),
            outcome,
        };
        let mut ledger = Ledger::default();
        ledger.add(visit(0, 10, Err(Cause::Timeout)));
        ledger.add(visit(12, 22, Err(Cause::DeadDirectory)));
        ledger.add(visit(24, 34, Err(Cause::DeadDirectory)));
        let seconds = |ledger: &Ledger| {
            let longest = &ledger.outages()[0];
            (longest.length.as_secs(), longest.on_directories.as_secs(), longest.of_service().as_secs())
        };
        assert_eq!(seconds(&ledger), (34, 22, 12));
        ledger.add(visit(36, 40, Ok("alpha".into())));
        assert_eq!(seconds(&ledger), (40, 24, 16));
    }

    #[test]
    fn a_silence_concerns_all_clients_and_may_last_to_the_end() {
        let ledger = ledger(&[("a", 0, 1, true), ("b", 5, 7, true), ("a", 2, 9, true)]);
        assert_eq!(ledger.longest_silence(Duration::from_secs(10)).length.as_secs(), 6);
        let last = ledger.longest_silence(Duration::from_secs(40));
        assert_eq!((last.from.as_secs(), last.length.as_secs(), last.ended), (9, 31, false));
    }

    #[test]
    fn causes_are_found_below_added_context() {
        let refused = anyhow::Error::new(Refusal(0xF0)).context("no stream");
        assert_eq!(Cause::of(&refused), Cause::NoDescriptor);
        let late: anyhow::Result<()> = Err(std::io::Error::from(ErrorKind::WouldBlock)).context("no answer");
        assert_eq!(late.map_err(|error| Cause::of(&error)), Err(Cause::Timeout));
        assert_eq!(Cause::of(&anyhow::anyhow!("the answer ended too early")), Cause::BrokenOff);
    }
}
