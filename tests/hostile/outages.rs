//! An observer that knows the address fetches its descriptor repeatedly, to learn which machine is
//! down at which time.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use rustbalance::tor::descriptor;
use rustbalance_gossip::bytes::FixedBytes;

use crate::evicted::evict;
use crate::town::{Town, until};

/// The session keys in the descriptors on all directories of the current period.
fn published(town: &Town) -> BTreeSet<FixedBytes<32>> {
    let period = town.net.periods()[0];
    let held = town.net.directories(town.service(), period).into_iter();
    let texts = held.filter_map(|directory| town.net.held(&directory, town.service(), period));
    let read = |text: String| descriptor::read(&text, town.service(), period, SystemTime::now()).unwrap().points;
    texts.flat_map(read).map(|point| point.session_key).collect()
}

/// A cluster with three published points of each node, and the session keys of these points.
async fn settled(extra: &str) -> (Town, BTreeSet<FixedBytes<32>>) {
    let town = Town::start(extra).await;
    let all = until("all points are published", async || {
        let all = published(&town);
        ensure!(all.len() == 9, "{} are published", all.len());
        Ok(all)
    })
    .await;
    (town, all)
}

/// The number of gamma's points at which the publishers stand in.
async fn stood_in_for(town: &Town) -> Result<usize> {
    let gamma = town.named("gamma").id.to_string();
    let mut points = 0;
    for daemon in town.running() {
        points += daemon.status().await?.stand_ins.iter().filter(|point| point.node == gamma).count();
    }
    Ok(points)
}

/// Whether gamma has a point in the current publication, as alpha knows it.
async fn is_published(town: &Town) -> Result<bool> {
    let gamma = town.named("gamma").id.to_string();
    let status = town.named("alpha").status().await?;
    Ok(status.publication.is_some_and(|publication| publication.intro_points.iter().any(|point| point.node == gamma)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hidden_outage_does_not_show_in_the_descriptor_and_costs_no_client() {
    let (mut town, before) = settled("hide_outages = true\n").await;
    assert!(is_published(&town).await.unwrap());
    town.named_mut("gamma").kill().await;
    until("publishers stand in at all points of the dead node", async || {
        let points = stood_in_for(&town).await?;
        ensure!(points == 3, "at {points} points");
        Ok(())
    })
    .await;
    let visitors = town.visitors();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(published(&town), before, "the descriptor shows that a machine is down");
        assert!(is_published(&town).await.unwrap());
    }
    visitors.all_served().await;
    // The operator still sees the outage.
    assert!(town.named("alpha").shown().contains("silent"));
    // An evicted node's points are withdrawn.
    evict(&town, town.named("gamma").id).await;
    until("gamma's points have left the descriptor", async || {
        ensure!(!is_published(&town).await?, "alpha still publishes them");
        ensure!(published(&town).intersection(&before).count() <= 6, "gamma's points are still in the descriptor");
        Ok(())
    })
    .await;
}

/// Shows the purpose of the setting, and that the test above would detect an outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_is_not_hidden_shows_within_seconds() {
    let (mut town, before) = settled("").await;
    town.named_mut("gamma").kill().await;
    until("gamma's points have left the descriptor", async || {
        ensure!(published(&town).intersection(&before).count() <= 6, "gamma's points are still in the descriptor");
        Ok(())
    })
    .await;
}
