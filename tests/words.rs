//! What a machine can see of plain prose: comments fit in 100 columns, doc comments say more than
//! one term, and neither comments, texts nor documents fall back into terms that a reader stumbles
//! over. `docs/CONTRIBUTING.md` says how this project writes.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, iter};

use ra_ap_rustc_lexer::{FrontmatterAllowed, LiteralKind, TokenKind, tokenize};
use regex::Regex;
use tree::{files, root};

#[path = "fixtures/tree.rs"]
mod tree;

/// Longest line with a comment, in columns.
const COMMENT_WIDTH: usize = 100;

/// Terms that are avoided, each with what to say instead. `FINE` lists phrases that contain one and
/// are allowed.
const AVOIDED: [(&str, &str); 9] = [
    (r"(?i)\b(nobody|somebody|everybody|anybody)\b", "say which node, client or person"),
    (r"(?i)\b(anew|besides)\b", "say 'again' or 'also'"),
    (r"(?i)\btold\b", "say who announces, returns or reports what"),
    (r"(?i)\bwords?\b", "a signed statement is a record; else say message, text or term"),
    (r"(?i)\b(so|as) many\b", "give the number or name the bound"),
    (r"(?i)\b(beats?|hoards?|orphans?)\b", "say heartbeat, quota, unattended point"),
    (r"(?i)\bput out\b", "say evict or revoke"),
    (r"(?:^|[.:;] )(Who|Whose)\b|(?i:\bwhoever\b)", "begin with the subject: 'A node that ...'"),
    (r"(?i)\b(is|are|was|were) no\b", "say 'is not a'"),
];

/// Phrases that contain an avoided term and are plain English or a name all the same.
const FINE: [&str; 8] = [
    r"(?i)\bthere (is|are|was|were) no\b",
    r"(?i)\b(is|are|was|were) no (longer|more|less|better|worse|later|earlier|older|newer|larger|smaller|need)\b",
    // A Unix user, or a part of a file name.
    r"\bnobody[.@]|:nobody\b",
    r"\bas many as\b",
    // The name of the heartbeat record on the wire, and the name of this test.
    r#"[`"]beats?[`"]"#,
    r"tests/words\.rs|--test words\b",
    // A variable of a shell.
    r"\bread -r word\b",
    r"(?i)\bpasswords?\b",
];

/// Sources, scripts and documents.
const FOLDERS: [&str; 5] = ["src", "gossip", "tests", "scripts", "docs"];

/// Those of [`FOLDERS`] without built files, and README.
fn all() -> Vec<(PathBuf, String)> {
    let readme = PathBuf::from("README.md");
    let text = fs::read_to_string(root().join(&readme)).unwrap();
    let below = FOLDERS.iter().flat_map(|folder| files(folder, &["rs", "sh", "md"], &["target"]));
    iter::once((readme, text)).chain(below).collect()
}

/// A line of a comment, a text or a document.
struct Passage {
    /// Counted from one.
    line: usize,
    text: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Comment,
    DocComment,
    Literal,
    Document,
}

fn passages(path: &Path, source: &str) -> Vec<Passage> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("rs") => of_rust(source),
        Some("sh") => {
            let comments = source.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with('#'));
            comments.map(|(at, line)| passage(at + 1, line, Kind::Comment)).collect()
        }
        _ => source.lines().enumerate().map(|(at, line)| passage(at + 1, line, Kind::Document)).collect(),
    }
}

fn passage(line: usize, text: &str, kind: Kind) -> Passage {
    Passage { line, text: text.trim().to_owned(), kind }
}

fn of_rust(source: &str) -> Vec<Passage> {
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    for token in tokenize(source, FrontmatterAllowed::No) {
        let text = &source[at..at + token.len as usize];
        let kind = match token.kind {
            TokenKind::LineComment { doc_style: Some(_) } | TokenKind::BlockComment { doc_style: Some(_), .. } => {
                Some(Kind::DocComment)
            }
            TokenKind::LineComment { .. } | TokenKind::BlockComment { .. } => Some(Kind::Comment),
            TokenKind::Literal { kind: LiteralKind::Str { .. } | LiteralKind::RawStr { .. }, .. } => {
                Some(Kind::Literal)
            }
            _ => None,
        };
        if let Some(kind) = kind {
            found.extend(text.lines().enumerate().map(|(further, text)| passage(line + further, text, kind)));
        }
        line += text.matches('\n').count();
        at += text.len();
    }
    found
}

