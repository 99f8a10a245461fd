//! Compares the protocol on the wire with `tests/vectors/protocol.json` and docs/PROTOCOL.md.
//!
//! All vectors follow from fixed keys, times and nonces. These tests compute them with the code
//! that the daemon runs, compare byte for byte, decode every vector, and check that no changed
//! vector is accepted. They also check that the document quotes the file exactly, and that
//! `tests/vectors/check.py`, an independent implementation of the document, computes the same.
//!
//! The file must not change, because nodes of all versions must understand each other. If the
//! protocol is changed on purpose, `RUSTBALANCE_WRITE_VECTORS=1 cargo test --workspace --test
//! protocol` rewrites the file; then adapt the document and check.py.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use cast::VectorKeys;
use data_encoding::HEXLOWER;
use serde_json::{Map, Value, json};

mod cast;
mod document;
mod joins;
mod links;
mod mesh;
mod records;
mod rules;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/protocol.json");

/// Environment variable: if set, the file is written before it is compared.
const WRITE: &str = "RUSTBALANCE_WRITE_VECTORS";

pub(crate) fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

pub(crate) fn unhex(text: &Value) -> Vec<u8> {
    HEXLOWER.decode(text.as_str().unwrap().as_bytes()).unwrap()
}

/// A CBOR value as readable JSON: bytes become `h'...'`.
pub(crate) fn render(value: &ciborium::Value) -> Value {
    match value {
        ciborium::Value::Bytes(bytes) => format!("h'{}'", hex(bytes)).into(),
        ciborium::Value::Text(text) => text.as_str().into(),
        ciborium::Value::Integer(number) => u64::try_from(*number).unwrap().into(),
        ciborium::Value::Bool(truth) => (*truth).into(),
        ciborium::Value::Null => Value::Null,
        ciborium::Value::Array(items) => items.iter().map(render).collect(),
        ciborium::Value::Map(entries) => {
            let entry =
                |(key, value): &(ciborium::Value, ciborium::Value)| (key.as_text().unwrap().to_owned(), render(value));
            Value::Object(entries.iter().map(entry).collect::<Map<_, _>>())
        }
        other => panic!("the protocol has no value like {other:?}"),
    }
}

/// The readable value of a message, which is a version byte and CBOR.
pub(crate) fn value_of(message: &[u8]) -> Value {
    assert_eq!(message[0], 1);
    render(&ciborium::from_reader(&message[1..]).unwrap())
}

/// All copies with one flipped bit.
pub(crate) fn flips(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    })
}

/// The whole file, computed by the code.
async fn computed() -> Value {
    let cast = VectorKeys::new();
    let statements = records::statements(&cast);
    let mesh = mesh::messages(&cast, &statements).await;
    json!({
        "about": "Test vectors of docs/PROTOCOL.md, written and checked by `cargo test --workspace --test protocol`. Bytes are in hex.",
        "now": cast::NOW,
        "keys": cast.describe(),
        "codec": records::codec_examples(),
        "names": records::names(&cast),
        "links": links::messages(&cast, &unhex(&mesh["syn"])).await,
        "handshake": links::handshake(&cast),
        "joins": joins::joins(&cast).await,
        "rules": rules::rules(&cast),
        "statements": statements,
        "mesh": mesh,
    })
}

fn committed() -> Value {
    serde_json::from_str(&std::fs::read_to_string(FILE).unwrap()).unwrap()
}

/// Describes the first difference between two values; `None` if they are equal.
fn difference(path: &str, ours: &Value, theirs: &Value) -> Option<String> {
    let inner = |name: &str, ours: Option<&Value>, theirs: Option<&Value>| {
        let null = &Value::Null;
        difference(&format!("{path}.{name}"), ours.unwrap_or(null), theirs.unwrap_or(null))
    };
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            a.keys().chain(b.keys()).find_map(|name| inner(name, a.get(name), b.get(name)))
        }
        (Value::Array(a), Value::Array(b)) => {
            (0..a.len().max(b.len())).find_map(|at| inner(&at.to_string(), a.get(at), b.get(at)))
        }
        _ => (ours != theirs).then(|| format!("{path}: computed {ours}, in the file {theirs}")),
    }
}

#[tokio::test(start_paused = true)]
async fn every_vector_matches_the_code() {
    let computed = computed().await;
    if std::env::var_os(WRITE).is_some() {
        let text = serde_json::to_string_pretty(&computed).unwrap();
        std::fs::write(FILE, text + "\n").unwrap();
    }
    if let Some(difference) = difference("", &computed, &committed()) {
        panic!("the protocol has changed at {difference}");
    }
}

#[test]
fn statements_are_read_back_and_no_changed_one_is_believed() {
    let (cast, vectors) = (VectorKeys::new(), committed());
    for (name, statement_case) in records::statement_cases(&cast) {
        statement_case.check(&vectors["statements"][name]);
    }
    records::check_view(&cast, &vectors["statements"]);
}

#[test]
fn both_sides_of_a_link_understand_the_vectors() {
    links::check_handshake(&VectorKeys::new(), &committed()["handshake"]);
}

#[tokio::test(start_paused = true)]
async fn messages_of_a_link_are_read_back() {
    let (cast, vectors) = (VectorKeys::new(), committed());
    links::check_messages(&cast, &unhex(&vectors["mesh"]["syn"]), &vectors["links"]).await;
    mesh::check(&cast, &vectors["statements"], &vectors["mesh"]).await;
}

#[test]
fn both_sides_of_a_join_understand_the_vectors() {
    joins::check(&VectorKeys::new(), &committed()["joins"]);
}

#[test]
fn the_document_quotes_the_vectors_as_they_are() {
    document::check(&committed());
}

/// `check.py` implements the document independently.
#[test]
fn the_document_suffices_to_compute_the_vectors() {
    let script = Path::new(FILE).with_file_name("check.py");
    let output = Command::new("/usr/bin/python3").arg(script).arg(FILE).output().unwrap();
    let (printed, erred) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}{erred}");
    print!("{printed}");
}
