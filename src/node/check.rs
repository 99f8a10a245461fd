//! Inspects everything that a node needs, for `rustbalance check`: whether the daemon runs or not.
//! Changes nothing on disk.
//!
//! What `run` refuses to start with (see [`mod@super::preflight`]) is a problem here, too. What
//! limits a node without keeping it from running is a warning.

use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::preflight::{check_arti, check_clock, check_descriptors};
use crate::causes::with_causes;
use crate::clock::{date, unix_now};
use crate::config::{Config, FILE_NAME};
use crate::control::{self, ClockStatus, ControlError, LEAST_SPACE, Request, Response};
use crate::display;
use crate::health;
use crate::memory;
use crate::open_files::OpenFiles;
use crate::proxy::{Connector, PortTarget, Target};
use crate::store::{self, StoreError};

/// Time limit for the answer of a running daemon.
const DAEMON_LIMIT: Duration = Duration::from_secs(5);
/// A clock this much behind the newest file counts as set back, in seconds: more than a file system
/// rounds, and less than the 30 min after which other nodes ignore a heartbeat.
const CLOCK_BEHIND: u64 = 120;
/// Below this much, something else may soon fill the disk.
const LITTLE_SPACE: u64 = 512 << 20;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Fine,
    /// The node runs, but less well than it could.
    Warning,
    /// The node does not run, or serves no clients.
    Problem,
}

/// The result of one inspection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was inspected, such as `clock`.
    pub check: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub value: String,
    /// What is wrong with it, and what to do; `None` if it is fine.
    pub advice: Option<String>,
}

impl Finding {
    /// A finding that needs nothing.
    pub fn fine(check: impl Into<String>, value: impl Into<String>) -> Self {
        Self { check: check.into(), severity: Severity::Fine, value: value.into(), advice: None }
    }

    /// A finding that needs a decision of the operator.
    pub fn warning(check: impl Into<String>, value: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, advice: Some(advice.into()), ..Self::fine(check, value) }
    }

    /// A finding that keeps the node from running or from serving.
    pub fn problem(check: impl Into<String>, value: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Problem, advice: Some(advice.into()), ..Self::fine(check, value) }
    }
}

/// Inspects the node in the state directory `dir`. Also returns its configuration, if that can be
/// read.
pub async fn check(dir: &Path) -> (Vec<Finding>, Option<Config>) {
    let mut findings = vec![clock(dir, unix_now()), state(dir)];
    let config = configuration(dir, &mut findings);
    findings.push(socket(dir));
    findings.extend(daemon(dir).await);
    findings.push(space(dir));
    findings.push(files(config.as_ref(), getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)));
    findings.push(memory_of(config.as_ref(), memory::circuits()));
    if let Some(config) = &config {
        let targets = config.ports.iter().chain(config.further_ports.values().flatten());
        let connector = Connector::without_tor();
        let asked = targets.map(|port| target(port, config.health.timeout_of(port), &connector));
        findings.extend(futures::future::join_all(asked).await);
    }
    (findings, config)
}

/// Whether the clock is plausible: by itself, and beside the files that this node wrote last.
fn clock(dir: &Path, unix: u64) -> Finding {
    let shown = date(unix).unwrap_or_else(|| unix.to_string());
    if let Err(error) = check_clock(unix) {
        return Finding::problem("clock", shown, error.to_string());
    }
    match newest_file(dir).filter(|newest| unix + CLOCK_BEHIND < *newest).and_then(date) {
        Some(newest) => Finding::problem(
            "clock",
            shown,
            format!(
                "this node has written files at {newest}: the clock was ahead then, or is behind now; set it, because \
                 other nodes ignore one whose clock is off"
            ),
        ),
        None => Finding::fine("clock", shown),
    }
}

/// When the newest file of the state directory was written, in seconds since the Unix epoch.
fn newest_file(dir: &Path) -> Option<u64> {
    let entries = fs::read_dir(dir).ok()?.filter_map(Result::ok);
    let written = entries.filter_map(|entry| entry.metadata().ok()?.modified().ok());
    written.filter_map(|at| at.duration_since(UNIX_EPOCH).ok()).map(|at| at.as_secs()).max()
}

/// Whether the files of the node are there, whole and private.
fn state(dir: &Path) -> Finding {
    let shown = dir.display().to_string();
    match store::examine(dir) {
        Ok(()) => Finding::fine("state directory", shown),
        Err(error @ StoreError::NotFound(_)) => Finding::problem("state directory", "no node", error.to_string()),
        Err(error) => Finding::problem("state directory", shown, with_causes(&error)),
    }
}

