//! The ports that a node opens and the receivers of its packets, observed in its network namespace.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustbalance_testnet::cluster::{Cluster, Node};
use rustbalance_testnet::namespace::{Flow, Namespace};

use crate::support::{BINARY, ClusterPermit, Progress, all_served, linked_over, network};

/// Time limit of a command.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// A DNS resolver at an address reserved for documentation (RFC 5737).
const RESOLVER: (&str, u16) = ("198.51.100.53", 53);

/// The WireGuard addresses of two nodes: the namespace has both.
const TUNNEL_ENDS: [(&str, &str); 2] = [("alpha", "192.0.2.2"), ("beta", "192.0.2.3")];
/// Their port, if none is given.
const TUNNEL_PORT: u16 = 7440;

#[test]
fn a_node_opens_no_port_and_sends_nothing_but_to_tor_relays() {
    in_namespace("wire", &[], run_whole_life);
}

#[test]
fn with_wireguard_nodes_send_only_to_relays_and_from_their_one_udp_port() {
    in_namespace("wireguard", &TUNNEL_ENDS, run_with_wireguard);
}

/// Runs a scenario whose nodes are in a network namespace. Those that `tunnel_ends` names have
/// WireGuard at these addresses.
fn in_namespace(
    title: &str,
    tunnel_ends: &[(&str, &str)],
    body: impl FnOnce(&mut Progress, &Cluster<'_>, &Namespace) -> Result<()>,
) {
    let _turn = ClusterPermit::take();
    let mut progress = Progress::new(title);
    if let Some(reason) = Namespace::impossible() {
        return progress.report(format_args!("skipped, because a network namespace is not possible here: {reason}"));
    }
    let namespace = Arc::new(Namespace::open().unwrap());
    let cluster = Cluster::new(network(), BINARY).unwrap().with_wireguard(tunnel_ends).within(&namespace).unwrap();
    let done = body(&mut progress, &cluster, &namespace);
    progress.ends(done);
}

fn run_with_wireguard(progress: &mut Progress, cluster: &Cluster<'_>, namespace: &Namespace) -> Result<()> {
    let nodes = cluster.grow(&["alpha", "beta"], &["publisher", "worker"])?;
    progress.report(format_args!("two nodes are published; the second has joined over Tor"));
    linked_over(cluster, &nodes, "wireguard")?;
    progress.report(format_args!("gossip goes over WireGuard"));
    let transcript = std::fs::read_to_string(&nodes[1].output_files()[1])?;
    ensure!(transcript.contains("the other members learn this node's IP addresses"), "join does not say what it costs");

    let udp = namespace.listeners()?.into_iter().filter(|listener| listener.starts_with("udp")).collect::<Vec<_>>();
    let expected = TUNNEL_ENDS.map(|(_, address)| listening(address));
    ensure!(udp == expected, "the nodes have the UDP sockets {udp:?}, not {expected:?}");
    let seen = namespace.capture()?;
    ensure!(seen.dropped == 0, "the capture dropped {} packets", seen.dropped);
    let is_end = |address: &str, port| port == TUNNEL_PORT && TUNNEL_ENDS.iter().any(|(_, end)| *end == address);
    let in_tunnel = |flow: &Flow| {
        flow.protocol == "udp" && is_end(&flow.source, flow.source_port) && is_end(&flow.target, flow.target_port)
    };
    let through: u64 = seen.flows.iter().filter(|flow| in_tunnel(flow)).map(|flow| flow.packets).sum();
    ensure!(through > 0, "no packet of the tunnel was captured: {seen:?}");
    let on_loopback = |flow: &Flow| flow.protocol == "tcp" && flow.source == "127.0.0.1" && flow.target == "127.0.0.1";
    let others = seen.flows.iter().filter(|flow| !in_tunnel(flow) && !on_loopback(flow) && flow.protocol != "icmpv6");
    let others: Vec<_> = others.collect();
    ensure!(others.is_empty(), "packets outside of Tor and the tunnel: {others:?}");
    progress.report(format_args!("of {through} packets in the tunnel, all are from and to the one port of each node"));

    nodes[1].command(&["wireguard", "off"], "", COMMAND_LIMIT)?.ok("wireguard off")?;
    linked_over(cluster, &nodes, "tor")?;
    let udp = namespace.listeners()?.into_iter().filter(|listener| listener.starts_with("udp")).collect::<Vec<_>>();
    ensure!(udp == [listening(TUNNEL_ENDS[0].1)], "after `wireguard off` the nodes have the UDP sockets {udp:?}");
    nodes[1].command(&["wireguard", "on"], "", COMMAND_LIMIT)?.ok("wireguard on")?;
    linked_over(cluster, &nodes, "wireguard")?;
    progress.report(format_args!("switched off it closes its port, and switched on again it carries gossip"));
    Ok(())
}

/// Runs the life of a cluster in the namespace: nodes are created, join, publish, open links and
/// serve; then one is evicted and one leaves.
fn run_whole_life(progress: &mut Progress, cluster: &Cluster<'_>, namespace: &Namespace) -> Result<()> {
    let before = namespace.listeners()?;
    let nodes = cluster.grow(&["alpha", "beta"], &["publisher", "worker"])?;
    all_served(cluster, 3)?;
    progress.report(format_args!("two nodes are published, linked, and serve"));

    let opened: BTreeSet<String> = namespace.listeners()?.difference(&before).cloned().collect();
    let sites: BTreeSet<String> = nodes.iter().map(|node| forwarded(node.site().addr().port())).collect();
    let of = |node: &Arc<Node>| ["control.sock", "metrics.sock"].map(|name| node.state().join(name));
    let sockets = nodes.iter().flat_map(of).map(|path| format!("unix {}", path.display()));
    ensure!(opened == &sites | &sockets.collect(), "the nodes listen on: {opened:?}");
    let relays: BTreeSet<String> = network().relays().iter().map(|relay| forwarded(relay.or_port)).collect();
    ensure!(before == relays, "the namespace itself listens on {before:?}");
    progress.report(format_args!("the nodes listen on nothing but Unix sockets in their own folders"));

    let (alpha, beta) = (&nodes[0], &nodes[1]);
    alpha.command(&["evict", &beta.status()?.node], "", COMMAND_LIMIT)?.ok("evict")?;
    alpha.command(&["leave"], "", COMMAND_LIMIT)?.ok("leave")?;
    only_relays_were_sent_to(progress, namespace, &nodes)
}

fn only_relays_were_sent_to(progress: &mut Progress, namespace: &Namespace, nodes: &[Arc<Node>]) -> Result<()> {
    let relays: BTreeSet<u16> = network().relays().iter().map(|relay| relay.or_port).collect();
    let sites: BTreeSet<u16> = nodes.iter().map(|node| node.site().addr().port()).collect();
    let between = |flow: &Flow, ports: &BTreeSet<u16>| {
        flow.device == "lo"
            && flow.protocol == "tcp"
            && (flow.source.as_str(), flow.target.as_str()) == ("127.0.0.1", "127.0.0.1")
            && (ports.contains(&flow.source_port) || ports.contains(&flow.target_port))
    };
    // Sent by the kernel, which looks for routers and neighbours when an interface comes up.
    let kernel = |flow: &Flow| flow.protocol == "icmpv6";
    let seen = namespace.capture()?;
    ensure!(seen.dropped == 0, "the capture dropped {} packets", seen.dropped);
    // The capture counts the packets that open a connection, in both directions.
    let to_relays: u64 = seen.flows.iter().filter(|flow| between(flow, &relays)).map(|flow| flow.packets).sum();
    let others = seen.flows.iter().filter(|flow| !between(flow, &relays) && !between(flow, &sites) && !kernel(flow));
    let others: Vec<_> = others.collect();
    ensure!(others.is_empty(), "packets to other receivers than relays and the nodes' own targets: {others:?}");
    ensure!(to_relays >= 4, "only {to_relays} packets that open a connection to a relay were seen");

    namespace.probe(RESOLVER.0, RESOLVER.1)?;
    let after = namespace.capture()?;
    let is_probe = |flow: &&Flow| flow.device == "wire" && (flow.target.as_str(), flow.target_port) == RESOLVER;
    ensure!(after.flows.iter().any(|flow| is_probe(&flow)), "the capture would miss a DNS query: {after:?}");
    progress.report(format_args!("the nodes connected only to relays, as {to_relays} packets show"));
    Ok(())
}

/// The UDP socket of one end of the tunnel, in the notation of `/proc/net/udp`.
fn listening(address: &str) -> String {
    let octets = address.parse::<Ipv4Addr>().map_or([0; 4], |address| address.octets());
    format!("udp {:08X}:{TUNNEL_PORT:04X}", u32::from_le_bytes(octets))
}

/// A listener on a port of 127.0.0.1, in the notation of `/proc/net/tcp`.
fn forwarded(port: u16) -> String {
    format!("tcp {:08X}:{port:04X}", u32::from_le_bytes([127, 0, 0, 1]))
}
