//! What the table decides, carried out on an interface in memory.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::id::NodeId;
use tokio::time::Instant;

use super::fake::FakeDevice;
use crate::wireguard::kernel::device::Device;
use crate::wireguard::kernel::table::{Action, Table};
use crate::wireguard::{Desired, MOST_PEERS, Peer, PeerProblem, WireguardKey, WireguardSecret};

const SECOND: Duration = Duration::from_secs(1);

fn node(number: u16) -> NodeId {
    let mut id = [7; 32];
    id[..2].copy_from_slice(&number.to_be_bytes());
    NodeId::from_public_key(id)
}

fn secret() -> WireguardSecret {
    WireguardSecret::generate(&mut rand::rng())
}

fn key() -> WireguardKey {
    secret().public()
}

fn place(number: u8) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, number], 7440))
}

/// A table with the interface that it describes.
struct Lab {
    table: Table,
    device: FakeDevice,
    now: Instant,
    own: Vec<WireguardSecret>,
    peers: BTreeMap<NodeId, Peer>,
    handshakes: u64,
}

impl Lab {
    fn new() -> Self {
        let now = Instant::now();
        let table = Table::new(node(0), vec![Ipv4Addr::new(203, 0, 113, 1).into()], now);
        let (device, peers) = (FakeDevice::default(), BTreeMap::new());
        Self { table, device, now, own: vec![secret()], peers, handshakes: 0 }
    }

    /// With one peer, which has these keys.
    fn with_peer(keys: &[WireguardKey], endpoints: &[SocketAddr]) -> Self {
        let mut lab = Self::new();
        lab.peers.insert(node(1), Peer { keys: keys.to_vec(), endpoints: endpoints.to_vec() });
        lab.apply();
        lab
    }

    fn apply(&mut self) {
        let own = self.own.iter().map(WireguardSecret::duplicate).collect();
        let actions = self.table.apply(Desired { own, peers: self.peers.clone() }, self.now);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::SetKey(secret) => self.device.set_key(&secret),
                Action::Add(key, place) => self.device.add_peer(&key, place),
                Action::Give(key, address) => self.device.give_address(&key, address),
                Action::Rest(key) => self.device.rest(&key),
                Action::Remove(key) => self.device.remove_peer(&key),
                Action::AddRoute(address) => self.device.add_route(address),
                Action::RemoveRoute(address) => self.device.remove_route(address),
            }
            .unwrap();
        }
    }

    /// Lets time pass and the kernel be asked.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        let measured = self.device.read().unwrap();
        let actions = self.table.measure(&measured, self.now);
        self.carry_out(actions);
    }

    /// A handshake by this key, from this place.
    fn shake(&mut self, key: &WireguardKey, from: SocketAddr) {
        self.handshakes += 1;
        let mut state = self.device.0.lock();
        let measured = &mut state.peers.get_mut(key).unwrap().measured;
        measured.handshake = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(self.handshakes));
        measured.endpoint = Some(from);
        measured.bytes_in += 148;
    }

    fn move_bytes(&self, key: &WireguardKey, bytes_in: u64, bytes_out: u64) {
        let mut state = self.device.0.lock();
        let measured = &mut state.peers.get_mut(key).unwrap().measured;
        measured.bytes_in += bytes_in;
        measured.bytes_out += bytes_out;
    }

    fn is_up(&self) -> bool {
        self.table.is_up(&node(1), self.now)
    }

    fn problem(&self) -> Option<PeerProblem> {
        self.table.status(self.now).remove(&node(1)).unwrap().problem
    }

    fn endpoint_of(&self, key: &WireguardKey) -> Option<SocketAddr> {
        self.device.0.lock().peers[key].place.endpoint
    }
}

