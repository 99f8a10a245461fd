//! `rustbalance vanity` and `init --vanity` as an operator uses them. No network is used.

// Clippy's exception for tests does not cover the helper functions.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// `rustbalance --dir HOME/node ...`, run in HOME. SIGINT ends it, also where the tests run in the
/// background of a script, whose programs ignore it.
fn command(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_rustbalance")]);
    command.env_remove("RUSTBALANCE_LOG").env_remove("RUSTBALANCE_DIR").current_dir(home);
    command.arg("--dir").arg(home.join("node")).args(arguments).stdin(Stdio::null());
    command
}

fn run(home: &Path, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(home, arguments).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// What is in a directory, sorted.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn found_keys_are_written_as_c_tor_keeps_them_and_init_takes_them() {
    let home = tempfile::tempdir().unwrap();
    let (code, out, err) = run(home.path(), &["vanity", "rb", "XY", "--count", "3", "--out", "keys/new"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("searching rb, xy: one address in 512"), "{err}");
    let keys = home.path().join("keys/new");
    let folders = entries(&keys);
    assert_eq!(folders.len(), 3);
    assert_eq!(fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o700);
    for folder in &folders {
        assert!(["rb", "xy"].contains(&&name(folder)[..2]), "{}", folder.display());
        assert!(out.lines().any(|line| line == format!("keys/new/{}", name(folder))), "{out}");
        let files = entries(folder);
        let names: Vec<_> = files.iter().map(|path| name(path)).collect();
        assert_eq!(names, ["hostname", "hs_ed25519_public_key", "hs_ed25519_secret_key"]);
        assert!(files.iter().all(|path| fs::metadata(path).unwrap().permissions().mode() & 0o777 == 0o600));
        assert_eq!(fs::read_to_string(&files[0]).unwrap(), format!("{}\n", name(folder)));
    }
    let (code, out, err) = run(home.path(), &["init", "--quiet", "--import-key", folders[0].to_str().unwrap()]);
    assert_eq!((code, out.trim()), (0, name(&folders[0])), "{err}");
}

#[test]
fn every_path_that_the_processor_has_can_be_forced() {
    let home = tempfile::tempdir().unwrap();
    for path in ["avx512ifma", "avx2", "portable"] {
        let (code, out, err) = run(home.path(), &["vanity", "ab", "--path", path, "--threads", "1", "--json"]);
        if code == 2 {
            assert!(err.contains(&format!("this processor cannot run `--path {path}`")), "{err}");
            continue;
        }
        assert_eq!(code, 0, "{err}");
        let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["event"], &lines[0]["path"]), (&"begin".into(), &path.into()));
        assert_eq!(lines[0]["expected_keys"], 1024.0);
        let found = lines.iter().find(|line| line["event"] == "found").unwrap();
        assert!(found["address"].as_str().unwrap().starts_with("ab"));
        let end = lines.last().unwrap();
        assert_eq!(
            (&end["event"], &end["found"], &end["stopped"]),
            (&"end".into(), &1.into(), &serde_json::Value::Null)
        );
    }
}

#[test]
fn impossible_prefixes_are_refused_at_once_with_the_reason() {
    let home = tempfile::tempdir().unwrap();
    for (prefix, reason) in [
        ("b0b", "it contains '0', and addresses consist of a to z and 2 to 7; `o` resembles 0"),
        ("näh", "it contains 'ä'"),
        ("", "an empty prefix fits every address"),
        ("abcdefghijklm", "has 13 characters"),
    ] {
        for command in [vec!["vanity", prefix], vec!["init", "--vanity", prefix]] {
            let (code, out, err) = run(home.path(), &command);
            assert_eq!((code, out.as_str()), (2, ""), "{err}");
            assert!(err.contains(reason), "{err}");
        }
    }
    assert_eq!(entries(home.path()), Vec::<PathBuf>::new());
    assert_eq!(run(home.path(), &["vanity"]).0, 2);
}

#[test]
fn a_long_search_is_announced_and_ends_at_its_deadline() {
    let home = tempfile::tempdir().unwrap();
    let (code, out, err) = run(home.path(), &["vanity", "abcdefghijkl", "--deadline", "1200ms", "--out", "keys"]);
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    let announced = err.find("note: ").unwrap();
    assert!(err[announced..].contains("years is the mean. Half of such searches take more than"), "{err}");
    assert!(announced < err.find("million keys/s").unwrap(), "{err}");
    assert!(err.contains("error: ended by deadline") && err.contains("no time is lost"), "{err}");
    assert_eq!(entries(&home.path().join("keys")), Vec::<PathBuf>::new());
}

