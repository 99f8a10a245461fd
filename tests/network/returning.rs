//! A publisher was offline while a hostile worker was evicted. When it returns, the evicted worker
//! reaches it before any honest node does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustbalance::link::handshake::Purpose;
use rustbalance::store::Store;
use rustbalance::tor::Engine;
use rustbalance_gossip::id::NodeId;
use rustbalance_testnet::cluster::{Cluster, Node};

use crate::hand::link;
use crate::intruder::{claim, stay};
use crate::secrets::copy_state;
use crate::support::{Arti, Progress, all_served, check_directories, over_tor, scenario, session_keys};

/// Time limit for every expected event.
const PATIENCE: Duration = Duration::from_secs(90);
/// Number of versions by which the spoofed claims exceed the true ones when they are made. The
/// honest nodes announce more records than this until the publisher is back, so that their true
/// versions exceed the claims.
const AHEAD: u64 = 15;
/// How long the honest nodes need to announce that many records.
const RISING: Duration = Duration::from_secs(25);
/// From the returned publisher's first link with an honest publisher until the evicted node is in
/// neither its view nor any directory.
const OUT: Duration = Duration::from_secs(60);

#[test]
fn an_evicted_worker_that_comes_first_is_excluded_within_a_minute() {
    scenario("returning", &["alpha", "beta", "gamma"], |progress, cluster, nodes| {
        let (alpha, beta, gamma) = (nodes.named("alpha")?, nodes.named("beta")?, nodes.named("gamma")?);
        let evicted = cluster.add(alpha, "mallory", "worker")?;
        let all: Vec<_> = nodes.0.iter().chain([&evicted]).cloned().collect();
        cluster.await_served(&all)?;
        let gone = session_keys(&evicted)?;
        evicted.kill9()?;
        let kept = tempfile::tempdir()?;
        copy_state(&evicted.state(), &kept.path().join("state"))?;
        let store = Arc::new(Store::open(&kept.path().join("state"))?);
        let (alpha_id, beta_id, gamma_id) = (id(alpha)?, id(beta)?, id(gamma)?);
        let arti = Arti::start("mallory")?;
        for id in [alpha_id, beta_id, gamma_id] {
            arti.engine.trust_discovery(id, &store.discovery()?.secrets())?;
        }
        beta.kill9()?;
        let mut claims = Vec::new();
        for id in [alpha_id, gamma_id] {
            let asked = over_tor(|| claim(&*arti.engine, &store, id, AHEAD));
            claims.push(arti.runtime.block_on(asked).context("cannot read the versions of the honest nodes")?);
        }
        let address = store.node_id().to_string();
        alpha.command(&["evict", &address], "", PATIENCE)?.ok("evict")?;
        std::thread::sleep(RISING);
        // The honest nodes are stopped, so that the evicted node comes first.
        let honest = [alpha, gamma];
        honest.iter().try_for_each(|node| node.stop())?;
        beta.run()?;
        let stream = cluster.wait_until("beta accepts a link from the evicted node", PATIENCE, || {
            arti.runtime.block_on(link(&*arti.engine, &store, beta_id, Purpose::Mesh))
        });
        let stream = stream.inspect_err(|_| drop(honest.map(|node| node.cont())))?;
        let (engine, member) = (Arc::clone(&arti.engine), Arc::clone(&store));
        let stays = arti.runtime.spawn(async move { stay(&*engine, &member, stream, claims).await });
        std::thread::sleep(Duration::from_secs(5));
        let believed = beta.status()?.alive().contains(&address.as_str());
        honest.iter().try_for_each(|node| node.cont())?;
        ensure!(believed, "beta does not take the evicted node for alive, so the test proves nothing");
        progress.report(format_args!("beta is back and takes the evicted node for a live member"));
        it_is_excluded(progress, cluster, (alpha, beta), &address, &gone)?;
        cluster.await_served(&nodes.0)?;
        beta_publishes_without_it(progress, cluster, alpha, beta, gamma, &gone)?;
        stays.abort();
        Ok(())
    });
}

fn id(node: &Node) -> Result<NodeId> {
    Ok(node.status()?.node.parse()?)
}

fn it_is_excluded(
    progress: &mut Progress,
    cluster: &Cluster<'_>,
    (alpha, beta): (&Node, &Node),
    address: &str,
    gone: &BTreeSet<String>,
) -> Result<()> {
    let honest = alpha.status()?.node;
    cluster.wait_until("beta has a link with alpha", PATIENCE, || {
        ensure!(beta.status()?.links.iter().any(|link| link.peer == honest), "there is no such link");
        Ok(())
    })?;
    let linked = Instant::now();
    cluster.wait_until("the evicted node is in neither beta's view nor any directory", PATIENCE, || {
        let status = beta.status()?;
        ensure!(status.members.iter().all(|member| member.node != address), "beta still lists it");
        check_directories(&cluster.onion()?, &[], gone).map(|_| ())
    })?;
    let out = linked.elapsed();
    progress.report(format_args!(
        "the evicted node was removed from beta's view and every directory {:.1} s after beta's link with alpha",
        out.as_secs_f64()
    ));
    ensure!(out <= OUT, "the evicted node stayed for {out:?}");
    Ok(())
}

fn beta_publishes_without_it(
    progress: &mut Progress,
    cluster: &Cluster<'_>,
    alpha: &Node,
    beta: &Arc<Node>,
    gamma: &Arc<Node>,
    gone: &BTreeSet<String>,
) -> Result<()> {
    alpha.kill9()?;
    let there = [session_keys(beta)?, session_keys(gamma)?];
    cluster.wait_until("beta publishes", PATIENCE, || {
        let publisher = beta.status()?.publisher.context("no publisher is known")?;
        ensure!(publisher.me, "another node publishes");
        check_directories(&cluster.onion()?, &there, gone).map(|_| ())
    })?;
    let served = all_served(cluster, 3)?;
    ensure!(served.iter().all(|name| ["beta", "gamma"].contains(&name.as_str())), "served by {served:?}");
    progress.report(format_args!("beta publishes without the evicted node; {served:?} serve stock clients"));
    Ok(())
}
