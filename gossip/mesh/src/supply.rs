//! Decides from whom this node gets the values of each incarnation, and which peers get them from
//! this node.
//!
//! A node pushes its own new values over all of its links. What a member without a link to a node
//! needs, it subscribes to at the neighbour that delivered that node's last heartbeat: the
//! neighbour had the value first. A heartbeat that is late shows that a value was lost, a neighbour
//! failed, or nodes wait for each other in a circle. The node then pulls from one neighbour after
//! the other, and the one that delivers becomes the supplier. Where there is no supplier yet, such
//! as for a newcomer whose first heartbeat came by a comparison, the next one is pulled when it is
//! due. A message with subscriptions replaces those before, so that a node gets each heartbeat from
//! one neighbour only.
//!
//! While much is new (after a start, when an incarnation appears, when comparisons bring values
//! that no push brought) the node is *busy*: it compares itself with others in every round.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::RecordKind;
use tokio::time::Instant;

use crate::wire::{Incarnation, IncarnationDelta};

/// Rounds for which a node compares itself in every round after its start: until it has met all.
const BUSY_AT_START: u32 = 20;
/// The same after other news: long enough for it to reach all members.
const BUSY_AFTER_NEWS: u32 = 6;
/// Rounds after which subscriptions end unless they are renewed.
const SUBSCRIBED: u32 = 300;
/// Rounds after which subscriptions are renewed: two renewals may be lost.
const RENEW: u32 = 100;
/// Rounds that a heartbeat may be late, beyond half an interval, before it is pulled.
const LATE: u32 = 2;
/// Most rounds that it may be late: its way to here takes a second or two at any interval.
const LATEST: u32 = 6;
/// Most pulls for one missing heartbeat. By the last one the node has long been declared dead.
const PULLS: u32 = 8;
/// Longest pause between two heartbeats, in rounds, that counts for their interval.
const LONGEST_PAUSE: u32 = 80;
/// Rounds without a sign of life after which a node counts as silent.
const SILENT: u32 = 10;

/// The arrivals of one incarnation's heartbeats.
#[derive(Debug, Clone, Copy)]
struct Stream {
    heard: Instant,
    /// Mean interval.
    mean: Duration,
    /// The peer that delivered the last one.
    from: NodeId,
    /// The peer at which this node subscribes; `None` if the incarnation's node has a link.
    supplier: Option<NodeId>,
    /// Whether the supplier has failed: a peer with a link that delivers replaces it.
    failed: bool,
    /// Pulls since the last heartbeat, and the time of the next one.
    pulls: u32,
    pull_at: Instant,
    /// All pulls: each goes to another neighbour, because one may itself wait for this node.
    turn: usize,
}

/// Incarnations by peer: to pull from it, or to subscribe to at it.
pub(super) type ByPeer = BTreeMap<NodeId, BTreeSet<Incarnation>>;

/// What one node subscribes to at another.
#[derive(Debug, Default)]
struct Subscriptions {
    incarnations: BTreeSet<Incarnation>,
    /// When they end at the supplier, or are renewed by the subscriber.
    until: Option<Instant>,
}

/// The supply of one incarnation of this node.
#[derive(Debug)]
pub(super) struct Supply {
    /// Time between two rounds of gossip.
    round: Duration,
    streams: BTreeMap<Incarnation, Stream>,
    /// The peer that delivered the last new value of each incarnation.
    sources: BTreeMap<Incarnation, NodeId>,
    /// What each peer subscribes to here.
    subscriptions: BTreeMap<NodeId, Subscriptions>,
    /// What this node subscribes to at each peer that has a link.
    subscribed: BTreeMap<NodeId, Subscriptions>,
    /// The peers that have this node's present incarnation: only they can use its values.
    met: BTreeSet<NodeId>,
    /// The last sign of life of each node: a message of its own, or a new value.
    heard: BTreeMap<NodeId, Instant>,
    /// Incarnations to pull from a peer at once.
    gaps: BTreeSet<(NodeId, Incarnation)>,
    /// Peers that sent values of incarnations unknown here.
    unknown: BTreeSet<NodeId>,
    began: Instant,
    busy_until: Instant,
}

impl Supply {
    /// Begins busy, at `now`.
    pub(super) fn new(round: Duration, now: Instant) -> Self {
        Self {
            round,
            streams: BTreeMap::new(),
            sources: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            subscribed: BTreeMap::new(),
            met: BTreeSet::new(),
            heard: BTreeMap::new(),
            gaps: BTreeSet::new(),
            unknown: BTreeSet::new(),
            began: now,
            busy_until: now + round * BUSY_AT_START,
        }
    }

