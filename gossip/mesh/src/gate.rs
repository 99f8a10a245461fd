//! The filter between peers and chitchat: it decides what enters chitchat's state, and what
//! chitchat sends to which peer.
//!
//! chitchat keeps every node id that a peer mentions in its state, and so in every digest, for an
//! hour. With enough of them a digest no longer fits a message. Keys cost nothing, so a hostile
//! member could name thousands. So the gate limits the number of
//! [incarnations](super::incarnations) and the [bytes of each](super::quota).
//!
//! Each node decides this alone. But a peer must not offer for ever what this node refuses, because
//! chitchat sends what it takes for new first, and nothing else would get through. Therefore
//!
//! * a peer is sent only values of incarnations that it names itself, and this node's own;
//! * a peer that has exceeded the quota of an incarnation is sent, for a while, digests that claim
//!   that this node knows all of it;
//! * every third answer to a peer has only the newest incarnation that each member announces over
//!   its own link, since no other node can make these up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use chitchat::ChitchatMessage;
use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::address::mesh_socket;
use rustbalance_gossip::id::{ClusterId, NodeId};
use tokio::time::Instant;
use tracing::debug;

use crate::incarnations::{Incarnations, NamingContext};
use crate::leaky::LeakyBucket;
use crate::quota::{Quota, Quotas};
use crate::supply::{ByPeer, Supply};
use crate::wire::{self, Incarnation, IncarnationDelta, Message, Names, ShortName, WireError};

/// How long this node claims to be up to date on an incarnation whose quota a peer has exceeded, so
/// that the peer stops sending it.
const SUPPRESS_FOR: Duration = Duration::from_secs(30);
/// Each time a peer has sent this number of digests, the last one is answered only with the
/// incarnations that members announce of themselves. Pulls do not count: each names the few values
/// that it lacks, and a late heartbeat must not wait for the second pull.
const SELF_ANNOUNCED_EVERY: u32 = 3;
/// Sustained rate of changes to an incarnation of a member, in bytes per second. An honest node
/// needs some hundred.
const MEMBER_CHANGES: usize = 8192;
/// The same for a node that is not known as a member.
const NON_MEMBER_CHANGES: usize = 1024;
/// Bytes that every incarnation of a non-member may have, whatever others use: enough for its card,
/// which makes the node known as a member.
const NON_MEMBER_BYTES: usize = 4096;
/// An incarnation of a non-member may exceed [`NON_MEMBER_BYTES`] while all incarnations of
/// non-members together have at most this number of bytes: half of the largest message.
const NON_MEMBER_TOTAL_BYTES: usize = 32_768;
/// Bytes read from one peer per second, packed and unpacked sizes added: twice what a link lets
/// through.
const READ: usize = 1 << 20;
/// Burst above [`READ`], in bytes.
const READ_BURST: f64 = (8 << 20) as f64;

/// Quotas on what a mesh keeps of other nodes. Peers may have different ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshLimits {
    /// Most incarnations at once of nodes that are not known as members.
    pub unknown_nodes: usize,
    /// Quota of one incarnation of a member, in bytes. 2000 facts of the authority, which every
    /// node re-announces, take 1 MiB. All incarnations of the member together may have twice as
    /// much; a sixteenth is granted to each, whatever the others use.
    pub node_bytes: usize,
}

impl Default for MeshLimits {
    fn default() -> Self {
        Self { unknown_nodes: 64, node_bytes: 1 << 20 }
    }
}

/// Events at the gate since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MeshCounters {
    /// Messages that could not be read, and values that are not records.
    pub malformed: u64,
    /// Mentions of nodes or incarnations that were not admitted.
    pub unknown_nodes: u64,
    /// Times that a peer sent more of one incarnation than its quota.
    pub over_quota: u64,
    /// Spoofed versions: times that peers claimed more of this node's present incarnation than it
    /// has announced.
    pub spoofed_versions: u64,
    /// Restarts of gossip under a new generation: it had stopped, versions of this node were
    /// spoofed, or [`super::Mesh::restart`] was called.
    pub restarts: u64,
}

/// The gate of one [`super::Mesh`], shared by its transport and its task.
pub struct Gate {
    me: NodeId,
    round: Duration,
    state: Mutex<State>,
}

