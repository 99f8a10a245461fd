//! The node's own onion service, run by `tor-hsservice` in restricted-discovery mode.
//!
//! Its identity key comes from our key file; Arti's key store holds it in memory only. The state
//! that `tor-hsservice` keeps on disk refers to other keys of that store, which end with the
//! process. So the first launch in a process removes that state.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use rustbalance_gossip::id::NodeId;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::DropGuard;
use tor_config::Reconfigure;
use tor_hsservice::config::OnionServiceConfigBuilder;
use tor_hsservice::config::restricted_discovery::HsClientNickname;
use tor_hsservice::{HsNickname, OnionServiceConfig, RendRequest, RunningOnionService};

use super::client::Shared;
use super::{keys, stream};
use crate::keys::DiscoveryPublic;
use crate::sync::publish;
use crate::tor::circuits::{CircuitBounds, Place, RendezvousPoint};
use crate::tor::{Incoming, Listening, OwnService, RefusedCounts, TorError};

/// Most circuits to the service at once. Only members can open circuits, and each needs a few.
const MOST_CIRCUITS: usize = 1024;

/// Open circuits and circuits in the making have the same bound.
const BOUNDS: CircuitBounds = CircuitBounds { making: MOST_CIRCUITS, open: MOST_CIRCUITS, refusals: None };

/// `tor-hsservice` does not expose a member's rendezvous point, so all have this one.
const ANY_RENDEZVOUS_POINT: RendezvousPoint = RendezvousPoint { relay: [0; 20], listed: true };

/// Most streams open on one circuit.
const STREAMS_PER_CIRCUIT: u32 = 64;

/// Time limit from an introduction to a circuit.
const ACCEPT_LIMIT: Duration = Duration::from_secs(60);

/// Launches the service as soon as the client is ready.
pub(super) async fn listen(
    shared: Arc<Shared>,
    service: OwnService,
    streams: mpsc::Sender<Incoming>,
) -> Result<Box<dyn Listening>, TorError> {
    let OwnService { identity, discovery, ports, refused } = service;
    let node = identity.node_id();
    let nickname = nickname(node)?;
    let config = configure(&nickname, &discovery)?;
    let live = shared.ready().await?;
    let failed = |error: arti_client::Error| {
        TorError::Invalid(
            format!("cannot launch the onion service of node {}: {error}", node.short()),
            Some(Box::new(error)),
        )
    };
    let (running, requests) = if shared.launched.first(node) {
        remove_old_state(&shared, &nickname).await;
        let launched = live.tor.launch_onion_service_with_hsid(config, keys::node_keypair(&identity));
        launched.map_err(failed)?.map(|(running, requests)| (running, requests.boxed()))
    } else {
        let launched = live.tor.launch_onion_service(config).map_err(failed)?;
        launched.map(|(running, requests)| (running, requests.boxed()))
    }
    .ok_or_else(|| TorError::Invalid("the onion service of this node is disabled".into(), None))?;
    let stop = shared.shutdown.child_token();
    let (reached, reachable) = watch::channel(running.status().state().is_fully_reachable());
    let handle = Arc::downgrade(&running);
    shared.tasks.spawn(stop.clone().run_until_cancelled_owned(hold(running, reached)));
    let own = OwnServiceTask { shared: Arc::clone(&shared), ports: ports.into_iter().collect(), streams, refused };
    shared.tasks.spawn(stop.clone().run_until_cancelled_owned(Arc::new(own).run(requests)));
    Ok(Box::new(Service { running: handle, nickname, reachable, _stop: stop.drop_guard() }))
}

/// The identities that this process has launched: their keys are in Arti's key store already.
#[derive(Default)]
pub(super) struct Launched(Mutex<BTreeSet<NodeId>>);

impl Launched {
    /// True the first time.
    fn first(&self, node: NodeId) -> bool {
        self.0.lock().insert(node)
    }
}

/// A distinct name for each identity, because Arti's key store identifies services by name.
fn nickname(node: NodeId) -> Result<HsNickname, TorError> {
    let name = format!("node-{}", node.address().to_string().chars().take(16).collect::<String>());
    HsNickname::new(name)
        .map_err(|error| TorError::Invalid("cannot name the node's service".into(), Some(Box::new(error))))
}

/// Removes the state of this service that an earlier process left.
async fn remove_old_state(shared: &Shared, nickname: &HsNickname) {
    let folder = shared.state_dir.join("hss").join(nickname.to_string());
    match tokio::fs::remove_dir_all(&folder).await {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(
                name: "own_service_cleanup_failed",
                %error, folder = %folder.display(),
                "cannot remove obsolete state of the node's own service"
            );
        }
        _ => {}
    }
}

