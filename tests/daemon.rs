//! The daemon as a process without a Tor network: signals, notifications to systemd, and what other
//! processes can read of it.

// Clippy's exception for tests does not cover the helper functions.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use log::refusals;
use monitor::{check_metrics, connect, get_tcp, get_unix};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

#[path = "daemon/log.rs"]
mod log;
#[path = "fixtures/monitor.rs"]
mod monitor;

const BINARY: &str = env!("CARGO_BIN_EXE_rustbalance");
/// Time limit for every expected event, generous because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// User id of an unprivileged user, which every Debian system has.
const PLAIN_USER: u32 = 65_534;

/// Arti's configuration for a network in which no relay answers: nothing listens on the discard
/// port.
const NO_NETWORK: &str = r#"
[tor_network]
fallback_caches = [
  { rsa_identity = "1111111111111111111111111111111111111111", ed_identity = "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo", orports = ["127.0.0.1:9"] },
]
[tor_network.authorities]
v3idents = ["2222222222222222222222222222222222222222"]
uploads = [["127.0.0.1:9"]]
downloads = [["127.0.0.1:9"]]
votes = [["127.0.0.1:9"]]
[address_filter]
allow_local_addrs = true
[storage.permissions]
dangerously_trust_everyone = true
"#;

/// A daemon without a network; killed when dropped.
struct Daemon {
    folder: TempDir,
    /// The program that [`Daemon::start`] runs.
    program: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// The first node of a new cluster, not running yet.
    fn founded() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arti = folder.path().join("no-network.toml");
        fs::write(&arti, NO_NETWORK).unwrap();
        let daemon = Self { folder, program: BINARY.into(), child: None };
        let done = daemon.command(&["init", "--arti-config", arti.to_str().unwrap()]);
        assert!(done.status.success(), "{done:?}");
        daemon
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("node")
    }

    /// Starts `rustbalance run`; `launcher` is a command put before it, such as `nohup`.
    fn start(&mut self, launcher: &[&str], change: impl FnOnce(&mut Command)) {
        let program = self.program.to_str().unwrap();
        let arguments: Vec<&str> = launcher.iter().copied().chain([program]).collect();
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(arguments[0]);
        command
            .args(&arguments[1..])
            .arg("--dir")
            .arg(self.dir())
            .arg("run")
            .env_remove("RUSTBALANCE_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        change(&mut command);
        self.child = Some(command.spawn().unwrap());
    }

    fn command(&self, arguments: &[&str]) -> Output {
        Command::new(BINARY)
            .env_remove("RUSTBALANCE_LOG")
            .arg("--dir")
            .arg(self.dir())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Changes the configuration file, as an editor does: by a new file.
    fn configure(&self, change: impl FnOnce(String) -> String) {
        let path = self.dir().join("rustbalance.toml");
        let new = self.folder.path().join("new.toml");
        fs::write(&new, change(fs::read_to_string(&path).unwrap())).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// Waits until `done` is true; fails if the daemon ends before.
    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(!self.has_ended(), "the daemon has ended before this happened: {what}: {}", self.log());
            assert!(start.elapsed() < PATIENCE, "never happened: {what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn until_it_can_be_asked(&mut self) {
        self.until("the daemon answers `status`", |daemon| daemon.command(&["status"]).status.success());
    }

    /// Waits until the daemon has ended; returns its exit code, `None` if a signal ended it.
    fn end(&mut self) -> Option<i32> {
        let start = Instant::now();
        while !self.has_ended() {
            assert!(start.elapsed() < PATIENCE, "the daemon does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.take().unwrap().wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_changed_configuration_is_applied_or_refused_whole_by_hangup_and_by_command() {
    let mut daemon = Daemon::founded();
    // The tests may run under nohup, which ignores the signal.
    daemon.start(&["env", "--default-signal=HUP"], |_| {});
    daemon.until_it_can_be_asked();
    let reload = |daemon: &Daemon, options: &[&str]| {
        let output = daemon.command(&[&["reload"], options].concat());
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.code(), text)
    };
    let (code, text) = reload(&daemon, &[]);
    assert!(code == Some(0) && text.starts_with("nothing has changed in /"), "{text}");

    daemon.configure(|text| text.replace("# streams = 4096", "streams = 99"));
    daemon.signal(Signal::HUP);
    let applied = "[limits] streams changed from 4096 to 99";
    daemon.until("SIGHUP applies the file", |daemon| daemon.log().contains(applied));

    assert!(!daemon.log().contains("DEBUG"), "{}", daemon.log());
    daemon.configure(|text| text.replace("# level = \"info\"", "level = \"debug\""));
    assert_eq!(reload(&daemon, &[]).1, "[log] level changed from unset to \"debug\": applied\n");
    daemon.until("it logs more", |daemon| daemon.log().contains("DEBUG"));

    daemon.configure(|text| text.replace("# weight = 1", "weight = 3").replace("# failures = 3", "failuers = 4"));
    let (code, text) = reload(&daemon, &[]);
    assert_eq!(code, Some(1), "{text}");
    for part in ["the running configuration stays", "rustbalance.toml: line ", ", column 1: ", "mean \"failures\"?"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    daemon.signal(Signal::HUP);
    daemon.until("SIGHUP is refused, too", |daemon| refusals(daemon) == 2);

    daemon.configure(|text| {
        text.replace("failuers = 4", "failures = 4").replace("# heartbeat = \"2s\"", "heartbeat = \"3s\"")
    });
    let (code, text) = reload(&daemon, &[]);
    assert_eq!(code, Some(5), "{text}");
    assert_eq!(
        text,
        "[node] weight changed from 1 to 3: applied\n[health] failures changed from 3 to 4: applied\n\
         [cluster] heartbeat changed from \"2s\" to \"3s\": takes effect after a restart\n"
    );
    let (code, text) = reload(&daemon, &["--lenient"]);
    assert!(code == Some(0) && text.starts_with("[cluster] heartbeat changed"), "{text}");
    assert!(!daemon.log().contains(".onion"), "{}", daemon.log());
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), Some(0));
    assert_eq!(reload(&daemon, &[]).0, Some(3), "no daemon runs");
}

#[test]
fn hangups_during_the_start_the_run_and_the_stop_do_no_harm() {
    let mut daemon = Daemon::founded();
    daemon.start(&["env", "--default-signal=HUP"], |_| {});
    // From the first moment at which the program can handle the signal.
    let handles_hangup = |daemon: &Daemon| {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().as_raw_nonzero())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim();
        u64::from_str_radix(caught, 16).unwrap() & 1 == 1
    };
    while !handles_hangup(&daemon) {
        assert!(!daemon.has_ended(), "{}", daemon.log());
    }
    for _ in 0..10 {
        daemon.signal(Signal::HUP);
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon.until_it_can_be_asked();
    daemon.configure(|text| text.replace("# streams = 4096", "streams = 9"));
    // Every second file has a mistake.
    for number in 0..100 {
        let key = if number % 2 == 0 { "streams" } else { "straems" };
        daemon
            .configure(|text| text.replace("straems = 9", "streams = 9").replace("streams = 9", &format!("{key} = 9")));
        daemon.signal(Signal::HUP);
    }
    daemon.configure(|text| text.replace("straems = 9", "streams = 9").replace("streams = 9", "streams = 77"));
    daemon.signal(Signal::HUP);
    daemon.until("the last file is in use", |daemon| daemon.log().contains(" to 77"));
    assert!(daemon.command(&["status"]).status.success());
    let report = String::from_utf8(daemon.command(&["bugreport"]).stdout).unwrap();
    assert!(report.contains("[limits] streams changed from 4096 to 77") && report.contains(" to 77"), "{report}");
    assert!(report.contains("the configuration is refused") && !report.contains(".onion"), "{report}");
    let checked = daemon.command(&["check"]);
    let text = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success() && text.contains(" runs, and connects to Tor: "), "{text}");
    daemon.signal(Signal::TERM);
    for _ in 0..20 {
        if daemon.has_ended() {
            break;
        }
        daemon.signal(Signal::HUP);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn systemd_is_notified_of_the_begin_and_the_end_of_a_reload() {
    let mut daemon = Daemon::founded();
    let path = daemon.folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = |wanted: &str| loop {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("the daemon does not notify systemd");
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text.contains(wanted) {
            return text;
        }
    };
    daemon.start(&[], |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    heard("READY=1");
    assert!(daemon.command(&["reload"]).status.success());
    let begin = heard("RELOADING=1");
    assert!(begin.contains("MONOTONIC_USEC="), "{begin}");
    heard("READY=1");
    daemon.signal(Signal::TERM);
    heard("STOPPING=1");
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
    let mut daemon = Daemon::founded();
    daemon.start(&["sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh"], |_| {});
    daemon.until_it_can_be_asked();
    for signal in [Signal::HUP, Signal::INT] {
        daemon.signal(signal);
    }
    std::thread::sleep(Duration::from_secs(1));
    daemon.until_it_can_be_asked();
    assert!(!daemon.log().contains("SIGHUP") && !daemon.log().contains("SIGINT"), "{}", daemon.log());
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn systemd_is_notified_once_the_control_socket_answers_whatever_tor_does() {
    let mut daemon = Daemon::founded();
    let path = daemon.folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("the daemon does not notify systemd");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    daemon.start(&[], |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let mut before = Vec::new();
    loop {
        match heard() {
            ready if ready.contains("READY=1") => break,
            other => before.push(other),
        }
    }
    let status = daemon.command(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.success() && text.contains("Tor is not ready"), "{before:?} {text}");
    while !heard().contains("STATUS=connecting to Tor: ") {}
    for command in [&["invite"][..], &["drain"], &["resume"], &["evict", "abcdefgh"]] {
        let refused = daemon.command(command);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{command:?}: {why}");
        assert!(why.contains("still connecting to Tor") && why.contains("`rustbalance status`"), "{command:?}: {why}");
    }
    daemon.signal(Signal::TERM);
    while !heard().contains("STOPPING=1") {}
    assert_eq!(daemon.end(), Some(0));
}

#[test]
fn monitors_are_answered_on_the_socket_and_on_loopback_while_tor_is_out_of_reach() {
    let mut daemon = Daemon::founded();
    // An own loopback address, so that no other process has the port.
    let [.., high, low] = std::process::id().to_be_bytes();
    let address = std::net::SocketAddr::from(([127, 99, high, low], 9441));
    let config = daemon.dir().join("rustbalance.toml");
    let text = fs::read_to_string(&config).unwrap();
    let with = |listen: &str| text.replace("\n[metrics]\n", &format!("\n[metrics]\nlisten = \"{listen}\"\n"));
    for refused in ["0.0.0.0:9441", "192.0.2.1:9441", "[::]:9441"] {
        fs::write(&config, with(refused)).unwrap();
        let output = daemon.command(&["run"]);
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{why}");
        assert!(why.contains(refused) && why.contains("not a port of a loopback address"), "{why}");
    }
    fs::write(&config, with(&address.to_string())).unwrap();
    daemon.start(&[], |_| {});
    daemon.until_it_can_be_asked();
    daemon.until("it listens", |_| connect(address).is_ok());
    // More connections than are served at once, which say nothing.
    let silent: Vec<_> = (0..40).map(|_| connect(address).unwrap()).collect();
    let socket = daemon.dir().join("metrics.sock");
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    let (status, metrics) = get_unix(&socket, "/metrics");
    assert_eq!(status, 200);
    check_metrics(&metrics);
    assert!(metrics.contains("\nrustbalance_tor_ready 0") && metrics.contains("\nrustbalance_ready 0"), "{metrics}");
    assert_eq!(get_unix(&socket, "/health").0, 200);
    let (status, why) = get_unix(&socket, "/ready");
    assert!(status == 503 && why.starts_with("Tor is not ready: "), "{status} {why}");
    assert!(daemon.command(&["status"]).status.success());
    drop(silent);
    assert_eq!(get_tcp(address, "/metrics").0, 200);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), Some(0));
    assert!(!socket.exists());
}

/// A node that the unprivileged user owns, with a copy of the program that this user can run.
fn of_the_plain_user() -> Daemon {
    let mut daemon = Daemon::founded();
    let folder = daemon.folder.path();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.join("rustbalance");
    copy_program(&program);
    give_away(&daemon.dir());
    daemon.program = program;
    daemon
}

/// Copies the program with `cp`. If this process wrote the copy, a child that another test forks
/// meanwhile would inherit the open file, and the kernel does not run a file that is open for
/// writing (ETXTBSY).
fn copy_program(to: &Path) {
    assert!(Command::new("cp").args([Path::new(BINARY), to]).status().unwrap().success());
}

fn give_away(path: &Path) {
    chown(path, Some(PLAIN_USER), Some(PLAIN_USER)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give_away(&entry.unwrap().path());
        }
    }
}

#[test]
fn no_process_of_the_same_user_reads_its_memory_and_no_core_is_dumped() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can start a daemon as another user");
        return;
    }
    // Both runs are as the unprivileged user: root can read the memory of every process.
    for readable in [true, false] {
        let mut daemon = of_the_plain_user();
        daemon.start(&[], |command| {
            command.uid(PLAIN_USER).gid(PLAIN_USER);
            if readable {
                command.env("RUSTBALANCE_READABLE_MEMORY", "1");
            }
        });
        daemon.until("the control socket exists", |daemon| daemon.dir().join("control.sock").exists());
        let proc = PathBuf::from(format!("/proc/{}", daemon.pid().as_raw_nonzero()));
        let environment = Command::new("head")
            .args(["-c", "1"])
            .arg(proc.join("environ"))
            .uid(PLAIN_USER)
            .gid(PLAIN_USER)
            .output()
            .unwrap();
        assert_eq!(environment.status.success(), readable, "{environment:?}");
        let owner = fs::metadata(proc.join("mem")).unwrap().uid();
        assert_eq!(owner, if readable { PLAIN_USER } else { 0 });
        if !readable {
            let limits = fs::read_to_string(proc.join("limits")).unwrap();
            let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
            assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
        }
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.end(), Some(0));
    }
}

#[test]
fn no_file_is_open_to_a_group_whatever_umask_the_daemon_inherits() {
    let mut daemon = Daemon::founded();
    daemon.start(&["sh", "-c", "umask 002; exec \"$@\"", "sh"], |_| {});
    daemon.until_it_can_be_asked();
    for lock in ["arti/state/state/state.lock", "arti/cache/dir.lock"] {
        daemon.until("Arti has made its lock files", |daemon| daemon.dir().join(lock).exists());
        let mode = fs::metadata(daemon.dir().join(lock)).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{lock}: {mode:o}");
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), Some(0));
}

