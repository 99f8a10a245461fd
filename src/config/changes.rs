//! The keys whose values differ between two configurations.

use std::fmt;

use super::keys::{Effect, KeyVisitor, Value};
use super::{Config, tables};

/// A key whose value has changed. Its text (`[limits] streams changed from 4096 to 9`) holds no
/// secret and no onion address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    key: String,
    difference: Difference,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Difference {
    Changed(String, String),
    Added(String),
    Removed,
    /// The values are not shown: they may be secret.
    Hidden,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.difference {
            Difference::Changed(from, to) => write!(f, "{key} changed from {from} to {to}"),
            Difference::Added(value) => write!(f, "{key} added with {value}"),
            Difference::Removed => write!(f, "{key} removed"),
            Difference::Hidden => write!(f, "{key} changed"),
        }
    }
}

/// The keys with this effect whose values in `new` are not those in `old`, in the order of the
/// tables.
pub(super) fn changes(old: &Config, new: &Config, effect: Effect) -> Vec<Change> {
    let (old, new) = (Entries::of(old, effect), Entries::of(new, effect));
    let same = |a: &Entry, b: &Entry| a.identity == b.identity;
    let mut changes = Vec::new();
    for before in &old {
        match new.iter().find(|after| same(before, after)) {
            Some(after) if after.value == before.value => {}
            after => changes.push(before.to(after)),
        }
    }
    let added = new.iter().filter(|after| !old.iter().any(|before| same(before, after)));
    changes.extend(added.map(|after| after.change(Difference::Added(after.shown.clone().unwrap_or_default()))));
    changes
}

/// A key with its value, or one of several tables of the same name.
struct Entry {
    /// Tells it from all others of a configuration.
    identity: String,
    /// Its name in messages.
    key: String,
    value: String,
    /// The value in messages; `None` if it may be secret.
    shown: Option<String>,
}

impl Entry {
    fn change(&self, difference: Difference) -> Change {
        Change { key: self.key.clone(), difference }
    }

    fn to(&self, after: Option<&Self>) -> Change {
        let difference = match (after, &self.shown) {
            (None, _) => Difference::Removed,
            (Some(Self { shown: Some(to), .. }), Some(from)) => Difference::Changed(from.clone(), to.clone()),
            (Some(_), _) => Difference::Hidden,
        };
        self.change(difference)
    }
}

/// Collects the keys that have an effect.
struct Entries {
    effect: Effect,
    /// Prefix of the names of the current table's keys.
    table: String,
    entries: Vec<Entry>,
    /// The repeated table that is being visited.
    item: Option<Item>,
    /// Prefix of the names of keys in a table inside the repeated one.
    inside: String,
}

/// One of several tables of the same name. It counts as one key, because only whole tables come
/// and go.
struct Item {
    named_by: &'static [&'static str],
    identity: String,
    key: String,
    /// The keys by which it is not named, for messages.
    rest: Vec<String>,
    /// The same with values that messages must not show.
    whole: Vec<String>,
}

impl Entries {
    fn of(config: &Config, effect: Effect) -> Vec<Entry> {
        let mut list = Self { effect, table: String::new(), entries: Vec::new(), item: None, inside: String::new() };
        tables::walk(&mut list, &mut config.clone());
        list.entries
    }

    fn push<V: Value>(&mut self, name: &'static str, effect: Effect, value: Option<&V>) {
        if effect != self.effect {
            return;
        }
        match &mut self.item {
            Some(item) if self.inside.is_empty() && item.named_by.contains(&name) => {
                let Some(value) = value else { return };
                item.identity = format!("{} {}", item.identity, value.show());
                item.key = format!("{} {}", item.key, value.logged());
            }
            Some(item) => {
                let key = format!("{}{name}", self.inside);
                item.whole.extend(value.map(|value| format!("{key} = {}", value.show())));
                item.rest.extend(value.map(|value| format!("{key} = {}", value.logged())));
            }
            None => {
                let key = format!("{}{name}", self.table);
                let (shown, value) = (value.map(Value::logged), value.map(Value::show).unwrap_or_default());
                let shown = Some(shown.unwrap_or_else(|| "unset".into()));
                self.entries.push(Entry { identity: key.clone(), key, value, shown });
            }
        }
    }
}

impl KeyVisitor for Entries {
    fn table(&mut self, name: &'static str, _meaning: &'static str) {
        self.table = format!("[{name}] ");
    }

    fn key<V: Value>(
        &mut self,
        name: &'static str,
        effect: Effect,
        _allowed: V::Allowed,
        value: &mut V,
        _meaning: &'static str,
    ) {
        self.push(name, effect, Some(&*value));
    }

    fn optional<V: Value>(
        &mut self,
        name: &'static str,
        effect: Effect,
        _allowed: V::Allowed,
        value: &mut Option<V>,
        _example: V,
        _meaning: &'static str,
    ) {
        self.push(name, effect, value.as_ref());
    }

    fn each<T: Default>(
        &mut self,
        name: &'static str,
        named_by: &'static [&'static str],
        _meaning: &'static str,
        items: &mut Vec<T>,
        keys: fn(&mut Self, &mut T, &[T]),
    ) {
        for at in 0..items.len() {
            let (before, rest) = items.split_at_mut(at);
            let Some(item) = rest.first_mut() else { continue };
            let table = format!("[[{name}]]");
            self.item =
                Some(Item { named_by, identity: table.clone(), key: table, rest: Vec::new(), whole: Vec::new() });
            keys(self, item, before);
            let Some(Item { identity, key, rest, whole, .. }) = self.item.take() else { continue };
            if !rest.is_empty() {
                self.entries.push(Entry { identity, key, shown: Some(rest.join(", ")), value: whole.join(", ") });
            }
        }
    }

    fn inside<T>(&mut self, name: &'static str, _meaning: &'static str, item: &mut T, keys: fn(&mut Self, &mut T)) {
        self.inside = format!("{name}.");
        keys(self, item);
        self.inside.clear();
    }

    fn foreign(&mut self, name: &'static str, effect: Effect, _meaning: &'static str, text: &mut String) -> bool {
        if effect == self.effect {
            let key = format!("[{name}]");
            self.entries.push(Entry { identity: key.clone(), key, value: text.clone(), shown: None });
        }
        false
    }

    fn require(&mut self, _name: &'static str, _holds: bool, _why: impl FnOnce() -> String) {}
}
