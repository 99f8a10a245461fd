//! A visit to a service at an introduction point that the visitor chooses.

use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{IntroPoint, PeriodId};

use super::TorError;

/// What to visit.
#[derive(Debug, Clone)]
pub struct Visit {
    /// The service.
    pub service: ServiceId,
    /// The period whose descriptor names the point.
    pub period: PeriodId,
    /// The introduction point, as that descriptor names it.
    pub point: IntroPoint,
    /// The virtual port to connect to; `None` ends the visit once the service has come to the
    /// rendezvous point.
    pub port: Option<u16>,
}

/// How far a visit has come. A step proves that all steps before it work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VisitStage {
    /// This node's own way into the network, up to a rendezvous point.
    Network,
    /// The introduction: a circuit to the point's relay, and the relay's acknowledgement.
    Introduction,
    /// The service's way to the rendezvous point.
    Rendezvous,
    /// The stream to the port.
    Port,
}

/// Why a visit failed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct VisitError {
    /// The step that failed.
    pub stage: VisitStage,
    /// The cause.
    #[source]
    pub why: TorError,
}

impl VisitStage {
    /// The error of this step.
    pub(super) fn failed(self, why: TorError) -> VisitError {
        VisitError { stage: self, why }
    }
}
