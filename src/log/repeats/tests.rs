//! When a line is written, and when it is counted.

use proptest::prelude::*;
use tracing::Level;

use super::*;
use crate::log::line::{Field, Value};

fn line(message: &str) -> Line {
    Line {
        level: Level::WARN,
        target: "rustbalance".into(),
        event: Some("lost"),
        place: None,
        message: message.into(),
        fields: Vec::new(),
        spans: Vec::new(),
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What is written, as texts: a line, and behind it how often it was repeated within which seconds.
fn written(entries: Vec<Entry>) -> Vec<(String, Option<(u64, u64)>)> {
    let repeated = |it: Repeated| (it.times, it.within.as_secs());
    entries.into_iter().map(|entry| (entry.shown.message.clone(), entry.repeated.map(repeated))).collect()
}

#[derive(Default)]
struct Log(Repeats);

impl Log {
    fn line(&mut self, at: u64, line: Line) -> Vec<(String, Option<(u64, u64)>)> {
        let line = Arc::new(line);
        written(self.0.handle(Event::Line { whole: Arc::clone(&line), shown: line }, seconds(at)))
    }

    fn says(&mut self, at: u64, message: &str) -> Vec<(String, Option<(u64, u64)>)> {
        self.line(at, line(message))
    }

    fn tick(&mut self, at: u64) -> Vec<(String, Option<(u64, u64)>)> {
        written(self.0.handle(Event::Tick, seconds(at)))
    }

    fn timeout(&self) -> Option<u64> {
        self.0.next_timeout().map(|at| at.as_secs())
    }
}

fn first(message: &str) -> (String, Option<(u64, u64)>) {
    (message.into(), None)
}

fn repeated(message: &str, times: u64, within: u64) -> (String, Option<(u64, u64)>) {
    (message.into(), Some((times, within)))
}

#[test]
fn a_line_that_repeats_itself_is_written_once_and_reported_at_growing_intervals() {
    let mut log = Log::default();
    assert_eq!(log.says(0, "full"), [first("full")]);
    assert_eq!(log.timeout(), None, "there is nothing to report");
    for at in [1, 2, 9] {
        assert_eq!(log.says(at, "full"), []);
    }
    assert_eq!((log.timeout(), log.tick(9)), (Some(10), vec![]));
    assert_eq!(log.tick(10), [repeated("full", 3, 10)]);
    for (start, end) in [(10, 70), (70, 670), (670, 1270)] {
        assert_eq!(log.timeout(), None);
        assert_eq!(log.says(start + 5, "full"), []);
        assert_eq!((log.timeout(), log.tick(end - 1)), (Some(end), vec![]));
        assert_eq!(log.tick(end), [repeated("full", 1, end - start)]);
    }
    assert_eq!(log.tick(1270 + 600), [], "it has not come again");
    assert_eq!(log.says(1270 + 601, "full"), [first("full")]);
}

#[test]
fn a_report_is_written_before_the_next_line_where_no_timer_runs() {
    let mut log = Log::default();
    log.says(0, "full");
    log.says(1, "full");
    assert_eq!(log.says(30, "other"), [repeated("full", 1, 30), first("other")]);
    assert_eq!(log.says(31, "full"), []);
    log.says(32, "other");
    assert_eq!(log.says(200, "full"), [repeated("other", 1, 170), repeated("full", 1, 170)]);
}

#[test]
fn lines_in_between_do_not_matter_and_different_lines_are_not_counted() {
    let mut log = Log::default();
    let with =
        |name, value: u64| Line { fields: vec![Field { name, value: Value::Number(value.into()) }], ..line("a") };
    let lines = [line("a"), line("b"), with("x", 1), with("x", 2), with("y", 1)];
    let others = [
        Line { event: None, ..line("a") },
        Line { target: "arti".into(), ..line("a") },
        Line { level: Level::ERROR, ..line("a") },
    ];
    for line in lines.iter().chain(&others) {
        assert_eq!(log.line(0, line.clone()).len(), 1, "{line:?}");
    }
    for line in lines.iter().chain(&others) {
        assert_eq!(log.line(1, line.clone()), [], "{line:?}");
    }
    assert_eq!(log.tick(10).len(), 8);
}

#[test]
fn what_is_remembered_is_bounded_and_lines_that_repeat_themselves_stay() {
    let mut log = Log::default();
    log.says(0, "again");
    log.says(0, "again");
    for number in 0..10 * MOST {
        assert_eq!(log.says(1, &number.to_string()), [first(&number.to_string())]);
        assert!(log.0.recent.len() <= MOST);
    }
    assert_eq!(log.says(2, "again"), []);
    assert_eq!(log.tick(10), [repeated("again", 2, 10)]);
    let long = "x".repeat(LONGEST + 1);
    for at in [20, 21] {
        assert_eq!(log.says(at, &long), [first(&long)], "it is too long to be remembered");
    }
    // If all are repeated, the oldest one is reported early.
    let mut log = Log::default();
    for number in 0..MOST {
        log.says(0, &number.to_string());
        log.says(0, &number.to_string());
    }
    assert_eq!(log.says(3, "new"), [repeated("0", 1, 3), first("new")]);
}

#[test]
fn the_end_loses_nothing_and_whole_lines_are_kept_for_reports() {
    let mut log = Repeats::default();
    let whole = Arc::new(line("of duckduckgogg"));
    for at in [0, 1] {
        let event = Event::Line { shown: Arc::new(line("of duckduck…")), whole: Arc::clone(&whole) };
        assert_eq!(log.handle(event, seconds(at)).len(), usize::from(at == 0));
    }
    let entries = log.handle(Event::End, seconds(4));
    assert_eq!(entries[0].whole, whole);
    assert_eq!(written(entries), [repeated("of duckduck…", 1, 4)]);
    assert!(log.handle(Event::End, seconds(5)).is_empty());
}

proptest! {
    /// Whatever comes, and in whatever order: each line is written or counted exactly once, and
    /// before its report is due at the latest.
    #[test]
    fn no_line_is_lost(steps in prop::collection::vec((0_u64..200, prop::option::of(0_u8..200)), 1..400)) {
        let (mut log, mut now) = (Repeats::default(), 0);
        let (mut came, mut counted) = (HashMap::<String, u64>::new(), HashMap::<String, u64>::new());
        let mut count = |entries: Vec<Entry>| for (message, repeated) in written(entries) {
            *counted.entry(message).or_default() += repeated.map_or(1, |(times, _)| times);
        };
        for (pause, number) in steps {
            now += pause / 20;
            let event = match number {
                Some(number) => {
                    let line = Arc::new(line(&number.to_string()));
                    *came.entry(line.message.clone()).or_default() += 1;
                    Event::Line { shown: Arc::clone(&line), whole: line }
                }
                None => Event::Tick,
            };
            count(log.handle(event, seconds(now)));
            prop_assert!(log.next_timeout().is_none_or(|due| due > seconds(now)));
        }
        count(log.handle(Event::End, seconds(now)));
        prop_assert_eq!(came, counted);
    }
}

#[test]
fn a_report_says_when_the_line_came_last() {
    let mut log = Log::default();
    let _ = log.says(0, "down");
    let _ = log.says(1, "down");
    let _ = log.says(3, "down");
    let report = log.0.handle(Event::Tick, seconds(10)).remove(0).repeated.unwrap();
    assert_eq!((report.times, report.within, report.ago), (2, seconds(10), seconds(7)));
}
