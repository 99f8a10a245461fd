//! The report of a chaos run, for people and for machines, and the bounds that it must meet.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::ledger::{Cause, Outage, Visit};
use crate::cluster::Vitals;

/// Minimum length of a run of a daemon's process whose memory is checked for growth.
const MIN_RUN: Duration = Duration::from_secs(1080);
/// Time after which the early window begins: the memory of a daemon under chaos rises for some ten
/// minutes after its start.
const WARM_UP: Duration = Duration::from_secs(600);
/// Length of the early window, and of the late one.
const WINDOW: Duration = Duration::from_secs(180);

/// The bounds that a report must meet.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Maximum time that a client waits for an answer, not counting its waits for dead directories.
    pub outage: Duration,
    /// Maximum time from the beginning of the calm until everything is whole.
    pub settled: Duration,
    /// Minimum number of changes of the time period during the run.
    pub period_changes: usize,
    /// Factor by which memory, file descriptors and threads may grow during a long run of a
    /// process.
    pub growth: f64,
    /// Growth of memory, in KiB, that is allowed in addition to the factor.
    pub growth_kib: u64,
}

/// How long a failed node's introduction points stayed on a directory.
#[derive(Clone, Debug, Serialize)]
pub struct Withdrawal {
    /// The node's name.
    pub node: String,
    /// The fault of the node.
    pub fault: &'static str,
    /// Whether it was the publisher.
    pub publisher: bool,
    /// When it failed, since the start of the chaos.
    pub at: Duration,
    /// Time until no directory had its points; `None` if the fault ended earlier.
    pub out: Option<Duration>,
    /// How long its points were watched: from the failure until the end of the fault.
    pub watched: Duration,
}

/// The resources of a daemon at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Time of the sample, since the start of the chaos.
    pub at: Duration,
    /// The node's name.
    pub node: String,
    /// The resources that the daemon used.
    #[serde(flatten)]
    pub vitals: Vitals,
}

/// One run of a daemon's process, from its first sample to its last.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessRun {
    /// The node's name.
    pub node: String,
    /// Time of its first sample, since the start of the chaos.
    pub from: Duration,
    /// Time from its first sample to its last.
    pub length: Duration,
    /// Median memory in KiB, in the early and in the late window; `None` if the run was too short.
    pub rss_kib: Option<(u64, u64)>,
    /// The same for file descriptors.
    pub files: Option<(u64, u64)>,
    /// The same for threads.
    pub threads: Option<(u64, u64)>,
}

/// The results of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The seed from which the faults were drawn.
    pub seed: u64,
    /// How long the chaos lasted.
    pub lasted: Duration,
    /// The machine's load average over one minute: minimum, median and maximum.
    pub load: (f64, f64, f64),
    /// What was skipped on this machine, and why.
    pub skipped: Vec<String>,
    /// The name of the node whose process the driver never ended.
    pub witness: String,
    /// Number of faults of nodes, relays and authorities, by kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// Number of requests of all visitors.
    pub requests: usize,
    /// Number of requests that failed, by cause.
    pub failures: BTreeMap<Cause, usize>,
    /// Durations of the requests that were served: median, 95th and 99th percentile, maximum.
    pub waits: Vec<Duration>,
    /// Number of requests that each node has served.
    pub served: BTreeMap<String, usize>,
    /// Number of newcomers, and of those whose Tor client did not start.
    pub newcomers: (usize, usize),
    /// The longest times in which a client got no answer.
    pub outages: Vec<Outage>,
    /// The longest time in which no client got an answer.
    pub silence: Option<Outage>,
    /// The visits that failed.
    pub failed: Vec<Visit>,
    /// How long the introduction points of failed nodes stayed published.
    pub departures: Vec<Withdrawal>,
    /// Number of descriptors that directories have accepted.
    pub uploads: usize,
    /// Number of uploads that failed, and of those that were refused.
    pub uploads_failed: (usize, usize),
    /// The time periods that were published.
    pub periods: Vec<u64>,
    /// The terms of the lease, sorted.
    pub terms: Vec<u64>,
    /// Number of starts of daemons, including the first start of each.
    pub starts: usize,
    /// Daemons that ended without being asked to, each with the last line that it logged.
    pub ended: Vec<String>,
    /// Number of those that ended because their disk was full, and said so.
    pub ended_for_disk: usize,
    /// Panics in logs.
    pub panics: Vec<String>,
    /// Warnings and errors in logs, without their details, and how often each occurred.
    pub complaints: BTreeMap<String, usize>,
    /// Secrets in logs.
    pub secrets: Vec<String>,
    /// State that was lost or went backwards, such as terms and revisions.
    pub lost: Vec<String>,
    /// Time from the beginning of the calm until everything was whole, or what was still missing.
    pub settled: Option<Result<Duration, String>>,
    /// The last log lines of each node, if not everything became whole.
    pub last_news: BTreeMap<String, Vec<String>>,
    /// What was done, and when.
    pub timeline: Vec<(Duration, String)>,
    /// Memory, file descriptors and threads over time.
    pub samples: Vec<Sample>,
}

