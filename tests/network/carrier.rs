//! Runs the conformance suite of mesh carriers on links over Tor.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conformance::{Ground, LinkedNetwork};
use rustbalance::link::LinkLimits;
use rustbalance::tor::Engine;
use rustbalance_mesh::conformance::check_all;

use crate::support::{Arti, ClusterPermit, Progress};

#[path = "../../src/link/conformance.rs"]
mod conformance;

/// One Tor client for each node. This network cannot be partitioned.
struct Tor {
    clients: Vec<Arti>,
}

#[async_trait]
impl Ground for Tor {
    async fn engine(&self, number: usize) -> Arc<dyn Engine> {
        Arc::clone(&self.clients[number].engine) as Arc<dyn Engine>
    }

    fn part(&self, _side: &[usize], _others: &[usize]) -> bool {
        false
    }

    fn heal(&self) {}

    fn limits(&self) -> LinkLimits {
        // Short pauses, so that a killed node is dialled again soon: the defaults suit a cluster in
        // operation.
        LinkLimits { pause: (Duration::from_millis(500), Duration::from_secs(5)), ..LinkLimits::default() }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(120)
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(500)
    }
}

#[test]
fn links_over_tor_are_a_carrier_of_the_mesh() {
    let _turn = ClusterPermit::take();
    let mut progress = Progress::new("carrier");
    let clients = (0..5).map(|number| Arti::start(&format!("carrier-{number}")).unwrap()).collect();
    let ground = Tor { clients };
    progress.report(format_args!("five Tor clients are ready"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(check_all(|| LinkedNetwork::new(&ground)));
    progress.report(format_args!("done"));
}
