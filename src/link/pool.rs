//! Decides which links there should be. No IO and no clock: the time is an argument.
//!
//! When a link opens or ends, when the member set changes, and at every tick, it reviews all links,
//! returns the dials to make and closes links. Between two nodes there is at most one link for each
//! route; the peer's [`Path`] says which of them carries the frames.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustbalance_gossip::contact::{Contacts, Sign};
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::neighbours::neighbours;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::{Answer, LinkCounts};
use super::handshake::LinkRefusal;
use super::path::{Path, PathAction, PathEvent, RouteState};
use super::queue::OutQueue;
use super::{LinkLimits, LinkStatus, MemberSet, Reach, RouteKind};
use crate::backoff::Backoff;
use crate::counters::{Counter, Counters};

/// A link younger than this may have crossed one that the peer dialled at the same time. If the
/// peer dials while an older link is open, the peer must have forgotten that one.
const CROSSED_LINK_AGE: Duration = Duration::from_secs(10);
/// A link that lasted this long counts as a success: the backoff of dials starts again.
const SUCCESSFUL_LINK_AGE: Duration = Duration::from_secs(10);
/// Time after which a link that this node has opened and no longer needs is closed.
const CLOSE_UNNEEDED_AFTER: Duration = Duration::from_secs(60);

/// One open link.
pub(super) struct Link {
    pub(super) peer: NodeId,
    pub(super) route: RouteKind,
    pub(super) outgoing: bool,
    since: Instant,
    /// End of the certificate that the peer showed, in seconds since the epoch.
    expires: u64,
    unneeded: Option<Instant>,
    pub(super) out: Arc<OutQueue>,
    pub(super) counts: Arc<LinkCounts>,
    pub(super) close: CancellationToken,
}

impl Link {
    /// When the last frame was read, or the link opened.
    fn heard(&self) -> Instant {
        self.since + Duration::from_millis(self.counts.heard.load(Ordering::Relaxed))
    }
}

/// The handles of a link that has just been opened, for the task that runs it.
pub(super) struct OpenedLink {
    pub(super) id: u64,
    pub(super) out: Arc<OutQueue>,
    pub(super) counts: Arc<LinkCounts>,
    pub(super) close: CancellationToken,
}

/// The dials of one node by one route.
#[derive(Default)]
struct Dials {
    running: bool,
    failures: u32,
    not_before: Option<Instant>,
    /// The last dial reached the node's onion service, which accepts none of our discovery keys.
    shut_out: bool,
}

pub(super) struct Pool {
    me: NodeId,
    limits: LinkLimits,
    next: u64,
    links: BTreeMap<u64, Link>,
    dials: BTreeMap<(NodeId, RouteKind), Dials>,
    /// Best first; the last is the base, which reaches every member.
    routes: Arc<[RouteKind]>,
    /// One for each peer that has a link or should have one.
    paths: BTreeMap<NodeId, Path>,
    /// Which peers answer. Its times count from `epoch`.
    contacts: Contacts,
    epoch: Instant,
    /// The publishers in the last member set, without revoked ones.
    publishers: BTreeSet<NodeId>,
    /// Joiners' streams in progress, by the member that carries them.
    carried: BTreeMap<NodeId, usize>,
    turn: usize,
    counters: Counters,
}

impl Pool {
    /// The pool of node `me`, with these routes: best first, the base last.
    pub(super) fn new(me: NodeId, routes: Arc<[RouteKind]>, limits: LinkLimits, counters: Counters) -> Self {
        Self {
            me,
            limits,
            next: 0,
            links: BTreeMap::new(),
            dials: BTreeMap::new(),
            routes,
            paths: BTreeMap::new(),
            contacts: Contacts::default(),
            epoch: Instant::now(),
            publishers: BTreeSet::new(),
            carried: BTreeMap::new(),
            turn: 0,
            counters,
        }
    }

    /// Replaces the bounds; they hold from now on.
    pub(super) fn bound(&mut self, limits: LinkLimits) {
        self.limits = limits;
    }

    /// Whether there is a link with `peer` over `route`.
    pub(super) fn has(&self, peer: NodeId, route: RouteKind) -> bool {
        self.link(peer, route).is_some()
    }

    fn link(&self, peer: NodeId, route: RouteKind) -> Option<&Link> {
        self.links.values().find(|link| (link.peer, link.route) == (peer, route))
    }

