//! Tests of the plan: rotation, eviction, addresses, and members that claim what is not theirs.

use super::*;
use crate::wireguard::{OVERLAP, WireguardSecret};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 24 * 3600;

fn cluster() -> ClusterId {
    ClusterId::from_public_key([7; 32])
}

fn node(n: u8) -> NodeId {
    NodeId::from_public_key([n; 32])
}

fn secret() -> WireguardSecret {
    WireguardSecret::generate(&mut rand::rng())
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A node with its plan, and what it sees of the others.
struct TestNode {
    id: NodeId,
    plan: WireguardPlan,
    own: OwnKeys,
    ring: Vec<DiscoverySecret>,
    endpoints: Vec<SocketAddr>,
    listens: Vec<SocketAddr>,
    proven: BTreeSet<NodeId>,
    sealed: BTreeMap<NodeId, VarBytes>,
    unix: u64,
    /// The peers that were applied last, and how often the plan has changed them.
    peers: BTreeMap<NodeId, Peer>,
    own_keys: Vec<WireguardKey>,
    applied: usize,
    announced: usize,
    /// What it announced last.
    record: Option<VarBytes>,
}

impl TestNode {
    fn new(n: u8, discovery: &DiscoverySecret) -> Self {
        let endpoint = SocketAddr::from(([203, 0, 113, n], 7440));
        Self {
            id: node(n),
            plan: WireguardPlan::new(cluster(), node(n)),
            own: OwnKeys::new(secret(), NOW),
            ring: vec![discovery.duplicate()],
            endpoints: vec![endpoint],
            listens: vec![endpoint],
            proven: BTreeSet::new(),
            sealed: BTreeMap::new(),
            unix: NOW,
            peers: BTreeMap::new(),
            own_keys: Vec::new(),
            applied: 0,
            announced: 0,
            record: None,
        }
    }

    /// One step; returns what the node announces, sealed.
    fn step(&mut self) -> Option<VarBytes> {
        let situation = Situation {
            sealed: &self.sealed,
            ring: &self.ring,
            own: &self.own,
            proven: &self.proven,
            listens: &self.listens,
            endpoints: &self.endpoints,
            unix: self.unix,
        };
        let mut sealed = None;
        for action in self.plan.step(&situation) {
            match action {
                PlanAction::Apply(desired) => {
                    self.own_keys = desired.own.iter().map(WireguardSecret::public).collect();
                    self.peers = desired.peers;
                    self.applied += 1;
                }
                PlanAction::Announce(announcement) => {
                    self.announced += 1;
                    sealed =
                        sealing::seal(&announcement, &self.ring[0], cluster(), self.id, [self.announced as u8; 12]);
                }
            }
        }
        self.record = sealed.clone().or(self.record.take());
        sealed
    }

    fn endpoints_of(&self, node: NodeId) -> &[SocketAddr] {
        &self.peers[&node].endpoints
    }
}

/// Passes what one node announces to the other.
fn tell(from: &mut TestNode, to: &mut TestNode) {
    from.step();
    to.sealed.insert(from.id, from.record.clone().expect("it has announced something"));
    to.step();
}

fn pair() -> (TestNode, TestNode) {
    let discovery = DiscoverySecret::generate(&mut rand::rng());
    let (mut one, mut two) = (TestNode::new(1, &discovery), TestNode::new(2, &discovery));
    tell(&mut one, &mut two);
    tell(&mut two, &mut one);
    (one, two)
}

#[test]
fn members_that_announce_are_peers_and_nothing_is_done_twice() {
    let (mut one, mut two) = pair();
    assert_eq!(one.endpoints_of(two.id), two.endpoints);
    assert_eq!(two.endpoints_of(one.id), one.endpoints);
    assert_eq!(one.peers[&two.id].keys, two.own_keys);
    let before = (one.applied, one.announced);
    for _ in 0..3 {
        assert!(one.step().is_none() && two.step().is_none());
    }
    assert_eq!((one.applied, one.announced), before);
}

#[test]
fn an_evicted_peer_vanishes_at_once() {
    let (mut one, two) = pair();
    one.sealed.remove(&two.id);
    one.step();
    assert!(one.peers.is_empty());
}

#[test]
fn an_evicted_node_cannot_read_what_is_announced_after_the_rotation() {
    let (mut one, mut two) = pair();
    // The first rotates the discovery key; the second stands for the evicted node.
    one.ring.insert(0, DiscoverySecret::generate(&mut rand::rng()));
    one.own = OwnKeys::new(secret(), NOW);
    let sealed = one.step().expect("sealed again with the new key");
    two.sealed.insert(one.id, sealed);
    two.step();
    assert!(two.peers.is_empty());
    assert_eq!(two.plan.refused()[&one.id], NotAPeer::Sealed(SealError::Closed));
    // A member gets the new key, and then reads it.
    two.ring.insert(0, one.ring[0].duplicate());
    two.step();
    assert_eq!(two.peers[&one.id].keys, one.own_keys);
    assert!(two.plan.refused().is_empty());
}

/// Property: over three days, with news that takes up to ten minutes and clocks ten minutes apart,
/// each node always accepts the key that the other one uses, and uses one that it accepts.
#[test]
fn both_sides_of_a_rotation_always_have_a_common_key() {
    let (mut one, mut two) = pair();
    let mut late = [None, None];
    let mut used = BTreeSet::new();
    for minute in 0..3 * 24 * 60 {
        let now = NOW + minute * 60;
        (one.unix, two.unix) = (now, now + 600);
        one.own.rotate(one.unix, secret);
        two.own.rotate(two.unix, secret);
        if let Some(sealed) = one.step() {
            late[0] = Some((minute + 10, sealed));
        }
        if let Some(sealed) = two.step() {
            late[1] = Some((minute + 10, sealed));
        }
        let (first, second) = (one.id, two.id);
        for (waiting, from, to) in [(0, first, &mut two), (1, second, &mut one)] {
            if let Some((_, sealed)) = late[waiting].take_if(|(due, _)| *due <= minute) {
                to.sealed.insert(from, sealed);
            }
        }
        for (from, to) in [(&one, &two), (&two, &one)] {
            assert!(to.peers[&from.id].keys.contains(&from.own_keys[0]), "minute {minute}: unknown to the peer");
            assert!(from.own.has(&to.peers[&from.id].keys[0]), "minute {minute}: no longer accepted");
        }
        used.insert(one.own_keys[0]);
    }
    assert_eq!(used.len() as u64, 3 * DAY / DAY, "one key a day");
    assert!(OVERLAP.as_secs() > 2 * 600);
}

#[test]
fn new_addresses_wait_until_the_route_is_not_proven() {
    let (mut one, mut two) = pair();
    let old = two.endpoints.clone();
    one.proven.insert(two.id);
    two.endpoints = vec![address("198.51.100.2:9")];
    tell(&mut two, &mut one);
    assert_eq!(one.endpoints_of(two.id), old);
    one.proven.clear();
    one.step();
    assert_eq!(one.endpoints_of(two.id), two.endpoints);
}

#[test]
fn an_address_of_this_host_is_not_sent_to() {
    let (mut one, mut two) = pair();
    two.endpoints = vec![address("127.0.0.1:22"), one.endpoints[0], address("198.51.100.2:9")];
    tell(&mut two, &mut one);
    assert_eq!(one.endpoints_of(two.id), [address("198.51.100.2:9")]);
    // Several nodes on one host, all on loopback.
    one.listens = vec![address("127.0.0.1:7440")];
    one.step();
    assert_eq!(one.endpoints_of(two.id), [address("127.0.0.1:22"), address("198.51.100.2:9")]);
}

#[test]
fn a_member_that_claims_the_key_of_another_takes_no_peer_away() {
    let (mut one, two) = pair();
    let mut hostile = TestNode::new(3, &one.ring[0]);
    hostile.own = OwnKeys::from_bytes(&two.own.to_bytes()).unwrap();
    tell(&mut hostile, &mut one);
    assert_eq!(one.peers.keys().copied().collect::<Vec<_>>(), [two.id]);
    assert_eq!(one.plan.refused()[&hostile.id], NotAPeer::SharedKey);
    // To claim this node's own key gains nothing either.
    hostile.own = OwnKeys::from_bytes(&one.own.to_bytes()).unwrap();
    tell(&mut hostile, &mut one);
    assert_eq!((one.peers.len(), &one.plan.refused()[&hostile.id]), (1, &NotAPeer::SharedKey));
    // A node that hears both claims at once cannot tell which is true, and believes neither.
    hostile.own = OwnKeys::from_bytes(&two.own.to_bytes()).unwrap();
    tell(&mut hostile, &mut one);
    let mut fresh = TestNode::new(4, &one.ring[0]);
    fresh.sealed = one.sealed.clone();
    fresh.step();
    assert_eq!((fresh.peers.len(), fresh.plan.refused().len()), (0, 2));
}

#[test]
fn a_member_whose_record_cannot_be_opened_is_no_peer() {
    let (mut one, two) = pair();
    one.sealed.insert(two.id, VarBytes(vec![1; 100]));
    one.step();
    assert_eq!(one.plan.refused()[&two.id], NotAPeer::Sealed(SealError::Closed));
    assert!(one.peers.is_empty());
}
