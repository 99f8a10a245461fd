//! Sums up a node's phase and its fitness for each service in one term for the operator.

use serde::{Deserialize, Serialize};

use super::MemberView;
use crate::record::{Fitness, Phase};

/// The state of a node in one term, as `status` shows it to the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It has its certificate but has not reached the mesh yet.
    Joining,
    /// It is in the mesh; for some service it has no introduction point yet, or its target has not
    /// answered yet.
    Initializing,
    /// It can serve clients of every service that it has.
    Healthy,
    /// It has served clients, but the target of some service fails its health check now.
    Unhealthy,
    /// It is leaving the descriptors and still serves the clients that come.
    Draining,
    /// It has announced that it stops.
    Gone,
}

impl Condition {
    /// The condition of a node in this phase, with this fitness for each of its services: the worst
    /// one counts.
    pub fn of(phase: Phase, services: impl IntoIterator<Item = Fitness>) -> Self {
        match phase {
            Phase::Joining => Self::Joining,
            Phase::Draining => Self::Draining,
            Phase::Gone => Self::Gone,
            Phase::Active => match services.into_iter().max() {
                Some(Fitness::Healthy) => Self::Healthy,
                Some(Fitness::Degraded) => Self::Unhealthy,
                Some(Fitness::Draining) => Self::Draining,
                Some(Fitness::Down) | None => Self::Initializing,
            },
        }
    }
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Joining => "joining",
            Self::Initializing => "initializing",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Gone => "gone",
        })
    }
}

impl MemberView {
    /// The node's condition, as its own records state it.
    pub fn condition(&self) -> Condition {
        Condition::of(self.phase(), self.all_fitness())
    }
}