/// Fails with all that was found, a line each.
fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "{} found (docs/CONTRIBUTING.md says how we write):\n{}", found.len(), found.join("\n"));
}

#[test]
fn no_text_uses_an_avoided_term() {
    let avoided = AVOIDED.map(|(pattern, instead)| (Regex::new(pattern).unwrap(), instead));
    let fine = FINE.map(|pattern| Regex::new(pattern).unwrap());
    let mut found = Vec::new();
    for (path, source) in all() {
        // They name what they look for.
        if path == Path::new("tests/words.rs") {
            continue;
        }
        for passage in passages(&path, &source) {
            let text = fine.iter().fold(passage.text, |text, fine| fine.replace_all(&text, "").into_owned());
            let text = text.trim_start_matches(['/', '!', '#', ' ', '"']);
            for (pattern, instead) in &avoided {
                if let Some(hit) = pattern.find(text) {
                    found.push(format!("{}:{}: '{}': {instead}", path.display(), passage.line, hit.as_str().trim()));
                }
            }
        }
    }
    assert_none(&found);
}

#[test]
fn comments_fit_in_a_hundred_columns() {
    let mut found = Vec::new();
    for (path, source) in all() {
        let lines: Vec<&str> = source.lines().collect();
        for Passage { line, kind, .. } in passages(&path, &source) {
            let width = lines[line - 1].chars().count();
            // Only lines that are all comment: behind code, rustfmt decides the width.
            let alone = lines[line - 1].trim_start().starts_with(['/', '#', '*']);
            if matches!(kind, Kind::Comment | Kind::DocComment) && alone && width > COMMENT_WIDTH {
                found.push(format!("{}:{line}: {width} columns", path.display()));
            }
        }
    }
    assert_none(&found);
}

#[test]
fn doc_comments_say_more_than_one_term() {
    let mut found = Vec::new();
    for (path, source) in all() {
        let docs: Vec<_> = passages(&path, &source).into_iter().filter(|it| it.kind == Kind::DocComment).collect();
        let lines: Vec<usize> = docs.iter().map(|doc| doc.line).collect();
        for doc in &docs {
            let alone = !lines.contains(&(doc.line + 1)) && (doc.line == 1 || !lines.contains(&(doc.line - 1)));
            if alone && doc.text.split_whitespace().count() <= 2 {
                found.push(format!("{}:{}: {}", path.display(), doc.line, doc.text));
            }
        }
    }
    assert_none(&found);
}

#[test]
fn code_has_one_dialect_of_imports_and_closures() {
    let module = Regex::new(r"^(pub(\([a-z]+\))? )?mod [a-z_0-9]+;$").unwrap();
    let import = Regex::new(r"^(pub(\([a-z]+\))? )?use ").unwrap();
    let nameless = Regex::new(r"\|(e|err)\|").unwrap();
    let mut found = Vec::new();
    for (path, source) in all().into_iter().filter(|(path, _)| path.extension().is_some_and(|ending| ending == "rs")) {
        let mut modules = false;
        for (at, line) in source.lines().enumerate() {
            modules |= module.is_match(line);
            if modules && import.is_match(line) && !line.starts_with("pub use") && !line.starts_with("pub(") {
                found.push(format!("{}:{}: an import below a module", path.display(), at + 1));
            }
            if path != Path::new("tests/words.rs") && nameless.is_match(line) {
                found.push(format!("{}:{}: name the error: |error|", path.display(), at + 1));
            }
        }
    }
    assert_none(&found);
}

/// Macros whose lines an operator meets, each with its level in documents.
const LOGGED: [&str; 3] = ["error", "warn", "info"];

/// A line of the log in the source text.
struct LogLine {
    level: &'static str,
    /// Its name, if it has one.
    name: Option<String>,
    message: String,
    place: String,
}

