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
use crate::town::{Town, until};

/// Versions that the spoofed claims add to the current ones. The honest nodes exceed them while the
/// test waits.
const AHEAD: u64 = 45;
/// From the returned publisher's first link with an honest publisher until the evicted node is in
/// neither its view nor any directory.
const OUT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_worker_does_not_stay_a_member_of_a_publisher_that_was_away() {
    let mut town = Town::start("").await;
    let mallory = Member::join(&town, Role::Worker).await;
    let id = mallory.id();
    let mut mouth = mallory.open(&town, 1).await;
    let voice = mallory.speak(&town, &mut mouth).await;
    until("every node knows the worker", async || {
        for daemon in town.running() {
            ensure!(lists(daemon.status().await?.members, id), "{} does not know it", daemon.name);
        }
        Ok(())
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    drop((voice, mouth));
    town.named_mut("beta").kill().await;
    let mut claims = Vec::new();
    for name in ["alpha", "gamma"] {
        claims.push(claim(&*mallory.engine, &mallory.store, town.named(name).id, AHEAD).await.unwrap());
    }
    evict_and_change_the_key_twice(&town, id).await;
    assert!(
        mallory.link(town.named("alpha").id, Purpose::Mesh).await.is_err(),
        "alpha has accepted a link from the evicted worker"
    );
    // The real versions grow beyond the claims. Alpha and gamma cannot detect a claim below their
    // own version as spoofed.
    sleep(Duration::from_secs(15)).await;

    let net = town.net.clone();
    town.named_mut("beta").run(&net);
    for name in ["alpha", "gamma"] {
        town.net.sever(&town.named("beta").engine, &town.named(name).engine);
    }
    let beta = town.named("beta").id;
    let stream =
        until("beta accepts a link from the evicted worker", async || mallory.link(beta, Purpose::Mesh).await).await;
    let talk = tokio::spawn(async move { stay(&*mallory.engine, &mallory.store, stream, claims).await });
    sleep(Duration::from_secs(10)).await;
    assert!(
        lists(town.named("beta").status().await.unwrap().members, id),
        "beta does not take the evicted worker for a member, so the test proves nothing"
    );

    town.net.heal();
    let alpha = town.named("alpha").id.to_string();
    until("beta has a link with alpha", async || {
        let links = town.named("beta").status().await?.links;
        ensure!(links.iter().any(|link| link.peer == alpha), "{} links", links.len());
        Ok(())
    })
    .await;
    let linked = Instant::now();
    until("beta has removed the evicted worker", async || {
        let status = town.named("beta").status().await?;
        ensure!(!lists(status.members, id), "beta still lists it");
        ensure!(status.links.iter().all(|link| link.peer != id.to_string()), "beta still has a link with it");
        Ok(())
    })
    .await;
    town.healthy().await;
    assert!(linked.elapsed() < OUT, "{:?}", linked.elapsed());
    until("beta is not isolated", async || {
        let isolated = town.named("beta").status().await?.isolated;
        ensure!(isolated.is_none(), "{isolated:?}");
        Ok(())
    })
    .await;
    // From here on beta rotates keys and publishes like any publisher.
    town.named_mut("alpha").kill().await;
    town.healthy().await;
    let published = town.named("beta").status().await.unwrap().publication.unwrap().intro_points;
    let nodes: BTreeSet<_> = published.into_iter().map(|point| point.node).collect();
    assert!(!nodes.contains(&id.to_string()), "{nodes:?}");
    talk.abort();
}

fn lists(members: Vec<rustbalance::control::MemberStatus>, node: NodeId) -> bool {
    members.iter().any(|member| member.node == node.to_string())
}

/// Evicts the worker and a second node. The discovery key that the worker and beta have is two
/// rotations old then, and the other nodes do not accept it.
async fn evict_and_change_the_key_twice(town: &Town, id: NodeId) {
    let token = town.invite(Role::Worker, 1).await;
    let other = town.join("other", &token).await.node_id();
    for (node, generation) in [(id, 1), (other, 2)] {
        evict(town, node).await;
        until("all running nodes have changed the key", async || {
            for daemon in town.running() {
                let known = daemon.status().await?.discovery_generation;
                ensure!(known >= generation, "{} has the key of generation {known}", daemon.name);
            }
            Ok(())
        })
        .await;
    }
}
