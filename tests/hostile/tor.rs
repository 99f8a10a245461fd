//! A node whose Tor client ends, as Arti does when it cannot continue. The daemon reports that
//! cause and not one of its consequences, and the other nodes continue to serve.

use rustbalance::node::NodeError;
use rustbalance::tor::TorError;

use crate::test_cluster::TestCluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_tor_ends_and_says_why() {
    let mut test_cluster = TestCluster::start("").await;
    test_cluster.named("gamma").engine.kill();
    let error = test_cluster.named_mut("gamma").end().await;
    assert!(matches!(error, NodeError::Tor(TorError::Stopped(_))), "{error}");
    assert!(!error.is_permanent(), "a restart helps, so the error must not be permanent");
    test_cluster.healthy().await;
    let net = test_cluster.net.clone();
    test_cluster.named_mut("gamma").run(&net);
    test_cluster.healthy().await;
}
