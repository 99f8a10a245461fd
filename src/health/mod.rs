//! Checks the targets, and reports whether this node is fit for clients.
//!
//! Enter with [`Health::start`]. Every [`HealthSettings::interval`] each target is connected to,
//! and the connection closed. One success makes a target healthy at once;
//! [`HealthSettings::failures`] failures in a row make it unhealthy, so that one lost connection
//! does not move introduction points. A node is ready while **all** its targets are healthy, and
//! not before each has answered once; without targets it is not ready. When a reload changes the
//! targets, those that stay keep their verdict, and readiness follows once each new one has been
//! asked. A failure because this process has no free file descriptor says nothing about the target
//! and changes nothing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::proxy::{PortTarget, Target};
use crate::sync::publish;

/// How often targets are checked, and how many failures are tolerated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSettings {
    /// Time between the beginnings of two rounds.
    pub interval: Duration,
    /// How long one connection may take.
    pub timeout: Duration,
    /// Failures in a row that make a healthy target unhealthy. At least 1.
    pub failures: u32,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(2), failures: 3 }
    }
}

/// The health of the target of one virtual port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortHealth {
    /// The virtual port.
    pub port: u16,
    /// Its target.
    pub target: Target,
    /// Whether streams are expected to be served.
    pub healthy: bool,
    /// The last failure, `None` after a success.
    pub error: Option<String>,
}

/// The verdict on one target: it has no clock and no sockets.
#[derive(Debug, Default)]
struct TargetVerdict {
    healthy: bool,
    failures: u32,
    error: Option<String>,
}

impl TargetVerdict {
    /// Applies the outcome of one connection; returns whether `healthy` has changed.
    fn observe(&mut self, outcome: Result<(), String>, failures_allowed: u32) -> bool {
        let before = self.healthy;
        match outcome {
            Ok(()) => *self = Self { healthy: true, failures: 0, error: None },
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.healthy &= self.failures < failures_allowed.max(1);
                self.error = Some(error);
            }
        }
        before != self.healthy
    }
}

/// The running checks. Dropping it stops them.
pub struct Health {
    ready: watch::Receiver<bool>,
    ports: watch::Receiver<Arc<[PortHealth]>>,
    _stop: DropGuard,
}

impl Health {
    /// Starts the checks; each round uses the latest targets and `settings`. Must be called within
    /// a tokio runtime.
    pub fn start(targets: watch::Receiver<Vec<PortTarget>>, settings: watch::Receiver<HealthSettings>) -> Self {
        let first = targets.borrow().iter().map(|port| report(port, &TargetVerdict::default())).collect();
        let (ready, ready_receiver) = watch::channel(false);
        let (statuses, ports_receiver) = watch::channel(first);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(check(targets, settings, ready, statuses)).await });
        Self { ready: ready_receiver, ports: ports_receiver, _stop: stop.drop_guard() }
    }

    /// True while every target is healthy.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// The health of each port, in the order of the configuration.
    pub fn ports(&self) -> Arc<[PortHealth]> {
        self.ports.borrow().clone()
    }
}

fn report(port: &PortTarget, judge: &TargetVerdict) -> PortHealth {
    PortHealth { port: port.port, target: port.target.clone(), healthy: judge.healthy, error: judge.error.clone() }
}

/// Runs one round after the other, without end.
async fn check(
    mut targets: watch::Receiver<Vec<PortTarget>>,
    mut settings: watch::Receiver<HealthSettings>,
    ready: watch::Sender<bool>,
    statuses: watch::Sender<Arc<[PortHealth]>>,
) {
    let (mut ports, mut judges) = (Vec::new(), Vec::new());
    loop {
        let wanted = targets.borrow_and_update().clone();
        judges = carried_over(&ports, judges, &wanted);
        ports = wanted;
        let (began, HealthSettings { timeout, failures, .. }) = (Instant::now(), settings.borrow().clone());
        let asked = ports.iter().map(|port| ask(port, timeout));
        let outcomes = futures::future::join_all(asked).await;
        for ((port, judge), outcome) in ports.iter().zip(&mut judges).zip(outcomes) {
            let Some(outcome) = outcome else { continue };
            let first_failure = judge.error.is_none() && outcome.is_err();
            match (judge.observe(outcome, failures), judge.healthy) {
                (true, true) => info!(port = port.port, target = %port.target, "the target answers"),
                (true, false) => {
                    warn!(port = port.port, target = %port.target, error = judge.error, "the target is down");
                }
                (false, false) if first_failure => {
                    warn!(port = port.port, target = %port.target, error = judge.error, "the target does not answer yet");
                }
                (false, _) => {}
            }
        }
        let all = ports.iter().zip(&judges).map(|(port, judge)| report(port, judge)).collect::<Arc<[_]>>();
        let now_ready = !all.is_empty() && all.iter().all(|port| port.healthy);
        statuses.send_replace(all);
        publish(&ready, now_ready);
        next_round(began, &mut targets, &mut settings).await;
    }
}

