//! An evicted worker reaches a returning publisher first and makes it believe that it already has
//! all records.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustbalance::link::handshake::Purpose;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::Role;
use tokio::time::sleep;

use crate::evicted::evict;
use crate::intruder::{claim, stay};
use crate::member::Member;
use crate::test_cluster::{TestCluster, until};

/// Number of versions by which the spoofed claims exceed the true ones when they are made. While
/// the test waits, the true versions grow beyond the claims.
const AHEAD: u64 = 45;
/// From the returned publisher's first link with an honest publisher until the evicted node is in
/// neither its view nor any directory.
const OUT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_worker_does_not_stay_a_member_of_a_publisher_that_was_away() {
    let mut test_cluster = TestCluster::start("").await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let id = mallory.id();
    let mut raw_links = mallory.open(&test_cluster, 1).await;
    let raw_gossip = mallory.speak(&test_cluster, &mut raw_links).await;
    until("every node knows the worker", async || {
        for daemon in test_cluster.running() {
            ensure!(lists(daemon.status().await?.members, id), "{} does not know it", daemon.name);
        }
        Ok(())
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    drop((raw_gossip, raw_links));
    test_cluster.named_mut("beta").kill().await;
    let mut claims = Vec::new();
    for name in ["alpha", "gamma"] {
        claims.push(claim(&*mallory.engine, &mallory.store, test_cluster.named(name).id, AHEAD).await.unwrap());
    }
    evict_and_change_the_key_twice(&test_cluster, id).await;
    assert!(
        mallory.link(test_cluster.named("alpha").id, Purpose::Mesh).await.is_err(),
        "alpha has accepted a link from the evicted worker"
    );
    // The real versions grow beyond the claims. Alpha and gamma cannot detect a claim below their
    // own version as spoofed.
    sleep(Duration::from_secs(15)).await;

    let net = test_cluster.net.clone();
    test_cluster.named_mut("beta").run(&net);
    for name in ["alpha", "gamma"] {
        test_cluster.net.sever(&test_cluster.named("beta").engine, &test_cluster.named(name).engine);
    }
    let beta = test_cluster.named("beta").id;
    let stream =
        until("beta accepts a link from the evicted worker", async || mallory.link(beta, Purpose::Mesh).await).await;
    let talk = tokio::spawn(async move { stay(&*mallory.engine, &mallory.store, stream, claims).await });
    sleep(Duration::from_secs(10)).await;
    assert!(
        lists(test_cluster.named("beta").status().await.unwrap().members, id),
        "beta does not take the evicted worker for a member, so the test proves nothing"
    );

    test_cluster.net.heal();
    let alpha = test_cluster.named("alpha").id.to_string();
    until("beta has a link with alpha", async || {
        let links = test_cluster.named("beta").status().await?.links;
        ensure!(links.iter().any(|link| link.peer == alpha), "{} links", links.len());
        Ok(())
    })
    .await;
    let linked = Instant::now();
    until("beta has removed the evicted worker", async || {
        let status = test_cluster.named("beta").status().await?;
        ensure!(!lists(status.members, id), "beta still lists it");
        ensure!(status.links.iter().all(|link| link.peer != id.to_string()), "beta still has a link with it");
        Ok(())
    })
    .await;
    test_cluster.healthy().await;
    assert!(linked.elapsed() < OUT, "{:?}", linked.elapsed());
    until("beta is not isolated", async || {
        let isolated = test_cluster.named("beta").status().await?.isolated;
        ensure!(isolated.is_none(), "{isolated:?}");
        Ok(())
    })
    .await;
    // From here on beta rotates keys and publishes like any publisher.
    test_cluster.named_mut("alpha").kill().await;
    test_cluster.healthy().await;
    let published = test_cluster.named("beta").status().await.unwrap().publication.unwrap().intro_points;
    let nodes: BTreeSet<_> = published.into_iter().map(|point| point.node).collect();
    assert!(!nodes.contains(&id.to_string()), "{nodes:?}");
    talk.abort();
}

fn lists(members: Vec<rustbalance::control::MemberStatus>, node: NodeId) -> bool {
    members.iter().any(|member| member.node == node.to_string())
}

/// Evicts the worker and a second node. The discovery key that the worker and beta have is two
/// rotations old then, and the other nodes do not accept it.
pub(crate) async fn evict_and_change_the_key_twice(test_cluster: &TestCluster, id: NodeId) {
    let token = test_cluster.invite(Role::Worker, 1).await;
    let other = test_cluster.join("other", &token).await.node_id();
    for (node, generation) in [(id, 1), (other, 2)] {
        evict(test_cluster, node).await;
        until("all running nodes have changed the key", async || {
            for daemon in test_cluster.running() {
                let known = daemon.status().await?.discovery_generation;
                ensure!(known >= generation, "{} has the key of generation {known}", daemon.name);
            }
            Ok(())
        })
        .await;
    }
}
