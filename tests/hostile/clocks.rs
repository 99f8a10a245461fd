//! Clocks: a member that lies about the time changes nothing, and a publisher whose clock is proven
//! wrong hands over.

use std::time::Duration;

use anyhow::{Context, ensure};
use rustbalance::clock::unix_now;
use rustbalance::control::ProblemKind;
use rustbalance::tor::NetworkTime;
use rustbalance_gossip::coordinator::Isolated;
use rustbalance_gossip::record::{Heartbeat, Phase, RecordKind, Role};
use tokio::time::sleep;

use crate::member::Member;
use crate::test_cluster::{TestCluster, until};

/// Judgements of the clock that a node makes before it acts, and one more: 2 s each.
const JUDGED: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lies_about_the_time_stops_no_node_and_a_directory_ahead_of_the_clock_does() {
    let test_cluster = TestCluster::start("").await;
    let mallory = Member::join(&test_cluster, Role::Publisher).await;
    let mut raw_links = mallory.open(&test_cluster, 1).await;
    let raw_gossip = mallory.speak(&test_cluster, &mut raw_links).await;
    let (cluster, me) = (test_cluster.cluster, mallory.id());
    let lying = async {
        for seq in (1 << 32) + 1.. {
            let unix = unix_now() + 7200;
            let beat = Heartbeat { cluster, node: me, seq, phase: Phase::Active, hears: 3, unix, instance: 1 };
            raw_gossip.announce(RecordKind::Heartbeat, &mallory.sign(beat));
            sleep(Duration::from_millis(300)).await;
        }
    };
    let honest = async {
        until("every node takes the liar for alive", async || {
            for daemon in test_cluster.running() {
                let status = daemon.status().await?;
                let known = status.members.iter().find(|member| member.node == me.to_string());
                ensure!(known.is_some_and(|member| member.alive), "{} does not", daemon.name);
                ensure!(status.clock.ahead_seconds.is_some(), "{} compares its clock with none", daemon.name);
            }
            Ok(())
        })
        .await;
        sleep(JUDGED).await;
        for daemon in test_cluster.running() {
            let status = daemon.status().await.unwrap();
            assert!(!status.clock.proven && status.isolated.is_none(), "{}: {:?}", daemon.name, status.clock);
            assert!(status.clock.ahead_seconds.unwrap().abs() < 60, "{}: {:?}", daemon.name, status.clock);
        }
    };
    tokio::select! {
        () = lying => {}
        () = honest => {}
    }

    let (publisher, _) = test_cluster.publisher().await;
    let publishing = test_cluster.running().find(|daemon| daemon.id.to_string() == publisher).unwrap();
    let ahead = NetworkTime { valid_after: Some(unix_now() + 3000), ahead: None };
    publishing.engine.set_time(ahead);
    until("the publisher says that its clock is wrong, and another node publishes", async || {
        let status = publishing.status().await?;
        ensure!(status.isolated == Some(Isolated::ClockOff), "{:?}", status.isolated);
        let problem =
            status.problems.iter().find(|problem| problem.kind == ProblemKind::ClockOff).context("no problem")?;
        ensure!(problem.text.contains("behind") && problem.text.contains("does not publish"), "{}", problem.text);
        ensure!(status.publisher.is_some_and(|now| now.node != publisher), "it publishes");
        Ok(())
    })
    .await;
    publishing.engine.set_time(NetworkTime { valid_after: Some(unix_now() - 3000), ahead: None });
    until("the clock is right again", async || {
        let status = publishing.status().await?;
        ensure!(status.isolated.is_none() && !status.clock.proven, "{:?}", status.clock);
        Ok(())
    })
    .await;
}