/// Runs a shell script in its own mount namespace; prints the reason and returns `None` where that
/// is not allowed.
fn with_own_mounts(script: &str, program: &Path) -> Option<Output> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", script, "sh"]).arg(program);
        command.env_remove("RUSTBALANCE_DIR").env_remove("XDG_STATE_HOME").env("HOME", "/root").output().unwrap()
    };
    let possible = unshare("mount -t tmpfs none /var/lib");
    if !possible.status.success() {
        eprintln!("skipped: mounting is not allowed here: {}", String::from_utf8_lossy(&possible.stderr).trim());
        return None;
    }
    Some(unshare(script))
}

#[test]
fn an_unprivileged_user_learns_where_the_system_node_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("rustbalance");
    copy_program(&program);
    let ask = |state: &str| {
        let script = format!(
            "mount -t tmpfs none /var/lib; {state}
            HOME=/nonexistent exec setpriv --reuid {PLAIN_USER} --regid {PLAIN_USER} --clear-groups \"$1\" status"
        );
        with_own_mounts(&script, &program)
    };
    let Some(hidden) = ask("mkdir -m 0700 /var/lib/rustbalance;") else { return };
    let why = String::from_utf8_lossy(&hidden.stderr).into_owned();
    assert_eq!(hidden.status.code(), Some(1), "{why}");
    assert!(why.contains("/nonexistent/.local/state/rustbalance"), "{why}");
    assert!(why.contains("there is /var/lib/rustbalance") && why.contains("sudo"), "{why}");
    let Some(none) = ask("") else { return };
    let why = String::from_utf8_lossy(&none.stderr).into_owned();
    assert_eq!(none.status.code(), Some(3), "{why}");
    assert!(!why.contains("/var/lib"), "{why}");
}

