//! An [`Engine`] in memory, for tests of the code above it and simulations of a few dozen nodes.
//!
//! A [`FakeNet`] is the Tor network; [`FakeNet::engine`] makes the Tor client of a node or of a
//! visitor. It is faithful in these points:
//! * descriptors are real texts, signed, read and bounded by the same code;
//! * directories refuse the uploads that real ones refuse;
//! * a client reads a descriptor only from the directories that stock clients ask, and is served
//!   only by a node that still holds the introduction point with the same keys;
//! * restricted discovery keeps out clients without a key;
//! * later streams to an address use the existing circuit.
//!
//! Time is Tokio's, so a test can pause it; random choices follow from the seed.
//!
//! Faults: [`FakeNet::latency`], [`FakeNet::kill_relay`], [`FakeNet::sever`],
//! [`FakeNet::lose_descriptor`], [`FakeNet::deafen`], [`FakeEngine::kill`],
//! [`FakeEngine::freeze`], [`FakeEngine::introduce_in_vain`], [`FakeEngine::set_time`].

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::id::{NodeId, OnionAddress, ServiceId};
use rustbalance_gossip::record::{IntroPoint, PeriodId, RelayId};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::circuits::{ATTEMPT_LIMIT, Place, RendezvousPoint};
use super::descriptor::DescriptorParameters;
use super::{
    Bootstrap, CircuitCounts, Directory, Engine, ExportedCircuitId, Incoming, IntroRequest, Listening, NetworkTime,
    OpenCircuit, OpenIntroPoint, OwnService, Period, Refused, TorError, Visit, VisitError,
};
use crate::counters::add_one;
use crate::keys::{DiscoveryPublic, DiscoverySecret};
use crate::places::Places;
use crate::stream::BoxStream;
use stream::{Circuit, Faults, Path, StreamRefused};
use world::{Node, Point, Service, World};

mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod visit;
mod world;

/// How long a client waits for the service at the rendezvous point before it tries the next
/// introduction point.
const RENDEZVOUS_LIMIT: Duration = Duration::from_secs(15);

/// A Tor network in memory. Clones refer to the same network.
#[derive(Clone)]
pub struct FakeNet {
    inner: Arc<Inner>,
}

struct Inner {
    world: Mutex<World>,
    faults: watch::Sender<Faults>,
    changes: watch::Sender<u64>,
}

impl FakeNet {
    /// A network of `relays` relays, which are all directories too. The same seed gives the same
    /// random choices.
    pub fn new(seed: u64, relays: u16) -> Self {
        let world = Mutex::new(World::new(seed, relays));
        let inner = Inner { world, faults: watch::Sender::default(), changes: watch::Sender::new(1) };
        Self { inner: Arc::new(inner) }
    }

    /// Makes the Tor client of a new node or visitor.
    pub fn engine(&self) -> Arc<FakeEngine> {
        let id = {
            let mut world = self.world();
            world.nodes += 1;
            world.nodes
        };
        let node = Node { id, dead: CancellationToken::new(), circuits: Arc::default() };
        let ready = Bootstrap { fraction: 1.0, ready: true, message: "done".into(), hopeless: None };
        Arc::new(FakeEngine {
            net: self.clone(),
            node,
            bootstrap: Mutex::new(Some(watch::Sender::new(ready))),
            trusted: Mutex::default(),
            circuits: Mutex::default(),
            time: Mutex::default(),
        })
    }

    /// The current time of the network.
    pub fn now(&self) -> SystemTime {
        self.world().now()
    }

    /// The relays that were not killed.
    pub fn relays(&self) -> Vec<RelayId> {
        self.world().relays()
    }

    /// Sets the one-way delay of every chunk of bytes and every step of a handshake.
    pub fn latency(&self, latency: Duration) {
        self.inner.faults.send_modify(|faults| faults.latency = latency);
    }

    /// Stops a relay: its introduction points and the descriptors it held are lost.
    pub fn kill_relay(&self, relay: RelayId) {
        self.world().kill_relay(relay);
        self.changed();
    }

