//! A node whose Tor client ends, as Arti does when it cannot continue. The daemon reports that
//! cause and not one of its consequences, and the other nodes continue to serve.

use rustbalance::node::NodeError;
use rustbalance::tor::TorError;

use crate::town::Town;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_tor_ends_and_says_why() {
    let mut town = Town::start("").await;
    town.named("gamma").engine.kill();
    let error = town.named_mut("gamma").end().await;
    assert!(matches!(error, NodeError::Tor(TorError::Stopped(_))), "{error}");
    assert!(!error.is_permanent(), "a restart helps, so the error must not be permanent");
    town.healthy().await;
    let net = town.net.clone();
    town.named_mut("gamma").run(&net);
    town.healthy().await;
}
