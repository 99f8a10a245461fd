//! A hostile member: it has joined like any node, and uses its keys for raw frames, links and
//! gossip.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use parking_lot::Mutex;
use rustbalance::counters::Counters;
use rustbalance::discovery::Discovery;
use rustbalance::link::handshake::{HandshakeError, LinkRefusal, Purpose};
use rustbalance::link::{LinkConfig, LinkLimits, Links, MemberSet, TorRoute};
use rustbalance::store::Store;
use rustbalance::stream::BoxStream;
use rustbalance::tor::Engine;
use rustbalance::tor::fake::FakeEngine;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::{NodeCard, RecordKind, Role};
use rustbalance_gossip::signed::{Sign, Statement, Verified};
use rustbalance_mesh::{Carrier, Mesh, MeshConfig, Update};
use tokio::sync::{mpsc, watch};

use crate::hand;
use crate::test_cluster::{TestCluster, until};

/// A member with its Tor client and its state.
pub(crate) struct Member {
    pub(crate) engine: Arc<FakeEngine>,
    pub(crate) store: Store,
}

/// A gossip instance, with the member's own node id or that of another node.
pub(crate) struct RawGossip {
    pub(crate) mesh: Mesh,
    heard: Arc<Mutex<Vec<Update>>>,
}

/// The member's links, and the carriers for gossip instances over them.
pub(crate) struct RawLinks {
    _links: Links,
    carriers: Vec<Carrier>,
    _set: (watch::Sender<MemberSet>, watch::Sender<Option<Arc<Discovery>>>),
}

impl Member {
    /// Joins with a new token.
    pub(crate) async fn join(test_cluster: &TestCluster, role: Role) -> Self {
        let token = test_cluster.invite(role, 1).await;
        Self::of(test_cluster, test_cluster.join("mallory", &token).await)
    }

    /// The member whose state is in `store`.
    pub(crate) fn of(test_cluster: &TestCluster, store: Store) -> Self {
        let engine = test_cluster.net.engine();
        let keys = store.discovery().unwrap();
        for daemon in &test_cluster.daemons {
            engine.trust_discovery(daemon.id, &keys.secrets()).unwrap();
        }
        Self { engine, store }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.store.node_id()
    }

    /// A stream to a node's link port, without a handshake.
    pub(crate) async fn dial(&self, to: NodeId) -> Result<BoxStream> {
        hand::dial(&*self.engine, to).await
    }

    /// A link to a node after the handshake; an error if the node refuses it.
    pub(crate) async fn link(&self, to: NodeId, purpose: Purpose) -> Result<BoxStream> {
        hand::link(&*self.engine, &self.store, to, purpose).await
    }

    /// Opens links to all running daemons, with carriers for `instances` gossip instances.
    pub(crate) async fn open(&self, test_cluster: &TestCluster, instances: usize) -> RawLinks {
        let members = test_cluster.daemons.iter().map(|daemon| daemon.id).collect();
        let (sender, members) = watch::channel(MemberSet { members, ..MemberSet::default() });
        let (keys, discovery) = watch::channel(None);
        let limits =
            LinkLimits { pause: (Duration::from_millis(100), Duration::from_secs(1)), ..LinkLimits::default() };
        let config = LinkConfig {
            base: Arc::new(TorRoute::new(Arc::clone(&self.engine) as Arc<dyn Engine>)),
            faster: Vec::new(),
            identity: self.store.node_secret().unwrap(),
            membership: self.store.membership().clone(),
            discovery,
            limits: watch::channel(limits).1,
            counters: Counters::default(),
        };
        let (links, outputs) = Links::start(config, members);
        let wanted = test_cluster.running().count();
        until("the hostile member has links", async || match links.status().len() {
            open if open == wanted => Ok(()),
            open => bail!("it has {open} of {wanted} links"),
        })
        .await;
        RawLinks { _links: links, carriers: share(outputs.carrier, instances), _set: (sender, keys) }
    }

    /// Gossips with its own node id and announces its card.
    pub(crate) async fn speak(&self, test_cluster: &TestCluster, raw_links: &mut RawLinks) -> RawGossip {
        let raw_gossip = raw_links.speak(test_cluster, self.id(), 1).await;
        raw_gossip.announce(RecordKind::Card, &self.sign(self.card(self.id(), 1 << 32)));
        raw_gossip
    }

    /// A card for `node` with this member's certificates.
    pub(crate) fn card(&self, node: NodeId, seq: u64) -> NodeCard {
        hand::card(&self.store, node, seq)
    }

    /// Signs with the member's key.
    pub(crate) fn sign<T: Statement>(&self, statement: T) -> Vec<u8> {
        hand::sign(&self.store, statement)
    }

    /// Signs with the member's key, but names `signer` as the signer.
    pub(crate) fn forge<T: Statement>(&self, statement: T, signer: [u8; 32]) -> Vec<u8> {
        struct Forger(rustbalance::keys::NodeSecret, [u8; 32]);
        impl Sign for Forger {
            fn public_key(&self) -> [u8; 32] {
                self.1
            }
            fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
                self.0.sign_bytes(message)
            }
        }
        let forger = Forger(self.store.node_secret().unwrap(), signer);
        Verified::sign(statement, &forger).unwrap().to_bytes().unwrap()
    }
}

impl RawLinks {
    /// Gossips as the node `me`, which may be another node, in this generation, which may be that
    /// node's current one.
    pub(crate) async fn speak(&mut self, test_cluster: &TestCluster, me: NodeId, generation: u64) -> RawGossip {
        let carrier = self.carriers.pop().expect("`open` was called with too few voices");
        let interval = Duration::from_millis(200);
        let config = MeshConfig { me, cluster: test_cluster.cluster, generation, interval };
        let seeds: Vec<_> = test_cluster.daemons.iter().map(|daemon| daemon.id).filter(|id| *id != me).collect();
        let (mesh, mut updates) = Mesh::start(config, carrier, seeds).await.unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let note = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Some(update) = updates.recv().await {
                note.lock().push(update);
            }
        });
        RawGossip { mesh, heard }
    }
}

impl RawGossip {
    /// All records received from a node of one kind, oldest first.
    pub(crate) fn heard(&self, origin: NodeId, kind: RecordKind) -> Vec<Vec<u8>> {
        let heard = self.heard.lock();
        let fits = |update: &&Update| update.origin == origin && update.kind == kind;
        heard.iter().filter(fits).map(|update| update.bytes.clone()).collect()
    }

    pub(crate) fn announce(&self, kind: RecordKind, bytes: &[u8]) {
        self.mesh.set(kind, bytes).unwrap();
    }
}

/// Splits a carrier for several gossip instances; each receives every message.
fn share(carrier: Carrier, instances: usize) -> Vec<Carrier> {
    let Carrier { send, mut received, links } = carrier;
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..instances).map(|_| mpsc::channel(256)).unzip();
    tokio::spawn(async move {
        while let Some(message) = received.recv().await {
            for sender in &senders {
                // An instance that does not keep up misses messages.
                let _ = sender.try_send(message.clone());
            }
        }
    });
    receivers
        .into_iter()
        .map(|received| Carrier { send: Arc::clone(&send), received, links: Arc::clone(&links) })
        .collect()
}

/// Whether a link was refused because the member is revoked.
pub(crate) fn is_revoked(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(HandshakeError::Refused(_, LinkRefusal::Revoked) | HandshakeError::Revoked(_)))
}
