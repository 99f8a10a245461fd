//! docs/PROTOCOL.md quotes the vectors: a block that is fenced as `vector NAME` holds the value of that name.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::FILE;

/// Hexadecimal digits in a row that are taken for a quotation wherever they stand.
const QUOTATION: usize = 16;

/// Every quoted block: its name, the line it begins in, what it says without white space.
fn quotes(document: &str) -> Vec<(String, usize, String)> {
    let mut quotes = Vec::new();
    let mut lines = document.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        if let Some(name) = line.trim().strip_prefix("```vector ") {
            let block = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```");
            let text = block.flat_map(str::split_whitespace).collect();
            quotes.push((name.trim().to_owned(), at + 1, text));
        }
    }
    quotes
}

/// The value of a dotted name.
fn named<'a>(vectors: &'a Value, name: &str) -> Option<&'a Value> {
    name.split('.').try_fold(vectors, |value, part| match part.parse::<usize>() {
        Ok(at) => value.get(at),
        Err(_) => value.get(part),
    })
}

/// The document says what the vectors say, and speaks of every one of them.
pub(crate) fn check(vectors: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/PROTOCOL.md");
    let document = std::fs::read_to_string(path).unwrap();
    let quotes = quotes(&document);
    for (name, line, text) in &quotes {
        let value = named(vectors, name).and_then(Value::as_str);
        assert_eq!(Some(text.as_str()), value, "docs/PROTOCOL.md, line {line}: {name} is not what the vectors say");
    }
    let file = std::fs::read_to_string(FILE).unwrap();
    for word in document.split(|letter: char| !letter.is_ascii_hexdigit()).filter(|word| word.len() >= QUOTATION) {
        assert!(file.contains(word), "docs/PROTOCOL.md quotes {word}, which stands in no vector");
    }
    for name in names(vectors) {
        let spoken = format!("`{name}`");
        assert!(document.contains(&spoken), "docs/PROTOCOL.md does not speak of {name}");
    }
    let quoted: BTreeSet<&str> = quotes.iter().filter_map(|(name, ..)| name.split('.').next()).collect();
    for part in ["keys", "statements", "handshake", "links", "joins"] {
        assert!(quoted.contains(part), "docs/PROTOCOL.md quotes nothing of {part}");
    }
    for context in contexts(vectors) {
        assert!(document.contains(&context), "docs/PROTOCOL.md does not name the context {context:?}");
    }
}

/// Every vector by its name: the parts of the file, and what is in them by name.
fn names(vectors: &Value) -> Vec<String> {
    let parts = vectors.as_object().unwrap().iter().filter(|(part, _)| *part != "about");
    let inner = |(part, value): (&String, &Value)| match value.as_object() {
        Some(entries) => entries.keys().map(|name| format!("{part}.{name}")).collect(),
        None => vec![part.clone()],
    };
    parts.flat_map(inner).collect()
}

fn contexts(vectors: &Value) -> BTreeSet<String> {
    let statements = vectors["statements"].as_object().unwrap();
    statements.values().map(|statement| statement["context"].as_str().unwrap().to_owned()).collect()
}
