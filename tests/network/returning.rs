//! A publisher was away while a worker was evicted, and that worker, a hostile one, meets it before
//! any honest node does.

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
use crate::support::{Arti, Story, all_served, check_directories, over_tor, scenario, session_keys};

/// How long anything that must happen may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// Records that a node announces in the time until the publisher is back: what is claimed stays
/// below that.
const AHEAD: u64 = 15;
/// How long they take.
const RISING: Duration = Duration::from_secs(25);
/// From the first link with an honest publisher until the evicted node is out of the view and of
/// every directory.
const OUT: Duration = Duration::from_secs(60);

#[test]
fn an_evicted_worker_that_comes_first_is_put_out_within_a_minute() {
    scenario("returning", &["alpha", "beta", "gamma"], |story, cluster, nodes| {
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
            claims.push(arti.runtime.block_on(asked).context("what the others have said")?);
        }
        let address = store.node_id().to_string();
        alpha.command(&["evict", &address], "", PATIENCE)?.ok("evict")?;
        std::thread::sleep(RISING);
        // Held, the honest come second.
        let honest = [alpha, gamma];
        honest.iter().try_for_each(|node| node.stop())?;
        beta.run()?;
        let stream = cluster.wait_until("beta lets the evicted node in", PATIENCE, || {
            arti.runtime.block_on(link(&*arti.engine, &store, beta_id, Purpose::Mesh))
        });
        let stream = stream.inspect_err(|_| drop(honest.map(|node| node.cont())))?;
        let (engine, member) = (Arc::clone(&arti.engine), Arc::clone(&store));
        let stays = arti.runtime.spawn(async move { stay(&*engine, &member, stream, claims).await });
        std::thread::sleep(Duration::from_secs(5));
        let believed = beta.status()?.alive().contains(&address.as_str());
        honest.iter().try_for_each(|node| node.cont())?;
        ensure!(believed, "beta does not even take the evicted node for a member: this shows nothing");
        story.tell(format_args!("beta is back, and takes the evicted node for a living member"));
        it_is_put_out(story, cluster, (alpha, beta), &address, &gone)?;
        cluster.await_served(&nodes.0)?;
        beta_publishes_without_it(story, cluster, alpha, beta, gamma, &gone)?;
        stays.abort();
        Ok(())
    });
}

fn id(node: &Node) -> Result<NodeId> {
    Ok(node.status()?.node.parse()?)
}

fn it_is_put_out(
    story: &mut Story,
    cluster: &Cluster<'_>,
    (alpha, beta): (&Node, &Node),
    address: &str,
    gone: &BTreeSet<String>,
) -> Result<()> {
    let honest = alpha.status()?.node;
    cluster.wait_until("beta has a link with alpha", PATIENCE, || {
        ensure!(beta.status()?.links.iter().any(|link| link.peer == honest), "it has not");
        Ok(())
    })?;
    let linked = Instant::now();
    cluster.wait_until("the evicted node is out of beta's view and of every directory", PATIENCE, || {
        let status = beta.status()?;
        ensure!(status.members.iter().all(|member| member.node != address), "beta lists it");
        check_directories(&cluster.onion()?, &[], gone).map(|_| ())
    })?;
    let out = linked.elapsed();
    story.tell(format_args!("out of its view and of every directory {:.1} s after their link", out.as_secs_f64()));
    ensure!(out <= OUT, "the evicted node stayed for {out:?}");
    Ok(())
}

fn beta_publishes_without_it(
    story: &mut Story,
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
        ensure!(publisher.me, "another one is");
        check_directories(&cluster.onion()?, &there, gone).map(|_| ())
    })?;
    let served = all_served(cluster, 3)?;
    ensure!(served.iter().all(|name| ["beta", "gamma"].contains(&name.as_str())), "served by {served:?}");
    story.tell(format_args!("beta publishes without it, stock clients are served by {served:?}"));
    Ok(())
}