/// The verdicts for the targets `wanted`: those of `ports` that stay keep theirs.
fn carried_over(ports: &[PortTarget], judges: Vec<TargetVerdict>, wanted: &[PortTarget]) -> Vec<TargetVerdict> {
    let mut known: Vec<_> = ports.iter().zip(judges).collect();
    let take = |port: &PortTarget| {
        let at = known.iter().position(|(known, _)| *known == port);
        at.map(|at| known.swap_remove(at).1).unwrap_or_default()
    };
    wanted.iter().map(take).collect()
}

/// Waits for the round that follows the one that began at `began`. New targets and a new interval
/// count at once.
async fn next_round(
    began: Instant,
    targets: &mut watch::Receiver<Vec<PortTarget>>,
    settings: &mut watch::Receiver<HealthSettings>,
) {
    loop {
        let due = began + settings.borrow_and_update().interval;
        tokio::select! {
            () = sleep_until(due) => return,
            // Without a sender the settings do not change any further.
            Ok(()) = settings.changed() => {}
            Ok(()) = targets.changed() => return,
        }
    }
}

/// Connects to a target once, within `limit`. An error says why it failed; `None` if this process
/// had no free file descriptor.
pub async fn ask(port: &PortTarget, limit: Duration) -> Option<Result<(), String>> {
    match timeout(limit, port.connect(None)).await {
        Ok(Ok(_)) => Some(Ok(())),
        Ok(Err(error)) if is_out_of_descriptors(&error) => {
            warn!(%error, "cannot check a target: this process has too many files open, raise its limit (ulimit -n)");
            None
        }
        Ok(Err(error)) => Some(Err(explain(&port.target, &error))),
        Err(_) => Some(Err(format!("no answer within {limit:?}"))),
    }
}

/// Directories that `rustbalance.service` hides from the daemon: it sees them empty (`PrivateTmp=`)
/// or not at all (`ProtectHome=`).
const HIDDEN_BY_THE_UNIT: [&str; 5] = ["/tmp", "/var/tmp", "/home", "/root", "/run/user"];

/// Why a target could not be reached. If the sandbox of `rustbalance.service` may hide the path,
/// says so, because the operator, who is outside of it, does see the socket.
fn explain(target: &Target, error: &io::Error) -> String {
    let unseen = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
    match target {
        Target::Unix(path) if unseen && HIDDEN_BY_THE_UNIT.iter().any(|hidden| path.starts_with(hidden)) => format!(
            "{error}; under systemd the daemon does not see this path even if the socket is there, because \
             rustbalance.service has PrivateTmp= and ProtectHome=: put the socket under /run"
        ),
        _ => error.to_string(),
    }
}

