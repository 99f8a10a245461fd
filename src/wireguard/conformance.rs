//! What every engine must do, as a suite that runs on any [`Ground`].
//!
//! The nodes of a ground reach each other over real sockets or over a network in memory. A test
//! that needs a fault which the ground cannot cause ends there.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use rustbalance_gossip::id::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::{Desired, Engine, EngineError, Peer, TunnelStream, WireguardSecret};

/// Time limit for everything that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Where the nodes of a test run.
#[async_trait]
pub(crate) trait Ground: Send + Sync {
    /// Starts the engine of a node, at an address that no node has had before.
    async fn start(&self, node: NodeId) -> Started;
    /// Loses this part of all datagrams; false if the ground cannot do that.
    fn lose(&self, part: f64) -> bool;
    /// Attempts at a test in which datagrams are lost. More than one where the ground does not draw
    /// the same ones each time, because a stream does not survive every draw (KNOWN-ISSUES).
    fn draws(&self) -> usize {
        1
    }
    /// Sends a datagram from an address that is not a node's.
    async fn inject(&self, to: SocketAddr, datagram: Vec<u8>);
}

/// An engine that runs, without keys.
pub(crate) struct Started {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) arrivals: mpsc::Receiver<TunnelStream>,
    pub(crate) endpoint: SocketAddr,
}

/// A node of a test.
pub(crate) struct TestNode {
    pub(crate) id: NodeId,
    /// The key in use, then one that is coming or going.
    pub(crate) keys: Vec<WireguardSecret>,
    pub(crate) started: Started,
}

impl TestNode {
    pub(crate) async fn start(ground: &dyn Ground, number: u8) -> Self {
        let id = NodeId::from_public_key([number; 32]);
        let keys = vec![WireguardSecret::generate(&mut rand::rng())];
        Self { id, keys, started: ground.start(id).await }
    }

    /// How the others name it.
    pub(crate) fn peer(&self) -> Peer {
        Peer { keys: self.keys.iter().map(WireguardSecret::public).collect(), endpoints: vec![self.started.endpoint] }
    }

    pub(crate) fn apply(&self, peers: BTreeMap<NodeId, Peer>) {
        let own = self.keys.iter().map(WireguardSecret::duplicate).collect();
        self.started.engine.apply(Desired { own, peers });
    }

    pub(crate) async fn dial(&self, to: &Self) -> TunnelStream {
        self.up(to).await;
        self.started.engine.dial(to.id, PATIENCE).await.unwrap()
    }

    /// Waits until the session is up.
    pub(crate) async fn up(&self, to: &Self) {
        until("the session is up", || self.started.engine.reaches(to.id)).await;
    }

    pub(crate) async fn accept(&mut self) -> TunnelStream {
        timeout(PATIENCE, self.started.arrivals.recv()).await.expect("no stream came").unwrap()
    }
}

pub(crate) async fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Lets all nodes have each other as peers.
pub(crate) fn introduce(nodes: &[&TestNode]) {
    for node in nodes {
        let others = nodes.iter().filter(|other| other.id != node.id);
        node.apply(others.map(|other| (other.id, other.peer())).collect());
    }
}

async fn pair(ground: &dyn Ground) -> (TestNode, TestNode) {
    let nodes = (TestNode::start(ground, 1).await, TestNode::start(ground, 2).await);
    introduce(&[&nodes.0, &nodes.1]);
    nodes
}

/// Sends `bytes` one way, and returns what came. Has more time, because datagrams may be lost.
async fn transfer(from: &mut TunnelStream, to: &mut TunnelStream, bytes: &[u8]) -> Vec<u8> {
    let mut received = vec![0; bytes.len()];
    let moved = async { tokio::join!(from.stream.write_all(bytes), to.stream.read_exact(&mut received)) };
    let (written, read) = timeout(3 * PATIENCE, moved).await.expect("the bytes did not come");
    written.unwrap();
    read.unwrap();
    received
}

/// Bytes in which a missing or repeated part shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