/// The value below which `share` of all sorted values are.
fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().checked_sub(1)?)).copied()
}

fn median<T: Copy + Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut sorted: Vec<T> = values.collect();
    sorted.sort_unstable();
    quantile(&sorted, 0.5)
}

impl Report {
    /// Sets the quantiles of `waits` from sorted durations.
    pub fn set_waits(&mut self, sorted: &[Duration]) {
        self.waits = [0.5, 0.95, 0.99, 1.0].iter().filter_map(|share| quantile(sorted, *share)).collect();
    }

    /// The runs of all processes, the longest first.
    pub fn lives(&self) -> Vec<ProcessRun> {
        let mut by_process: BTreeMap<(&str, i32), Vec<&Sample>> = BTreeMap::new();
        for sample in &self.samples {
            by_process.entry((&sample.node, sample.vitals.pid)).or_default().push(sample);
        }
        let mut lives: Vec<ProcessRun> = by_process.values().filter_map(|samples| life(samples)).collect();
        lives.sort_by_key(|life| std::cmp::Reverse(life.length));
        lives
    }

    /// How long the points of nodes with this fault stayed published, sorted. Nodes that came back
    /// earlier are left out.
    fn stayed(&self, fault: &str) -> Vec<Duration> {
        let of_kind = self.departures.iter().filter(|departure| departure.fault == fault);
        let mut stayed: Vec<_> = of_kind.filter_map(|departure| departure.out).collect();
        stayed.sort_unstable();
        stayed
    }

    /// The bounds that are not met, each in a sentence.
    pub fn missed(&self, bounds: &Bounds) -> Vec<String> {
        let mut missed = Vec::new();
        for outage in self.outages.iter().chain(&self.silence).filter(|outage| outage.of_service() > bounds.outage) {
            let who = outage.visitor.as_deref().unwrap_or("the service");
            let ended = if outage.ended { "" } else { ", without an end" };
            missed.push(format!(
                "{who} was without an answer for {:.1} s from {:.1} s on{ended}, longer than {:.0} s",
                outage.of_service().as_secs_f64(),
                outage.from.as_secs_f64(),
                bounds.outage.as_secs_f64()
            ));
        }
        let each =
            [("ended by itself", &self.ended), ("panicked", &self.panics), ("a secret was logged", &self.secrets)];
        for (what, found) in each.into_iter().chain([("state was lost", &self.lost)]) {
            missed.extend(found.iter().map(|one| format!("{what}: {one}")));
        }
        match &self.settled {
            None => missed.push("the calm was not reached".into()),
            Some(Err(missing)) => missed.push(format!("not whole again: {missing}")),
            Some(Ok(took)) if *took > bounds.settled => {
                missed.push(format!("whole again only after {took:?}, longer than {:?}", bounds.settled));
            }
            Some(Ok(_)) => {}
        }
        if self.periods.len() < bounds.period_changes + 1 {
            missed.push(format!("only these time periods were published: {:?}", self.periods));
        }
        let least = |value: u64, floor: u64| value.max(1) as f64 * bounds.growth + floor as f64;
        for life in self.lives() {
            let of = [("memory", life.rss_kib, bounds.growth_kib), ("file descriptors", life.files, 16)];
            for (what, windows, floor) in of.into_iter().chain([("threads", life.threads, 8)]) {
                if let Some((early, late)) = windows
                    && late as f64 > least(early, floor)
                {
                    missed.push(format!("the {what} of {} grew from {early} to {late}", life.node));
                }
            }
        }
        missed
    }