/// Waits until the search prints this event.
fn await_event(search: &mut Child, event: &str) {
    let mut stdout = search.stdout.take().unwrap();
    let mut seen = String::new();
    while !seen.contains(event) {
        let mut bytes = [0; 4096];
        let count = stdout.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "the search has ended: {seen}");
        seen.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    // Read to its end, so that the search can go on printing.
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
}

#[test]
fn an_interrupted_search_leaves_whole_keys_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    for signal in ["INT", "TERM"] {
        let out = home.path().join(signal);
        let arguments = ["vanity", "abcdefghijkl", "--json", "--out", out.to_str().unwrap()];
        let mut search = command(home.path(), &arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        await_event(&mut search, "progress");
        let kill = Command::new("kill").args([&format!("-{signal}"), &search.id().to_string()]).status().unwrap();
        assert!(kill.success());
        assert_eq!(search.wait().unwrap().code(), Some(1), "{signal}");
        assert_eq!(entries(&out), Vec::<PathBuf>::new());
    }
    // Killed at any moment while keys are written: each folder with an address is complete.
    let out = home.path().join("killed");
    let arguments = ["vanity", "ab", "--count", "100000", "--json", "--out", out.to_str().unwrap()];
    let mut search = command(home.path(), &arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    await_event(&mut search, "progress");
    search.kill().unwrap();
    search.wait().unwrap();
    let (whole, unfinished): (Vec<_>, Vec<_>) =
        entries(&out).into_iter().partition(|path| !name(path).starts_with(".new-"));
    assert!(!whole.is_empty() && unfinished.len() <= 1);
    for folder in whole.iter().rev().take(2) {
        // Run in the folder, so that each has a state directory of its own.
        let (code, _, err) = run(folder, &["init", "--quiet", "--import-key", "."]);
        assert_eq!(code, 0, "{}: {err}", folder.display());
    }
}

#[test]
fn a_key_that_cannot_be_written_yet_is_written_later() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("keys");
    fs::create_dir(&out).unwrap();
    // Not found before the directory is gone, but soon after.
    let arguments = ["vanity", "abcde", "qwert", "vanit", "onion", "--json", "--out", "keys"];
    let mut search = command(home.path(), &arguments);
    let mut search = search.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    await_event(&mut search, "begin");
    fs::remove_dir(&out).unwrap();
    let mut stderr = search.stderr.take().unwrap();
    let mut seen = String::new();
    while !seen.contains("the key is kept in memory") {
        let mut bytes = [0; 4096];
        let count = stderr.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "the search has ended: {seen}");
        seen.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    fs::create_dir(&out).unwrap();
    assert_eq!(search.wait().unwrap().code(), Some(0));
    assert_eq!(entries(&out).len(), 1);
}

#[test]
fn another_machine_searches_without_the_secret_and_its_owner_applies_the_offset() {
    let home = tempfile::tempdir().unwrap();
    let (code, out, err) = run(home.path(), &["vanity", "a", "--out", "home"]);
    assert_eq!(code, 0, "{err}");
    let origin = out.trim().trim_start_matches("home/");
    let (code, out, err) = run(home.path(), &["vanity", "zy", "--from", origin, "--count", "2", "--out", "away"]);
    assert_eq!(code, 0, "{err}");
    let offsets: Vec<&str> = out.lines().collect();
    assert_eq!(offsets.len(), 2);
    let key = format!("home/{origin}");
    let (code, out, err) =
        run(home.path(), &["vanity", "apply", offsets[0], offsets[1], "--key", &key, "--out", "applied"]);
    assert_eq!(code, 0, "{err}");
    for (folder, offset) in out.lines().zip(&offsets) {
        let address = name(Path::new(folder));
        assert!(address.starts_with("zy") && offset.contains(address), "{folder}");
        let node = home.path().join(address);
        fs::create_dir(&node).unwrap();
        let (code, imported, err) = run(&node, &["init", "--quiet", "--import-key", &format!("../{folder}")]);
        assert_eq!((code, imported.trim()), (0, address), "{err}");
    }
    // An existing folder, the wrong key, another file.
    let refusals = [
        (vec![offsets[0], "--key", &key, "--out", "applied"], "keys are never overwritten"),
        (vec![offsets[0], "--key", out.lines().next().unwrap()], "give the other key with --key"),
        (vec![key.as_str()], "--key"),
        (vec!["home/nothing", "--key", &key], "cannot read home/nothing"),
    ];
    for (arguments, reason) in refusals {
        let (code, _, err) = run(home.path(), &[&["vanity", "apply"], arguments.as_slice()].concat());
        assert!(code > 0 && err.contains(reason), "{err}");
    }
    // The beginning of that name can be searched all the same.
    let (code, _, err) = run(home.path(), &["vanity", "--deadline", "100ms", "--", "apply"]);
    assert!(err.contains("searching apply"), "{code}: {err}");
}

