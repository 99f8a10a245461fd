//! Which links there are, and which there should be. No IO and no clock: the time is an argument.
//!
//! It acts when a link opens or ends, when the member set changes, and at every tick: it looks at the whole and says
//! whom to dial now and which links to close.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::neighbours::neighbours;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::{LinkCounts, OutQueue};
use super::handshake::Refusal;
use super::{LinkLimits, LinkStatus, MemberSet, counted};

/// A link that was younger than this may have crossed another on its way; an older one is taken to be forgotten by a
/// peer that dials again.
const CROSSING: Duration = Duration::from_secs(10);
/// A link that lasted as long counts as a success: the next dial does not wait for the one before.
const LASTING: Duration = Duration::from_secs(10);
/// For how long a link stays that this node has opened and does not need any more.
const UNNEEDED: Duration = Duration::from_secs(60);

/// One open link.
pub(super) struct Link {
    pub(super) peer: NodeId,
    pub(super) outgoing: bool,
    since: Instant,
    /// End of the peer's certificate, in seconds since the epoch.
    expires: u64,
    unneeded: Option<Instant>,
    pub(super) out: Arc<OutQueue>,
    pub(super) counts: Arc<LinkCounts>,
    pub(super) close: CancellationToken,
}

/// Dials of one node.
#[derive(Default)]
struct Dials {
    running: bool,
    failures: u32,
    not_before: Option<Instant>,
    /// The last one found the node there, but closed to those who have only our keys.
    shut_out: bool,
}

pub(super) struct Pool {
    me: NodeId,
    limits: LinkLimits,
    next: u64,
    links: BTreeMap<u64, Link>,
    dials: BTreeMap<NodeId, Dials>,
    /// As of the last member set, the revoked left out.
    publishers: BTreeSet<NodeId>,
    /// By the member that passes them on.
    carried: BTreeMap<NodeId, usize>,
    turn: usize,
    pub(super) refused: BTreeMap<&'static str, u64>,
    /// Messages refused of peers that sent too much: counted where they are read, without this pool's lock.
    pub(super) flood: Arc<AtomicU64>,
}

impl Pool {
    pub(super) fn new(me: NodeId, limits: LinkLimits) -> Self {
        Self {
            me,
            limits,
            next: 0,
            links: BTreeMap::new(),
            dials: BTreeMap::new(),
            publishers: BTreeSet::new(),
            carried: BTreeMap::new(),
            turn: 0,
            refused: BTreeMap::new(),
            flood: Arc::default(),
        }
    }

    pub(super) fn count(&mut self, name: &'static str) {
        *self.refused.entry(name).or_default() += 1;
    }

    /// Whether there is a link with `peer`.
    pub(super) fn has(&self, peer: NodeId) -> bool {
        self.links.values().any(|link| link.peer == peer)
    }

    /// Whether a link that `peer` dials may be opened. Decides as [`Pool::open`] will.
    pub(super) fn may_open(&self, peer: NodeId, outgoing: bool, now: Instant) -> Result<(), Refusal> {
        let dialler = |outgoing| if outgoing { self.me } else { peer };
        let mut others = self.links.values().filter(|link| link.peer == peer);
        let better = others.any(|link| {
            dialler(link.outgoing) < dialler(outgoing) && now.saturating_duration_since(link.since) < CROSSING
        });
        if better {
            return Err(Refusal::Duplicate);
        }
        // A peer that has a link already replaces it.
        if self.links.len() >= self.limits.links && !self.has(peer) { Err(Refusal::Busy) } else { Ok(()) }
    }

    /// Opens a link in place of any other with that peer.
    pub(super) fn open(
        &mut self,
        peer: NodeId,
        outgoing: bool,
        expires: u64,
        now: Instant,
    ) -> Result<(u64, Arc<OutQueue>, Arc<LinkCounts>, CancellationToken), Refusal> {
        self.may_open(peer, outgoing, now)?;
        self.links.values().filter(|link| link.peer == peer).for_each(|link| link.close.cancel());
        self.links.retain(|_, link| link.peer != peer);
        let id = self.next;
        self.next += 1;
        let out = Arc::new(OutQueue::new(self.limits.queue));
        let counts = Arc::new(LinkCounts::default());
        let close = CancellationToken::new();
        let parts = (id, Arc::clone(&out), Arc::clone(&counts), close.clone());
        self.links.insert(id, Link { peer, outgoing, since: now, expires, unneeded: None, out, counts, close });
        Ok(parts)
    }

    /// Notes that a link has ended.
    pub(super) fn ended(&mut self, id: u64, peer: NodeId, lasted: Duration, jitter: f64, now: Instant) {
        self.links.remove(&id);
        if lasted >= LASTING {
            self.dials.entry(peer).or_default().failures = 0;
        }
        if !self.has(peer) {
            self.pause(peer, jitter, now);
        }
    }

