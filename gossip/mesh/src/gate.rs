//! What may enter chitchat's state, and what chitchat tells to whom.
//!
//! Every id that a peer mentions stays in the state, and so in every digest, for an hour; enough of them and no digest
//! fits a message any more. A key is made in no time, so a hostile member could name thousands. So it is counted which
//! [lives](super::lives) enter, and how much of what is [said of them](super::hoard).
//!
//! Each node decides that alone. What one of them refuses, another must not offer it for ever, else nothing better passes
//! between them: chitchat tells what it takes for new before all else. Therefore
//!
//! * a peer is told only of lives that it names itself, and of this node's own;
//! * a peer that tells more of a life than is kept hears for a while that all of it is known;
//! * every third time a peer is told only what members say of themselves over their own links: one life of each, and nobody
//!   can make up others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use chitchat::ChitchatMessage;
use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::address::mesh_socket;
use rustbalance_gossip::id::NodeId;
use tokio::time::Instant;
use tracing::debug;

use crate::hoard::{Hoards, Room};
use crate::leaky::LeakyBucket;
use crate::lives::{Lives, Naming};
use crate::wire::{Life, Message, Names, Told, WireError};

/// For how long a peer hears that all is known of a life of which more was told than is kept.
const ENOUGH: Duration = Duration::from_secs(30);
/// One in so many answers is of members' own words alone.
const SELECT: u32 = 3;
/// Bytes of changes of one member's life in a second; those of an honest node are some hundred.
const CHANGES: usize = 8192;
/// The same of one that is not known as a member.
const STRANGE_CHANGES: usize = 1024;
/// Bytes of a life of a node that is not known as a member, in any case: its card, which would make it known, and more.
const STRANGE_BYTES: usize = 4096;
/// Bytes of all lives of such nodes, beyond that. Much less than a message.
const STRANGE_TOGETHER: usize = 32_768;
/// Bytes, packed and unpacked, that are read of one peer in a second, and at once: what a link lets through, twice.
const READ: usize = 1 << 20;
const READ_BURST: f64 = (8 << 20) as f64;

/// Bounds on what a mesh keeps of others' words. No peer needs to have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshLimits {
    /// Nodes at once that are not known as members, or rather their lives.
    pub strangers: usize,
    /// Bytes of what a member says of one of its lives. 2000 of the authority's facts, which every node repeats, take a
    /// megabyte. All its lives together get twice as much, and each a sixteenth in any case.
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

#[derive(Default)]
struct State {
    generation: u64,
    limits: MeshLimits,
    /// This node is one of them.
    members: BTreeSet<NodeId>,
    lives: Lives,
    hoards: Hoards,
    /// Of which lives a peer has told too much, until when it hears that all is known.
    enough: BTreeMap<(NodeId, Life), Instant>,
    peers: BTreeMap<NodeId, Peer>,
    addresses: BTreeMap<SocketAddr, NodeId>,
    claimed: Claim,
    names: Names,
    counters: MeshCounters,
}

