//! The part that answers monitors.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::NodeError;
use super::control::Daemon;
use super::supervisor::{PartResult, Supervisor};
use crate::control;
use crate::metrics::{Exporter, MetricsListener, Reading, SOCKET_NAME, Source, serve};

/// Time limit for the server to stop: it drops its connections.
const STOPS: Duration = Duration::from_secs(5);
/// Pause between two attempts to listen on the loopback address.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

#[async_trait]
impl Source for Daemon {
    fn read(&self) -> Reading {
        Reading { status: self.status(), counters: self.counters.clone() }
    }

    async fn answers(&self) {
        // Before Tor is ready, there is no such task yet.
        let Some(running) = self.running.get() else { return };
        if running.cluster.ping().await.is_err() {
            // It has ended: the daemon stops, or fails.
            std::future::pending().await
        }
    }
}

/// Starts to answer on the Unix socket, and on the loopback address if there is one.
pub(super) fn start(
    daemon: &Arc<Daemon>,
    loopback: Option<SocketAddr>,
    parts: &mut Supervisor,
) -> Result<(), NodeError> {
    let exporter = Arc::new(Exporter::new(Arc::clone(daemon) as Arc<dyn Source>));
    let socket = MetricsListener::Unix(control::bind_socket(daemon.store.dir(), SOCKET_NAME)?);
    let answering = Arc::clone(&exporter);
    parts.start("metrics", STOPS, |stop| async move {
        serve(socket, answering, stop).await;
        Ok(())
    });
    if let Some(address) = loopback {
        parts.start("metrics on the loopback address", STOPS, |stop| listen(address, exporter, stop));
    }
    Ok(())
}

/// Answers on a loopback address once it is free. Clients are served meanwhile: a monitor notices
/// that nothing answers.
async fn listen(address: SocketAddr, exporter: Arc<Exporter>, stop: CancellationToken) -> PartResult {
    let mut warned = false;
    loop {
        match MetricsListener::loopback(address).await {
            Ok(listener) => {
                info!(
                    name: "monitors_listening",
                    url = format!("http://{address}/metrics"),
                    "monitors can ask this node"
                );
                serve(listener, exporter, stop).await;
                return Ok(());
            }
            Err(error) if !warned => {
                warn!(
                    name: "monitors_listen_failed",
                    %address, %error,
                    "cannot listen for monitors on [metrics] listen; trying again every {RETRY_PAUSE:?}"
                );
                warned = true;
            }
            Err(_) => {}
        }
        if stop.run_until_cancelled(tokio::time::sleep(RETRY_PAUSE)).await.is_none() {
            return Ok(());
        }
    }
}