    /// The report as text, for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let seconds = |duration: &Duration| format!("{:.1}", duration.as_secs_f64());
        let list = |durations: &[Duration]| durations.iter().map(seconds).collect::<Vec<_>>().join(" / ");
        let mut line = |what: &str, value: String| {
            let _ = writeln!(text, "{what:34} {value}");
        };
        line("seed", self.seed.to_string());
        line(
            "lasted",
            format!(
                "{} s, at a load of {:.1} / {:.1} / {:.1}",
                seconds(&self.lasted),
                self.load.0,
                self.load.1,
                self.load.2
            ),
        );
        for skipped in &self.skipped {
            line("skipped", skipped.clone());
        }
        line("faults", counts(self.faults.iter().map(|(fault, count)| ((*fault).to_owned(), *count))));
        let failed: usize = self.failures.values().sum();
        line("requests", format!("{}, of which {failed} failed", self.requests));
        line("failures", counts(self.failures.iter().map(|(cause, count)| (cause.name().to_owned(), *count))));
        line("served by", counts(self.served.iter().map(|(name, count)| (name.clone(), *count))));
        line(
            "newcomers",
            format!("{}, of which {} had a Tor client that did not start", self.newcomers.0, self.newcomers.1),
        );
        line("waits: median / 95 % / 99 % / most", format!("{} s", list(&self.waits)));
        for outage in self.outages.iter().take(5) {
            let who = outage.visitor.as_deref().unwrap_or_default();
            line("longest without an answer", describe(who, outage));
        }
        if let Some(silence) = &self.silence {
            line("longest without any answer", describe("all", silence));
        }
        for fault in ["kill", "freeze", "partition"] {
            let stayed = self.stayed(fault);
            let came_back = |departure: &&Withdrawal| departure.fault == fault && departure.out.is_none();
            let back = self.departures.iter().filter(came_back).count();
            let of = [0.5, 1.0].iter().filter_map(|share| quantile(&stayed, *share)).collect::<Vec<_>>();
            line(
                &format!("published after {fault}: median / most"),
                format!("{} s of {}; {back} came back first", list(&of), stayed.len()),
            );
        }
        let hours = self.lasted.as_secs_f64() / 3600.0;
        line(
            "uploads",
            format!(
                "{} taken ({:.0} an hour), {} failed, {} refused",
                self.uploads,
                self.uploads as f64 / hours,
                self.uploads_failed.0,
                self.uploads_failed.1
            ),
        );
        line("time periods published", self.periods.len().to_string());
        line("terms", format!("{} to {}", self.terms.first().unwrap_or(&0), self.terms.last().unwrap_or(&0)));
        line(
            "daemons started",
            format!(
                "{}; ended by themselves {}, for a full disk {}; panics {}",
                self.starts,
                self.ended.len(),
                self.ended_for_disk,
                self.panics.len()
            ),
        );
        for life in self.lives().iter().filter(|life| life.rss_kib.is_some()) {
            let show = |windows: Option<(u64, u64)>, unit: u64| {
                windows.map_or_else(String::new, |(early, late)| format!("{} to {}", early / unit, late / unit))
            };
            let name = if life.node == self.witness { format!("{} (witness)", life.node) } else { life.node.clone() };
            line(
                &format!("{name}, lived {} s", seconds(&life.length)),
                format!(
                    "{} MiB, {} files, {} threads",
                    show(life.rss_kib, 1024),
                    show(life.files, 1),
                    show(life.threads, 1)
                ),
            );
        }
        line("secrets in logs", self.secrets.len().to_string());
        line("lost state", self.lost.len().to_string());
        line(
            "whole again in the calm after",
            match &self.settled {
                Some(Ok(took)) => format!("{} s", seconds(took)),
                Some(Err(missing)) => format!("never: {missing}"),
                None => "never tried".into(),
            },
        );
        text
    }
}

fn describe(who: &str, outage: &Outage) -> String {
    let (length, from) = (outage.length.as_secs_f64(), outage.from.as_secs_f64());
    let ended = if outage.ended { "" } else { ", without an end" };
    let hung = match outage.on_directories.as_secs_f64() {
        0.0 => String::new(),
        hung => format!(", {hung:.1} s of it for dead directories"),
    };
    format!("{length:.1} s: {who}, from {from:.1} s on, {} failed{ended}{hung}", outage.failures)
}

