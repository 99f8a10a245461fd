//! Checks the architecture: a module uses only modules of lower floors, one folder names Arti, the
//! gossip crates do not name Arti, the core depends on nothing that does IO, and no source file is
//! too long to read.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use tree::{files, root};

#[path = "fixtures/tree.rs"]
mod tree;

/// The modules of one crate, each with its floor. A module may name only modules of lower floors.
type Floors = &'static [(&'static str, u32)];

/// The source folder of each crate with its floors.
const CRATES: [(&str, Floors); 3] = [("src", DAEMON), ("gossip/src", CORE), ("gossip/mesh/src", MESH)];

const DAEMON: Floors = &[
    ("backoff", 0),
    ("blocking", 0),
    ("bounded", 0),
    ("bucket", 0),
    ("causes", 0),
    ("clock", 0),
    ("counters", 0),
    ("open_files", 0),
    ("drive", 1),
    ("keys", 0),
    ("memory", 0),
    ("new_file", 0),
    ("discovery", 1),
    ("display", 1),
    ("frame", 0),
    ("places", 0),
    ("redact", 0),
    ("shell", 0),
    ("stream", 0),
    ("sync", 0),
    ("syntax", 0),
    ("systemd", 0),
    ("typed", 0),
    ("tor", 1),
    ("vanity", 1),
    ("store", 2),
    ("proxy", 2),
    ("link", 2),
    ("balance", 2),
    ("canary", 2),
    ("publish", 2),
    ("verify", 2),
    ("log", 2),
    ("health", 3),
    ("join", 3),
    ("control", 3),
    ("wireguard", 3),
    ("alerts", 4),
    ("config", 5),
    ("metrics", 5),
    ("backup", 6),
    ("node", 6),
    ("cli", 7),
];

const CORE: Floors = &[
    ("bytes", 0),
    ("codec", 0),
    ("hash", 0),
    ("time", 0),
    ("id", 1),
    ("signed", 1),
    ("address", 2),
    ("contact", 2),
    ("liveness", 2),
    ("neighbours", 2),
    ("record", 3),
    ("facts", 4),
    ("lease", 4),
    ("source", 4),
    ("plan", 5),
    ("view", 5),
    ("stand_in", 6),
    ("outage", 7),
    ("coordinator", 8),
    ("sim", 9),
];

const MESH: Floors = &[
    ("delivery", 0),
    ("leaky", 0),
    ("memory", 0),
    ("wire", 0),
    ("conformance", 1),
    ("news", 1),
    ("questions", 1),
    ("supply", 1),
    ("quota", 1),
    ("incarnations", 1),
    ("gate", 2),
    ("adapter", 3),
    ("keeper", 4),
];

/// The dependencies of the core. None has a runtime, a clock, IO or randomness.
const CORE_DEPENDENCIES: [&str; 9] =
    ["ciborium", "data-encoding", "ed25519-dalek", "serde", "sha3", "strum", "thiserror", "tracing", "zeroize"];

/// Most lines in a source file.
const LONGEST: usize = 600;

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    files(folder, &["rs"], &[])
}