    /// Blocks all traffic between two nodes; each still reaches the others and the directories.
    pub fn sever(&self, one: &FakeEngine, other: &FakeEngine) {
        let pair = Faults::pair(one.node.id, other.node.id);
        self.inner.faults.send_modify(|faults| {
            faults.severed.insert(pair);
        });
    }

    /// Undoes every [`FakeNet::sever`].
    pub fn heal(&self) {
        self.inner.faults.send_modify(|faults| faults.severed.clear());
    }

    /// Moves to the next time period.
    pub fn next_period(&self) {
        self.world().next_period();
        self.changed();
    }

    /// The current time period and the next.
    pub fn periods(&self) -> [PeriodId; 2] {
        self.world().periods()
    }

    /// The directories responsible for `service` in `period`.
    pub fn directories(&self, service: ServiceId, period: PeriodId) -> Vec<Directory> {
        self.world().directories(service, period)
    }

    /// The descriptor that a directory holds, read without latency or faults.
    pub fn held(&self, at: &Directory, service: ServiceId, period: PeriodId) -> Option<String> {
        self.world().fetch(at, service, period).ok().flatten()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.inner.world.lock()
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|changes| *changes += 1);
    }
}

/// One node's Tor client on a [`FakeNet`]. Dropping it is the same as [`FakeEngine::kill`].
pub struct FakeEngine {
    net: FakeNet,
    node: Node,
    /// `None` once the node is killed.
    bootstrap: Mutex<Option<watch::Sender<Bootstrap>>>,
    trusted: Mutex<HashMap<NodeId, Vec<DiscoveryPublic>>>,
    circuits: Mutex<HashMap<OnionAddress, Arc<Circuit>>>,
    time: Mutex<NetworkTime>,
}

impl FakeEngine {
    /// Simulates a crash of the node: all its streams end, relays drop its introduction points, and
    /// every later call fails.
    pub fn kill(&self) {
        self.node.dead.cancel();
        drop(self.bootstrap.lock().take());
        self.circuits().clear();
        self.net.world().remove_node(self.node.id);
    }

    /// Sets what the network says about the time.
    pub fn set_time(&self, time: NetworkTime) {
        *self.time.lock() = time;
    }

    /// Stops all traffic to and from this node without closing its connections; `freeze(false)`
    /// lets it continue.
    pub fn freeze(&self, frozen: bool) {
        let id = self.node.id;
        self.net.inner.faults.send_modify(|faults| {
            if frozen {
                faults.frozen.insert(id)
            } else {
                faults.frozen.remove(&id)
            };
        });
    }

    /// Introduces a client whose rendezvous point never answers. `relay` is that point's identity.
    /// Returns once a node has received the introduction.
    pub async fn introduce_in_vain(&self, to: OnionAddress, relay: u8) -> Result<(), TorError> {
        let found = self.net.world().look_up(ServiceId::from_public_key(*to.public_key()));
        let points = found.ok_or_else(|| unreachable(to, "no directory has its descriptor"))?;
        let point = points.iter().find_map(|described| self.net.world().point(described));
        let point = point.ok_or_else(|| unreachable(to, "none of its introduction points answers"))?;
        self.path(point.node.id).pass().await;
        let waits_at = RendezvousPoint { relay: [relay; 20], listed: true };
        let introduced = point.node.circuits.introduce(waits_at, point.limits.circuits(), &point.limits.refused);
        let Some(place) = introduced else { return Ok(()) };
        point.note(&self.net.world().unique());
        tokio::spawn(async move {
            let attempts = async {
                sleep(ATTEMPT_LIMIT).await;
                while let Some(pause) = place.failed(ATTEMPT_LIMIT) {
                    sleep(pause + ATTEMPT_LIMIT).await;
                }
            };
            tokio::select! {
                () = place.closed().cancelled() => {}
                () = attempts => {}
                () = point.node.dead.cancelled() => {}
            }
        });
        Ok(())
    }

