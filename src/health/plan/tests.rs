//! Verdicts, intervals and readiness, without a clock.

use super::*;
use crate::proxy::{PortCheck, Target};

const SECOND: Duration = Duration::from_secs(1);

fn settings() -> HealthSettings {
    HealthSettings {
        interval: 4 * SECOND,
        healthy_interval: Some(20 * SECOND),
        timeout: 2 * SECOND,
        successes: 2,
        failures: 3,
    }
}

fn port(port: u16) -> PortTarget {
    PortTarget::new(port, Target::Localhost(port))
}

/// A plan whose checks end at once.
struct Bench {
    plan: HealthPlan,
    now: Duration,
    pending: Vec<(CheckId, u16)>,
    changes: Vec<Change>,
}

impl Bench {
    fn new(ports: &[PortTarget]) -> Self {
        let mut bench = Self { plan: HealthPlan::default(), now: SECOND, pending: Vec::new(), changes: Vec::new() };
        bench.event(Event::Configured(ports.to_vec(), settings()));
        bench
    }

    fn event(&mut self, event: Event) {
        for action in self.plan.handle(event, self.now) {
            match action {
                Action::Check { id, port, .. } => self.pending.push((id, port.port)),
                Action::Log(_, change) => self.changes.push(change),
            }
        }
    }

    /// Ends the check of this port that runs.
    fn end(&mut self, port: u16, outcome: Outcome) {
        let at = self.pending.iter().position(|(_, pending)| *pending == port).expect("no check runs");
        let (id, _) = self.pending.remove(at);
        self.event(Event::Ended { id, outcome, random: 0.5 });
    }

    fn pass(&mut self, port: u16) {
        self.end(port, Outcome::Passed);
    }

    fn fail(&mut self, port: u16) {
        self.end(port, Outcome::Failed("refused".into()));
    }

    /// Goes to the next check; returns how much time passed.
    fn next(&mut self) -> Duration {
        let due = self.plan.next_timeout().expect("nothing is due");
        let passed = due - self.now;
        self.now = due;
        self.event(Event::Tick);
        passed
    }

    /// Makes the target of port 80 healthy.
    fn healthy() -> Self {
        let mut bench = Self::new(&[port(80)]);
        bench.pass(80);
        bench.next();
        bench.pass(80);
        assert!(bench.plan.ready());
        bench
    }
}

#[test]
fn a_target_rises_and_falls_after_so_and_so_long_a_row_and_the_row_is_settled_quickly() {
    let mut bench = Bench::new(&[port(80)]);
    bench.fail(80);
    assert_eq!((bench.next(), bench.plan.ready()), (4 * SECOND, false));
    bench.pass(80);
    assert_eq!((bench.next(), bench.plan.ready()), (SECOND, false), "one success of two");
    bench.fail(80);
    assert_eq!(bench.next(), 4 * SECOND, "the row is broken");
    bench.pass(80);
    bench.next();
    bench.pass(80);
    assert!(bench.plan.ready());
    assert_eq!(bench.next(), 20 * SECOND, "slower while healthy");
    for _ in 0..2 {
        bench.fail(80);
        assert_eq!((bench.next(), bench.plan.ready()), (SECOND, true));
    }
    bench.pass(80);
    assert_eq!(bench.next(), 20 * SECOND, "two failures of three are forgotten");
    for _ in 0..3 {
        assert!(bench.plan.ready());
        bench.fail(80);
        bench.next();
    }
    assert!(!bench.plan.ready());
    assert_eq!(bench.plan.ports()[0].error.as_deref(), Some("refused"));
    assert_eq!(bench.changes, [Change::NotYet, Change::Up, Change::Down]);
}

#[test]
fn a_pause_is_changed_at_random_by_a_tenth_at_most() {
    for (random, expected) in [(0.0, 18_000), (0.5, 20_000), (1.0, 22_000), (7.0, 22_000)] {
        let mut bench = Bench::healthy();
        bench.next();
        let (id, _) = bench.pending.remove(0);
        bench.event(Event::Ended { id, outcome: Outcome::Passed, random });
        assert_eq!(bench.next().as_millis(), expected, "{random}");
    }
}

#[test]
fn a_burst_of_failed_streams_brings_the_check_of_a_healthy_target_forward() {
    let mut bench = Bench::healthy();
    bench.now += 5 * SECOND;
    for _ in 0..2 {
        bench.event(Event::StreamFailed(80));
    }
    assert!(bench.pending.is_empty(), "two may be bad luck");
    bench.now += 11 * SECOND;
    bench.event(Event::StreamFailed(80));
    bench.event(Event::StreamFailed(81));
    assert!(bench.pending.is_empty(), "they are not a burst");
    bench.event(Event::StreamFailed(80));
    bench.event(Event::StreamFailed(80));
    assert_eq!(bench.pending.len(), 1);
    // A flood of clients does not become a flood of checks.
    bench.fail(80);
    (0..100).for_each(|_| bench.event(Event::StreamFailed(80)));
    assert!(bench.pending.is_empty() && bench.next() == SECOND);
    // A target that is down is asked at its own pace.
    bench.fail(80);
    bench.next();
    bench.fail(80);
    assert!(!bench.plan.ready());
    (0..100).for_each(|_| bench.event(Event::StreamFailed(80)));
    assert_eq!(bench.next(), 4 * SECOND);
}

#[test]
fn changed_targets_are_checked_at_once_and_change_readiness_only_by_their_answer() {
    let mut bench = Bench::healthy();
    bench.event(Event::Configured(vec![port(80), port(81)], settings()));
    assert_eq!(bench.pending.iter().map(|(_, port)| *port).collect::<Vec<_>>(), [81]);
    assert!(bench.plan.ready(), "a target that has not been asked yet changes nothing");
    bench.fail(81);
    assert!(!bench.plan.ready());
    bench.event(Event::Configured(vec![port(80)], settings()));
    assert!(bench.plan.ready() && bench.pending.is_empty(), "the one that stays keeps its verdict");
    let moved = PortTarget::new(80, Target::Localhost(8080));
    bench.event(Event::Configured(vec![moved], settings()));
    assert!(bench.plan.ready());
    bench.fail(80);
    assert!(!bench.plan.ready());
    bench.event(Event::Configured(Vec::new(), settings()));
    assert!(!bench.plan.ready() && bench.plan.next_timeout().is_none());
}

#[test]
fn a_changed_check_is_made_at_once_and_the_one_that_runs_no_longer_counts() {
    let mut bench = Bench::healthy();
    bench.next();
    let path = PortCheck { path: Some("/other".into()), ..PortCheck::default() };
    let changed = PortTarget { check: path, ..port(80) };
    bench.event(Event::Configured(vec![changed], settings()));
    assert_eq!(bench.pending.len(), 2, "at once");
    for _ in 0..2 {
        bench.fail(80);
    }
    assert_eq!(bench.next(), SECOND, "one failure counts, not two");
    assert!(bench.plan.ready());
}

#[test]
fn a_shorter_interval_counts_at_once_and_an_unasked_target_is_asked_again() {
    let mut bench = Bench::healthy();
    let fast = HealthSettings { healthy_interval: Some(2 * SECOND), interval: SECOND, ..settings() };
    bench.event(Event::Configured(vec![port(80)], fast));
    assert!(bench.next() < 3 * SECOND);
    bench.end(80, Outcome::NotAsked);
    assert!(bench.plan.ready() && bench.plan.ports()[0].error.is_none());
    assert_eq!(bench.next(), 2 * SECOND);
}