    /// Notes a message of `peer` itself.
    pub(super) fn hear(&mut self, peer: NodeId, now: Instant) {
        self.heard.insert(peer, now);
    }

    /// Notes that a digest of `peer` names this node's present incarnation.
    pub(super) fn meet(&mut self, peer: NodeId) {
        self.met.insert(peer);
    }

    /// The peers among `links` that get this node's own new values.
    pub(super) fn met(&self, links: &BTreeSet<NodeId>) -> Vec<NodeId> {
        links.intersection(&self.met).copied().collect()
    }

    /// Makes this node busy for some rounds.
    pub(super) fn stir(&mut self, now: Instant) {
        self.busy_until = self.busy_until.max(now + self.round * BUSY_AFTER_NEWS);
    }

    /// Whether this node compares itself with others in every round.
    pub(super) fn is_busy(&self, now: Instant) -> bool {
        now < self.busy_until
    }

    /// Replaces the subscriptions of `peer`.
    pub(super) fn on_subscriptions(&mut self, peer: NodeId, incarnations: BTreeSet<Incarnation>, now: Instant) {
        self.subscriptions.insert(peer, Subscriptions { incarnations, until: Some(now + self.round * SUBSCRIBED) });
    }

    /// Notes a new incarnation that `peer` has named. A peer sends values only of those that a
    /// digest from here has named, so the first ones must be pulled.
    pub(super) fn on_admitted(&mut self, incarnation: Incarnation, peer: NodeId, now: Instant) {
        self.gaps.insert((peer, incarnation));
        self.stir(now);
    }

    /// Whether the last new value of this incarnation came from this peer.
    pub(super) fn is_source(&self, incarnation: &Incarnation, peer: &NodeId) -> bool {
        self.sources.get(incarnation) == Some(peer)
    }

    /// Notes that `peer` sent values of an incarnation unknown here: it must be asked for all.
    pub(super) fn on_unknown(&mut self, peer: NodeId) {
        self.unknown.insert(peer);
    }

    /// Notes values that `peer` sent, of an incarnation that was known up to version `known`.
    /// `compared`: they came with a digest, and thus not by a push.
    pub(super) fn on_values(
        &mut self,
        values: &IncarnationDelta<'_>,
        known: u64,
        peer: NodeId,
        compared: bool,
        now: Instant,
    ) {
        let incarnation = values.incarnation;
        let Some(last) = values.values.last().map(|value| value.version) else { return };
        if values.from > known {
            self.gaps.insert((peer, incarnation));
            return;
        }
        if last <= known {
            // The node itself is behind what is known of it: others spoofed its version. It finds
            // that out when it reads what this node knows.
            if last < known && incarnation.node == peer {
                self.gaps.insert((peer, incarnation));
            }
            return;
        }
        self.heard.insert(incarnation.node, now);
        self.sources.insert(incarnation, peer);
        let heartbeat = RecordKind::Heartbeat.key();
        let mut fresh = values.values.iter().filter(|value| value.version > known);
        let (mut beats, mut others) = (false, false);
        fresh.by_ref().for_each(|value| if value.key == heartbeat { beats = true } else { others = true });
        if beats {
            self.on_heartbeat(incarnation, last - known, (peer, compared), now);
        }
        if others && compared {
            self.stir(now);
        }
    }

    /// Processes a heartbeat whose version is `versions` above the last known one. A node counts a
    /// version for each value, so more than one shows how many were missed: a supplier that
    /// withholds some of the heartbeats does not make them expected later.
    fn on_heartbeat(
        &mut self,
        incarnation: Incarnation,
        versions: u64,
        (peer, compared): (NodeId, bool),
        now: Instant,
    ) {
        let (pause, first) = (self.round * LONGEST_PAUSE, self.round * 4);
        let new = Stream {
            heard: now,
            mean: first,
            from: peer,
            supplier: None,
            failed: false,
            pulls: 0,
            pull_at: now,
            turn: 0,
        };
        let stream = self.streams.entry(incarnation).or_insert(new);
        let elapsed = now.saturating_duration_since(stream.heard);
        if !elapsed.is_zero() && elapsed <= pause {
            let interval = elapsed / u32::try_from(versions).unwrap_or(u32::MAX).max(1);
            stream.mean = (stream.mean * 4 + interval.max(self.round)) / 5;
        }
        // A supplier that is slower than a comparison with another peer has failed, too.
        stream.failed |= stream.pulls > 0 || compared;
        (stream.heard, stream.from, stream.pulls) = (now, peer, 0);
    }