    fn circuits(&self) -> MutexGuard<'_, HashMap<OnionAddress, Arc<Circuit>>> {
        self.circuits.lock()
    }

    fn alive(&self) -> Result<(), TorError> {
        if self.node.dead.is_cancelled() {
            return Err(TorError::Stopped("it was killed".into()));
        }
        Ok(())
    }

    /// The path to another node, or to the network itself if `other` is this node.
    fn path(&self, other: usize) -> Path {
        Path { faults: self.net.inner.faults.subscribe(), between: (self.node.id, other) }
    }

    /// Runs `work` within `limit`, until this node is killed.
    async fn within<T>(
        &self,
        what: impl FnOnce() -> String,
        limit: Duration,
        work: impl Future<Output = Result<T, TorError>>,
    ) -> Result<T, TorError> {
        self.alive()?;
        tokio::select! {
            () = self.node.dead.cancelled() => Err(TorError::Stopped("it was killed".into())),
            result = timeout(limit, work) => result.unwrap_or_else(|_| Err(TorError::Timeout { what: what(), limit })),
        }
    }

    async fn connect(&self, to: OnionAddress, port: u16) -> Result<BoxStream, TorError> {
        let known = self.circuits().get(&to).filter(|circuit| circuit.usable()).cloned();
        if let Some(circuit) = known {
            match circuit.open_stream(port).await {
                Err(StreamRefused::Gone) => {}
                result => return result.map_err(|_| unreachable(to, "it refuses that port")),
            }
        }
        let circuit = Arc::new(self.circuit(to).await?);
        self.circuits().insert(to, Arc::clone(&circuit));
        circuit.open_stream(port).await.map_err(|error| match error {
            StreamRefused::Rejected => unreachable(to, "it refuses that port"),
            StreamRefused::Gone => unreachable(to, "its circuit was closed"),
        })
    }

    async fn circuit(&self, to: OnionAddress) -> Result<Circuit, TorError> {
        self.path(self.node.id).pass().await;
        let service = self.net.world().service(&to).cloned();
        match service {
            Some(service) => self.circuit_to_node(to, service).await,
            None => self.circuit_to_service(to).await,
        }
    }

    async fn circuit_to_node(&self, to: OnionAddress, service: Service) -> Result<Circuit, TorError> {
        let node = NodeId::from_public_key(*to.public_key());
        let keys = self.trusted.lock().get(&node).cloned();
        match keys {
            None => return Err(unreachable(to, "it requires a discovery key, and we have none for it")),
            Some(keys) if !keys.iter().any(|key| service.discovery.contains(key)) => {
                return Err(TorError::ShutOut { to: to.to_string() });
            }
            Some(_) => {}
        }
        let path = self.path(service.node.id);
        path.pass().await;
        Ok(Circuit {
            client: self.node.clone(),
            server: service.node,
            path,
            streams: service.streams,
            limits: None,
            refused: Some(service.refused),
            ports: Some(service.ports),
            ended: service.stopped,
            open_streams: Places::default(),
            place: None,
        })
    }

    /// Connects as a stock client does: fetches a descriptor, then tries one introduction point
    /// after another until the service answers at the rendezvous point.
    async fn circuit_to_service(&self, to: OnionAddress) -> Result<Circuit, TorError> {
        let found = self.net.world().look_up(ServiceId::from_public_key(*to.public_key()));
        let points = found.ok_or_else(|| unreachable(to, "no directory has its descriptor"))?;
        for described in &points {
            self.path(self.node.id).pass().await;
            let waiting = self.net.world().point(described);
            let Some(point) = waiting else { continue };
            if let Ok(Some(circuit)) = timeout(RENDEZVOUS_LIMIT, self.rendezvous(&point, described)).await {
                return Ok(circuit);
            }
        }
        Err(unreachable(to, "none of its introduction points answers"))
    }

    /// Introduces this client at a point and waits until the service meets it. Never returns if the
    /// service does not: the caller sets the timeout.
    async fn rendezvous(&self, point: &Point, described: &IntroPoint) -> Option<Circuit> {
        let body = self.net.world().unique();
        let refused = &point.limits.refused;
        let path = self.path(point.node.id);
        path.pass().await;
        if described.encryption_key != point.described.encryption_key {
            refused.count(Refused::Malformed);
            return std::future::pending().await;
        }
        let waits_at = RendezvousPoint { relay: relay_of(self.node.id), listed: true };
        let place = point.node.circuits.introduce(waits_at, point.limits.circuits(), refused);
        let Some(place) = place.filter(|_| !point.node.dead.is_cancelled() && point.note(&body)) else {
            return std::future::pending().await;
        };
        add_one(&refused.service.introductions);
        let arrived = Instant::now();
        path.pass().await;
        if !place.met() {
            return std::future::pending().await;
        }
        refused.service.rendezvous_time.observe(arrived.elapsed());
        let place = Arc::new(place);
        tokio::spawn(expire(Arc::downgrade(&place)));
        Some(Circuit {
            client: self.node.clone(),
            server: point.node.clone(),
            path,
            streams: point.streams.clone(),
            limits: Some(Arc::clone(&point.limits)),
            refused: None,
            ports: None,
            ended: place.closed().clone(),
            open_streams: Places::default(),
            place: Some(place),
        })
    }
}

