//! The in-memory network passes the suite for carriers of gossip.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::id::NodeId;
use rustbalance_mesh::Carrier;
use rustbalance_mesh::conformance::{Network, check_all};
use rustbalance_mesh::memory::MemoryNetwork;

#[derive(Default)]
struct InMemory(MemoryNetwork);

#[async_trait]
impl Network for InMemory {
    async fn start(&mut self, count: usize) -> Vec<(NodeId, Carrier)> {
        self.0.set_delay(Duration::from_millis(100));
        let nodes = (1..=count as u8).map(|number| NodeId::from_public_key([number; 32]));
        nodes.map(|node| (node, self.0.join(node))).collect()
    }

    async fn kill(&mut self, node: NodeId) {
        self.0.set_down(node, true);
    }

    async fn restart(&mut self, node: NodeId) -> Carrier {
        self.0.set_down(node, false);
        self.0.join(node)
    }

    async fn part(&mut self, side: &BTreeSet<NodeId>) -> bool {
        side.iter().for_each(|node| self.0.set_side(*node, 1));
        true
    }

    async fn heal(&mut self) {
        self.0.heal();
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(1)
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_network_is_a_carrier_of_the_mesh() {
    check_all(InMemory::default).await;
}
