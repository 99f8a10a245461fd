//! Judges from this node's own links which peers have stopped to answer, for
//! [`crate::coordinator::Event::Unreachable`]. No IO, no clock: the time is an argument.
//!
//! A peer is judged only while a faster route to it is proven, and the base route (Tor) is open and
//! measured: it is *watched*. It is unreachable once all of this holds:
//!
//! 1. two probes in a row over the faster route were not answered, or that link has ended;
//! 2. the base route is silent as well: a question that was sent at the first missing answer has
//!    had the time that this route has taken so far, or the link has ended since the last answer;
//! 3. this node has heard another peer since the first missing answer, because otherwise its own
//!    network may have failed. Where there is no other peer, the end of the link over the base
//!    route is enough: Tor reports it.
//!
//! Any answer and any new link ends that. After an answer over the base route alone the peer is not
//! watched until the faster route is proven again. So a peer that only loses the faster route is
//! asked once and judged by its heartbeats, as every peer without a faster route is.
//!
//! Only what the peer itself has authenticated counts, so no member can make another one
//! unreachable. A peer that refuses to answer can do so only to itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::NodeId;

/// Probes in a row over the faster route without an answer.
const MISSED: u32 = 2;
/// Shortest time for an answer over the base route.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// What this node's links have observed of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// A link has opened: the peer has authenticated itself. `base`: over the base route.
    Opened {
        /// Over the base route, not a faster one.
        base: bool,
    },
    /// A link has ended, and not by this node's decision.
    Ended {
        /// Over the base route, not a faster one.
        base: bool,
    },
    /// This node has closed a link.
    Closed {
        /// Over the base route, not a faster one.
        base: bool,
    },
    /// The peer has answered a question over the base route.
    Answered {
        /// Time since the question was sent.
        round_trip: Duration,
    },
    /// The peer has answered a probe over a faster route.
    Probed {
        /// True if that route is proven now.
        proven: bool,
    },
    /// The peer has not answered a probe over a faster route in time.
    Missed,
}

/// The usual round trip over the base route of one peer: mean and mean deviation, weighted as TCP
/// weights them (RFC 6298).
#[derive(Debug, Clone, Copy)]
struct RoundTrips {
    mean: Duration,
    deviation: Duration,
}

impl RoundTrips {
    fn new(first: Duration) -> Self {
        Self { mean: first, deviation: first / 2 }
    }

    fn add(&mut self, sample: Duration) {
        self.deviation = (self.deviation * 3 + self.mean.abs_diff(sample)) / 4;
        self.mean = (self.mean * 7 + sample) / 8;
    }

    /// How long to wait for an answer.
    fn wait(&self) -> Duration {
        (self.mean + self.deviation * 4).max(LEAST_WAIT)
    }
}

/// A silence over the faster route.
#[derive(Debug, Clone, Copy)]
struct Silence {
    /// When the first answer was missing.
    since: Duration,
    missed: u32,
}

/// The links with one peer. Times are on the monotonic clock.
#[derive(Debug, Clone, Copy, Default)]
struct Contact {
    base_open: bool,
    /// Of the open link over the base route; `None` before its first answer.
    round_trips: Option<RoundTrips>,
    watched: bool,
    /// The link over the base route has ended since the last answer.
    base_ended: bool,
    silence: Option<Silence>,
    /// When anything arrived from the peer.
    heard: Duration,
}

impl Contact {
    fn on(&mut self, sign: Sign, mono: Duration) -> bool {
        match sign {
            Sign::Opened { base } => {
                if base {
                    (self.base_open, self.round_trips) = (true, None);
                }
                self.answer(false, mono);
            }
            Sign::Answered { round_trip } => {
                match &mut self.round_trips {
                    Some(known) => known.add(round_trip),
                    none => *none = Some(RoundTrips::new(round_trip)),
                }
                self.heard = mono;
                // The question may have been answered before the silence began.
                if self.silence.is_some_and(|silence| mono.saturating_sub(round_trip) >= silence.since) {
                    self.answer(false, mono);
                }
            }
            Sign::Probed { proven } => self.answer(proven, mono),
            Sign::Ended { base: true } => {
                (self.base_open, self.round_trips) = (false, None);
                self.base_ended = true;
            }
            Sign::Closed { base } => {
                if base {
                    (self.base_open, self.round_trips) = (false, None);
                }
                (self.watched, self.silence) = (false, None);
            }
            Sign::Ended { base: false } => return self.miss(MISSED, mono),
            Sign::Missed => return self.miss(1, mono),
        }
        false
    }

