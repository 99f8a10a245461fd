//! WireGuard between nodes on hosts with addresses and routes of their own, with a router between
//! them that can be a NAT.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustbalance_testnet::cluster::{Cluster, Node, Status, WireguardPeer};
use rustbalance_testnet::hosts::Hosts;

use crate::support::{BINARY, ClusterPermit, Progress, linked_over, network};

/// Time limit for what the nodes notice by themselves.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);
/// The port of WireGuard, if none is given.
const PORT: u16 = 7440;
/// Datagrams of garbage, a thousand a second.
const GARBAGE: u32 = 3000;

/// An address of each node behind its NAT, of that NAT or of the node without it, and of IPv6.
const ALPHA: [&str; 3] = ["10.0.1.2", "192.0.2.10", "2001:db8::10"];
const BETA: [&str; 3] = ["10.0.2.2", "192.0.2.20", "2001:db8::20"];
/// A host without a node.
const STRANGER: &str = "192.0.2.30";

#[test]
fn wireguard_stays_off_between_two_nats_and_follows_nodes_to_other_addresses() {
    let _turn = ClusterPermit::take();
    let mut progress = Progress::new("hosts");
    if let Some(reason) = Hosts::impossible() {
        return progress.report(format_args!("skipped, because hosts are not possible here: {reason}"));
    }
    let hosts = Arc::new(Hosts::open(&["alpha", "beta", "stranger"]).unwrap());
    let cluster = Cluster::new(network(), BINARY).unwrap().with_wireguard(&[("alpha", ""), ("beta", "")]);
    let cluster = cluster.across(&hosts).unwrap();
    let done = run(&mut progress, &cluster, &hosts);
    progress.ends(done);
}

fn run(progress: &mut Progress, cluster: &Cluster<'_>, hosts: &Hosts) -> Result<()> {
    for (name, [inside, outside, _]) in [("alpha", ALPHA), ("beta", BETA)] {
        hosts.set_addresses(name, &[inside])?;
        hosts.set_nat(name, Some(outside))?;
    }
    hosts.set_addresses("stranger", &[STRANGER])?;
    let nodes = cluster.grow(&["alpha", "beta"], &["publisher", "worker"])?;
    let [alpha, beta] = nodes.as_slice() else { anyhow::bail!("not two nodes") };
    let says_why = |node: &Node| {
        let peer = peer(node)?;
        let reason = peer.reason.clone().unwrap_or_default();
        ensure!(reason.contains("may be behind a NAT") && peer.route.as_deref() == Some("tor"), "{peer:?}");
        Ok(())
    };
    cluster.wait_until("both say why they stay on Tor", NOTICE_LIMIT, || {
        says_why(alpha)?;
        says_why(beta)
    })?;
    let counts = hosts.counts()?;
    ensure!(counts.passed_v4 == 0 && counts.unroutable > 0, "the NATs have let packets through: {counts:?}");
    progress.report(format_args!("both behind NAT: they stay on Tor and say why"));

    hosts.set_nat("alpha", None)?;
    hosts.set_addresses("alpha", &[ALPHA[1]])?;
    linked_over(cluster, &nodes, "wireguard")?;
    let first = endpoint(alpha)?;
    ensure!(first.ip().to_string() == BETA[1] && first.port() != PORT, "alpha sends to beta at {first}");
    hosts.forget_connections("beta")?;
    cluster.wait_until("alpha has learnt the new port of beta's NAT", NOTICE_LIMIT, || {
        ensure!(endpoint(alpha)? != first, "still {first}");
        Ok(())
    })?;
    linked_over(cluster, &nodes, "wireguard")?;
    progress.report(format_args!("one behind NAT: it comes up, and is found again after the NAT forgot"));

    let before = alpha.status()?;
    hosts.flood("stranger", ALPHA[1], PORT, GARBAGE)?;
    let after = alpha.status()?;
    let junk = |status: &Status| status.refused.get("wireguard_junk").copied().unwrap_or_default();
    let counted = junk(&after) - junk(&before);
    ensure!(counted > u64::from(GARBAGE) / 2, "only {counted} of {GARBAGE} datagrams were counted");
    let peer = peer(alpha)?;
    ensure!(peer.reason.is_none() && peer.route.as_deref() == Some("wireguard"), "garbage ended the route: {peer:?}");
    progress.report(format_args!("{counted} datagrams of garbage in 3 s change nothing"));

    hosts.set_blocked(true)?;
    linked_over(cluster, &nodes, "tor")?;
    hosts.set_nat("beta", None)?;
    hosts.set_addresses("alpha", &[ALPHA[2]])?;
    hosts.set_addresses("beta", &[BETA[2]])?;
    let blocked = hosts.counts()?;
    hosts.set_blocked(false)?;
    linked_over(cluster, &nodes, "wireguard")?;
    for (node, [.., address]) in [(alpha, BETA), (beta, ALPHA)] {
        let endpoint = endpoint(node)?;
        ensure!(endpoint == SocketAddr::new(address.parse()?, PORT), "{} sends to {endpoint}", node.name());
    }
    let counts = hosts.counts()?;
    ensure!(counts.passed_v4 == blocked.passed_v4 && counts.passed_v6 > 0, "{blocked:?}, then {counts:?}");
    progress.report(format_args!("UDP blocked, then other addresses, of IPv6 alone: it goes over Tor and returns"));

    beta.stop()?;
    cluster.wait_until("alpha notices that beta is frozen", NOTICE_LIMIT, || {
        let peer = self::peer(alpha)?;
        ensure!(peer.reason.is_some() && peer.route.as_deref() != Some("wireguard"), "{peer:?}");
        Ok(())
    })?;
    beta.cont()?;
    linked_over(cluster, &nodes, "wireguard")?;
    progress.report(format_args!("frozen and thawed: it returns"));
    Ok(())
}

/// The other node, as a node shows it.
fn peer(node: &Node) -> Result<WireguardPeer> {
    let wireguard = node.status()?.wireguard;
    let peer = wireguard.peers.first().cloned();
    peer.with_context(|| format!("{} shows no other node: {wireguard:?}", node.name()))
}

/// Where a node sends what is for the other.
fn endpoint(node: &Node) -> Result<SocketAddr> {
    let peer = peer(node)?;
    let endpoint = peer.endpoint.as_deref().with_context(|| format!("{peer:?} has no endpoint"))?;
    endpoint.parse().with_context(|| format!("{endpoint} is not an address"))
}