/// What is noted of who sends messages.
struct Peer {
    read: LeakyBucket,
    /// Its questions and answers so far.
    asked: u32,
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
        let members = BTreeSet::from([me]);
        Self { me, state: Mutex::new(State { members, ..State::default() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Tells which life this node begins now, with a chitchat that knows nothing.
    pub(super) fn begin(&self, generation: u64) {
        let mut state = self.lock();
        state.generation = generation;
        state.claimed = Claim::default();
        state.lives.clear();
        state.hoards.clear();
        state.enough.clear();
    }

    /// Sets other bounds than the default ones.
    pub(super) fn set_limits(&self, limits: MeshLimits) {
        self.lock().limits = limits;
    }

    /// Tells who is known as a member.
    pub fn set_members(&self, mut members: BTreeSet<NodeId>) {
        members.insert(self.me);
        let mut state = self.lock();
        if state.members != members {
            state.members = members;
            // More is kept of who has become one.
            state.enough.clear();
        }
    }

    /// Lets messages be sent to this node.
    pub(super) fn know(&self, node: NodeId) {
        self.lock().addresses.insert(mesh_socket(&node), node);
    }

    /// Forgets lives that chitchat has forgotten, given the version up to which it has each.
    pub(super) fn prune(&self, has: &BTreeMap<Life, u64>) {
        let mut state = self.lock();
        let now = Instant::now();
        let State { members, addresses, lives, hoards, enough, peers, .. } = &mut *state;
        lives.prune(|life| has.contains_key(life), now);
        hoards.prune(has);
        enough.retain(|(_, life), until| *until > now && lives.contains(life));
        let nodes: BTreeSet<_> = lives.iter().map(|life| life.node).collect();
        addresses.retain(|_, node| nodes.contains(node) || members.contains(node));
        peers.retain(|peer, _| nodes.contains(peer) || members.contains(peer));
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

    /// Has a message to a peer say of which lives it should tell nothing for now. It keeps its length. Of the peer's own it
    /// never says so: the peer would take it for a lie.
    pub(super) fn decline(&self, to: NodeId, bytes: &mut [u8]) {
        let mut state = self.lock();
        let State { enough, names, .. } = &mut *state;
        let now = Instant::now();
        let has_enough = |life: &Life| life.node != to && enough.get(&(to, *life)).is_some_and(|until| *until > now);
        if enough.keys().any(|(peer, _)| *peer == to)
            && let Err(error) = crate::wire::decline(bytes, names, has_enough)
        {
            debug!(%error, "chitchat writes what cannot be read");
        }
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
        let now = Instant::now();
        state.may_read(from, now)?;
        let mut message = Message::read(bytes, &mut state.names)?;
        let own = Life { node: self.me, generation: state.generation };
        state.addresses.insert(mesh_socket(&from), from);
        for known in message.digest().iter().filter(|known| known.life == own) {
            state.claimed.heartbeat = state.claimed.heartbeat.max(known.heartbeat);
            state.claimed.version = state.claimed.version.max(known.version);
        }
        // What is told of a life that no digest has named, chitchat ignores.
        let named: BTreeSet<Life> = message.digest().iter().map(|known| known.life).collect();
        let named: BTreeSet<Life> =
            named.into_iter().filter(|life| *life == own || state.admit(*life, from, now)).collect();
        let told = message.told();
        let read = bytes.len() + message.told_bytes();
        // Nobody tells this node about its own present life.
        let told = told.iter().filter(|told| told.life != own);
        let kept: BTreeMap<Life, usize> = told.map(|told| (told.life, state.weigh(told, from, now))).collect();
        let mut changed = message.retain(|life| named.contains(life), |life| kept.get(life).copied().unwrap_or(0));
        if message.has_digest() {
            changed |= message.know_all(&state.untold(from, &named, now));
        }
        state.peer(from, now).read.add(read);
        if changed { message.for_chitchat() } else { crate::wire::for_chitchat(bytes) }
    }
}

impl State {
    fn peer(&mut self, peer: NodeId, now: Instant) -> &mut Peer {
        self.peers.entry(peer).or_insert_with(|| Peer { read: LeakyBucket::new(now), asked: 0 })
    }

    /// A short message may unpack to a long one, so both are counted.
    fn may_read(&mut self, from: NodeId, now: Instant) -> Result<(), WireError> {
        if self.peer(from, now).read.now(now, READ) > READ_BURST { Err(WireError::Greedy) } else { Ok(()) }
    }

    fn admit(&mut self, life: Life, from: NodeId, now: Instant) -> bool {
        let naming = Naming { from, members: &self.members, strangers: self.limits.strangers, now };
        let admitted = self.lives.admit(life, naming);
        if admitted {
            self.addresses.insert(mesh_socket(&life.node), life.node);
        } else {
            self.counters.strangers += 1;
        }
        admitted
    }

    /// How many values, from the first, may enter of what is told of a life.
    fn weigh(&mut self, told: &Told<'_>, from: NodeId, now: Instant) -> usize {
        if !self.lives.contains(&told.life) {
            return 0;
        }
        let node = told.life.node;
        let first_hand = node == from;
        let members = &self.members;
        let bytes = self.limits.node_bytes;
        let weighed = if members.contains(&node) {
            let room = Room { least: bytes / 16, most: bytes, together: 2 * bytes, per_second: CHANGES };
            self.hoards.weigh(told, first_hand, room, |(life, own)| life.node == node && *own == first_hand, now)
        } else {
            let (least, together) = (STRANGE_BYTES, STRANGE_TOGETHER);
            let room = Room { least, most: together, together, per_second: STRANGE_CHANGES };
            self.hoards.weigh(told, first_hand, room, |(life, _)| !members.contains(&life.node), now)
        };
        if weighed.full {
            debug!(node = %node.short(), %from, kept = weighed.kept, "more is told of a node than is kept");
            self.counters.hoards += 1;
            self.enough.insert((from, told.life), now + ENOUGH);
        }
        weighed.kept
    }

    /// Of which lives a peer that names these is told nothing.
    fn untold(&mut self, peer: NodeId, named: &BTreeSet<Life>, now: Instant) -> BTreeSet<Life> {
        let peer = self.peer(peer, now);
        peer.asked = peer.asked.wrapping_add(1);
        let select = peer.asked.is_multiple_of(SELECT).then(|| self.lives.newest_first_hand(&self.members));
        let select = |life: &Life| select.as_ref().is_none_or(|select| select.contains(life));
        self.lives.iter().filter(|life| !named.contains(life) || !select(life)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::ack;

    #[tokio::test(start_paused = true)]
    async fn who_sends_too_much_to_unpack_is_not_read_for_a_while() {
        let node = |i| NodeId::from_public_key([i; 32]);
        let gate = Gate::new(node(1));
        let long = ack(node(2), 1, &[("a".into(), "b".repeat(20_000), 1), ("b".into(), "b".repeat(20_000), 2)]);
        let read = (0..1000).take_while(|_| gate.read(node(2), &long).is_ok()).count();
        assert!((50..250).contains(&read), "{read}");
        assert_eq!(gate.read(node(2), &long).err(), Some(WireError::Greedy));
        assert!(gate.read(node(3), &long).is_ok(), "others are read");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(gate.read(node(2), &long).is_ok());
    }
}
