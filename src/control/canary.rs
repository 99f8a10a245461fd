//! What the canary found, as `rustbalance canary` and `status` report it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::display::{plural, short};

/// The canary of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CanaryStatus {
    /// Whether it runs by itself.
    pub enabled: bool,
    /// Runs since the daemon's start.
    pub runs: u64,
    /// Of these, those that found a fault.
    pub failures: u64,
    /// When a run last found no fault, in seconds since the Unix epoch; `None` if none has.
    pub last_success: Option<u64>,
    /// Repairs since the daemon's start, by kind.
    pub repairs: BTreeMap<String, u64>,
    /// The last repair.
    pub last_repair: Option<CanaryRepairStatus>,
    /// The last run at each service.
    pub services: Vec<CanaryRunStatus>,
}

/// A repair that the canary asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryRepairStatus {
    /// When, in seconds since the Unix epoch.
    pub at: u64,
    /// The kind: "republish", "replace_point", "rebuild_circuits", "renew_tor" or "exit".
    pub kind: String,
    /// The reason.
    pub why: String,
}

/// What one run found at one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryRunStatus {
    /// The address.
    pub service: String,
    /// When it ended, in seconds since the Unix epoch.
    pub at: u64,
    /// Whether it found no fault.
    pub well: bool,
    /// Why the run could not be made; `None` if it could.
    pub problem: Option<String>,
    /// The directories that were asked.
    pub directories: Vec<CanaryDirectoryStatus>,
    /// The introduction points that were to be visited.
    pub points: Vec<CanaryPointStatus>,
}

impl CanaryRunStatus {
    /// The number of directories and points at fault.
    pub fn faults(&self) -> usize {
        let directories = self.directories.iter().filter(|it| it.state != CanaryDirectoryState::Current);
        directories.count() + self.missed().count()
    }

    /// The points that were not reached.
    fn missed(&self) -> impl Iterator<Item = &CanaryPointStatus> {
        self.points.iter().filter(|it| it.state != CanaryPointState::Reached)
    }

    /// What was found, for a sentence about it.
    pub(super) fn trouble(&self) -> String {
        if let Some(problem) = &self.problem {
            return problem.clone();
        }
        let nodes: BTreeSet<_> = self.missed().map(|it| it.node.as_deref().map_or("an unknown node", short)).collect();
        match nodes.is_empty() {
            true => plural(self.faults(), "directory fault"),
            false => format!("no way through introduction points of {}", Vec::from_iter(nodes).join(", ")),
        }
    }
}

/// What a directory gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryDirectoryStatus {
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// The number of the time period.
    pub period: u64,
    /// The verdict.
    pub state: CanaryDirectoryState,
    /// The revision of its descriptor; `None` if it gave none that can be read.
    pub revision: Option<u64>,
    /// More about the fault; `None` if there is none.
    pub why: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

/// The verdict on a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "lowercase")]
pub enum CanaryDirectoryState {
    /// It holds a descriptor that is not older than announced.
    Current,
    /// It holds none.
    Missing,
    /// It holds one that is older than announced.
    Old,
    /// Its descriptor names other points than it should.
    Differs,
    /// Its descriptor cannot be read.
    Unreadable,
    /// It did not answer.
    #[strum(serialize = "no answer")]
    NoAnswer,
}

/// What came of an introduction point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryPointStatus {
    /// The address of the node that serves there; `None` if no member offers this point.
    pub node: Option<String>,
    /// Whether it is the node that ran the canary.
    pub me: bool,
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// `KP_hs_ipt_sid`, in hexadecimal.
    pub session_key: String,
    /// How far the connection came.
    pub state: CanaryPointState,
    /// Why it came no further; `None` if it was reached.
    pub why: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

/// How far a connection through an introduction point came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "snake_case")]
pub enum CanaryPointState {
    /// A port of the service was reached.
    #[strum(serialize = "reached")]
    Reached,
    /// Not into the network: says nothing about the point.
    #[strum(serialize = "no way into the network")]
    Network,
    /// Not to the introduction point, or the relay does not know it.
    #[strum(serialize = "not introduced")]
    Introduction,
    /// The relay passed the introduction on, and the node did not come to the client.
    #[strum(serialize = "the node did not come")]
    Rendezvous,
    /// The node came, and refused the port.
    #[strum(serialize = "the port is refused")]
    Port,
    /// There was no time left.
    #[strum(serialize = "not tried")]
    NotTried,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_names_the_nodes_once_or_counts_directories() {
        let point = |node: &str, state| CanaryPointStatus {
            node: Some(node.repeat(56)),
            me: false,
            relay: "$AB".into(),
            session_key: "00".into(),
            state,
            why: None,
            seconds: 1.0,
        };
        let directory = CanaryDirectoryStatus {
            relay: "$AB".into(),
            period: 1,
            state: CanaryDirectoryState::Missing,
            revision: None,
            why: None,
            seconds: 1.0,
        };
        let mut run = CanaryRunStatus {
            service: "c".repeat(56),
            at: 0,
            well: false,
            problem: None,
            directories: vec![directory],
            points: vec![point("a", CanaryPointState::Reached)],
        };
        assert_eq!((run.faults(), run.trouble().as_str()), (1, "1 directory fault"));
        for node in ["b", "b", "d"] {
            run.points.push(point(node, CanaryPointState::Rendezvous));
        }
        let trouble = "no way through introduction points of bbbbbbbb, dddddddd";
        assert_eq!((run.faults(), run.trouble().as_str()), (4, trouble));
        run.problem = Some("Tor is not ready".into());
        assert_eq!(run.trouble(), "Tor is not ready");
    }
}
