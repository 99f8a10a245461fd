//! A conformance suite for every [`Carrier`] (feature `testing`): here the in-memory network,
//! elsewhere links between nodes.
//!
//! A test implements [`Network`] for a way to connect nodes and calls [`check_all`], or single
//! checks. Each check begins with [`Network::start`] on a new network, and panics if a requirement
//! does not hold.
//!
//! A carrier may lose messages, so the checks send a message again until it arrives, within
//! [`Network::patience`].
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant as WallClock};

use async_trait::async_trait;
use rustbalance_gossip::id::{ClusterId, NodeId};
use rustbalance_gossip::record::RecordKind;
use sha3::{Digest, Sha3_256};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::{Carrier, MAX_MESSAGE, Mesh, MeshConfig, Update};

/// A way to connect nodes.
#[async_trait]
pub trait Network: Send {
    /// Puts `count` nodes on an empty network, each of which knows all others as members. At most
    /// seven, so that all are neighbours. Connections may still be opening when it returns.
    async fn start(&mut self, count: usize) -> Vec<(NodeId, Carrier)>;

    /// Ends a node at once, as a power failure does.
    async fn kill(&mut self, node: NodeId);

    /// Puts a node that was killed on the network again.
    async fn restart(&mut self, node: NodeId) -> Carrier;

    /// Cuts these nodes off from the others. False if this network cannot be partitioned: then
    /// partitions are not checked.
    async fn part(&mut self, side: &BTreeSet<NodeId>) -> bool;

    /// Ends the partition.
    async fn heal(&mut self);

    /// Longest wait for anything that must happen.
    fn patience(&self) -> Duration;

    /// Time between two rounds of gossip that suits this network.
    fn interval(&self) -> Duration;
}

/// Longest real time for thousands of calls of [`Carrier::send`], which must not block. Generous,
/// for machines with other load.
const AT_ONCE: Duration = Duration::from_secs(30);

/// Runs every check, each on a network from `make`.
pub async fn check_all<N: Network>(mut make: impl FnMut() -> N) {
    messages_reach_the_right_node(&mut make()).await;
    large_messages_arrive_whole(&mut make()).await;
    unknown_nodes_do_no_harm(&mut make()).await;
    a_node_that_does_not_read_blocks_no_other(&mut make()).await;
    a_death_disturbs_no_others(&mut make()).await;
    a_mesh_forms(&mut make()).await;
    a_dead_node_is_not_heard_and_a_returned_one_is(&mut make()).await;
    a_partition_heals(&mut make()).await;
}

/// A message of this length, at least 32 bytes. Messages with different `about` differ.
fn message(about: &str, length: usize) -> Vec<u8> {
    let seed = Sha3_256::digest(about);
    seed.iter().copied().cycle().take(length.max(32)).collect()
}

/// Sends a message until it arrives at `to`, and checks that it arrives under the sender's name.
async fn deliver(patience: Duration, from: (NodeId, &Carrier), to: (NodeId, &mut Carrier), bytes: &[u8]) {
    let start = Instant::now();
    loop {
        (from.1.send)(to.0, bytes.to_vec());
        let until = Instant::now() + patience / 50;
        while let Ok(heard) = tokio::time::timeout_at(until, to.1.received.recv()).await {
            let (sender, heard) = heard.expect("a carrier ends only with its node");
            if heard == bytes {
                assert_eq!(sender, from.0, "a message under another's name");
                return;
            }
        }
        assert!(start.elapsed() < patience, "a message of {} bytes never arrives", bytes.len());
    }
}

/// Borrows two of the nodes at once.
fn pair(nodes: &mut [(NodeId, Carrier)], from: usize, to: usize) -> ((NodeId, &Carrier), (NodeId, &mut Carrier)) {
    assert_ne!(from, to);
    let (low, high) = nodes.split_at_mut(from.max(to));
    let (first, second) = (&mut low[from.min(to)], &mut high[0]);
    let (from, to) = if from < to { (first, second) } else { (second, first) };
    ((from.0, &from.1), (to.0, &mut to.1))
}

/// Every node can send to every other. The message arrives there under the right name, and at no
/// third node.
pub async fn messages_reach_the_right_node(network: &mut impl Network) {
    let mut nodes = network.start(4).await;
    for from in 0..4 {
        for to in (0..4).filter(|to| *to != from) {
            let (sender, receiver) = pair(&mut nodes, from, to);
            deliver(network.patience(), sender, receiver, &message(&format!("{from} to {to}"), 100)).await;
        }
    }
    // All are neighbours now, so no message needs to be forwarded by a third node.
    while nodes[3].1.received.try_recv().is_ok() {}
    for _ in 0..20 {
        (nodes[0].1.send)(nodes[1].0, message("not for the third", 100));
    }
    sleep(network.interval() * 4).await;
    let mut strays = std::iter::from_fn(|| nodes[3].1.received.try_recv().ok());
    assert!(strays.all(|(_, bytes)| bytes != message("not for the third", 100)), "a message at the wrong node");
}

