//! Which node ids may enter chitchat's state.
//!
//! Every id that a peer mentions stays in the state, and so in every digest, for an hour; enough of them and no digest
//! fits a message any more. A key is made in no time, so a hostile member could name thousands. Therefore: members enter
//! freely, a few ids that are not known as members may enter (a newcomer's certificates arrive by gossip), each node
//! with a few of its lives, and all together stay below a bound that fits into a message.
//!
//! Nor does chitchat ever forget a value, so what is told of each life is weighed: beyond a bound, no more of it enters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chitchat::ChitchatMessage;
use tokio::time::Instant;
use tracing::debug;

use super::wire::{Life, Message, Names, WireError};
use crate::address::mesh_socket;
use crate::id::NodeId;

/// Lives in the state at once. 400 of them make a digest of about 35 kB.
const MAX_LIVES: usize = 400;
/// Lives of one node at once: it may have restarted several times within the hour for which chitchat remembers.
const MAX_LIVES_OF_ONE: usize = 12;
/// What is kept of a value besides itself, about, in bytes.
const OVERHEAD: usize = 64;
/// For how long a life is remembered that chitchat has no state of.
const FORGET: Duration = Duration::from_secs(60);

/// Bounds on what a mesh keeps of others' words. No peer needs to have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshLimits {
    /// Nodes at once that are not known as members.
    pub strangers: usize,
    /// Bytes of what is said of one life of a member; of one that is not known as a member, an eighth. 2000 of the
    /// authority's facts, which every node repeats, take a megabyte.
    pub node_bytes: usize,
}

impl Default for MeshLimits {
    fn default() -> Self {
        Self { strangers: 64, node_bytes: 1 << 20 }
    }
}

/// What was kept out since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MeshCounters {
    /// Messages that could not be read, and values that are no records.
    pub malformed: u64,
    /// Mentions of nodes that were left out.
    pub strangers: u64,
    /// Times that more was told of one life than is kept.
    pub hoards: u64,
    /// Times that others claimed more of this node's present life than it has said.
    pub lies: u64,
    /// Times that gossip was begun anew under a new generation, because it had stopped or others had been told lies of us.
    pub restarts: u64,
}

/// The gate, shared by what reads messages and what looks after the state. A [`super::Mesh`] has one of its own.
pub struct Gate {
    me: NodeId,
    state: Mutex<State>,
}

/// What is kept of one life's values.
#[derive(Debug, Default)]
struct Hoard {
    bytes: usize,
    /// By key.
    sizes: BTreeMap<String, usize>,
}

#[derive(Default)]
struct State {
    generation: u64,
    limits: MeshLimits,
    members: BTreeSet<NodeId>,
    lives: BTreeMap<Life, Instant>,
    hoards: BTreeMap<Life, Hoard>,
    addresses: BTreeMap<SocketAddr, NodeId>,
    claimed: Claim,
    names: Names,
    counters: MeshCounters,
}

/// The most that others say of this node's present life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) heartbeat: u64,
    pub(super) version: u64,
}

