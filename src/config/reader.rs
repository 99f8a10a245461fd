//! Reads the values of a file while the tables are walked, and finds every mistake with its place.
//!
//! The keys that the walk asks for are the known ones, so a key that is left over is unknown. An
//! unmet requirement is reported only if there is no other mistake, because a key that seems to be
//! missing is often misspelt.

use std::collections::BTreeMap;
use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Effect, KeyVisitor, Refused, Value};
use super::{Config, tables};
use crate::syntax;
use crate::typed;

/// Most mistakes shown at once.
const SHOWN: usize = 12;
/// Most characters of a wrong value that are shown.
const LONGEST: usize = 80;
/// Name, in messages, for keys outside of tables.
const TOP: &str = "the top level";

/// One mistake in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Line and column, counted from 1; `None` if the mistake has no place in the file.
    place: Option<(usize, usize)>,
    text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "line {line}, column {column}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// All mistakes in the keys and values of a configuration file, in the file's order. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [mistake] = self.0.as_slice() {
            return mistake.fmt(f);
        }
        write!(f, "{} mistakes:", self.0.len())?;
        self.0.iter().take(SHOWN).try_for_each(|mistake| write!(f, "\n  {mistake}"))?;
        match self.0.len().checked_sub(SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\n  and {more} more"),
        }
    }
}

/// Reads the configuration from `text`, which is passed in two parsed forms as well: `document`
/// keeps the place of each value, `table` is for tables that are passed on unchanged.
pub(super) fn read(
    text: &str,
    document: Spanned<DeTable<'_>>,
    table: toml::Table,
) -> Result<(Config, Vec<Mistake>), Mistakes> {
    let mut config = Config::default();
    let mut reader = Reader {
        text,
        top: Section { name: TOP.into(), start: None, keys: document.into_inner(), places: BTreeMap::new() },
        inner: None,
        foreign: table,
        known: Vec::new(),
        unknown: Vec::new(),
        renamed: Vec::new(),
        mistakes: Vec::new(),
        unmet_requirements: Vec::new(),
    };
    tables::walk(&mut reader, &mut config);
    reader.finish().map(|renamed| (config, renamed))
}

/// A table of the file, with the keys that have not been read yet.
struct Section<'t> {
    /// Name for messages.
    name: String,
    /// Byte offset of the table; `None` if it is not in the file.
    start: Option<usize>,
    keys: DeTable<'t>,
    /// Byte offsets of the keys that have been read.
    places: BTreeMap<&'static str, usize>,
}

struct Reader<'t> {
    text: &'t str,
    top: Section<'t>,
    /// The table that is being walked; `None` at the top level.
    inner: Option<Section<'t>>,
    /// The whole file again, for tables that are passed on unchanged.
    foreign: toml::Table,
    /// Table and name of every key that the walk has asked for.
    known: Vec<(String, &'static str)>,
    /// Table, name and byte offset of every other key in the file.
    unknown: Vec<(String, String, usize)>,
    /// Hints about keys that were read by their former names.
    renamed: Vec<Mistake>,
    mistakes: Vec<Mistake>,
    unmet_requirements: Vec<Mistake>,
}

