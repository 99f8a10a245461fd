//! Who publishes: the election, as a state machine that is told the situation and says what to do.
//!
//! The right to publish is a [`crate::record::Lease`]: signed by its holder, renewed at a third of its ttl, of a term
//! that only rises. No quorum is asked: two publishers are harmless, none is not. What settles it is an order that all
//! nodes compute alike, [`Claim`]: the higher term wins, in one term the better rank. The best claim ever seen is the
//! only one that can be live, so what a node believes only ever moves up that order.
//!
//! It acts when the best claim is no longer live (given up, too old, its holder dead): each eligible node waits a grace
//! that grows with its place, has `term + 1` stored on disk, and only then claims. It steps down when it learns of a
//! better claim, when its own lease is older than the ttl, and after this process was stopped; then it listens before it
//! claims again.

use std::time::Duration;

use sha3::{Digest, Sha3_256};

use crate::id::NodeId;
use crate::record::Lease;

/// Furthest that the term of a verified lease may be above the highest known. At one election every ten seconds a
/// cluster needs five years for as many; a hostile publisher that jumps as far as it may needs 2^40 leases to use terms up.
pub const MAX_TERM_JUMP: u64 = 1 << 24;

/// Longest ttl that is believed.
pub const MAX_TTL: Duration = Duration::from_secs(300);

/// Where a node stands in the queue for a term; the least is the best. Lower priority first, then a hash of term and
/// node, so that the work moves about among equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    priority: u8,
    lot: [u8; 8],
    node: NodeId,
}

impl Rank {
    /// The rank of a node for a term.
    pub fn new(priority: u8, term: u64, node: NodeId) -> Self {
        let digest = Sha3_256::new()
            .chain_update(b"rustbalance rank v1\0")
            .chain_update(term.to_be_bytes())
            .chain_update(node.public_key())
            .finalize();
        let mut lot = [0; 8];
        lot.copy_from_slice(&digest[..8]);
        Self { priority, lot, node }
    }
}

/// A node's claim to a term. The greatest is the best: the higher term, in one term the better rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The term.
    pub term: u64,
    /// Who claims it.
    pub holder: NodeId,
    rank: Rank,
}

impl Claim {
    /// What a lease claims.
    pub fn of(lease: &Lease) -> Self {
        let rank = Rank::new(lease.priority, lease.term, lease.holder);
        Self { term: lease.term, holder: lease.holder, rank }
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.term.cmp(&other.term).then(other.rank.cmp(&self.rank))
    }
}

/// How long things take. All on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease is good.
    pub ttl: Duration,
    /// How long to listen before a first claim, and after a step-down that had a reason in this process.
    pub listen: Duration,
    /// How long the best-ranked node waits once no lease is live.
    pub grace: Duration,
    /// How much longer each next in rank waits: more than a record takes through the mesh.
    pub step: Duration,
    /// How long the disk may take to store a term before it is asked again.
    pub storing: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            listen: Duration::from_secs(10),
            grace: Duration::from_secs(2),
            step: Duration::from_secs(4),
            storing: Duration::from_secs(30),
        }
    }
}

/// Longest wait for a place in the queue, however many are before.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// What the election needs to know of the cluster, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Situation {
    /// The best claim ever seen, own ones included.
    pub best: Option<Claim>,
    /// True if that claim's lease is live now.
    pub live: bool,
    /// The highest term seen in any lease, given up or not.
    pub highest: u64,
    /// How many eligible nodes stand before this one for the next term; `None` if this one is not eligible.
    pub place: Option<usize>,
    /// True if this node knows of no other member: then nobody needs to be waited for.
    pub alone: bool,
    /// True if every other member has been heard since [`Election::listening_since`]: then there is nothing more to
    /// listen for.
    pub complete: bool,
    /// True if a live lease is known of a lower term than this node remembers: its holder is about to go above it.
    pub lower: bool,
    /// True if this node should hand over to another that could take over.
    pub hand_over: bool,
}

/// What the election asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Store this term on disk, then call [`Election::stored`].
    Store(u64),
    /// Sign and gossip a lease of this term and the full ttl.
    Renew(u64),
    /// Sign and gossip a lease of this term and ttl 0.
    GiveUp(u64),
    /// This node is the publisher of the term from now on.
    Lead(u64),
    /// This node is no longer the publisher.
    Follow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Claims nothing for a while.
    Listening { since: Duration },
    /// Believes a live lease.
    Following,
    /// No live lease since then; waits its turn.
    Vacant { since: Duration },
    /// Waits for the disk.
    Storing { term: u64, asked: Duration },
    /// Holds the lease of the term. `raising`: a higher term that the disk has been asked to store.
    Holding { term: u64, renewed: Duration, raising: Option<u64> },
}

/// The election state machine of one node.
#[derive(Debug)]
pub struct Election {
    me: NodeId,
    timing: Timing,
    state: State,
    /// The highest term known to be on disk.
    stored: u64,
    /// The highest term that the disk was asked to store.
    asked: u64,
}

impl Election {
    /// Starts by listening. `stored` is the highest term on disk.
    pub fn new(me: NodeId, timing: Timing, stored: u64) -> Self {
        Self { me, timing, state: State::Listening { since: Duration::ZERO }, stored, asked: stored }
    }

