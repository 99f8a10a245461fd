//! The route over Tor: to a peer's own onion service, whose address is derived from the peer's id.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::id::NodeId;

use super::{Channel, LINK_PORT, Route, RouteError, RouteKind};
use crate::tor::{Engine, TorError};

/// Reaches members through an [`Engine`].
pub struct TorRoute {
    engine: Arc<dyn Engine>,
}

impl TorRoute {
    /// The route that `engine` dials.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine }
    }
}

#[async_trait]
impl Route for TorRoute {
    fn kind(&self) -> RouteKind {
        RouteKind::TOR
    }

    fn reaches(&self, _to: NodeId) -> bool {
        true
    }

    async fn dial(&self, to: NodeId, limit: Duration) -> Result<Channel, RouteError> {
        let dialled = self.engine.dial(to.address(), LINK_PORT, limit).await;
        dialled.map(Channel::tor).map_err(|error| route_error(to, error))
    }
}

fn route_error(peer: NodeId, error: TorError) -> RouteError {
    let route = RouteKind::TOR;
    match error {
        TorError::ShutOut { .. } => RouteError::ShutOut(peer),
        TorError::Timeout { limit, .. } => RouteError::Timeout { peer, route, limit },
        TorError::Stopped(_) => RouteError::Stopped { route, source: error.into() },
        error => RouteError::Unreachable { peer, route, source: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_service_that_accepts_none_of_the_keys_counts_as_shutting_out() {
        let (peer, limit) = (NodeId::from_public_key([1; 32]), Duration::from_secs(9));
        let to = || peer.address().to_string();
        let of = |error| route_error(peer, error);
        assert!(matches!(of(TorError::ShutOut { to: to() }), RouteError::ShutOut(shut) if shut == peer));
        let late = TorError::Timeout { what: "dialling".into(), limit };
        assert!(matches!(of(late), RouteError::Timeout { limit: bound, .. } if bound == limit));
        assert!(matches!(of(TorError::Stopped("killed".into())), RouteError::Stopped { .. }));
        let unreachable = TorError::Unreachable { to: to(), why: "no circuit".into(), source: None };
        for error in [unreachable, TorError::NotReady("no directory".into())] {
            let error = of(error);
            assert!(matches!(error, RouteError::Unreachable { .. }), "{error}");
            assert!(std::error::Error::source(&error).is_some());
        }
    }
}