/// Reads the configuration, and checks Tor's settings in it.
fn configuration(dir: &Path, findings: &mut Vec<Finding>) -> Option<Config> {
    let path = dir.join(FILE_NAME).display().to_string();
    let (config, renamed) = match Config::read(dir) {
        Ok(read) => read,
        Err(error) => {
            let (path, problem) = (error.path.display().to_string(), error.problem.to_string());
            findings.push(Finding::problem("configuration", path, problem));
            return None;
        }
    };
    findings.push(match renamed.as_slice() {
        [] => Finding::fine("configuration", path),
        hints => {
            let hints: Vec<_> = hints.iter().map(ToString::to_string).collect();
            Finding::warning("configuration", path, hints.join("; "))
        }
    });
    let bridges = if config.arti.is_empty() { "defaults" } else { "as configured" };
    findings.push(match check_arti(dir, &config.arti) {
        Ok(()) => Finding::fine("Tor's settings", bridges),
        Err(error) => Finding::problem("Tor's settings", bridges, with_causes(&error)),
    });
    Some(config)
}

/// Whether the control socket has a path that the system takes.
fn socket(dir: &Path) -> Finding {
    match control::socket_path(dir) {
        Ok(path) => Finding::fine("control socket", path.display().to_string()),
        Err(error) => Finding::problem("control socket", "its path is too long", error.to_string()),
    }
}

/// Whether a daemon runs, and answers. If it does, also whether the clock agrees with Tor and the
/// members.
async fn daemon(dir: &Path) -> Vec<Finding> {
    let answer = control::call(dir, &Request::Status {}, DAEMON_LIMIT).await;
    let clock = match &answer {
        Ok(Response::Status(status)) => compared_clock(&status.clock),
        _ => None,
    };
    [running(answer)].into_iter().chain(clock).collect()
}

/// How the daemon finds the clock; `None` if it has nothing to compare it with.
fn compared_clock(clock: &ClockStatus) -> Option<Finding> {
    let (check, ahead) = ("clock, compared", clock.ahead_seconds?);
    let direction = if ahead < 0 { "behind" } else { "ahead" };
    let shown = format!("{} {direction}", display::time(ahead.unsigned_abs()));
    Some(match clock.problem_text() {
        None => Finding::fine(check, shown),
        Some(text) if clock.proven => Finding::problem(check, shown, text),
        Some(text) => Finding::warning(check, shown, text),
    })
}

fn running(answer: Result<Response, ControlError>) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    match answer {
        Ok(Response::Status(status)) if status.version == own => Finding::fine(
            "daemon",
            match status.tor.ready {
                true => format!("runs, {}", status.phase),
                false => format!("runs, and connects to Tor: {:.0} %", status.tor.fraction * 100.0),
            },
        ),
        Ok(Response::Status(status)) => Finding::warning(
            "daemon",
            format!("version {} runs", status.version),
            format!("this command has version {own}: restart the daemon, so that it has the installed one"),
        ),
        Err(ControlError::NotRunning(_) | ControlError::PathTooLong(_)) => Finding::fine("daemon", "does not run"),
        Ok(_) => Finding::problem("daemon", "runs", "its answer does not fit the request: restart it"),
        Err(error @ ControlError::NotAllowed(_)) => Finding::warning("daemon", "not asked", error.to_string()),
        Err(error) => Finding::problem("daemon", "does not answer", with_causes(&error)),
    }
}

