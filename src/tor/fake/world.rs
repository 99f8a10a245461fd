//! State of the fake network's relays and directories: introduction points, services, descriptors.
//!
//! All of it is synchronous, behind one lock.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::seq::{IteratorRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
use rustbalance_gossip::id::{OnionAddress, ServiceId};
use rustbalance_gossip::record::{IntroPoint, PeriodId, RelayId};
use sha3::{Digest, Sha3_256};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::keys::DiscoveryPublic;
use crate::tor::circuits::Circuits;
use crate::tor::{
    Directory, Incoming, IntroPointKeys, Refused, RefusedCounts, RelayChoice, ServiceGuard, TorError, descriptor,
};

/// Directories responsible for a descriptor: two replicas of four, as on the real network.
const DIRECTORIES: usize = 8;
/// Indexes of the directories that clients ask: the first three of each replica's four.
const VISIBLE: [usize; 6] = [0, 1, 2, 4, 5, 6];
/// Directories drop a descriptor after this, its lifetime.
const LIFETIME: Duration = Duration::from_secs(3 * 3600);
/// The current time period when the network starts.
const FIRST_PERIOD: PeriodId = PeriodId { number: 20_000, length_minutes: 1440, offset_seconds: 43_200 };

/// A node or a visitor.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) id: usize,
    /// Cancelled when the node is killed.
    pub(super) dead: CancellationToken,
    /// The circuits of the clients that this node serves.
    pub(super) circuits: Arc<Circuits>,
}

/// A node's own service while it runs.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) node: Node,
    pub(super) streams: mpsc::Sender<Incoming>,
    /// Cancelled when the service stops.
    pub(super) stopped: CancellationToken,
    /// The client keys that can decrypt its descriptor.
    pub(super) discovery: Vec<DiscoveryPublic>,
    /// Ports that are open.
    pub(super) ports: Vec<u16>,
    pub(super) refused: Arc<RefusedCounts>,
}

/// An introduction circuit, as its relay holds it.
#[derive(Clone)]
pub(super) struct Point {
    pub(super) described: IntroPoint,
    pub(super) node: Node,
    pub(super) streams: mpsc::Sender<Incoming>,
    pub(super) limits: Arc<ServiceGuard>,
    pub(super) replays: Arc<crate::tor::ReplayLog>,
    pub(super) introductions: Arc<AtomicU64>,
    /// Serial number of the circuit, as circuits can have the same session key.
    circuit: u64,
    lost: watch::Sender<Option<String>>,
}

/// A descriptor at a directory.
struct StoredDescriptor {
    text: String,
    revision: u64,
    since: Instant,
}

/// The state of the network.
pub(super) struct World {
    rng: StdRng,
    started: (SystemTime, Instant),
    relays: Vec<RelayId>,
    dead_relays: BTreeSet<RelayId>,
    period: u64,
    circuits: u64,
    pub(super) nodes: usize,
    /// Services of clusters: those for which publication or an introduction point was requested.
    balanced: BTreeSet<ServiceId>,
    services: HashMap<OnionAddress, Service>,
    /// By session key.
    points: HashMap<[u8; 32], Point>,
    held: HashMap<(RelayId, ServiceId, PeriodId), StoredDescriptor>,
}

impl World {
    pub(super) fn new(seed: u64, relays: u16) -> Self {
        let relay = |number: u16| {
            let digest = digest(&[b"relay", &seed.to_be_bytes(), &number.to_be_bytes()]);
            let mut rsa = [0; 20];
            rsa.copy_from_slice(&digest[..20]);
            RelayId { rsa: FixedBytes(rsa), ed25519: FixedBytes(digest) }
        };
        Self {
            rng: StdRng::seed_from_u64(seed),
            started: (SystemTime::now(), Instant::now()),
            relays: (0..relays).map(relay).collect(),
            dead_relays: BTreeSet::new(),
            period: FIRST_PERIOD.number,
            circuits: 0,
            nodes: 0,
            balanced: BTreeSet::new(),
            services: HashMap::new(),
            points: HashMap::new(),
            held: HashMap::new(),
        }
    }

    /// The network's time: real at the start, then Tokio's, which a test can pause.
    pub(super) fn now(&self) -> SystemTime {
        self.started.0 + self.elapsed()
    }