/// The largest message arrives whole; a message that is too large does not harm later ones.
pub async fn large_messages_arrive_whole(network: &mut impl Network) {
    let mut nodes = network.start(2).await;
    for length in [32, 1000, MAX_MESSAGE / 2, MAX_MESSAGE] {
        let (from, to) = pair(&mut nodes, 0, 1);
        deliver(network.patience(), from, to, &message("large", length)).await;
    }
    (nodes[0].1.send)(nodes[1].0, message("too large", MAX_MESSAGE * 4));
    let (from, to) = pair(&mut nodes, 0, 1);
    deliver(network.patience(), from, to, &message("after it", 100)).await;
}

/// Messages to unknown nodes, or to the sender itself, do not block and do not keep other messages
/// from arriving.
pub async fn unknown_nodes_do_no_harm(network: &mut impl Network) {
    let mut nodes = network.start(2).await;
    let start = WallClock::now();
    for number in 0..1000u32 {
        let unknown = NodeId::from_public_key(Sha3_256::digest(number.to_be_bytes()).into());
        (nodes[0].1.send)(unknown, message("for an unknown node", 100));
        (nodes[0].1.send)(nodes[0].0, message("for itself", 100));
    }
    assert!(start.elapsed() < AT_ONCE, "sending blocks");
    let (from, to) = pair(&mut nodes, 0, 1);
    deliver(network.patience(), from, to, &message("for a known node", 100)).await;
}

/// Sending a flood to a node that does not read returns at once, and all but a bounded part of it
/// is dropped. The node receives new messages when it reads again, and a third node is not
/// affected.
pub async fn a_node_that_does_not_read_blocks_no_other(network: &mut impl Network) {
    const FLOOD: usize = 5000;
    let mut nodes = network.start(3).await;
    let (from, to) = pair(&mut nodes, 0, 1);
    deliver(network.patience(), from, to, &message("before", 100)).await;
    let start = WallClock::now();
    for _ in 0..FLOOD {
        (nodes[0].1.send)(nodes[1].0, message("flood", 1000));
    }
    assert!(start.elapsed() < AT_ONCE, "a full queue blocks");
    let (from, to) = pair(&mut nodes, 0, 2);
    deliver(network.patience(), from, to, &message("to a third", 100)).await;
    sleep(network.interval()).await;
    let mut kept = 0;
    while nodes[1].1.received.try_recv().is_ok() {
        kept += 1;
    }
    assert!(kept < FLOOD / 2, "{kept} messages are kept for a node that does not read");
    let (from, to) = pair(&mut nodes, 0, 1);
    deliver(network.patience(), from, to, &message("after", 100)).await;
}

/// Two nodes still reach each other when a third dies, and sending to the dead node does not block.
pub async fn a_death_disturbs_no_others(network: &mut impl Network) {
    let mut nodes = network.start(3).await;
    for to in [1, 2] {
        let (from, to) = pair(&mut nodes, 0, to);
        deliver(network.patience(), from, to, &message("before", 100)).await;
    }
    let (dead, _) = nodes.pop().unwrap();
    network.kill(dead).await;
    for round in 0..20 {
        let start = WallClock::now();
        (0..50).for_each(|_| (nodes[0].1.send)(dead, message("to the dead", 1000)));
        assert!(start.elapsed() < AT_ONCE, "sending to the dead blocks");
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = pair(&mut nodes, from, to);
            deliver(network.patience(), from, to, &message(&format!("round {round}"), 100)).await;
        }
    }
}

/// A mesh over one carrier.
struct Node {
    id: NodeId,
    mesh: Mesh,
    updates: mpsc::Receiver<Update>,
    /// The last value of each origin, and when it arrived.
    heard: BTreeMap<NodeId, (Vec<u8>, Instant)>,
}

impl Node {
    async fn new(id: NodeId, carrier: Carrier, all: &BTreeSet<NodeId>, generation: u64, interval: Duration) -> Self {
        let config = MeshConfig { me: id, cluster: ClusterId::from_public_key([1; 32]), generation, interval };
        let seeds = all.iter().copied().filter(|seed| *seed != id).collect();
        let (mesh, updates) = Mesh::start(config, carrier, seeds).await.unwrap();
        mesh.set_members(all.clone());
        Self { id, mesh, updates, heard: BTreeMap::new() }
    }

