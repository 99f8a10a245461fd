//! An observer that knows the address fetches its descriptor repeatedly, to learn which machine is
//! down at which time.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use rustbalance::tor::descriptor;
use rustbalance_gossip::bytes::FixedBytes;

use crate::evicted::evict;
use crate::test_cluster::{TestCluster, until};

/// The session keys in the descriptors on all directories of the current period.
fn published(test_cluster: &TestCluster) -> BTreeSet<FixedBytes<32>> {
    let period = test_cluster.net.periods()[0];
    let held = test_cluster.net.directories(test_cluster.service(), period).into_iter();
    let texts = held.filter_map(|directory| test_cluster.net.held(&directory, test_cluster.service(), period));
    let read =
        |text: String| descriptor::read(&text, test_cluster.service(), period, SystemTime::now()).unwrap().points;
    texts.flat_map(read).map(|point| point.session_key).collect()
}

/// A cluster with three published points of each node, and the session keys of these points.
async fn settled(extra: &str) -> (TestCluster, BTreeSet<FixedBytes<32>>) {
    let test_cluster = TestCluster::start(extra).await;
    let all = until("all points are published", async || {
        let all = published(&test_cluster);
        ensure!(all.len() == 9, "{} are published", all.len());
        Ok(all)
    })
    .await;
    (test_cluster, all)
}

/// The number of gamma's points at which the publishers stand in.
async fn stood_in_for(test_cluster: &TestCluster) -> Result<usize> {
    let gamma = test_cluster.named("gamma").id.to_string();
    let mut points = 0;
    for daemon in test_cluster.running() {
        points += daemon.status().await?.stand_ins.iter().filter(|point| point.node == gamma).count();
    }
    Ok(points)
}

/// Whether gamma has a point in the current publication, as alpha knows it.
async fn is_published(test_cluster: &TestCluster) -> Result<bool> {
    let gamma = test_cluster.named("gamma").id.to_string();
    let status = test_cluster.named("alpha").status().await?;
    Ok(status.publication.is_some_and(|publication| publication.intro_points.iter().any(|point| point.node == gamma)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hidden_outage_does_not_show_in_the_descriptor_and_costs_no_client() {
    let (mut test_cluster, before) = settled("hide_outages = true\n").await;
    assert!(is_published(&test_cluster).await.unwrap());
    test_cluster.named_mut("gamma").kill().await;
    until("publishers stand in at all points of the dead node", async || {
        let points = stood_in_for(&test_cluster).await?;
        ensure!(points == 3, "at {points} points");
        Ok(())
    })
    .await;
    let visitors = test_cluster.visitors();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(published(&test_cluster), before, "the descriptor shows that a machine is down");
        assert!(is_published(&test_cluster).await.unwrap());
    }
    visitors.all_served().await;
    // The operator still sees the outage.
    assert!(test_cluster.named("alpha").shown().contains("silent"));
    // An evicted node's points are withdrawn.
    evict(&test_cluster, test_cluster.named("gamma").id).await;
    until("gamma's points have left the descriptor", async || {
        ensure!(!is_published(&test_cluster).await?, "alpha still publishes them");
        ensure!(
            published(&test_cluster).intersection(&before).count() <= 6,
            "gamma's points are still in the descriptor"
        );
        Ok(())
    })
    .await;
}

/// Shows the purpose of the setting, and that the test above would detect an outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_is_not_hidden_shows_within_seconds() {
    let (mut test_cluster, before) = settled("").await;
    test_cluster.named_mut("gamma").kill().await;
    until("gamma's points have left the descriptor", async || {
        ensure!(
            published(&test_cluster).intersection(&before).count() <= 6,
            "gamma's points are still in the descriptor"
        );
        Ok(())
    })
    .await;
}
