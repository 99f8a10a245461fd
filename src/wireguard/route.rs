//! The route of links over WireGuard.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::id::NodeId;

use super::{Engine, EngineError, TunnelStream};
use crate::link::{Channel, Route, RouteError, RouteKind};

/// Reaches the peers of an [`Engine`] whose sessions are up.
pub struct WireguardRoute {
    engine: Arc<dyn Engine>,
}

impl WireguardRoute {
    /// The route through the tunnels of `engine`.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine }
    }
}

#[async_trait]
impl Route for WireguardRoute {
    fn kind(&self) -> RouteKind {
        RouteKind::WIREGUARD
    }

    fn reaches(&self, to: NodeId) -> bool {
        self.engine.reaches(to)
    }

    async fn dial(&self, to: NodeId, limit: Duration) -> Result<Channel, RouteError> {
        self.engine.dial(to, limit).await.map(Channel::from).map_err(|error| route_error(to, error))
    }
}

impl From<TunnelStream> for Channel {
    fn from(tunnelled: TunnelStream) -> Self {
        let TunnelStream { peer: _, binding, stream } = tunnelled;
        Self { route: RouteKind::WIREGUARD, binding, stream }
    }
}

fn route_error(peer: NodeId, error: EngineError) -> RouteError {
    let route = RouteKind::WIREGUARD;
    match error {
        EngineError::Timeout { limit, .. } => RouteError::Timeout { peer, route, limit },
        EngineError::Stopped => RouteError::Stopped { route, source: error.into() },
        error => RouteError::Unreachable { peer, route, source: error.into() },
    }
}
