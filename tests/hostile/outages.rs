//! An observer that knows the address, and fetches its descriptor again and again, to see when
//! which machine is down.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use rustbalance::tor::descriptor;
use rustbalance_gossip::bytes::FixedBytes;

use crate::evicted::evict;
use crate::town::{Town, until};

/// The session keys in the descriptors of the current period, on all directories.
fn published(town: &Town) -> BTreeSet<FixedBytes<32>> {
    let period = town.net.periods()[0];
    let held = town.net.directories(town.service(), period).into_iter();
    let texts = held.filter_map(|directory| town.net.held(&directory, town.service(), period));
    let read = |text: String| descriptor::read(&text, town.service(), period, SystemTime::now()).unwrap().points;
    texts.flat_map(read).map(|point| point.session_key).collect()
}

/// A cluster with all its points in the descriptor, three of each node, and their session keys.
async fn settled(extra: &str) -> (Town, BTreeSet<FixedBytes<32>>) {
    let town = Town::start(extra).await;
    let all = until("all points are published", async || {
        let all = published(&town);
        ensure!(all.len() == 9, "{} are", all.len());
        Ok(all)
    })
    .await;
    (town, all)
}

/// At how many points of gamma the publishers serve.
async fn stood_in_for(town: &Town) -> Result<usize> {
    let gamma = town.named("gamma").id.to_string();
    let mut points = 0;
    for daemon in town.running() {
        points += daemon.status().await?.stand_ins.iter().filter(|point| point.node == gamma).count();
    }
    Ok(points)
}

/// Whether the points of gamma are in the descriptor still, as its members know.
async fn is_published(town: &Town) -> Result<bool> {
    let gamma = town.named("gamma").id.to_string();
    let status = town.named("alpha").status().await?;
    Ok(status.publication.is_some_and(|it| it.intro_points.iter().any(|point| point.node == gamma)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hidden_outage_does_not_show_in_the_descriptor_and_costs_no_client() {
    let (mut town, before) = settled("hide_outages = true\n").await;
    assert!(is_published(&town).await.unwrap());
    town.named_mut("gamma").kill().await;
    until("all points of the dead are served", async || {
        let points = stood_in_for(&town).await?;
        ensure!(points == 3, "{points} are");
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
    // The operator sees it all the same.
    assert!(town.named("alpha").shown().contains("silent"));
    // An evicted node is not named any longer.
    evict(&town, town.named("gamma").id).await;
    until("its points have left", async || {
        ensure!(!is_published(&town).await?, "alpha wants them still");
        ensure!(published(&town).intersection(&before).count() <= 6, "they stand there");
        Ok(())
    })
    .await;
}

/// What the setting is for, and that the test above would notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_is_not_hidden_shows_within_seconds() {
    let (mut town, before) = settled("").await;
    town.named_mut("gamma").kill().await;
    until("its points have left", async || {
        ensure!(published(&town).intersection(&before).count() <= 6, "they stand there");
        Ok(())
    })
    .await;
}
