//! A member is evicted: it stops, its introduction points are withdrawn, the keys it knew are
//! replaced, and it cannot come back with its old identity.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustbalance_testnet::cluster::{Cluster, Node};

use crate::secrets::{copy_state, opened_copy};
use crate::support::{Nodes, Progress, all_served, check_directories, scenario, session_keys};

/// From the command until no directory has the node's points.
const OUT: Duration = Duration::from_secs(30);
/// Time limit of a wait.
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn an_evicted_node_stays_out() {
    scenario("eviction", &["alpha", "beta", "gamma"], |progress, cluster, nodes| {
        let evicted = nodes.named("gamma")?;
        let backup = tempfile::tempdir()?;
        copy_state(&evicted.state(), &backup.path().join("state"))?;
        let stayed = nodes.but(evicted);

        the_evicted_node_stops_and_its_points_leave(progress, cluster, evicted, &stayed)?;
        the_discovery_key_is_changed(progress, cluster, evicted, &stayed)?;
        the_evicted_node_does_not_come_back(progress, cluster, evicted, &stayed)?;
        // A state from before the eviction does not help either: its peers send it the revocation
        // again.
        fs::remove_dir_all(evicted.state())?;
        copy_state(&backup.path().join("state"), &evicted.state())?;
        the_evicted_node_does_not_come_back(progress, cluster, evicted, &stayed)?;
        a_new_member_is_given_the_new_key(progress, cluster, &stayed)
    });
}

fn the_evicted_node_stops_and_its_points_leave(
    progress: &mut Progress,
    cluster: &Cluster<'_>,
    evicted: &Node,
    stayed: &[Arc<Node>],
) -> Result<()> {
    let (address, gone) = (evicted.status()?.node, session_keys(evicted)?);
    let there = stayed.iter().map(|node| session_keys(node)).collect::<Result<Vec<_>>>()?;
    stayed[1].command(&["evict", &address], "", PATIENCE)?.ok("evict")?;
    let started = Instant::now();
    let out = cluster.wait_until("the evicted node's points leave every directory", PATIENCE, || {
        check_directories(&cluster.onion()?, &there, &gone)?;
        Ok(started.elapsed())
    })?;
    progress.report(format_args!("out of every directory after {:.1} s", out.as_secs_f64()));
    ensure!(out <= OUT, "the evicted node's points stayed for {out:?}");
    let code = evicted.await_exit(PATIENCE)?.context("the evicted node continues to run")?;
    ensure!(code == 4, "the evicted node ended with {code}");
    ensure!(evicted.log().contains("was evicted"), "the evicted node does not log why it ended");
    let served = all_served(cluster, 3)?;
    ensure!(!served.contains(evicted.name()), "the evicted node has served: {served:?}");
    Ok(())
}

fn the_discovery_key_is_changed(
    progress: &mut Progress,
    cluster: &Cluster<'_>,
    evicted: &Node,
    stayed: &[Arc<Node>],
) -> Result<()> {
    cluster.wait_until("every member has the new discovery key", PATIENCE, || {
        for node in stayed {
            let generation = node.status()?.discovery_generation;
            ensure!(generation == 1, "{} has the key of generation {generation}", node.name());
        }
        Ok(())
    })?;
    let newest = |node: &Node| anyhow::Ok(opened_copy(node)?.store.discovery()?.newest().key.clone());
    let (old, new) = (newest(evicted)?, newest(&stayed[0])?);
    ensure!(new == newest(&stayed[1])?, "the members have different keys");
    ensure!(old.generation == 0 && new.public != old.public, "the evicted node has the key in use");
    progress.report(format_args!("the members have a new discovery key, the evicted node does not"));
    Ok(())
}

fn the_evicted_node_does_not_come_back(
    progress: &mut Progress,
    cluster: &Cluster<'_>,
    evicted: &Node,
    stayed: &[Arc<Node>],
) -> Result<()> {
    let log = evicted.log().len();
    evicted.run()?;
    let code = evicted.await_exit(PATIENCE)?.context("the evicted node is back")?;
    ensure!(code == 4, "the evicted node ended with {code}");
    let text = evicted.log();
    ensure!(text[log..].contains("was evicted"), "the evicted node does not log why it ended: {}", &text[log..]);
    for node in stayed {
        ensure!(node.status()?.members.len() == 2, "{} knows the evicted node again", node.name());
    }
    progress.report(format_args!("the evicted node was started, received its revocation, and ended"));
    cluster.await_served(stayed)
}

/// A node that joins now receives only the new key, and opens links with all members.
fn a_new_member_is_given_the_new_key(
    progress: &mut Progress,
    cluster: &Cluster<'_>,
    stayed: &[Arc<Node>],
) -> Result<()> {
    let joined = cluster.add(&stayed[0], "delta", "worker")?;
    let all = Nodes(stayed.iter().chain([&joined]).cloned().collect());
    cluster.await_served(&all.0)?;
    cluster.wait_until("all members are linked", PATIENCE, || {
        for node in &all.0 {
            let status = node.status()?;
            ensure!(status.links.len() == 2, "{} has {} links", node.name(), status.links.len());
            ensure!(status.discovery_generation == 1, "{} has an old key", node.name());
        }
        Ok(())
    })?;
    progress.report(format_args!("a new member has the new key and is linked with all members"));
    all_served(cluster, 3).map(|_| ())
}