    /// Notes that a dial has come to nothing, perhaps because the node lets nobody find it who has only our keys.
    pub(super) fn dial_failed(&mut self, peer: NodeId, shut_out: bool, jitter: f64, now: Instant) {
        let dials = self.dials.entry(peer).or_default();
        (dials.running, dials.shut_out) = (false, shut_out);
        self.pause(peer, jitter, now);
    }

    /// Notes that a dial has become a link.
    pub(super) fn dial_done(&mut self, peer: NodeId) {
        let dials = self.dials.entry(peer).or_default();
        (dials.running, dials.shut_out) = (false, false);
    }

    /// True if some member is there, is not reached, and is closed to those who have only our keys.
    pub(super) fn is_refused(&self) -> bool {
        self.dials.iter().any(|(peer, dials)| dials.shut_out && !self.has(*peer))
    }

    /// True if this node seems to have been shut out: it has a link with no publisher, and a
    /// publisher accepts none of its keys; or it has no link at all, and some member accepts none
    /// of its keys. A link with a worker proves nothing: that worker may have been evicted itself.
    /// Nor may a worker that closes its door stop a node that others let in.
    pub(super) fn is_shut_out(&self) -> bool {
        let refuses = |(peer, dials): (&NodeId, &Dials)| dials.shut_out && self.publishers.contains(peer);
        let reached = self.links.values().any(|link| self.publishers.contains(&link.peer));
        (self.links.is_empty() && self.is_refused()) || (!reached && self.dials.iter().any(refuses))
    }

