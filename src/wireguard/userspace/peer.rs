//! One peer: its tunnels, where it may be, and the streams with it.

use std::collections::VecDeque;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::id::NodeId;
use tokio::time::Instant;

use super::packet::Segment;
use super::stack::Stack;
use super::tunnel::{KeyPair, Kind, OwnKey, Received, Tunnel};
use crate::wireguard::{Peer, PeerProblem, PeerStatus, WireguardKey};

/// Silence after which the session is down: two keepalives and a half.
const SILENCE: Duration = Duration::from_secs(40);
/// Time without an answer to what wants one, after which the session counts as down and handshakes
/// are sent. WireGuard itself waits for 15 s; a peer that has restarted is found sooner like this.
const UNANSWERED: Duration = Duration::from_secs(4);
/// Interval at which a silent session sends something, so that a NAT on the way does not forget it
/// (some do so after 20 s).
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Packets that wait for a session. TCP sends later ones again.
const MOST_WAITING: usize = 16;
/// How long a sending error is shown while the session is up.
const RECENT: Duration = Duration::from_secs(10);

/// A datagram to send.
pub(super) type Outgoing = (SocketAddr, Vec<u8>);

/// One peer of the desired state.
pub(super) struct PeerState {
    pub(super) keys: Vec<WireguardKey>,
    /// In the order of preference: the present keys of both sides first.
    pub(super) tunnels: Vec<Tunnel>,
    pub(super) stack: Stack,
    /// When the stack has to be polled, as entered in the machine's schedule.
    pub(super) due: Option<Instant>,
    /// Another peer announced one of its keys first.
    pub(super) is_key_taken: bool,
    own_address: Ipv6Addr,
    address: Ipv6Addr,
    endpoints: Vec<SocketAddr>,
    /// Some endpoint was given, usable or not.
    is_placed: bool,
    learnt: Option<SocketAddr>,
    /// The number of the candidate that is tried next, modulo their count.
    candidate: usize,
    tried: Option<SocketAddr>,
    heard: Option<Instant>,
    unanswered: Option<Instant>,
    sent: Instant,
    waiting: VecDeque<Vec<u8>>,
    bytes: (u64, u64),
    not_sent: Option<(Instant, SocketAddr, String)>,
}

impl PeerState {
    pub(super) fn new(own_address: Ipv6Addr, node: NodeId, seed: u64, now: Instant) -> Self {
        let address = mesh_address(&node);
        Self {
            keys: Vec::new(),
            tunnels: Vec::new(),
            stack: Stack::new(own_address, address, seed, now),
            due: None,
            is_key_taken: false,
            own_address,
            address,
            endpoints: Vec::new(),
            is_placed: false,
            learnt: None,
            candidate: 0,
            tried: None,
            heard: None,
            unanswered: None,
            sent: now,
            waiting: VecDeque::new(),
            bytes: (0, 0),
            not_sent: None,
        }
    }

    /// Takes the endpoints and keys of the desired state. `usable` are the endpoints that this node
    /// can send to, `keys` those that no other peer has. New tunnels get an index from `index`.
    pub(super) fn update(
        &mut self,
        desired: &Peer,
        usable: Vec<SocketAddr>,
        keys: Vec<WireguardKey>,
        own: &[OwnKey],
        mut index: impl FnMut() -> u32,
        now: Instant,
    ) {
        self.is_placed = !desired.endpoints.is_empty();
        self.is_key_taken = keys.len() < desired.keys.len();
        self.keys = keys;
        if self.endpoints != usable {
            self.endpoints = usable;
            self.tunnels.iter_mut().for_each(|tunnel| tunnel.try_again(now));
        }
        let mut earlier = std::mem::take(&mut self.tunnels);
        for pair in own.iter().flat_map(|own| self.keys.iter().map(move |key| (own, *key))) {
            let known = earlier.iter().position(|tunnel| tunnel.pair == KeyPair { own: pair.0.key, peer: pair.1 });
            self.tunnels.push(match known {
                Some(at) => earlier.swap_remove(at),
                None => Tunnel::new(pair.0, pair.1, index(), now),
            });
        }
        self.tunnels.sort_by_key(|tunnel| {
            let of_own = own.iter().position(|own| own.key == tunnel.pair.own);
            let of_peer = self.keys.iter().position(|key| *key == tunnel.pair.peer);
            of_own.unwrap_or_default() + of_peer.unwrap_or_default()
        });
    }