#[test]
fn the_interface_has_the_desired_peers_and_routes_and_no_others() {
    let (one, other) = (key(), key());
    let mut lab = Lab::with_peer(&[one], &[place(2)]);
    lab.peers.insert(node(0), Peer { keys: vec![key()], endpoints: vec![place(9)] });
    lab.peers.insert(node(2), Peer { keys: vec![other], endpoints: Vec::new() });
    lab.apply();
    assert_eq!(lab.device.0.lock().key, Some(lab.own[0].public()));
    assert_eq!(lab.device.carriers().len(), 2, "this node itself is not a peer");
    assert_eq!(lab.table.node(&mesh_address(&node(2))), Some(node(2)));
    assert_eq!((lab.endpoint_of(&one), lab.endpoint_of(&other)), (Some(place(2)), None));
    let mut routes = lab.device.0.lock().routes.clone();
    routes.sort();
    let mut expected = vec![mesh_address(&node(1)), mesh_address(&node(2))];
    expected.sort();
    assert_eq!(routes, expected);
    // Evicted: neither the key nor the route stays.
    lab.peers.remove(&node(1));
    lab.apply();
    assert!(!lab.table.has(&node(1)) && lab.table.node(&mesh_address(&node(1))).is_none());
    assert_eq!(lab.device.carriers(), [other]);
    assert_eq!(lab.device.0.lock().routes, [mesh_address(&node(2))]);
    // Without an own key no peer is answered.
    lab.own.clear();
    lab.apply();
    assert!(lab.device.0.lock().peers.is_empty() && lab.device.0.lock().routes.is_empty());
}

#[test]
fn a_peer_is_up_while_it_answers() {
    let theirs = key();
    let mut lab = Lab::with_peer(&[theirs], &[place(2)]);
    assert!(!lab.is_up() && lab.problem().is_none());
    lab.shake(&theirs, place(2));
    lab.pass(SECOND);
    assert!(lab.is_up() && lab.problem().is_none());
    // An acknowledgement or a keepalive need not be answered.
    lab.move_bytes(&theirs, 0, 112 + 32);
    lab.pass(10 * SECOND);
    lab.pass(10 * SECOND);
    assert!(lab.is_up());
    lab.move_bytes(&theirs, 0, 1200);
    lab.pass(SECOND);
    lab.pass(3 * SECOND);
    assert!(lab.is_up());
    lab.pass(SECOND);
    assert!(!lab.is_up());
    assert_eq!(lab.problem(), Some(PeerProblem::NoAnswer { tried: place(2) }));
    let status = lab.table.status(lab.now).remove(&node(1)).unwrap();
    assert_eq!((status.bytes_in, status.bytes_out), (148, 1200 + 112 + 32));
    // It answers again. The counters begin at 0 with the peer that was added again, not their sum.
    lab.shake(&theirs, place(3));
    lab.pass(SECOND);
    let status = lab.table.status(lab.now).remove(&node(1)).unwrap();
    assert!(status.up && status.bytes_in == 296, "{status:?}");
    assert_eq!(status.endpoint, Some(place(3)), "it is where its packets come from");
    // Silence alone is an end, too.
    lab.pass(41 * SECOND);
    assert!(!lab.is_up());
}

#[test]
fn the_endpoints_are_tried_in_turn_with_growing_pauses_and_each_by_a_new_peer() {
    let theirs = key();
    let mut lab = Lab::with_peer(&[theirs], &[place(2), place(3)]);
    let mut tried = vec![lab.endpoint_of(&theirs)];
    let mut changes = Vec::new();
    for second in 1..=12 {
        lab.pass(SECOND);
        let now = lab.endpoint_of(&theirs);
        if tried.last() != Some(&now) {
            tried.push(now);
            changes.push(second);
        }
    }
    let (one, two) = (Some(place(2)), Some(place(3)));
    assert_eq!(tried, [one, two, one, two, one, two]);
    assert_eq!(changes, [1, 2, 4, 6, 10]);
    assert!(matches!(lab.problem(), Some(PeerProblem::NoAnswer { .. })));
    // New endpoints are tried at once, but only while the session is not up.
    lab.peers.get_mut(&node(1)).unwrap().endpoints = vec![place(4)];
    lab.apply();
    lab.pass(Duration::ZERO);
    assert_eq!(lab.endpoint_of(&theirs), Some(place(4)));
    lab.shake(&theirs, place(4));
    lab.pass(SECOND);
    lab.peers.get_mut(&node(1)).unwrap().endpoints = vec![place(5)];
    lab.apply();
    lab.pass(10 * SECOND);
    assert!(lab.is_up());
    assert_eq!(lab.endpoint_of(&theirs), Some(place(4)));
}