    /// Whether a link may be opened with `peer`, in the direction that `outgoing` gives.
    /// [`Pool::open`] decides the same way.
    pub(super) fn may_open(
        &self,
        peer: NodeId,
        route: RouteKind,
        outgoing: bool,
        now: Instant,
    ) -> Result<(), LinkRefusal> {
        let dialler = |outgoing| if outgoing { self.me } else { peer };
        let other = self.link(peer, route);
        let better = other.is_some_and(|link| {
            dialler(link.outgoing) < dialler(outgoing) && now.saturating_duration_since(link.since) < CROSSED_LINK_AGE
        });
        if better {
            return Err(LinkRefusal::Duplicate);
        }
        // If the peer already has a link, the new one replaces it.
        let full = self.links.values().filter(|link| link.route == route).count() >= self.limits.links;
        if full && other.is_none() { Err(LinkRefusal::Busy) } else { Ok(()) }
    }

    /// Opens a link, in place of any other with that peer over that route.
    pub(super) fn open(
        &mut self,
        peer: NodeId,
        route: RouteKind,
        outgoing: bool,
        expires: u64,
        now: Instant,
    ) -> Result<OpenedLink, LinkRefusal> {
        self.may_open(peer, route, outgoing, now)?;
        let replaced = self.links.extract_if(.., |_, link| (link.peer, link.route) == (peer, route));
        let replaced: Vec<_> = replaced.map(|(_, link)| link).collect();
        let id = self.next;
        self.next += 1;
        let out = Arc::new(OutQueue::new(self.limits.queue, !self.is_base(route)));
        let counts = Arc::new(LinkCounts::default());
        let close = CancellationToken::new();
        let opened = OpenedLink { id, out: Arc::clone(&out), counts: Arc::clone(&counts), close: close.clone() };
        self.links.insert(id, Link { peer, route, outgoing, since: now, expires, unneeded: None, out, counts, close });
        self.follow(peer, PathEvent::Opened(route), now);
        for link in replaced {
            link.close.cancel();
            self.requeue(&link);
        }
        Ok(opened)
    }

    /// Notes that a link has ended.
    pub(super) fn ended(
        &mut self,
        id: u64,
        (peer, route): (NodeId, RouteKind),
        lasted: Duration,
        jitter: f64,
        now: Instant,
    ) {
        if let Some(link) = self.links.remove(&id) {
            self.follow(peer, PathEvent::LinkEnd(route), now);
            self.requeue(&link);
        }
        if lasted >= SUCCESSFUL_LINK_AGE {
            self.dials.entry((peer, route)).or_default().failures = 0;
        }
        if !self.has(peer, route) {
            self.pause(peer, route, jitter, now);
        }
    }

    /// Notes an answer of the peer on a link.
    pub(super) fn answered(&mut self, id: u64, answer: Answer, now: Instant) {
        let Some(link) = self.links.get(&id) else { return };
        let (peer, route) = (link.peer, link.route);
        match answer {
            Answer::Probe(number) => self.follow(peer, PathEvent::Answered(route, number), now),
            Answer::Ping(round_trip) if self.is_base(route) => self.observe(peer, Sign::Answered { round_trip }, now),
            Answer::Ping(_) => {}
        }
    }

    fn is_base(&self, route: RouteKind) -> bool {
        self.routes.last() == Some(&route)
    }

    /// Passes a sign of the peer on, and asks it over the base route if its silence asks for that.
    fn observe(&mut self, peer: NodeId, sign: Sign, now: Instant) {
        let asks = self.contacts.on(peer, sign, now.saturating_duration_since(self.epoch));
        let base = self.routes.last().copied();
        if let Some(link) = base.filter(|_| asks).and_then(|base| self.link(peer, base)) {
            link.out.ask();
        }
    }

    /// The peers that have stopped to answer on all routes.
    pub(super) fn unreachable(&mut self, now: Instant) -> BTreeSet<NodeId> {
        for link in self.links.values() {
            self.contacts.heard(link.peer, link.heard().saturating_duration_since(self.epoch));
        }
        self.contacts.unreachable(now.saturating_duration_since(self.epoch))
    }

    /// Sends the probes that are due and acts on the missing answers. Returns when to call it
    /// again, and to look at [`Pool::unreachable`], unless a link opens earlier.
    pub(super) fn probe(&mut self, now: Instant) -> Option<Instant> {
        let due = |path: &Path| path.next_timeout().is_some_and(|at| at <= now);
        let due: Vec<_> = self.paths.iter().filter(|(_, path)| due(path)).map(|(peer, _)| *peer).collect();
        for peer in due {
            self.follow(peer, PathEvent::Tick, now);
        }
        let judges = self.contacts.next_deadline(now.saturating_duration_since(self.epoch));
        let judges = judges.map(|at| self.epoch + at);
        self.paths.values().filter_map(Path::next_timeout).chain(judges).min()
    }

    /// The route by which frames to `peer` go now; `None` without a link.
    pub(super) fn route_to(&self, peer: NodeId) -> Option<RouteKind> {
        self.paths.get(&peer).and_then(Path::chosen)
    }