pub(crate) async fn streams_go_both_ways_and_both_ends_agree_on_the_binding(ground: &dyn Ground) {
    let (mut one, mut two) = pair(ground).await;
    let (mut near, mut back) = (one.dial(&two).await, two.dial(&one).await);
    let (mut far, mut front) = (two.accept().await, one.accept().await);
    assert_eq!((far.peer, front.peer), (one.id, two.id));
    assert!(near.binding == far.binding && back.binding == front.binding);
    for length in [1, 1200, 200_000] {
        let bytes = pattern(length);
        assert_eq!(transfer(&mut near, &mut far, &bytes).await, bytes);
        assert_eq!(transfer(&mut far, &mut near, &bytes).await, bytes);
        assert_eq!(transfer(&mut back, &mut front, &bytes).await, bytes);
    }
    near.stream.shutdown().await.unwrap();
    assert_eq!(far.stream.read(&mut [0]).await.unwrap(), 0, "the end did not come");
    drop(back);
    let ended = timeout(PATIENCE, front.stream.read(&mut [0])).await.expect("the end did not come");
    assert!(matches!(ended, Ok(0) | Err(_)));
    let status = || one.started.engine.status().remove(&two.id).unwrap();
    until("all bytes are counted", || status().bytes_in > 400_000 && status().bytes_out > 200_000).await;
    let status = status();
    assert!(status.up && status.last_handshake.is_some() && status.problem.is_none(), "{status:?}");
    assert_eq!(status.endpoint, Some(two.started.endpoint));
}

pub(crate) async fn long_frames_pass_in_both_directions_at_once(ground: &dyn Ground) {
    let (one, mut two) = pair(ground).await;
    swap_long_frames(one.dial(&two).await, two.accept().await).await;
}

/// Sends several of the longest frames each way at once.
pub(crate) async fn swap_long_frames(near: TunnelStream, far: TunnelStream) {
    let frames = pattern(4 * 128 * 1024);
    let send_and_check = async |end: TunnelStream| {
        let (mut read, mut write) = tokio::io::split(end.stream);
        let mut received = vec![0; frames.len()];
        let (written, came) = tokio::join!(write.write_all(&frames), read.read_exact(&mut received));
        written.unwrap();
        came.unwrap();
        assert_eq!(received, frames);
        // Dropped only when the other side has everything.
        (read, write)
    };
    timeout(PATIENCE, async { tokio::join!(send_and_check(near), send_and_check(far)) }).await.unwrap();
}

pub(crate) async fn a_removed_peer_is_cut_off_at_once(ground: &dyn Ground) {
    let (one, mut two) = pair(ground).await;
    let mut near = one.dial(&two).await;
    let mut far = two.accept().await;
    transfer(&mut near, &mut far, b"before").await;
    two.apply(BTreeMap::new());
    let read = timeout(PATIENCE, far.stream.read(&mut [0])).await.expect("the stream is still open");
    assert!(read.is_err());
    assert!(!two.started.engine.reaches(one.id) && two.started.engine.status().is_empty());
    assert!(matches!(two.started.engine.dial(one.id, PATIENCE).await, Err(EngineError::UnknownPeer(_))));
    let _ = near.stream.write_all(b"after").await;
    until("the other side has noticed", || !one.started.engine.reaches(two.id)).await;
    assert!(matches!(near.stream.read(&mut [0]).await, Err(_) | Ok(0)));
    assert!(two.started.arrivals.try_recv().is_err(), "a stream of a removed peer came");
    // Its key is accepted again only with the peer.
    introduce(&[&one, &two]);
    let mut again = one.dial(&two).await;
    transfer(&mut again, &mut two.accept().await, b"again").await;
}

