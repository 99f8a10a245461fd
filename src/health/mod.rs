//! Checks the targets, and reports whether this node is fit for clients.
//!
//! Enter with [`Health::start`]. `plan` decides when each target is checked, and after which
//! outcomes it counts as healthy; `probe` makes one check: a connection, or an HTTP request, over
//! TLS if wanted. A node is ready while **all** its targets are healthy, and not before each has
//! answered; without targets it is not ready. A failure because this process has no free file
//! descriptor says nothing about the target and changes nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::proxy::{Connector, ONION_LIMIT, PortTarget, Target};

pub use probe::ask;

mod plan;
mod probe;
mod task;
mod tls;

/// Reports of failed streams that may wait.
const FAILURES: usize = 16;
/// The least time between two checks of an onion service whose port sets none, while it does not
/// answer and while it does: each attempt to reach one that is down builds circuits.
const ONION_INTERVALS: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(60));

/// How often targets are checked, and how many failures are tolerated, where the port of a target
/// does not set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSettings {
    /// Time between the beginnings of two checks of a target that does not answer.
    pub interval: Duration,
    /// The same while it answers; `None`: twice `interval`.
    pub healthy_interval: Option<Duration>,
    /// How long one check may take.
    pub timeout: Duration,
    /// Successes in a row that make an unhealthy target healthy. At least 1.
    pub successes: u32,
    /// Failures in a row that make a healthy target unhealthy. At least 1.
    pub failures: u32,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            healthy_interval: None,
            timeout: Duration::from_secs(2),
            successes: 1,
            failures: 3,
        }
    }
}

/// The settings of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CheckTiming {
    interval: Duration,
    healthy_interval: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

impl HealthSettings {
    /// The settings for the target of this port.
    fn of(&self, port: &PortTarget) -> CheckTiming {
        let check = &port.check;
        let is_onion = matches!(port.target, Target::Onion(..));
        let (least, least_healthy) = if is_onion { ONION_INTERVALS } else { Default::default() };
        let interval = check.interval.unwrap_or(self.interval.max(least));
        let healthy = check.healthy_interval.or(self.healthy_interval.map(|healthy| healthy.max(least_healthy)));
        CheckTiming {
            interval,
            healthy_interval: healthy.unwrap_or(interval * 2),
            timeout: self.timeout_of(port),
            successes: check.successes.unwrap_or(self.successes),
            failures: check.failures.unwrap_or(self.failures),
        }
    }

    /// How long one check of this target may take.
    pub fn timeout_of(&self, port: &PortTarget) -> Duration {
        let least = if matches!(port.target, Target::Onion(..)) { ONION_LIMIT } else { Duration::ZERO };
        port.check.timeout.unwrap_or(self.timeout.max(least))
    }
}

/// The health of the target of one virtual port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortHealth {
    /// The virtual port.
    pub port: u16,
    /// Its target.
    pub target: Target,
    /// What is asked of the target, as in `HTTP GET /health`.
    pub check: String,
    /// Whether streams are expected to be served.
    pub healthy: bool,
    /// The last failure, `None` after a success.
    pub error: Option<String>,
}

/// The running checks. Dropping it stops them.
pub struct Health {
    ready: watch::Receiver<bool>,
    ports: watch::Receiver<Arc<[PortHealth]>>,
    failures: mpsc::Sender<u16>,
    _stop: DropGuard,
}

impl Health {
    /// Starts the checks; each uses the latest targets and `settings`, and connects with
    /// `connector`. Must be called within a tokio runtime.
    pub fn start(
        targets: watch::Receiver<Vec<PortTarget>>,
        settings: watch::Receiver<HealthSettings>,
        connector: Connector,
    ) -> Self {
        let (ready, ready_receiver) = watch::channel(false);
        let (statuses, ports) = watch::channel(Arc::default());
        let (failures, failed_streams) = mpsc::channel(FAILURES);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let checks = task::Checks::new(targets, settings, failed_streams, connector, ready, statuses);
        tokio::spawn(async move { stopped.run_until_cancelled(checks.run()).await });
        Self { ready: ready_receiver, ports, failures, _stop: stop.drop_guard() }
    }

    /// True while every target is healthy.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// The health of each port, in the order of the configuration.
    pub fn ports(&self) -> Arc<[PortHealth]> {
        self.ports.borrow().clone()
    }

    /// Takes the port of each client's stream that could not be connected to its target.
    pub fn failed_streams(&self) -> mpsc::Sender<u16> {
        self.failures.clone()
    }
}

#[cfg(test)]
mod tests;