    fn answer(&mut self, proven: bool, mono: Duration) {
        (self.silence, self.base_ended, self.heard) = (None, false, mono);
        self.watched = proven && self.round_trips.is_some();
    }

    /// Returns true if the peer must be asked over the base route.
    fn miss(&mut self, count: u32, mono: Duration) -> bool {
        if !self.watched {
            return false;
        }
        let asks = self.silence.is_none() && self.base_open;
        self.silence.get_or_insert(Silence { since: mono, missed: 0 }).missed += count;
        asks
    }

    /// From when on the peer counts as silent on all routes, and when the silence began; `None` if
    /// it answers, or that depends on more than time.
    fn silent_from(&self) -> Option<(Duration, Duration)> {
        let Silence { since, .. } = self.silence.filter(|silence| silence.missed >= MISSED)?;
        let wait = if self.base_ended { Duration::ZERO } else { self.round_trips?.wait() };
        Some((since + wait, since))
    }
}

/// All peers of this node.
#[derive(Debug, Default)]
pub struct Contacts {
    peers: BTreeMap<NodeId, Contact>,
}

impl Contacts {
    /// Processes an observation. Returns true if the peer must be asked over the base route at
    /// once; the answer is [`Sign::Answered`].
    pub fn on(&mut self, peer: NodeId, sign: Sign, mono: Duration) -> bool {
        self.peers.entry(peer).or_default().on(sign, mono)
    }

    /// Notes that anything has arrived from the peer at this time. It shows that this node's own
    /// network works, not that the peer answers.
    pub fn heard(&mut self, peer: NodeId, mono: Duration) {
        if let Some(contact) = self.peers.get_mut(&peer) {
            contact.heard = contact.heard.max(mono);
        }
    }

    /// To be called when this process was stopped until now: no peer is watched or unreachable
    /// before it answers again.
    pub fn start_again(&mut self) {
        for contact in self.peers.values_mut() {
            (contact.watched, contact.silence) = (false, None);
        }
    }

    /// Discards what is known of other peers than these.
    pub fn retain(&mut self, keep: impl Fn(&NodeId) -> bool) {
        self.peers.retain(|peer, _| keep(peer));
    }

    /// True if the peer would be found unreachable.
    pub fn is_watched(&self, peer: &NodeId) -> bool {
        self.peers.get(peer).is_some_and(|contact| contact.watched)
    }

    /// True while the peer owes an answer over the faster route, and has given none over the base
    /// route.
    pub fn is_silent(&self, peer: &NodeId) -> bool {
        self.peers.get(peer).is_some_and(|contact| contact.silence.is_some())
    }

    /// The peers that are unreachable.
    pub fn unreachable(&self, mono: Duration) -> BTreeSet<NodeId> {
        let hears_another =
            |but: &NodeId, since| self.peers.iter().any(|(peer, contact)| peer != but && contact.heard > since);
        let unreachable = |(peer, contact): (&NodeId, &Contact)| {
            let (from, since) = contact.silent_from()?;
            let alone = self.peers.len() == 1 && contact.base_ended;
            (mono >= from && (alone || hears_another(peer, since))).then_some(*peer)
        };
        self.peers.iter().filter_map(unreachable).collect()
    }