#[test]
fn root_is_recognized_without_proc() {
    let script = "mount -t tmpfs none /var/lib; mount -t tmpfs none /proc; exec \"$1\" status";
    let Some(done) = with_own_mounts(script, Path::new(BINARY)) else { return };
    let why = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(why, "error: no daemon runs in /var/lib/rustbalance: start it with `rustbalance run`\n");
    assert_eq!(done.status.code(), Some(3));
}

/// A web server that answers each request with 204. Gives what it was asked.
#[allow(clippy::disallowed_methods)]
fn web_server() -> (std::net::SocketAddr, std::sync::mpsc::Receiver<String>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, (sender, requests)) = (listener.local_addr().unwrap(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            let (mut request, mut some) = (Vec::new(), [0; 4096]);
            while !request.ends_with(b"}") {
                let count = stream.read(&mut some).unwrap();
                request.extend_from_slice(&some[..count]);
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            if sender.send(String::from_utf8(request).unwrap()).is_err() {
                return;
            }
        }
    });
    (address, requests)
}

#[test]
fn alerts_leave_a_daemon_that_does_not_reach_tor_and_no_secret_is_logged() {
    let mut daemon = Daemon::founded();
    let (hook, requests) = web_server();
    let (headers, script, out) = (daemon.dir().join("headers"), daemon.dir().join("page"), daemon.dir().join("paged"));
    fs::write(&headers, "Authorization: Bearer s3cret-header\n").unwrap();
    fs::set_permissions(&headers, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&script, "env | sed 's/=.*//' >> \"$1.env\"; cat >> \"$1\"; test ! -e \"$1.hang\" || sleep 1000\n")
        .unwrap();
    daemon.configure(|text| {
        let alerts = format!(
            "[alerts]\ncommand = [\"/bin/sh\", {script:?}, {out:?}, \"s3cret-argument\"]\nafter = \"300ms\"\ntimeout = \"5s\"\n\
             webhook = \"http://{hook}/s3cret-path\"\nwebhook_headers = \"headers\"\n"
        );
        text.replace("[alerts]\n", &alerts).replace("# level = \"info\"", "level = \"debug\"")
    });
    daemon.start(&[], |command| {
        command.env("CREDENTIALS_DIRECTORY", "/run/credentials/x");
    });
    daemon.until("an alert that Tor is not ready", |_| {
        fs::read_to_string(&out).is_ok_and(|all| all.contains("tor_not_ready"))
    });
    let request = requests.recv_timeout(PATIENCE).unwrap().to_lowercase();
    assert!(
        request.starts_with("post /s3cret-path http/1.1\r\n") && request.contains("bearer s3cret-header"),
        "{request}"
    );
    let environment = fs::read_to_string(out.with_extension("env")).unwrap();
    assert!(environment.contains("PATH") && !environment.contains("CREDENTIALS"), "{environment}");

    let tested = daemon.command(&["alert", "test"]);
    let text = String::from_utf8(tested.stdout).unwrap();
    assert!(
        tested.status.success() && text.contains("command: delivered") && text.contains("webhook: delivered"),
        "{text}{}",
        String::from_utf8_lossy(&tested.stderr)
    );

    fs::write(out.with_extension("hang"), "").unwrap();
    let tested = daemon.command(&["alert", "test"]);
    let text = String::from_utf8(tested.stderr).unwrap();
    assert_eq!(tested.status.code(), Some(1), "{text}");
    assert!(text.contains("did not end within 5s and was killed") && text.contains("webhook: delivered"), "{text}");
    fs::set_permissions(&headers, fs::Permissions::from_mode(0o644)).unwrap();
    let text = String::from_utf8(daemon.command(&["alert", "test"]).stderr).unwrap();
    assert!(text.contains("other users may read the webhook's headers"), "{text}");

    let metrics = get_unix(&daemon.dir().join("metrics.sock"), "/metrics").1;
    check_metrics(&metrics);
    for line in [
        "rustbalance_problems{kind=\"tor_not_ready\"} 1",
        "rustbalance_alerts_total{state=\"notice\",outcome=\"delivered\"} 3",
        "rustbalance_alerts_total{state=\"notice\",outcome=\"failed\"} 3",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), Some(0));
    let log = daemon.log();
    assert!(log.contains("alert delivered") && !log.contains("s3cret"), "{log}");
}
