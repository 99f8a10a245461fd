//! The file that `init` and `join` write: the values that the operator asked for, and every other
//! key as a comment with its default or an example.

use std::fmt::Write;
use std::path::Path;

use super::keys::{Effect, KeyVisitor, Value};
use super::{ARTI_FILE_NAME, Config, ConfigError, FILE_NAME, WireguardConfig, tables, write_new};
use crate::proxy::PortTarget;

/// Longest comment line, in characters, unless it is a single longer piece without a space.
const WIDTH: usize = 100;
/// The one repeated table.
const OUTER: &str = "port";
/// Said of a key that a reload does not change.
const NEEDS_RESTART: &str = "A change needs a restart.";

/// The values that the operator asked for at `init` or `join`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Initial {
    /// The virtual ports and their targets.
    pub ports: Vec<PortTarget>,
    /// Virtual ports of the address for which no target was given. They are written as comments.
    pub unserved: Vec<u16>,
    /// The text of the file given with `--arti-config` (see [`super::read_arti`]), which is copied
    /// unchanged; `None` if none was given.
    pub arti: Option<String>,
    /// The table `[wireguard]`, as `--wireguard` sets it.
    pub wireguard: WireguardConfig,
}

impl Config {
    /// Writes the initial configuration into the state directory `dir`.
    ///
    /// # Errors
    /// A file with another content exists (it is not changed), or the directory cannot be written.
    pub fn write_initial(dir: &Path, initial: &Initial) -> Result<(), ConfigError> {
        if let Some(arti) = &initial.arti {
            write_new(&dir.join(ARTI_FILE_NAME), arti)?;
        }
        write_new(&dir.join(FILE_NAME), &text(initial))
    }
}

/// The text of the file.
pub(super) fn text(initial: &Initial) -> String {
    let mut config = Config {
        ports: initial.ports.clone(),
        wireguard: initial.wireguard.clone(),
        arti_file: initial.arti.as_ref().map(|_| ARTI_FILE_NAME.into()),
        ..Config::default()
    };
    let mut writer = Writer { text: String::new(), unserved: &initial.unserved, shape: Shape::Whole };
    writer.comment(
        "The configuration of this RustBalance node. The daemon reads it when it starts; `rustbalance reload` applies a \
         change while it runs. A key behind \"#\" is not set: the line shows its default, or an example if it has none. A \
         time has a unit: \"500ms\", \"2s\", \"30m\", \"1h\".",
    );
    writer.text.push('\n');
    tables::walk(&mut writer, &mut config);
    writer.text
}

struct Writer<'a> {
    text: String,
    unserved: &'a [u16],
    shape: Shape,
}

/// The parts of a key that are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Its meaning, and the line with its value.
    Whole,
    /// Its name and meaning only: written once above a list of tables with the same keys.
    Meaning,
    /// The line with its value only.
    Line,
}

impl Writer<'_> {
    fn comment(&mut self, text: &str) {
        let mut line = String::from("#");
        for word in text.split(' ') {
            if line.chars().count() + 1 + word.chars().count() > WIDTH {
                let _ = writeln!(self.text, "{line}");
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        let _ = writeln!(self.text, "{line}");
    }

    fn explain<V: Value>(&mut self, name: &str, effect: Effect, allowed: &V::Allowed, meaning: &str) {
        let meaning = match self.shape {
            Shape::Whole => meaning.to_owned(),
            Shape::Meaning => format!("{name}: {meaning}"),
            Shape::Line => return,
        };
        let meaning = match effect {
            Effect::Running => meaning,
            Effect::Restart => format!("{meaning} {NEEDS_RESTART}"),
        };
        let Some(allowed) = V::allowed(allowed) else { return self.comment(&meaning) };
        let allowed = format!("Allowed: {allowed}.");
        match meaning.chars().count() + allowed.chars().count() + "#  ".len() <= WIDTH {
            true => self.comment(&format!("{meaning} {allowed}")),
            false => [meaning, allowed].iter().for_each(|text| self.comment(text)),
        }
    }

    fn line(&mut self, line: &str) {
        if self.shape != Shape::Meaning {
            let _ = writeln!(self.text, "{line}");
        }
    }

    /// Writes a port of the address for which no target was given, as a comment.
    fn unserved(&mut self, port: u16) {
        self.text.push('\n');
        self.comment(&format!(
            "Port {port} of the address has no target on this node. Until you add one here, this node refuses clients of \
             that port; other nodes may serve them."
        ));
        let _ = write!(self.text, "#[[port]]\n#virtual = {port}\n#target = \"127.0.0.1:{port}\"\n");
    }
}

impl KeyVisitor for Writer<'_> {
    fn table(&mut self, name: &'static str, meaning: &'static str) {
        self.text.push('\n');
        self.comment(meaning);
        let _ = writeln!(self.text, "[{name}]");
    }

    fn key<V: Value>(
        &mut self,
        name: &'static str,
        effect: Effect,
        allowed: V::Allowed,
        value: &mut V,
        meaning: &'static str,
    ) {
        self.explain::<V>(name, effect, &allowed, meaning);
        self.line(&format!("# {name} = {}", value.show()));
    }

    fn optional<V: Value>(
        &mut self,
        name: &'static str,
        effect: Effect,
        allowed: V::Allowed,
        value: &mut Option<V>,
        example: V,
        meaning: &'static str,
    ) {
        self.explain::<V>(name, effect, &allowed, meaning);
        match value {
            Some(value) => self.line(&format!("{name} = {}", value.show())),
            // An example is written only with the meaning, above the tables.
            None if self.shape == Shape::Line => {}
            None => self.line(&format!("# {name} = {}", example.show())),
        }
    }

    fn each<T: Default>(
        &mut self,
        name: &'static str,
        _named_by: &'static [&'static str],
        meaning: &'static str,
        items: &mut Vec<T>,
        keys: fn(&mut Self, &mut T, &[T]),
    ) {
        self.text.push('\n');
        self.comment(meaning);
        self.shape = Shape::Meaning;
        keys(self, &mut T::default(), &[]);
        self.shape = Shape::Line;
        for at in 0..items.len() {
            let _ = writeln!(self.text, "[[{name}]]");
            let (before, rest) = items.split_at_mut(at);
            if let Some(item) = rest.first_mut() {
                keys(self, item, before);
            }
        }
        self.shape = Shape::Whole;
        self.unserved.iter().for_each(|port| self.unserved(*port));
    }

    fn inside<T>(&mut self, name: &'static str, meaning: &'static str, item: &mut T, keys: fn(&mut Self, &mut T)) {
        match self.shape {
            Shape::Line => {
                let (before, heading) = (self.text.len(), format!("[{OUTER}.{name}]\n"));
                self.text.push_str(&heading);
                let empty = self.text.len();
                keys(self, item);
                // A table without keys is left out.
                if self.text.len() == empty {
                    self.text.truncate(before);
                }
            }
            Shape::Whole | Shape::Meaning => {
                self.comment(&format!("[{OUTER}.{name}], below a [[{OUTER}]]: {meaning}"));
                keys(self, item);
            }
        }
    }

    fn foreign(&mut self, name: &'static str, effect: Effect, meaning: &'static str, _text: &mut String) -> bool {
        self.text.push('\n');
        let needs = if effect == Effect::Restart { format!(" {NEEDS_RESTART}") } else { String::new() };
        self.comment(&format!("[{name}]: {meaning}{needs}"));
        false
    }

    fn require(&mut self, _name: &'static str, _holds: bool, _why: impl FnOnce() -> String) {}
}