    /// The term this node publishes in, if it does.
    pub fn leading(&self) -> Option<u64> {
        match self.state {
            State::Holding { term, .. } => Some(term),
            _ => None,
        }
    }

    /// The highest term known to be on disk.
    pub fn stored_term(&self) -> u64 {
        self.stored
    }

    /// This term is on disk now.
    pub fn stored(&mut self, term: u64) {
        self.stored = self.stored.max(term);
        self.asked = self.asked.max(term);
    }

    /// This process was stopped for at least the shortest silence that means death: another may have taken over.
    pub fn interrupted(&mut self, mono: Duration, out: &mut Vec<Step>) {
        if let Some(term) = self.leading() {
            out.extend([Step::Follow, Step::GiveUp(term)]);
        }
        self.listen(mono);
    }

    /// Claims nothing for a while.
    pub fn listen(&mut self, mono: Duration) {
        self.state = State::Listening { since: mono };
    }

    /// Since when it listens before it claims anything, if it does.
    pub fn listening_since(&self) -> Option<Duration> {
        match self.state {
            State::Listening { since } => Some(since),
            _ => None,
        }
    }

    /// Compares what is with what should be, and says what to do. To be called on every change and at
    /// [`Election::next_deadline`].
    pub fn step(&mut self, situation: &Situation, mono: Duration, out: &mut Vec<Step>) {
        let seen = situation.highest.max(situation.best.map_or(0, |claim| claim.term));
        // A follower, too, remembers the terms it saw: after a restart of all it must not claim one of them again.
        if seen > self.asked {
            self.asked = seen;
            out.push(Step::Store(seen));
        }
        match self.state {
            State::Holding { term, renewed, raising } => self.hold(term, renewed, raising, situation, mono, out),
            State::Storing { term, asked } => self.claim(term, asked, situation, mono, out),
            _ if situation.live => self.state = State::Following,
            State::Listening { since } if mono < since + self.timing.listen && !situation.complete => {}
            State::Listening { .. } | State::Following => {
                self.state = State::Vacant { since: mono };
                self.wait(mono, situation, mono, out);
            }
            State::Vacant { since } => self.wait(since, situation, mono, out),
        }
    }

    /// When [`Election::step`] must be called again, if nothing happens before.
    pub fn next_deadline(&self, situation: &Situation) -> Option<Duration> {
        match self.state {
            State::Listening { since } => Some(since + self.timing.listen),
            State::Following => None,
            State::Vacant { since } => situation.place.map(|place| since + self.patience(place, situation)),
            State::Storing { asked, .. } => Some(asked + self.timing.storing),
            State::Holding { renewed, .. } => Some(renewed + self.timing.ttl / 3),
        }
    }

    fn patience(&self, place: usize, situation: &Situation) -> Duration {
        if situation.alone {
            return Duration::ZERO;
        }
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        let queue = self.timing.step.checked_mul(place).unwrap_or(MAX_WAIT).min(MAX_WAIT);
        let courtesy = if situation.lower { self.timing.ttl / 2 } else { Duration::ZERO };
        self.timing.grace + queue + courtesy
    }

    fn wait(&mut self, since: Duration, situation: &Situation, mono: Duration, out: &mut Vec<Step>) {
        let Some(place) = situation.place else { return };
        if mono >= since + self.patience(place, situation) {
            let term = self.asked.max(self.stored) + 1;
            self.asked = term;
            self.state = State::Storing { term, asked: mono };
            out.push(Step::Store(term));
        }
    }

    fn claim(&mut self, term: u64, asked: Duration, situation: &Situation, mono: Duration, out: &mut Vec<Step>) {
        let overtaken = situation.best.is_some_and(|best| best.term >= term);
        if situation.live {
            self.state = State::Following;
        } else if situation.place.is_none() || overtaken || mono >= asked + self.timing.storing {
            self.state = State::Vacant { since: mono };
        } else if self.stored >= term {
            self.state = State::Holding { term, renewed: mono, raising: None };
            out.extend([Step::Renew(term), Step::Lead(term)]);
        }
    }

    fn hold(
        &mut self,
        term: u64,
        renewed: Duration,
        raising: Option<u64>,
        situation: &Situation,
        mono: Duration,
        out: &mut Vec<Step>,
    ) {
        let beaten = situation.best.is_some_and(|best| best.term >= term && best.holder != self.me);
        if mono.saturating_sub(renewed) >= self.timing.ttl {
            self.interrupted(mono, out);
        } else if beaten || situation.place.is_none() || situation.hand_over {
            out.extend([Step::Follow, Step::GiveUp(term)]);
            self.state = if situation.live { State::Following } else { State::Vacant { since: mono } };
        } else if let Some(higher) = raising.filter(|higher| self.stored >= *higher) {
            self.state = State::Holding { term: higher, renewed: mono, raising: None };
            out.extend([Step::Renew(higher), Step::Lead(higher)]);
        } else if situation.highest > term && raising.is_none() {
            // Somebody burned a term (stored it, then died before claiming it): go above it without a pause.
            let higher = self.asked.max(self.stored) + 1;
            self.asked = higher;
            self.state = State::Holding { term, renewed, raising: Some(higher) };
            out.push(Step::Store(higher));
        } else if mono.saturating_sub(renewed) >= self.timing.ttl / 3 {
            self.state = State::Holding { term, renewed: mono, raising };
            out.push(Step::Renew(term));
        }
    }
}
