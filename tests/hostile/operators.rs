//! Operator commands across restarts of whole daemons, without a hostile peer.

use std::time::Duration;

use anyhow::ensure;
use rustbalance::config::Config;
use rustbalance::control::{Request, Response};
use rustbalance::tor::Engine;
use rustbalance_gossip::view::Condition;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::test_cluster::{TestCluster, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_drains_on_after_a_restart_until_it_is_resumed() {
    let mut test_cluster = TestCluster::start("").await;
    let beta = test_cluster.named("beta").id.to_string();
    let drained = async |test_cluster: &TestCluster| {
        until("beta drains and has no clients", async || {
            let status = test_cluster.named("beta").status().await?;
            ensure!(status.phase == Condition::Draining, "beta is {}", status.phase);
            let alpha = test_cluster.named("alpha").status().await?;
            let known = alpha.members.iter().find(|member| member.node == beta);
            ensure!(known.is_some_and(|member| member.alive && member.phase == Some(Condition::Draining)), "{known:?}");
            ensure!(known.is_some_and(|member| member.published == 0), "{known:?}");
            ensure!(alpha.publisher.is_some_and(|publisher| publisher.node != beta), "beta publishes");
            Ok(())
        })
        .await;
    };
    match test_cluster.named("beta").call(Request::Drain {}).await.unwrap() {
        Response::Done { message } => assert!(message.contains("also after a restart"), "{message}"),
        other => panic!("beta does not drain: {other:?}"),
    }
    drained(&test_cluster).await;

    let net = test_cluster.net.clone();
    let node = test_cluster.named_mut("beta");
    node.kill().await;
    node.run(&net);
    until("beta answers", async || test_cluster.named("beta").status().await).await;
    drained(&test_cluster).await;
    let shown = test_cluster.named("beta").shown();
    assert!(shown.contains("this node drains") && shown.contains("`rustbalance resume`"), "{shown}");

    let resumed = test_cluster.named("beta").call(Request::Resume {}).await.unwrap();
    assert!(matches!(resumed, Response::Done { .. }), "{resumed:?}");
    test_cluster.healthy().await;
    let node = test_cluster.named_mut("beta");
    node.kill().await;
    node.run(&net);
    test_cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_under_a_running_daemon() {
    let test_cluster = TestCluster::start("[limits]\nstreams_per_circuit = 1\n").await;
    let (client, address) = (test_cluster.net.engine(), test_cluster.address());
    // All streams use one circuit, so they reach one daemon.
    let open = async || client.dial(address, 80, Duration::from_secs(10)).await;
    let change = |change: fn(&mut Config)| {
        test_cluster.running().for_each(|daemon| assert!(daemon.reconfigure(change).is_empty(), "{}", daemon.name));
    };
    let mut first = open().await.unwrap();
    assert!(open().await.is_err(), "a second stream was accepted on a circuit that may have one");
    change(|config| config.service.streams_per_circuit = 4);
    let second = open().await.unwrap();
    change(|config| {
        config.service.streams_per_circuit = 4;
        config.proxy.streams = 1;
    });
    assert!(open().await.is_err(), "a further stream was accepted by a daemon that may have one");
    drop(second);
    first.write_all(b"name\n").await.unwrap();
    let mut name = String::new();
    first.read_to_string(&mut name).await.unwrap();
    assert!(!name.is_empty(), "the change has broken an open stream");
    let daemon = test_cluster.named("beta");
    assert_eq!(daemon.reconfigure(|config| config.node.weight = 9), ["[node] weight"]);
}
