//! The machine in the hands of hostile members, and of strangers who see the datagrams.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use defguard_boringtun::noise::{Tunn, TunnResult};
use defguard_boringtun::x25519::{PublicKey, StaticSecret};
use rustbalance_gossip::address::{MESH_PORT, mesh_address};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::lab::{Flying, Lab};
use crate::counters::Counter;
use crate::wireguard::userspace::gate::COOKIE_AFTER;
use crate::wireguard::userspace::machine::{Action, Event};
use crate::wireguard::userspace::stack::MOST_STREAMS;
use crate::wireguard::{Peer, PeerProblem, WireguardSecret};

const SECOND: Duration = Duration::from_secs(1);

/// A member with WireGuard of its own, which sends what it likes.
struct Member {
    tunn: Tunn,
    address: SocketAddr,
}

impl Member {
    /// Takes the place of a node of the lab, towards another one.
    fn instead_of(lab: &Lab, at: usize, to: usize) -> Self {
        let secret = StaticSecret::from(*lab.nodes[at].key.as_bytes());
        let peer = PublicKey::from(*lab.nodes[to].key.public().as_bytes());
        Self { tunn: Tunn::new(secret, peer, None, None, 7, None), address: lab.nodes[at].address }
    }

    fn initiation(&mut self) -> Vec<u8> {
        match self.tunn.format_handshake_initiation(&mut [0; 2048], true) {
            TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// Sends a datagram to a node, and returns its answers.
    fn send(&self, lab: &mut Lab, to: usize, bytes: &[u8]) -> Vec<Vec<u8>> {
        let actions = lab.nodes[to].machine.handle(Event::Datagram { from: self.address, bytes }, lab.now);
        let mut answers = Vec::new();
        for action in actions {
            match action {
                Action::Send(to, bytes) if to == self.address => answers.push(bytes),
                Action::Arrived(id, binding) => lab.nodes[to].arrived.push((id, binding)),
                _ => {}
            }
        }
        answers
    }

    fn handshake(&mut self, lab: &mut Lab, to: usize) {
        let initiation = self.initiation();
        let answers = self.send(lab, to, &initiation);
        let response = answers.iter().find(|answer| answer.len() == 92).expect("no response");
        let mut buffer = [0; 2048];
        let confirmed = match self.tunn.decapsulate(None, response, &mut buffer) {
            TunnResult::WriteToNetwork(keepalive) => keepalive.to_vec(),
            other => panic!("{other:?}"),
        };
        self.send(lab, to, &confirmed);
    }

    /// Sends a packet through the tunnel, and returns the answers, encrypted.
    fn tunnelled(&mut self, lab: &mut Lab, to: usize, packet: &[u8]) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2048];
        let datagram = match self.tunn.encapsulate(packet, &mut buffer) {
            TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
            other => panic!("{other:?}"),
        };
        self.send(lab, to, &datagram)
    }
}