/// EMFILE or ENFILE, which have no `ErrorKind`.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn fast() -> HealthSettings {
        HealthSettings { interval: Duration::from_millis(20), timeout: Duration::from_secs(2), failures: 3 }
    }

    fn failed() -> Result<(), String> {
        Err("refused".into())
    }

    #[test]
    fn one_success_makes_a_target_healthy_and_three_failures_in_a_row_unhealthy() {
        let mut judge = TargetVerdict::default();
        assert!(!judge.observe(failed(), 3));
        assert!(judge.observe(Ok(()), 3) && judge.healthy);
        assert!(!judge.observe(failed(), 3) && !judge.observe(failed(), 3));
        assert!(!judge.observe(Ok(()), 3), "two failures are forgotten");
        assert!(!judge.observe(failed(), 3) && !judge.observe(failed(), 3));
        assert!(judge.healthy);
        assert!(judge.observe(failed(), 3) && !judge.healthy);
        assert_eq!(judge.error.as_deref(), Some("refused"));
    }

    #[tokio::test]
    async fn a_node_is_ready_while_all_its_targets_answer() {
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        let ports = vec![
            PortTarget::new(80, Target::Tcp(first.local_addr().unwrap())),
            PortTarget::new(81, Target::Unix(path.clone())),
        ];
        let health = Health::start(watch::channel(ports).1, watch::channel(fast()).1);
        let mut ready = health.ready();
        assert!(!*ready.borrow());
        // The second target is not there yet.
        while !health.ports()[0].healthy {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!*ready.borrow());
        assert!(health.ports()[1].error.is_some());
        let second = tokio::net::UnixListener::bind(&path).unwrap();
        ready.wait_for(|ready| *ready).await.unwrap();
        drop((first, second));
        ready.wait_for(|ready| !*ready).await.unwrap();
        assert!(health.ports().iter().any(|port| !port.healthy && port.error.is_some()));
    }

    #[tokio::test]
    async fn a_socket_that_the_unit_hides_is_distinguished_from_a_missing_one() {
        let asked = |path: &str| {
            let target = PortTarget::new(80, Target::Unix(path.into()));
            async move { ask(&target, Duration::from_secs(2)).await.unwrap().unwrap_err() }
        };
        for hidden in ["/tmp/none/app.sock", "/home/none/app.sock", "/root/none/app.sock", "/run/user/0/none.sock"] {
            let error = asked(hidden).await;
            assert!(error.contains("PrivateTmp=") && error.contains("put the socket under /run"), "{hidden}: {error}");
        }
        let error = asked("/run/none/app.sock").await;
        assert!(error.contains("os error 2") && !error.contains("systemd"), "{error}");
    }

    #[tokio::test]
    async fn changed_targets_are_checked_at_once_and_change_readiness_only_by_their_answer() {
        let listen = || TcpListener::bind("127.0.0.1:0");
        let (first, second) = (listen().await.unwrap(), listen().await.unwrap());
        let port = |port, listener: &TcpListener| PortTarget::new(port, Target::Tcp(listener.local_addr().unwrap()));
        let (change, targets) = watch::channel(vec![port(80, &first)]);
        // No round follows by time alone.
        let rare = HealthSettings { interval: Duration::from_secs(600), ..fast() };
        let health = Health::start(targets, watch::channel(rare).1);
        let mut ready = health.ready();
        ready.wait_for(|ready| *ready).await.unwrap();
        change.send_replace(vec![port(80, &first), port(81, &second)]);
        while health.ports().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!ready.has_changed().unwrap(), "a target that has not been asked yet changes nothing");
        assert!(health.ports().iter().all(|port| port.healthy), "{:?}", health.ports());
        let third = PortTarget::new(82, Target::Unix("/run/none/app.sock".into()));
        change.send_replace(vec![port(81, &second), third]);
        ready.wait_for(|ready| !*ready).await.unwrap();
        change.send_replace(vec![port(81, &second)]);
        ready.wait_for(|ready| *ready).await.unwrap();
        change.send_replace(Vec::new());
        ready.wait_for(|ready| !*ready).await.unwrap();
    }

    #[test]
    fn a_target_that_stays_keeps_its_verdict() {
        let port = |port: u16| PortTarget::new(port, Target::Tcp(([127, 0, 0, 1], port).into()));
        let judge = |failures| TargetVerdict { failures, ..TargetVerdict::default() };
        let carried = carried_over(&[port(1), port(2)], vec![judge(1), judge(2)], &[port(2), port(3), port(1)]);
        assert_eq!(carried.iter().map(|judge| judge.failures).collect::<Vec<_>>(), [2, 0, 1]);
    }

    #[tokio::test]
    async fn health_checks_stop_when_dropped() {
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ports = vec![PortTarget::new(80, Target::Tcp(target.local_addr().unwrap()))];
        let health = Health::start(watch::channel(ports).1, watch::channel(fast()).1);
        let mut ready = health.ready();
        ready.wait_for(|ready| *ready).await.unwrap();
        drop(health);
        assert!(ready.changed().await.is_err());
    }
}
