//! The rotation of the discovery key (see [`crate::discovery`]): makes a new key when one is due,
//! accepts keys from peers, and passes the keys to the links, the node's own service and the Tor
//! client.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::coordinator::Event;
use rustbalance_gossip::id::NodeId;
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use super::cluster::Cluster;
use super::supervisor::PartResult;
use crate::blocking::on_disk;
use crate::clock::unix_now;
use crate::discovery::{Discovery, KeyRing, Offer, PendingKey};
use crate::keys::DiscoveryPublic;
use crate::link::{Links, MemberSet, Reach};
use crate::store::Store;
use crate::tor::Engine;

/// The keys are reviewed at least this often: old keys cease to be accepted by time alone.
const LOOK_PAUSE: Duration = Duration::from_secs(10);

/// The task that keeps the discovery keys.
pub(super) struct Rotation {
    /// Receives the keys that open the other members' services.
    pub(super) engine: Arc<dyn Engine>,
    /// Holds the keys.
    pub(super) store: Arc<Store>,
    /// Counts the keys that are refused.
    pub(super) links: Arc<Links>,
    /// Says whether some peer accepts none of this node's keys.
    pub(super) reach: watch::Receiver<Reach>,
    /// The members and the revoked nodes.
    pub(super) members: watch::Receiver<MemberSet>,
    /// The newest key, for the links.
    pub(super) newest: watch::Sender<Option<Arc<Discovery>>>,
    /// The public keys that the node's own service accepts.
    pub(super) accepted: watch::Sender<Vec<DiscoveryPublic>>,
}

impl Rotation {
    /// Runs until the cluster's task ends. `publishes` says whether this node is the publisher;
    /// only the publisher makes keys.
    pub(super) async fn run(
        mut self,
        cluster: Cluster,
        mut publishes: watch::Receiver<bool>,
        mut offered: mpsc::Receiver<Offer>,
    ) -> PartResult {
        let mut ring = self.store.discovery()?;
        let mut trusted = BTreeSet::from([self.store.node_id()]);
        let (mut announced, mut early) = (None, PendingKey::default());
        loop {
            let counted = ring.newest().key.generation.max(early.counted());
            if announced != Some(counted) {
                announced = Some(counted);
                // If the cluster's task has ended, that task reports why.
                let _ = cluster.send_event(Event::DiscoveryKey { counted }).await;
            }
            let publisher = *publishes.borrow_and_update();
            let revoked = self.members.borrow_and_update().revoked.len();
            if let Some(key) = early.take(revoked).filter(|key| ring.is_newer(key)) {
                self.adopt(&mut ring, key, &mut trusted);
            }
            if let Some(made) = ring.due(revoked).filter(|_| publisher).and_then(|generation| self.make(generation)) {
                self.adopt(&mut ring, made, &mut trusted);
            }
            let refused = self.reach.borrow_and_update().refused;
            self.distribute_keys(&ring, refused, &mut trusted);
            tokio::select! {
                changed = self.members.changed() => if changed.is_err() { return Ok(()) },
                changed = self.reach.changed() => if changed.is_err() { return Ok(()) },
                changed = publishes.changed() => if changed.is_err() { return Ok(()) },
                Some(offer) = offered.recv() => self.take(&ring, offer, &mut early),
                () = tokio::time::sleep(LOOK_PAUSE) => {}
            }
        }
    }

    /// Accepts a key from a peer, to be adopted once the revocations that it counts are known here.
    /// A known or older key causes no disk access.
    fn take(&self, ring: &KeyRing, offer: Offer, early: &mut PendingKey) {
        if ring.has(&offer) {
            return;
        }
        match offer.verify(self.store.cluster(), self.store.membership().authority_id()) {
            Ok(key) if ring.is_newer(&key) => early.hold(key),
            Ok(_) => {}
            Err(error) => {
                self.links.count_false_key();
                debug!(%error, "refused a discovery key from a member");
            }
        }
    }

    fn make(&self, generation: u32) -> Option<Discovery> {
        let authority = self
            .store
            .authority_secret()
            .inspect_err(|error| {
                error!(
                    name: "discovery_authority_failed",
                    %error,
                    "cannot read the authority key to make a discovery key"
                )
            })
            .ok()??;
        Discovery::generate(self.store.cluster(), generation, &authority, &mut rand::rng())
            .inspect_err(|error| error!(name: "discovery_make_failed", %error, "cannot make a discovery key"))
            .ok()
    }

    /// Adopts a key if it is newer. The key is on disk before it is used. If it cannot be written,
    /// it is made or offered again later.
    fn adopt(&self, ring: &mut KeyRing, key: Discovery, trusted: &mut BTreeSet<NodeId>) {
        match on_disk(|| self.store.adopt_discovery(key, unix_now())) {
            Ok((now, true)) => {
                info!(
                    name: "discovery_rotated",
                    generation = now.newest().key.generation,
                    "the discovery key was rotated"
                );
                *ring = now;
                trusted.retain(|node| *node == self.store.node_id());
            }
            Ok((_, false)) => {}
            Err(error) => warn!(name: "discovery_store_failed", %error, "cannot store a new discovery key"),
        }
    }

    /// Passes the keys to the links, the own service and the Tor client. If some peer has `refused`
    /// all of this node's keys, older ones are accepted, too.
    fn distribute_keys(&self, ring: &KeyRing, refused: bool, trusted: &mut BTreeSet<NodeId>) {
        let newest = ring.newest();
        self.newest.send_if_modified(|announced| {
            let news = announced.as_ref().is_none_or(|announced| announced.key != newest.key);
            if news {
                *announced = Some(Arc::new(newest.duplicate()));
            }
            news
        });
        let accepted = ring.accepted(unix_now(), refused);
        self.accepted.send_if_modified(|announced| {
            let news = *announced != accepted;
            *announced = accepted;
            news
        });
        let new: Vec<NodeId> = self.members.borrow().members.difference(trusted).copied().collect();
        for node in new {
            match self.engine.trust_discovery(node, &ring.secrets()) {
                Ok(()) => drop(trusted.insert(node)),
                Err(error) => {
                    warn!(
                        name: "discovery_give_failed",
                        node = %node.short(), %error,
                        "cannot give the Tor client the discovery keys for a member"
                    )
                }
            }
        }
    }
}
