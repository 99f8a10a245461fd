//! What a daemon logs.

use rustix::process::Signal;

use super::Daemon;

/// How often a daemon has refused its configuration, by its log: lines, and how often they were
/// repeated.
pub(super) fn refusals(daemon: &Daemon) -> u64 {
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains("the configuration is refused"));
    lines.map(|line| repetitions(line).unwrap_or(1)).sum()
}

/// How often a line was repeated, if it says so.
fn repetitions(line: &str) -> Option<u64> {
    let (times, _) = line.split_once(" (repeated ")?.1.split_once(" within ")?;
    Some(if times == "once" { 1 } else { times.strip_suffix(" times").unwrap().parse().unwrap() })
}

#[test]
fn lines_that_repeat_themselves_are_counted_and_the_end_loses_no_count() {
    for format in ["text", "json"] {
        let mut daemon = Daemon::founded();
        daemon.start(&["env", "--default-signal=HUP"], |command| {
            command.args(["--log-format", format]);
        });
        daemon.until_it_can_be_asked();
        daemon.configure(|text| text.replace("# failures = 3", "failuers = 4"));
        for _ in 0..20 {
            assert_eq!(daemon.command(&["reload"]).status.code(), Some(1));
        }
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.end(), Some(0));
        let log = daemon.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("the configuration is refused")).collect();
        // A busy machine may need longer than the first interval.
        assert!(lines.len() < 6, "{log}");
        let count = |line: &&str| match format {
            "text" => repetitions(line).unwrap_or(1),
            _ => {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(line["event"], "config_refused");
                line.get("repeated").map_or(1, |times| times.as_u64().unwrap())
            }
        };
        assert_eq!(lines.iter().map(count).sum::<u64>(), 20, "{log}");
    }
}