/// Closes a circuit when its idle time has passed.
async fn expire(place: Weak<Place>) {
    while let Some(left) = place.upgrade().map(|place| place.left()) {
        if left.is_zero() {
            if let Some(place) = place.upgrade() {
                place.closed().cancel();
            }
            return;
        }
        sleep(left).await;
    }
}

/// The identity of the rendezvous point that this client uses: each client has its own.
fn relay_of(client: usize) -> [u8; 20] {
    let mut relay = [0; 20];
    relay[..8].copy_from_slice(&(client as u64).to_be_bytes());
    relay
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn unreachable(to: OnionAddress, why: &str) -> TorError {
    TorError::Unreachable { to: to.to_string(), why: why.into(), source: None }
}

#[async_trait]
impl Engine for FakeEngine {
    fn bootstrap(&self) -> watch::Receiver<Bootstrap> {
        let sender = self.bootstrap.lock();
        // A killed node returns a closed channel.
        sender.as_ref().map_or_else(|| watch::channel(Bootstrap::default()).1, watch::Sender::subscribe)
    }

    async fn dial(&self, to: OnionAddress, port: u16, limit: Duration) -> Result<BoxStream, TorError> {
        let what = || format!("connecting to port {port} of {to}");
        let result = self.within(what, limit, self.connect(to, port)).await;
        if matches!(result, Err(TorError::Timeout { .. })) {
            self.circuits().remove(&to);
        }
        result
    }

    fn trust_discovery(&self, node: NodeId, keys: &[&DiscoverySecret]) -> Result<(), TorError> {
        self.alive()?;
        let keys = keys.iter().map(|key| key.public()).collect();
        self.trusted.lock().insert(node, keys);
        Ok(())
    }

    async fn listen(
        &self,
        service: OwnService,
        streams: mpsc::Sender<Incoming>,
    ) -> Result<Box<dyn Listening>, TorError> {
        self.alive()?;
        some_discovery(&service.discovery)?;
        let address = service.identity.node_id().address();
        let stopped = CancellationToken::new();
        let running = Service {
            node: self.node.clone(),
            streams,
            stopped: stopped.clone(),
            discovery: service.discovery,
            ports: service.ports,
            refused: service.refused,
        };
        self.net.world().open_service(address, running);
        let (reachable, _) = watch::channel(true);
        Ok(Box::new(FakeListening { net: self.net.clone(), address, reachable, _stop: stopped.drop_guard() }))
    }

    async fn open_intro_point(
        &self,
        request: IntroRequest,
        streams: mpsc::Sender<Incoming>,
    ) -> Result<Box<dyn OpenIntroPoint>, TorError> {
        let IntroRequest { service, keys, relay, limits } = request;
        let opening = async {
            self.path(self.node.id).pass().await;
            let (point, lost) = self.net.world().open_point(&self.node, service, &keys, &relay, limits, streams)?;
            self.path(self.node.id).pass().await;
            Ok(Box::new(FakePoint { net: self.net.clone(), point, lost }) as Box<dyn OpenIntroPoint>)
        };
        self.within(|| "opening an introduction point".into(), Duration::from_secs(90), opening).await
    }

    fn time(&self) -> NetworkTime {
        *self.time.lock()
    }

    fn client_circuits(&self) -> CircuitCounts {
        self.node.circuits.counts()
    }

    fn open_client_circuits(&self) -> Vec<OpenCircuit> {
        self.node.circuits.open()
    }

    fn close_client_circuit(&self, id: ExportedCircuitId) -> bool {
        self.node.circuits.close(id)
    }

    fn close_idle_circuits(&self, idle: Duration) {
        self.node.circuits.close_idle(idle);
    }

    async fn publication(&self, service: ServiceId) -> Result<Vec<Period>, TorError> {
        self.alive()?;
        let mut world = self.net.world();
        world.know(service);
        let period = |id| Period {
            id,
            directories: world.directories(service, id),
            revision_clock: world.elapsed(),
            parameters: DescriptorParameters::default(),
        };
        Ok(world.periods().map(period).into())
    }

    fn network_changes(&self) -> watch::Receiver<u64> {
        self.net.inner.changes.subscribe()
    }

    async fn upload(
        &self,
        to: &Directory,
        period: PeriodId,
        descriptor: &str,
        limit: Duration,
    ) -> Result<(), TorError> {
        let uploading = async {
            self.path(self.node.id).pass().await;
            let answer = self.net.world().upload(to, period, descriptor);
            self.path(self.node.id).pass().await;
            answer
        };
        self.within(|| format!("the upload to directory {}", to.relay), limit, uploading).await
    }

    async fn fetch(
        &self,
        from: &Directory,
        service: ServiceId,
        period: PeriodId,
        limit: Duration,
    ) -> Result<Option<String>, TorError> {
        let fetching = async {
            self.path(self.node.id).pass().await;
            let answer = self.net.world().fetch(from, service, period);
            self.path(self.node.id).pass().await;
            answer
        };
        self.within(|| format!("the download from directory {}", from.relay), limit, fetching).await
    }

    async fn client_directories(&self, service: ServiceId) -> Result<(PeriodId, Vec<Directory>), TorError> {
        self.alive()?;
        Ok(self.net.world().visible(service))
    }

    async fn visit(&self, visit: Visit, limit: Duration) -> Result<(), VisitError> {
        self.visit_point(visit, limit).await
    }

    // Each circuit of the fake is made when it is needed.
    fn renew_circuits(&self) {}

    async fn shutdown(&self) {
        self.kill();
    }
}

struct FakeListening {
    net: FakeNet,
    address: OnionAddress,
    reachable: watch::Sender<bool>,
    _stop: DropGuard,
}

fn some_discovery(discovery: &[DiscoveryPublic]) -> Result<(), TorError> {
    if discovery.is_empty() {
        return Err(TorError::Invalid("a node's own service needs at least one discovery key".into(), None));
    }
    Ok(())
}

#[async_trait]
impl Listening for FakeListening {
    async fn authorize(&self, discovery: Vec<DiscoveryPublic>) -> Result<(), TorError> {
        some_discovery(&discovery)?;
        let mut world = self.net.world();
        let service = world.service(&self.address).ok_or_else(|| TorError::Stopped("the service is gone".into()))?;
        service.discovery = discovery;
        Ok(())
    }

    fn reachable(&self) -> watch::Receiver<bool> {
        self.reachable.subscribe()
    }
}

struct FakePoint {
    net: FakeNet,
    point: Point,
    lost: watch::Receiver<Option<String>>,
}

#[async_trait]
impl OpenIntroPoint for FakePoint {
    fn describe(&self) -> IntroPoint {
        self.point.described.clone()
    }

    async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        let why = lost.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        why.unwrap_or_else(|| "the Tor client has stopped".into())
    }

    fn introductions(&self) -> u64 {
        self.point.introductions.load(Ordering::Relaxed)
    }
}

impl Drop for FakePoint {
    fn drop(&mut self) {
        self.net.world().close_point(&self.point);
    }
}
