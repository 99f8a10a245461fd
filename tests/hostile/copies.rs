//! A state directory that runs twice, as after a machine was cloned or an old image was started
//! beside its original.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustbalance::node::NodeError;

use crate::town::{Town, until};

/// From the start of the copy until both have ended.
const NOTICED: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_with_one_key_both_end_and_disturb_no_other_node() {
    let mut town = Town::start("").await;
    let (from, id) = (town.named("alpha").dir.clone(), town.named("alpha").id);
    let to = from.with_file_name("copy");
    town.named_mut("alpha").kill().await;
    assert!(Command::new("cp").arg("-a").arg(&from).arg(&to).status().unwrap().success());
    let net = town.net.clone();
    town.named_mut("alpha").run(&net);
    town.healthy().await;
    let points = town.named("beta").status().await.unwrap().intro_points.len();
    let visitors = town.visitors();
    let started = Instant::now();
    town.add("copy", id, to).await;
    until("both have ended", async || {
        let status = town.named("beta").status().await?;
        ensure!(status.intro_points.len() >= points, "beta has lost points: {:?}", status.intro_points);
        ensure!(town.named("alpha").has_ended() && town.named("copy").has_ended(), "a process continues to run");
        Ok(())
    })
    .await;
    assert!(started.elapsed() < NOTICED, "{:?}", started.elapsed());
    for name in ["alpha", "copy"] {
        let why = town.named_mut(name).end().await;
        assert!(matches!(&why, NodeError::Excluded(why) if why.contains("second process")), "{why}");
    }
    town.daemons.retain(|daemon| daemon.name != "copy");
    town.healthy().await;
    // The other nodes report the doubled key, and a single process is accepted again.
    let shown = town.named("beta").shown();
    assert!(shown.contains("two processes run with the key of node"), "{shown}");
    town.named_mut("alpha").run(&net);
    town.healthy().await;
    let seen = visitors.end().await;
    assert!(seen.failures.len() <= 2, "more visits have failed than the two ends explain: {seen:?}");
}
