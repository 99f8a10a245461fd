//! The part that looks at the node every second, and sends the alerts that [`Plan`] decides on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;

use super::control::Daemon;
use super::supervisor::{PartResult, Supervisor};
use crate::alerts::{Alert, AlertSettings, Attempt, Deliveries, Observation, Origin, Plan};
use crate::clock::{Clock, unix_now};
use crate::control::Response;
use crate::display;

/// Longest time between two looks at the node.
const LOOK: Duration = Duration::from_secs(1);

/// Starts to look at the node and to deliver alerts. Runs before Tor is ready: that it is not may
/// be an alert.
pub(super) fn start(daemon: &Arc<Daemon>, deliveries: Deliveries, parts: &mut Supervisor) {
    parts.spawn("delivery of alerts", async {
        deliveries.run().await;
        Ok(())
    });
    parts.spawn("alerts", watch(Arc::clone(daemon)));
}

/// Looks at the node while alerts are configured.
async fn watch(daemon: Arc<Daemon>) -> PartResult {
    let (mut settings, clock) = (daemon.live.alerts(), Clock::start());
    loop {
        // The daemon holds the sending side, so the wait cannot fail.
        let _ = settings.wait_for(AlertSettings::are_on).await.map(|_| ());
        let mut plan = Plan::new(daemon.origin(), clock.now());
        loop {
            let AlertSettings { rules, .. } = match &*settings.borrow() {
                settings if settings.are_on() => settings.clone(),
                _ => break,
            };
            let status = daemon.status();
            let publisher = status.publisher.as_ref().map(|publisher| publisher.node.as_str());
            let seen = Observation { problems: &status.problems, publisher };
            for alert in plan.observe(seen, &rules, clock.now()) {
                debug!(alert = alert.event, id = alert.id, "alert");
                daemon.alerts.send(&alert);
            }
            sleep(LOOK.min(rules.after)).await;
        }
    }
}

impl Daemon {
    fn origin(&self) -> Origin {
        let node = self.store.node_id().to_string();
        Origin { cluster: self.store.cluster().to_string(), node: display::short(&node).to_owned() }
    }

    /// Delivers an alert that tries out the configuration, and reports what happened.
    pub(super) async fn test_alert(&self) -> Response {
        let attempts = self.alerts.try_now(&Alert::test(&self.origin(), unix_now())).await;
        if attempts.is_empty() {
            return Response::refused(
                "no alerts are configured: set command or webhook in [alerts] of rustbalance.toml, then `rustbalance reload`",
            );
        }
        let lines: Vec<_> = attempts.iter().map(line).collect();
        match attempts.iter().all(|attempt| attempt.outcome.is_ok()) {
            true => Response::done(lines.join("\n")),
            false => Response::refused(lines.join("\n")),
        }
    }
}

fn line(attempt: &Attempt) -> String {
    let Attempt { way, took, outcome } = attempt;
    match outcome {
        Ok(()) => format!("{way}: delivered after {:.1} s", took.as_secs_f64()),
        Err(why) => format!("{way}: {why}"),
    }
}