    /// The incarnations to pull now, by peer, of a node with these links.
    pub(super) fn pulls(&mut self, links: &BTreeSet<NodeId>, now: Instant) -> ByPeer {
        let mut pulls = ByPeer::new();
        for (peer, incarnation) in std::mem::take(&mut self.gaps) {
            pulls.entry(peer).or_default().insert(incarnation);
        }
        for (incarnation, stream) in &mut self.streams {
            if let Some(peer) = stream.pulled_from(*incarnation, links, self.round, now) {
                pulls.entry(peer).or_default().insert(*incarnation);
            }
        }
        pulls
    }

    /// The subscriptions to send now, by peer, of a node with these links: where they have changed,
    /// and to renew them.
    pub(super) fn subscribe(&mut self, links: &BTreeSet<NodeId>, now: Instant) -> ByPeer {
        let mut wanted = ByPeer::new();
        let gets = |peer: &NodeId, of: &Incarnation| {
            self.subscriptions.get(peer).is_some_and(|of_peer| of_peer.incarnations.contains(of))
        };
        for (incarnation, stream) in &mut self.streams {
            // A peer that gets the values from here would wait for this node.
            let can = |peer: &NodeId| links.contains(peer) && !gets(peer, incarnation);
            let [kept, next] = [stream.supplier, Some(stream.from)].map(|it| it.filter(can));
            let supplier = if stream.failed { next.or(kept) } else { kept.or(next) };
            stream.failed &= next.is_none();
            stream.supplier = supplier.filter(|_| !links.contains(&incarnation.node));
            if let Some(peer) = stream.supplier {
                wanted.entry(peer).or_default().insert(*incarnation);
            }
        }
        self.subscribed.retain(|peer, _| links.contains(peer));
        let mut due = ByPeer::new();
        for peer in links {
            let wanted = wanted.remove(peer).unwrap_or_default();
            let sent = self.subscribed.entry(*peer).or_default();
            let renew = !wanted.is_empty() && sent.until.is_none_or(|until| now >= until);
            if renew || sent.incarnations != wanted {
                due.insert(*peer, wanted.clone());
                *sent = Subscriptions { incarnations: wanted, until: Some(now + self.round * RENEW) };
            }
        }
        due
    }

    /// The peers that sent values of unknown incarnations since the last call.
    pub(super) fn take_unknown(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.unknown)
    }

    /// The peers among `links` that get new values of another node's incarnation from this node.
    pub(super) fn subscribers<'a>(
        &'a self,
        incarnation: &'a Incarnation,
        links: &'a BTreeSet<NodeId>,
        now: Instant,
    ) -> impl Iterator<Item = NodeId> + 'a {
        let source = self.sources.get(incarnation);
        links.iter().copied().filter(move |peer| {
            let of_peer = self.subscriptions.get(peer).filter(|of_peer| of_peer.until.is_some_and(|until| until > now));
            let subscribed = of_peer.is_some_and(|of_peer| of_peer.incarnations.contains(incarnation));
            subscribed && source != Some(peer) && *peer != incarnation.node
        })
    }

    /// For how long a node has been silent; `None` if it is not.
    pub(super) fn silent_for(&self, node: NodeId, now: Instant) -> Option<Duration> {
        let silence = now.saturating_duration_since(self.heard.get(&node).copied().unwrap_or(self.began));
        let all = Incarnation { node, generation: 0 }..=Incarnation { node, generation: u64::MAX };
        let interval = self.streams.range(all).map(|(_, stream)| stream.mean).max().unwrap_or_default();
        let met = self.heard.contains_key(&node);
        (!met || silence > (self.round * SILENT).max(interval * 3)).then_some(silence)
    }

    /// Forgets incarnations that are gone, and subscriptions that have ended.
    pub(super) fn prune(&mut self, has: impl Fn(&Incarnation) -> bool, now: Instant) {
        self.streams.retain(|incarnation, _| has(incarnation));
        self.sources.retain(|incarnation, _| has(incarnation));
        for of_peer in self.subscriptions.values_mut() {
            of_peer.incarnations.retain(&has);
        }
        let lasts = |of_peer: &Subscriptions| of_peer.until.is_some_and(|until| until > now);
        self.subscriptions.retain(|_, of_peer| !of_peer.incarnations.is_empty() && lasts(of_peer));
        // A peer whose last sign of life is older counts as silent either way.
        let long = self.round * 8000;
        self.heard.retain(|_, heard| now.saturating_duration_since(*heard) < long);
        self.met.retain(|peer| self.heard.contains_key(peer));
    }
}

