//! Coordinators on real chitchat, in memory and with paused time: joins, deaths, a partition and
//! its end, with the time and traffic that they take.
//!
//! `cargo test -p rustbalance-mesh --test real_gossip -- --nocapture` prints the measurements;
//! `GOSSIP_NODES=3,10,50` sets the cluster sizes.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::time::Duration;

use cluster::Cluster;
use rustbalance_mesh::ROUND;
use tokio::time::sleep;

mod cluster;

/// Runs a cluster of this size through a join, deaths and a partition. Prints the times and the
/// traffic, and checks that they are within bounds.
async fn life_of_a_cluster(count: u32) {
    let mut cluster = Cluster::start(count, ROUND).await;
    // Each is printed at once: a large cluster takes minutes.
    let show = |what: &str, took: Duration| eprintln!("{count} nodes: {what} in {:.0} s", took.as_secs_f64());
    let formed = cluster.until("the cluster forms", Cluster::agrees).await;
    show("formed", formed);
    sleep(Duration::from_secs(20)).await;
    let traffic = cluster.traffic(Duration::from_secs(30)).await;
    let kilobytes = traffic.bytes / 1000;
    eprintln!("{count} nodes: {} messages and {kilobytes} kB per node and minute", traffic.messages);

    cluster.add(count).await;
    let joined = cluster.until("a join is known", Cluster::agrees).await;
    show("a join known", joined);
    let publisher = cluster.publisher().unwrap();
    let other = if publisher == 0 { 1 } else { 0 };
    let died = cluster.kill(other).await;
    show("a death known", died);
    let publisher = cluster.publisher().unwrap();
    let followed = cluster.kill(publisher).await;
    show("the publisher's death known", followed);

    cluster.split(Duration::from_secs(60)).await;
    let one = cluster.until("one publisher after the partition", |cluster| cluster.publisher().is_some()).await;
    show("one publisher after a partition", one);
    let healed = one + cluster.until("all agree after the partition", Cluster::agrees).await;
    show("all agree after a partition", healed);
    let within = |what: &str, took: Duration, most: u64| assert!(took <= Duration::from_secs(most), "{what}: {took:?}");
    within("forming", formed, 40);
    within("a join", joined, 30);
    within("a death", died, 45);
    within("the publisher's death", followed, 60);
    within("one publisher after a partition", one, 30);
    within("agreement after a partition", healed, 60);
    assert!(traffic.bytes < 4_000_000, "{traffic:?} per node and minute");
}

#[tokio::test(start_paused = true)]
async fn clusters_of_each_size_agree_through_joins_deaths_and_a_partition() {
    let sizes = std::env::var("GOSSIP_NODES").unwrap_or_else(|_| "3,60".into());
    for size in sizes.split(',') {
        life_of_a_cluster(size.parse().unwrap()).await;
    }
}

/// In a cluster of a hundred, the rate limit allows a node less than one question per round, and
/// chitchat counts a node that was cut off for half a minute as dead. Shorter rounds show this with
/// fewer nodes.
#[tokio::test(start_paused = true)]
async fn the_halves_of_a_partition_agree_again_if_few_questions_are_allowed() {
    let cluster = Cluster::start(40, ROUND / 4).await;
    cluster.until("the cluster forms", Cluster::agrees).await;
    cluster.split(Duration::from_secs(45)).await;
    let healed = cluster.until("all agree after the partition", Cluster::agrees).await;
    assert!(healed <= Duration::from_secs(60), "{healed:?}");
}