/// A SYN, with valid checksums.
fn syn(from: Ipv6Addr, to: Ipv6Addr, ports: (u16, u16)) -> Vec<u8> {
    let tcp = TcpRepr {
        src_port: ports.0,
        dst_port: ports.1,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: Some(1220),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let payload_len = tcp.buffer_len();
    let ip = Ipv6Repr { src_addr: from, dst_addr: to, next_header: IpProtocol::Tcp, payload_len, hop_limit: 64 };
    let mut packet = vec![0; ip.buffer_len() + payload_len];
    ip.emit(&mut Ipv6Packet::new_unchecked(&mut packet[..]));
    let mut segment = TcpPacket::new_unchecked(&mut packet[ip.buffer_len()..]);
    tcp.emit(&mut segment, &from.into(), &to.into(), &ChecksumCapabilities::default());
    packet
}

/// Three nodes; the first is attacked, the last is hostile and in the hands of the test.
fn attacked() -> (Lab, Member) {
    let mut lab = Lab::introduced(3);
    let mut member = Member::instead_of(&lab, 2, 0);
    lab.nodes.pop();
    lab.settle();
    member.handshake(&mut lab, 0);
    (lab, member)
}

const HOSTILE: u8 = 3;

fn mesh(number: u8) -> Ipv6Addr {
    mesh_address(&rustbalance_gossip::id::NodeId::from_public_key([number; 32]))
}

#[test]
fn a_member_reaches_the_links_as_itself_and_nothing_else() {
    let (mut lab, mut member) = attacked();
    let (own, victim, other) = (mesh(HOSTILE), mesh(1), mesh(2));
    let mut udp = syn(own, victim, (50_000, MESH_PORT));
    udp[6] = 17;
    let refused = [
        syn(other, victim, (50_000, MESH_PORT)),
        syn(own, other, (50_000, MESH_PORT)),
        syn(own, victim, (50_000, 22)),
        syn(own, Ipv6Addr::LOCALHOST, (50_000, MESH_PORT)),
        udp,
        vec![0x60; 39],
    ];
    for packet in &refused {
        assert!(member.tunnelled(&mut lab, 0, packet).is_empty());
    }
    // The last is not even a packet: boringtun drops it, and it counts as junk.
    assert_eq!(lab.nodes[0].count(Counter::WireguardForbidden), refused.len() as u64 - 1);
    assert_eq!(lab.nodes[0].count(Counter::WireguardJunk), 1);
    assert_eq!(member.tunnelled(&mut lab, 0, &syn(own, victim, (50_000, MESH_PORT))).len(), 1, "no SYN-ACK");
}

#[test]
fn half_open_streams_of_a_member_are_bounded_and_end() {
    let (mut lab, mut member) = attacked();
    for port in 0..100 {
        member.tunnelled(&mut lab, 0, &syn(mesh(HOSTILE), mesh(1), (50_000 + port, MESH_PORT)));
    }
    assert_eq!(lab.nodes[0].count(Counter::WireguardStreamsOverLimit), 100 - MOST_STREAMS as u64);
    // Others are not affected.
    lab.open(1, 0);
    lab.run(10 * SECOND);
    assert_eq!(lab.nodes[0].arrived.len(), 1);
    let again = member.tunnelled(&mut lab, 0, &syn(mesh(HOSTILE), mesh(1), (60_000, MESH_PORT)));
    assert!(!again.is_empty(), "the places are still taken");
}

/// The datagrams of a length that node 1 has sent to node 0.
fn captured(lab: &Lab, length: usize) -> Vec<Flying> {
    let (from, to) = (lab.nodes[1].address, lab.nodes[0].address);
    let sent = lab.sent.iter().map(|(_, flying)| flying).filter(|flying| flying.0 == from && flying.1 == to);
    sent.filter(|flying| flying.2.len() == length).cloned().collect()
}

#[test]
fn replays_change_nothing() {
    let mut lab = Lab::introduced(2);
    lab.settle();
    let (near, far) = lab.open(1, 0);
    lab.say((1, near), (0, far), b"some bytes", SECOND);
    let thief = SocketAddr::from(([203, 0, 113, 7], 7));
    let all: Vec<_> = [148, 92, 32].into_iter().flat_map(|length| captured(&lab, length)).collect();
    assert!(!all.is_empty());
    let before = lab.nodes[0].count(Counter::WireguardJunk);
    for (_, _, bytes) in &all {
        let actions = lab.nodes[0].machine.handle(Event::Datagram { from: thief, bytes }, lab.now);
        assert!(actions.iter().all(|action| !matches!(action, Action::Send(to, _) if *to == thief)), "{actions:?}");
    }
    assert_eq!(lab.nodes[0].count(Counter::WireguardJunk) - before, all.len() as u64);
    assert_eq!(lab.status(0, 1).endpoint, Some(lab.nodes[1].address));
    assert_eq!(lab.say((1, near), (0, far), b"more", SECOND), b"more");
}

#[test]
fn changed_datagrams_do_no_harm() {
    let mut lab = Lab::introduced(2);
    lab.settle();
    let (near, far) = lab.open(1, 0);
    lab.say((1, near), (0, far), &[7; 3000], SECOND);
    let sizes = lab.nodes[0].machine.sizes();
    let genuine: Vec<_> = lab.sent.iter().map(|(_, (_, _, bytes))| bytes.clone()).take(40).collect();
    for bytes in genuine {
        for at in (0..bytes.len()).step_by(5) {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            lab.handle(0, Event::Datagram { from: lab.nodes[1].address, bytes: &changed });
            lab.handle(0, Event::Datagram { from: lab.nodes[1].address, bytes: &bytes[..at] });
        }
    }
    assert_eq!(lab.nodes[0].machine.sizes(), sizes);
    lab.run(SECOND);
    assert_eq!(lab.say((1, near), (0, far), b"more", SECOND), b"more");
}

#[test]
fn a_flood_of_handshakes_is_answered_by_cookies_and_others_get_in() {
    let (mut lab, mut member) = attacked();
    let mut cookies = 0;
    for _ in 0..3 * COOKIE_AFTER {
        let initiation = member.initiation();
        cookies += member.send(&mut lab, 0, &initiation).iter().filter(|answer| answer.len() == 64).count();
    }
    assert!(cookies as u64 > COOKIE_AFTER, "{cookies} cookies");
    assert!(lab.nodes[0].count(Counter::WireguardOverRate) > COOKIE_AFTER);
    // Another node restarts during the flood, and comes in with a cookie at its second try.
    let id = lab.nodes[0].id;
    let peer = lab.nodes[0].peer();
    lab.apply(1, BTreeMap::new());
    lab.apply(1, BTreeMap::from([(id, peer)]));
    let took = lab.run_until("the session is up", |lab| lab.is_up(1, 0));
    assert!(took <= 3 * SECOND, "{took:?}");
}

#[test]
fn a_stranger_gets_no_answer_at_all() {
    let mut lab = Lab::introduced(2);
    lab.settle();
    let key = WireguardSecret::generate(&mut rand::rng());
    let knows_the_key = Tunn::new(
        StaticSecret::from(*key.as_bytes()),
        PublicKey::from(*lab.nodes[0].key.public().as_bytes()),
        None,
        None,
        9,
        None,
    );
    let mut stranger = Member { tunn: knows_the_key, address: SocketAddr::from(([203, 0, 113, 7], 7)) };
    let initiation = stranger.initiation();
    assert!(stranger.send(&mut lab, 0, &initiation).is_empty());
    assert_eq!(lab.nodes[0].count(Counter::WireguardUnknownKey), 1);
    let mut for_another = initiation;
    for_another[120] ^= 1;
    assert!(stranger.send(&mut lab, 0, &for_another).is_empty());
    assert_eq!(lab.nodes[0].count(Counter::WireguardJunk), 1);
}

#[test]
fn a_member_that_announces_the_key_of_another_gains_and_breaks_nothing() {
    let mut lab = Lab::introduced(3);
    lab.settle();
    let (near, far) = lab.open(1, 0);
    let (honest, thief) = (lab.nodes[1].id, lab.nodes[2].id);
    let stolen = Peer { keys: vec![lab.nodes[1].key.public(), lab.nodes[0].key.public()], ..lab.nodes[2].peer() };
    lab.apply(0, BTreeMap::from([(honest, lab.nodes[1].peer()), (thief, stolen)]));
    lab.run(SECOND);
    assert_eq!(lab.say((1, near), (0, far), b"still here", SECOND), b"still here");
    assert_eq!(lab.status(0, 2).problem, Some(PeerProblem::KeyInUse));
    assert!(!lab.is_up(0, 2));
}

#[test]
fn a_wrong_endpoint_of_a_member_draws_few_datagrams_and_none_to_this_host() {
    let mut lab = Lab::new(2);
    let never = ["127.0.0.1:53", "0.0.0.0:9", "224.0.0.1:9"];
    let endpoints = never.iter().map(|text| text.parse().unwrap()).collect();
    let peer = Peer { endpoints, ..lab.nodes[1].peer() };
    lab.apply(0, BTreeMap::from([(lab.nodes[1].id, peer)]));
    lab.run(60 * SECOND);
    assert!(lab.sent.is_empty());
    assert_eq!(lab.status(0, 1).problem, Some(PeerProblem::NoUsableEndpoint));
    for other in ["255.255.255.255:9", "192.0.2.77:0", "[2001:db8::1]:9", "[::ffff:192.0.2.1]:9"] {
        let peer = Peer { endpoints: vec![other.parse().unwrap()], ..lab.nodes[1].peer() };
        lab.apply(0, BTreeMap::from([(lab.nodes[1].id, peer)]));
        lab.run(SECOND);
        assert!(lab.sent.is_empty(), "{other}");
    }
    // Of another host: some handshakes a minute, 148 bytes each.
    let peer = Peer { endpoints: vec!["198.51.100.1:53".parse().unwrap()], ..lab.nodes[1].peer() };
    lab.apply(0, BTreeMap::from([(lab.nodes[1].id, peer)]));
    let start = lab.now;
    lab.run(60 * SECOND);
    assert!((5..=12).contains(&lab.sent_since(0, start)), "{}", lab.sent_since(0, start));
}