fn counts(counts: impl Iterator<Item = (String, usize)>) -> String {
    let all: Vec<_> = counts.map(|(name, count)| format!("{name} {count}")).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

/// One run of a process, from its samples, which are in the order of time.
fn life(samples: &[&Sample]) -> Option<ProcessRun> {
    let (first, last) = (samples.first()?, samples.last()?);
    let length = last.at.saturating_sub(first.at);
    let early = first.at + WARM_UP..first.at + WARM_UP + WINDOW;
    let late = last.at.saturating_sub(WINDOW)..last.at + Duration::from_nanos(1);
    let windows = |of: &dyn Fn(&Vitals) -> u64| {
        let within = |window: &std::ops::Range<Duration>| {
            median(samples.iter().filter(|sample| window.contains(&sample.at)).map(|sample| of(&sample.vitals)))
        };
        if length < MIN_RUN { None } else { within(&early).zip(within(&late)) }
    };
    Some(ProcessRun {
        node: first.node.clone(),
        from: first.at,
        length,
        rss_kib: windows(&|vitals| vitals.rss_kib),
        files: windows(&|vitals| vitals.files as u64),
        threads: windows(&|vitals| vitals.threads),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        outage: Duration::from_secs(30),
        settled: Duration::from_secs(60),
        period_changes: 0,
        growth: 1.1,
        growth_kib: 1024,
    };

    fn good() -> Report {
        Report { settled: Some(Ok(Duration::from_secs(9))), periods: vec![7], ..Report::default() }
    }

    /// A report with one process run whose memory follows `rss_kib`, with a sample every ten
    /// seconds.
    fn lived(rss_kib: impl Fn(u64) -> u64, seconds: u64) -> Report {
        let sample = |at: u64| Sample {
            at: Duration::from_secs(at),
            node: "alpha".into(),
            vitals: Vitals { pid: 1, rss_kib: rss_kib(at), files: 30, threads: 4, cpu_ms: 0, switches: 0 },
        };
        Report { samples: (0..seconds).step_by(10).map(sample).collect(), ..good() }
    }

    #[test]
    fn a_good_report_meets_every_bound() {
        assert_eq!(good().missed(&BOUNDS), Vec::<String>::new());
    }

    #[test]
    fn each_bound_can_be_missed() {
        let outage = Outage {
            visitor: Some("a".into()),
            from: Duration::ZERO,
            length: Duration::from_secs(31),
            ended: true,
            failures: 2,
            on_directories: Duration::ZERO,
        };
        let waiting = Outage { on_directories: Duration::from_secs(2), ..outage.clone() };
        assert_eq!(Report { outages: vec![waiting], ..good() }.missed(&BOUNDS), Vec::<String>::new());
        for bad in [
            Report { outages: vec![outage.clone()], ..good() },
            Report { silence: Some(outage), ..good() },
            Report { ended: vec!["alpha".into()], ..good() },
            Report { panics: vec!["alpha".into()], ..good() },
            Report { secrets: vec!["a key".into()], ..good() },
            Report { lost: vec!["a term".into()], ..good() },
            Report { settled: None, ..good() },
            Report { settled: Some(Ok(Duration::from_secs(61))), ..good() },
            Report { settled: Some(Err("beta".into())), ..good() },
            Report { periods: Vec::new(), ..good() },
        ] {
            assert_eq!(bad.missed(&BOUNDS).len(), 1, "{:?}", bad.missed(&BOUNDS));
        }
    }

    #[test]
    fn memory_that_warms_up_does_not_grow_and_memory_that_leaks_does() {
        let warms_up = lived(|at| 40_000 + at.min(600) * 100, 1200);
        assert_eq!(warms_up.missed(&BOUNDS), Vec::<String>::new());
        let leaks = lived(|at| 40_000 + at * 30, 1200);
        assert_eq!(leaks.missed(&BOUNDS).len(), 1);
        // The memory of a short run is not checked.
        assert_eq!(lived(|at| 40_000 + at * 30, 1000).missed(&BOUNDS), Vec::<String>::new());
    }
}
