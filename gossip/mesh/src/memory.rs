//! An in-memory network for tests, with delay, loss, partitions and counters of the traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::neighbours::{DEFAULT_NEIGHBOURS, neighbours};
use tokio::sync::mpsc;

use crate::Carrier;

/// Messages that may wait at one node; later ones are lost.
const QUEUE: usize = 256;

/// The traffic that a node has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages sent.
    pub messages: u64,
    /// Bytes sent.
    pub bytes: u64,
}

/// The network. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    sockets: BTreeMap<NodeId, mpsc::Sender<(NodeId, Vec<u8>)>>,
    traffic: BTreeMap<NodeId, Traffic>,
    side: BTreeMap<NodeId, u32>,
    down: BTreeSet<NodeId>,
    delay: Duration,
    loss_percent: u64,
    random: u64,
    /// The links of each node; empty if nodes have joined since they were computed.
    links: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

impl Inner {
    /// The nodes that would have a link with this one in a cluster of all nodes that have joined.
    /// A node that is down or cut off keeps its links, as a real one does for a while.
    fn links(&mut self, of: NodeId) -> BTreeSet<NodeId> {
        if self.links.is_empty() {
            let all: BTreeSet<NodeId> = self.sockets.keys().copied().collect();
            for node in &all {
                for peer in neighbours(*node, &all, DEFAULT_NEIGHBOURS) {
                    self.links.entry(*node).or_default().insert(peer);
                    self.links.entry(peer).or_default().insert(*node);
                }
            }
        }
        self.links.get(&of).cloned().unwrap_or_default()
    }

    /// Whether a message gets through. Loss is drawn from a seeded SplitMix64, so that a run can be
    /// repeated.
    fn passes(&mut self, from: NodeId, to: NodeId) -> bool {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let lost = (z ^ (z >> 31)) % 100 < self.loss_percent;
        let split = self.side.get(&from) != self.side.get(&to);
        !lost && !split && !self.down.contains(&from) && !self.down.contains(&to)
    }
}

impl MemoryNetwork {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Sets the delay of all later messages.
    pub fn set_delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Sets the share of later messages that is lost, in percent, drawn from `seed`.
    pub fn set_loss(&self, percent: u64, seed: u64) {
        let mut inner = self.lock();
        inner.loss_percent = percent;
        inner.random = seed;
    }

    /// Puts a node on a side of a partition. Messages pass only between nodes of the same side; all
    /// begin on one side.
    pub fn set_side(&self, node: NodeId, side: u32) {
        self.lock().side.insert(node, side);
    }

    /// Ends every partition.
    pub fn heal(&self) {
        self.lock().side.clear();
    }

    /// Takes a node off the network, so that all messages from and to it are lost, or puts it back.
    pub fn set_down(&self, node: NodeId, down: bool) {
        let mut inner = self.lock();
        if down {
            inner.down.insert(node);
        } else {
            inner.down.remove(&node);
        }
    }

    /// The traffic of each node so far.
    pub fn traffic(&self) -> BTreeMap<NodeId, Traffic> {
        self.lock().traffic.clone()
    }
}

impl MemoryNetwork {
    /// Puts a node on the network. A second call for the same node cuts off the first carrier.
    pub fn join(&self, node: NodeId) -> Carrier {
        let (sender, received) = mpsc::channel(QUEUE);
        {
            let mut inner = self.lock();
            inner.sockets.insert(node, sender);
            inner.links.clear();
        }
        let (network, linked) = (self.clone(), self.clone());
        Carrier {
            send: Arc::new(move |to, bytes| network.send(node, to, bytes)),
            received,
            links: Arc::new(move || linked.lock().links(node)),
        }
    }

    fn send(&self, from: NodeId, to: NodeId, bytes: Vec<u8>) {
        let mut inner = self.lock();
        let traffic = inner.traffic.entry(from).or_default();
        traffic.messages += 1;
        traffic.bytes += bytes.len() as u64;
        if !inner.passes(from, to) {
            return;
        }
        let Some(socket) = inner.sockets.get(&to).cloned() else { return };
        let delay = inner.delay;
        if delay.is_zero() {
            // A full queue drops the message, as a network would.
            let _ = socket.try_send((from, bytes));
        } else {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = socket.try_send((from, bytes));
            });
        }
    }
}