    fn announce(&self, what: &str) {
        self.mesh.set(RecordKind::Heartbeat, what.as_bytes()).unwrap();
    }

    fn listen(&mut self) {
        while let Ok(update) = self.updates.try_recv() {
            self.heard.insert(update.origin, (update.bytes, Instant::now()));
        }
    }

    fn knows(&self, of: NodeId, what: &str) -> bool {
        of == self.id || self.heard.get(&of).is_some_and(|(bytes, _)| bytes == what.as_bytes())
    }
}

async fn meshes(network: &mut impl Network, count: usize) -> Vec<Node> {
    let interval = network.interval();
    let carriers = network.start(count).await;
    let all: BTreeSet<NodeId> = carriers.iter().map(|(id, _)| *id).collect();
    let mut nodes = Vec::new();
    for (id, carrier) in carriers {
        nodes.push(Node::new(id, carrier, &all, 1, interval).await);
    }
    nodes
}

async fn until(patience: Duration, nodes: &mut [Node], what: &str, done: impl Fn(&[Node]) -> bool) {
    let start = Instant::now();
    loop {
        nodes.iter_mut().for_each(Node::listen);
        if done(nodes) {
            return;
        }
        assert!(start.elapsed() < patience, "never happened: {what}");
        sleep(patience / 1000).await;
    }
}

/// Has every node announce `what`, and waits until all nodes know it of all.
async fn all_are_heard(network: &impl Network, nodes: &mut [Node], what: &str) {
    nodes.iter().for_each(|node| node.announce(what));
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    let everywhere = |nodes: &[Node]| nodes.iter().all(|node| ids.iter().all(|of| node.knows(*of, what)));
    until(network.patience(), nodes, what, everywhere).await;
}

/// Gossip over these carriers brings every node's value to every node, and later values in place of
/// earlier ones.
pub async fn a_mesh_forms(network: &mut impl Network) {
    let mut nodes = meshes(network, 5).await;
    all_are_heard(network, &mut nodes, "first values everywhere").await;
    all_are_heard(network, &mut nodes, "second values everywhere").await;
}

/// After a node dies, nothing new arrives from it and the others go on. After its return it is
/// heard again.
pub async fn a_dead_node_is_not_heard_and_a_returned_one_is(network: &mut impl Network) {
    let mut nodes = meshes(network, 4).await;
    all_are_heard(network, &mut nodes, "before the death").await;
    let all: BTreeSet<NodeId> = nodes.iter().map(|node| node.id).collect();
    let dead = nodes.pop().unwrap().id;
    network.kill(dead).await;
    sleep(network.interval() * 4).await;
    nodes.iter_mut().for_each(Node::listen);
    let silent_since = Instant::now();
    all_are_heard(network, &mut nodes, "the living after the death").await;
    assert!(
        nodes.iter().all(|node| node.heard.get(&dead).is_none_or(|(_, at)| *at <= silent_since)),
        "a dead node is heard"
    );
    let carrier = network.restart(dead).await;
    nodes.push(Node::new(dead, carrier, &all, 2, network.interval()).await);
    all_are_heard(network, &mut nodes, "after the return").await;
}

/// Nothing passes a partition. After its end all nodes know the values of both sides.
pub async fn a_partition_heals(network: &mut impl Network) {
    let mut nodes = meshes(network, 4).await;
    all_are_heard(network, &mut nodes, "before the partition").await;
    let side: BTreeSet<NodeId> = nodes[..2].iter().map(|node| node.id).collect();
    if !network.part(&side).await {
        return;
    }
    sleep(network.interval() * 2).await;
    nodes.iter().for_each(|node| node.announce("during the partition"));
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    let within = |nodes: &[Node]| {
        let sides = [&nodes[..2], &nodes[2..]];
        let heard = |side: &[Node]| {
            side.iter().all(|node| side.iter().all(|other| node.knows(other.id, "during the partition")))
        };
        sides.into_iter().all(heard)
    };
    until(network.patience(), &mut nodes, "each side's values on that side", within).await;
    sleep(network.interval() * 4).await;
    nodes.iter_mut().for_each(Node::listen);
    assert!(!nodes[0].knows(ids[3], "during the partition"), "the partition leaks");
    network.heal().await;
    let everywhere =
        |nodes: &[Node]| nodes.iter().all(|node| ids.iter().all(|of| node.knows(*of, "during the partition")));
    until(network.patience(), &mut nodes, "both sides' values everywhere", everywhere).await;
}