struct State {
    generation: u64,
    limits: MeshLimits,
    /// The members, this node included.
    members: BTreeSet<NodeId>,
    incarnations: Incarnations,
    quotas: Quotas,
    /// For each peer and incarnation whose quota the peer has exceeded: until when this node claims
    /// to know all of it.
    suppressed_until: BTreeMap<(NodeId, Incarnation), Instant>,
    peers: BTreeMap<NodeId, Peer>,
    addresses: BTreeMap<SocketAddr, NodeId>,
    claimed: Claim,
    names: Names,
    counters: MeshCounters,
    supply: Supply,
}

/// The state of one peer that sends messages.
struct Peer {
    read: LeakyBucket,
    /// Number of digests received from it, without those of pulls.
    asked: u32,
}

/// The highest counters that peers claim for this node's present incarnation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) heartbeat: u64,
    pub(super) version: u64,
}

impl Gate {
    /// A gate with the default limits that knows no other member of this cluster, with this time
    /// between two rounds of gossip.
    pub fn new(me: NodeId, cluster: ClusterId, round: Duration) -> Self {
        let state = State {
            generation: 0,
            limits: MeshLimits::default(),
            members: BTreeSet::from([me]),
            incarnations: Incarnations::default(),
            quotas: Quotas::default(),
            suppressed_until: BTreeMap::new(),
            peers: BTreeMap::new(),
            addresses: BTreeMap::new(),
            claimed: Claim::default(),
            names: Names::new(cluster),
            counters: MeshCounters::default(),
            supply: Supply::new(round, Instant::now()),
        };
        Self { me, round, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Begins a new incarnation of this node, with a chitchat that has an empty state.
    pub(super) fn begin(&self, generation: u64) {
        let mut state = self.lock();
        state.generation = generation;
        state.claimed = Claim::default();
        state.incarnations.clear();
        state.names.retain(|_| false);
        state.quotas.clear();
        state.suppressed_until.clear();
        state.supply = Supply::new(self.round, Instant::now());
    }

    /// Whether this node compares itself with others in every round.
    pub(super) fn is_busy(&self) -> bool {
        self.lock().supply.is_busy(Instant::now())
    }

    /// Makes this node busy for some rounds.
    pub(super) fn stir(&self) {
        self.lock().supply.stir(Instant::now());
    }

    /// The incarnations to pull now, by peer, with these links.
    pub(super) fn pulls(&self, links: &BTreeSet<NodeId>) -> ByPeer {
        self.lock().supply.pulls(links, Instant::now())
    }

    /// The subscriptions to send now, by peer, with these links.
    pub(super) fn subscribe(&self, links: &BTreeSet<NodeId>) -> ByPeer {
        self.lock().supply.subscribe(links, Instant::now())
    }

    /// The peers that sent values of incarnations unknown here since the last call.
    pub(super) fn take_unknown(&self) -> BTreeSet<NodeId> {
        self.lock().supply.take_unknown()
    }

    /// The nodes among these that are silent, and for how long they have been.
    pub(super) fn silent(&self, nodes: impl Iterator<Item = NodeId>) -> Vec<(NodeId, Duration)> {
        let (state, now) = (self.lock(), Instant::now());
        nodes.filter_map(|node| Some((node, state.supply.silent_for(node, now)?))).collect()
    }

    /// The peers among `links` that get this node's own new values.
    pub(super) fn met(&self, links: &BTreeSet<NodeId>) -> Vec<NodeId> {
        self.lock().supply.met(links)
    }

    /// The peers among `links` that have subscribed to this incarnation of another node, without
    /// the peer that delivered its last value.
    pub(super) fn subscribers(&self, incarnation: &Incarnation, links: &BTreeSet<NodeId>) -> Vec<NodeId> {
        self.lock().supply.subscribers(incarnation, links, Instant::now()).collect()
    }

    /// Whether the last new value of this incarnation came from this peer, or the peer is its node.
    pub(super) fn is_source(&self, incarnation: &Incarnation, peer: &NodeId) -> bool {
        incarnation.node == *peer || self.lock().supply.is_source(incarnation, peer)
    }

    /// Replaces the limits.
    pub(super) fn set_limits(&self, limits: MeshLimits) {
        self.lock().limits = limits;
    }

    /// Replaces the set of known members. This node is always one of them.
    pub fn set_members(&self, mut members: BTreeSet<NodeId>) {
        members.insert(self.me);
        let mut state = self.lock();
        if state.members != members {
            state.members = members;
            // A node that has become a member gets a larger quota.
            state.suppressed_until.clear();
        }
    }

    /// Notes the mesh address of a node, so that messages can be sent to it.
    pub(super) fn know(&self, node: NodeId) {
        self.lock().addresses.insert(mesh_socket(&node), node);
    }

    /// Forgets the incarnations that chitchat has forgotten. `has` holds the highest version that
    /// chitchat has of each.
    pub(super) fn prune(&self, has: &BTreeMap<Incarnation, u64>) {
        let mut state = self.lock();
        let now = Instant::now();
        let State { members, addresses, incarnations, names, quotas, suppressed_until, peers, supply, .. } =
            &mut *state;
        supply.prune(|incarnation| has.contains_key(incarnation), now);
        incarnations.prune(|incarnation| has.contains_key(incarnation), now);
        names.retain(|incarnation| incarnations.contains(incarnation));
        quotas.prune(has);
        suppressed_until.retain(|(_, incarnation), until| *until > now && incarnations.contains(incarnation));
        let nodes: BTreeSet<_> = incarnations.iter().map(|incarnation| incarnation.node).collect();
        addresses.retain(|_, node| nodes.contains(node) || members.contains(node));
        peers.retain(|peer, _| nodes.contains(peer) || members.contains(peer));
    }

    /// The node with this mesh address; `None` if it is not known.
    pub(super) fn node_at(&self, address: &SocketAddr) -> Option<NodeId> {
        self.lock().addresses.get(address).copied()
    }

    /// The highest counters that peers have claimed for this node's present incarnation.
    pub(super) fn claimed(&self) -> Claim {
        self.lock().claimed
    }

    pub(super) fn counters(&self) -> MeshCounters {
        self.lock().counters
    }

    pub(super) fn count_restart(&self) {
        self.lock().counters.restarts += 1;
    }

    pub(super) fn count_spoofed_version(&self) {
        self.lock().counters.spoofed_versions += 1;
    }

    pub(super) fn count_malformed(&self, values: usize) {
        self.lock().counters.malformed += values as u64;
    }

    /// Changes the digest in a message to a peer so that the peer sends nothing of incarnations
    /// whose quota it has exceeded. The length stays the same. Never done for the peer's own
    /// incarnations: the peer would take it for a spoofed version.
    pub(super) fn suppress(&self, to: NodeId, bytes: &mut [u8]) {
        let mut state = self.lock();
        let State { suppressed_until, names, .. } = &mut *state;
        let now = Instant::now();
        let has_enough = |incarnation: &Incarnation| {
            incarnation.node != to && suppressed_until.get(&(to, *incarnation)).is_some_and(|until| *until > now)
        };
        if suppressed_until.keys().any(|(peer, _)| *peer == to)
            && let Err(error) = wire::suppress(bytes, names, has_enough)
        {
            debug!(%error, "cannot read a message that chitchat wrote");
        }
    }

    /// Reads a message from `from` and leaves out what may not enter chitchat's state. `None` if
    /// the message is not for chitchat, or nothing is left of a push.
    ///
    /// # Errors
    ///
    /// Why nothing of the message enters: it cannot be read, or the peer sends too much. Counted as
    /// malformed.
    pub fn read(&self, from: NodeId, bytes: &[u8]) -> Result<Option<ChitchatMessage>, WireError> {
        let mut state = self.lock();
        let result = self.filter(&mut state, from, bytes);
        if result.is_err() {
            state.counters.malformed += 1;
        }
        result
    }

    fn filter(&self, state: &mut State, from: NodeId, bytes: &[u8]) -> Result<Option<ChitchatMessage>, WireError> {
        let now = Instant::now();
        state.may_read(from, now)?;
        if let Some(names) = wire::subscriptions(bytes) {
            state.on_subscriptions(from, &names?, bytes.len(), now);
            return Ok(None);
        }
        let mut message = Message::read(bytes, &mut state.names)?;
        let own = Incarnation { node: self.me, generation: state.generation };
        state.addresses.insert(mesh_socket(&from), from);
        for known in message.digest().iter().filter(|known| known.incarnation == own) {
            state.claimed.heartbeat = state.claimed.heartbeat.max(known.heartbeat);
            state.claimed.version = state.claimed.version.max(known.version);
            state.supply.meet(from);
        }
        // chitchat ignores the values of an incarnation that no digest has named, so it is enough
        // to admit those in the digest.
        let named: BTreeSet<Incarnation> = message.digest().iter().map(|known| known.incarnation).collect();
        let named: BTreeSet<Incarnation> = named
            .into_iter()
            .filter(|incarnation| *incarnation == own || state.admit(*incarnation, from, now))
            .collect();
        state.supply.hear(from, now);
        if message.names_unknown() {
            state.supply.on_unknown(from);
        }
        let values_by_incarnation = message.values_by_incarnation();
        let read = bytes.len() + message.delta_bytes();
        // Values of this node's own present incarnation come from this node alone.
        let values_by_incarnation =
            values_by_incarnation.iter().filter(|values_by_incarnation| values_by_incarnation.incarnation != own);
        let kept: BTreeMap<Incarnation, usize> = values_by_incarnation
            .map(|values_by_incarnation| {
                let kept = state.enter(values_by_incarnation, from, message.has_digest(), now);
                (values_by_incarnation.incarnation, kept)
            })
            .collect();
        let (push, pull) = (wire::is_push(bytes), message.may_be_pull());
        let mut changed = push;
        changed |= message.retain(
            |incarnation| named.contains(incarnation),
            |incarnation| kept.get(incarnation).copied().unwrap_or(0),
        );
        if message.has_digest() {
            changed |= message.claim_up_to_date(&state.suppressed(from, &named, pull, now));
        }
        state.peer(from, now).read.add(read);
        if push && kept.values().all(|kept| *kept == 0) {
            return Ok(None);
        }
        if changed { message.for_chitchat() } else { wire::for_chitchat(bytes) }.map(Some)
    }
}

impl State {
    fn peer(&mut self, peer: NodeId, now: Instant) -> &mut Peer {
        self.peers.entry(peer).or_insert_with(|| Peer { read: LeakyBucket::new(now), asked: 0 })
    }

    /// Refuses a peer that sends too much. A short message may unpack to a long one, so both sizes
    /// count.
    fn may_read(&mut self, from: NodeId, now: Instant) -> Result<(), WireError> {
        if self.peer(from, now).read.now(now, READ) > READ_BURST { Err(WireError::Greedy) } else { Ok(()) }
    }

    /// Replaces what a peer subscribes to here. It is not asked for what is unknown here: the peer
    /// has received it meanwhile, or will pull it.
    fn on_subscriptions(&mut self, from: NodeId, names: &[ShortName], bytes: usize, now: Instant) {
        self.peer(from, now).read.add(bytes);
        self.supply.hear(from, now);
        let incarnations = names.iter().filter_map(|name| self.names.incarnation(name)).collect();
        self.supply.on_subscriptions(from, incarnations, now);
    }

    fn admit(&mut self, incarnation: Incarnation, from: NodeId, now: Instant) -> bool {
        let naming = NamingContext { from, members: &self.members, unknown_nodes: self.limits.unknown_nodes, now };
        let new = !self.incarnations.contains(&incarnation);
        let admitted = self.incarnations.admit(incarnation, naming);
        if admitted {
            if new {
                self.supply.on_admitted(incarnation, from, now);
                self.names.learn(incarnation);
            }
            self.addresses.insert(mesh_socket(&incarnation.node), incarnation.node);
        } else {
            self.counters.unknown_nodes += 1;
        }
        admitted
    }

    /// Number of leading values that may enter of those that a peer sends of an incarnation. Notes
    /// what they show about this node's supply.
    fn enter(&mut self, values: &IncarnationDelta<'_>, from: NodeId, compared: bool, now: Instant) -> usize {
        if !self.incarnations.contains(&values.incarnation) {
            if self.members.contains(&values.incarnation.node) {
                self.supply.on_unknown(from);
            }
            return 0;
        }
        let known = self.quotas.version(&values.incarnation);
        let kept = self.weigh(values, from, now);
        // Values above a quota are not missing here.
        if kept > 0 || values.from > known || values.values.last().is_some_and(|value| value.version <= known) {
            self.supply.on_values(values, known, from, compared, now);
        }
        kept
    }

    /// Number of leading values that the quotas let enter.
    fn weigh(&mut self, values_by_incarnation: &IncarnationDelta<'_>, from: NodeId, now: Instant) -> usize {
        let node = values_by_incarnation.incarnation.node;
        let first_hand = node == from;
        let members = &self.members;
        let bytes = self.limits.node_bytes;
        let weighed = if members.contains(&node) {
            let room = Quota { least: bytes / 16, most: bytes, together: 2 * bytes, per_second: MEMBER_CHANGES };
            self.quotas.weigh(
                values_by_incarnation,
                first_hand,
                room,
                |(incarnation, own)| incarnation.node == node && *own == first_hand,
                now,
            )
        } else {
            let (least, together) = (NON_MEMBER_BYTES, NON_MEMBER_TOTAL_BYTES);
            let room = Quota { least, most: together, together, per_second: NON_MEMBER_CHANGES };
            self.quotas.weigh(
                values_by_incarnation,
                first_hand,
                room,
                |(incarnation, _)| !members.contains(&incarnation.node),
                now,
            )
        };
        if weighed.full {
            debug!(node = %node.short(), %from, kept = weighed.kept, "a peer exceeds the quota of a node");
            self.counters.over_quota += 1;
            self.suppressed_until.insert((from, values_by_incarnation.incarnation), now + SUPPRESS_FOR);
        }
        weighed.kept
    }

    /// The incarnations of which nothing is sent to a peer whose digest names these: all that it
    /// does not name and, in every [`SELF_ANNOUNCED_EVERY`]th answer unless it is to a pull, all
    /// that members have not announced of themselves.
    fn suppressed(
        &mut self,
        peer: NodeId,
        named: &BTreeSet<Incarnation>,
        pull: bool,
        now: Instant,
    ) -> BTreeSet<Incarnation> {
        let peer = self.peer(peer, now);
        peer.asked = peer.asked.wrapping_add(u32::from(!pull));
        let limited = !pull && peer.asked.is_multiple_of(SELF_ANNOUNCED_EVERY);
        let select = limited.then(|| self.incarnations.newest_self_announced(&self.members));
        let select = |incarnation: &Incarnation| select.as_ref().is_none_or(|select| select.contains(incarnation));
        self.incarnations.iter().filter(|incarnation| !named.contains(incarnation) || !select(incarnation)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::ack;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_sends_too_much_to_unpack_is_not_read_for_a_while() {
        let node = |i| NodeId::from_public_key([i; 32]);
        let gate = Gate::new(node(1), ClusterId::from_public_key([1; 32]), Duration::from_millis(500));
        let long = ack(node(2), 1, &[("a".into(), "b".repeat(20_000), 1), ("b".into(), "b".repeat(20_000), 2)]);
        let read = (0..1000).take_while(|_| gate.read(node(2), &long).is_ok()).count();
        assert!((50..250).contains(&read), "{read}");
        assert_eq!(gate.read(node(2), &long).err(), Some(WireError::Greedy));
        assert!(gate.read(node(3), &long).is_ok(), "other peers are read");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(gate.read(node(2), &long).is_ok());
    }

    /// A late heartbeat is pulled from one neighbour after the other. If any of them answered
    /// without it, the node could count as dead.
    #[test]
    fn a_pull_is_never_answered_without_the_incarnation_that_it_names() {
        let node = |i| NodeId::from_public_key([i; 32]);
        let gate = Gate::new(node(1), ClusterId::from_public_key([1; 32]), Duration::from_millis(500));
        let [own, other] = [1, 3].map(|i| Incarnation { node: node(i), generation: 1 << 16 });
        let mut state = gate.lock();
        let named = BTreeSet::from([own, other]);
        let now = Instant::now();
        assert!(named.iter().all(|incarnation| state.admit(*incarnation, node(2), now)));
        let mut left_out = |pull| state.suppressed(node(2), &named, pull, now).contains(&other);
        assert_eq!([true; 7].map(&mut left_out), [false; 7]);
        assert_eq!([false; 6].map(&mut left_out), [false, false, true, false, false, true], "a comparison");
    }
}