impl Stream {
    /// The peer from which to pull now, because a heartbeat is late.
    fn pulled_from(
        &mut self,
        incarnation: Incarnation,
        links: &BTreeSet<NodeId>,
        round: Duration,
        now: Instant,
    ) -> Option<NodeId> {
        // Without a link to the node and without a supplier, no push will bring it.
        let pushed = links.contains(&incarnation.node) || self.supplier.is_some_and(|peer| links.contains(&peer));
        let grace = if pushed { (self.mean / 2 + round * LATE).min(round * LATEST) } else { Duration::ZERO };
        let late = now.saturating_duration_since(self.heard) > self.mean + grace;
        if !late || self.pulls == PULLS || now < self.pull_at {
            return None;
        }
        let others: Vec<_> = links.iter().filter(|peer| **peer != incarnation.node).collect();
        // Begins at another place for each incarnation, so that not all go to one peer.
        let first = usize::from(incarnation.node.public_key()[0]);
        let peer = others.get((first + self.turn) % others.len().max(1)).map(|peer| **peer);
        self.pulls += 1;
        self.turn += 1;
        self.pull_at = now + round * (1 + if pushed { self.pulls } else { self.pulls / 2 });
        peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ValueHeader;

    const ROUND: Duration = Duration::from_millis(500);

    fn node(i: u8) -> NodeId {
        NodeId::from_public_key([i; 32])
    }

    fn of(i: u8) -> Incarnation {
        Incarnation { node: node(i), generation: 1 }
    }

    /// Values of incarnation `i` from a peer: the version they build on, what was known, the new
    /// version, and its key.
    fn values(
        supply: &mut Supply,
        i: u8,
        peer: u8,
        versions: (u64, u64, u64),
        key: &str,
        compared: bool,
        now: Instant,
    ) {
        let (from, known, version) = versions;
        let values = vec![ValueHeader { key, bytes: 100, version }];
        supply.on_values(&IncarnationDelta { incarnation: of(i), from, values }, known, node(peer), compared, now);
    }

    fn beat(supply: &mut Supply, i: u8, peer: u8, version: u64, now: Instant) {
        values(supply, i, peer, (0, version - 1, version), "beat", false, now);
    }

    fn links(peers: &[u8]) -> BTreeSet<NodeId> {
        peers.iter().map(|peer| node(*peer)).collect()
    }

    fn one(peer: u8, i: u8) -> ByPeer {
        ByPeer::from([(node(peer), BTreeSet::from([of(i)]))])
    }

    #[test]
    fn the_heartbeats_of_a_node_without_a_link_are_subscribed_where_the_last_one_came_from() {
        let start = Instant::now();
        let mut supply = Supply::new(ROUND, start);
        beat(&mut supply, 9, 2, 1, start);
        beat(&mut supply, 3, 3, 1, start);
        assert_eq!(supply.subscribe(&links(&[2, 3]), start), one(2, 9), "node 3 has a link");
        assert_eq!(supply.subscribe(&links(&[2, 3]), start + ROUND), ByPeer::new());
        for second in 1..=51u32 {
            let now = start + ROUND * 2 * second;
            beat(&mut supply, 9, 2, 1 + u64::from(second), now);
            beat(&mut supply, 3, 3, 1 + u64::from(second), now);
            assert_eq!(supply.pulls(&links(&[2, 3]), now), ByPeer::new());
            let due = if second == 50 { one(2, 9) } else { ByPeer::new() };
            assert_eq!(supply.subscribe(&links(&[2, 3]), now), due, "renewed in round {}", second * 2);
        }
    }

    /// With both suppliers, the node would get every heartbeat twice.
    #[test]
    fn a_supplier_that_fails_is_replaced_by_the_peer_that_delivers_and_gets_no_subscription_any_more() {
        let start = Instant::now();
        let mut supply = Supply::new(ROUND, start);
        (1..=9u32).for_each(|i| beat(&mut supply, 9, 2, u64::from(i), start + ROUND * 4 * i));
        let all = links(&[2, 3]);
        assert_eq!(supply.subscribe(&all, start + ROUND * 36), one(2, 9));
        beat(&mut supply, 9, 3, 10, start + ROUND * 40);
        assert_eq!(supply.subscribe(&all, start + ROUND * 40), ByPeer::new(), "it was not late");
        assert_eq!(supply.pulls(&all, start + ROUND * 49).len(), 1);
        beat(&mut supply, 9, 3, 11, start + ROUND * 50);
        let both = ByPeer::from([(node(2), BTreeSet::new()), (node(3), BTreeSet::from([of(9)]))]);
        assert_eq!(supply.subscribe(&all, start + ROUND * 50), both);
        assert_eq!(supply.subscribe(&links(&[2]), start + ROUND * 51), ByPeer::new(), "no peer has it");
        values(&mut supply, 9, 4, (0, 11, 12), "beat", true, start + ROUND * 51);
        assert_eq!(supply.subscribe(&links(&[2]), start + ROUND * 51), ByPeer::new(), "node 4 has no link");
        values(&mut supply, 9, 3, (0, 12, 13), "beat", false, start + ROUND * 52);
        assert_eq!(supply.subscribe(&all, start + ROUND * 52), one(3, 9), "the link is back");
        values(&mut supply, 9, 2, (0, 13, 14), "beat", true, start + ROUND * 53);
        let both = ByPeer::from([(node(3), BTreeSet::new()), (node(2), BTreeSet::from([of(9)]))]);
        assert_eq!(supply.subscribe(&all, start + ROUND * 53), both, "a comparison was faster");
    }

    #[test]
    fn a_late_heartbeat_is_pulled_from_one_peer_after_the_other() {
        let start = Instant::now();
        let mut supply = Supply::new(ROUND, start);
        (1..=20u32).for_each(|i| beat(&mut supply, 9, 9, u64::from(i), start + ROUND * 4 * i));
        let last = start + ROUND * 80;
        assert_eq!(supply.pulls(&links(&[2, 3, 9]), last + ROUND * 8), ByPeer::new());
        let pulled: Vec<_> =
            (9..200u32).flat_map(|round| supply.pulls(&links(&[2, 3, 9]), last + ROUND * round).into_keys()).collect();
        assert_eq!(pulled.len(), PULLS as usize);
        assert!(pulled.windows(2).all(|pair| pair[0] != pair[1]) && !pulled.contains(&node(9)), "{pulled:?}");
    }

    #[test]
    fn a_supplier_that_withholds_two_of_three_heartbeats_is_found_out_each_time() {
        let start = Instant::now();
        let mut supply = Supply::new(ROUND, start);
        (1..=20u32).for_each(|i| beat(&mut supply, 9, 2, u64::from(i), start + ROUND * 4 * i));
        for i in 7..200u32 {
            let at = start + ROUND * 12 * i;
            assert_eq!(supply.pulls(&links(&[2, 3]), at - ROUND).len(), usize::from(i > 7), "{i}");
            let version = u64::from(i) * 3;
            values(&mut supply, 9, 2, (0, version - 3, version), "beat", false, at);
        }
    }

    #[test]
    fn a_gap_is_pulled_from_the_peer_that_showed_it_and_a_spoofed_version_shown_to_its_node() {
        let now = Instant::now();
        let mut supply = Supply::new(ROUND, now);
        values(&mut supply, 9, 2, (7, 5, 8), "beat", false, now);
        values(&mut supply, 8, 8, (7, 5000, 8), "beat", false, now);
        values(&mut supply, 7, 2, (7, 5000, 8), "beat", false, now);
        let both = [one(2, 9), one(8, 8)].into_iter().flatten().collect();
        assert_eq!(supply.pulls(&links(&[2, 8]), now), both);
        assert_eq!(supply.pulls(&links(&[2, 8]), now), ByPeer::new());
    }

    #[test]
    fn only_news_that_no_push_brought_makes_busy() {
        let start = Instant::now();
        let mut supply = Supply::new(ROUND, start);
        let calm = start + ROUND * BUSY_AT_START;
        assert!(supply.is_busy(calm - ROUND) && !supply.is_busy(calm));
        values(&mut supply, 9, 2, (0, 0, 1), "lease", false, calm);
        values(&mut supply, 9, 2, (0, 1, 2), "beat", true, calm);
        assert!(!supply.is_busy(calm));
        values(&mut supply, 9, 2, (0, 2, 3), "lease", true, calm);
        assert!(supply.is_busy(calm) && !supply.is_busy(calm + ROUND * BUSY_AFTER_NEWS));
    }

    /// A comparison with a node without a link brings the first heartbeat of a newcomer; and a link
    /// may close.
    #[test]
    fn a_heartbeat_that_no_peer_will_push_is_pulled_at_its_time() {
        let start = Instant::now();
        let mut supply = Supply::new(ROUND, start);
        values(&mut supply, 9, 4, (0, 0, 1), "beat", true, start);
        beat(&mut supply, 8, 8, 1, start);
        assert_eq!(supply.subscribe(&links(&[2, 8]), start), ByPeer::new());
        assert_eq!(supply.pulls(&links(&[2, 8]), start + ROUND * 4), ByPeer::new());
        // Node 8 has its link no more.
        assert_eq!(supply.pulls(&links(&[2]), start + ROUND * 5), ByPeer::from([(node(2), [of(8), of(9)].into())]));
        beat(&mut supply, 9, 2, 2, start + ROUND * 5);
        assert_eq!(supply.subscribe(&links(&[2]), start + ROUND * 5), one(2, 9));
    }

    /// Two nodes that subscribe at each other would both wait.
    #[test]
    fn a_subscriber_is_no_supplier() {
        let start = Instant::now();
        let mut supply = Supply::new(ROUND, start);
        beat(&mut supply, 9, 2, 1, start);
        assert_eq!(supply.subscribe(&links(&[2]), start), one(2, 9));
        supply.on_subscriptions(node(2), BTreeSet::from([of(9)]), start);
        assert_eq!(supply.subscribe(&links(&[2]), start), ByPeer::from([(node(2), BTreeSet::new())]));
        supply.on_subscriptions(node(2), BTreeSet::new(), start);
        beat(&mut supply, 9, 2, 2, start + ROUND * 4);
        assert_eq!(supply.subscribe(&links(&[2]), start + ROUND * 4), one(2, 9));
    }

    #[test]
    fn a_heartbeat_of_a_large_cluster_is_pulled_three_seconds_after_its_time() {
        let start = Instant::now();
        let mut supply = Supply::new(ROUND, start);
        (1..=40u32).for_each(|i| beat(&mut supply, 9, 9, u64::from(i), start + ROUND * 14 * i));
        let last = start + ROUND * 14 * 40;
        assert_eq!(supply.pulls(&links(&[2, 9]), last + ROUND * 19), ByPeer::new());
        assert_eq!(supply.pulls(&links(&[2, 9]), last + ROUND * 21), one(2, 9));
    }

    #[test]
    fn subscriptions_end_unless_they_are_renewed_are_replaced_and_do_not_send_values_back() {
        let start = Instant::now();
        let mut supply = Supply::new(ROUND, start);
        for peer in [2, 3] {
            supply.on_subscriptions(node(peer), BTreeSet::from([of(9)]), start);
        }
        supply.on_subscriptions(node(4), BTreeSet::from([of(8)]), start);
        beat(&mut supply, 9, 3, 1, start);
        let all = links(&[2, 3, 4, 9]);
        let subscribers = |supply: &Supply, at| supply.subscribers(&of(9), &all, at).collect::<Vec<_>>();
        assert_eq!(subscribers(&supply, start), [node(2)]);
        assert_eq!(subscribers(&supply, start + ROUND * SUBSCRIBED), []);
        assert_eq!(supply.subscribers(&of(9), &links(&[4]), start).count(), 0, "without a link");
        supply.on_subscriptions(node(2), BTreeSet::from([of(7)]), start);
        assert_eq!(subscribers(&supply, start), []);
        supply.prune(|_| true, start + ROUND * SUBSCRIBED);
        assert!(supply.subscriptions.is_empty());
    }

    #[test]
    fn a_node_is_silent_after_three_intervals_or_before_it_was_met() {
        let start = Instant::now();
        let mut supply = Supply::new(ROUND, start);
        assert_eq!(supply.silent_for(node(9), start), Some(Duration::ZERO));
        (1..=50u32).for_each(|i| beat(&mut supply, 9, 2, u64::from(i), start + ROUND * 10 * i));
        let last = start + ROUND * 500;
        assert_eq!(supply.silent_for(node(9), last + ROUND * 29), None);
        assert_eq!(supply.silent_for(node(9), last + ROUND * 31), Some(ROUND * 31));
    }
}
