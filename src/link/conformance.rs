//! Runs links through the conformance suite of mesh carriers: in memory from this crate, over Tor
//! from the network tests, which include this file.
//!
//! [`LinkedNetwork`] is the suite's network, built on the engines of a [`Ground`]. [`launch`]
//! starts one node's links and its own onion service as the daemon does. [`TestCluster`] holds the
//! keys of a small cluster.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance::counters::Counters;
use rustbalance::discovery::Discovery;
use rustbalance::keys::{AuthoritySecret, DiscoverySecret, IdentitySecret, NodeSecret};
use rustbalance::link::{Channel, LINK_PORT, LinkConfig, LinkLimits, LinkOutputs, Links, MemberSet, Route, TorRoute};
use rustbalance::tor::{Engine, Incoming, Listening, OwnService};
use rustbalance_gossip::id::{ClusterId, NodeId};
use rustbalance_gossip::record::{AuthorityCertificate, Member, MemberCertificate, Role};
use rustbalance_gossip::signed::Verified;
use rustbalance_mesh::Carrier;
use rustbalance_mesh::conformance::Network;
use tokio::sync::{mpsc, watch};

/// The keys of a cluster, sorted so that node ids rise with their index.
pub(crate) struct TestCluster {
    pub(crate) master: IdentitySecret,
    pub(crate) authority: AuthoritySecret,
    /// Opens the descriptors of the nodes' own onion services.
    pub(crate) discovery: DiscoverySecret,
    pub(crate) keys: Vec<NodeSecret>,
}

impl TestCluster {
    pub(crate) fn new() -> Self {
        let mut rng = rand::rng();
        let mut keys: Vec<_> = (0..6).map(|_| NodeSecret::generate(&mut rng)).collect();
        keys.sort_by_key(NodeSecret::node_id);
        Self {
            master: IdentitySecret::generate(&mut rng),
            authority: AuthoritySecret::generate(&mut rng),
            discovery: DiscoverySecret::generate(&mut rng),
            keys,
        }
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        ClusterId::named_by(self.master.service_id())
    }

    pub(crate) fn key(&self, i: usize) -> NodeSecret {
        self.keys[i].duplicate()
    }

    pub(crate) fn node(&self, i: usize) -> NodeId {
        self.keys[i].node_id()
    }

    pub(crate) fn member(&self, i: usize) -> Member {
        self.member_of(i, self.cluster())
    }

    /// A certificate for the given cluster.
    pub(crate) fn member_of(&self, i: usize, cluster: ClusterId) -> Member {
        let authority = AuthorityCertificate { cluster, authority: self.authority.authority_id(), issued: 7 };
        let certificate = MemberCertificate {
            cluster,
            node: self.node(i),
            role: Role::Worker,
            issued: 7,
            expires: 4_000_000_000,
            invitation: None,
        };
        Member {
            authority: Verified::sign(authority, &self.master).unwrap(),
            certificate: Verified::sign(certificate, &self.authority).unwrap(),
        }
    }

    pub(crate) fn set(&self, members: impl IntoIterator<Item = usize>) -> MemberSet {
        MemberSet { members: members.into_iter().map(|i| self.node(i)).collect(), ..MemberSet::default() }
    }
}

/// The links of one node, and the senders that control them.
pub(crate) struct Launched {
    pub(crate) links: Arc<Links>,
    pub(crate) outputs: LinkOutputs,
    pub(crate) set: watch::Sender<MemberSet>,
    pub(crate) limits: watch::Sender<LinkLimits>,
    pub(crate) counters: Counters,
    pub(crate) newest: watch::Sender<Option<Arc<Discovery>>>,
    pub(crate) service: Box<dyn Listening>,
}

/// Starts the links of node `i` over Tor, and its own onion service.
pub(crate) async fn launch(
    world: &TestCluster,
    engine: Arc<dyn Engine>,
    i: usize,
    set: MemberSet,
    limits: LinkLimits,
) -> Launched {
    launch_with(world, engine, Vec::new(), i, set, limits).await
}