impl<'t> Reader<'t> {
    fn section(&mut self) -> &mut Section<'t> {
        self.inner.as_mut().unwrap_or(&mut self.top)
    }

    /// Takes the value of a key out of the current table; `None` if the key is not there.
    fn take(&mut self, name: &'static str) -> Option<Spanned<DeValue<'t>>> {
        let section = self.section();
        let mut entry = section.keys.remove_entry(name);
        if entry.is_none()
            && let Some(former) = tables::former_name(&section.name, name)
            && let Some((key, value)) = section.keys.remove_entry(former)
        {
            let text = format!("{former:?} in {} is called {name:?} now: rename it", section.name);
            let hint = self.mistake(Some(key.span().start), text);
            self.renamed.push(hint);
            entry = Some((key, value));
        }
        let section = self.section();
        if let Some((key, _)) = &entry {
            section.places.insert(name, key.span().start);
        }
        let table = section.name.clone();
        self.known.push((table, name));
        entry.map(|(_, value)| value)
    }

    /// Begins a table that was taken from the top level.
    fn begin(&mut self, name: String, start: Option<usize>, keys: DeTable<'t>) {
        self.end();
        self.inner = Some(Section { name, start, keys, places: BTreeMap::new() });
    }

    /// Ends the current table: the keys that are left in it are unknown.
    fn end(&mut self) {
        if let Some(section) = self.inner.take() {
            self.mark_unknown(section.name, section.keys);
        }
    }

    fn mark_unknown(&mut self, table: String, keys: DeTable<'t>) {
        let names = keys.into_iter().map(|(key, _)| (table.clone(), key.get_ref().to_string(), key.span().start));
        self.unknown.extend(names);
    }

    fn mistake(&self, at: Option<usize>, text: String) -> Mistake {
        Mistake { place: at.map(|at| syntax::place(self.text, at)), text }
    }

    /// Records that `value`, of the key `name` in the current table, was refused.
    fn refuse(&mut self, name: &str, value: &Spanned<DeValue<'t>>, refused: Refused) {
        let span = value.span();
        let shown = match value.get_ref() {
            DeValue::Table(_) => "a table".into(),
            DeValue::Array(_) => "a list".into(),
            _ => shortened(self.text.get(span.clone()).unwrap_or_default()),
        };
        let table = self.section().name.clone();
        let text = match refused {
            Refused::Instead(instead) => format!("{name:?} in {table} cannot be {shown}: write {instead}"),
            Refused::Because(why) => format!("{name:?} in {table}: {why}"),
        };
        let mistake = self.mistake(Some(span.start), text);
        self.mistakes.push(mistake);
    }

    fn value<V: Value>(&mut self, name: &'static str, allowed: &V::Allowed) -> Option<V> {
        let value = self.take(name)?;
        V::read(value.get_ref(), allowed).map_err(|refused| self.refuse(name, &value, refused)).ok()
    }

    /// Takes the value of a table at the top level, with its byte offset.
    fn take_top(&mut self, name: &'static str) -> Option<(usize, Spanned<DeValue<'t>>)> {
        self.end();
        let value = self.take(name)?;
        Some((self.top.places.get(name).copied().unwrap_or_default(), value))
    }

    fn finish(mut self) -> Result<Vec<Mistake>, Mistakes> {
        self.end();
        let rest = std::mem::take(&mut self.top.keys);
        self.mark_unknown(TOP.into(), rest);
        for (table, key, at) in std::mem::take(&mut self.unknown) {
            let text = format!("unknown key {key:?} in {table}: {}", self.hint(&table, &key));
            let mistake = self.mistake(Some(at), text);
            self.mistakes.push(mistake);
        }
        let mut mistakes = if self.mistakes.is_empty() { self.unmet_requirements } else { self.mistakes };
        mistakes.sort();
        if mistakes.is_empty() { Ok(self.renamed) } else { Err(Mistakes(mistakes)) }
    }

    /// Advice on an unknown key: the key that was most likely meant, or all keys of its table.
    fn hint(&self, table: &str, key: &str) -> String {
        let (here, elsewhere): (Vec<_>, Vec<_>) = self.known.iter().partition(|(known_in, _)| known_in == table);
        let nearly = elsewhere.iter().map(|(other, name)| (strsim::osa_distance(key, name), other, *name));
        if let Some(name) = typed::meant(key, here.iter().map(|(_, name)| *name)) {
            format!("did you mean {name:?}?")
        } else if let Some((_, other, name)) = nearly.filter(|(distance, ..)| *distance <= 1).min() {
            format!("{name:?} belongs in {other}")
        } else {
            let mut names: Vec<_> = here.iter().map(|(_, name)| *name).collect();
            names.sort_unstable();
            names.dedup();
            format!("known keys are {}", names.join(", "))
        }
    }
}

