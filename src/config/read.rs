//! Reads TOML tables by asking for keys: what was asked for is what is known, so the code that reads a key is the one
//! place that names it, and every key that nobody asked for is an error that can name the nearest known one.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use toml::{Table, Value};

use super::Problem;

/// What has been asked for so far, and what was left over, over the whole document.
#[derive(Default)]
pub(super) struct Asked {
    known: RefCell<Vec<(String, &'static str)>>,
    unknown: RefCell<Vec<(String, String)>>,
}

impl Asked {
    /// Fails if any section had a key that nobody asked for.
    pub(super) fn finish(&self) -> Result<(), Problem> {
        match self.unknown.borrow().first() {
            None => Ok(()),
            Some((table, key)) => Err(self.unknown_key(table, key)),
        }
    }

    fn unknown_key(&self, table: &str, key: &str) -> Problem {
        let known = self.known.borrow();
        let (here, elsewhere): (Vec<_>, Vec<_>) = known.iter().partition(|(known_table, _)| known_table == table);
        let nearest = |candidates: &[&(String, &'static str)], most: usize| {
            let rated = candidates.iter().map(|(table, name)| (strsim::osa_distance(key, name), table.clone(), *name));
            rated.filter(|(distance, ..)| *distance <= most).min()
        };
        let hint = if let Some((_, _, name)) = nearest(&here, key.chars().count().div_ceil(3).max(1)) {
            format!("did you mean {name:?}?")
        } else if let Some((_, other, name)) = nearest(&elsewhere, 1) {
            format!("{name:?} belongs in {other}")
        } else {
            let mut names: Vec<_> = here.iter().map(|(_, name)| *name).collect();
            names.sort_unstable();
            names.dedup();
            format!("it knows {}", names.join(", "))
        };
        Problem::UnknownKey { key: key.into(), table: table.into(), hint }
    }
}

/// One table of the document.
pub(super) struct Section<'a> {
    name: String,
    table: Table,
    asked: &'a Asked,
}

impl<'a> Section<'a> {
    /// The document itself.
    pub(super) fn top(table: Table, asked: &'a Asked) -> Self {
        Self { name: "the top level".into(), table, asked }
    }

    /// The value of `key`, whatever it is.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.asked.known.borrow_mut().push((self.name.clone(), key));
        self.table.remove(key)
    }

    /// The table `[key]`, empty if it is not there.
    pub(super) fn section(&mut self, key: &'static str) -> Result<Section<'a>, Problem> {
        let table = match self.take(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => return Err(self.wrong(key, &other, format!("it is a table, write [{key}]"))),
        };
        Ok(Section { name: format!("[{key}]"), table, asked: self.asked })
    }

    /// The tables `[[key]]`.
    pub(super) fn sections(&mut self, key: &'static str) -> Result<Vec<Section<'a>>, Problem> {
        let list = match self.take(key) {
            None => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(self.wrong(key, &other, format!("it is a list of tables, write [[{key}]]"))),
        };
        list.into_iter()
            .map(|value| match value {
                Value::Table(table) => Ok(Section { name: format!("[[{key}]]"), table, asked: self.asked }),
                other => Err(self.wrong(key, &other, format!("it is a list of tables, write [[{key}]]"))),
            })
            .collect()
    }

    /// A text that reads as `T`.
    pub(super) fn text<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Result<Option<T>, Problem> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => match text.parse() {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(self.problem(key, error.to_string())),
            },
            Some(other) => Err(self.wrong(key, &other, "it is a text in quotes".into())),
        }
    }

    /// True or false.
    pub(super) fn flag(&mut self, key: &'static str) -> Result<Option<bool>, Problem> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Boolean(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(key, &other, "it is true or false, without quotes".into())),
        }
    }

    /// A whole number within `range`.
    pub(super) fn number<T: TryFrom<i64> + PartialOrd + Display>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
    ) -> Result<Option<T>, Problem> {
        let bounds = format!("it is a whole number from {} to {}", range.start(), range.end());
        match self.take(key) {
            None => Ok(None),
            Some(Value::Integer(number)) => match T::try_from(number) {
                Ok(number) if range.contains(&number) => Ok(Some(number)),
                _ => Err(self.wrong(key, &Value::Integer(number), bounds)),
            },
            Some(other) => Err(self.wrong(key, &other, bounds)),
        }
    }

    /// A time with its unit, within `range`.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, Problem> {
        let bounds = || {
            format!("it is a time from {} to {}, with its unit, in quotes", show(*range.start()), show(*range.end()))
        };
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => match humantime::parse_duration(&text) {
                Ok(time) if range.contains(&time) => Ok(Some(time)),
                _ => Err(self.wrong(key, &Value::String(text), bounds())),
            },
            Some(Value::Integer(number)) => {
                let problem = format!("{number} has no unit: write \"{number}s\" for seconds");
                Err(self.problem(key, problem))
            }
            Some(other) => Err(self.wrong(key, &other, bounds())),
        }
    }

    /// A time as in [`Section::duration`], or `"never"` (also `"off"`), which is `Some(None)`.
    pub(super) fn duration_or_never(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Result<Option<Option<Duration>>, Problem> {
        if self.table.get(key).and_then(Value::as_str).is_some_and(|text| matches!(text.trim(), NEVER | "off")) {
            self.take(key);
            return Ok(Some(None));
        }
        let read = self.duration(key, range).map_err(|problem| match problem {
            Problem::Value { key, table, problem } => {
                Problem::Value { key, table, problem: format!("{problem}; or {NEVER:?}") }
            }
            other => other,
        });
        Ok(read?.map(Some))
    }

    /// Notes the keys that nobody asked for; [`Asked::finish`] tells of them.
    pub(super) fn finish(self) {
        self.asked.unknown.borrow_mut().extend(self.table.into_iter().map(|(key, _)| (self.name.clone(), key)));
    }

    /// What is wrong with the value of `key`.
    pub(super) fn problem(&self, key: &str, problem: String) -> Problem {
        Problem::Value { key: key.into(), table: self.name.clone(), problem }
    }

    fn wrong(&self, key: &str, value: &Value, problem: String) -> Problem {
        let shown: String = value.to_string().chars().take(80).collect();
        self.problem(key, format!("cannot be {shown}: {problem}"))
    }
}

/// How a time that never comes is written.
const NEVER: &str = "never";

/// A time as one writes it in the file.
pub(super) fn show(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// The same for a time that may be off.
pub(super) fn show_or_never(time: Option<Duration>) -> String {
    time.map_or(NEVER.into(), show)
}
