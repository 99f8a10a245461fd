//! An evicted worker that is the first to meet a publisher which was away, and has it believe that
//! it has heard everything.

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

/// Versions that a node reaches in the time that the test waits.
const AHEAD: u64 = 45;
/// From the first link with an honest publisher until an evicted node is out of a view and of every
/// directory.
const OUT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_worker_does_not_stay_a_member_of_a_publisher_that_was_away() {
    let mut town = Town::start("").await;
    let mallory = Member::join(&town, Role::Worker).await;
    let id = mallory.id();
    let mut mouth = mallory.open(&town, 1).await;
    let voice = mallory.speak(&town, &mut mouth).await;
    until("every node knows it", async || {
        for daemon in town.running() {
            ensure!(lists(daemon.status().await?.members, id), "{} does not", daemon.name);
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
    assert!(mallory.link(town.named("alpha").id, Purpose::Mesh).await.is_err(), "alpha lets it in");
    // Versions rise beyond what it is about to claim: so that claim is no lie that alpha and gamma
    // could notice.
    sleep(Duration::from_secs(15)).await;

    let net = town.net.clone();
    town.named_mut("beta").run(&net);
    for name in ["alpha", "gamma"] {
        town.net.sever(&town.named("beta").engine, &town.named(name).engine);
    }
    let beta = town.named("beta").id;
    let stream = until("beta lets it in", async || mallory.link(beta, Purpose::Mesh).await).await;
    let talk = tokio::spawn(async move { stay(&*mallory.engine, &mallory.store, stream, claims).await });
    sleep(Duration::from_secs(10)).await;
    assert!(lists(town.named("beta").status().await.unwrap().members, id), "beta takes it for a member");

    town.net.heal();
    let alpha = town.named("alpha").id.to_string();
    until("beta has a link with alpha", async || {
        let links = town.named("beta").status().await?.links;
        ensure!(links.iter().any(|link| link.peer == alpha), "{} links", links.len());
        Ok(())
    })
    .await;
    let linked = Instant::now();
    until("beta has put it out", async || {
        let status = town.named("beta").status().await?;
        ensure!(!lists(status.members, id), "it lists it");
        ensure!(status.links.iter().all(|link| link.peer != id.to_string()), "it has a link with it");
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
    // Beta changes keys and publishes like any other from here on.
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

/// Evicts it, and another, so that the key which it and beta have is accepted by no other.
async fn evict_and_change_the_key_twice(town: &Town, id: NodeId) {
    let token = town.invite(Role::Worker, 1).await;
    let other = town.join("other", &token).await.node_id();
    for (node, generation) in [(id, 1), (other, 2)] {
        evict(town, node).await;
        until("all that run have changed the key", async || {
            for daemon in town.running() {
                let known = daemon.status().await?.discovery_generation;
                ensure!(known >= generation, "{} has that of generation {known}", daemon.name);
            }
            Ok(())
        })
        .await;
    }
}