    /// When [`Contacts::unreachable`] may change by time alone.
    pub fn next_deadline(&self, mono: Duration) -> Option<Duration> {
        let deadlines = self.peers.values().filter_map(Contact::silent_from).map(|(from, _)| from);
        deadlines.filter(|at| *at > mono).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_public_key([number; 32])
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Peers 1 and 2 are watched, and have answered last at 10 s; Tor takes 600 ms.
    fn watching() -> Contacts {
        let mut contacts = Contacts::default();
        for peer in [1, 2] {
            contacts.on(node(peer), Sign::Opened { base: true }, at(0));
            contacts.on(node(peer), Sign::Opened { base: false }, at(0));
            for second in 1..=10 {
                contacts.on(node(peer), Sign::Answered { round_trip: at(600) }, at(second * 1000));
                contacts.on(node(peer), Sign::Probed { proven: true }, at(second * 1000));
            }
        }
        contacts
    }

    /// Peer 1 misses the probes of 10.5 and 11.5 s.
    fn missing() -> Contacts {
        let mut contacts = watching();
        assert!(contacts.on(node(1), Sign::Missed, at(11_500)), "it is asked over Tor");
        assert!(!contacts.on(node(1), Sign::Missed, at(12_500)), "once");
        contacts
    }

    #[test]
    fn a_peer_that_answers_on_no_route_is_unreachable_once_tor_has_had_its_time() {
        let mut contacts = missing();
        contacts.on(node(2), Sign::Probed { proven: true }, at(12_000));
        assert!(contacts.unreachable(at(12_499)).is_empty());
        assert_eq!(contacts.unreachable(at(12_500)), BTreeSet::from([node(1)]));
        // Ten round trips of one length: the deviation is small, so the least wait applies.
        assert_eq!(contacts.next_deadline(at(12_000)), Some(at(12_500)));
        for sign in [
            Sign::Opened { base: true },
            Sign::Opened { base: false },
            Sign::Probed { proven: false },
            Sign::Answered { round_trip: at(2000) },
        ] {
            let mut contacts = missing();
            contacts.on(node(2), Sign::Probed { proven: true }, at(12_000));
            contacts.on(node(1), sign, at(13_600));
            assert!(contacts.unreachable(at(60_000)).is_empty(), "{sign:?}");
            assert!(!contacts.is_watched(&node(1)), "{sign:?}: its faster route is not proven");
        }
    }

    #[test]
    fn a_slow_tor_gets_its_usual_time() {
        let mut contacts = Contacts::default();
        contacts.on(node(1), Sign::Opened { base: true }, at(0));
        contacts.on(node(1), Sign::Answered { round_trip: at(1500) }, at(1500));
        contacts.on(node(1), Sign::Probed { proven: true }, at(2000));
        contacts.on(node(2), Sign::Opened { base: true }, at(0));
        contacts.on(node(1), Sign::Ended { base: false }, at(3000));
        contacts.heard(node(2), at(4000));
        // 1500 ms and four times half of that.
        assert!(contacts.unreachable(at(7499)).is_empty());
        assert_eq!(contacts.unreachable(at(7500)), BTreeSet::from([node(1)]));
    }

    #[test]
    fn an_answer_from_before_the_silence_does_not_end_it() {
        let mut contacts = missing();
        contacts.heard(node(2), at(12_000));
        contacts.on(node(1), Sign::Answered { round_trip: at(1200) }, at(12_600));
        assert!(!contacts.unreachable(at(15_000)).is_empty());
    }

    #[test]
    fn a_peer_whose_process_has_ended_needs_no_answer_over_tor() {
        for first in [true, false] {
            let mut contacts = watching();
            contacts.on(node(1), Sign::Ended { base: first }, at(10_300));
            assert!(contacts.unreachable(at(10_400)).is_empty(), "one of two links");
            contacts.on(node(1), Sign::Ended { base: !first }, at(10_500));
            assert!(contacts.unreachable(at(10_500)).is_empty(), "the own network may have failed");
            contacts.heard(node(2), at(10_600));
            assert_eq!(contacts.unreachable(at(10_600)), BTreeSet::from([node(1)]));
        }
        // Without another peer, the report by Tor shows that the own network works.
        let mut contacts = watching();
        contacts.retain(|peer| *peer == node(1));
        contacts.on(node(1), Sign::Ended { base: false }, at(10_300));
        assert!(contacts.unreachable(at(60_000)).is_empty());
        contacts.on(node(1), Sign::Ended { base: true }, at(10_500));
        assert_eq!(contacts.unreachable(at(10_500)), BTreeSet::from([node(1)]));
        // A link that this node has closed itself says nothing.
        let mut contacts = watching();
        contacts.on(node(1), Sign::Closed { base: false }, at(10_300));
        contacts.on(node(1), Sign::Ended { base: true }, at(10_400));
        contacts.on(node(1), Sign::Missed, at(12_000));
        assert!(contacts.unreachable(at(60_000)).is_empty());
        // The link over Tor had been down for longer: its end says nothing.
        let mut contacts = watching();
        contacts.on(node(1), Sign::Ended { base: true }, at(10_300));
        contacts.on(node(1), Sign::Probed { proven: true }, at(10_400));
        contacts.on(node(1), Sign::Missed, at(12_000));
        contacts.on(node(1), Sign::Missed, at(13_000));
        contacts.heard(node(2), at(14_000));
        assert!(contacts.unreachable(at(60_000)).is_empty());
    }

    #[test]
    fn a_node_that_hears_no_peer_takes_none_for_unreachable() {
        let mut contacts = missing();
        contacts.on(node(2), Sign::Missed, at(11_600));
        contacts.on(node(2), Sign::Missed, at(12_600));
        assert!(contacts.unreachable(at(20_000)).is_empty());
        // Something from before the silence is on its way.
        contacts.heard(node(2), at(11_500));
        assert!(contacts.unreachable(at(20_000)).is_empty());
        contacts.heard(node(2), at(20_000));
        assert_eq!(contacts.unreachable(at(20_000)), BTreeSet::from([node(1)]));
    }

    #[test]
    fn a_peer_without_a_proven_faster_route_is_not_judged() {
        let mut contacts = Contacts::default();
        for peer in [1, 2] {
            contacts.on(node(peer), Sign::Opened { base: true }, at(0));
            contacts.on(node(peer), Sign::Answered { round_trip: at(300) }, at(300));
            contacts.on(node(peer), Sign::Opened { base: false }, at(400));
            contacts.on(node(peer), Sign::Probed { proven: false }, at(500));
        }
        assert!(!contacts.on(node(1), Sign::Missed, at(2000)));
        contacts.on(node(1), Sign::Ended { base: false }, at(3000));
        contacts.on(node(1), Sign::Ended { base: true }, at(3000));
        contacts.heard(node(2), at(4000));
        assert!(contacts.unreachable(at(60_000)).is_empty());
    }

    #[test]
    fn a_process_that_was_stopped_judges_no_peer_before_it_answers_again() {
        let mut contacts = watching();
        contacts.on(node(1), Sign::Ended { base: true }, at(60_000));
        contacts.on(node(1), Sign::Missed, at(60_000));
        contacts.start_again();
        contacts.on(node(1), Sign::Ended { base: false }, at(60_001));
        contacts.heard(node(2), at(60_500));
        assert!(contacts.unreachable(at(120_000)).is_empty());
    }

    fn sign() -> impl Strategy<Value = Sign> {
        prop_oneof![
            any::<bool>().prop_map(|base| Sign::Opened { base }),
            any::<bool>().prop_map(|base| Sign::Ended { base }),
            any::<bool>().prop_map(|base| Sign::Closed { base }),
            (0..5000u64).prop_map(|millis| Sign::Answered { round_trip: at(millis) }),
            any::<bool>().prop_map(|proven| Sign::Probed { proven }),
            Just(Sign::Missed),
        ]
    }

    proptest! {
        /// Whatever other members do, a peer that answers each probe or each question is not
        /// unreachable, and nothing is decided at any other time than the announced one.
        #[test]
        fn others_cannot_make_a_peer_that_answers_unreachable(
            steps in prop::collection::vec((0..4u8, sign(), 0..3000u64), 0..80),
            over_tor in any::<bool>(),
        ) {
            let mut contacts = watching();
            let mut millis = 10_000;
            for (peer, sign, wait) in steps {
                let (before, deadline) = (contacts.unreachable(at(millis)), contacts.next_deadline(at(millis)));
                if deadline.is_none_or(|deadline| deadline > at(millis + wait)) {
                    prop_assert_eq!(before, contacts.unreachable(at(millis + wait)));
                }
                millis += wait;
                if peer != 1 {
                    contacts.on(node(peer), sign, at(millis));
                } else if over_tor {
                    // It has lost the faster route, and answers what it is asked over Tor.
                    if contacts.on(node(1), Sign::Missed, at(millis)) {
                        contacts.on(node(1), Sign::Answered { round_trip: at(900) }, at(millis + 900));
                        millis += 900;
                    }
                } else {
                    contacts.on(node(1), Sign::Probed { proven: true }, at(millis));
                }
                prop_assert!(!contacts.unreachable(at(millis)).contains(&node(1)));
            }
        }
    }
}
