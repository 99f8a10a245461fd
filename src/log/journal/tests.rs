//! Entries of the journal, as journald reads them.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tracing::Level;

use super::*;
use crate::log::line::{Span, Value};

/// Reads an entry as journald does.
pub(in crate::log) fn read(entry: &[u8]) -> Option<Vec<(String, String)>> {
    let (mut fields, mut rest) = (Vec::new(), entry);
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b'\n'))?;
        let (name, value) = (&rest[..end], &rest[end + 1..]);
        let (value, after) = match rest[end] {
            b'=' => value.split_at(value.iter().position(|byte| *byte == b'\n')?),
            _ => {
                let (length, value) = value.split_first_chunk()?;
                value.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?
            }
        };
        rest = after.strip_prefix(b"\n")?;
        fields.push((String::from_utf8(name.to_vec()).ok()?, String::from_utf8(value.to_vec()).ok()?));
    }
    Some(fields)
}

fn text(name: &'static str, value: &str) -> Field {
    Field { name, value: Value::Text(value.into()) }
}

fn line(fields: Vec<Field>) -> Line {
    Line {
        level: Level::WARN,
        target: "rustbalance::link".into(),
        event: Some("peer_lost"),
        place: Some(Place { file: "src/link/task.rs", line: 7 }),
        message: "lost".into(),
        fields,
        spans: vec![Span { name: "link", fields: vec![text("peer", "duckduck…")] }],
    }
}

#[test]
fn an_entry_has_the_message_and_each_value_in_a_field() {
    let repeated = Some(Repeated { times: 3, within: Duration::from_secs(10), ago: Duration::from_secs(2) });
    let entry = entry(&line(vec![text("error", "gone\nPRIORITY=0"), text("event", "forged")]), repeated);
    let fields = read(&entry).unwrap();
    let expected = [
        ("PRIORITY", "4"),
        ("SYSLOG_FACILITY", "3"),
        ("SYSLOG_IDENTIFIER", "rustbalance"),
        (
            "MESSAGE",
            "WARN link{peer=\"duckduck…\"}: rustbalance::link: lost error=\"gone\\nPRIORITY=0\" event=\"forged\" \
             (repeated 3 times within 10 s, last 2 s ago)",
        ),
        ("RUSTBALANCE_EVENT", "peer_lost"),
        ("TARGET", "rustbalance::link"),
        ("CODE_FILE", "src/link/task.rs"),
        ("CODE_LINE", "7"),
        ("RUSTBALANCE_PEER", "duckduck…"),
        ("RUSTBALANCE_ERROR", "gone\nPRIORITY=0"),
        ("RUSTBALANCE_FIELD_EVENT", "forged"),
        ("RUSTBALANCE_REPEATED", "3"),
        ("RUSTBALANCE_REPEATED_SECONDS", "10"),
        ("RUSTBALANCE_REPEATED_LAST_SECONDS", "2"),
    ];
    assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(entry.windows(26).any(|part| part == b"RUSTBALANCE_ERROR\n\x0f\0\0\0\0\0\0\0"), "the length is written");
}

#[test]
fn names_are_those_that_journald_takes() {
    for (name, shown) in [("peer", "RUSTBALANCE_PEER"), ("a.b-c", "RUSTBALANCE_A_B_C"), ("_x9", "RUSTBALANCE__X9")] {
        assert_eq!(field_name(name), shown);
    }
    assert_eq!(field_name(&"x".repeat(100)).len(), MAX_NAME);
    assert_eq!(field_name("ä€"), "RUSTBALANCE___");
}

#[test]
fn long_values_are_cut_and_say_so() {
    assert_eq!(cut("short", 5), "short");
    let cut_text = cut(&"ä".repeat(3000), MAX_VALUE).into_owned();
    assert!(cut_text.len() <= MAX_VALUE && cut_text.ends_with("ä… (cut)"), "{cut_text}");
    let fields = (0..100).map(|_| text("long", &"x".repeat(100_000))).collect();
    let entry = entry(&line(fields), None);
    assert!(entry.len() < 208 * 1024, "{}", entry.len());
    let fields = read(&entry).unwrap();
    assert_eq!(fields.iter().filter(|(name, _)| name == "RUSTBALANCE_LONG").count(), MAX_FIELDS - 1);
    assert!(short_entry(&line(Vec::new()), None).len() < 2 * SHORT_MESSAGE);
}

#[test]
fn an_entry_that_is_too_large_for_the_system_is_sent_with_its_message_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let journald = UnixDatagram::bind(&path).unwrap();
    let mut journal = Journal::at(path).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&journal.socket, 8192).unwrap();
    let receive = || {
        let mut buffer = vec![0; 1 << 20];
        let length = journald.recv(&mut buffer).unwrap();
        BTreeMap::from_iter(read(&buffer[..length]).unwrap())
    };
    journal.send(&line(vec![text("x", "small")]), None).unwrap();
    assert_eq!(receive()["RUSTBALANCE_X"], "small");
    let large = (0..30).map(|_| text("x", &"x".repeat(4000))).collect();
    journal.send(&line(large), None).unwrap();
    let short = receive();
    assert!(short["MESSAGE"].contains("rustbalance::link: lost x=") && short["MESSAGE"].ends_with(CUT), "{short:?}");
    assert_eq!((short["RUSTBALANCE_EVENT"].as_str(), short.get("RUSTBALANCE_X")), ("peer_lost", None));
    drop(journald);
    assert!(journal.send(&line(Vec::new()), None).is_err(), "the line is then written as text");
}

proptest! {
    #[test]
    fn any_values_are_read_as_they_were_sent(values in prop::collection::vec("(?s).{0,200}", 0..8)) {
        let fields = values.iter().map(|value| text("value", value)).collect();
        let read = read(&entry(&line(fields), None)).unwrap();
        let received = read.into_iter().filter(|(name, _)| name == "RUSTBALANCE_VALUE");
        prop_assert_eq!(received.map(|(_, value)| value).collect::<Vec<_>>(), values);
    }
}

#[test]
fn a_journal_that_hangs_holds_up_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let _hanging = UnixDatagram::bind(&path).unwrap();
    let mut journal = Journal::at(path).unwrap();
    let line = line(Vec::new());
    // The journal does not read, so the queue of its socket fills.
    let filled = (0..10_000).find_map(|_| journal.send(&line, None).err()).expect("the queue takes everything");
    assert_eq!(filled.kind(), io::ErrorKind::WouldBlock);
    let start = Instant::now();
    (0..100).for_each(|_| assert!(journal.send(&line, None).is_err()));
    assert!(start.elapsed() < PATIENCE * 10, "each line waits");
}
