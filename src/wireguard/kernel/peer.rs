//! One node in the interface: its keys, where it may be, and whether it answers.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use super::device::{Measured, Place};
use super::table::Action;
use crate::backoff::Backoff;
use crate::wireguard::{PeerProblem, PeerStatus, WireguardKey};

/// Silence after which the session is down: two keepalives and a half.
const SILENCE: Duration = Duration::from_secs(40);
/// Age at which the kernel drops a session (the paper, section 6.1: 180 s), and time to notice.
const LIFETIME: Duration = Duration::from_secs(185);
/// Bytes that are sent without one coming back before they count as unanswered: more than a
/// handshake, a keepalive and an acknowledgement, which need not be answered.
const QUIET_BYTES: u64 = 256;
/// Time without an answer after which the session counts as down. WireGuard itself waits for 15 s.
const UNANSWERED: Duration = Duration::from_secs(4);
/// Time without an answer after which the node's other key is tried, if it has a session.
const DOUBTFUL: Duration = Duration::from_secs(1);
/// Pauses between the places where the node is looked for, as in the userspace engine.
const TRIES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8));

/// One node of the desired state.
pub(super) struct PeerEntry {
    address: Ipv6Addr,
    /// The keys that the interface has as peers, the preferred one first.
    keys: Vec<KeyEntry>,
    /// The key that carries the address; `None` without keys.
    carrier: Option<WireguardKey>,
    is_key_taken: bool,
    endpoints: Vec<SocketAddr>,
    /// Some endpoint was given, usable or not.
    is_placed: bool,
    learnt: Option<SocketAddr>,
    tried: Option<SocketAddr>,
    tries: u32,
    next_try: Instant,
    heard: Option<Instant>,
    /// Bytes sent since something came.
    unheard_bytes: u64,
    unanswered: Option<Instant>,
    /// The other key was tried since something came.
    has_doubted: bool,
    bytes: (u64, u64),
}

/// One key of the node.
struct KeyEntry {
    key: WireguardKey,
    last: Measured,
    /// When its last handshake was noticed.
    shaken: Option<Instant>,
}

impl KeyEntry {
    fn new(key: WireguardKey) -> Self {
        Self { key, last: Measured::default(), shaken: None }
    }

    fn has_session(&self, now: Instant) -> bool {
        self.shaken.is_some_and(|at| now.saturating_duration_since(at) < LIFETIME)
    }
}

impl PeerEntry {
    /// A node with this address, without keys.
    pub(super) fn new(address: Ipv6Addr, now: Instant) -> Self {
        Self {
            address,
            keys: Vec::new(),
            carrier: None,
            is_key_taken: false,
            endpoints: Vec::new(),
            is_placed: false,
            learnt: None,
            tried: None,
            tries: 0,
            next_try: now,
            heard: None,
            unheard_bytes: 0,
            unanswered: None,
            has_doubted: false,
            bytes: (0, 0),
        }
    }

    /// Whether the interface has this key for the node.
    pub(super) fn has(&self, key: &WireguardKey) -> bool {
        self.keys.iter().any(|entry| entry.key == *key)
    }

    /// All keys, to be removed.
    pub(super) fn into_keys(self) -> impl Iterator<Item = WireguardKey> {
        self.keys.into_iter().map(|entry| entry.key)
    }

    /// The key that carries the address.
    pub(super) fn carrier(&self) -> Option<WireguardKey> {
        self.carrier
    }

    /// Whether the node is changing its key.
    pub(super) fn is_rotating(&self) -> bool {
        self.keys.len() > 1
    }

    /// Removes the keys that are not among `allowed`. If the carrier is one of them, a key with a
    /// session takes over first, without a gap.
    pub(super) fn drop_keys(&mut self, allowed: &[WireguardKey], now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let is_allowed = |key: &WireguardKey| allowed.contains(key);
        if self.carrier.is_some_and(|carrier| !is_allowed(&carrier)) {
            let successor = self.keys.iter().find(|entry| is_allowed(&entry.key) && entry.has_session(now));
            self.carrier = successor.map(|entry| entry.key);
            actions.extend(self.carrier.map(|key| Action::Give(key, self.address)));
        }
        let dropped = self.keys.extract_if(.., |entry| !is_allowed(&entry.key));
        actions.extend(dropped.map(|entry| Action::Remove(entry.key)));
        actions
    }

