//! When each target is checked, and whether it counts as healthy.
//!
//! Enter with [`HealthPlan::handle`]; [`HealthPlan::next_timeout`] says when to call it again.
//!
//! 1. A target that is new, or whose check was changed, is checked at once. One that stays keeps
//!    its verdict.
//! 2. `successes` in a row make a target healthy, `failures` in a row make it unhealthy.
//! 3. The next check follows after `healthy_interval` if the target is healthy and the last check
//!    succeeded; after a quarter of `interval` if the last check contradicts the verdict, so that
//!    the verdict is soon settled; else after `interval`. Each pause is changed at random by up to
//!    a tenth, so that the nodes of a cluster do not ask a common target at the same moment.
//! 4. A burst of clients' streams that could not be connected ([`BURST`] within [`BURST_WINDOW`])
//!    brings the next check of a healthy target forward, to now.
//! 5. The node is ready while all targets are healthy. While a target has not been checked yet,
//!    readiness stays as it was, unless another target is unhealthy.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{CheckTiming, HealthSettings, PortHealth};
use crate::proxy::PortTarget;

/// Streams of clients that could not be connected to a target, and the time within which, that
/// bring its next check forward. A single one may be bad luck.
const BURST: u32 = 3;
const BURST_WINDOW: Duration = Duration::from_secs(10);
/// Shortest time between the beginnings of two checks of a target if clients' streams fail: clients
/// choose when they do.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// A pause is up to this part longer or shorter than configured.
const JITTER: f64 = 0.1;

/// Identifies one check of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CheckId(u64);

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The target answers as it should.
    Passed,
    /// It does not; the text says what was found.
    Failed(String),
    /// The target could not be asked, through no fault of its own.
    NotAsked,
}

/// An event that the plan handles.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// Time passed.
    Tick,
    /// These targets are to be checked from now on, with these settings.
    Configured(Vec<PortTarget>, HealthSettings),
    /// A check has ended. `random` is drawn evenly from 0 to 1.
    Ended { id: CheckId, outcome: Outcome, random: f64 },
    /// A client's stream to the target of this port could not be connected.
    StreamFailed(u16),
}

/// An action that the task carries out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Check this target within `limit`, and answer with [`Event::Ended`].
    Check { id: CheckId, port: Box<PortTarget>, limit: Duration },
    /// Log that the verdict on this target has changed, or that it does not answer yet.
    Log(PortHealth, Change),
}

/// What has changed about a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is healthy now.
    Up,
    /// It is not healthy any more.
    Down,
    /// It has failed its first check.
    NotYet,
}

/// A target with its verdict.
#[derive(Debug)]
struct Watched {
    port: PortTarget,
    healthy: bool,
    /// Outcomes in a row that contradict `healthy`.
    against: u32,
    error: Option<String>,
    /// True once a check has ended with a verdict.
    asked: bool,
    /// The check that runs.
    running: Option<CheckId>,
    /// When the last check began.
    began: Option<Duration>,
    /// When the next check begins, unless one runs.
    due: Duration,
    /// Clients' streams that failed, and since when they are counted.
    failed_streams: (u32, Duration),
}

impl Watched {
    fn new(port: PortTarget, now: Duration) -> Self {
        Self {
            port,
            healthy: false,
            against: 0,
            error: None,
            asked: false,
            running: None,
            began: None,
            due: now,
            failed_streams: (0, now),
        }
    }

    fn health(&self) -> PortHealth {
        PortHealth {
            port: self.port.port,
            target: self.port.target.clone(),
            check: self.port.check.to_string(),
            healthy: self.healthy,
            error: self.error.clone(),
        }
    }

    /// Applies an outcome; returns what has changed.
    fn observe(&mut self, outcome: Result<(), String>, timing: &CheckTiming) -> Option<Change> {
        let (passed, first_failure) = (outcome.is_ok(), !self.asked && outcome.is_err());
        self.error = outcome.err();
        self.asked = true;
        if passed == self.healthy {
            self.against = 0;
            return (!passed && first_failure).then_some(Change::NotYet);
        }
        self.against = self.against.saturating_add(1);
        let needed = if passed { timing.successes } else { timing.failures };
        if self.against < needed.max(1) {
            return None;
        }
        self.against = 0;
        self.healthy = passed;
        Some(if passed { Change::Up } else { Change::Down })
    }

