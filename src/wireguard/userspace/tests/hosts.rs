//! The engine between hosts with addresses and routes of their own: network namespaces with a
//! router in between. Needs root; otherwise each test says so, and does nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::id::NodeId;
use rustbalance_testnet::hosts::Hosts;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::counters::Counters;
use crate::wireguard::conformance::{Started, TestNode, introduce, swap_long_frames, until};
use crate::wireguard::{Peer, Userspace, WireguardSecret};

/// Port of every engine.
const PORT: u16 = 7440;
/// What every path of IPv6 carries, in bytes.
const LEAST_MTU: u64 = 1280;
/// The NAT forgets a connection after 20 s without a packet. The engine sends something every 15 s.
const IDLE: Duration = Duration::from_secs(24);

/// Two hosts that a router connects; `None` where there can be none.
fn hosts() -> Option<Hosts> {
    if let Some(reason) = Hosts::impossible() {
        println!("skipped, because hosts are not possible here: {reason}");
        return None;
    }
    Some(Hosts::open(&["one", "two"]).unwrap())
}

/// Starts a node at this address of a host.
async fn start(hosts: &Hosts, host: &str, number: u8, address: &str) -> TestNode {
    let id = NodeId::from_public_key([number; 32]);
    let endpoint = SocketAddr::new(address.parse().unwrap(), PORT);
    // The sockets belong to the host on whose thread they are opened.
    let runtime = Handle::current();
    let starting = || runtime.block_on(Userspace::start(id, &[endpoint], Counters::default()));
    let (engine, arrivals) = hosts.within(host, starting).unwrap().unwrap();
    let started = Started { engine: Arc::new(engine), arrivals, endpoint };
    TestNode { id, keys: vec![WireguardSecret::generate(&mut rand::rng())], started }
}

#[tokio::test]
async fn long_frames_pass_over_ipv6_alone_on_the_shortest_packets_that_it_permits() {
    let Some(hosts) = hosts() else { return };
    let addresses = ["2001:db8::1", "2001:db8::2"];
    hosts.set_addresses("one", &addresses[..1]).unwrap();
    hosts.set_addresses("two", &addresses[1..]).unwrap();
    hosts.set_longest(LEAST_MTU as usize).unwrap();
    let one = start(&hosts, "one", 1, addresses[0]).await;
    let mut two = start(&hosts, "two", 2, addresses[1]).await;
    introduce(&[&one, &two]);
    swap_long_frames(one.dial(&two).await, two.accept().await).await;
    let counts = hosts.counts().unwrap();
    // Both directions of 512 KiB in packets of at most 1140 bytes of them.
    assert!(counts.passed_v6 > 900 && counts.passed_v4 == 0, "{counts:?}");
    assert!(counts.too_long == 0 && counts.longest == LEAST_MTU, "{counts:?}");
}

#[tokio::test]
async fn long_frames_pass_where_the_path_loses_packets_of_more_than_1300_bytes() {
    let Some(hosts) = hosts() else { return };
    let addresses = ["192.0.2.1", "192.0.2.2"];
    hosts.set_addresses("one", &addresses[..1]).unwrap();
    hosts.set_addresses("two", &addresses[1..]).unwrap();
    hosts.set_longest(1300).unwrap();
    let one = start(&hosts, "one", 1, addresses[0]).await;
    let mut two = start(&hosts, "two", 2, addresses[1]).await;
    introduce(&[&one, &two]);
    swap_long_frames(one.dial(&two).await, two.accept().await).await;
    let counts = hosts.counts().unwrap();
    assert!(counts.passed_v4 > 900 && counts.too_long == 0, "{counts:?}");
}

#[tokio::test]
async fn a_node_behind_a_nat_is_reached_as_long_as_it_keeps_the_connection() {
    let Some(hosts) = hosts() else { return };
    hosts.set_addresses("one", &["10.0.1.2"]).unwrap();
    hosts.set_nat("one", Some("192.0.2.1")).unwrap();
    hosts.set_addresses("two", &["192.0.2.2"]).unwrap();
    let mut one = start(&hosts, "one", 1, "10.0.1.2").await;
    let two = start(&hosts, "two", 2, "192.0.2.2").await;
    // The outside knows only the private address, which leads nowhere.
    introduce(&[&one, &two]);
    one.up(&two).await;
    until("the outside has learnt where the inside is", || two.started.engine.reaches(one.id)).await;
    let inside = one.id;
    let learnt = || two.started.engine.status()[&inside].endpoint.unwrap();
    let first = learnt();
    assert!(first.ip().to_string() == "192.0.2.1" && first.port() != PORT, "{first}");

    // Without a stream nothing but keepalives is sent.
    sleep(IDLE).await;
    let mut from_outside = two.dial(&one).await;
    from_outside.stream.write_all(b"!").await.unwrap();
    one.accept().await;
    assert_eq!(learnt(), first, "the NAT had forgotten the connection");

    hosts.forget_connections("one").unwrap();
    until("the outside has learnt the new port", || learnt() != first).await;
    one.up(&two).await;
    two.dial(&one).await;
}

#[tokio::test]
async fn two_nodes_behind_nats_do_not_reach_each_other_and_say_why() {
    let Some(hosts) = hosts() else { return };
    let mut nodes = Vec::new();
    for (host, number, inside, outside) in [("one", 1, "10.0.1.2", "192.0.2.1"), ("two", 2, "10.0.2.2", "192.0.2.2")] {
        hosts.set_addresses(host, &[inside]).unwrap();
        hosts.set_nat(host, Some(outside)).unwrap();
        nodes.push(start(&hosts, host, number, inside).await);
    }
    // Even if each knew the address of the other's NAT, that lets no first packet in.
    let outside = |host: &str| SocketAddr::new(host.parse().unwrap(), PORT);
    for (own, other, public) in [(0, 1, outside("192.0.2.2")), (1, 0, outside("192.0.2.1"))] {
        let peer = Peer { endpoints: vec![nodes[other].started.endpoint, public], ..nodes[other].peer() };
        nodes[own].apply([(nodes[other].id, peer)].into());
    }
    let is_refused = || hosts.counts().is_ok_and(|counts| counts.refused_by_nat > 3 && counts.unroutable > 3);
    until("both have tried both addresses", is_refused).await;
    for (own, other) in [(0, 1), (1, 0)] {
        let status = nodes[own].started.engine.status().remove(&nodes[other].id).unwrap();
        let problem = status.problem.map(|problem| problem.to_string()).unwrap_or_default();
        assert!(!status.up && problem.contains("may be behind a NAT"), "{problem}");
    }
}