    /// Takes the keys that the node may have, the preferred one first. Without a carrier, the first
    /// becomes it.
    pub(super) fn take_keys(&mut self, allowed: &[WireguardKey], is_key_taken: bool, now: Instant) -> Vec<Action> {
        self.is_key_taken = is_key_taken;
        let mut actions = Vec::new();
        let had_carrier = self.carrier.is_some();
        for key in allowed {
            if !self.has(key) {
                self.keys.push(KeyEntry::new(*key));
                if had_carrier || key != &allowed[0] {
                    actions.push(Action::Add(*key, Place::default()));
                } else {
                    self.carrier = Some(*key);
                    actions.push(Action::Add(*key, self.next_place(now)));
                }
            }
        }
        self.keys.sort_by_key(|entry| allowed.iter().position(|key| *key == entry.key));
        if self.carrier.is_none()
            && let Some(first) = allowed.first()
        {
            self.tries = 0;
            actions.extend(self.look_for(*first, now));
        }
        actions
    }

    /// Takes the endpoints, best first. New ones are tried at once if the session is not up.
    pub(super) fn place(&mut self, endpoints: Vec<SocketAddr>, is_placed: bool, now: Instant) {
        self.is_placed = is_placed;
        if self.endpoints != endpoints {
            self.endpoints = endpoints;
            (self.tries, self.next_try) = (0, now);
        }
    }

    /// Takes what the kernel knows of the node's keys.
    pub(super) fn measure(&mut self, measured: &BTreeMap<WireguardKey, Measured>, now: Instant) -> Vec<Action> {
        let (mut follow, mut heard_at) = (None, None);
        for entry in &mut self.keys {
            let Some(next) = measured.get(&entry.key) else { continue };
            let last = std::mem::replace(&mut entry.last, *next);
            let (bytes_in, bytes_out) = (grown(last.bytes_in, next.bytes_in), grown(last.bytes_out, next.bytes_out));
            self.bytes = (self.bytes.0 + bytes_in, self.bytes.1 + bytes_out);
            let is_new = next.handshake.is_some() && next.handshake != last.handshake;
            if is_new {
                entry.shaken = Some(now);
            }
            let is_carrier = Some(entry.key) == self.carrier;
            if is_new && !is_carrier {
                follow = Some(entry.key);
            }
            if is_carrier && bytes_in > 0 {
                heard_at = Some(next.endpoint);
            } else if is_carrier {
                self.unheard_bytes += bytes_out;
                if self.unheard_bytes > QUIET_BYTES {
                    self.unanswered.get_or_insert(now);
                }
            }
        }
        if let Some(endpoint) = heard_at {
            self.hear(now);
            self.learnt = endpoint.or(self.learnt);
        }
        // The node has begun to use another key, or sends by another than was thought.
        if let Some(key) = follow {
            self.hear(now);
            return self.carry_by(key);
        }
        if let Some(key) = self.doubted(now) {
            self.has_doubted = true;
            return self.carry_by(key);
        }
        if self.is_up(now) || now < self.next_try || self.candidates().next().is_none() {
            return Vec::new();
        }
        let at = usize::try_from(self.tries).unwrap_or_default() % self.keys.len().max(1);
        let key = self.keys.get(at).map(|entry| entry.key);
        key.map(|key| self.look_for(key, now)).unwrap_or_default()
    }

    /// Notes that something has come from the node.
    fn hear(&mut self, now: Instant) {
        (self.heard, self.unheard_bytes, self.unanswered) = (Some(now), 0, None);
        (self.has_doubted, self.tries) = (false, 0);
    }

    /// Another key with a session, if the carrier's packets are not answered.
    fn doubted(&self, now: Instant) -> Option<WireguardKey> {
        let is_doubtful = self.unanswered.is_some_and(|at| now.saturating_duration_since(at) >= DOUBTFUL);
        let mut others = self.keys.iter().filter(|entry| Some(entry.key) != self.carrier && entry.has_session(now));
        others.next().filter(|_| is_doubtful && !self.has_doubted).map(|entry| entry.key)
    }

