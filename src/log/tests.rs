//! Events of `tracing`, through the whole log, as they are written.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixDatagram;

use parking_lot::Mutex;
use tracing::Subscriber;

use super::journal::tests as journal;
use super::*;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

const DUCK: &str = "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad";

fn subscriber(log: &Arc<Log>, filter: &str) -> impl Subscriber + Send + Sync {
    tracing_subscriber::registry().with(EnvFilter::new(filter)).with(LogLayer(Arc::clone(log)))
}

/// A log that writes into memory.
fn memory(sink: fn(Box<dyn Write + Send>) -> Sink) -> (Arc<Log>, Lines) {
    let lines = Lines::default();
    (Arc::new(Log::new(sink(Box::new(lines.clone())))), lines)
}

fn logged(filter: &str) -> String {
    let (log, lines) = memory(Sink::JournalText);
    tracing::subscriber::with_default(subscriber(&log, filter), || {
        tracing::warn!(target: "tor_guardmgr", "guard");
        tracing::info!(target: "tor_guardmgr", "chatter");
        tracing::warn!(target: "tor_netdir", "again");
        tracing::info!(target: "rustbalance::node", count = 3, "ours");
        tracing::debug!(target: "rustbalance_gossip", "detail");
    });
    lines.text()
}

#[test]
fn own_messages_are_logged_and_artis_details_are_not() {
    assert_eq!(
        logged(&default_filter(LogLevel::Info)),
        "<4> WARN tor_guardmgr: guard\n<6> INFO rustbalance::node: ours count=3\n"
    );
    assert_eq!(logged(&default_filter(LogLevel::Warn)), "<4> WARN tor_guardmgr: guard\n");
    assert!(logged(&default_filter(LogLevel::Debug)).contains("<7>DEBUG rustbalance_gossip: detail\n"));
}

/// A peer with an address in each place of a line.
fn lose_a_peer(port: u16) {
    let span = tracing::info_span!("link", peer = DUCK, route = tracing::field::Empty);
    span.record("route", format!("203.0.113.7:{port}"));
    let _entered = span.enter();
    let error = io::Error::other(format!("\t{DUCK}.onion at [2001:db8::7]:{port}"));
    let shown = format!("198.51.100.2:{port}");
    tracing::warn!(
        name: "peer_lost", peer = DUCK, at = %shown, error = &error as &dyn std::error::Error, count = 3, up = true,
        "lost {DUCK}.onion"
    );
}

#[test]
fn no_part_of_a_line_shows_a_whole_address_unless_the_operator_wants_it() {
    let coloured: fn(_) -> _ = |to| Sink::Text { to, ansi: true };
    for sink in [Sink::JournalText, Sink::Json, coloured] {
        let (log, lines) = memory(sink);
        tracing::subscriber::with_default(subscriber(&log, "info"), || lose_a_peer(7440));
        let text = lines.text();
        assert_eq!(text.matches("duckduck…").count(), if text.starts_with('{') { 5 } else { 4 }, "{text}");
        for hidden in [DUCK, "203.0.113.7", "2001:db8::7", "198.51.100.2"] {
            assert!(!text.contains(hidden), "{text}");
        }
        assert!(log.recent()[0].contains(DUCK), "a report tells addresses apart, and removes them");
        log.set_safe(false);
        tracing::subscriber::with_default(subscriber(&log, "info"), || lose_a_peer(7441));
        let text = lines.text();
        for shown in [DUCK, "203.0.113.7:7441", "[2001:db8::7]:7441", "198.51.100.2:7441"] {
            assert!(text.contains(shown), "{text}");
        }
    }
}

#[test]
fn no_field_of_the_journal_shows_a_whole_address_unless_the_operator_wants_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let journald = UnixDatagram::bind(&path).unwrap();
    let lines = Lines::default();
    let sink = Sink::Journal { journal: Journal::at(path).unwrap(), instead: Box::new(lines.clone()) };
    let log = Arc::new(Log::new(sink));
    let entry = |port| {
        tracing::subscriber::with_default(subscriber(&log, "info"), || lose_a_peer(port));
        let mut buffer = vec![0; 1 << 16];
        let length = journald.recv(&mut buffer).unwrap();
        BTreeMap::from_iter(journal::read(&buffer[..length]).unwrap())
    };
    let safe = entry(7440);
    let field = |name: &str| safe[&format!("RUSTBALANCE_{name}")].as_str();
    assert_eq!([field("EVENT"), field("PEER"), field("ROUTE")], ["peer_lost", "duckduck…", "(address)"]);
    assert_eq!([field("AT"), field("ERROR"), field("COUNT")], ["(address)", "\tduckduck… at (address)", "3"]);
    let values = Vec::from_iter(safe.values().cloned()).join(" ");
    for hidden in [DUCK, "203.0.113.7", "2001:db8::7", "198.51.100.2"] {
        assert!(!values.contains(hidden), "{values}");
    }
    log.set_safe(false);
    let whole = entry(7441);
    assert_eq!(whole["RUSTBALANCE_AT"], "198.51.100.2:7441");
    assert!(whole["MESSAGE"].contains(DUCK) && lines.text().is_empty());
}

#[test]
fn lines_in_json_have_the_name_of_their_event() {
    let (log, lines) = memory(Sink::Json);
    tracing::subscriber::with_default(subscriber(&log, "info"), || {
        lose_a_peer(1);
        tracing::warn!("of another crate");
    });
    let text = lines.text();
    let parse = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let [named, other] = text.lines().map(parse).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((&named["event"], &named["message"]), (&"peer_lost".into(), &"lost duckduck…".into()));
    assert_eq!((&named["peer"], &named["count"], &named["up"]), (&"duckduck…".into(), &3.into(), &true.into()));
    assert_eq!(named["span"], serde_json::json!({"name": "link", "peer": "duckduck…", "route": "(address)"}));
    assert_eq!((other["event"].as_str(), &other["level"]), (None, &"WARN".into()));
}

#[test]
fn lines_that_are_equal_once_addresses_are_hidden_are_counted_together() {
    let (log, lines) = memory(Sink::JournalText);
    tracing::subscriber::with_default(subscriber(&log, "info"), || (1..=3).for_each(lose_a_peer));
    assert_eq!(lines.text().lines().count(), 1, "{}", lines.text());
    log.finish();
    let text = lines.text();
    let [once, report] = text.lines().collect::<Vec<_>>().try_into().unwrap();
    assert!(report.starts_with(&format!("{once} (repeated 2 times within ")), "{report}");
    assert_eq!(log.recent().len(), 2, "the lines that are kept are those that were written");
    log.finish();
    assert_eq!(lines.text(), text);
}

#[tokio::test(start_paused = true)]
async fn a_count_is_reported_when_its_time_has_come_though_no_other_line_comes() {
    let (log, lines) = memory(Sink::JournalText);
    let reporting = {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.report_repeated().await })
    };
    tokio::task::yield_now().await;
    tracing::subscriber::with_default(subscriber(&log, "info"), || {
        for _ in 0..3 {
            tracing::warn!("full");
        }
    });
    assert_eq!(lines.text().lines().count(), 1);
    let reported = async {
        while lines.text().lines().count() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), reported).await.unwrap();
    assert!(lines.text().contains("full (repeated 2 times within 10 s, last "), "{}", lines.text());
    reporting.abort();
}