impl Gate {
    /// One that lets a few strangers in and knows no member.
    pub fn new(me: NodeId) -> Self {
        Self { me, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells which life this node begins now.
    pub(super) fn begin(&self, generation: u64) {
        let mut state = self.lock();
        state.generation = generation;
        state.claimed = Claim::default();
    }

    /// Sets other bounds than the default ones.
    pub(super) fn set_limits(&self, limits: MeshLimits) {
        self.lock().limits = limits;
    }

    /// Tells who is known as a member.
    pub fn set_members(&self, members: BTreeSet<NodeId>) {
        self.lock().members = members;
    }

    /// Lets messages be sent to this node.
    pub(super) fn know(&self, node: NodeId) {
        self.lock().addresses.insert(mesh_socket(&node), node);
    }

    /// Forgets lives that chitchat has forgotten, given those it has.
    pub(super) fn prune(&self, has: &BTreeSet<Life>) {
        let mut state = self.lock();
        let now = Instant::now();
        state.lives.retain(|life, seen| has.contains(life) || now.duration_since(*seen) < FORGET);
        let nodes: BTreeSet<_> = state.lives.keys().map(|life| life.node).collect();
        let State { members, addresses, lives, hoards, .. } = &mut *state;
        addresses.retain(|_, node| nodes.contains(node) || members.contains(node));
        hoards.retain(|life, _| lives.contains_key(life));
    }

    /// Whose mesh address it is.
    pub(super) fn node_at(&self, address: &SocketAddr) -> Option<NodeId> {
        self.lock().addresses.get(address).copied()
    }

    /// What others say of this node's present life.
    pub(super) fn claimed(&self) -> Claim {
        self.lock().claimed
    }

    pub(super) fn counters(&self) -> MeshCounters {
        self.lock().counters
    }

    pub(super) fn count_restart(&self) {
        self.lock().counters.restarts += 1;
    }

    pub(super) fn count_lie(&self) {
        self.lock().counters.lies += 1;
    }

    pub(super) fn count_malformed(&self, values: usize) {
        self.lock().counters.malformed += values as u64;
    }

    /// Reads a message that `from` has sent, leaving out what may not enter. An error counts it as malformed, and nothing of
    /// it enters.
    pub fn read(&self, from: NodeId, bytes: &[u8]) -> Result<ChitchatMessage, WireError> {
        let mut state = self.lock();
        let result = self.filter(&mut state, from, bytes);
        if result.is_err() {
            state.counters.malformed += 1;
        }
        result
    }

    fn filter(&self, state: &mut State, from: NodeId, bytes: &[u8]) -> Result<ChitchatMessage, WireError> {
        let mut message = Message::read(bytes, &mut state.names)?;
        let own = Life { node: self.me, generation: state.generation };
        state.addresses.insert(mesh_socket(&from), from);
        for known in message.digest().iter().filter(|known| known.life == own) {
            state.claimed.heartbeat = state.claimed.heartbeat.max(known.heartbeat);
            state.claimed.version = state.claimed.version.max(known.version);
        }
        let admitted: BTreeSet<Life> =
            message.lives().into_iter().filter(|life| *life == own || state.admit(*life, from)).collect();
        // Nobody tells this node about its own present life.
        let mut heard: BTreeSet<Life> = admitted.iter().filter(|life| **life != own).copied().collect();
        let mut told: BTreeMap<Life, Vec<(&str, usize)>> = BTreeMap::new();
        for (life, key, size) in message.values().filter(|(life, ..)| heard.contains(life)) {
            told.entry(life).or_default().push((key, size));
        }
        // All or nothing: with a part left out, chitchat would take what it has for the whole.
        for (life, values) in told.into_iter().filter(|(life, values)| !state.weigh(*life, values)) {
            debug!(node = %life.node.short(), %from, values = values.len(), "more is told of a node than is kept");
            heard.remove(&life);
        }
        let changed = message.retain(|life| admitted.contains(life), |life| heard.contains(life));
        if changed { message.for_chitchat() } else { super::wire::for_chitchat(bytes) }
    }
}

impl State {
    fn admit(&mut self, life: Life, from: NodeId) -> bool {
        let now = Instant::now();
        if let Some(seen) = self.lives.get_mut(&life) {
            *seen = now;
            return true;
        }
        let lives_of_it = |state: &Self| state.lives.keys().filter(|other| other.node == life.node).count();
        let strangers = |state: &Self| {
            let mut nodes: Vec<_> = state.lives.keys().map(|life| life.node).collect();
            nodes.dedup();
            nodes.iter().filter(|node| !state.members.contains(node)).count()
        };
        let admitted = self.lives.len() < MAX_LIVES
            && (life.node == from || lives_of_it(self) < MAX_LIVES_OF_ONE)
            && (self.members.contains(&life.node) || strangers(self) < self.limits.strangers);
        if admitted {
            self.lives.insert(life, now);
            self.addresses.insert(mesh_socket(&life.node), life.node);
        } else {
            self.counters.strangers += 1;
        }
        admitted
    }

    /// Notes values that are told of a life; false, and nothing is noted, if that would be more than is kept.
    fn weigh(&mut self, life: Life, values: &[(&str, usize)]) -> bool {
        let share = if self.members.contains(&life.node) { 1 } else { 8 };
        let hoard = self.hoards.entry(life).or_default();
        let mut latest: BTreeMap<&str, usize> = BTreeMap::new();
        latest.extend(values.iter().map(|(key, size)| (*key, size + OVERHEAD)));
        let replaced: usize = latest.keys().filter_map(|key| hoard.sizes.get(*key)).sum();
        let bytes = hoard.bytes - replaced + latest.values().sum::<usize>();
        if bytes > hoard.bytes && bytes > self.limits.node_bytes / share {
            self.counters.hoards += 1;
            return false;
        }
        hoard.bytes = bytes;
        hoard.sizes.extend(latest.into_iter().map(|(key, size)| (key.to_owned(), size)));
        true
    }
}
