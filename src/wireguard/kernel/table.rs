//! Decides which peers the interface has, where they are, and which of a node's keys carries its
//! packets. No IO and no clock.
//!
//! The interface has one private key, the one in use, and a peer for each key of a node. A node's
//! address belongs to one of them, the carrier: the kernel sends by it and lets nothing in by
//! another. The carrier follows the node, which begins a handshake with the key that it uses: so
//! both sides may change their keys at different times. The others only answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::id::NodeId;
use tokio::time::Instant;

use super::device::{Measured, Place};
use super::peer::PeerEntry;
use crate::wireguard::host::is_usable;
use crate::wireguard::{
    Desired, MOST_ENDPOINTS, MOST_KEYS, MOST_PEERS, Peer, PeerStatus, WireguardKey, WireguardSecret,
};

/// Interval at which the kernel is asked after a change: how long a node that has changed its key
/// is not heard at most, so shorter than TCP's first pause (200 ms).
const AT_ONCE: Duration = Duration::from_millis(100);
/// How long after a change that interval is used.
const RESTLESS: Duration = Duration::from_secs(10);
/// The interval while a node is about to change its key.
const SOON: Duration = Duration::from_millis(250);
/// The interval otherwise. Each time costs 2.3 ms with 370 peers.
const LATER: Duration = Duration::from_secs(1);

/// A change of the interface.
#[derive(Debug)]
pub(super) enum Action {
    /// Use this private key.
    SetKey(WireguardSecret),
    /// Add a peer that is not there.
    Add(WireguardKey, Place),
    /// Let a peer that is there carry the address.
    Give(WireguardKey, Ipv6Addr),
    /// Let a peer that is there only answer.
    Rest(WireguardKey),
    /// Remove a peer that is there.
    Remove(WireguardKey),
    /// Send to this address by the interface.
    AddRoute(Ipv6Addr),
    /// Do not any more.
    RemoveRoute(Ipv6Addr),
}

/// All peers of one interface, as the kernel has them once the actions are carried out.
pub(super) struct Table {
    me: NodeId,
    /// The addresses that this node was given to listen on.
    bound: Vec<IpAddr>,
    own: Option<WireguardKey>,
    peers: BTreeMap<NodeId, PeerEntry>,
    /// The nodes by their addresses.
    nodes: BTreeMap<Ipv6Addr, NodeId>,
    restless_until: Instant,
}

impl Table {
    /// An interface of the node `me` without peers.
    pub(super) fn new(me: NodeId, bound: Vec<IpAddr>, now: Instant) -> Self {
        Self { me, bound, own: None, peers: BTreeMap::new(), nodes: BTreeMap::new(), restless_until: now }
    }

    /// Takes the desired state. What it does not name is removed before anything is added: a key
    /// may have gone to another node.
    pub(super) fn apply(&mut self, desired: Desired, now: Instant) -> Vec<Action> {
        self.restless_until = now + RESTLESS;
        let mut actions = Vec::new();
        let Desired { own, mut peers } = desired;
        let own_keys: BTreeSet<_> = own.iter().map(WireguardSecret::public).collect();
        match own.into_iter().next() {
            Some(secret) => {
                let key = secret.public();
                if self.own.replace(key) != Some(key) {
                    actions.push(Action::SetKey(secret));
                }
            }
            // Without a peer the interface gives no answer.
            None => peers.clear(),
        }
        peers.remove(&self.me);
        let wanted: BTreeMap<_, _> = peers.into_iter().take(MOST_PEERS).collect();
        let gone = self.peers.extract_if(.., |node, _| !wanted.contains_key(node)).collect::<Vec<_>>();
        for (node, entry) in gone {
            self.nodes.remove(&mesh_address(&node));
            actions.extend(entry.into_keys().map(Action::Remove));
            actions.push(Action::RemoveRoute(mesh_address(&node)));
        }
        let keys = allowed_keys(&own_keys, &wanted, &self.peers);
        for (node, entry) in &mut self.peers {
            actions.extend(entry.drop_keys(&keys[node], now));
        }
        for (node, peer) in &wanted {
            let address = mesh_address(node);
            let entry = self.peers.entry(*node).or_insert_with(|| {
                actions.push(Action::AddRoute(address));
                PeerEntry::new(address, now)
            });
            self.nodes.insert(address, *node);
            let usable = peer.endpoints.iter().copied().filter(|endpoint| is_usable(*endpoint, &self.bound));
            let is_key_taken = keys[node].len() < peer.keys.len();
            entry.place(usable.take(MOST_ENDPOINTS).collect(), !peer.endpoints.is_empty(), now);
            actions.extend(entry.take_keys(&keys[node], is_key_taken, now));
        }
        actions
    }

    /// Takes what the kernel knows of the peers.
    pub(super) fn measure(&mut self, measured: &BTreeMap<WireguardKey, Measured>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for entry in self.peers.values_mut() {
            let was_up = entry.is_up(now);
            actions.extend(entry.measure(measured, now));
            if was_up != entry.is_up(now) {
                self.restless_until = now + RESTLESS;
            }
        }
        actions
    }

    /// When the kernel has to be asked again.
    pub(super) fn next_look(&self, now: Instant) -> Instant {
        now + match self.peers.values().any(PeerEntry::is_rotating) {
            _ if now < self.restless_until => AT_ONCE,
            true => SOON,
            false => LATER,
        }
    }

    /// The node that an address belongs to, if it is a peer.
    pub(super) fn node(&self, address: &Ipv6Addr) -> Option<NodeId> {
        self.nodes.get(address).copied()
    }

    /// Whether a node is a peer.
    pub(super) fn has(&self, node: &NodeId) -> bool {
        self.peers.contains_key(node)
    }

    /// Whether the session with a node is up.
    pub(super) fn is_up(&self, node: &NodeId, now: Instant) -> bool {
        self.peers.get(node).is_some_and(|entry| entry.is_up(now))
    }

    /// The own key, and the key of the node, by which packets go now.
    pub(super) fn pair(&self, node: &NodeId) -> Option<(WireguardKey, WireguardKey)> {
        self.own.zip(self.peers.get(node)?.carrier())
    }

    /// What is known of each peer.
    pub(super) fn status(&self, now: Instant) -> BTreeMap<NodeId, PeerStatus> {
        self.peers.iter().map(|(node, entry)| (*node, entry.status(now))).collect()
    }
}

/// The keys of each wanted node, without those that are this node's or another one's: the kernel
/// has one peer for a key. A node keeps a key that it has.
fn allowed_keys(
    own: &BTreeSet<WireguardKey>,
    wanted: &BTreeMap<NodeId, Peer>,
    present: &BTreeMap<NodeId, PeerEntry>,
) -> BTreeMap<NodeId, Vec<WireguardKey>> {
    let mut holders: BTreeMap<WireguardKey, NodeId> = BTreeMap::new();
    let has = |node: &NodeId, key: &WireguardKey| present.get(node).is_some_and(|entry| entry.has(key));
    let announced =
        || wanted.iter().flat_map(|(node, peer)| peer.keys.iter().take(MOST_KEYS).map(move |key| (*node, *key)));
    for (node, key) in announced().filter(|(node, key)| has(node, key)).chain(announced()) {
        holders.entry(key).or_insert(node);
    }
    let of = |(node, peer): (&NodeId, &Peer)| {
        let is_free = |key: &&WireguardKey| holders.get(*key) == Some(node) && !own.contains(*key);
        (*node, peer.keys.iter().take(MOST_KEYS).filter(is_free).copied().collect())
    };
    wanted.iter().map(of).collect()
}