    /// Doubles the pause before the next dial of `peer`. `jitter` is drawn from 0 to 1: half of the pause is random,
    /// so that nodes that lost each other at once do not all dial at once.
    fn pause(&mut self, peer: NodeId, jitter: f64, now: Instant) {
        let (least, most) = self.limits.pause;
        let dials = self.dials.entry(peer).or_default();
        let pause = most.min(least.saturating_mul(1 << dials.failures.min(16)));
        dials.failures = dials.failures.saturating_add(1);
        dials.not_before = Some(now + pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0));
    }

    /// Closes what must not or need not be, and says whom to dial now.
    pub(super) fn reconcile(&mut self, set: &MemberSet, unix: u64, now: Instant) -> Vec<NodeId> {
        let trusted: BTreeSet<NodeId> =
            set.members.iter().filter(|node| !set.revoked.contains_key(node)).copied().collect();
        self.publishers = trusted.intersection(&set.publishers).copied().collect();
        let wanted = neighbours(self.me, &trusted, self.limits.neighbours);
        for link in self.links.values_mut() {
            let needed = wanted.contains(&link.peer) || !link.outgoing;
            link.unneeded = if needed { None } else { link.unneeded.or(Some(now)) };
            let idle = link.unneeded.is_some_and(|since| now.saturating_duration_since(since) >= UNNEEDED);
            if set.revoked.contains_key(&link.peer) || link.expires < unix || idle {
                link.close.cancel();
            }
        }
        self.links.retain(|_, link| !link.close.is_cancelled());
        self.dials.retain(|peer, dials| dials.running || wanted.contains(peer));
        let due: Vec<_> = wanted
            .into_iter()
            .filter(|peer| !self.has(*peer))
            .filter(|peer| {
                let dials = self.dials.get(peer);
                dials.is_none_or(|dials| !dials.running && dials.not_before.is_none_or(|at| at <= now))
            })
            .collect();
        for peer in &due {
            self.dials.entry(*peer).or_default().running = true;
        }
        due
    }

    /// Queues a message for `to`, or for some other peer in turn: gossip is not addressed.
    pub(super) fn send(&mut self, to: NodeId, message: Vec<u8>) {
        self.turn = self.turn.wrapping_add(1);
        let link = self.links.values().find(|link| link.peer == to);
        let link = link.or_else(|| self.links.values().nth(self.turn % self.links.len().max(1)));
        let dropped = link.map(|link| {
            let dropped = link.out.push(message);
            link.counts.dropped.fetch_add(dropped.into(), Ordering::Relaxed);
            dropped
        });
        match dropped {
            None => self.count(counted::NO_LINK),
            Some(true) => self.count(counted::DROPPED),
            Some(false) => {}
        }
    }

    /// Takes one of the places for joiners' streams, for a member that passes one on.
    pub(super) fn take_carried(&mut self, from: NodeId) -> Result<(), Refusal> {
        let (all, of_one) = self.limits.carried;
        let of_it = self.carried.get(&from).copied().unwrap_or(0);
        if of_it >= of_one || self.carried.values().sum::<usize>() >= all {
            return Err(Refusal::Busy);
        }
        self.carried.insert(from, of_it + 1);
        Ok(())
    }

    /// Gives the place back.
    pub(super) fn give_carried(&mut self, from: NodeId) {
        if let Some(count) = self.carried.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                self.carried.remove(&from);
            }
        }
    }

    pub(super) fn status(&self, now: Instant) -> Vec<LinkStatus> {
        let status = self.links.values().map(|link| {
            let round_trip = link.counts.round_trip.load(Ordering::Relaxed);
            let ((frames_in, bytes_in), (frames_out, bytes_out)) =
                (link.counts.read.so_far(), link.counts.written.so_far());
            LinkStatus {
                peer: link.peer,
                outgoing: link.outgoing,
                age: now.saturating_duration_since(link.since),
                frames_in,
                frames_out,
                bytes_in,
                bytes_out,
                dropped: link.counts.dropped.load(Ordering::Relaxed),
                round_trip: round_trip.checked_sub(1).map(Duration::from_millis),
            }
        });
        status.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustbalance_gossip::record::Revocation;
    use rustbalance_gossip::signed::Verified;

    fn node(i: u8) -> NodeId {
        NodeId::from_public_key([i; 32])
    }

    fn set(members: impl IntoIterator<Item = u8>, revoked: &[u8]) -> MemberSet {
        let authority = crate::keys::AuthoritySecret::generate(&mut rand::rng());
        let revoke = |i: &u8| {
            let cluster = rustbalance_gossip::id::ClusterId::from_public_key([0; 32]);
            let revocation = Revocation { cluster, node: node(*i), revoked: 9 };
            (node(*i), Verified::sign(revocation, &authority).unwrap())
        };
        MemberSet {
            members: members.into_iter().map(node).collect(),
            revoked: revoked.iter().map(revoke).collect(),
            ..MemberSet::default()
        }
    }

    fn pool(me: u8) -> Pool {
        Pool::new(node(me), LinkLimits { links: 3, ..LinkLimits::default() })
    }

    fn peers(pool: &Pool, now: Instant) -> Vec<(NodeId, bool)> {
        pool.status(now).iter().map(|link| (link.peer, link.outgoing)).collect()
    }

    #[test]
    fn of_two_links_that_cross_the_smaller_ids_is_kept_on_both_ends() {
        let now = Instant::now();
        for first_outgoing in [true, false] {
            // Node 1 dials node 2 while node 2 dials node 1; either may open first, at either end.
            let (mut one, mut two) = (pool(1), pool(2));
            for outgoing in [first_outgoing, !first_outgoing] {
                let _ = one.open(node(2), outgoing, 99, now);
            }
            for outgoing in [first_outgoing, !first_outgoing] {
                let _ = two.open(node(1), outgoing, 99, now);
            }
            assert_eq!(peers(&one, now), [(node(2), true)]);
            assert_eq!(peers(&two, now), [(node(1), false)]);
        }
    }

    #[test]
    fn the_newer_of_one_diallers_links_is_kept_and_a_forgotten_one_gives_way() {
        let now = Instant::now();
        let mut pool = pool(1);
        let (_, _, _, first) = pool.open(node(2), true, 99, now).unwrap();
        let (id, ..) = pool.open(node(2), true, 99, now).unwrap();
        assert!(first.is_cancelled());
        assert_eq!(pool.open(node(2), false, 99, now).err(), Some(Refusal::Duplicate));
        // Node 2 has restarted, knows of no link, and dials.
        assert!(pool.open(node(2), false, 99, now + CROSSING).is_ok());
        assert_eq!(peers(&pool, now), [(node(2), false)]);
        // The end of the old one takes nothing with it.
        pool.ended(id, node(2), CROSSING, 0.0, now);
        assert!(pool.has(node(2)));
    }

    #[test]
    fn links_are_bounded() {
        let now = Instant::now();
        let mut pool = pool(1);
        for peer in 2..5 {
            pool.open(node(peer), false, 99, now).unwrap();
        }
        assert_eq!(pool.open(node(5), false, 99, now).err(), Some(Refusal::Busy));
        assert!(pool.open(node(4), false, 99, now).is_ok());
        let (all, of_one) = LinkLimits::default().carried;
        assert_eq!((0..all).filter(|_| pool.take_carried(node(2)).is_ok()).count(), of_one);
        assert_eq!((0..200).filter(|i| pool.take_carried(node(3 + i % 50)).is_ok()).count(), all - of_one);
        pool.give_carried(node(2));
        assert!(pool.take_carried(node(2)).is_ok());
    }

    #[test]
    fn who_reaches_nobody_and_is_let_find_nobody_is_shut_out() {
        let (mut pool, now) = (pool(1), Instant::now());
        pool.dial_failed(node(2), false, 0.0, now);
        assert!(!pool.is_shut_out(), "they may be dead");
        pool.dial_failed(node(3), true, 0.0, now);
        assert!(pool.is_shut_out() && pool.is_refused());
        let (id, ..) = pool.open(node(2), false, 99, now).unwrap();
        assert!(!pool.is_shut_out(), "one has come");
        assert!(pool.is_refused(), "but not by that one");
        pool.ended(id, node(2), LASTING, 0.0, now);
        assert!(pool.is_shut_out());
        let (id, ..) = pool.open(node(3), false, 99, now).unwrap();
        assert!(!pool.is_refused());
        pool.ended(id, node(3), LASTING, 0.0, now);
        pool.dial_failed(node(3), false, 0.0, now);
        assert!(!pool.is_shut_out());
    }

    #[test]
    fn a_link_with_a_worker_does_not_hide_that_publishers_refuse_this_node() {
        let (mut pool, now) = (pool(1), Instant::now());
        let members = MemberSet { publishers: [node(1), node(2)].into(), ..set(1..5, &[]) };
        pool.reconcile(&members, 1, now);
        pool.open(node(3), false, 99, now).unwrap();
        pool.dial_failed(node(4), true, 0.0, now);
        assert!(!pool.is_shut_out(), "a worker that closes its door stops no node that others let in");
        pool.dial_failed(node(2), true, 0.0, now);
        assert!(pool.is_shut_out(), "the worker with the link may have been evicted itself");
        pool.open(node(2), false, 99, now).unwrap();
        assert!(!pool.is_shut_out());
    }

    #[test]
    fn the_revoked_and_the_expired_are_closed_and_not_dialled() {
        let now = Instant::now();
        let mut pool = pool(1);
        let (.., revoked) = pool.open(node(2), false, 99, now).unwrap();
        let (.., expired) = pool.open(node(3), false, 50, now).unwrap();
        let (.., good) = pool.open(node(4), false, 99, now).unwrap();
        let due = pool.reconcile(&set(1..6, &[2]), 51, now);
        assert!(revoked.is_cancelled() && expired.is_cancelled() && !good.is_cancelled());
        assert_eq!(due, [node(3), node(5)]);
    }

    #[test]
    fn dials_wait_longer_and_longer_up_to_a_bound_and_one_at_a_time() {
        let mut now = Instant::now();
        let mut pool = pool(1);
        let members = set([1, 2], &[]);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert_eq!(pool.reconcile(&members, 0, now), [node(2)]);
            assert!(pool.reconcile(&members, 0, now + Duration::from_secs(3600)).is_empty(), "two dials at once");
            pool.dial_failed(node(2), false, 1.0, now);
            let failed = now;
            while pool.reconcile(&members, 0, now).is_empty() {
                now += Duration::from_millis(500);
            }
            pool.dial_failed(node(2), false, 1.0, now);
            pool.dials.get_mut(&node(2)).unwrap().failures -= 1;
            pool.dials.get_mut(&node(2)).unwrap().not_before = None;
            pauses.push((now - failed).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        // A link that lasted makes up for it.
        let (id, ..) = pool.open(node(2), true, 99, now).unwrap();
        pool.ended(id, node(2), LASTING, 0.0, now);
        assert_eq!(pool.reconcile(&members, 0, now + Duration::from_secs(1)), [node(2)]);
    }

    #[test]
    fn what_is_not_needed_any_more_is_closed_after_a_while() {
        let now = Instant::now();
        let mut pool = Pool::new(node(1), LinkLimits { neighbours: 1, ..LinkLimits::default() });
        let (.., close) = pool.open(node(3), true, 99, now).unwrap();
        pool.reconcile(&set([1, 2, 3], &[]), 0, now);
        pool.reconcile(&set([1, 2, 3], &[]), 0, now + UNNEEDED / 2);
        assert!(!close.is_cancelled());
        pool.reconcile(&set([1, 2, 3], &[]), 0, now + UNNEEDED);
        assert!(close.is_cancelled());
    }

    #[test]
    fn a_message_for_a_stranger_goes_to_each_peer_in_turn() {
        let now = Instant::now();
        let mut pool = pool(1);
        pool.send(node(9), vec![1]);
        assert_eq!(pool.refused[counted::NO_LINK], 1);
        let queues: Vec<_> = (2..5).map(|peer| pool.open(node(peer), false, 99, now).unwrap().1).collect();
        for _ in 0..30 {
            pool.send(node(9), vec![1]);
        }
        for queue in &queues {
            assert_eq!((0..20).filter(|_| !queue.push(vec![])).count(), 20, "fewer or more than ten in each");
        }
        for _ in 0..100 {
            pool.send(node(2), vec![2]);
        }
        assert!(pool.status(now)[0].dropped > 0);
    }
}
