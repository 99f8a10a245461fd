//! A state directory that runs twice, as after a machine was cloned or an old image was started
//! beside its original.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustbalance::node::NodeError;

use crate::test_cluster::{TestCluster, until};

/// From the start of the copy until both have ended.
const NOTICED: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_with_one_key_both_end_and_disturb_no_other_node() {
    let mut test_cluster = TestCluster::start("").await;
    let (from, id) = (test_cluster.named("alpha").dir.clone(), test_cluster.named("alpha").id);
    let to = from.with_file_name("copy");
    test_cluster.named_mut("alpha").kill().await;
    assert!(Command::new("cp").arg("-a").arg(&from).arg(&to).status().unwrap().success());
    let net = test_cluster.net.clone();
    test_cluster.named_mut("alpha").run(&net);
    test_cluster.healthy().await;
    let points = test_cluster.named("beta").status().await.unwrap().intro_points.len();
    let visitors = test_cluster.visitors();
    let started = Instant::now();
    test_cluster.add("copy", id, to).await;
    until("both have ended", async || {
        let status = test_cluster.named("beta").status().await?;
        ensure!(status.intro_points.len() >= points, "beta has lost points: {:?}", status.intro_points);
        ensure!(
            test_cluster.named("alpha").has_ended() && test_cluster.named("copy").has_ended(),
            "a process continues to run"
        );
        Ok(())
    })
    .await;
    assert!(started.elapsed() < NOTICED, "{:?}", started.elapsed());
    for name in ["alpha", "copy"] {
        let why = test_cluster.named_mut(name).end().await;
        assert!(matches!(&why, NodeError::Excluded(why) if why.contains("second process")), "{why}");
    }
    test_cluster.daemons.retain(|daemon| daemon.name != "copy");
    test_cluster.healthy().await;
    // The other nodes report the doubled key, and a single process is accepted again.
    let shown = test_cluster.named("beta").shown();
    assert!(shown.contains("two processes run with the key of node"), "{shown}");
    test_cluster.named_mut("alpha").run(&net);
    test_cluster.healthy().await;
    let seen = visitors.end().await;
    assert!(seen.failures.len() <= 2, "more visits have failed than the two ends explain: {seen:?}");
}