    /// Time since the start of the network.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.1.elapsed()
    }

    /// The current time period and the next.
    pub(super) fn periods(&self) -> [PeriodId; 2] {
        [self.period, self.period + 1].map(|number| PeriodId { number, ..FIRST_PERIOD })
    }

    pub(super) fn next_period(&mut self) {
        self.period += 1;
    }

    pub(super) fn relays(&self) -> Vec<RelayId> {
        self.relays.iter().filter(|relay| !self.dead_relays.contains(relay)).copied().collect()
    }

    pub(super) fn kill_relay(&mut self, relay: RelayId) {
        self.dead_relays.insert(relay);
        self.held.retain(|(at, ..), _| *at != relay);
        self.end_points("its relay is gone", |point| point.described.relay == relay);
    }

    /// Removes the services and introduction points of a killed node.
    pub(super) fn remove_node(&mut self, node: usize) {
        self.services.retain(|_, service| service.node.id != node);
        self.end_points("the Tor client has stopped", |point| point.node.id == node);
    }

    fn end_points(&mut self, why: &str, which: impl Fn(&Point) -> bool) {
        for (_, point) in self.points.extract_if(|_, point| which(point)) {
            point.lost.send_replace(Some(why.into()));
        }
    }

    pub(super) fn know(&mut self, service: ServiceId) {
        self.balanced.insert(service);
    }

    /// The responsible directories, replica by replica.
    pub(super) fn directories(&self, service: ServiceId, period: PeriodId) -> Vec<Directory> {
        let mut relays = self.relays();
        relays.sort_by_key(|relay| {
            digest(&[b"ring", service.public_key(), &period.number.to_be_bytes(), &relay.ed25519.0])
        });
        relays.into_iter().take(DIRECTORIES).map(|relay| Directory { relay }).collect()
    }

    /// Accepts a descriptor if a real directory would.
    pub(super) fn upload(&mut self, to: &Directory, period: PeriodId, text: &str) -> Result<(), TorError> {
        self.listed(to)?;
        let refused = || TorError::Refused {
            directory: to.relay.to_string(),
            status: "400 Invalid HS descriptor. Rejected.".into(),
        };
        if !self.periods().contains(&period) {
            return Err(refused());
        }
        let now = self.now();
        // A directory can read only the outer layer.
        let read = |service: &ServiceId| Some((*service, descriptor::read_revision(text, *service, period, now).ok()?));
        let (service, revision) = self.balanced.iter().find_map(read).ok_or_else(refused)?;
        let key = (to.relay, service, period);
        if self.held.get(&key).is_some_and(|held| held.since.elapsed() < LIFETIME && held.revision >= revision) {
            return Err(refused());
        }
        self.held.insert(key, StoredDescriptor { text: text.into(), revision, since: Instant::now() });
        Ok(())
    }

    /// The descriptor that a directory holds.
    pub(super) fn fetch(
        &self,
        from: &Directory,
        service: ServiceId,
        period: PeriodId,
    ) -> Result<Option<String>, TorError> {
        self.listed(from)?;
        let held = self.held.get(&(from.relay, service, period)).filter(|held| held.since.elapsed() < LIFETIME);
        Ok(held.map(|held| held.text.clone()))
    }

    fn listed(&self, directory: &Directory) -> Result<(), TorError> {
        if self.relays.contains(&directory.relay) && !self.dead_relays.contains(&directory.relay) {
            return Ok(());
        }
        Err(TorError::Unreachable {
            to: format!("directory {}", directory.relay),
            why: "the network no longer lists it".into(),
            source: None,
        })
    }

    /// The current period, and the directories that stock clients ask in it, in a new order.
    pub(super) fn visible(&mut self, service: ServiceId) -> (PeriodId, Vec<Directory>) {
        let period = self.periods()[0];
        let directories = self.directories(service, period);
        let mut visible: Vec<_> = VISIBLE.iter().filter_map(|at| directories.get(*at).cloned()).collect();
        visible.shuffle(&mut self.rng);
        (period, visible)
    }

    /// Has a directory forget what it holds for a service.
    pub(super) fn lose_descriptor(&mut self, at: &Directory, service: ServiceId, period: PeriodId) {
        self.held.remove(&(at.relay, service, period));
    }

    /// Has a relay forget an introduction point; its node does not notice.
    pub(super) fn deafen(&mut self, point: &IntroPoint) {
        self.points.remove(&point.session_key.0);
    }

    /// The introduction points that a stock client finds, in the order in which it tries them;
    /// `None` if none of the directories that it asks has a descriptor.
    pub(super) fn look_up(&mut self, service: ServiceId) -> Option<Vec<IntroPoint>> {
        let (period, visible) = self.visible(service);
        let text = visible.iter().find_map(|directory| self.fetch(directory, service, period).ok()?)?;
        let mut points = descriptor::read(&text, service, period, self.now()).ok()?.points;
        points.shuffle(&mut self.rng);
        Some(points)
    }

    /// The introduction circuit of this point, if its relay still has it.
    pub(super) fn point(&self, point: &IntroPoint) -> Option<Point> {
        self.points.get(&point.session_key.0).filter(|known| known.described.relay == point.relay).cloned()
    }

    /// Opens an introduction point. As at a real relay, it replaces a point with the same keys.
    pub(super) fn open_point(
        &mut self,
        node: &Node,
        service: ServiceId,
        keys: &IntroPointKeys,
        choice: &RelayChoice,
        limits: Arc<ServiceGuard>,
        streams: mpsc::Sender<Incoming>,
    ) -> Result<(Point, watch::Receiver<Option<String>>), TorError> {
        let relay = self.choose(choice)?;
        self.know(service);
        self.circuits += 1;
        let (lost, watched) = watch::channel(None);
        let point = Point {
            described: describe(relay, keys),
            node: node.clone(),
            streams,
            limits,
            replays: Arc::clone(&keys.replays),
            introductions: Arc::default(),
            circuit: self.circuits,
            lost,
        };
        if let Some(replaced) = self.points.insert(point.described.session_key.0, point.clone()) {
            replaced.lost.send_replace(Some("its relay has another circuit with the same keys".into()));
        }
        Ok((point, watched))
    }

    fn choose(&mut self, choice: &RelayChoice) -> Result<RelayId, TorError> {
        let relays = self.relays();
        match choice {
            RelayChoice::Exactly(relay) => relays
                .contains(relay)
                .then_some(*relay)
                .ok_or_else(|| TorError::NoRelay(format!("{relay} is not in the network's directory"))),
            RelayChoice::AnyBut(excluded) => relays
                .into_iter()
                .filter(|relay| !excluded.contains(relay))
                .choose(&mut self.rng)
                .ok_or_else(|| TorError::NoRelay(format!("{} are excluded", excluded.len()))),
        }
    }

    /// Closes the circuit of a point, unless another circuit has replaced it.
    pub(super) fn close_point(&mut self, point: &Point) {
        let key = &point.described.session_key.0;
        if self.points.get(key).is_some_and(|known| known.circuit == point.circuit) {
            self.points.remove(key);
        }
    }

    pub(super) fn open_service(&mut self, address: OnionAddress, service: Service) {
        self.services.insert(address, service);
    }

    pub(super) fn service(&mut self, address: &OnionAddress) -> Option<&mut Service> {
        self.services.get_mut(address).filter(|service| !service.stopped.is_cancelled())
    }

    /// Random bytes that serve as the unique body of an introduction.
    pub(super) fn unique(&mut self) -> [u8; 32] {
        self.rng.random()
    }
}

impl Point {
    /// Counts an introduction; false if it is a replay.
    pub(super) fn note(&self, body: &[u8]) -> bool {
        if matches!(self.replays.is_new(body), Ok(false)) {
            self.limits.refused.count(Refused::Replay);
            return false;
        }
        self.introductions.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// The point as it appears in a descriptor. Its keys are real, so the descriptors are valid.
fn describe(relay: RelayId, keys: &IntroPointKeys) -> IntroPoint {
    let port = [relay.rsa.0[0] | 0x80, relay.rsa.0[1]];
    let specifier = |parts: &[&[u8]]| VarBytes(parts.concat());
    IntroPoint {
        relay,
        link_specifiers: vec![
            specifier(&[&[0, 6], &[127, 0, 0, 1], &port]),
            specifier(&[&[2, 20], &relay.rsa.0]),
            specifier(&[&[3, 32], &relay.ed25519.0]),
        ],
        onion_key: FixedBytes(digest(&[b"onion key", &relay.rsa.0])),
        session_key: FixedBytes(keys.secrets.session_key()),
        encryption_key: FixedBytes(keys.secrets.encryption_key()),
    }
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha3_256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}