    /// The pause before the next check, counted from the beginning of the last one.
    fn pause(&self, timing: &CheckTiming, random: f64) -> Duration {
        let pause = match (self.against, self.healthy) {
            (1.., _) => timing.interval / 4,
            (0, true) => timing.healthy_interval,
            (0, false) => timing.interval,
        };
        pause.mul_f64(1.0 - JITTER + 2.0 * JITTER * random.clamp(0.0, 1.0))
    }
}

/// The checks of one service's targets. It has no clock, no randomness and no sockets.
#[derive(Debug, Default)]
pub(super) struct HealthPlan {
    settings: HealthSettings,
    targets: Vec<Watched>,
    checks: u64,
    ready: bool,
}

impl HealthPlan {
    /// Applies an event at `now`, the time since any fixed origin; returns what to do.
    pub(super) fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::Configured(targets, settings) => self.configure(targets, settings, now),
            Event::Ended { id, outcome, random } => actions.extend(self.ended(id, outcome, random)),
            Event::StreamFailed(port) => self.stream_failed(port, now),
        }
        self.begin_due(now, &mut actions);
        self.ready = self.readiness();
        actions
    }

    /// When the next check is due; `None` if none is.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        self.targets.iter().filter(|target| target.running.is_none()).map(|target| target.due).min()
    }

    /// Whether this node is fit for clients.
    pub(super) fn ready(&self) -> bool {
        self.ready
    }

    /// The health of each port, in the order of the configuration.
    pub(super) fn ports(&self) -> Vec<PortHealth> {
        self.targets.iter().map(Watched::health).collect()
    }

    fn configure(&mut self, targets: Vec<PortTarget>, settings: HealthSettings, now: Duration) {
        self.settings = settings;
        let mut known: BTreeMap<u16, Watched> =
            std::mem::take(&mut self.targets).into_iter().map(|target| (target.port.port, target)).collect();
        let settings = &self.settings;
        let watched = |port: PortTarget| match known.remove(&port.port) {
            Some(before) if before.port == port => {
                // A shorter interval counts at once.
                let timing = settings.of(&port);
                let longest = timing.interval.max(timing.healthy_interval).mul_f64(1.0 + JITTER);
                let latest = before.began.map_or(now, |began| began + longest);
                Watched { due: before.due.min(latest), ..before }
            }
            // Another check of the same target: the verdict stays until the new check says
            // otherwise. The check that runs is no longer waited for.
            Some(before) if before.port.target == port.target => Watched { port, running: None, due: now, ..before },
            _ => Watched::new(port, now),
        };
        self.targets = targets.into_iter().map(watched).collect();
    }

    fn ended(&mut self, id: CheckId, outcome: Outcome, random: f64) -> Option<Action> {
        let target = self.targets.iter_mut().find(|target| target.running == Some(id))?;
        let timing = self.settings.of(&target.port);
        target.running = None;
        let change = match outcome {
            Outcome::Passed => target.observe(Ok(()), &timing),
            Outcome::Failed(why) => target.observe(Err(why), &timing),
            Outcome::NotAsked => None,
        };
        target.due = target.began.unwrap_or_default() + target.pause(&timing, random);
        change.map(|change| Action::Log(target.health(), change))
    }

    fn stream_failed(&mut self, port: u16, now: Duration) {
        let Some(target) = self.targets.iter_mut().find(|target| target.port.port == port && target.healthy) else {
            return;
        };
        let (count, since) = target.failed_streams;
        target.failed_streams = if now > since + BURST_WINDOW { (1, now) } else { (count + 1, since) };
        if target.failed_streams.0 >= BURST {
            target.failed_streams = (0, now);
            let earliest = target.began.map_or(now, |began| began + LEAST_PAUSE);
            target.due = target.due.min(now.max(earliest));
        }
    }

    fn begin_due(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for target in self.targets.iter_mut().filter(|target| target.running.is_none() && target.due <= now) {
            self.checks += 1;
            let id = CheckId(self.checks);
            (target.running, target.began) = (Some(id), Some(now));
            let limit = self.settings.of(&target.port).timeout;
            actions.push(Action::Check { id, port: Box::new(target.port.clone()), limit });
        }
    }

    fn readiness(&self) -> bool {
        if self.targets.is_empty() || self.targets.iter().any(|target| target.asked && !target.healthy) {
            return false;
        }
        self.targets.iter().all(|target| target.asked) || self.ready
    }
}

#[cfg(test)]
mod tests;
