//! What the engine does with a datagram, a tick, a new desired state, and the bytes of streams. No
//! socket and no clock: the time is an argument, but for the timers inside boringtun.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use defguard_boringtun::noise::handshake::parse_handshake_anon;
use defguard_boringtun::noise::{Packet, TunnResult};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::id::NodeId;
use tokio::time::Instant;
use tracing::debug;

use super::gate::HandshakeGate;
use super::peer::{Delivered, Outgoing, PeerState};
pub use super::stack::Blocked;
use super::stack::StreamNews;
use super::tunnel::{Kind, OwnKey, is_for_another_key};
use crate::counters::{Counter, Counters};
use crate::link::ChannelBinding;
use crate::wireguard::host::is_usable;
use crate::wireguard::{Desired, EngineError, MOST_ENDPOINTS, MOST_KEYS, MOST_PEERS, Peer, PeerStatus, WireguardKey};

/// Interval of the timers of all tunnels (boringtun asks for 250 ms to 1 s).
const TICK: Duration = Duration::from_millis(250);
/// Streams of all peers together: 32 MiB of buffers.
const MOST_STREAMS_IN_TOTAL: usize = 512;
/// Bytes of a datagram that carry the index of a tunnel; one byte more numbers its sessions.
const INDEX_BITS: u32 = 24;

/// Names a stream of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// The node at the other end.
    pub peer: NodeId,
    number: u64,
}

/// An event of the machine.
pub enum Event<'a> {
    /// A datagram has come.
    Datagram {
        /// Its source.
        from: SocketAddr,
        /// Its content, at least up to one byte more than the longest valid one.
        bytes: &'a [u8],
    },
    /// The host did not send a datagram.
    NotSent {
        /// Its destination.
        to: SocketAddr,
        /// The system's reason.
        error: String,
    },
    /// The desired state.
    Apply(Desired),
    /// Time has passed, or streams were read or written.
    Tick,
}

/// An action that the machine asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a datagram.
    Send(SocketAddr, Vec<u8>),
    /// A dialled stream is open.
    Opened(StreamId, ChannelBinding),
    /// A dialled stream will not open.
    Failed(StreamId),
    /// A peer has opened a stream.
    Arrived(StreamId, ChannelBinding),
    /// The owner of a stream should read or write again.
    Wake(StreamId),
}

/// All peers and streams of one engine.
pub struct Machine {
    me: NodeId,
    address: Ipv6Addr,
    /// The addresses that the engine sends from.
    bound: Vec<IpAddr>,
    own: Vec<OwnKey>,
    peers: BTreeMap<NodeId, PeerState>,
    by_key: HashMap<WireguardKey, NodeId>,
    by_index: HashMap<u32, NodeId>,
    gate: HandshakeGate,
    /// When the stacks of peers have to be polled.
    schedule: BTreeSet<(Instant, NodeId)>,
    /// Peers whose stacks have something to do now.
    touched: BTreeSet<NodeId>,
    next_tick: Instant,
    next_stream: u64,
    counters: Counters,
    rng: StdRng,
}

impl Machine {
    /// A machine of the node `me` without keys or peers, which sends from the addresses `bound`.
    /// Its random numbers come from `seed`, but for WireGuard's own keys and nonces.
    pub fn new(me: NodeId, bound: Vec<IpAddr>, counters: Counters, seed: [u8; 32], now: Instant) -> Self {
        Self {
            me,
            address: mesh_address(&me),
            bound,
            own: Vec::new(),
            peers: BTreeMap::new(),
            by_key: HashMap::new(),
            by_index: HashMap::new(),
            gate: HandshakeGate::new(now),
            schedule: BTreeSet::new(),
            touched: BTreeSet::new(),
            next_tick: now,
            next_stream: 0,
            counters,
            rng: StdRng::from_seed(seed),
        }
    }

