//! The shell of `plan`: makes its checks, draws its random numbers, and logs changed verdicts.

use std::sync::Arc;

use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::plan::{Action, Change, CheckId, Event, HealthPlan, Outcome};
use super::{HealthSettings, PortHealth, ask};
use crate::proxy::{Connector, PortTarget};
use crate::sync::publish;

/// The running checks of one service.
pub(super) struct Checks {
    targets: watch::Receiver<Vec<PortTarget>>,
    settings: watch::Receiver<HealthSettings>,
    failed_streams: mpsc::Receiver<u16>,
    connector: Connector,
    ready: watch::Sender<bool>,
    statuses: watch::Sender<Arc<[PortHealth]>>,
    origin: Instant,
    plan: HealthPlan,
    running: JoinSet<(CheckId, Outcome)>,
}

impl Checks {
    /// Checks that report to `ready` and `statuses`. The first statuses are there at once.
    pub(super) fn new(
        targets: watch::Receiver<Vec<PortTarget>>,
        settings: watch::Receiver<HealthSettings>,
        failed_streams: mpsc::Receiver<u16>,
        connector: Connector,
        ready: watch::Sender<bool>,
        statuses: watch::Sender<Arc<[PortHealth]>>,
    ) -> Self {
        let (plan, running, origin) = (HealthPlan::default(), JoinSet::new(), Instant::now());
        let mut checks = Self { targets, settings, failed_streams, connector, ready, statuses, origin, plan, running };
        let first = checks.configured();
        checks.apply(first);
        checks
    }

    fn configured(&mut self) -> Event {
        Event::Configured(self.targets.borrow_and_update().clone(), self.settings.borrow_and_update().clone())
    }

    /// Runs without end.
    pub(super) async fn run(mut self) {
        loop {
            let due = self.plan.next_timeout().map(|due| self.origin + due);
            let event = tokio::select! {
                () = async { sleep_until(due.unwrap_or(self.origin)).await }, if due.is_some() => Event::Tick,
                // Without a sender, targets and settings do not change any further.
                Ok(()) = self.targets.changed() => self.configured(),
                Ok(()) = self.settings.changed() => self.configured(),
                Some(port) = self.failed_streams.recv() => Event::StreamFailed(port),
                Some(ended) = self.running.join_next() => match ended {
                    Ok((id, outcome)) => Event::Ended { id, outcome, random: rand::rng().random() },
                    Err(error) => return error!(
                        name: "target_checks_failed",
                        %error,
                        "a check of a target has failed, and no more are made"
                    ),
                },
            };
            self.apply(event);
        }
    }

    fn apply(&mut self, event: Event) {
        for action in self.plan.handle(event, self.origin.elapsed()) {
            match action {
                Action::Check { id, port, limit } => {
                    let connector = self.connector.clone();
                    self.running.spawn(async move {
                        let outcome = match ask(&port, limit, &connector).await {
                            Some(Ok(())) => Outcome::Passed,
                            Some(Err(why)) => Outcome::Failed(why),
                            None => Outcome::NotAsked,
                        };
                        (id, outcome)
                    });
                }
                Action::Log(port, change) => log(&port, change),
            }
        }
        self.statuses.send_replace(self.plan.ports().into());
        publish(&self.ready, self.plan.ready());
    }
}

fn log(PortHealth { port, target, check, error, .. }: &PortHealth, change: Change) {
    match change {
        Change::Up => info!(name: "target_up", port, %target, check, "the target answers"),
        Change::Down => warn!(name: "target_down", port, %target, check, error, "the target is down"),
        Change::NotYet => warn!(
            name: "target_not_up_yet",
            port, %target, check, error,
            "the target does not answer yet"
        ),
    }
}