    /// Passes an event to the peer's path, and carries out the actions.
    fn follow(&mut self, peer: NodeId, event: PathEvent, now: Instant) {
        let actions = self.paths.entry(peer).or_insert_with(|| Path::new(&self.routes)).handle(event, now);
        let is_proven = |route| self.paths.get(&peer).is_some_and(|path| path.state(route) == RouteState::Proven);
        let sign = match event {
            PathEvent::Opened(route) => Some(Sign::Opened { base: self.is_base(route) }),
            PathEvent::LinkEnd(route) => Some(Sign::Ended { base: self.is_base(route) }),
            // The base is not probed.
            PathEvent::Answered(route, _) if self.is_base(route) => None,
            PathEvent::Answered(route, _) => Some(Sign::Probed { proven: is_proven(route) }),
            PathEvent::Tick => None,
        };
        if let Some(sign) = sign {
            self.observe(peer, sign, now);
        }
        for action in actions {
            match action {
                PathAction::Missed { late } => {
                    if late {
                        self.contacts.start_again();
                    }
                    self.observe(peer, Sign::Missed, now);
                }
                PathAction::Probe(route, number) => {
                    if let Some(link) = self.link(peer, route) {
                        link.out.probe(number);
                    }
                }
                PathAction::Close(route) => {
                    let dead = self.links.extract_if(.., |_, link| (link.peer, link.route) == (peer, route));
                    for (_, link) in dead.collect::<Vec<_>>() {
                        link.close.cancel();
                        self.requeue(&link);
                    }
                }
                PathAction::Leave(route) => {
                    if let Some(out) = self.link(peer, route).map(|link| Arc::clone(&link.out)) {
                        out.drain().into_iter().for_each(|message| self.send(peer, message));
                    }
                }
            }
        }
    }

    /// Moves the messages left on a closed link to the peer's other route. Without one they are
    /// lost, which is safe: gossip repeats what matters.
    fn requeue(&mut self, link: &Link) {
        if self.route_to(link.peer).is_some() {
            link.out.drain().into_iter().for_each(|message| self.send(link.peer, message));
        }
    }

    /// Notes that a dial has failed. `shut_out`: the node's service accepts none of our discovery
    /// keys.
    pub(super) fn dial_failed(&mut self, peer: NodeId, route: RouteKind, shut_out: bool, jitter: f64, now: Instant) {
        let dials = self.dials.entry((peer, route)).or_default();
        (dials.running, dials.shut_out) = (false, shut_out);
        self.pause(peer, route, jitter, now);
    }

    /// Notes that a dial has become a link.
    pub(super) fn dial_done(&mut self, peer: NodeId, route: RouteKind) {
        let dials = self.dials.entry((peer, route)).or_default();
        (dials.running, dials.shut_out) = (false, false);
    }

    pub(super) fn reach(&self) -> Reach {
        Reach { linked: !self.links.is_empty(), refused: self.is_refused(), shut_out: self.is_shut_out() }
    }