    /// Handles an event and returns the actions that follow, in order.
    pub fn handle(&mut self, event: Event<'_>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Datagram { from, bytes } => self.receive(from, bytes, now, &mut actions),
            Event::NotSent { to, error } => self.note_not_sent(to, &error, now),
            Event::Apply(desired) => self.apply(desired, now, &mut actions),
            Event::Tick => {}
        }
        if self.next_tick <= now {
            self.next_tick = now + TICK;
            self.own.iter().for_each(|own| own.limiter.reset_count());
            for peer in self.peers.values_mut() {
                send(&mut actions, peer.tick(now));
            }
        }
        while let Some((_, node)) = self.schedule.first().filter(|(due, _)| *due <= now).copied() {
            self.poll(node, now, &mut actions);
        }
        while let Some(node) = self.touched.pop_first() {
            self.poll(node, now, &mut actions);
        }
        actions
    }

    /// When [`Event::Tick`] is due if nothing else happens.
    pub fn next_timeout(&self) -> Instant {
        self.schedule.first().map_or(self.next_tick, |(due, _)| self.next_tick.min(*due))
    }

    /// Lets the stack of a peer act.
    fn poll(&mut self, node: NodeId, now: Instant, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        for (number, news) in peer.stack.poll(now) {
            let id = StreamId { peer: node, number };
            actions.push(match news {
                StreamNews::Opened(binding) => Action::Opened(id, binding),
                StreamNews::Arrived(binding) => Action::Arrived(id, binding),
                StreamNews::Failed => Action::Failed(id),
                StreamNews::Wake => Action::Wake(id),
            });
        }
        send(actions, peer.send_from_stack(now));
        if let Some(due) = peer.due.take() {
            self.schedule.remove(&(due, node));
        }
        // A pause, however short, lets others have their turn when one stack always has more.
        peer.due = peer.stack.next_timeout(now).map(|due| due.max(now + Duration::from_micros(1)));
        self.schedule.extend(peer.due.map(|due| (due, node)));
    }

    fn receive(&mut self, from: SocketAddr, bytes: &[u8], now: Instant, actions: &mut Vec<Action>) {
        let Some((kind, index)) = Kind::of(bytes) else { return self.counters.count(Counter::WireguardJunk) };
        let found = match kind {
            Kind::Initiation => self.tunnel_of_initiation(from, bytes, now, actions),
            _ => self.tunnel_of_index(from, kind, index, now),
        };
        let Some((node, at)) = found else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(Delivered { packet, out }) = peer.receive(at, from, bytes, kind, now) else {
            return self.counters.count(Counter::WireguardJunk);
        };
        send(actions, out);
        let Some((packet, pair)) = packet else { return };
        let Some(segment) = peer.segment(&packet) else { return self.counters.count(Counter::WireguardForbidden) };
        self.next_stream += 1;
        let may_open = self.next_stream;
        let is_full = segment.opens && self.is_full();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if is_full || !peer.stack.receive(packet, segment, pair, may_open, now) {
            self.counters.count(Counter::WireguardStreamsOverLimit);
        }
        self.touched.insert(node);
    }

    /// The tunnel to which a datagram names the index. Checked first, because it costs least.
    fn tunnel_of_index(&mut self, from: SocketAddr, kind: Kind, index: u32, now: Instant) -> Option<(NodeId, usize)> {
        let node = self.by_index.get(&index).copied();
        let at = node.and_then(|node| self.peers.get(&node)?.tunnels.iter().position(|tunnel| tunnel.index == index));
        let found = node.zip(at);
        if found.is_none() {
            self.counters.count(Counter::WireguardJunk);
        } else if kind == Kind::Response && !self.gate.admits(from.ip(), now) {
            self.counters.count(Counter::WireguardOverRate);
            return None;
        }
        found
    }

    /// The tunnel for which a handshake is made, if it is made for a key of this node by a peer.
    fn tunnel_of_initiation(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> Option<(NodeId, usize)> {
        let mut buffer = [0; 64];
        for own in &self.own {
            let packet = match own.limiter.verify_packet(Some(from.ip()), bytes, &mut buffer) {
                Ok(Packet::HandshakeInit(packet)) => packet,
                Err(TunnResult::WriteToNetwork(cookie)) => {
                    self.counters.count(Counter::WireguardOverRate);
                    actions.push(Action::Send(from, cookie.to_vec()));
                    return None;
                }
                Err(result) if is_for_another_key(&result) => continue,
                _ => break,
            };
            if !self.gate.admits(from.ip(), now) {
                self.counters.count(Counter::WireguardOverRate);
                return None;
            }
            let Ok(half) = parse_handshake_anon(&own.secret, &own.public, &packet) else { break };
            // A key of small order is not in the table, either.
            let key = WireguardKey::from_bytes(half.peer_static_public).ok();
            let Some((key, node)) = key.and_then(|key| self.by_key.get_key_value(&key)) else {
                self.counters.count(Counter::WireguardUnknownKey);
                return None;
            };
            let tunnels = &self.peers.get(node)?.tunnels;
            let at = tunnels.iter().position(|tunnel| tunnel.pair.own == own.key && tunnel.pair.peer == *key)?;
            return Some((*node, at));
        }
        self.counters.count(Counter::WireguardJunk);
        None
    }

    /// Whether the streams of all peers together have reached their bound.
    fn is_full(&self) -> bool {
        self.peers.values().map(PeerState::streams).sum::<usize>() >= MOST_STREAMS_IN_TOTAL
    }

    fn note_not_sent(&mut self, to: SocketAddr, error: &str, now: Instant) {
        for peer in self.peers.values_mut().filter(|peer| peer.sends_to(to)) {
            peer.note_not_sent(to, error.to_owned(), now);
        }
    }

    fn apply(&mut self, desired: Desired, now: Instant, actions: &mut Vec<Action>) {
        let Desired { own, peers } = desired;
        let mut earlier = std::mem::take(&mut self.own);
        for secret in own.iter().take(MOST_KEYS) {
            let known = earlier.iter().position(|own| own.key == secret.public());
            self.own.push(known.map_or_else(|| OwnKey::new(secret), |at| earlier.swap_remove(at)));
        }
        let peers: BTreeMap<_, _> = peers.into_iter().filter(|(node, _)| *node != self.me).take(MOST_PEERS).collect();
        let gone: Vec<_> = self.peers.keys().copied().filter(|node| !peers.contains_key(node)).collect();
        for node in gone {
            self.remove(node, actions);
        }
        let keys = self.assign_keys(&peers);
        for (node, peer) in &peers {
            let state = self.peers.entry(*node).or_insert_with(|| {
                debug!(%node, "a WireGuard peer was added");
                PeerState::new(self.address, *node, self.rng.random(), now)
            });
            let endpoints = peer.endpoints.iter().copied().take(MOST_ENDPOINTS);
            let usable = endpoints.filter(|endpoint| is_usable(*endpoint, &self.bound)).collect();
            let (by_index, rng) = (&mut self.by_index, &mut self.rng);
            let index = || unused_index(by_index, rng, *node);
            state.update(peer, usable, keys.get(node).cloned().unwrap_or_default(), &self.own, index, now);
        }
        let peers = &self.peers;
        self.by_index.retain(|index, node| {
            peers.get(node).is_some_and(|peer| peer.tunnels.iter().any(|tunnel| tunnel.index == *index))
        });
        self.next_tick = now;
    }

    /// Gives each announced key to one peer, and returns the keys of each. A key stays with the
    /// peer that has it: a member may announce the key of another, which it does not have.
    fn assign_keys(&mut self, peers: &BTreeMap<NodeId, Peer>) -> BTreeMap<NodeId, Vec<WireguardKey>> {
        let names = |node: &NodeId, key: &WireguardKey| {
            peers.get(node).is_some_and(|peer| peer.keys.iter().take(MOST_KEYS).any(|announced| announced == key))
        };
        self.by_key.retain(|key, node| names(node, key));
        let mut keys: BTreeMap<NodeId, Vec<WireguardKey>> = BTreeMap::new();
        for (node, peer) in peers {
            for key in peer.keys.iter().take(MOST_KEYS).filter(|key| self.own.iter().all(|own| own.key != **key)) {
                let list = keys.entry(*node).or_default();
                if *self.by_key.entry(*key).or_insert(*node) == *node && !list.contains(key) {
                    list.push(*key);
                }
            }
        }
        keys
    }

    fn remove(&mut self, node: NodeId, actions: &mut Vec<Action>) {
        debug!(%node, "a WireGuard peer was removed");
        let Some(peer) = self.peers.remove(&node) else { return };
        if let Some(due) = peer.due {
            self.schedule.remove(&(due, node));
        }
        self.touched.remove(&node);
        for number in peer.stack.owned() {
            let id = StreamId { peer: node, number };
            actions.extend([Action::Failed(id), Action::Wake(id)]);
        }
    }

    /// Begins to open a stream. [`Action::Opened`] or [`Action::Failed`] follows an event.
    ///
    /// # Errors
    /// [`EngineError::UnknownPeer`] and [`EngineError::TooManyStreams`].
    pub fn dial(&mut self, to: NodeId) -> Result<StreamId, EngineError> {
        let is_full = self.is_full();
        let peer = self.peers.get_mut(&to).ok_or(EngineError::UnknownPeer(to))?;
        self.next_stream += 1;
        if is_full || !peer.stack.dial(self.next_stream, &mut self.rng) {
            return Err(EngineError::TooManyStreams(to));
        }
        self.touched.insert(to);
        Ok(StreamId { peer: to, number: self.next_stream })
    }

    /// Reads from a stream; 0 bytes are its end.
    ///
    /// # Errors
    /// See [`Blocked`].
    pub fn read(&mut self, id: StreamId, buffer: &mut [u8]) -> Result<usize, Blocked> {
        let count = self.peers.get_mut(&id.peer).ok_or(Blocked::Broken)?.stack.read(id.number, buffer)?;
        // The peer may have waited for room.
        if count > 0 {
            self.touched.insert(id.peer);
        }
        Ok(count)
    }

    /// Writes a part of `bytes` to a stream, and returns how long that is.
    ///
    /// # Errors
    /// See [`Blocked`].
    pub fn write(&mut self, id: StreamId, bytes: &[u8]) -> Result<usize, Blocked> {
        let count = self.peers.get_mut(&id.peer).ok_or(Blocked::Broken)?.stack.write(id.number, bytes)?;
        self.touched.insert(id.peer);
        Ok(count)
    }

    /// Ends this node's direction of a stream, after what was written.
    pub fn close(&mut self, id: StreamId) {
        if let Some(peer) = self.peers.get_mut(&id.peer) {
            peer.stack.close(id.number);
            self.touched.insert(id.peer);
        }
    }

    /// The owner of a stream has dropped it.
    pub fn release(&mut self, id: StreamId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id.peer) {
            peer.stack.release(id.number, now);
            self.touched.insert(id.peer);
        }
    }

    /// Whether the session with a peer is up.
    pub fn reaches(&self, node: NodeId, now: Instant) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.is_up(now))
    }

    /// Number of peers, of keys that belong to one, and of tunnels.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.peers.len(), self.by_key.len(), self.by_index.len())
    }

    /// What is known of each peer.
    pub fn status(&self, now: Instant) -> BTreeMap<NodeId, PeerStatus> {
        self.peers.iter().map(|(node, peer)| (*node, peer.status(now))).collect()
    }
}

/// An index that no tunnel has, entered for a peer.
fn unused_index(by_index: &mut HashMap<u32, NodeId>, rng: &mut StdRng, node: NodeId) -> u32 {
    loop {
        let index = rng.random::<u32>() >> (u32::BITS - INDEX_BITS);
        if let std::collections::hash_map::Entry::Vacant(entry) = by_index.entry(index) {
            entry.insert(node);
            return index;
        }
    }
}

fn send(actions: &mut Vec<Action>, out: Vec<Outgoing>) {
    actions.extend(out.into_iter().map(|(to, datagram)| Action::Send(to, datagram)));
}