/// The modules that a source text names after `crate::`.
fn named(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let after = code.flat_map(|line| line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>());
    let mut names = Vec::new();
    for rest in after {
        match rest.strip_prefix('{') {
            Some(list) => names.extend(list.split(',').map(|item| word(item.trim()))),
            None => names.push(word(&rest)),
        }
    }
    names
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The part of a source file before its unit tests, which may use the simulation, the highest
/// floor.
fn without_tests(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod tests {").map_or(text, |(code, _)| code)
}

#[test]
fn lower_floors_never_name_higher_ones() {
    for (folder, floors) in CRATES {
        let floor = |module: &str| floors.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor);
        for (path, text) in sources(folder) {
            let inside = path.strip_prefix(folder).unwrap();
            let module = Path::new(inside.iter().next().unwrap()).file_stem().unwrap().to_str().unwrap().to_owned();
            let of_tests = inside.iter().any(|part| part == "tests" || part == "tests.rs");
            if ["lib", "main"].contains(&module.as_str()) || of_tests {
                continue;
            }
            let own = floor(&module).unwrap_or_else(|| panic!("{folder}/{module} has no floor in tests/layers.rs"));
            for other in named(without_tests(&text)).into_iter().filter(|other| *other != module) {
                if let Some(floor) = floor(&other) {
                    assert!(floor < own, "{} (floor {own}) names crate::{other} (floor {floor})", path.display());
                }
            }
        }
    }
}

/// `scripts/test.sh` also builds the core alone: in a build of the whole workspace it could use
/// features of its dependencies that only other crates enable.
#[test]
fn the_core_depends_on_nothing_that_does_io() {
    let manifest: toml::Table = fs::read_to_string(root().join("gossip/Cargo.toml")).unwrap().parse().unwrap();
    let dependencies: Vec<&String> = manifest["dependencies"].as_table().unwrap().keys().collect();
    assert_eq!(dependencies, CORE_DEPENDENCIES);
    assert!(!manifest.contains_key("target"), "the core must not have dependencies for one platform only");
}

/// The search calls code for certain processors, which the language has as `unsafe` only. That call
/// has a crate of its own.
#[test]
fn one_crate_contains_the_only_unsafe() {
    let dispatch = "src/vanity/dispatch";
    let workspace: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    assert_eq!(workspace["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
    let members = workspace["workspace"]["members"].as_array().unwrap();
    for member in members.iter().map(|member| member.as_str().unwrap()).chain(["."]) {
        let manifest: toml::Table =
            fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap().parse().unwrap();
        let inherits = manifest["lints"].get("workspace").and_then(toml::Value::as_bool) == Some(true);
        assert_eq!(inherits, member != dispatch, "{member} forbids `unsafe`");
    }
    let [(path, text)]: [(PathBuf, String); 1] = sources(&format!("{dispatch}/src")).try_into().unwrap();
    assert_eq!(text.matches("unsafe {").count(), 1, "{}", path.display());
    assert!(text.lines().count() < 40, "{} has more than the call", path.display());
}

#[test]
fn only_the_tor_folder_names_arti() {
    let arti = |line: &str| {
        line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).any(|token| {
            token
                .split_once("::")
                .is_some_and(|(name, _)| ["arti_client", "ssh_key"].contains(&name) || name.starts_with("tor_"))
        })
    };
    for (path, text) in sources("src").into_iter().chain(sources("gossip")) {
        if path.starts_with("src/tor") {
            continue;
        }
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            assert!(!arti(line), "{} names Arti: {line}", path.display());
        }
    }
}

#[test]
fn only_the_tor_route_of_the_links_names_tor() {
    let tests = ["src/link/tests.rs", "src/link/conformance.rs"];
    for (path, text) in sources("src/link") {
        let may = path == Path::new("src/link/tor.rs") || tests.iter().any(|test| path == Path::new(test));
        assert!(may || !named(&text).contains(&"tor".to_owned()), "{} names Tor", path.display());
    }
}

#[test]
fn every_file_says_what_it_is_and_stays_readable() {
    for folder in ["src", "gossip/src", "gossip/mesh/src", "tests/testnet/src", "tests/fuzz/src"] {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//!"), "{} does not begin with a `//!` comment", path.display());
            let lines = text.lines().count();
            assert!(lines <= LONGEST, "{} has {lines} lines; at most {LONGEST} are allowed", path.display());
        }
    }
}

/// The hashes that Tor's specifications define, and those of the fake network for tests, are
/// exempt.
#[test]
fn every_hash_of_ours_has_a_label_from_the_one_list() {
    let others = ["gossip/src/hash.rs", "gossip/src/id.rs", "src/tor/arti/disaster.rs", "src/tor/fake/world.rs"];
    for (path, text) in sources("src").into_iter().chain(sources("gossip/src")).chain(sources("gossip/mesh/src")) {
        let hashes = text.contains("Sha3_256::new") || text.contains(" v1\\0\"");
        assert!(
            !hashes || others.iter().any(|other| path == Path::new(other)),
            "{} computes a hash without a label from `gossip/src/hash.rs`",
            path.display()
        );
    }
}