pub(crate) async fn both_keys_rotate_under_traffic_without_loss(ground: &dyn Ground) {
    let (mut one, mut two) = pair(ground).await;
    let mut near = one.dial(&two).await;
    let mut far = two.accept().await;
    let first = near.binding;
    let mut longest = Duration::ZERO;
    let mut traffic = async |near: &mut TunnelStream, far: &mut TunnelStream| {
        let bytes = pattern(3000);
        for _ in 0..10 {
            let start = Instant::now();
            assert_eq!(transfer(near, far, &bytes).await, bytes);
            assert_eq!(transfer(far, near, &bytes).await, bytes);
            longest = longest.max(start.elapsed());
        }
    };
    // Announced, then in use, then the only one; the other side hears of each step late.
    for rotating in 0..2 {
        let key = WireguardSecret::generate(&mut rand::rng());
        for step in 0..3 {
            let node = if rotating == 0 { &mut one } else { &mut two };
            match step {
                0 => node.keys.push(key.duplicate()),
                1 => node.keys.reverse(),
                _ => node.keys.truncate(1),
            }
            let (node, other) = if rotating == 0 { (&one, &two) } else { (&two, &one) };
            node.apply(BTreeMap::from([(other.id, other.peer())]));
            traffic(&mut near, &mut far).await;
            other.apply(BTreeMap::from([(node.id, node.peer())]));
            traffic(&mut near, &mut far).await;
        }
    }
    // Between two kinds of engines a segment may be lost with each change. TCP's first pause before
    // it repeats one is a second.
    assert!(longest < Duration::from_secs(2), "bytes took {longest:?}");
    let mut again = one.dial(&two).await;
    let mut there = two.accept().await;
    assert!(again.binding == there.binding && again.binding != first);
    transfer(&mut again, &mut there, b"by the new keys").await;
}

pub(crate) async fn a_restarted_peer_is_back_in_two_seconds(ground: &dyn Ground) {
    let (one, mut two) = pair(ground).await;
    let mut near = one.dial(&two).await;
    let mut far = two.accept().await;
    transfer(&mut near, &mut far, b"before").await;
    // It comes up elsewhere, and the other side has not heard of the new address.
    drop(far);
    two.started = ground.start(two.id).await;
    let start = Instant::now();
    two.apply(BTreeMap::from([(one.id, one.peer())]));
    let mut back = two.dial(&one).await;
    let mut again = one.dial(&two).await;
    assert!(start.elapsed() < Duration::from_secs(2), "it took {:?}", start.elapsed());
    transfer(&mut again, &mut two.accept().await, b"after").await;
    back.stream.write_all(b"!").await.unwrap();
    // The old stream ends instead of hanging.
    let _ = near.stream.write_all(b"to the old one").await;
    let ended = timeout(PATIENCE, near.stream.read(&mut [0])).await.expect("the old stream hangs");
    assert!(matches!(ended, Err(_) | Ok(0)));
}

pub(crate) async fn the_endpoints_of_a_peer_are_tried_in_turn(ground: &dyn Ground) {
    let (one, mut two) = (TestNode::start(ground, 1).await, TestNode::start(ground, 2).await);
    let silent = TestNode::start(ground, 3).await;
    let mut peer = two.peer();
    peer.endpoints.insert(0, silent.started.endpoint);
    // The peer cannot send first.
    two.apply(BTreeMap::from([(one.id, Peer { endpoints: Vec::new(), ..one.peer() })]));
    one.apply(BTreeMap::from([(two.id, peer)]));
    let mut near = one.dial(&two).await;
    transfer(&mut near, &mut two.accept().await, b"found").await;
    let knows =
        |one: &TestNode, two: &TestNode| one.started.engine.status()[&two.id].endpoint == Some(two.started.endpoint);
    until("both know where the other is", || knows(&one, &two) && knows(&two, &one)).await;
}

pub(crate) async fn a_peer_with_another_key_gets_nothing(ground: &dyn Ground) {
    let (one, mut two) = (TestNode::start(ground, 1).await, TestNode::start(ground, 2).await);
    let stranger = WireguardSecret::generate(&mut rand::rng());
    two.apply(BTreeMap::from([(one.id, Peer { keys: vec![stranger.public()], ..one.peer() })]));
    one.apply(BTreeMap::from([(two.id, two.peer())]));
    sleep(Duration::from_secs(3)).await;
    assert!(!one.started.engine.reaches(two.id) && !two.started.engine.reaches(one.id));
    assert!(one.started.engine.status()[&two.id].problem.is_some());
    assert!(two.started.arrivals.try_recv().is_err());
    introduce(&[&one, &two]);
    let mut near = one.dial(&two).await;
    transfer(&mut near, &mut two.accept().await, b"with the right key").await;
}