    /// Lets a key with a session be the carrier, without a gap.
    fn carry_by(&mut self, key: WireguardKey) -> Vec<Action> {
        let former = self.carrier.replace(key);
        let entry = self.keys.iter().find(|entry| entry.key == key);
        self.learnt = entry.and_then(|entry| entry.last.endpoint).or(self.learnt);
        let give = Action::Give(key, self.address);
        std::iter::once(give).chain(former.map(Action::Rest)).collect()
    }

    /// Looks for the node by this key, which becomes the carrier, at the next place. It is removed
    /// first: a peer that is added sends a handshake at once, one that is changed only after the
    /// kernel's own pause. There is no session to lose.
    fn look_for(&mut self, key: WireguardKey, now: Instant) -> Vec<Action> {
        let former = self.carrier.replace(key).filter(|former| *former != key);
        if let Some(entry) = self.keys.iter_mut().find(|entry| entry.key == key) {
            *entry = KeyEntry::new(key);
        }
        (self.unheard_bytes, self.unanswered) = (0, None);
        let mut actions: Vec<_> = former.map(Action::Rest).into_iter().collect();
        actions.push(Action::Remove(key));
        actions.push(Action::Add(key, self.next_place(now)));
        actions
    }

    /// Where the node may be: where it was last, then where it says it is.
    fn candidates(&self) -> impl Iterator<Item = SocketAddr> {
        let announced = self.endpoints.iter().copied().filter(|endpoint| Some(*endpoint) != self.learnt);
        self.learnt.into_iter().chain(announced)
    }

    /// The place to try now: each key at one place, then each at the next.
    fn next_place(&mut self, now: Instant) -> Place {
        let candidates: Vec<_> = self.candidates().collect();
        let keys = u32::try_from(self.keys.len().max(1)).unwrap_or(1);
        let places = u32::try_from(candidates.len().max(1)).unwrap_or(1);
        let at = usize::try_from(self.tries / keys % places).unwrap_or_default();
        let endpoint = candidates.get(at).copied();
        self.next_try = now + TRIES.pause(self.tries / (keys * places));
        if endpoint.is_some() {
            self.tried = endpoint;
            self.tries = self.tries.saturating_add(1);
        }
        Place { endpoint, address: Some(self.address) }
    }

    /// Whether packets are likely to arrive.
    pub(super) fn is_up(&self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        let is_answered = self.unanswered.is_none_or(|at| since(at) < UNANSWERED);
        let is_heard = self.heard.is_some_and(|at| since(at) < SILENCE);
        let carrier = self.keys.iter().find(|entry| Some(entry.key) == self.carrier);
        is_answered && is_heard && carrier.is_some_and(|entry| entry.has_session(now))
    }

    pub(super) fn status(&self, now: Instant) -> PeerStatus {
        let up = self.is_up(now);
        let shaken = self.keys.iter().filter(|entry| entry.has_session(now)).filter_map(|entry| entry.shaken).max();
        PeerStatus {
            up,
            endpoint: if up { self.learnt } else { self.tried.or(self.learnt) },
            last_handshake: shaken.map(|at| now.saturating_duration_since(at)),
            bytes_in: self.bytes.0,
            bytes_out: self.bytes.1,
            problem: self.problem(up),
        }
    }

    fn problem(&self, is_up: bool) -> Option<PeerProblem> {
        match self.tried {
            _ if is_up => None,
            _ if self.keys.is_empty() && self.is_key_taken => Some(PeerProblem::KeyInUse),
            _ if self.candidates().next().is_none() && self.is_placed => Some(PeerProblem::NoUsableEndpoint),
            _ if self.candidates().next().is_none() => Some(PeerProblem::NoEndpoint),
            Some(tried) if self.tries > 1 || self.heard.is_some() => Some(PeerProblem::NoAnswer { tried }),
            _ => None,
        }
    }
}

/// How much a counter has grown, which starts at 0 when its peer is added again.
fn grown(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}
