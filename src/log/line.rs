//! A line of the log as data: what an event and the spans around it say.

use std::error::Error;
use std::fmt;

use serde_json::Number;
use tracing::field::{Field as EventField, Visit};
use tracing::{Event, Level};

use crate::causes::with_causes;
use crate::redact::shortened;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Line {
    pub(super) level: Level,
    /// The module or crate that logs.
    pub(super) target: String,
    /// The name that does not change with the text; `None` for lines of other crates, and of ours
    /// at the levels debug and trace.
    pub(super) event: Option<&'static str>,
    pub(super) place: Option<Place>,
    pub(super) message: String,
    pub(super) fields: Vec<Field>,
    /// The outermost first.
    pub(super) spans: Vec<Span>,
}

/// Where the source text of a line is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) file: &'static str,
    pub(super) line: u32,
}

/// A span around a line.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Span {
    pub(super) name: &'static str,
    pub(super) fields: Vec<Field>,
}

/// A value with its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Value {
    /// A text, in quotes where it stands among others.
    Text(String),
    /// What a type's `Display` or `Debug` writes.
    Shown(String),
    Number(Number),
    Bool(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Shown(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
            Self::Bool(it) => it.fmt(f),
        }
    }
}

impl Line {
    /// The line of this event, without spans.
    pub(super) fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let place = metadata.file().zip(metadata.line()).map(|(file, line)| Place { file, line });
        Self {
            level: *metadata.level(),
            target: fields.log_target.unwrap_or_else(|| metadata.target().to_owned()),
            // Without a name of its own an event is named after its place in the source text.
            event: Some(metadata.name()).filter(|name| !name.contains(' ')),
            place,
            message: fields.message,
            fields: fields.others,
            spans: Vec::new(),
        }
    }

    /// With shortened onion addresses and without IP addresses of other hosts, in the message and
    /// in each field.
    pub(super) fn shortened(&self) -> Self {
        Self {
            message: shortened(&self.message),
            fields: self.fields.iter().map(Field::shortened).collect(),
            spans: self.spans.iter().map(Span::shortened).collect(),
            ..self.clone()
        }
    }

    /// Bytes of its texts.
    pub(super) fn size(&self) -> usize {
        let fields = self.spans.iter().flat_map(|span| &span.fields).chain(&self.fields);
        self.target.len() + self.message.len() + fields.map(Field::size).sum::<usize>()
    }
}

impl Span {
    fn shortened(&self) -> Self {
        Self { name: self.name, fields: self.fields.iter().map(Field::shortened).collect() }
    }
}

impl Field {
    fn shortened(&self) -> Self {
        let value = match &self.value {
            Value::Text(text) => Value::Text(shortened(text)),
            Value::Shown(text) => Value::Shown(shortened(text)),
            other @ (Value::Number(_) | Value::Bool(_)) => other.clone(),
        };
        Self { name: self.name, value }
    }

    fn size(&self) -> usize {
        let text = match &self.value {
            Value::Text(text) | Value::Shown(text) => text.len(),
            Value::Number(_) | Value::Bool(_) => size_of::<Number>(),
        };
        self.name.len() + text
    }
}

/// Collects the fields of an event or a span.
#[derive(Debug, Default)]
pub(super) struct Fields {
    message: String,
    pub(super) others: Vec<Field>,
    /// The target of a line that came from the crate `log`.
    log_target: Option<String>,
}

impl Fields {
    /// Those of a span, of which some are recorded later.
    pub(super) fn known(others: Vec<Field>) -> Self {
        Self { others, ..Self::default() }
    }

    fn push(&mut self, field: &EventField, value: Value) {
        match field.name() {
            "message" => self.message = value.to_string(),
            "log.target" => self.log_target = Some(value.to_string()),
            // The place of a line that came from the crate `log`.
            name if name.starts_with("log.") => {}
            name => {
                // A span's value may be recorded again.
                let name = name.strip_prefix("r#").unwrap_or(name);
                match self.others.iter_mut().find(|field| field.name == name) {
                    Some(known) => known.value = value,
                    None => self.others.push(Field { name, value }),
                }
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &EventField, value: &dyn fmt::Debug) {
        self.push(field, Value::Shown(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &EventField, value: &str) {
        self.push(field, Value::Text(value.to_owned()));
    }

    fn record_error(&mut self, field: &EventField, value: &(dyn Error + 'static)) {
        self.push(field, Value::Shown(with_causes(value)));
    }

    fn record_bool(&mut self, field: &EventField, value: bool) {
        self.push(field, Value::Bool(value));
    }

    fn record_i64(&mut self, field: &EventField, value: i64) {
        self.push(field, Value::Number(value.into()));
    }

    fn record_u64(&mut self, field: &EventField, value: u64) {
        self.push(field, Value::Number(value.into()));
    }

    fn record_f64(&mut self, field: &EventField, value: f64) {
        // NaN and infinity are not numbers of JSON.
        let value = Number::from_f64(value).map_or_else(|| Value::Shown(value.to_string()), Value::Number);
        self.push(field, value);
    }
}
