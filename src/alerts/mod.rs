//! Alerts: what is wrong with this node and its cluster leaves the node by itself, through a
//! command of the operator or a webhook.
//!
//! `plan` decides what is sent and when; `event` is what is sent. [`Sender`] has a queue and a task
//! for each of the two ways out, and tries again what has failed: `command` runs a program with the
//! alert as JSON on its standard input, `webhook` posts it to an onion service through Tor or to a
//! loopback address. Nothing goes to any other host: [`Webhook`] cannot name one.
//!
//! A new problem needs nothing here: it is an alert as soon as `status` has it. How long it must
//! last is in `plan`, and whether all nodes mean the same by it in `event`.

use std::path::PathBuf;
use std::time::Duration;

pub use command::{Argv, ArgvError, CommandError};
pub use event::{Alert, AlertEvent, Origin, UnknownEvent};
pub use plan::{Observation, Plan, Rules};
pub use sender::{Attempt, Deliveries, Sender, SenderInputs};
pub use webhook::{Webhook, WebhookError, WebhookRefused};

mod command;
mod event;
mod headers;
mod plan;
mod sender;
#[cfg(test)]
mod tests;
mod webhook;

/// `[alerts]`: which alerts are sent, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertSettings {
    /// The program to run for each alert, with its arguments.
    pub command: Option<Argv>,
    /// Where to post each alert.
    pub webhook: Option<Webhook>,
    /// A file with headers for the webhook, such as a secret; relative to the state directory.
    pub webhook_headers: Option<PathBuf>,
    /// Time limit of one run of the command, and of one request to the webhook.
    pub timeout: Duration,
    /// When alerts are sent.
    pub rules: Rules,
}

impl Default for AlertSettings {
    fn default() -> Self {
        Self {
            command: None,
            webhook: None,
            webhook_headers: None,
            timeout: Duration::from_secs(30),
            rules: Rules {
                after: Duration::from_secs(30),
                repeat: Some(Duration::from_secs(6 * 3600)),
                per_hour: 30,
                events: None,
            },
        }
    }
}

impl AlertSettings {
    /// True if alerts go anywhere.
    pub fn are_on(&self) -> bool {
        self.command.is_some() || self.webhook.is_some()
    }
}
