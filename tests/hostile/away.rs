//! Members that were away while the discovery key was changed: who was evicted meanwhile, and who was not.

use std::time::Duration;

use anyhow::ensure;
use rustbalance_gossip::record::{Phase, Role};

use crate::evicted::evict;
use crate::member::Member;
use crate::town::{Town, until};

/// Evicts two members that joined for it. The key is changed twice, so that the first one is accepted by nobody.
async fn change_the_key_twice(town: &Town) {
    let mut generation = town.named("alpha").status().await.unwrap().discovery_generation;
    for _ in 0..2 {
        let mallory = Member::join(town, Role::Worker).await;
        evict(town, mallory.id()).await;
        std::fs::remove_dir_all(mallory.store.dir()).unwrap();
        generation += 1;
        until("all that run have the next key", async || {
            for daemon in town.running() {
                let known = daemon.status().await?.discovery_generation;
                ensure!(known >= generation, "{} has that of generation {known}", daemon.name);
            }
            Ok(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_missed_the_new_keys_is_reached_and_given_them() {
    let mut town = Town::start("").await;
    town.named_mut("gamma").kill().await;
    town.healthy().await;
    change_the_key_twice(&town).await;
    let net = town.net.clone();
    town.named_mut("gamma").run(&net);
    town.healthy().await;
    until("it has the newest key", async || {
        let generation = town.named("gamma").status().await?.discovery_generation;
        ensure!(generation == 2, "it has that of generation {generation}");
        Ok(())
    })
    .await;
}

/// Nobody can tell it: the others do not dial it, and it finds none of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_publisher_that_nobody_can_tell_waits() {
    let mut town = Town::start("").await;
    let beta = town.named("beta").id;
    town.named_mut("beta").kill().await;
    town.healthy().await;
    evict(&town, beta).await;
    change_the_key_twice(&town).await;
    let before = town.publisher().await;
    let mut away = town.daemons.remove(1);
    away.run(&town.net);
    until("it knows that it is shut out", async || {
        ensure!(away.status().await?.shut_out, "it does not");
        Ok(())
    })
    .await;
    let visitors = town.visitors();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let status = away.status().await.unwrap();
    assert!(status.shut_out && status.phase == Phase::Joining && status.publisher.is_none(), "{status:?}");
    visitors.all_served().await;
    town.healthy().await;
    town.publishes_by_itself(&before, beta).await;
    assert!(away.shown().contains("none of this node's discovery keys"), "{}", away.shown());
    away.kill().await;
}
