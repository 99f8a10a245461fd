//! Links between nodes that have Tor and WireGuard, over networks in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::id::NodeId;
use tokio::time::{Instant, sleep, timeout};

use crate::link::conformance::{Launched, TestCluster, launch_with};
use crate::link::{Channel, LinkLimits, Links, Route, RouteKind};
use crate::tor::fake::FakeNet;
use crate::wireguard::conformance::{Ground, PATIENCE, until};
use crate::wireguard::userspace::tests::memory::MemoryNet;
use crate::wireguard::{Desired, Engine, Peer, WireguardRoute, WireguardSecret};

const SECOND: Duration = Duration::from_secs(1);

/// A node with both routes.
struct Node {
    launched: Launched,
    wireguard: Arc<dyn Engine>,
}

/// Two nodes whose links may go either way.
struct TestPair {
    world: TestCluster,
    net: MemoryNet,
    nodes: Vec<Node>,
    frames: u64,
    _tor: FakeNet,
}

impl TestPair {
    async fn start() -> Self {
        let (world, net, tor) = (TestCluster::new(), MemoryNet::new(), FakeNet::new(1, 30));
        let mut nodes = Vec::new();
        let mut peers = BTreeMap::new();
        let keys: Vec<_> = (0..2).map(|_| WireguardSecret::generate(&mut rand::rng())).collect();
        for (i, key) in keys.iter().enumerate() {
            let started = net.start(world.node(i)).await;
            let peer = Peer { keys: vec![key.public()], endpoints: vec![started.endpoint] };
            peers.insert(world.node(i), peer);
            let route: Arc<dyn Route> = Arc::new(WireguardRoute::new(Arc::clone(&started.engine)));
            let limits = LinkLimits::default();
            let launched = launch_with(&world, tor.engine(), vec![route], i, world.set(0..2), limits).await;
            let links = Arc::downgrade(&launched.links);
            let mut arrivals = started.arrivals;
            tokio::spawn(async move {
                while let Some(stream) = arrivals.recv().await {
                    let Some(links) = links.upgrade() else { break };
                    links.accept(Channel::from(stream));
                }
            });
            nodes.push(Node { launched, wireguard: started.engine });
        }
        for (node, key) in nodes.iter().zip(keys) {
            node.wireguard.apply(Desired { own: vec![key], peers: peers.clone() });
        }
        Self { world, net, nodes, frames: 0, _tor: tor }
    }

    fn links(&self, i: usize) -> &Links {
        &self.nodes[i].launched.links
    }

    fn peer(&self, i: usize) -> NodeId {
        self.world.node(1 - i)
    }

    /// Whether both nodes send by this route.
    fn carries(&self, route: RouteKind) -> bool {
        (0..2).all(|i| {
            let links = self.links(i).status();
            links.iter().any(|link| link.peer == self.peer(i) && link.carries && link.route == route)
        })
    }

    /// Sends a numbered frame each way every 100 ms, and returns the longest time that one took.
    /// A frame may come twice when the route changes.
    async fn exchange(&mut self, time: Duration) -> Duration {
        let (end, mut longest) = (Instant::now() + time, Duration::ZERO);
        while Instant::now() < end {
            let start = Instant::now();
            self.frames += 1;
            let mut frame = self.frames.to_be_bytes().to_vec();
            frame.resize(1000, 7);
            for i in 0..2 {
                let peer = self.peer(i);
                (self.nodes[i].launched.outputs.carrier.send)(peer, frame.clone());
            }
            for node in &mut self.nodes {
                let received = &mut node.launched.outputs.carrier.received;
                let came = async { while received.recv().await.unwrap().1 != frame {} };
                timeout(PATIENCE, came).await.expect("a frame was lost");
            }
            longest = longest.max(start.elapsed());
            sleep(SECOND / 10).await;
        }
        longest
    }
}

#[tokio::test(start_paused = true)]
async fn frames_go_by_wireguard_fall_back_to_tor_in_five_seconds_and_return() {
    let mut pair = TestPair::start().await;
    until("links over both", || (0..2).all(|i| pair.links(i).status().len() == 2)).await;
    until("frames go by WireGuard", || pair.carries(RouteKind::WIREGUARD)).await;
    assert_eq!(RouteKind::WIREGUARD.to_string(), "wireguard");
    assert!(pair.exchange(5 * SECOND).await < SECOND / 10);
    // UDP stops silently.
    pair.net.lose(1.0);
    let longest = pair.exchange(10 * SECOND).await;
    assert!(longest < 5 * SECOND, "a frame took {longest:?}");
    assert!(pair.carries(RouteKind::TOR));
    assert!(!pair.nodes[0].wireguard.reaches(pair.peer(0)));
    pair.net.lose(0.0);
    until("the session is up", || (0..2).all(|i| pair.nodes[i].wireguard.reaches(pair.peer(i)))).await;
    assert!(pair.carries(RouteKind::TOR), "trusted again at once");
    until("frames go by WireGuard again", || pair.carries(RouteKind::WIREGUARD)).await;
    assert!(pair.exchange(5 * SECOND).await < SECOND / 10);
}

#[tokio::test(start_paused = true)]
async fn an_evicted_nodes_link_ends_with_its_key() {
    let pair = TestPair::start().await;
    until("frames go by WireGuard", || pair.carries(RouteKind::WIREGUARD)).await;
    pair.nodes[0].wireguard.apply(Desired::default());
    let has_link = |i: usize| pair.links(i).status().iter().any(|link| link.route == RouteKind::WIREGUARD);
    until("the link has ended", || !has_link(0) && !has_link(1)).await;
    sleep(20 * SECOND).await;
    assert!(!has_link(0) && !has_link(1) && pair.carries(RouteKind::TOR));
}
