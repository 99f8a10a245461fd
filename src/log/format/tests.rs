//! Lines as they are written, in each format.

use std::time::Duration;

use super::*;

const TIME: &str = "2026-11-30T20:06:30.123456Z";

fn line() -> Line {
    Line {
        level: Level::WARN,
        target: "rustbalance::link".into(),
        event: Some("peer_lost"),
        place: None,
        message: "lost\nat \u{1b}[31mnight".into(),
        fields: vec![
            Field { name: "peer", value: Value::Text("a \"b\"\u{85}".into()) },
            Field { name: "error", value: Value::Shown("gone\r\n<3>forged".into()) },
            Field { name: "count", value: Value::Number(3.into()) },
            Field { name: "level", value: Value::Bool(true) },
        ],
        spans: vec![Span { name: "link", fields: vec![Field { name: "route", value: Value::Shown("tor".into()) }] }],
    }
}

const REPEATED: Repeated = Repeated { times: 12, within: Duration::from_millis(60_001), ago: Duration::from_secs(7) };

#[test]
fn a_text_has_no_control_character_of_others() {
    let text = timed_text(&line(), None, false, TIME);
    assert_eq!(
        text,
        "2026-11-30T20:06:30.123456Z  WARN link{route=tor}: rustbalance::link: lost\\nat \\u{1b}[31mnight \
         peer=\"a \\\"b\\\"\\u{85}\" error=gone\\r\\n<3>forged count=3 level=true\n"
    );
    let coloured = timed_text(&line(), None, true, TIME);
    assert!(coloured.contains("\u{1b}[33m WARN\u{1b}[0m"), "{coloured}");
    let mut plain = coloured.clone();
    while let Some((start, end)) = plain.find('\u{1b}').and_then(|at| Some((at, at + plain[at..].find('m')?))) {
        plain.replace_range(start..=end, "");
    }
    assert_eq!(plain, text);
}

#[test]
fn the_journal_takes_the_level_and_has_its_own_time() {
    let text = journal_text(&line(), Some(REPEATED));
    assert!(text.starts_with("<4> WARN link{route=tor}: rustbalance::link: lost"), "{text}");
    assert!(text.ends_with(" level=true (repeated 12 times within 61 s, last 7 s ago)\n"), "{text}");
    assert_eq!(text.lines().count(), 1);
    let once = Repeated { times: 1, within: Duration::from_secs(10), ago: Duration::ZERO };
    assert!(journal_text(&line(), Some(once)).ends_with(" (repeated once within 10 s, last 0 s ago)\n"));
}

#[test]
fn json_has_the_event_the_fields_and_how_often_it_was_repeated() {
    let text = json(&line(), Some(REPEATED), TIME).unwrap();
    let expected = serde_json::json!({
        "event": "peer_lost", "timestamp": TIME, "level": "WARN", "message": "lost\nat \u{1b}[31mnight",
        "peer": "a \"b\"\u{85}", "error": "gone\r\n<3>forged", "count": 3, "field_level": true,
        "repeated": 12, "repeated_seconds": 61.0, "repeated_last_seconds": 7, "target": "rustbalance::link",
        "span": { "name": "link", "route": "tor" }, "spans": [{ "name": "link", "route": "tor" }],
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
    assert!(text.starts_with("{\"event\":\"peer_lost\",\"timestamp\":") && text.lines().count() == 1, "{text}");
    let bare = Line { event: None, fields: Vec::new(), spans: Vec::new(), ..line() };
    let value: serde_json::Value = serde_json::from_str(&json(&bare, None, TIME).unwrap()).unwrap();
    assert_eq!(Vec::from_iter(value.as_object().unwrap().keys()), ["level", "message", "target", "timestamp"]);
}
