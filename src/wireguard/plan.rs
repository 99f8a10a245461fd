//! Decides what the engine works towards and what this node announces. No IO, no clock, no
//! randomness.
//!
//! The peers are the members whose announcement this node can open. They come and go with the
//! membership: an evicted node leaves with the next step. Its keys follow its announcement
//! at once. Its addresses do so only while the route to it is not proven: a tunnel that works
//! follows a peer that moves by itself, and a change would interrupt it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::id::{ClusterId, NodeId};

use super::{Announcement, Desired, OwnKeys, Peer, SealError, WireguardKey, sealing};
use crate::keys::{DiscoveryPublic, DiscoverySecret};

/// What a step decides by.
pub struct Situation<'a> {
    /// The sealed announcement of each member that has one.
    pub sealed: &'a BTreeMap<NodeId, VarBytes>,
    /// This node's discovery keys, newest first.
    pub ring: &'a [DiscoverySecret],
    /// This node's keys.
    pub own: &'a OwnKeys,
    /// The peers to which the route is proven.
    pub proven: &'a BTreeSet<NodeId>,
    /// Where this node listens.
    pub listens: &'a [SocketAddr],
    /// The addresses to announce.
    pub endpoints: &'a [SocketAddr],
    /// Seconds since the Unix epoch.
    pub unix: u64,
}

/// What has to be done.
#[derive(Debug)]
pub enum PlanAction {
    /// Give this to the engine.
    Apply(Desired),
    /// Seal this with the newest discovery key, and announce it.
    Announce(Announcement),
}

/// Why a member that announces WireGuard is not a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAPeer {
    /// Its announcement cannot be used.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// Another member announces one of its keys, or it announces one of this node's: one of the two
    /// claims a key that is not its own.
    #[error("its WireGuard key is announced by another member too: one of the two is hostile or a copy")]
    SharedKey,
}

/// The members' announcements and what was decided last. One plan serves one engine: a new engine
/// needs a new plan.
pub struct WireguardPlan {
    cluster: ClusterId,
    me: NodeId,
    /// The ring that the announcements were opened with.
    ring: Vec<DiscoveryPublic>,
    /// What was sealed, and what it contains.
    opened: BTreeMap<NodeId, (VarBytes, Result<Announcement, SealError>)>,
    /// The node that each key belongs to.
    holders: BTreeMap<WireguardKey, NodeId>,
    refused: BTreeMap<NodeId, NotAPeer>,
    /// The addresses of each peer that are in use.
    endpoints: BTreeMap<NodeId, Vec<SocketAddr>>,
    /// The own keys and the peers, as the engine knows them.
    applied: Option<(Vec<WireguardKey>, BTreeMap<NodeId, Peer>)>,
    announced: Option<(Announcement, Option<DiscoveryPublic>)>,
}

impl WireguardPlan {
    /// A plan for the node `me`.
    pub fn new(cluster: ClusterId, me: NodeId) -> Self {
        Self {
            cluster,
            me,
            ring: Vec::new(),
            opened: BTreeMap::new(),
            holders: BTreeMap::new(),
            refused: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            applied: None,
            announced: None,
        }
    }

    /// Why members that announce WireGuard are not peers, as of the last step.
    pub fn refused(&self) -> &BTreeMap<NodeId, NotAPeer> {
        &self.refused
    }

    /// Compares the situation with what was decided last, and returns what has to change.
    pub fn step(&mut self, situation: &Situation<'_>) -> Vec<PlanAction> {
        let mut actions = Vec::new();
        self.open(situation);
        self.settle_keys(situation.own);
        let announcement = Announcement { keys: situation.own.announced(), endpoints: situation.endpoints.to_vec() };
        let wanted = (announcement.keys_at(situation.unix), self.peers(situation));
        if self.applied.as_ref() != Some(&wanted) {
            let own = situation.own.secrets_at(situation.unix);
            actions.push(PlanAction::Apply(Desired { own, peers: wanted.1.clone() }));
            self.applied = Some(wanted);
        }
        let announced = (announcement, self.ring.first().copied());
        if self.announced.as_ref() != Some(&announced) {
            actions.push(PlanAction::Announce(announced.0.clone()));
            self.announced = Some(announced);
        }
        actions
    }

    /// Opens what is new. What could not be opened is tried again with each new ring.
    fn open(&mut self, situation: &Situation<'_>) {
        let ring: Vec<_> = situation.ring.iter().map(DiscoverySecret::public).collect();
        let is_new_ring = self.ring != ring;
        self.ring = ring;
        self.opened.retain(|node, (sealed, content)| {
            situation.sealed.get(node) == Some(sealed) && !(is_new_ring && *content == Err(SealError::Closed))
        });
        let others = situation.sealed.iter().filter(|(node, _)| **node != self.me);
        for (node, sealed) in others {
            if !self.opened.contains_key(node) {
                let content = sealing::open(sealed, situation.ring, self.cluster, *node);
                self.opened.insert(*node, (sealed.clone(), content));
            }
        }
    }

    /// Decides which node each key belongs to. A node keeps a key that it had before another one
    /// claimed it; of several new claims none counts.
    fn settle_keys(&mut self, own: &OwnKeys) {
        self.refused.clear();
        let mut claims: BTreeMap<WireguardKey, Vec<NodeId>> = BTreeMap::new();
        for (node, (_, content)) in &self.opened {
            match content {
                Ok(announcement) => {
                    announcement.keys.iter().for_each(|dated| claims.entry(dated.key).or_default().push(*node));
                }
                Err(error) => drop(self.refused.insert(*node, error.clone().into())),
            }
        }
        let before = std::mem::take(&mut self.holders);
        for (key, nodes) in claims {
            let holder = match nodes.as_slice() {
                _ if own.has(&key) => Some(self.me),
                [only] => Some(*only),
                several => before.get(&key).copied().filter(|holder| several.contains(holder)),
            };
            self.holders.extend(holder.map(|holder| (key, holder)));
            let losers = nodes.into_iter().filter(|node| Some(*node) != holder);
            self.refused.extend(losers.map(|node| (node, NotAPeer::SharedKey)));
        }
    }

    fn peers(&mut self, situation: &Situation<'_>) -> BTreeMap<NodeId, Peer> {
        let (opened, refused) = (&self.opened, &self.refused);
        let announced = opened.iter().filter(|(node, _)| !refused.contains_key(*node));
        let announced: BTreeMap<_, _> =
            announced.filter_map(|(node, (_, content))| Some((*node, content.as_ref().ok()?))).collect();
        self.endpoints.retain(|node, _| announced.contains_key(node) && situation.proven.contains(node));
        let peer = |(node, announcement): (NodeId, &Announcement)| {
            let usable = announcement.endpoints.iter().copied().filter(|endpoint| is_usable(endpoint, situation));
            let endpoints = self.endpoints.entry(node).or_insert_with(|| usable.collect()).clone();
            (node, Peer { keys: announcement.keys_at(situation.unix), endpoints })
        };
        announced.into_iter().map(peer).collect()
    }
}

/// Whether this node may send to an address that a member announces. Loopback addresses are for
/// nodes that listen on one themselves, or members could have this node send to services of its
/// own host.
fn is_usable(endpoint: &SocketAddr, situation: &Situation<'_>) -> bool {
    let is_own = situation.listens.contains(endpoint) || situation.endpoints.contains(endpoint);
    let is_local = situation.listens.iter().any(|listens| listens.ip().is_loopback());
    !is_own && (is_local || !endpoint.ip().is_loopback())
}

#[cfg(test)]
mod tests;
