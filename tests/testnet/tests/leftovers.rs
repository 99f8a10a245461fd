//! Whatever happens to the harness, no tor stays behind.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustbalance_testnet::{Network, Options, PublishedDescriptor, Site};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rustbalance-testnet");

/// A folder that is removed at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rb-leftovers-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(fs::canonicalize(path).unwrap())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The processes, both reapers and tors, whose command line contains each of these strings.
fn processes(words: &[&str]) -> Vec<i32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            words.iter().all(|word| line.contains(word)).then_some(pid)
        })
        .collect()
}

fn torrcs(base: &Path) -> Vec<i32> {
    processes(&[&format!("{}/", base.display()), "/torrc"])
}

/// Polls until `check` holds.
fn eventually(what: &str, patience: Duration, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !check() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Starts `up`, and waits until the network is up.
fn up(base: &Path) -> Child {
    let ready = base.join("ready");
    let _ = fs::remove_file(&ready);
    let mut child = Command::new(PROGRAM)
        .arg("up")
        .arg(base)
        .args(["--relays", "4", "--ready-file"])
        .arg(&ready)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the network is up", Duration::from_secs(100), || {
        assert!(child.try_wait().unwrap().is_none(), "up has ended");
        ready.exists()
    });
    assert_eq!(torrcs(base).len(), 8);
    child
}

#[test]
fn a_killed_harness_leaves_no_tor() {
    let folder = Folder::new("killed");
    let base = &folder.0;

    // Killed: the reaper acts.
    let mut child = up(base);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the reaper has killed all", Duration::from_secs(30), || torrcs(base).is_empty());
    let reapers = || processes(&["testnet-reaper", base.to_str().unwrap()]);
    eventually("the reaper has ended", Duration::from_secs(30), || reapers().is_empty());

    // Killed together with its reaper: `down` ends what was left, as the next start would.
    let mut child = up(base);
    for reaper in reapers() {
        kill(reaper);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!torrcs(base).is_empty());
    let output = Command::new(PROGRAM).arg("down").arg(base).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(torrcs(base), [0_i32; 0]);

    // Asked to end by `down`, which is another process.
    let mut child = up(base);
    let output = Command::new(PROGRAM).arg("down").arg(base).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(child.wait().unwrap().success());
    assert_eq!(torrcs(base), [0_i32; 0]);
    assert_eq!(reapers(), [0_i32; 0]);
}

#[test]
fn a_panic_leaves_no_tor_after_chaos() {
    let options = Options::default();
    let base = options.base.clone();
    let panicked = std::thread::spawn(move || {
        let network = Network::boot(options).unwrap();
        assert!(Network::attach(network.base()).is_ok());
        directories_are_seen_as_they_are(&network);
        assert!(!torrcs(network.base()).is_empty());
        panic!("as asked for");
    })
    .join()
    .unwrap_err();
    assert_eq!(panicked.downcast_ref::<&str>(), Some(&"as asked for"));
    assert_eq!(torrcs(&base), [0_i32; 0]);
    assert!(!base.exists());
}

/// Relays come and go, and `published` shows it.
fn directories_are_seen_as_they_are(network: &Network) {
    network.await_steady_period(Duration::from_secs(120));
    let site = Site::start("beta").unwrap();
    let mut service = network.onion_service("beta", 80, site.addr()).unwrap();
    let onion = &service.hostname().to_owned();
    let limit = Duration::from_secs(60);
    let held = || network.published(onion).unwrap();
    eventually("directories hold the descriptor", limit, || !held().is_empty());
    let before = held().iter().map(|held| held.revision).max().unwrap();

    // The service publishes again. `published` shows the new descriptor, although nothing notified
    // the client that asks.
    service.restart().unwrap();
    let is_new = |held: &[PublishedDescriptor]| held.iter().all(|held| held.revision > before) && !held.is_empty();
    eventually("directories hold the new descriptor", limit, || is_new(&held()));

    // A frozen directory is left out. A directory that restarts has lost its descriptors.
    let holder = held()[0].relay.clone();
    let holder = network.relays().iter().find(|relay| relay.rsa_fingerprint == holder).unwrap();
    holder.stop().unwrap();
    assert!(holder.is_running());
    let asked = Instant::now();
    let held = network.published(onion).unwrap();
    assert!(held.iter().all(|held| held.relay != holder.rsa_fingerprint));
    assert!(asked.elapsed() < Duration::from_secs(15));
    holder.cont().unwrap();
    holder.kill().unwrap();
    assert!(!holder.is_running());
    holder.restart().unwrap();
    assert!(holder.is_running());
    let held = network.published(onion).unwrap();
    assert!(held.iter().all(|held| held.relay != holder.rsa_fingerprint));
}

#[test]
fn run_returns_the_status_of_its_command_and_obeys_signals() {
    let folder = Folder::new("run");
    let script = "test -s \"$RUSTBALANCE_TESTNET_ARTI\" && test -d \"$RUSTBALANCE_TESTNET\" && \
                  \"$0\" status \"$RUSTBALANCE_TESTNET\" >/dev/null && exit 42";
    let status = Command::new(PROGRAM)
        .arg("run")
        .arg(&folder.0)
        .args(["--relays", "4", "--", "sh", "-c", script, PROGRAM])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(42));
    assert_eq!(torrcs(&folder.0), [0_i32; 0]);

    // Ended by a signal while it boots.
    let mut child =
        Command::new(PROGRAM).arg("run").arg(&folder.0).args(["--relays", "4", "--", "sleep", "100"]).spawn().unwrap();
    eventually("tor runs", Duration::from_secs(60), || !torrcs(&folder.0).is_empty());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    eventually("all have ended", Duration::from_secs(30), || torrcs(&folder.0).is_empty());
}
