//! Whole nodes on real chitchat, in memory and under paused time: joins, deaths, a partition and its end, and what all
//! that costs.
//!
//! `cargo test -p rustbalance-mesh --test real_gossip -- --nocapture` prints what was measured;
//! `GOSSIP_NODES=3,10,50` chooses the sizes.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod cluster;

use std::time::Duration;

use cluster::Cluster;
use rustbalance_mesh::ROUND;
use tokio::time::sleep;

/// Everything once, in a cluster of this size; within bounds, and told.
async fn life_of_a_cluster(count: u32) {
    let mut cluster = Cluster::start(count, ROUND).await;
    let formed = cluster.until("the cluster forms", Cluster::agrees).await;
    sleep(Duration::from_secs(20)).await;
    let traffic = cluster.traffic(Duration::from_secs(30)).await;

    cluster.add(count).await;
    let joined = cluster.until("a join is known", Cluster::agrees).await;
    let publisher = cluster.publisher().unwrap();
    let other = if publisher == 0 { 1 } else { 0 };
    let died = cluster.kill(other).await;
    let publisher = cluster.publisher().unwrap();
    let followed = cluster.kill(publisher).await;

    cluster.split(Duration::from_secs(60)).await;
    let one = cluster.until("one publisher after the partition", |it| it.publisher().is_some()).await;
    let healed = one + cluster.until("all agree after the partition", Cluster::agrees).await;
    eprintln!(
        "{count} nodes: formed in {:.0} s, a join {:.0} s, a death {:.0} s, the publisher's {:.0} s, after a partition one \
         publisher in {:.0} s and all agree in {:.0} s; {} messages and {} kB a node and minute",
        formed.as_secs_f64(),
        joined.as_secs_f64(),
        died.as_secs_f64(),
        followed.as_secs_f64(),
        one.as_secs_f64(),
        healed.as_secs_f64(),
        traffic.messages,
        traffic.bytes / 1000,
    );
    let within = |what: &str, took: Duration, most: u64| assert!(took <= Duration::from_secs(most), "{what}: {took:?}");
    within("forming", formed, 40);
    within("a join", joined, 30);
    within("a death", died, 45);
    within("the publisher's death", followed, 60);
    within("one publisher after a partition", one, 30);
    within("agreement after a partition", healed, 60);
    assert!(traffic.bytes < 4_000_000, "{traffic:?} a node and minute");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_lives() {
    let sizes = std::env::var("GOSSIP_NODES").unwrap_or_else(|_| "3,60".into());
    for size in sizes.split(',') {
        life_of_a_cluster(size.parse().unwrap()).await;
    }
}

/// In a cluster of a hundred a node may ask less than one question a round, and to chitchat who was cut off for half a minute is
/// dead. Here rounds are shorter instead, so that fewer nodes show it.
#[tokio::test(start_paused = true)]
async fn halves_meet_again_where_few_questions_can_be_asked() {
    let cluster = Cluster::start(40, ROUND / 4).await;
    cluster.until("the cluster forms", Cluster::agrees).await;
    cluster.split(Duration::from_secs(45)).await;
    let healed = cluster.until("all agree after the partition", Cluster::agrees).await;
    assert!(healed <= Duration::from_secs(60), "{healed:?}");
}
