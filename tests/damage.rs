//! Damages every file of a state directory, Arti's files included, as a power cut or a failing disk
//! does. The daemon must either start and log which file it has set aside, or end with exit code 4
//! and name the file and the way out. It must never retry in silence.
//!
//! No network is used: the only fallback relay in Arti's configuration is a closed port of this
//! host.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustbalance::store::{Store, StoredIntroPoint};
use rustbalance::tor::ReplayLog;
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::record::{PointNonce, RelayId};

const BINARY: &str = env!("CARGO_BIN_EXE_rustbalance");
/// Time limit for the daemon to end or to answer at its socket, and then to log what it sets aside.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the daemon runs in cases where it need not log anything.
const MOMENT: Duration = Duration::from_millis(1500);
/// Number of daemons that run at the same time.
const PARALLEL: usize = 4;
/// Serializes the tests: between fork and exec, a child process holds the file locks of all tests
/// of this process.
static TURN: Mutex<()> = Mutex::new(());

/// Arti's configuration, with nothing to connect to.
const NOWHERE: &str = "
[arti.tor_network]
fallback_caches = [
  { rsa_identity = \"0123456789012345678901234567890123456789\", ed_identity = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\", orports = [\"127.0.0.1:9\"] },
]
[arti.address_filter]
allow_local_addrs = true
";

/// How a run of the daemon ended.
#[derive(Debug)]
struct Outcome {
    /// The exit code; `None` if the daemon answered at its socket.
    code: Option<i32>,
    log: String,
}

/// Runs the daemon until it ends, or until it answers and has set aside `expected` files; then
/// kills it.
fn run(dir: &Path, expected: usize) -> Outcome {
    let log_path = dir.with_extension("log");
    let mut daemon = Command::new(BINARY)
        .args(["--dir", dir.to_str().unwrap(), "run"])
        .env_remove("RUSTBALANCE_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log_path).unwrap())
        .spawn()
        .unwrap();
    let (start, mut answered) = (Instant::now(), None);
    let patience = if expected == 0 { MOMENT } else { PATIENCE };
    let code = loop {
        if let Some(status) = daemon.try_wait().unwrap() {
            break Some(status.code().unwrap_or(-1));
        }
        if answered.is_none() && UnixStream::connect(dir.join("control.sock")).is_ok() {
            answered = Some(Instant::now());
        }
        let logged = fs::read_to_string(&log_path).unwrap().matches("is set aside").count();
        let done = expected > 0 && logged >= expected;
        if answered.is_some_and(|since: Instant| done || since.elapsed() >= patience) {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
            break None;
        }
        assert!(
            answered.is_some() || start.elapsed() < PATIENCE,
            "the daemon neither ends nor answers: {}",
            fs::read_to_string(&log_path).unwrap()
        );
        sleep(Duration::from_millis(20));
    };
    let log = fs::read_to_string(&log_path).unwrap();
    // Otherwise the next run would find the socket of the killed daemon and count it as an answer.
    let _ = fs::remove_file(dir.join("control.sock"));
    Outcome { code, log }
}

/// Creates the state directory of a node that has run.
fn node(folder: &Path) -> PathBuf {
    let dir = folder.join("node");
    let made = Command::new(BINARY).args(["--dir", dir.to_str().unwrap(), "init", "-q"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let config = fs::read_to_string(dir.join("rustbalance.toml")).unwrap();
    fs::write(dir.join("rustbalance.toml"), config + NOWHERE).unwrap();
    let store = Store::open(&dir).unwrap();
    let point = StoredIntroPoint {
        nonce: PointNonce(FixedBytes([7; 16])),
        relay: RelayId { rsa: FixedBytes([7; 20]), ed25519: FixedBytes([7; 32]) },
        created: 7,
        introductions: 0,
        max_seconds: 70_000,
        max_introductions: 20_000,
        retired: None,
    };
    let service = store.cluster().first_service();
    store.add_intro_point(service, &point).unwrap();
    let replays = ReplayLog::open(&store.replay_log_path(service, point.nonce)).unwrap();
    assert!(replays.is_new(b"an introduction").unwrap());
    drop(store);
    let first = run(&dir, 0);
    assert!(first.code.is_none() && !first.log.contains("set aside"), "{first:?}");
    // Files that Arti writes only after it has connected.
    let vanguards = r#"{"l2_vanguards": [], "l3_vanguards": []}"#;
    for (name, json) in [("guards.json", "{}"), ("circuit_timeouts.json", "{}"), ("vanguards.json", vanguards)] {
        let path = dir.join("arti/state/state").join(name);
        if !path.exists() {
            fs::write(&path, json).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
    dir
}

/// All files below a directory, relative to it.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path().strip_prefix(dir).unwrap().to_owned()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Pseudo-random bytes, the same in every run.
fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 | 1).collect()
}

/// The damaged versions of a file, each with a description of the damage.
fn damages(name: &str, whole: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut ways = vec![
        ("emptied", Vec::new()),
        ("cut to half", whole[..whole.len() / 2].to_vec()),
        ("made of noise", noise(whole.len().max(64))),
    ];
    if name.ends_with(".json") {
        ways.push(("of another shape", b"[17]".to_vec()));
        // Only Arti itself can detect this damage. In the timeouts it accepts any fields.
        if !name.contains("timeouts") {
            ways.push(("of other types", br#"{"default": 17, "l2_vanguards": 17, "l3_vanguards": 17}"#.to_vec()));
        }
    }
    if name.ends_with("sqlite3") {
        assert!(whole.len() > 8192, "the cache is too small to be damaged in its middle");
        ways.push(("cut to 5000 bytes", whole[..5000].to_vec()));
        let mut middle = whole[..4096].to_vec();
        middle.extend(noise(whole.len() - 4096));
        ways.push(("noise from the second page on", middle));
    }
    ways
}

/// Whether the daemon may start without a message about this file: files written by people have no
/// checksum, every whole entry of a replay log is valid by itself, the content of a lock file has
/// no meaning, and an empty database is a new one.
fn may_pass(path: &Path, how: &str) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.ends_with(".toml")
        || name.ends_with(".replays")
        || name.ends_with("lock")
        || (name.ends_with("sqlite3") && how == "emptied")
}

fn check(path: &Path, how: &str, outcome: &Outcome, dir: &Path) -> Result<(), String> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let of_arti = path.starts_with("arti");
    let wrong = |what: &str| Err(format!("{} {how}: {what}: {outcome:?}", path.display()));
    match outcome.code {
        // A damaged SQLite database is set aside together with the whole cache folder.
        None if of_arti && outcome.log.contains("set aside") => {
            let aside = dir.join("arti/damaged");
            let there = aside.join(name).exists() || aside.join("cache").join(name).exists();
            if there { Ok(()) } else { wrong("the file that was set aside is missing") }
        }
        None if may_pass(path, how) => Ok(()),
        None => wrong("the daemon starts and logs nothing"),
        Some(4) if outcome.log.contains(name) => Ok(()),
        Some(4) => wrong("the file is not named"),
        Some(_) => wrong("the daemon ends with an exit code other than 4"),
    }
}

#[test]
fn every_damaged_file_is_set_aside_or_named() {
    let _turn = TURN.lock();
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path());
    let all = files(&node);
    let least = ["node.key", "identity.key", "revisions", "membership", "guards.json", "dir.sqlite3"];
    for name in least {
        assert!(all.iter().any(|path| path.ends_with(name)), "{name} is not among {all:?}");
    }
    let mut cases = Vec::new();
    for path in &all {
        let whole = fs::read(node.join(path)).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        cases.extend(damages(name, &whole).into_iter().map(|(how, bytes)| (path, how, bytes)));
    }
    let cases = Mutex::new(cases.into_iter().enumerate());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let Some((number, (path, how, bytes))) = cases.lock().next() else { return };
                    let dir = folder.path().join(format!("case-{number}"));
                    copy(&node, &dir);
                    fs::write(dir.join(path), bytes).unwrap();
                    let outcome = run(&dir, usize::from(!may_pass(path, how)));
                    if let Err(what) = check(path, how, &outcome, &dir) {
                        wrong.lock().push(what);
                    }
                    fs::remove_dir_all(&dir).unwrap();
                }
            });
        }
    });
    let wrong = wrong.into_inner();
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

/// A file that was set aside does not come back: the next start logs nothing about it.
#[test]
fn a_start_after_damage_is_like_any_other() {
    let _turn = TURN.lock();
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path());
    fs::write(node.join("arti/state/state/guards.json"), "").unwrap();
    fs::write(node.join("arti/cache/dir.sqlite3"), noise(5000)).unwrap();
    let outcome = run(&node, 2);
    assert!(outcome.code.is_none(), "{outcome:?}");
    assert_eq!(outcome.log.matches("is set aside").count(), 2, "{}", outcome.log);
    assert!(outcome.log.contains("guards.json") && outcome.log.contains("cache"), "{}", outcome.log);
    let again = run(&node, 0);
    assert!(again.code.is_none() && !again.log.contains("set aside"), "{again:?}");
}
