//! What a daemon logs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

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

/// A journald that takes entries at this path, until it is dropped.
struct Journald {
    path: PathBuf,
    /// The fields of each entry.
    entries: Arc<Mutex<Vec<BTreeMap<String, String>>>>,
    stopped: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Journald {
    fn start(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (entries, stopped) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let (into, until) = (Arc::clone(&entries), Arc::clone(&stopped));
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 18];
            while !until.load(Ordering::Relaxed) {
                while let Ok(length) = socket.recv(&mut buffer) {
                    into.lock().unwrap().push(fields(&buffer[..length]));
                }
            }
        });
        Self { path, entries, stopped, reader: Some(reader) }
    }

    /// The entries so far about this event.
    fn of(&self, event: &str) -> Vec<BTreeMap<String, String>> {
        let entries = self.entries.lock().unwrap();
        entries.iter().filter(|entry| entry.get("RUSTBALANCE_EVENT").is_some_and(|it| it == event)).cloned().collect()
    }

    /// How often the configuration was refused.
    fn refusals(&self) -> u64 {
        let times =
            |entry: &BTreeMap<String, String>| entry.get("RUSTBALANCE_REPEATED").map_or(1, |it| it.parse().unwrap());
        self.of("config_refused").iter().map(times).sum()
    }

    /// Stops taking entries, once all that were sent are read.
    fn stop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
            fs::remove_file(&self.path).unwrap();
        }
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The fields of an entry in the journal's native protocol.
fn fields(mut entry: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    while !entry.is_empty() {
        let end = entry.iter().position(|byte| matches!(byte, b'=' | b'\n')).unwrap();
        let (name, rest) = (&entry[..end], &entry[end + 1..]);
        let (value, after) = match entry[end] {
            b'=' => rest.split_at(rest.iter().position(|byte| *byte == b'\n').unwrap()),
            _ => {
                let (length, rest) = rest.split_first_chunk().unwrap();
                rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap())
            }
        };
        fields.insert(text(name), text(value));
        entry = after.strip_prefix(b"\n").unwrap();
    }
    fields
}

#[test]
fn the_journal_gets_entries_with_fields_and_standard_error_what_it_does_not_take() {
    let mut daemon = Daemon::founded();
    let path = daemon.folder.path().join("journal");
    let mut journald = Journald::start(path.clone());
    let log = daemon.folder.path().join("log");
    daemon.start(&[], |command| {
        // As systemd names the file to which standard error goes.
        let log = fs::metadata(log).unwrap();
        command.env("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino()));
        command.env("RUSTBALANCE_JOURNAL_SOCKET", &path);
    });
    daemon.until_it_can_be_asked();
    let starting = journald.of("starting").remove(0);
    let field = |name: &str| starting[name].as_str();
    assert_eq!([field("PRIORITY"), field("SYSLOG_IDENTIFIER")], ["6", "rustbalance"]);
    assert_eq!([field("TARGET"), field("CODE_FILE")], ["rustbalance::cli::run", "src/cli/run.rs"]);
    assert_eq!(field("RUSTBALANCE_VERSION"), env!("CARGO_PKG_VERSION"));
    assert!(field("MESSAGE").starts_with("INFO rustbalance::cli::run: starting version="), "{starting:?}");

    let refused = |daemon: &Daemon| assert_eq!(daemon.command(&["reload"]).status.code(), Some(1));
    daemon.configure(|text| text.replace("# failures = 3", "failuers = 4"));
    for _ in 0..3 {
        refused(&daemon);
    }
    assert_eq!(daemon.log(), "", "all is in the journal");
    journald.stop();
    daemon.configure(|text| text.replace("failuers = 4", "failuers = 4\nfailrues = 4"));
    refused(&daemon);
    daemon.until("the line is written as text", |daemon| daemon.log().contains("the configuration is refused"));
    let line = daemon.log().lines().find(|line| line.contains("the configuration is refused")).unwrap().to_owned();
    assert!(line.starts_with("<4> WARN rustbalance"), "{line}");

    let mut restarted = Journald::start(path);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), Some(0));
    restarted.stop();
    assert_eq!(restarted.of("stopping_by_signal").len(), 1, "it is found again");
    assert_eq!(journald.refusals() + refusals(&daemon) + restarted.refusals(), 4, "{}", daemon.log());
}
