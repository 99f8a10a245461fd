//! Full disks: a publisher that cannot store a revision cannot publish, so another node takes over.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustbalance_testnet::cluster::{Cluster, Node};

use crate::support::{Nodes, Progress, agreed_publisher, check_directories, scenario, session_keys};

/// From the death of a node until no directory has its points, while the publisher's disk is full.
const OUT: Duration = Duration::from_secs(45);
/// Time limit of a wait. It exceeds the bound above, to distinguish a slow event from none.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_publisher_with_a_full_disk_hands_over() {
    scenario("full disks", &["alpha", "beta", "gamma"], full_disk);
}

fn full_disk(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes) -> Result<()> {
    for node in &nodes.0 {
        node.kill9()?;
        if let Err(error) = node.confine() {
            progress.report(format_args!("skipped, because no disk can be mounted here: {error:#}"));
            return Ok(());
        }
    }
    for node in &nodes.0 {
        node.run()?;
    }
    cluster.await_served(&nodes.0)?;
    let (publisher, term) = nodes.publisher()?;
    let worker = nodes.named("gamma")?;
    let survivors = nodes.but(worker);
    let there = survivors.iter().map(|node| session_keys(node)).collect::<Result<Vec<_>>>()?;
    let gone = session_keys(worker)?;
    publisher.set_disk_full(true)?;
    worker.kill9()?;
    let killed = Instant::now();
    let out = cluster.wait_until("a dead node's points leave every directory", PATIENCE, || {
        check_directories(&cluster.onion()?, &there, &gone)?;
        Ok(killed.elapsed())
    })?;
    let (holder, new_term) =
        cluster.wait_until("the survivors agree on a publisher", PATIENCE, || agreed_publisher(&survivors))?;
    progress.report(format_args!(
        "{} had a full disk; {} took over, and a dead node was out of every directory after {:.1} s",
        publisher.name(),
        nodes.at(&holder)?.name(),
        out.as_secs_f64()
    ));
    ensure!(new_term > term && nodes.at(&holder)?.name() != publisher.name(), "the lease did not move");
    ensure!(out <= OUT, "the dead node stayed for {out:?}, longer than {OUT:?}");
    let other = nodes.at(&holder)?;
    cluster.wait_until("the other publisher shows the full disk", PATIENCE, || {
        let status = other.command(&["status"], "", PATIENCE)?.ok("status")?;
        ensure!(status.contains("the disk of its state directory is full: make room"), "{status}");
        Ok(())
    })?;
    publisher.set_disk_full(false)?;
    worker.run()?;
    cluster.await_served(&nodes.0)?;
    start_on_full_disk(progress, cluster, nodes, worker)
}

/// A Tor client that cannot write its cache at the start cannot retry. If the process ends, it must
/// give the reason; systemd restarts it.
fn start_on_full_disk(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes, node: &Node) -> Result<()> {
    node.kill9()?;
    node.set_disk_full(true)?;
    let before = node.log().len();
    node.run()?;
    cluster.wait_until("the starting Tor client fails for the full disk", PATIENCE, || {
        ensure!(node.log()[before..].contains("cannot connect to the Tor network"), "the log does not say so");
        Ok(())
    })?;
    node.set_disk_full(false)?;
    let ended = cluster.wait_until("the node ends or connects", PATIENCE, || {
        let ended = node.ended();
        ensure!(ended.is_some() || node.status()?.phase == "healthy", "the node does neither");
        Ok(ended)
    })?;
    if let Some(code) = ended {
        let last_line = node.last_log_line();
        progress.report(format_args!("started on a full disk, {} ended ({code:?}): {last_line}", node.name()));
        ensure!(code == Some(1) && last_line.contains("full"), "the node ended with {code:?}: {last_line}");
        node.run()?;
    }
    cluster.await_served(&nodes.0)
}