    /// The members whose onion service is reachable but accepts none of this node's discovery keys,
    /// and that have no link over Tor. Only the Tor route reports this.
    fn refusing(&self) -> impl Iterator<Item = NodeId> + '_ {
        let refusing = move |((peer, route), dials): (&(NodeId, RouteKind), &Dials)| {
            (dials.shut_out && !self.has(*peer, *route)).then_some(*peer)
        };
        self.dials.iter().filter_map(refusing)
    }

    /// True if [`Pool::refusing`] names any member.
    pub(super) fn is_refused(&self) -> bool {
        self.refusing().next().is_some()
    }

    /// True if this node seems to be shut out: it has no link with a publisher, and a publisher's
    /// service accepts none of its keys; or it has no link at all, and any member's service accepts
    /// none. A link with a publisher over any route refutes it, because both sides have proved
    /// their membership. A link with a worker does not, because that worker may be evicted itself.
    /// Conversely, a worker that rejects the keys does not count while this node has any link.
    pub(super) fn is_shut_out(&self) -> bool {
        let reached = self.links.values().any(|link| self.publishers.contains(&link.peer));
        let refused_by_publisher = self.refusing().any(|peer| self.publishers.contains(&peer));
        (self.links.is_empty() && self.is_refused()) || (!reached && refused_by_publisher)
    }

    /// Sets the pause before the next dial of `peer` by `route`; it doubles with each failure.
    /// `jitter` is drawn from 0 to 1.
    fn pause(&mut self, peer: NodeId, route: RouteKind, jitter: f64, now: Instant) {
        let dials = self.dials.entry((peer, route)).or_default();
        let (first, longest) = self.limits.pause;
        let pause = Backoff::new(first, longest).jittered(dials.failures, jitter);
        dials.failures = dials.failures.saturating_add(1);
        dials.not_before = Some(now + pause);
    }

    /// Closes the links that must not or need not be open, and returns the dials to start now.
    /// `reaches` says whether a peer can be dialled by a route.
    pub(super) fn reconcile(
        &mut self,
        set: &MemberSet,
        reaches: impl Fn(NodeId, RouteKind) -> bool,
        unix: u64,
        now: Instant,
    ) -> Vec<(NodeId, RouteKind)> {
        let trusted: BTreeSet<NodeId> =
            set.members.iter().filter(|node| !set.revoked.contains_key(node)).copied().collect();
        self.publishers = trusted.intersection(&set.publishers).copied().collect();
        let wanted = neighbours(self.me, &trusted, self.limits.neighbours);
        self.close_the_unwanted(set, &wanted, unix, now);
        self.dials.retain(|(peer, _), dials| dials.running || wanted.contains(peer));
        self.paths.retain(|peer, path| path.chosen().is_some() || wanted.contains(peer));
        self.contacts.retain(|peer| self.paths.contains_key(peer));
        let pairs = wanted.iter().flat_map(|peer| self.routes.iter().map(move |route| (*peer, *route)));
        let due: Vec<_> = pairs
            .filter(|(peer, route)| !self.has(*peer, *route) && reaches(*peer, *route))
            .filter(|pair| {
                let dials = self.dials.get(pair);
                dials.is_none_or(|dials| !dials.running && dials.not_before.is_none_or(|at| at <= now))
            })
            .collect();
        for pair in &due {
            self.dials.entry(*pair).or_default().running = true;
        }
        due
    }

    fn close_the_unwanted(&mut self, set: &MemberSet, wanted: &BTreeSet<NodeId>, unix: u64, now: Instant) {
        for link in self.links.values_mut() {
            let needed = wanted.contains(&link.peer) || !link.outgoing;
            link.unneeded = if needed { None } else { link.unneeded.or(Some(now)) };
            let idle = link.unneeded.is_some_and(|since| now.saturating_duration_since(since) >= CLOSE_UNNEEDED_AFTER);
            let expires = set.ends.get(&link.peer).map_or(link.expires, |end| link.expires.max(*end));
            if set.revoked.contains_key(&link.peer) || expires < unix || idle {
                link.close.cancel();
            }
        }
        let closed: Vec<_> = self.links.extract_if(.., |_, link| link.close.is_cancelled()).collect();
        for (_, link) in closed {
            self.observe(link.peer, Sign::Closed { base: self.is_base(link.route) }, now);
            self.follow(link.peer, PathEvent::LinkEnd(link.route), now);
        }
    }

    /// Queues a message for `to`, or without a link to it for another peer in turn: gossip is not
    /// addressed.
    pub(super) fn send(&mut self, to: NodeId, message: Vec<u8>) {
        self.turn = self.turn.wrapping_add(1);
        let carries = |link: &&Link| self.carries(link);
        let link = self.links.values().filter(carries).find(|link| link.peer == to);
        let link = link.or_else(|| {
            let count = self.links.values().filter(carries).count();
            self.links.values().filter(carries).nth(self.turn % count.max(1))
        });
        let dropped = link.map(|link| {
            let dropped = link.out.push(message);
            link.counts.dropped.fetch_add(dropped.into(), Ordering::Relaxed);
            dropped
        });
        match dropped {
            None => self.counters.count(Counter::LinkNone),
            Some(true) => self.counters.count(Counter::LinkDropped),
            Some(false) => {}
        }
    }

    /// The peers with which there is a link, without those that owe an answer on all routes: gossip
    /// then pulls their heartbeats from others once they are due.
    pub(super) fn peers(&self) -> BTreeSet<NodeId> {
        let answers = |peer: &NodeId| !self.contacts.is_silent(peer);
        self.links.values().filter(|link| self.carries(link)).map(|link| link.peer).filter(answers).collect()
    }

    /// Whether frames to the link's peer go over this link.
    fn carries(&self, link: &Link) -> bool {
        self.route_to(link.peer) == Some(link.route)
    }

    /// Takes one of the places for joiners' streams, for the member that carries one.
    pub(super) fn take_carried(&mut self, from: NodeId) -> Result<(), LinkRefusal> {
        let (all, of_one) = self.limits.carried;
        let of_it = self.carried.get(&from).copied().unwrap_or(0);
        if of_it >= of_one || self.carried.values().sum::<usize>() >= all {
            return Err(LinkRefusal::Busy);
        }
        self.carried.insert(from, of_it + 1);
        Ok(())
    }

    /// Frees the place.
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
                route: link.route,
                state: self.paths.get(&link.peer).map_or(RouteState::Unproven, |path| path.state(link.route)),
                carries: self.carries(link),
                watched: self.contacts.is_watched(&link.peer),
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
mod tests;
