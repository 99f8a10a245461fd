//! Runs every fuzz target on the committed corpus and on mutations of it, without a fuzzer. An
//! input that a fuzzer has found fails here, too, once it is in the corpus.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use fuzz::{TARGETS, Target};

#[allow(unreachable_pub)]
#[path = "fuzz/src/lib.rs"]
mod fuzz;

/// Number of mutated inputs per target.
const CASES: u32 = 300;
/// Most files in the corpus of one target. The tests read all of them in every run.
const MOST_FILES: usize = 40;
/// Most bytes in the corpora of all targets together: every clone of the repository carries them.
const MOST_BYTES: usize = 1 << 20;
/// Prefix of the file names of seeds. Inputs found by a fuzzer are named by their hash.
const SEED: &str = "seed-";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// The names and contents of the files in a target's corpus, sorted.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let Ok(folder) = fs::read_dir(root().join("corpus").join(target.name)) else { return Vec::new() };
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut files: Vec<_> =
        folder.map(|entry| entry.unwrap().path()).map(|path| (name(&path), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

/// Whether to write the seeds and the dictionary instead of comparing them.
fn writes() -> bool {
    std::env::var_os("WRITE_SEEDS").is_some()
}

/// Runs one input; true if the target accepts it. Names the input if the target panics.
fn run(target: &Target, name: &str, bytes: &[u8]) -> bool {
    std::panic::catch_unwind(|| (target.run)(bytes))
        .unwrap_or_else(|_| panic!("target {} panics on {name}: {bytes:?}", target.name))
}

#[test]
fn every_seed_is_taken_or_refused_as_it_should_be() {
    for target in TARGETS {
        for seed in (target.seeds)() {
            assert_eq!(run(target, &seed.name, &seed.bytes), seed.taken, "{} {}", target.name, seed.name);
        }
    }
}

#[test]
fn the_corpus_holds_every_seed() {
    for target in TARGETS {
        let folder = root().join("corpus").join(target.name);
        let there: BTreeSet<_> = corpus(target).into_iter().map(|(name, _)| name).collect();
        for seed in (target.seeds)() {
            let name = format!("{SEED}{}", seed.name);
            if writes() && !there.contains(&name) {
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(&name), &seed.bytes).unwrap();
            } else {
                assert!(
                    there.contains(&name),
                    "the corpus of {} lacks {name}: write it with `WRITE_SEEDS=1 cargo test --workspace --test decoders`",
                    target.name
                );
            }
        }
    }
}

#[test]
fn the_dictionary_is_that_of_the_cluster() {
    let path = root().join("dictionary");
    if writes() {
        fs::write(&path, fuzz::dictionary()).unwrap();
    }
    assert_eq!(fs::read_to_string(path).unwrap(), fuzz::dictionary());
}

#[test]
fn the_corpus_causes_no_panic_and_is_small() {
    let mut bytes = 0;
    for target in TARGETS {
        let files = corpus(target);
        assert!(files.len() <= MOST_FILES, "the corpus of {} has {} files", target.name, files.len());
        for (name, content) in files {
            bytes += content.len();
            run(target, &name, &content);
        }
    }
    assert!(bytes <= MOST_BYTES, "the corpora have {bytes} bytes");
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let targets: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
}

/// The fuzzer's lock file has the same versions as the main one, so that the fuzzed code is the
/// shipped code.
#[test]
fn the_fuzzer_builds_with_the_same_dependencies() {
    let packages = |path: PathBuf| -> BTreeSet<(String, String)> {
        let lock: toml::Table = fs::read_to_string(path).unwrap().parse().unwrap();
        let text = |package: &toml::Value, key: &str| package[key].as_str().unwrap().to_owned();
        let all = lock["package"].as_array().unwrap().iter();
        all.map(|package| (text(package, "name"), text(package, "version"))).collect()
    };
    let ours = packages(root().join("../../Cargo.lock"));
    let other: Vec<_> =
        packages(root().join("Cargo.lock")).into_iter().filter(|package| !ours.contains(package)).collect();
    let names: Vec<_> = other.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["arbitrary", "libfuzzer-sys", "rustbalance-fuzz"], "{other:?}");
}

/// One mutation of an input.
#[derive(Debug, Clone)]
enum Edit {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, u8),
    Cut(Index),
    Repeat(Index, u8),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, to)| Edit::Set(at, to)),
        (at(), 0u8..8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (at(), 1u8..33).prop_map(|(at, count)| Edit::Remove(at, count)),
        at().prop_map(Edit::Cut),
        (at(), 1u8..65).prop_map(|(at, count)| Edit::Repeat(at, count)),
    ]
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let size = bytes.len();
        let place = |at: &Index| at.index(size + 1);
        match self {
            Self::Set(at, to) if size > 0 => bytes[at.index(size)] = *to,
            Self::Flip(at, bit) if size > 0 => bytes[at.index(size)] ^= 1 << bit,
            Self::Set(..) | Self::Flip(..) => {}
            Self::Insert(at, new) => drop(bytes.splice(place(at)..place(at), new.iter().copied())),
            Self::Remove(at, count) => drop(bytes.drain(place(at)..size.min(place(at) + usize::from(*count)))),
            Self::Cut(at) => bytes.truncate(place(at)),
            Self::Repeat(at, count) => {
                let piece = bytes[place(at)..size.min(place(at) + usize::from(*count))].to_vec();
                bytes.extend(piece);
            }
        }
    }
}

/// Runs a target on mutated files of its corpus and, in one case of ten, on random bytes.
fn survives_changes(name: &str) {
    let target = fuzz::target(name);
    let mut inputs: Vec<_> = corpus(target).into_iter().map(|(_, bytes)| bytes).collect();
    inputs.push(Vec::new());
    let other = prop::option::weighted(0.1, prop::collection::vec(any::<u8>(), 0..200));
    let parts = (any::<Index>(), prop::collection::vec(edit(), 0..6), other);
    // Mutations are applied here, so that a failure shows the resulting bytes.
    let changed = parts.prop_map(|(which, edits, other)| {
        let mut bytes = other.unwrap_or_else(|| which.get(&inputs).clone());
        edits.iter().for_each(|edit| edit.apply(&mut bytes));
        bytes
    });
    let taken = Cell::new(0);
    TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() })
        .run(&changed, |bytes| {
            taken.set(taken.get() + u32::from((target.run)(&bytes)));
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{name}: {failure}"));
    assert!(
        (1..CASES).contains(&taken.get()),
        "{name} accepts {} of {CASES} inputs: the mutations are too weak or too strong",
        taken.get()
    );
}

macro_rules! survive_changes {
    ($($name:ident)*) => {
        mod survives_changes {
            $(#[test] fn $name() { super::survives_changes(stringify!($name)); })*

            /// The targets with a test of their own; separate tests run in parallel.
            const NAMED: &[&str] = &[$(stringify!($name)),*];

            #[test]
            fn every_target_has_a_test_of_its_own() {
                assert!(super::TARGETS.iter().map(|target| target.name).eq(NAMED.iter().copied()));
            }
        }
    };
}

survive_changes! {
    backup chain config control descriptor discovery endpoint frame gossip handshake import introduction join mesh points record state
    status text token view wireguard
}
