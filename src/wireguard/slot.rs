//! A place for an engine, so that routes outlive it: WireGuard is switched on and off while links
//! run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;
use rustbalance_gossip::id::NodeId;

use super::{Desired, Engine, EngineError, PeerStatus, TunnelStream};

/// The engine that runs now, if any. Without one it reaches no peer.
#[derive(Default)]
pub struct EngineSlot(RwLock<Option<Arc<dyn Engine>>>);

impl EngineSlot {
    /// Puts an engine in; `None` takes it out, which ends it once no dial uses it.
    pub fn set(&self, engine: Option<Arc<dyn Engine>>) {
        *self.0.write() = engine;
    }

    fn engine(&self) -> Option<Arc<dyn Engine>> {
        self.0.read().clone()
    }
}

#[async_trait]
impl Engine for EngineSlot {
    fn apply(&self, desired: Desired) {
        if let Some(engine) = self.engine() {
            engine.apply(desired);
        }
    }

    fn reaches(&self, to: NodeId) -> bool {
        self.engine().is_some_and(|engine| engine.reaches(to))
    }

    async fn dial(&self, to: NodeId, limit: Duration) -> Result<TunnelStream, EngineError> {
        self.engine().ok_or(EngineError::Stopped)?.dial(to, limit).await
    }

    fn status(&self) -> BTreeMap<NodeId, PeerStatus> {
        self.engine().map(|engine| engine.status()).unwrap_or_default()
    }
}
