//! docs/PROTOCOL.md quotes the vectors: a code block fenced as `vector NAME` contains the value of
//! that name.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::FILE;

/// A run of at least this number of hexadecimal digits counts as a quotation, also outside of a
/// code block.
const QUOTATION: usize = 16;

/// Every quoted block: its name, the line in which it begins, and its content without white space.
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

/// The vector with this dotted name.
fn named<'a>(vectors: &'a Value, name: &str) -> Option<&'a Value> {
    name.split('.').try_fold(vectors, |value, part| match part.parse::<usize>() {
        Ok(at) => value.get(at),
        Err(_) => value.get(part),
    })
}

/// Fails unless the document quotes the vectors exactly and mentions every one of them.
pub(crate) fn check(vectors: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/PROTOCOL.md");
    let document = std::fs::read_to_string(path).unwrap();
    let quotes = quotes(&document);
    for (name, line, text) in &quotes {
        let value = named(vectors, name).and_then(Value::as_str);
        assert_eq!(Some(text.as_str()), value, "docs/PROTOCOL.md, line {line}: {name} differs from the vectors");
    }
    let file = std::fs::read_to_string(FILE).unwrap();
    for digits in document.split(|letter: char| !letter.is_ascii_hexdigit()).filter(|run| run.len() >= QUOTATION) {
        assert!(file.contains(digits), "docs/PROTOCOL.md quotes {digits}, which is in no vector");
    }
    for name in names(vectors) {
        let spoken = format!("`{name}`");
        assert!(document.contains(&spoken), "docs/PROTOCOL.md does not mention {name}");
    }
    let quoted: BTreeSet<&str> = quotes.iter().filter_map(|(name, ..)| name.split('.').next()).collect();
    for part in ["keys", "statements", "handshake", "links", "joins"] {
        assert!(quoted.contains(part), "docs/PROTOCOL.md quotes nothing of {part}");
    }
    for context in contexts(vectors) {
        assert!(document.contains(&context), "docs/PROTOCOL.md does not name the context {context:?}");
    }
}

/// The dotted names of all vectors: the parts of the file and their named entries.
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
