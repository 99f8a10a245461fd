//! Gives the proxy and the health checks a way to other onion services that are targets.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::id::OnionAddress;

use crate::proxy::OnionDialer;
use crate::stream::BoxStream;
use crate::tor::Engine;

/// Dials targets with this node's Tor client.
pub(super) struct TorDialer(pub(super) Arc<dyn Engine>);

#[async_trait]
impl OnionDialer for TorDialer {
    async fn dial(&self, to: OnionAddress, port: u16, limit: Duration) -> io::Result<BoxStream> {
        self.0.dial(to, port, limit).await.map_err(io::Error::other)
    }
}
