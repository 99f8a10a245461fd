//! Datagrams at the WireGuard port, and the packets that a hostile peer sends through its tunnel.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use defguard_boringtun::noise::{Tunn, TunnResult};
use defguard_boringtun::x25519::{PublicKey, StaticSecret};
use rustbalance::counters::{Counter, Counters};
use rustbalance::wireguard::userspace::machine::{Action, Event, Machine};
use rustbalance::wireguard::{Desired, Peer, WireguardSecret};
use rustbalance_gossip::address::{MESH_PORT, mesh_address};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::Seed;
use super::script::{Script, ScriptBuilder};
use super::world::world;

/// The address of the peer.
const PEER: ([u8; 4], u16) = ([192, 0, 2, 2], 51_820);
/// Length of the headers of IPv6 and TCP, without options.
const HEADERS: usize = 60;

fn secret(number: u8) -> WireguardSecret {
    WireguardSecret::from_bytes(&Zeroizing::new([number; 32]))
}

/// The WireGuard of the peer, node 1.
fn peer() -> Tunn {
    let own = PublicKey::from(*secret(1).public().as_bytes());
    Tunn::new(StaticSecret::from([2; 32]), own, None, None, 5, None)
}

fn sent(result: TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// Node 0, whose only peer is node 1.
struct Node {
    machine: Machine,
    counters: Counters,
    now: Instant,
}

impl Node {
    fn new() -> Self {
        let (counters, now) = (Counters::default(), Instant::now());
        let bound = vec![[192, 0, 2, 1].into()];
        let mut machine = Machine::new(world().nodes[0], bound, counters.clone(), [3; 32], now);
        let peer = Peer { keys: vec![secret(2).public()], endpoints: Vec::new() };
        let peers = BTreeMap::from([(world().nodes[1], peer)]);
        machine.handle(Event::Apply(Desired { own: vec![secret(1)], peers }), now);
        Self { machine, counters, now }
    }

    /// Gives it a datagram, and returns its answers.
    fn receive(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let from = SocketAddr::from(PEER);
        let mut answers = Vec::new();
        for action in self.machine.handle(Event::Datagram { from, bytes }, self.now) {
            if let Action::Send(to, datagram) = action {
                // Nothing goes to an address that is not the sender's.
                assert_eq!(to, from);
                answers.push(datagram);
            }
        }
        answers
    }

    /// Number of datagrams and packets that were refused.
    fn refused(&self) -> u64 {
        let counters = [Counter::WireguardJunk, Counter::WireguardUnknownKey, Counter::WireguardForbidden];
        counters.iter().map(|counter| self.counters.get(*counter)).sum()
    }
}

/// The first byte chooses whether the rest are datagrams, or packets inside of valid ones.
pub(crate) fn wireguard(bytes: &[u8]) -> bool {
    let mut script = Script::new(bytes);
    let (mut node, is_tunnelled) = (Node::new(), script.choice(2) == 1);
    let mut peer = peer();
    if is_tunnelled {
        handshake(&mut node, &mut peer);
    }
    let mut taken = false;
    while !script.is_over() {
        let (input, refused) = (script.bytes(), node.refused());
        if is_tunnelled {
            let packet = checked(&input[..input.len().min(1280)]);
            let datagram = sent(peer.encapsulate(&packet, &mut [0; 2048]));
            node.receive(&datagram);
        } else {
            // No amplification: no answer is longer than its question.
            let answered: usize = node.receive(input).iter().map(Vec::len).sum();
            assert!(answered <= input.len());
        }
        taken |= node.refused() == refused;
    }
    taken
}

fn handshake(node: &mut Node, peer: &mut Tunn) {
    let initiation = sent(peer.format_handshake_initiation(&mut [0; 2048], false));
    let response = node.receive(&initiation);
    let keepalive = sent(peer.decapsulate(None, &response[0], &mut [0; 2048]));
    node.receive(&keepalive);
    assert!(node.machine.reaches(world().nodes[1], node.now));
}

/// The packet with a valid checksum, so that changes of it reach more than the check.
fn checked(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() < HEADERS {
        return packet;
    }
    packet[56..58].fill(0);
    // The pseudo header: both addresses, the length, the protocol.
    let length = (packet.len() - 40) as u32;
    let summed = [&packet[8..40], &length.to_be_bytes(), &[0, 0, 0, 6], &packet[40..]].concat();
    let pairs = summed.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = pairs.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[56..58].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet
}

/// A packet from node 1 to node 0.
fn packet(flags: u8, numbers: (u32, u32), options: &[u8], data: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(((20 + options.len() + data.len()) as u16).to_be_bytes());
    packet.extend([6, 64]);
    packet.extend(mesh_address(&world().nodes[1]).octets());
    packet.extend(mesh_address(&world().nodes[0]).octets());
    packet.extend(50_000u16.to_be_bytes());
    packet.extend(MESH_PORT.to_be_bytes());
    packet.extend(numbers.0.to_be_bytes());
    packet.extend(numbers.1.to_be_bytes());
    packet.extend([((20 + options.len()) as u8 / 4) << 4, flags, 4, 0, 0, 0, 0, 0]);
    packet.extend(options);
    packet.extend(data);
    packet
}

pub(crate) fn wireguard_seeds() -> Vec<Seed> {
    let script = |mode: u8, inputs: &[Vec<u8>]| {
        inputs.iter().fold(ScriptBuilder(vec![mode]), |script, input| script.bytes(input)).0
    };
    let initiation = sent(peer().format_handshake_initiation(&mut [0; 2048], false));
    let of_stranger = {
        let own = PublicKey::from(*secret(1).public().as_bytes());
        let mut stranger = Tunn::new(StaticSecret::from([9; 32]), own, None, None, 5, None);
        sent(stranger.format_handshake_initiation(&mut [0; 2048], false))
    };
    let data = [&[4, 0, 0, 0][..], &[7; 60]].concat();
    // MSS 1220, window scale 0, SACK permitted.
    let options = [2, 4, 4, 196, 3, 3, 0, 4, 2, 1, 1, 1];
    let syn = packet(0x02, (1, 0), &options, &[]);
    let stream = [syn.clone(), packet(0x10, (2, 0), &[], &[]), packet(0x18, (2, 0), &[], b"some bytes")];
    vec![
        Seed::good("handshake", script(0, std::slice::from_ref(&initiation))),
        Seed::bad("stranger", script(0, &[of_stranger])),
        Seed::bad("junk", script(0, &[data, vec![2; 92], vec![3; 64], Vec::new(), vec![1; 1400]])),
        Seed::good("replay", script(0, &[initiation.clone(), initiation])),
        Seed::good("stream", script(1, &stream)),
        Seed::good("reset", script(1, &[syn, packet(0x04, (2, 0), &[], &[])])),
        Seed::bad("forged-source", script(1, &[packet(0x02, (1, 0), &[], &[]).into_iter().rev().collect()])),
    ]
}