/// Free space on the disk that has `dir`, or is to have it, in bytes.
pub(super) fn free_space(dir: &Path) -> std::io::Result<u64> {
    let nearest = dir.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
    let disk = statvfs(nearest)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Whether the disk has room.
fn space(dir: &Path) -> Finding {
    let free = match free_space(dir) {
        Ok(free) => free,
        Err(error) => return Finding::warning("free space", "unknown", error.to_string()),
    };
    let shown = format!("{} MiB", free >> 20);
    let advice = "make room on the disk of the state directory: a node that cannot write hands over the right to \
                  publish, and loses Tor's directory of the network";
    match free {
        ..LEAST_SPACE => Finding::problem("free space", shown, advice),
        LEAST_SPACE..LITTLE_SPACE => Finding::warning("free space", shown, advice),
        _ => Finding::fine("free space", shown),
    }
}

/// Whether this process may open enough files, of which `limit` is the hard limit. The unit has a
/// limit of its own.
fn files(config: Option<&Config>, limit: u64) -> Finding {
    let streams = config.map(|config| config.proxy.streams).unwrap_or_default();
    let files = OpenFiles { limit, ..OpenFiles::of_process(streams) };
    let allowed = if limit == u64::MAX { "no limit".to_owned() } else { format!("{limit} allowed here") };
    let shown = format!("{allowed}, {} needed", files.needed);
    match check_descriptors(limit) {
        Err(error) => Finding::problem("open files", shown, error.to_string()),
        Ok(()) if !files.suffice() => Finding::warning(
            "open files",
            shown,
            format!(
                "a daemon started from here serves at most {} streams at once: raise the hard limit (LimitNOFILE= in the \
                 unit, `ulimit -Hn` in a shell) or lower [limits] streams",
                files.streams()
            ),
        ),
        Ok(()) => Finding::fine("open files", shown),
    }
}

/// Whether the memory of this host suffices for the configured number of circuits, or for which
/// number it does.
fn memory_of(config: Option<&Config>, circuits: usize) -> Finding {
    let wanted = config.map(|config| config.service.open_rendezvous).unwrap_or_default();
    match circuits {
        usize::MAX => Finding::fine("memory", "unknown"),
        _ if circuits < wanted => Finding::warning(
            "memory",
            format!("for {circuits} circuits of clients at once"),
            format!("[limits] open_rendezvous is {wanted}, which this host does not reach: lower it, or add memory"),
        ),
        _ => Finding::fine("memory", format!("for {circuits} circuits of clients at once, {wanted} allowed")),
    }
}

/// Whether a target answers, as the daemon's own checks find out. The application may be down on
/// purpose, so it is a warning if it does not.
async fn target(port: &PortTarget, limit: Duration, connector: &Connector) -> Finding {
    let (check, value) = (format!("target of port {}", port.port), port.target.to_string());
    if let Target::Onion(..) = port.target {
        let advice =
            "not asked: it is reached over Tor, by the daemon alone; `rustbalance status` shows whether it answers";
        return Finding::fine(check, format!("{value}, {advice}"));
    }
    match health::ask(port, limit, connector).await {
        Some(Ok(())) => Finding::fine(check, value),
        Some(Err(error)) => Finding::warning(
            check,
            value,
            format!("{error}: until it answers, this node serves no clients; start the application{}", or(port)),
        ),
        None => Finding::warning(check, value, "not asked: this process has too many files open"),
    }
}

/// What else the reason may be, beside an application that does not run.
fn or(port: &PortTarget) -> &'static str {
    match &port.target {
        Target::Unix(_) => ", or let the daemon's user write to its socket",
        _ => ", or correct the target in [[port]]",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::found;
    use crate::store::Store;

    /// A node with this configuration, and a folder that holds it.
    fn node(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("node");
        drop(found(Store::create(&dir).unwrap(), None, unix_now(), &mut rand::rng()).unwrap());
        fs::write(dir.join(FILE_NAME), text).unwrap();
        (folder, dir)
    }

    #[test]
    fn a_clock_behind_the_newest_file_is_found() {
        let (_folder, dir) = node("");
        let severity = |unix| clock(&dir, unix).severity;
        assert_eq!(severity(unix_now()), Severity::Fine);
        assert_eq!(severity(unix_now() - 60), Severity::Fine, "rounding is not a fault");
        assert_eq!(severity(unix_now() - 3600), Severity::Problem);
        assert_eq!(severity(unix_now() + 3600), Severity::Fine, "a node may have been off");
        assert_eq!(severity(0), Severity::Problem);
        assert_eq!(clock(Path::new("/none"), unix_now()).severity, Severity::Fine);
    }

    #[test]
    fn the_clock_is_compared_if_the_daemon_can() {
        let found = |ahead_seconds, proven| {
            let witness = Some("members".into());
            compared_clock(&ClockStatus { ahead_seconds, witness, proven })
        };
        assert_eq!(found(None, false), None);
        assert_eq!(found(Some(-59), false), Some(Finding::fine("clock, compared", "59s behind")));
        assert_eq!(found(Some(60), false).unwrap().severity, Severity::Warning);
        let far = found(Some(-7200), true).unwrap();
        assert_eq!((far.severity, far.value.as_str()), (Severity::Problem, "2h behind"));
        assert!(far.advice.unwrap().contains("does not publish"));
    }

    #[test]
    fn too_few_files_and_too_little_memory_are_warnings_with_what_they_allow() {
        let (_folder, dir) = node("[[port]]\nvirtual = 80\ntarget = \"127.0.0.1:9\"\n");
        let config = Config::load(&dir).unwrap();
        let found = |limit| files(Some(&config), limit);
        assert_eq!(found(65_536).severity, Severity::Fine);
        assert_eq!(found(u64::MAX).value, "no limit, 4352 needed");
        assert_eq!(found(100).severity, Severity::Problem);
        let few = found(1024);
        assert!(few.severity == Severity::Warning && few.advice.unwrap().contains("at most 768 streams"));
        assert_eq!(memory_of(Some(&config), 5000).severity, Severity::Fine);
        let small = memory_of(Some(&config), 1000);
        assert!(small.severity == Severity::Warning && small.advice.unwrap().contains("open_rendezvous is 4096"));
        assert_eq!(memory_of(Some(&config), usize::MAX).severity, Severity::Fine);
    }

    #[tokio::test]
    async fn all_is_inspected_although_something_is_wrong() {
        let (_folder, dir) = node("[limits]\nstreams = 0\n");
        let (findings, config) = check(&dir).await;
        assert!(config.is_none());
        let found = |check: &str| findings.iter().find(|finding| finding.check == check).unwrap();
        let wrong = found("configuration");
        assert_eq!(wrong.severity, Severity::Problem);
        assert!(wrong.advice.as_ref().unwrap().contains("line 2, column 11: "), "{wrong:?}");
        for fine in ["state directory", "control socket", "daemon"] {
            assert_eq!(found(fine).severity, Severity::Fine, "{findings:?}");
        }
    }
}