/// The configuration of a service that only holders of one of these keys can find.
fn configure(nickname: &HsNickname, discovery: &[DiscoveryPublic]) -> Result<OnionServiceConfig, TorError> {
    let invalid =
        |error: &dyn std::fmt::Display| TorError::Invalid(format!("cannot set up the node's service: {error}"), None);
    if discovery.is_empty() {
        return Err(invalid(&"without a discovery key anyone could find it"));
    }
    let keys: BTreeMap<[u8; 32], &DiscoveryPublic> = discovery.iter().map(|key| (key.0, key)).collect();
    let mut builder = OnionServiceConfigBuilder::default();
    builder.nickname(nickname.clone()).max_concurrent_streams_per_circuit(STREAMS_PER_CIRCUIT);
    builder.restricted_discovery().enabled(true);
    for key in keys.values() {
        let name = format!("key-{}", data_encoding::HEXLOWER.encode(&key.0[..8]));
        let name: HsClientNickname = name.parse().map_err(|error| invalid(&error))?;
        builder.restricted_discovery().static_keys().access().push((name, keys::discovery_public(key)));
    }
    builder.build().map_err(|error| invalid(&error))
}

/// Keeps Arti's handle, whose drop ends the service, and publishes whether the service is believed
/// reachable.
async fn hold(running: Arc<RunningOnionService>, reached: watch::Sender<bool>) {
    let mut events = running.status_events();
    while let Some(status) = events.next().await {
        let now = status.state().is_fully_reachable();
        publish(&reached, now);
        tracing::trace!(
            state = ?status.state(), problem = ?status.current_problem(), "the state of the node's own service changed"
        );
    }
    std::future::pending().await
}

/// State shared by the tasks that serve the service's circuits.
struct OwnServiceTask {
    shared: Arc<Shared>,
    ports: BTreeSet<u16>,
    streams: mpsc::Sender<Incoming>,
    refused: Arc<RefusedCounts>,
}

impl OwnServiceTask {
    /// Accepts circuits, each in its own task.
    async fn run(self: Arc<Self>, mut requests: impl Stream<Item = RendRequest> + Unpin) {
        let stop = self.shared.shutdown.child_token();
        let _circuits_end_with_the_service = stop.clone().drop_guard();
        while let Some(request) = requests.next().await {
            let Some(place) = self.shared.own.introduce(ANY_RENDEZVOUS_POINT, BOUNDS, &self.refused) else {
                tracing::debug!(most = MOST_CIRCUITS, "refused a circuit to the node's own service: no place is free");
                continue;
            };
            let own = Arc::clone(&self);
            self.shared.tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
                own.serve(request, Arc::new(place)).await;
            }));
        }
    }

    async fn serve(&self, request: RendRequest, place: Arc<Place>) {
        match timeout(ACCEPT_LIMIT, request.accept()).await {
            Ok(Ok(_)) if !place.met() => {
                tracing::debug!(most = MOST_CIRCUITS, "refused a circuit to the node's own service: no place is free");
            }
            Ok(Ok(requests)) => {
                stream::serve(requests, &self.streams, |port| self.ports.contains(&port), &self.refused, &place).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "cannot accept a circuit to the node's own service"),
            Err(_) => {
                tracing::debug!(limit = ?ACCEPT_LIMIT, "accepting a circuit to the node's own service took too long")
            }
        }
    }
}

/// The handle of the running service. Dropping it ends the task that keeps the service.
struct Service {
    running: Weak<RunningOnionService>,
    nickname: HsNickname,
    reachable: watch::Receiver<bool>,
    _stop: DropGuard,
}

#[async_trait]
impl Listening for Service {
    async fn authorize(&self, discovery: Vec<DiscoveryPublic>) -> Result<(), TorError> {
        let config = configure(&self.nickname, &discovery)?;
        let running = self.running.upgrade().ok_or_else(|| TorError::Stopped("it was shut down".into()))?;
        running.reconfigure(config, Reconfigure::AllOrNothing).map_err(|error| {
            TorError::Invalid("cannot change who may find the node's service".into(), Some(Box::new(error)))
        })
    }

    fn reachable(&self) -> watch::Receiver<bool> {
        self.reachable.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_discovery_keys_is_refused() {
        let nickname = nickname(NodeId::from_public_key([7; 32])).unwrap();
        assert!(configure(&nickname, &[]).is_err());
        let (one, two) = (DiscoveryPublic([1; 32]), DiscoveryPublic([2; 32]));
        assert!(configure(&nickname, &[one, two, one]).unwrap() == configure(&nickname, &[two, one]).unwrap());
    }
}
