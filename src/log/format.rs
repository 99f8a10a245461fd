//! The formats of lines: text, text for systemd's journal, JSON.
//!
//! What others have sent may be in a line. A text has no control character, so that nothing begins
//! a line of its own or changes a terminal.

use std::fmt::Write;

use serde::Serializer;
use serde::ser::SerializeMap;
use tracing::Level;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::line::{Field, Line, Span, Value};
use super::repeats::Repeated;

/// Codes of a terminal, or nothing in their place.
#[derive(Clone, Copy)]
struct Style(bool);

impl Style {
    fn write(self, to: &mut String, code: &str, text: &str) {
        match self.0 {
            // Writing to a text does not fail.
            true => _ = write!(to, "\u{1b}[{code}m{text}\u{1b}[0m"),
            false => to.push_str(text),
        }
    }
}

const BOLD: &str = "1";
const DIM: &str = "2";
const ITALIC: &str = "3";

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "31",
        Level::WARN => "33",
        Level::INFO => "32",
        Level::DEBUG => "34",
        Level::TRACE => "35",
    }
}

/// The level in the notation of syslog and the journal (`sd-daemon(3)`).
pub(super) fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// The time as in the log.
pub(super) fn now() -> String {
    let mut time = String::new();
    // It fails only if the clock is beyond what a date can say.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    time
}

/// A text with the time, with colours for a terminal if `ansi`.
pub(super) fn timed_text(line: &Line, repeated: Option<Repeated>, ansi: bool, time: &str) -> String {
    let mut text = String::new();
    Style(ansi).write(&mut text, DIM, time);
    text.push(' ');
    write_text(&mut text, line, repeated, Style(ansi));
    text.push('\n');
    text
}

/// A text for standard error that is the journal's: it has its own time, and takes the level from
/// the beginning.
pub(super) fn journal_text(line: &Line, repeated: Option<Repeated>) -> String {
    let mut text = format!("<{}>", priority(line.level));
    write_text(&mut text, line, repeated, Style(false));
    text.push('\n');
    text
}

/// The text without the time, for an entry of the journal.
pub(super) fn message_text(line: &Line, repeated: Option<Repeated>) -> String {
    let mut text = String::new();
    write_text(&mut text, line, repeated, Style(false));
    text.trim_start().to_owned()
}

fn write_text(to: &mut String, line: &Line, repeated: Option<Repeated>, style: Style) {
    style.write(to, colour(line.level), &format!("{:>5}", line.level.as_str()));
    to.push(' ');
    for Span { name, fields } in &line.spans {
        style.write(to, BOLD, name);
        if !fields.is_empty() {
            style.write(to, BOLD, "{");
            write_fields(to, fields, style);
            style.write(to, BOLD, "}");
        }
        style.write(to, DIM, ":");
    }
    if !line.spans.is_empty() {
        to.push(' ');
    }
    style.write(to, DIM, &format!("{}:", line.target));
    if !line.message.is_empty() {
        to.push(' ');
        to.push_str(&escaped(&line.message));
    }
    if !line.fields.is_empty() {
        to.push(' ');
        write_fields(to, &line.fields, style);
    }
    if let Some(report @ Repeated { times, ago, .. }) = repeated {
        let plural = if times == 1 { "once" } else { &format!("{times} times") };
        // Writing to a text does not fail.
        let _ = write!(to, " (repeated {plural} within {} s, last {} s ago)", report.within_seconds(), ago.as_secs());
    }
}

fn write_fields(to: &mut String, fields: &[Field], style: Style) {
    for (at, Field { name, value }) in fields.iter().enumerate() {
        if at > 0 {
            to.push(' ');
        }
        style.write(to, ITALIC, name);
        style.write(to, DIM, "=");
        match value {
            Value::Text(text) => to.push_str(&format!("{text:?}")),
            other => to.push_str(&escaped(&other.to_string())),
        }
    }
}

/// The text with its control characters in the notation of Rust.
fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for it in text.chars() {
        match it.is_control() {
            true => shown.extend(it.escape_default()),
            false => shown.push(it),
        }
    }
    shown
}

/// Names that an object in JSON has itself. A field of a line with such a name gets a prefix.
const OWN_NAMES: [&str; 10] = [
    "event",
    "timestamp",
    "level",
    "message",
    "target",
    "span",
    "spans",
    "repeated",
    "repeated_seconds",
    "repeated_last_seconds",
];

/// One JSON object, with the event's name as `event` if it has one.
///
/// # Errors
/// None in practice: a text takes everything.
pub(super) fn json(line: &Line, repeated: Option<Repeated>, time: &str) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut bytes);
    let mut object = serializer.serialize_map(None)?;
    if let Some(event) = line.event {
        object.serialize_entry("event", event)?;
    }
    object.serialize_entry("timestamp", time)?;
    object.serialize_entry("level", line.level.as_str())?;
    object.serialize_entry("message", &line.message)?;
    for Field { name, value } in &line.fields {
        match OWN_NAMES.contains(name) {
            true => object.serialize_entry(&format!("field_{name}"), &of_json(value))?,
            false => object.serialize_entry(name, &of_json(value))?,
        }
    }
    if let Some(report @ Repeated { times, ago, .. }) = repeated {
        object.serialize_entry("repeated", &times)?;
        object.serialize_entry("repeated_seconds", &report.within_seconds())?;
        object.serialize_entry("repeated_last_seconds", &ago.as_secs())?;
    }
    object.serialize_entry("target", &line.target)?;
    let spans: Vec<_> = line.spans.iter().map(span_in_json).collect();
    if let Some(innermost) = spans.last() {
        object.serialize_entry("span", innermost)?;
        object.serialize_entry("spans", &spans)?;
    }
    object.end()?;
    bytes.push(b'\n');
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn of_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) | Value::Shown(text) => text.as_str().into(),
        Value::Number(number) => number.clone().into(),
        Value::Bool(it) => (*it).into(),
    }
}

fn span_in_json(span: &Span) -> serde_json::Value {
    let fields = span.fields.iter().map(|field| (field.name.to_owned(), of_json(&field.value)));
    fields.chain([("name".to_owned(), span.name.into())]).collect::<serde_json::Map<_, _>>().into()
}

#[cfg(test)]
mod tests;