/// The log lines of a source text, but for its unit tests.
fn log_lines(path: &Path, source: &str) -> Vec<LogLine> {
    let source = source.split_once("#[cfg(test)]\nmod tests {").map_or(source, |(code, _)| code);
    let (mut tokens, mut at) = (Vec::new(), 0);
    for token in tokenize(source, FrontmatterAllowed::No) {
        let text = &source[at..at + token.len as usize];
        if !matches!(token.kind, TokenKind::Whitespace | TokenKind::LineComment { .. }) {
            tokens.push((token.kind, text, at));
        }
        at += text.len();
    }
    let mut found = Vec::new();
    for (index, window) in tokens.windows(3).enumerate() {
        let [(_, level, at), (_, "!", _), (_, "(", _)] = *window else { continue };
        let Some(level) = LOGGED.into_iter().find(|known| *known == level) else { continue };
        let arguments = arguments(&tokens[index + 3..]);
        let unquoted = |text: &str| text.trim_matches('"').to_owned();
        let name = match arguments {
            [(_, "name", _), (_, ":", _), (_, name, _), ..] => Some(unquoted(name)),
            _ => None,
        };
        // The message is the last text that is an argument of its own.
        let is_text = |token: &(TokenKind, &str, usize)| {
            matches!(token.0, TokenKind::Literal { kind: LiteralKind::Str { .. }, .. })
        };
        let mut texts = arguments.windows(2).filter(|pair| pair[0].1 == "," && is_text(&pair[1])).map(|pair| pair[1].1);
        let only = arguments.first().filter(|first| is_text(first)).map(|first| first.1);
        let message = texts.next_back().or(only).unwrap_or_default();
        let joined = message.split('\\').map(|part| part.trim_start_matches(['\n', ' '])).collect::<String>();
        let line = source[..at].matches('\n').count() + 1;
        found.push(LogLine { level, name, message: unquoted(&joined), place: format!("{}:{line}", path.display()) });
    }
    found
}

/// The tokens up to the parenthesis that closes the call.
fn arguments<'a, 'b>(tokens: &'b [(TokenKind, &'a str, usize)]) -> &'b [(TokenKind, &'a str, usize)] {
    let mut depth = 1;
    for (index, (_, text, _)) in tokens.iter().enumerate() {
        match *text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &tokens[..index];
        }
    }
    tokens
}

/// Monitors and runbooks refer to log lines by names, so each line has one of its own, and
/// `docs/EVENTS.md` lists them all.
#[test]
fn every_log_line_has_a_name_of_its_own_and_is_listed() {
    let folders = ["src", "gossip/src", "gossip/mesh/src"];
    let sources = folders.into_iter().flat_map(|folder| files(folder, &["rs"], &["target", "tests", "sim"]));
    let all: Vec<LogLine> = sources
        .filter(|(path, _)| !path.ends_with("tests.rs") && !path.ends_with("conformance.rs"))
        .flat_map(|(path, source)| log_lines(&path, &source))
        .collect();
    let mut wrong = Vec::new();
    let mut rows = BTreeMap::new();
    for LogLine { level, name, message, place } in all {
        let Some(name) = name else {
            wrong.push(format!("{place}: add name: \"...\", which says what has happened and never changes"));
            continue;
        };
        let is_name = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_';
        if name.len() > 40 || name.is_empty() || !name.chars().all(is_name) {
            wrong.push(format!("{place}: {name:?} is not a name of at most 40 of a to z, 0 to 9 and '_'"));
        }
        if rows.insert(name.clone(), format!("| `{name}` | {level} | {message} |")).is_some() {
            wrong.push(format!("{place}: {name:?} is the name of another line, too"));
        }
    }
    assert_none(&wrong);
    let list = Vec::from_iter(rows.into_values()).join("\n");
    let whole = format!(
        "# Log lines\n\nEvery line of the log at the levels error, warn and info has a name. With `--log-format json` it is the \
         field `event`,\nin systemd's journal the field `RUSTBALANCE_EVENT`. Names do not change when texts do; a name of a line \
         that is gone is\nnot used again. Generated from the sources: `RUSTBALANCE_WRITE_DOCS=1 cargo test --workspace --test \
         words`.\n\n| name | level | text |\n|---|---|---|\n{list}\n"
    );
    let path = root().join("docs/EVENTS.md");
    if std::env::var_os("RUSTBALANCE_WRITE_DOCS").is_some() {
        fs::write(&path, &whole).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == whole,
        "docs/EVENTS.md is out of date: RUSTBALANCE_WRITE_DOCS=1 cargo test --workspace --test words"
    );
}