#[test]
fn a_peer_without_a_usable_endpoint_is_waited_for() {
    let theirs = key();
    let mut lab = Lab::with_peer(&[theirs], &[]);
    assert_eq!(lab.problem(), Some(PeerProblem::NoEndpoint));
    lab.pass(10 * SECOND);
    assert_eq!(lab.endpoint_of(&theirs), None);
    lab.shake(&theirs, place(8));
    lab.pass(SECOND);
    assert!(lab.is_up());
    let v6: IpAddr = "2001:db8::7".parse().unwrap();
    let lab = Lab::with_peer(&[theirs], &[SocketAddr::new(v6, 7440), SocketAddr::from(([127, 0, 0, 1], 80))]);
    assert_eq!(lab.problem(), Some(PeerProblem::NoUsableEndpoint));
}

#[test]
fn the_address_follows_the_key_that_the_peer_uses_in_both_orders_of_news() {
    for hears_first in [true, false] {
        let (old, new) = (key(), key());
        let mut lab = Lab::with_peer(&[old], &[place(2)]);
        lab.shake(&old, place(2));
        lab.pass(SECOND);
        lab.peers.get_mut(&node(1)).unwrap().keys = vec![old, new];
        lab.apply();
        assert_eq!(lab.device.carriers(), [old]);
        assert_eq!(lab.endpoint_of(&new), None, "a key that is not in use yet is only answered");
        if hears_first {
            // By the clock of this node the new key is in use, but the peer still uses the old one.
            lab.peers.get_mut(&node(1)).unwrap().keys = vec![new, old];
            lab.apply();
            lab.move_bytes(&old, 500, 500);
            lab.pass(SECOND);
            assert_eq!(lab.device.carriers(), [old]);
        }
        lab.shake(&new, place(2));
        lab.pass(Duration::from_millis(100));
        assert_eq!(lab.device.carriers(), [new]);
        assert!(lab.device.0.lock().peers[&old].is_resting);
        assert!(lab.is_up(), "the change interrupts");
        let pair = lab.table.pair(&node(1));
        assert_eq!(pair, Some((lab.own[0].public(), new)));
        lab.peers.get_mut(&node(1)).unwrap().keys = vec![new];
        lab.apply();
        assert!(lab.is_up() && lab.device.0.lock().peers.len() == 1);
    }
}

#[test]
fn if_the_address_went_to_a_key_by_which_nothing_comes_it_goes_back_once() {
    let (old, new) = (key(), key());
    let mut lab = Lab::with_peer(&[old, new], &[place(2)]);
    // Both have sessions, and the peer sends by the old one.
    lab.shake(&old, place(2));
    lab.pass(SECOND);
    lab.shake(&new, place(2));
    lab.pass(SECOND);
    assert_eq!(lab.device.carriers(), [new]);
    lab.move_bytes(&new, 0, 600);
    lab.pass(SECOND);
    lab.pass(SECOND);
    assert_eq!(lab.device.carriers(), [old]);
    lab.move_bytes(&old, 300, 300);
    lab.pass(SECOND);
    assert!(lab.is_up());
    // If the peer is dead, both were tried, and the session is down in time.
    lab.move_bytes(&old, 0, 600);
    lab.pass(SECOND);
    for _ in 0..5 {
        lab.pass(SECOND);
    }
    assert!(!lab.is_up());
}

