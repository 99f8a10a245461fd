//! A node whose Tor client ends, as Arti does when it cannot continue. The daemon reports that
//! cause and not one of its consequences, and the other nodes continue to serve.

use std::fs;

use anyhow::ensure;
use rustbalance::node::NodeError;
use rustbalance::tor::TorError;

use crate::test_cluster::{TestCluster, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_tor_ends_and_says_why() {
    let mut test_cluster = TestCluster::start("").await;
    test_cluster.named("gamma").engine.kill();
    let error = test_cluster.named_mut("gamma").end().await;
    assert!(matches!(error, NodeError::Tor(TorError::Stopped(_))), "{error}");
    assert!(!error.is_permanent(), "a restart helps, so the error must not be permanent");
    test_cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_on_with_a_second_client_in_the_same_process_but_not_with_a_third() {
    let mut test_cluster = TestCluster::start("").await;
    let net = test_cluster.net.clone();
    let gamma = test_cluster.named_mut("gamma");
    gamma.stop().await;
    let clients = gamma.run_renewing(&net);
    let files = gamma.dir().join("arti");
    test_cluster.healthy().await;
    assert_eq!(clients.lock().len(), 1);
    fs::create_dir(files.join("state/state")).unwrap();
    fs::write(files.join("state/state/guards.json"), "{}").unwrap();

    clients.lock()[0].kill();
    until("gamma has a second client", async || {
        ensure!(clients.lock().len() == 2, "{} clients", clients.lock().len());
        Ok(())
    })
    .await;
    test_cluster.healthy().await;
    assert_eq!(clients.lock().len(), 2);
    let renewals = test_cluster.named("gamma").status().await.unwrap().tor_renewals;
    let why = renewals.why.unwrap_or_default();
    assert!(renewals.count == 1 && renewals.last.is_some() && why.contains("Tor client has stopped"), "{why}");
    assert!(files.join("1/state/state/guards.json").is_file(), "the second client has other guards than the first");
    assert!(files.join("1/cache").is_dir());

    clients.lock()[1].kill();
    let gamma = test_cluster.named_mut("gamma");
    let error = gamma.end().await;
    assert!(matches!(error, NodeError::Tor(TorError::Stopped(_))), "{error}");
    assert_eq!(clients.lock().len(), 2);
    // The next process has the files of the last client.
    gamma.run(&net);
    test_cluster.healthy().await;
    assert!(files.join("state/state/guards.json").is_file() && !files.join("1").exists());
}
