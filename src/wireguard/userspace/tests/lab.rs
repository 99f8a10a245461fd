//! Machines on a network in memory, in time that the test moves on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rustbalance_gossip::id::NodeId;
use tokio::time::Instant;

use crate::counters::{Counter, Counters};
use crate::link::ChannelBinding;
use crate::wireguard::userspace::machine::{Action, Event, Machine, StreamId};
use crate::wireguard::{Desired, Peer, PeerStatus, WireguardSecret};

/// One way through the network.
pub(super) const DELAY: Duration = Duration::from_millis(10);

/// A datagram on its way: source, destination, content.
pub(super) type Flying = (SocketAddr, SocketAddr, Vec<u8>);

/// The network and the time.
pub(super) struct Lab {
    pub(super) now: Instant,
    pub(super) nodes: Vec<LabNode>,
    /// No datagram arrives.
    pub(super) is_cut: bool,
    /// Everything that was sent, with the time.
    pub(super) sent: Vec<(Instant, Flying)>,
    flying: BTreeMap<(Instant, usize), Flying>,
}

/// A node, and what its machine has asked for.
pub(super) struct LabNode {
    pub(super) id: NodeId,
    pub(super) key: WireguardSecret,
    pub(super) address: SocketAddr,
    pub(super) machine: Machine,
    pub(super) counters: Counters,
    pub(super) opened: Vec<(StreamId, ChannelBinding)>,
    pub(super) arrived: Vec<(StreamId, ChannelBinding)>,
    pub(super) failed: Vec<StreamId>,
}

impl LabNode {
    fn new(number: u8, now: Instant) -> Self {
        let (id, key) = (NodeId::from_public_key([number; 32]), WireguardSecret::generate(&mut rand::rng()));
        let address = SocketAddr::from(([192, 0, 2, number], 51_820));
        let counters = Counters::default();
        let machine = Machine::new(id, vec![address.ip()], counters.clone(), [number; 32], now);
        Self { id, key, address, machine, counters, opened: vec![], arrived: vec![], failed: vec![] }
    }

    pub(super) fn peer(&self) -> Peer {
        Peer { keys: vec![self.key.public()], endpoints: vec![self.address] }
    }

    pub(super) fn count(&self, counter: Counter) -> u64 {
        self.counters.get(counter)
    }
}

impl Lab {
    /// Nodes that do not know each other.
    pub(super) fn new(count: u8) -> Self {
        let now = Instant::now();
        let nodes = (1..=count).map(|number| LabNode::new(number, now)).collect();
        Self { now, nodes, is_cut: false, sent: Vec::new(), flying: BTreeMap::new() }
    }

    /// Nodes that are each other's peers.
    pub(super) fn introduced(count: u8) -> Self {
        let mut lab = Self::new(count);
        for at in 0..lab.nodes.len() {
            let own = lab.nodes[at].id;
            let peers = lab.nodes.iter().filter(|node| node.id != own).map(|node| (node.id, node.peer()));
            let peers = peers.collect();
            lab.apply(at, peers);
        }
        lab
    }

    pub(super) fn apply(&mut self, at: usize, peers: BTreeMap<NodeId, Peer>) {
        let own = vec![self.nodes[at].key.duplicate()];
        self.handle(at, Event::Apply(Desired { own, peers }));
    }

    pub(super) fn handle(&mut self, at: usize, event: Event<'_>) {
        let actions = self.nodes[at].machine.handle(event, self.now);
        self.act(at, actions);
    }

    fn act(&mut self, at: usize, actions: Vec<Action>) {
        let node = &mut self.nodes[at];
        for action in actions {
            match action {
                Action::Send(to, bytes) => {
                    let flying = (node.address, to, bytes);
                    self.flying.insert((self.now + DELAY, self.sent.len()), flying.clone());
                    self.sent.push((self.now, flying));
                }
                Action::Opened(id, binding) => node.opened.push((id, binding)),
                Action::Arrived(id, binding) => node.arrived.push((id, binding)),
                Action::Failed(id) => node.failed.push(id),
                Action::Wake(_) => {}
            }
        }
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timer = (0..self.nodes.len()).map(|at| (self.nodes[at].machine.next_timeout(), at)).min();
            let datagram = self.flying.first_key_value().map(|((due, _), _)| *due);
            let (due, at) = timer.unwrap();
            let next = datagram.map_or(due, |datagram| datagram.min(due));
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if datagram.is_some_and(|datagram| datagram <= due) {
                let (_, (from, to, bytes)) = self.flying.pop_first().unwrap();
                let host = self.nodes.iter().position(|node| node.address == to);
                if let Some(host) = host.filter(|_| !self.is_cut) {
                    self.handle(host, Event::Datagram { from, bytes: &bytes });
                }
            } else {
                self.handle(at, Event::Tick);
            }
        }
        self.now = end;
    }

    /// Lets time pass until `done`, and returns how much has passed.
    pub(super) fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(self.now - start < Duration::from_secs(60), "never happened: {what}");
            self.run(Duration::from_millis(10));
        }
        self.now - start
    }

    pub(super) fn is_up(&self, from: usize, to: usize) -> bool {
        self.nodes[from].machine.reaches(self.nodes[to].id, self.now)
    }

    pub(super) fn status(&self, of: usize, peer: usize) -> PeerStatus {
        self.nodes[of].machine.status(self.now).remove(&self.nodes[peer].id).unwrap()
    }

    /// Waits until the sessions between all nodes are up.
    pub(super) fn settle(&mut self) {
        let count = self.nodes.len();
        self.run_until("all sessions are up", |lab| {
            (0..count).all(|from| (0..count).all(|to| from == to || lab.is_up(from, to)))
        });
    }

    /// Opens a stream, and returns both ends.
    pub(super) fn open(&mut self, from: usize, to: usize) -> (StreamId, StreamId) {
        let id = self.nodes[to].id;
        let near = self.nodes[from].machine.dial(id).unwrap();
        let (opened, arrived) = (self.nodes[from].opened.len(), self.nodes[to].arrived.len());
        self.handle(from, Event::Tick);
        self.run_until("the stream is open", |lab| {
            lab.nodes[from].opened.len() > opened && lab.nodes[to].arrived.len() > arrived
        });
        (near, self.nodes[to].arrived[arrived].0)
    }

    /// Sends bytes through a stream, and returns those that have come after `time`.
    pub(super) fn say(
        &mut self,
        from: (usize, StreamId),
        to: (usize, StreamId),
        bytes: &[u8],
        time: Duration,
    ) -> Vec<u8> {
        assert_eq!(self.nodes[from.0].machine.write(from.1, bytes), Ok(bytes.len()));
        self.handle(from.0, Event::Tick);
        self.run(time);
        let mut buffer = [0; 4096];
        let length = self.nodes[to.0].machine.read(to.1, &mut buffer).unwrap_or_default();
        buffer[..length].to_vec()
    }

    /// Number of datagrams that a node has sent since `start`.
    pub(super) fn sent_since(&self, from: usize, start: Instant) -> usize {
        let address = self.nodes[from].address;
        self.sent.iter().filter(|(at, (source, ..))| *at >= start && *source == address).count()
    }
}
