//! The node's own onion service, which its peers dial. Only holders of an accepted discovery key
//! can reach it; its streams go to the links.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::supervisor::PartResult;
use crate::keys::{DiscoveryPublic, NodeSecret};
use crate::link::{Channel, LINK_PORT, Links};
use crate::tor::{Engine, Incoming, Listening, OwnService, RefusedCounts, TorError};

/// Peers' streams that may wait to be accepted.
const QUEUE: usize = 256;
/// Streams that are being accepted at the same time; further ones are dropped and counted.
const ACCEPTING: usize = 32;
/// Time limit for accepting one stream.
const ACCEPT_LIMIT: Duration = Duration::from_secs(30);
/// Pause before the service is started again after a transient failure.
const RETRY: Duration = Duration::from_secs(2);

/// The inputs of the own service.
pub(super) struct OwnServicePart {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) identity: NodeSecret,
    /// The accepted discovery keys. The service starts once there is one.
    pub(super) accepted: watch::Receiver<Vec<DiscoveryPublic>>,
    /// Receives the streams.
    pub(super) links: Arc<Links>,
    /// Counts the refusals of the service.
    pub(super) refused: Arc<RefusedCounts>,
}

impl OwnServicePart {
    /// Serves until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) -> PartResult {
        // Holds a sender, so that the channel stays open if the service loses its own: another
        // process may take the service over.
        let (streams, incoming) = mpsc::channel(QUEUE);
        let listening = stop.run_until_cancelled(self.listen(&streams)).await;
        match listening {
            Some(Ok(Some(listening))) => self.accept(&*listening, incoming, &stop).await,
            Some(Ok(None)) | None => Ok(()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Starts the service, with retries after transient failures. `None` if the discovery keys'
    /// sender is gone.
    async fn listen(&mut self, streams: &mpsc::Sender<Incoming>) -> Result<Option<Box<dyn Listening>>, TorError> {
        if self.accepted.wait_for(|keys| !keys.is_empty()).await.is_err() {
            return Ok(None);
        }
        loop {
            let discovery = self.accepted.borrow_and_update().clone();
            let (identity, refused) = (self.identity.duplicate(), Arc::clone(&self.refused));
            let service = OwnService { identity, discovery, ports: vec![LINK_PORT], refused };
            match self.engine.listen(service, streams.clone()).await {
                Ok(listening) => return Ok(Some(listening)),
                Err(error) if error.is_transient() => {
                    warn!(name: "own_service_failed", %error, "cannot start this node's own service, will try again");
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn accept(
        mut self,
        listening: &dyn Listening,
        mut incoming: mpsc::Receiver<Incoming>,
        stop: &CancellationToken,
    ) -> PartResult {
        let places = Arc::new(Semaphore::new(ACCEPTING));
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Ok(()) = self.accepted.changed() => {
                    let keys = self.accepted.borrow_and_update().clone();
                    listening.authorize(keys).await?;
                }
                stream = incoming.recv() => match stream {
                    Some(stream) => self.accept_one(stream, &places),
                    None => return Ok(()),
                },
            }
        }
    }

    fn accept_one(&self, incoming: Incoming, places: &Arc<Semaphore>) {
        // Dropping a stream rejects it.
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            self.links.count_excess_stream();
            return;
        };
        let links = Arc::clone(&self.links);
        tokio::spawn(async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(ACCEPT_LIMIT, incoming.request.accept()).await {
                links.accept(Channel::tor(stream));
            }
            drop(place);
        });
    }
}
