//! How a node is, in one term for people: its phase and its fitness for all services.

use serde::{Deserialize, Serialize};

use super::MemberView;
use crate::record::{Fitness, Phase};

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It has its certificate and has not reached the mesh.
    Joining,
    /// It is in the mesh; for some service it has no introduction point yet, or its target has not answered yet.
    Initializing,
    /// It serves clients of every service that it has.
    Healthy,
    /// It has served clients; the target of some service fails its health check now.
    Unhealthy,
    /// It leaves the descriptors and still serves the clients that come.
    Draining,
    /// It has said goodbye.
    Gone,
}

impl Condition {
    /// The condition of a node in this phase, with this fitness for each of its services: the worst one counts.
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
    /// How it is, as it says.
    pub fn condition(&self) -> Condition {
        Condition::of(self.phase(), self.all_fitness())
    }
}