/// Like [`launch`], with faster routes.
pub(crate) async fn launch_with(
    world: &TestCluster,
    engine: Arc<dyn Engine>,
    faster: Vec<Arc<dyn Route>>,
    i: usize,
    set: MemberSet,
    limits: LinkLimits,
) -> Launched {
    for other in &world.keys {
        engine.trust_discovery(other.node_id(), &[&world.discovery]).unwrap();
    }
    let (set, members) = watch::channel(set);
    let (newest, discovery) = watch::channel(None);
    let (limits, limits_of_links) = watch::channel(limits);
    let counters = Counters::default();
    let config = LinkConfig {
        base: Arc::new(TorRoute::new(Arc::clone(&engine))),
        faster,
        identity: world.key(i),
        membership: world.member(i),
        discovery,
        limits: limits_of_links,
        counters: counters.clone(),
    };
    let (links, outputs) = Links::start(config, members);
    let links = Arc::new(links);
    let (streams, mut incoming) = mpsc::channel(16);
    let service = OwnService {
        identity: world.key(i),
        discovery: vec![world.discovery.public()],
        ports: vec![LINK_PORT],
        refused: Arc::default(),
    };
    let service = engine.listen(service, streams).await.unwrap();
    let listening = Arc::downgrade(&links);
    tokio::spawn(async move {
        while let Some(Incoming { request, .. }) = incoming.recv().await {
            let Some(links) = listening.upgrade() else { break };
            if let Ok(stream) = request.accept().await {
                links.accept(Channel::tor(stream));
            }
        }
    });
    Launched { links, outputs, set, limits, newest, counters, service }
}

/// The environment that the suite's nodes run in.
#[async_trait]
pub(crate) trait Ground: Send + Sync {
    /// The engine of the node with this number; each call returns the same one.
    async fn engine(&self, number: usize) -> Arc<dyn Engine>;
    /// Cuts all traffic between the two sides; false if this environment cannot do that.
    fn part(&self, side: &[usize], others: &[usize]) -> bool;
    /// Ends the cut of [`Ground::part`].
    fn heal(&self);
    /// Bounds that suit the environment.
    fn limits(&self) -> LinkLimits;
    /// See [`Network::patience`].
    fn patience(&self) -> Duration;
    /// See [`Network::interval`].
    fn interval(&self) -> Duration;
}

/// A network of nodes connected by links.
pub(crate) struct LinkedNetwork<'g, G> {
    ground: &'g G,
    world: TestCluster,
    count: usize,
    running: BTreeMap<usize, Running>,
}

/// Keeps a node's links alive.
struct Running {
    _links: Arc<Links>,
    _set: watch::Sender<MemberSet>,
    _limits: watch::Sender<LinkLimits>,
    _counters: Counters,
    _newest: watch::Sender<Option<Arc<Discovery>>>,
    _service: Box<dyn Listening>,
}

impl<'g, G: Ground> LinkedNetwork<'g, G> {
    pub(crate) fn new(ground: &'g G) -> Self {
        Self { ground, world: TestCluster::new(), count: 0, running: BTreeMap::new() }
    }

    async fn launch(&mut self, number: usize) -> Carrier {
        let engine = self.ground.engine(number).await;
        let set = self.world.set(0..self.count);
        let Launched { links, outputs, set, limits, newest, counters, service } =
            launch(&self.world, engine, number, set, self.ground.limits()).await;
        let running = Running {
            _links: links,
            _set: set,
            _limits: limits,
            _newest: newest,
            _counters: counters,
            _service: service,
        };
        self.running.insert(number, running);
        outputs.carrier
    }

    fn number(&self, node: NodeId) -> usize {
        self.world.keys.iter().position(|key| key.node_id() == node).unwrap()
    }
}

#[async_trait]
impl<G: Ground> Network for LinkedNetwork<'_, G> {
    async fn start(&mut self, count: usize) -> Vec<(NodeId, Carrier)> {
        self.count = count;
        let mut carriers = Vec::new();
        for number in 0..count {
            carriers.push((self.world.node(number), self.launch(number).await));
        }
        carriers
    }

    async fn kill(&mut self, node: NodeId) {
        self.running.remove(&self.number(node));
    }

    async fn restart(&mut self, node: NodeId) -> Carrier {
        self.launch(self.number(node)).await
    }

    async fn part(&mut self, side: &BTreeSet<NodeId>) -> bool {
        let (side, others): (Vec<_>, Vec<_>) =
            (0..self.count).partition(|number| side.contains(&self.world.node(*number)));
        self.ground.part(&side, &others)
    }

    async fn heal(&mut self) {
        self.ground.heal();
    }

    fn patience(&self) -> Duration {
        self.ground.patience()
    }

    fn interval(&self) -> Duration {
        self.ground.interval()
    }
}
