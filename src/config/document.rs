//! Generates `docs/CONFIGURATION.md` from the tables, and tests that the file is up to date. With
//! `RUSTBALANCE_WRITE_DOCS=1` the test writes the file.

use std::fmt::Write;
use std::path::Path;

use super::keys::{Effect, KeyVisitor, Value};
use super::{Config, FILE_NAME, tables};

struct Document(String);

impl Document {
    fn heading(&mut self, title: &str, meaning: &str) {
        let _ = write!(self.0, "\n## {title}\n");
        if !meaning.is_empty() {
            let _ = write!(self.0, "\n{meaning}\n");
        }
    }

    fn columns(&mut self) {
        self.0.push_str("\n| key | default | allowed | a change needs | meaning |\n|---|---|---|---|---|\n");
    }

    fn row<V: Value>(&mut self, name: &str, effect: Effect, default: &str, allowed: &V::Allowed, meaning: &str) {
        let (allowed, needs) = (V::allowed(allowed).unwrap_or_default(), needs(effect));
        let _ = writeln!(self.0, "| `{name}` | {default} | {allowed} | {needs} | {meaning} |");
    }
}

/// What an operator does for a changed value to take effect.
fn needs(effect: Effect) -> &'static str {
    match effect {
        Effect::Running => "reload",
        Effect::Restart => "restart",
    }
}

impl KeyVisitor for Document {
    fn table(&mut self, name: &'static str, meaning: &'static str) {
        self.heading(&format!("`[{name}]`"), meaning);
        self.columns();
    }

    fn key<V: Value>(
        &mut self,
        name: &'static str,
        effect: Effect,
        allowed: V::Allowed,
        value: &mut V,
        meaning: &'static str,
    ) {
        self.row::<V>(name, effect, &format!("`{}`", value.show()), &allowed, meaning);
    }

    fn optional<V: Value>(
        &mut self,
        name: &'static str,
        effect: Effect,
        allowed: V::Allowed,
        _value: &mut Option<V>,
        example: V,
        meaning: &'static str,
    ) {
        self.row::<V>(name, effect, &format!("none; for example `{}`", example.show()), &allowed, meaning);
    }

    fn each<T: Default>(
        &mut self,
        name: &'static str,
        _named_by: &'static [&'static str],
        meaning: &'static str,
        _items: &mut Vec<T>,
        keys: fn(&mut Self, &mut T, &[T]),
    ) {
        self.heading(&format!("`[[{name}]]`"), meaning);
        self.columns();
        keys(self, &mut T::default(), &[]);
    }

    fn inside<T>(&mut self, name: &'static str, meaning: &'static str, item: &mut T, keys: fn(&mut Self, &mut T)) {
        self.heading(&format!("`[port.{name}]`"), meaning);
        self.columns();
        keys(self, item);
    }

    fn foreign(&mut self, name: &'static str, effect: Effect, meaning: &'static str, _text: &mut String) -> bool {
        self.heading(&format!("`[{name}]`"), &format!("{meaning} A change needs a {}.", needs(effect)));
        false
    }

    fn require(&mut self, _name: &'static str, _holds: bool, _why: impl FnOnce() -> String) {}
}

fn document() -> String {
    let mut document = Document(format!(
        "# Configuration\n\n\
         `{FILE_NAME}` in the state directory configures one node. `init` and `join` write it with every other key as a \
         comment\nthat shows its default, or an example if it has none. The daemon reads the file when it starts. An \
         unknown key and a value\nthat is not allowed are errors, which name the line, the nearest key and the allowed \
         values. A time has a unit: `\"500ms\"`,\n`\"2s\"`, `\"30m\"`, `\"1h\"`.\n\n\
         To apply a change, run `rustbalance reload` (or `systemctl reload rustbalance`): it reads the file, and applies every \
         changed\nkey that the tables below mark with *reload*, for the connections, streams and checks that begin afterwards. \
         No stream\nis dropped. A changed key marked with *restart* takes effect when the daemon is restarted; the command \
         names it. A file\nwith a mistake is refused whole. A test generates this page from `src/config/tables.rs`, which \
         defines every key.\n"
    ));
    document.heading("Keys above all tables", "");
    document.columns();
    tables::walk(&mut document, &mut Config::default());
    document.0
}

#[test]
fn the_document_says_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CONFIGURATION.md");
    if std::env::var_os("RUSTBALANCE_WRITE_DOCS").is_some() {
        std::fs::write(&path, document()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written == document(), "{} is out of date: run this test with RUSTBALANCE_WRITE_DOCS=1", path.display());
}