pub(crate) async fn garbage_at_the_port_changes_nothing(ground: &dyn Ground) {
    let (one, mut two) = pair(ground).await;
    let mut near = one.dial(&two).await;
    let mut far = two.accept().await;
    let bytes = pattern(2000);
    for round in 0..50u8 {
        for length in [0, 1, 4, 31, 32, 64, 92, 148, 600, 1312, 1400] {
            let mut garbage: Vec<u8> = (0..length).map(|_| rand::random()).collect();
            if let Some(start) = garbage.get_mut(..4) {
                start.copy_from_slice(&[round % 6, 0, 0, 0]);
            }
            ground.inject(two.started.endpoint, garbage).await;
        }
        assert_eq!(transfer(&mut near, &mut far, &bytes).await, bytes);
    }
    assert_eq!(two.started.engine.status().len(), 1);
    assert_eq!(two.started.engine.status()[&one.id].endpoint, Some(one.started.endpoint));
}

pub(crate) async fn streams_survive_the_loss_of_every_tenth_datagram(ground: &dyn Ground) {
    if !ground.lose(0.1) {
        return;
    }
    for _ in 1..ground.draws() {
        if AssertUnwindSafe(streams_survive(ground)).catch_unwind().await.is_ok() {
            return;
        }
    }
    streams_survive(ground).await;
}

/// Sends both ways, and changes a key.
async fn streams_survive(ground: &dyn Ground) {
    let (mut one, mut two) = pair(ground).await;
    let mut near = one.dial(&two).await;
    let mut far = two.accept().await;
    let bytes = pattern(100_000);
    for _ in 0..3 {
        assert_eq!(transfer(&mut near, &mut far, &bytes).await, bytes);
        assert_eq!(transfer(&mut far, &mut near, &bytes).await, bytes);
    }
    one.keys = vec![WireguardSecret::generate(&mut rand::rng())];
    introduce(&[&one, &two]);
    assert_eq!(transfer(&mut near, &mut far, &bytes).await, bytes);
}

/// Makes a test of each part of the suite, on the ground that `$ground` makes. Those `in_the_guest`
/// run only where scripts/kernel-wireguard.sh runs them.
macro_rules! engine_conformance {
    (in_the_guest $test:meta, $ground:expr) => {
        engine_conformance! { @ $ground, #[$test] #[ignore = "needs a kernel with WireGuard: scripts/kernel-wireguard.sh"] }
    };
    ($test:meta, $ground:expr) => {
        engine_conformance! { @ $ground, #[$test] }
    };
    (@ $ground:expr, $(#[$attribute:meta])*) => {
        engine_conformance! { @ $ground, [$(#[$attribute])*]
            streams_go_both_ways_and_both_ends_agree_on_the_binding
            long_frames_pass_in_both_directions_at_once
            a_removed_peer_is_cut_off_at_once
            both_keys_rotate_under_traffic_without_loss
            a_restarted_peer_is_back_in_two_seconds
            the_endpoints_of_a_peer_are_tried_in_turn
            a_peer_with_another_key_gets_nothing
            garbage_at_the_port_changes_nothing
            streams_survive_the_loss_of_every_tenth_datagram
        }
    };
    (@ $ground:expr, $attributes:tt $($name:ident)*) => {
        $( engine_conformance! { @one $ground, $attributes $name } )*
    };
    (@one $ground:expr, [$($attribute:tt)*] $name:ident) => {
        $($attribute)*
        async fn $name() {
            $crate::wireguard::conformance::$name(&$ground).await;
        }
    };
}
pub(crate) use engine_conformance;