impl KeyVisitor for Reader<'_> {
    fn table(&mut self, name: &'static str, _meaning: &'static str) {
        let (start, keys) = match self.take_top(name) {
            None => (None, DeTable::new()),
            Some((start, value)) => match value.get_ref() {
                DeValue::Table(keys) => (Some(start), keys.clone()),
                _ => {
                    self.refuse(name, &value, Refused::Instead(format!("a table, [{name}]")));
                    (Some(start), DeTable::new())
                }
            },
        };
        self.begin(format!("[{name}]"), start, keys);
    }

    fn key<V: Value>(
        &mut self,
        name: &'static str,
        _effect: Effect,
        allowed: V::Allowed,
        value: &mut V,
        _meaning: &'static str,
    ) {
        if let Some(read) = self.value(name, &allowed) {
            *value = read;
        }
    }

    fn optional<V: Value>(
        &mut self,
        name: &'static str,
        _effect: Effect,
        allowed: V::Allowed,
        value: &mut Option<V>,
        _example: V,
        _meaning: &'static str,
    ) {
        *value = self.value(name, &allowed);
    }

    fn each<T: Default>(
        &mut self,
        name: &'static str,
        _named_by: &'static [&'static str],
        _meaning: &'static str,
        items: &mut Vec<T>,
        keys: fn(&mut Self, &mut T, &[T]),
    ) {
        let Some((_, value)) = self.take_top(name) else { return };
        let tables = match value.get_ref() {
            DeValue::Array(list) => list.iter().cloned().collect(),
            _ => vec![value.clone()],
        };
        for table in tables {
            match table.get_ref() {
                DeValue::Table(inner) if matches!(value.get_ref(), DeValue::Array(_)) => {
                    self.begin(format!("[[{name}]]"), Some(table.span().start), inner.clone());
                    let mut item = T::default();
                    keys(self, &mut item, items);
                    items.push(item);
                }
                _ => self.refuse(name, &table, Refused::Instead(format!("a table for each, [[{name}]]"))),
            }
        }
        self.end();
    }

    fn inside<T>(&mut self, name: &'static str, _meaning: &'static str, item: &mut T, keys: fn(&mut Self, &mut T)) {
        let value = self.take(name);
        let section = self.section();
        let outer_name = section.name.trim_matches(['[', ']']).to_owned();
        let start = section.places.get(name).copied();
        let inner = match value.as_ref().map(Spanned::get_ref) {
            None => DeTable::new(),
            Some(DeValue::Table(inner)) => inner.clone(),
            Some(_) => {
                if let Some(value) = &value {
                    self.refuse(name, value, Refused::Instead(format!("a table, [{outer_name}.{name}]")));
                }
                DeTable::new()
            }
        };
        let outer = self.inner.take();
        self.begin(format!("[{outer_name}.{name}]"), start, inner);
        keys(self, item);
        self.end();
        self.inner = outer;
    }

    fn foreign(&mut self, name: &'static str, _effect: Effect, _meaning: &'static str, text: &mut String) -> bool {
        let Some((start, value)) = self.take_top(name) else { return false };
        match self.foreign.remove(name) {
            Some(toml::Value::Table(table)) => match toml::to_string(&table) {
                Ok(written) => *text = written,
                Err(error) => {
                    let mistake = self.mistake(Some(start), format!("{name:?} in {TOP}: {error}"));
                    self.mistakes.push(mistake);
                }
            },
            // The message leaves the value out, because it may be a bridge line.
            _ => self.refuse(name, &value, Refused::Because(format!("it is a table, write [{name}]"))),
        }
        true
    }

    fn require(&mut self, name: &'static str, holds: bool, why: impl FnOnce() -> String) {
        if holds {
            return;
        }
        let section = self.section();
        let (at, table) = (section.places.get(name).copied().or(section.start), section.name.clone());
        let mistake = self.mistake(at, format!("{name:?} in {table}: {}", why()));
        self.unmet_requirements.push(mistake);
    }
}

/// A value as the operator wrote it, on one line and not too long.
fn shortened(text: &str) -> String {
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((at, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(at);
        line.push_str("...");
    }
    line
}
