//! Delivers alerts: a queue and a task for each way out, so that a way that hangs does not hold up
//! the other.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::event::Alert;
use super::{AlertSettings, command, webhook};
use crate::backoff::Backoff;
use crate::counters::{AlertOutcome, Counters};
use crate::redact;
use crate::tor::Engine;

/// Alerts that may wait on each way: those of two hours, unless configured otherwise.
const QUEUE: usize = 64;
/// Attempts to deliver an alert. With the pauses of [`RETRY`] they span ten minutes.
const ATTEMPTS: u32 = 8;
/// Pauses between two attempts.
const RETRY: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(600));

/// What delivering needs.
pub struct SenderInputs {
    /// Reaches onion services.
    pub engine: Arc<dyn Engine>,
    /// The state directory.
    pub dir: PathBuf,
    /// The settings, which may change.
    pub settings: watch::Receiver<AlertSettings>,
    /// Counts what became of the alerts.
    pub counters: Counters,
}

/// A way out of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Command,
    Webhook,
}

impl Way {
    const ALL: [Self; 2] = [Self::Command, Self::Webhook];

    fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Webhook => "webhook",
        }
    }

    fn is_on(self, settings: &AlertSettings) -> bool {
        match self {
            Self::Command => settings.command.is_some(),
            Self::Webhook => settings.webhook.is_some(),
        }
    }
}

/// The result of one attempt to deliver an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// `command` or `webhook`.
    pub way: &'static str,
    /// How long it took.
    pub took: Duration,
    /// Why it failed, as text for the operator.
    pub outcome: Result<(), String>,
}

/// Takes alerts for delivery.
pub struct Sender {
    courier: Arc<Courier>,
    queues: [mpsc::Sender<Alert>; 2],
}

/// Delivers what the [`Sender`] has taken.
pub struct Deliveries {
    courier: Arc<Courier>,
    queues: [mpsc::Receiver<Alert>; 2],
}

struct Courier {
    inputs: SenderInputs,
    retry: Backoff,
}

impl Sender {
    /// Alerts are delivered while [`Deliveries::run`] is polled.
    pub fn new(inputs: SenderInputs) -> (Self, Deliveries) {
        Self::with_retry(inputs, RETRY)
    }

    /// Like [`Sender::new`], with other pauses between two attempts.
    pub(super) fn with_retry(inputs: SenderInputs, retry: Backoff) -> (Self, Deliveries) {
        let courier = Arc::new(Courier { inputs, retry });
        let [(command, commands), (webhook, webhooks)] = Way::ALL.map(|_| mpsc::channel(QUEUE));
        let sender = Self { courier: Arc::clone(&courier), queues: [command, webhook] };
        (sender, Deliveries { courier, queues: [commands, webhooks] })
    }

    /// Takes an alert for delivery on every way that is configured. Never waits: if too many are
    /// waiting, it is dropped there.
    pub fn send(&self, alert: &Alert) {
        let settings = self.courier.inputs.settings.borrow().clone();
        for (way, queue) in Way::ALL.into_iter().zip(&self.queues) {
            if way.is_on(&settings) && queue.try_send(alert.clone()).is_err() {
                self.courier.inputs.counters.alerts().count(alert.state, AlertOutcome::Dropped);
                warn!(
                    name: "alert_dropped",
                    alert = alert.event, way = way.name(),
                    "an alert is dropped, because {QUEUE} wait already"
                );
            }
        }
    }

    /// Delivers an alert at once, on every way that is configured, without a second attempt.
    pub async fn try_now(&self, alert: &Alert) -> Vec<Attempt> {
        let attempts = Way::ALL.map(|way| async move {
            let began = Instant::now();
            let outcome = self.courier.attempt(way, alert).await?;
            self.courier.count(alert, &outcome);
            Some(Attempt { way: way.name(), took: began.elapsed(), outcome })
        });
        futures::future::join_all(attempts).await.into_iter().flatten().collect()
    }
}

impl Deliveries {
    /// Delivers alerts, the oldest first on each way. Never returns while the [`Sender`] exists. If
    /// this is dropped, a command that runs is killed.
    pub async fn run(self) {
        let Self { courier, queues: [mut commands, mut webhooks] } = self;
        let commands = courier.deliver_all(Way::Command, &mut commands);
        tokio::join!(commands, courier.deliver_all(Way::Webhook, &mut webhooks));
    }
}

impl Courier {
    async fn deliver_all(&self, way: Way, queue: &mut mpsc::Receiver<Alert>) {
        while let Some(alert) = queue.recv().await {
            self.deliver(way, &alert).await;
        }
    }

    /// Tries until the alert is delivered, or there have been enough attempts.
    async fn deliver(&self, way: Way, alert: &Alert) {
        let (alert_event, state, subject): (_, &str, _) = (alert.event, alert.state.into(), &alert.subject);
        for attempt in 1..=ATTEMPTS {
            let Some(outcome) = self.attempt(way, alert).await else { return };
            // The error of a webhook may have its onion address.
            let why = outcome.as_ref().err().map(|why| redact::onion_addresses(why)).unwrap_or_default();
            let way = way.name();
            if outcome.is_ok() {
                self.count(alert, &outcome);
                info!(name: "alert_delivered", alert = alert_event, state, subject, way, "alert delivered");
                return;
            }
            if attempt == ATTEMPTS {
                self.count(alert, &outcome);
                error!(
                    name: "alert_given_up",
                    alert = alert_event, state, subject, way, error = why,
                    "alert not delivered after {ATTEMPTS} attempts: given up"
                );
                return;
            }
            let pause = self.retry.pause(attempt - 1);
            warn!(
                name: "alert_retried",
                alert = alert_event, state, subject, way, error = why, ?pause,
                "alert not delivered, will try again"
            );
            sleep(pause).await;
        }
    }

    /// One attempt; `None` if this way is not configured (any more).
    async fn attempt(&self, way: Way, alert: &Alert) -> Option<Result<(), String>> {
        let AlertSettings { command, webhook, webhook_headers, timeout, .. } = self.inputs.settings.borrow().clone();
        let json = alert.to_json();
        Some(match way {
            Way::Command => command::run(&command?, &json, timeout).await.map_err(|error| error.to_string()),
            Way::Webhook => {
                let headers = webhook_headers.map(|file| self.inputs.dir.join(file));
                let posted = webhook::post(&*self.inputs.engine, &webhook?, headers, json, timeout).await;
                posted.map_err(|error| error.to_string())
            }
        })
    }

    fn count(&self, alert: &Alert, outcome: &Result<(), String>) {
        let outcome = if outcome.is_ok() { AlertOutcome::Delivered } else { AlertOutcome::Failed };
        self.inputs.counters.alerts().count(alert.state, outcome);
    }
}