#[test]
fn init_searches_an_address_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let (code, out, err) = run(home.path(), &["init", "--quiet", "--vanity", "rb", "--vanity", "xy"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("rb") || out.starts_with("xy"), "{out}");
    let (code, _, err) = run(home.path(), &["init", "--vanity", "abcdefghijkl"]);
    assert!(code == 1 && err.contains("already holds a node"), "an existing node is found before the search: {err}");
    let (code, _, err) = run(home.path(), &["init", "--vanity", "rb", "--import-key", "x"]);
    assert!(code == 2 && err.contains("cannot be used with"), "{err}");
}

/// A line of `--json`.
fn events(out: &str) -> Vec<serde_json::Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Builds of the workspace have the feature `gpu`; Mesa's software Vulkan stands in for a device.
#[test]
fn a_graphics_processor_searches_as_the_processor_does() {
    let home = tempfile::tempdir().unwrap();
    let vanity = |arguments: &[&str]| run(home.path(), &[&["vanity", "--json", "--gpu=llvmpipe"], arguments].concat());
    let (code, out, err) = vanity(&["rb", "XYZ", "--count", "3", "--out", "keys"]);
    assert_eq!(code, 0, "{err}");
    let lines = events(&out);
    assert_eq!((&lines[0]["path"], &lines[0]["threads"]), (&"gpu".into(), &1.into()), "{err}");
    assert!(lines[0]["device"].as_str().unwrap().starts_with("llvmpipe"), "{out}");
    let end = lines.last().unwrap();
    assert!(end["found"] == 3 && end["keys"].as_u64().unwrap() > 1024, "{end}");
    let keys = entries(&home.path().join("keys"));
    assert_eq!(keys.len(), 3);
    for key in &keys {
        assert!(["rb", "xy"].contains(&&name(key)[..2]), "{}", key.display());
        let (code, out, err) = run(key, &["init", "--quiet", "--import-key", "."]);
        assert_eq!((code, out.trim()), (0, name(key)), "{err}");
    }
    // From a public key alone.
    let (code, out, err) = vanity(&["zy", "--from", name(&keys[0]), "--out", "away"]);
    assert_eq!(code, 0, "{err}");
    let found = events(&out).into_iter().find(|line| line["event"] == "found").unwrap();
    let offset = found["file"].as_str().unwrap();
    let key = keys[0].to_str().unwrap();
    let (code, out, err) = run(home.path(), &["vanity", "apply", offset, "--key", key, "--out", "applied"]);
    assert!(code == 0 && out.contains("applied/zy"), "{err}");
    // A deadline, and progress before it.
    let (code, out, err) = vanity(&["abcdefghijkl", "--deadline", "2s"]);
    assert_eq!(code, 1, "{err}");
    let lines = events(&out);
    assert!(lines.iter().any(|line| line["event"] == "progress"), "{out}");
    assert_eq!(lines.last().unwrap()["stopped"], "deadline");
    // An interrupt.
    let mut search = command(home.path(), &["vanity", "--json", "--gpu=llvmpipe", "abcdefghijkl"]);
    let mut search = search.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    await_event(&mut search, "progress");
    assert!(Command::new("kill").args(["-INT", &search.id().to_string()]).status().unwrap().success());
    assert_eq!(search.wait().unwrap().code(), Some(1));
}

#[test]
fn without_a_graphics_processor_the_processor_searches() {
    let home = tempfile::tempdir().unwrap();
    let (code, out, err) = run(home.path(), &["vanity", "rb", "--gpu=no such device", "--json"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("note: there is no graphics processor whose name contains \"no such device\""), "{err}");
    assert!(err.contains("The processor searches instead"), "{err}");
    assert!(out.contains("\"found\":1") && !out.contains("\"path\":\"gpu\""), "{out}");
    // No driver at all.
    let mut command = command(home.path(), &["vanity", "rb", "--gpu"]);
    let output =
        command.env("VK_ICD_FILENAMES", "/nonexistent").env("VK_DRIVER_FILES", "/nonexistent").output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && err.contains("Vulkan shows no device"), "{err}");
    let (code, _, err) = run(home.path(), &["vanity", "rb", "--gpu", "--threads", "1"]);
    assert!(code == 2 && err.contains("cannot be used with"), "{err}");
}
