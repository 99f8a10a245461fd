//! The floors of the building: lower ones know nothing of higher ones, Arti is named in one place, gossip knows no Tor,
//! no file outgrows a reader.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Every module of the root crate and its floor. A module may name those of lower floors alone.
const FLOORS: &[(&str, u32)] = &[
    ("blocking", 0),
    ("clock", 0),
    ("descriptors", 0),
    ("keys", 0),
    ("discovery", 1),
    ("frame", 0),
    ("shell", 0),
    ("stream", 0),
    ("syntax", 0),
    ("systemd", 0),
    ("typed", 0),
    ("tor", 1),
    ("store", 2),
    ("proxy", 2),
    ("link", 2),
    ("balance", 2),
    ("publish", 2),
    ("log", 2),
    ("health", 3),
    ("join", 3),
    ("control", 3),
    ("config", 4),
    ("node", 5),
    ("cli", 6),
];

/// Longest source file, in lines.
const LONGEST: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} holds no sources");
    found
}

/// The modules of this crate that a text names.
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

fn floor(module: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

#[test]
fn lower_floors_never_name_higher_ones() {
    for (path, text) in sources("src") {
        let module =
            path.iter().nth(1).and_then(|part| Path::new(part).file_stem()).unwrap().to_str().unwrap().to_owned();
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let own = floor(&module).unwrap_or_else(|| panic!("{module} has no floor: give it one in tests/layers.rs"));
        for other in named(&text).into_iter().filter(|other| *other != module) {
            if let Some(floor) = floor(&other) {
                assert!(floor < own, "{} (floor {own}) names crate::{other} (floor {floor})", path.display());
            }
        }
    }
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
    for (path, text) in sources("src").into_iter().chain(sources("gossip/src")) {
        if path.starts_with("src/tor") {
            continue;
        }
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            assert!(!arti(line), "{} names Arti: {line}", path.display());
        }
    }
}

#[test]
fn links_name_tor_where_its_route_is_alone() {
    let tests = ["src/link/tests.rs", "src/link/conformance.rs"];
    for (path, text) in sources("src/link") {
        let may = path == Path::new("src/link/tor.rs") || tests.iter().any(|test| path == Path::new(test));
        assert!(may || !named(&text).contains(&"tor".to_owned()), "{} names Tor", path.display());
    }
}

#[test]
fn gossip_has_no_sockets_and_no_clock_of_its_own() {
    for (path, text) in sources("gossip/src") {
        for forbidden in ["tokio::net", "std::net::Tcp", "std::net::Udp", "std::fs", "SystemTime::now"] {
            assert!(!text.contains(forbidden), "{} uses {forbidden}", path.display());
        }
        // The adapter to chitchat is a shell and may ask tokio for the time, and so may what sweeps seeds (how long it took,
        // when to give up); the decisions and a simulated run may not.
        let shell = ["mesh", "sim/report.rs", "sim/shrink.rs"]
            .iter()
            .any(|it| path.starts_with(Path::new("gossip/src").join(it)));
        assert!(shell || !text.contains("Instant::now"), "{} reads a clock", path.display());
    }
}

#[test]
fn every_file_says_what_it_is_and_stays_readable() {
    for folder in ["src", "gossip/src", "tests/testnet/src", "tests/fuzz/src"] {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//!"), "{} has no header", path.display());
            let lines = text.lines().count();
            assert!(lines <= LONGEST, "{} has {lines} lines, at most {LONGEST} are readable", path.display());
        }
    }
}
