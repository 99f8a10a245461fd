//! What only a client notices: a directory that lost the descriptor, and an introduction point that
//! its relay has forgotten. No attacker is needed.

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use rustbalance::control::{CanaryDirectoryState, CanaryPointState, CanaryRunStatus, Request, Response};
use rustbalance::tor::descriptor;
use rustbalance_gossip::record::IntroPoint;

use crate::test_cluster::{Daemon, TestCluster, until};

/// Has the canary of a node run at the first service.
async fn canary(daemon: &Daemon) -> Result<CanaryRunStatus> {
    match daemon.call(Request::Canary {}).await? {
        Response::Canary { mut services } => services.pop().context("no service was tried"),
        other => bail!("{} answers {other:?}", daemon.name),
    }
}

/// Runs the command `canary`.
fn command(daemon: &Daemon, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rustbalance"));
    command.arg("--dir").arg(daemon.dir()).arg("canary").args(options).output().unwrap()
}

/// The daemon that publishes.
async fn publisher(cluster: &TestCluster) -> &Daemon {
    let (node, _) = cluster.publisher().await;
    cluster.daemons.iter().find(|daemon| daemon.id.to_string() == node).unwrap()
}

/// A point of this node in the published descriptor, and the number of its points there.
async fn published_point_of(cluster: &TestCluster, daemon: &Daemon) -> (IntroPoint, usize) {
    let (period, service) = (cluster.net.periods()[0], cluster.service());
    let own: Vec<_> = daemon.status().await.unwrap().intro_points.into_iter().map(|point| point.session_key).collect();
    let directory = cluster.net.directories(service, period).swap_remove(0);
    let text = cluster.net.held(&directory, service, period).unwrap();
    let mut points = descriptor::read(&text, service, period, SystemTime::now()).unwrap().points;
    points.retain(|point| own.contains(&data_encoding::HEXLOWER.encode(&point.session_key.0)));
    let count = points.len();
    (points.remove(0), count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_canary_finds_what_clients_meet_and_has_it_repaired() {
    let cluster = TestCluster::start("").await;
    // Every node reaches every point of every node, and the command says so.
    for daemon in cluster.running() {
        until(&format!("{}'s canary finds all well", daemon.name), async || {
            let run = canary(daemon).await?;
            ensure!(run.well && run.directories.len() == 6, "{run:?}");
            let nodes: BTreeSet<_> = run.points.iter().map(|point| &point.node).collect();
            ensure!(nodes.len() == 3, "{run:?}");
            Ok(())
        })
        .await;
    }
    let output = command(cluster.named("gamma"), &["--json"]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"well\": true"), "{output:?}");

    // A directory loses the descriptor: a worker only shows it, the publisher uploads it again.
    let (period, service) = (cluster.net.periods()[0], cluster.service());
    let lost = cluster.net.directories(service, period).swap_remove(0);
    cluster.net.lose_descriptor(&lost, service, period);
    let run = canary(cluster.named("gamma")).await.unwrap();
    let missing = run.directories.iter().filter(|it| it.state == CanaryDirectoryState::Missing);
    assert_eq!(missing.map(|it| it.relay.clone()).collect::<Vec<_>>(), [lost.relay.to_string()], "{run:?}");
    assert!(cluster.named("gamma").status().await.unwrap().canary.repairs.is_empty());
    assert!(cluster.net.held(&lost, service, period).is_none());
    let publishing = publisher(&cluster).await;
    canary(publishing).await.unwrap();
    until("the directory has the descriptor again", async || {
        cluster.net.held(&lost, service, period).map(|_| ()).context("it has none")
    })
    .await;
    let repairs = publishing.status().await.unwrap().canary;
    assert_eq!(repairs.repairs.get("republish"), Some(&1), "{repairs:?}");

    // A relay forgets a point of gamma, and gamma does not notice: three canaries of its own later
    // the point is another one.
    let gamma = cluster.named("gamma");
    let (deaf, before) = published_point_of(&cluster, gamma).await;
    assert!(before > 1, "with one point alone, circuits would be rebuilt first");
    cluster.net.deafen(&deaf);
    let key = data_encoding::HEXLOWER.encode(&deaf.session_key.0);
    let of_publisher = canary(publishing).await.unwrap();
    let failed: Vec<_> = of_publisher.points.iter().filter(|it| it.state != CanaryPointState::Reached).collect();
    assert!(failed.len() == 1 && failed[0].session_key == key && !failed[0].me, "{failed:?}");
    assert_eq!(failed[0].state, CanaryPointState::Introduction);
    let output = command(gamma, &[]);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && shown.contains("not introduced"), "{output:?}");
    assert!(gamma.shown().contains("had trouble"), "{}", gamma.shown());
    canary(gamma).await.unwrap();
    canary(gamma).await.unwrap();
    until("gamma's point is replaced in the descriptor", async || {
        let run = canary(gamma).await?;
        ensure!(run.well && run.points.iter().all(|point| point.session_key != key), "{run:?}");
        Ok(())
    })
    .await;
    let repairs = gamma.status().await.unwrap().canary;
    assert_eq!(repairs.repairs, [("replace_point".to_owned(), 1)].into(), "{repairs:?}");
    cluster.healthy().await;
}
