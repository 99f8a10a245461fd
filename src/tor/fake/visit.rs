//! Visits at a chosen introduction point, and the faults that only they find.

use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{IntroPoint, PeriodId};
use tokio::time::timeout;

use super::stream::StreamRefused;
use super::{FakeEngine, FakeNet, RENDEZVOUS_LIMIT};
use crate::tor::VisitStage::{self, Introduction, Network, Port, Rendezvous};
use crate::tor::{Directory, TorError, Visit, VisitError};

impl FakeNet {
    /// Has a directory forget the descriptor that it holds.
    pub fn lose_descriptor(&self, at: &Directory, service: ServiceId, period: PeriodId) {
        self.world().lose_descriptor(at, service, period);
    }

    /// Has a relay forget an introduction point. Its node does not notice.
    pub fn deafen(&self, point: &IntroPoint) {
        self.world().deafen(point);
    }
}

impl FakeEngine {
    /// See [`crate::tor::Engine::visit`].
    pub(super) async fn visit_point(&self, visit: Visit, limit: Duration) -> Result<(), VisitError> {
        let mut stage = Network;
        let visited = timeout(limit, self.visit_stages(&visit, &mut stage)).await;
        let late = || TorError::Timeout { what: "a visit".into(), limit };
        visited.unwrap_or_else(|_| Err(late())).map_err(|error| stage.failed(error))
    }

    async fn visit_stages(&self, visit: &Visit, stage: &mut VisitStage) -> Result<(), TorError> {
        self.alive()?;
        self.path(self.node.id).pass().await;
        *stage = Introduction;
        let by = || format!("introduction point {}", visit.point.relay);
        let declined = |why: &str| TorError::Declined { by: by(), why: why.into() };
        let waiting = self.net.world().point(&visit.point);
        let point = waiting.ok_or_else(|| declined("INTRODUCE_ACK NOT_RECOGNIZED"))?;
        *stage = Rendezvous;
        let met = timeout(RENDEZVOUS_LIMIT, self.rendezvous(&point, &visit.point)).await.ok().flatten();
        let late = || TorError::Timeout { what: "waiting for the service".into(), limit: RENDEZVOUS_LIMIT };
        let circuit = Arc::new(met.ok_or_else(late)?);
        *stage = Port;
        let Some(port) = visit.port else { return Ok(()) };
        circuit.open_stream(port).await.map(drop).map_err(|error| TorError::Declined {
            by: format!("port {port}"),
            why: match error {
                StreamRefused::Rejected => "it is refused".into(),
                StreamRefused::Gone => "the circuit was closed".into(),
            },
        })
    }
}
