//! Members that were offline while the discovery key was changed: one that was evicted meanwhile,
//! one that was not, and one that has changed the key, too.

use std::time::Duration;

use anyhow::ensure;
use rustbalance::clock::unix_now;
use rustbalance::discovery::{Discovery, OVERLAP};
use rustbalance::keys::NodeSecret;
use rustbalance::store::Store;
use rustbalance_gossip::coordinator::Isolated;
use rustbalance_gossip::record::{Revocation, Role};
use rustbalance_gossip::signed::Verified;
use rustbalance_gossip::view::Condition;

use crate::evicted::evict;
use crate::member::Member;
use crate::test_cluster::{TestCluster, until};

/// Joins and evicts two members. This changes the discovery key twice, so that no node accepts the
/// first one.
async fn change_the_key_twice(test_cluster: &TestCluster) {
    let mut generation = test_cluster.named("alpha").status().await.unwrap().discovery_generation;
    for _ in 0..2 {
        let mallory = Member::join(test_cluster, Role::Worker).await;
        evict(test_cluster, mallory.id()).await;
        std::fs::remove_dir_all(mallory.store.dir()).unwrap();
        generation += 1;
        until("all running nodes have the next key", async || {
            for daemon in test_cluster.running() {
                let known = daemon.status().await?.discovery_generation;
                ensure!(known >= generation, "{} has the key of generation {known}", daemon.name);
            }
            Ok(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_the_new_keys_is_reached_and_receives_them() {
    let mut test_cluster = TestCluster::start("").await;
    test_cluster.named_mut("gamma").kill().await;
    test_cluster.healthy().await;
    change_the_key_twice(&test_cluster).await;
    let net = test_cluster.net.clone();
    test_cluster.named_mut("gamma").run(&net);
    test_cluster.healthy().await;
    until("gamma has the newest key", async || {
        let generation = test_cluster.named("gamma").status().await?.discovery_generation;
        ensure!(generation == 2, "it has the key of generation {generation}");
        Ok(())
    })
    .await;
}

/// Alpha was partitioned from the others. Each side has evicted a node and made a new discovery key
/// long ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_changed_the_key_separately_find_each_other() {
    const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];
    let mut test_cluster = TestCluster::start("").await;
    for name in NAMES {
        test_cluster.named_mut(name).kill().await;
    }
    let authority = Store::open(&test_cluster.named("alpha").dir).unwrap().authority_secret().unwrap().unwrap();
    let evicted = NodeSecret::generate(&mut rand::rng()).node_id();
    let revocation = Revocation { cluster: test_cluster.cluster, node: evicted, revoked: unix_now() };
    let revocation = Verified::sign(revocation, &authority).unwrap();
    let [key, other] =
        [(); 2].map(|()| Discovery::generate(test_cluster.cluster, 1, &authority, &mut rand::rng()).unwrap());
    for (name, key) in NAMES.into_iter().zip([&key, &other, &other]) {
        let store = Store::open(&test_cluster.named(name).dir).unwrap();
        store.put_revocations(std::slice::from_ref(&revocation)).unwrap();
        assert!(store.adopt_discovery(key.duplicate(), unix_now() - 2 * OVERLAP.as_secs()).unwrap().1);
    }
    let net = test_cluster.net.clone();
    for name in NAMES {
        test_cluster.named_mut(name).run(&net);
    }
    until("all nodes are linked with alpha", async || {
        let links = test_cluster.named("alpha").status().await?.links.len();
        ensure!(links == 2, "{links} are linked");
        Ok(())
    })
    .await;
    test_cluster.healthy().await;
    for name in NAMES {
        test_cluster.named_mut(name).kill().await;
    }
    // All nodes have the key of the higher rank.
    let greater = if key.key.rank() > other.key.rank() { key } else { other };
    for name in NAMES {
        let ring = Store::open(&test_cluster.named(name).dir).unwrap().discovery().unwrap();
        assert_eq!(ring.newest().key, greater.key, "{name} has the other key");
    }
}

/// The evicted publisher cannot learn of its eviction: the others do not dial it, and it cannot
/// find them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_publisher_that_cannot_learn_of_it_waits() {
    let mut test_cluster = TestCluster::start("").await;
    let beta = test_cluster.named("beta").id;
    test_cluster.named_mut("beta").kill().await;
    test_cluster.healthy().await;
    evict(&test_cluster, beta).await;
    change_the_key_twice(&test_cluster).await;
    let before = test_cluster.publisher().await;
    let mut away = test_cluster.daemons.remove(1);
    away.run(&test_cluster.net);
    until("the node knows that it is isolated", async || {
        ensure!(away.status().await?.isolated == Some(Isolated::ShutOut), "status shows no isolation");
        Ok(())
    })
    .await;
    let visitors = test_cluster.visitors();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let status = away.status().await.unwrap();
    assert!(
        status.isolated.is_some() && status.phase == Condition::Joining && status.publisher.is_none(),
        "{status:?}"
    );
    visitors.all_served().await;
    test_cluster.healthy().await;
    test_cluster.assert_honest_publisher(&before, beta).await;
    assert!(away.shown().contains("none of this node's discovery keys"), "{}", away.shown());
    away.kill().await;
}
