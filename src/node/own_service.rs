//! The node's own onion service, which its peers dial: open to holders of the accepted discovery keys, its streams go
//! to the links.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::supervisor::Ended;
use crate::keys::{DiscoveryPublic, NodeSecret};
use crate::link::{Channel, LINK_PORT, Links};
use crate::tor::{Engine, Incoming, Listening, OwnService, RefusedCounts, TorError};

/// Streams of peers that may wait to be accepted.
const QUEUE: usize = 256;
/// Streams that are being accepted at once; a further one is dropped and counted.
const ACCEPTING: usize = 32;
/// Bound on accepting one stream.
const ACCEPT_LIMIT: Duration = Duration::from_secs(30);
/// Pause before the service is started again after a failure that may pass.
const RETRY: Duration = Duration::from_secs(2);

/// What the own service needs.
pub(super) struct OwnServicePart {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) identity: NodeSecret,
    /// The discovery keys whose holders may find this node. The service starts once there is one.
    pub(super) accepted: watch::Receiver<Vec<DiscoveryPublic>>,
    /// Where the streams go.
    pub(super) links: Arc<Links>,
    /// Counts what the service refuses.
    pub(super) refused: Arc<RefusedCounts>,
}

impl OwnServicePart {
    /// Serves until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Ended {
        // Held here, so that the channel stays open over what becomes of the service: another process may take it away.
        let (streams, incoming) = mpsc::channel(QUEUE);
        let listening = stop.run_until_cancelled(self.listen(&streams)).await;
        match listening {
            Some(Ok(Some(listening))) => self.accept(&*listening, incoming, &stop).await,
            Some(Ok(None)) | None => Ok(()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Starts the service, again and again; `None` if there will be no discovery key.
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
                    warn!(%error, "cannot start this node's own service, will try again");
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
    ) -> Ended {
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
        // A stream that is dropped is rejected.
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            self.links.count_crowd();
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