#[test]
fn a_key_that_is_dropped_while_it_carries_hands_over_to_one_with_a_session() {
    let (old, new) = (key(), key());
    let mut lab = Lab::with_peer(&[old, new], &[place(2)]);
    lab.shake(&new, place(2));
    lab.shake(&old, place(2));
    lab.pass(SECOND);
    lab.shake(&old, place(2));
    lab.pass(SECOND);
    assert_eq!(lab.device.carriers(), [old]);
    lab.peers.get_mut(&node(1)).unwrap().keys = vec![new];
    lab.apply();
    assert_eq!(lab.device.carriers(), [new]);
    assert!(lab.device.0.lock().peers[&new].place.endpoint.is_none(), "added again: its session was lost");
    // Without a session it is looked for where the node was last.
    let third = key();
    lab.peers.get_mut(&node(1)).unwrap().keys = vec![third];
    lab.apply();
    assert_eq!((lab.device.carriers(), lab.endpoint_of(&third)), (vec![third], Some(place(2))));
}

#[test]
fn a_rotation_of_the_own_key_changes_the_key_and_nothing_else() {
    let theirs = key();
    let mut lab = Lab::with_peer(&[theirs], &[place(2)]);
    lab.shake(&theirs, place(2));
    lab.pass(SECOND);
    lab.own.push(secret());
    lab.apply();
    assert_eq!(lab.device.0.lock().keys_set, 1, "the successor is not in use yet");
    lab.own.reverse();
    lab.apply();
    assert_eq!(lab.device.0.lock().key, Some(lab.own[0].public()));
    lab.own.truncate(1);
    lab.apply();
    assert_eq!(lab.device.0.lock().keys_set, 2);
    assert!(lab.is_up());
    let measured = lab.device.0.lock().peers[&theirs].measured;
    assert!(measured.handshake.is_some(), "the peer was added again");
}

#[test]
fn a_key_is_one_nodes_alone() {
    let (theirs, own) = (key(), secret());
    let mut lab = Lab::new();
    lab.own = vec![secret(), own.duplicate()];
    lab.peers.insert(node(2), Peer { keys: vec![theirs], endpoints: vec![place(2)] });
    lab.apply();
    lab.peers.insert(node(1), Peer { keys: vec![theirs], endpoints: vec![place(3)] });
    lab.peers.insert(node(3), Peer { keys: vec![own.public()], endpoints: vec![place(3)] });
    lab.apply();
    assert_eq!(lab.table.pair(&node(2)).map(|(_, theirs)| theirs), Some(theirs));
    assert_eq!(lab.problem(), Some(PeerProblem::KeyInUse));
    assert_eq!(lab.table.pair(&node(1)), None);
    assert_eq!(lab.table.pair(&node(3)), None);
    // It is free once its holder has gone.
    lab.peers.remove(&node(2));
    lab.apply();
    assert_eq!(lab.table.pair(&node(1)).map(|(_, theirs)| theirs), Some(theirs));
}

#[test]
fn the_number_of_peers_is_bounded() {
    let mut lab = Lab::new();
    for number in 1..=u16::try_from(MOST_PEERS).unwrap() + 9 {
        lab.peers.insert(node(number), Peer { keys: vec![key()], endpoints: Vec::new() });
    }
    lab.apply();
    assert_eq!(lab.device.0.lock().peers.len(), MOST_PEERS);
}

#[test]
fn the_kernel_is_asked_often_only_while_something_changes() {
    let (old, new) = (key(), key());
    let mut lab = Lab::with_peer(&[old], &[place(2)]);
    let pause = |lab: &Lab| lab.table.next_look(lab.now) - lab.now;
    assert_eq!(pause(&lab), Duration::from_millis(100));
    lab.now += 11 * SECOND;
    assert_eq!(pause(&lab), SECOND);
    lab.peers.get_mut(&node(1)).unwrap().keys = vec![old, new];
    lab.apply();
    lab.now += 11 * SECOND;
    assert_eq!(pause(&lab), Duration::from_millis(250));
}
