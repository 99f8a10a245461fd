//! The metrics for Prometheus, and the answers to two questions of monitors: is the node alive, and
//! does it serve clients.
//!
//! Enter with [`serve`]: it answers `GET /metrics`, `/health` and `/ready` over HTTP, on a Unix
//! socket in the state directory and, if the operator wants it, on a loopback address. `table`
//! lists every metric with its name, its meaning and where its value is in [`Reading`], the state
//! that `status` shows, too. `exposition` writes them as text. To add a metric, add an entry to
//! `table`, and let the test write it into `docs/METRICS.md`.
//!
//! No label is about a client or a circuit, and none is secret: labels are addresses of the
//! cluster, ports of the configuration, members, and constants of this program.

use async_trait::async_trait;

use crate::control::Status;
use crate::counters::Counters;

pub use server::{Exporter, MetricsListener, serve};

#[cfg(test)]
mod document;
mod exposition;
mod server;
mod table;
#[cfg(test)]
mod tests;

/// The name of the Unix socket in the state directory.
pub const SOCKET_NAME: &str = "metrics.sock";

/// Where the values come from: the running node.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// The state of the node now.
    fn read(&self) -> Reading;
    /// Returns once the task that decides for the node has answered; never if it is stuck.
    async fn answers(&self);
}

/// The state of a node at one moment.
#[derive(Debug, Clone)]
pub struct Reading {
    /// What `status` shows.
    pub status: Status,
    /// The node's counters, brought up to date by the making of `status`.
    pub counters: Counters,
}