    /// Whether packets are likely to arrive.
    pub(super) fn is_up(&self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        let is_answered = self.unanswered.is_none_or(|at| since(at) < UNANSWERED);
        let is_heard = self.heard.is_some_and(|at| since(at) < SILENCE);
        is_answered && is_heard && self.tunnels.iter().any(Tunnel::has_session)
    }

    /// Where the peer may be: where it was last, then where it says it is.
    fn candidates(&self) -> impl Iterator<Item = SocketAddr> {
        let announced = self.endpoints.iter().copied().filter(|endpoint| Some(*endpoint) != self.learnt);
        self.learnt.into_iter().chain(announced)
    }

    /// Lets timers act.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Outgoing> {
        let mut out = Vec::new();
        if let Some(endpoint) = self.learnt {
            let due = self.tunnels.iter_mut().filter_map(Tunnel::tick);
            out.extend(due.map(|datagram| (endpoint, datagram)));
        } else {
            // Their handshakes go to the candidates below.
            self.tunnels.iter_mut().for_each(|tunnel| drop(tunnel.tick()));
        }
        out.extend(self.handshakes(now));
        let is_silent = now.saturating_duration_since(self.sent) >= KEEPALIVE;
        if out.is_empty() && is_silent {
            out.extend(self.seal(&[]).map(|(datagram, _)| datagram));
        }
        self.note_out(&out, now);
        out
    }

    /// The handshakes that are due: of the first tunnel while it has no session, and of all while
    /// nothing passes.
    fn handshakes(&mut self, now: Instant) -> Vec<Outgoing> {
        let is_up = self.is_up(now);
        let candidates: Vec<_> = self.candidates().collect();
        let round = u32::try_from(candidates.len()).unwrap_or(u32::MAX);
        let mut out = Vec::new();
        for (at, tunnel) in self.tunnels.iter_mut().enumerate() {
            let is_wanted = !is_up || (at == 0 && !tunnel.has_session());
            if candidates.is_empty() || !is_wanted || tunnel.next_try > now {
                continue;
            }
            // While the session is up, the peer is where its packets come from.
            let to = if is_up { candidates[0] } else { candidates[self.candidate % candidates.len()] };
            out.extend(tunnel.initiate(round, now).map(|datagram| (to, datagram)));
            self.tried = Some(to);
        }
        if !out.is_empty() && !is_up {
            self.candidate = self.candidate.wrapping_add(1);
        }
        out
    }

    /// Takes a datagram for the tunnel of this place. Returns a packet for the stack with the keys
    /// of its tunnel, and the datagrams that answer.
    pub(super) fn receive(
        &mut self,
        at: usize,
        from: SocketAddr,
        datagram: &[u8],
        kind: Kind,
        now: Instant,
    ) -> Option<Delivered> {
        let was_up = self.is_up(now);
        let tunnel = self.tunnels.get_mut(at)?;
        let pair = tunnel.pair;
        let (packet, reply, proves) = match tunnel.receive(from.ip(), datagram, kind) {
            Received::Nothing => return None,
            Received::Data(packet) => (packet, None, true),
            Received::Handshake { reply, proves } => (None, reply, proves),
        };
        self.bytes.0 += datagram.len() as u64;
        // A replayed handshake shows nothing about where the peer is now.
        if proves || (kind == Kind::Initiation && !was_up) {
            self.learnt = Some(from);
        }
        let mut out: Vec<_> = reply.into_iter().map(|reply| (from, reply)).collect();
        if proves {
            (self.heard, self.unanswered, self.not_sent) = (Some(now), None, None);
            self.note_out(&out, now);
            out.extend(self.send_waiting(now));
        } else {
            self.note_out(&out, now);
        }
        Some(Delivered { packet: packet.map(|packet| (packet, pair)), out })
    }

    /// Encrypts what the stack has to send.
    pub(super) fn send_from_stack(&mut self, now: Instant) -> Vec<Outgoing> {
        let mut out = Vec::new();
        while let Some(packet) = self.stack.take() {
            match self.send(&packet, now) {
                Some(datagram) => out.push(datagram),
                None => {
                    if self.waiting.len() == MOST_WAITING {
                        self.waiting.pop_front();
                    }
                    self.waiting.push_back(packet);
                }
            }
        }
        out
    }

    fn send_waiting(&mut self, now: Instant) -> Vec<Outgoing> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().filter_map(|packet| self.send(&packet, now)).collect()
    }

    fn send(&mut self, packet: &[u8], now: Instant) -> Option<Outgoing> {
        let (datagram, pair) = self.seal(packet)?;
        if let Some(segment) = Segment::parse(packet, self.own_address, self.address) {
            self.stack.note_sent(segment, pair);
            if segment.wants_answer {
                self.unanswered.get_or_insert(now);
            }
        }
        self.note_out(std::slice::from_ref(&datagram), now);
        Some(datagram)
    }

    /// Encrypts by the first tunnel with a session.
    fn seal(&mut self, packet: &[u8]) -> Option<(Outgoing, KeyPair)> {
        let to = self.learnt?;
        let (datagram, pair) = self.tunnels.iter_mut().find_map(|tunnel| Some((tunnel.seal(packet)?, tunnel.pair)))?;
        Some(((to, datagram), pair))
    }

    fn note_out(&mut self, datagrams: &[Outgoing], now: Instant) {
        if !datagrams.is_empty() {
            self.sent = now;
        }
        self.bytes.1 += datagrams.iter().map(|(_, datagram)| datagram.len() as u64).sum::<u64>();
    }

    /// Whether a packet is one that this peer may send here.
    pub(super) fn segment(&self, packet: &[u8]) -> Option<Segment> {
        Segment::parse(packet, self.address, self.own_address)
    }

    /// Number of streams with the peer.
    pub(super) fn streams(&self) -> usize {
        self.stack.count(true) + self.stack.count(false)
    }

    /// Whether datagrams for this peer go to `endpoint` now.
    pub(super) fn sends_to(&self, endpoint: SocketAddr) -> bool {
        self.learnt == Some(endpoint) || self.tried == Some(endpoint)
    }

    /// Notes that the host did not send a datagram.
    pub(super) fn note_not_sent(&mut self, to: SocketAddr, error: String, now: Instant) {
        self.not_sent = Some((now, to, error));
    }

    pub(super) fn status(&self, now: Instant) -> PeerStatus {
        let up = self.is_up(now);
        PeerStatus {
            up,
            endpoint: if up { self.learnt } else { self.tried.or(self.learnt) },
            last_handshake: self.tunnels.iter().filter_map(Tunnel::since_handshake).min(),
            bytes_in: self.bytes.0,
            bytes_out: self.bytes.1,
            problem: self.problem(up, now),
        }
    }

    fn problem(&self, is_up: bool, now: Instant) -> Option<PeerProblem> {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < RECENT;
        let not_sent = self.not_sent.as_ref().filter(|(at, ..)| !is_up || is_recent(*at));
        if let Some((_, to, error)) = not_sent {
            return Some(PeerProblem::NotSent { to: *to, error: error.clone() });
        }
        if is_up {
            return None;
        }
        let tries = self.tunnels.iter().map(Tunnel::tries).max().unwrap_or_default();
        match self.tried {
            _ if self.tunnels.is_empty() && self.is_key_taken => Some(PeerProblem::KeyInUse),
            _ if self.candidates().next().is_none() && self.is_placed => Some(PeerProblem::NoUsableEndpoint),
            _ if self.candidates().next().is_none() => Some(PeerProblem::NoEndpoint),
            Some(tried) if tries > 1 || self.heard.is_some() => Some(PeerProblem::NoAnswer { tried }),
            _ => None,
        }
    }
}

/// What a datagram has brought.
pub(super) struct Delivered {
    pub(super) packet: Option<(Vec<u8>, KeyPair)>,
    pub(super) out: Vec<Outgoing>,
}
