//! The election of the publisher: a state machine that takes the [`Situation`] and returns
//! [`Step`]s.
//!
//! The right to publish is a [`crate::record::Lease`]: signed by its holder, renewed at a third of
//! its time to live (ttl), with a term that only rises. No quorum is needed: two publishers at a
//! time are harmless, but a time without a publisher is not. All nodes order claims alike
//! ([`Claim`]): the higher term wins, and within one term the better rank. Only the best claim to
//! the highest term ever claimed can be live, unless its holder has given it up; so the term that a
//! node believes never falls.
//!
//! The election acts when the best claim is no longer live (given up, expired, or its holder is
//! dead). Each eligible node waits a grace period that grows with its place in the queue, has the
//! next term stored on disk, and only then claims it. It steps down when it learns of a better
//! claim, when its own lease is older than the ttl, and after this process was stopped; in the last
//! two cases it listens before it claims again.

use std::time::Duration;

use crate::hash::{Label, labelled};
use crate::id::NodeId;
use crate::record::Lease;

/// A term may be at most this number times the seconds since the Unix epoch, on the reader's clock;
/// higher terms are rejected. A hostile publisher may claim the highest valid term, but a second
/// later honest nodes can go above it, and the numbers suffice for 34,000 years. The bound does not
/// depend on earlier records, so a node that joins or restarts believes the same terms as the
/// others.
pub const TERMS_PER_SECOND: u64 = 1 << 24;

/// Longest time to live that a lease is given; a longer one in a record counts as this.
pub const MAX_TTL: Duration = Duration::from_secs(300);

/// A node's rank in the queue for a term; the least is the best. The lower priority wins, then a
/// hash of term and node, so that the work rotates among nodes of equal priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    priority: u8,
    lot: [u8; 8],
    node: NodeId,
}

impl Rank {
    /// The rank of a node for a term.
    pub fn new(priority: u8, term: u64, node: NodeId) -> Self {
        let digest = labelled(Label::Rank, &[&term.to_be_bytes(), node.public_key()]);
        let mut lot = [0; 8];
        lot.copy_from_slice(&digest[..8]);
        Self { priority, lot, node }
    }
}

/// A node's claim to a term. The greatest is the best: the higher term, and within one term the
/// better rank.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The term.
    pub term: u64,
    /// The node that claims it.
    pub holder: NodeId,
    rank: Rank,
}

impl Claim {
    /// The claim that a lease makes.
    pub fn of(lease: &Lease) -> Self {
        let rank = Rank::new(lease.priority, lease.term, lease.holder);
        Self { term: lease.term, holder: lease.holder, rank }
    }
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claim(term {} by {})", self.term, self.holder.short())
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

/// Durations of the election, on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Time to live of a lease. The holder renews it at a third of this.
    pub ttl: Duration,
    /// Time to listen before the first claim, and again after this process was stopped or its lease
    /// expired.
    pub listen: Duration,
    /// Wait of the best-ranked node after no lease is live any longer.
    pub grace: Duration,
    /// Additional wait for each place in the queue: longer than a record takes through the mesh.
    pub step: Duration,
    /// Time after which a term that the disk has not stored is given up and a higher one requested.
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

/// Longest wait due to the place in the queue, whatever its length.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The state of the cluster at one moment, as far as the election needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Situation {
    /// The best claim to the highest term ever claimed, own claims included; `None` if all claims
    /// to that term were given up.
    pub best: Option<Claim>,
    /// True if that claim's lease is live now.
    pub live: bool,
    /// The highest term seen in any lease, given up or not.
    pub highest: u64,
    /// Number of eligible nodes ranked before this one for the next term; `None` if this node is
    /// not eligible.
    pub place: Option<usize>,
    /// True if this node knows no other member; then it claims without waiting.
    pub alone: bool,
    /// True if every other member has been heard since [`Election::listening_since`]; then
    /// listening longer brings nothing.
    pub all_heard: bool,
    /// True if a live lease has a lower term than this node remembers: its holder is expected to
    /// claim a higher one.
    pub lower_term_live: bool,
    /// True if this node should hand over, and another node could take over.
    pub hand_over: bool,
}

/// A step that the caller must take for the election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Store this term on disk, then call [`Election::stored`].
    Store(u64),
    /// Sign and announce a lease of this term with the full ttl.
    Renew(u64),
    /// Sign and announce a lease of this term with ttl 0.
    GiveUp(u64),
    /// This node is the publisher of the term from now on.
    Lead(u64),
    /// This node is no longer the publisher.
    Follow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Listens before it claims anything.
    Listening { since: Duration },
    /// A live lease is known.
    Following,
    /// No lease is live since `since`; the node waits for its turn.
    Vacant { since: Duration },
    /// Waits until the disk has stored the term, requested at `asked`.
    Storing { term: u64, asked: Duration },
    /// Holds the lease of the term. `raising`: a higher term that the disk was asked to store, and
    /// when.
    Holding { term: u64, renewed: Duration, raising: Option<(u64, Duration)> },
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
    /// An election that starts by listening. `stored` is the highest term on disk.
    pub fn new(me: NodeId, timing: Timing, stored: u64) -> Self {
        Self { me, timing, state: State::Listening { since: Duration::ZERO }, stored, asked: stored }
    }

    /// The term in which this node is the publisher; `None` if it is not.
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

    /// To be called once this term is on disk.
    pub fn stored(&mut self, term: u64) {
        self.stored = self.stored.max(term);
        self.asked = self.asked.max(term);
    }

    /// To be called when this process was stopped for at least the shortest silence that means
    /// death: another node may have taken over, so this one steps down and listens.
    pub fn interrupted(&mut self, mono: Duration, out: &mut Vec<Step>) {
        if let Some(term) = self.leading() {
            out.extend([Step::Follow, Step::GiveUp(term)]);
        }
        self.listen(mono);
    }

    /// Claims nothing for [`Timing::listen`].
    pub fn listen(&mut self, mono: Duration) {
        self.state = State::Listening { since: mono };
    }

    /// When it began to listen; `None` if it does not listen now.
    pub fn listening_since(&self) -> Option<Duration> {
        match self.state {
            State::Listening { since } => Some(since),
            _ => None,
        }
    }

    /// Compares the state with the situation and adds the necessary steps to `out`. To be called on
    /// every change and at [`Election::next_deadline`].
    pub fn step(&mut self, situation: &Situation, mono: Duration, out: &mut Vec<Step>) {
        let seen = situation.highest.max(situation.best.map_or(0, |claim| claim.term));
        // A follower also stores the terms it sees: after a restart of the whole cluster no node
        // may claim one of them again.
        if seen > self.asked {
            self.asked = seen;
            out.push(Step::Store(seen));
        }
        match self.state {
            State::Holding { term, renewed, raising } => self.hold(term, renewed, raising, situation, mono, out),
            State::Storing { term, asked } => self.claim(term, asked, situation, mono, out),
            _ if situation.live => self.state = State::Following,
            State::Listening { since } if mono < since + self.timing.listen && !situation.all_heard => {}
            State::Listening { .. } | State::Following => {
                self.state = State::Vacant { since: mono };
                self.wait(mono, situation, mono, out);
            }
            State::Vacant { since } => self.wait(since, situation, mono, out),
        }
    }

    /// When [`Election::step`] must be called again if nothing changes before; `None`: not by time.
    pub fn next_deadline(&self, situation: &Situation) -> Option<Duration> {
        match self.state {
            State::Listening { since } => Some(since + self.timing.listen),
            State::Following => None,
            State::Vacant { since } => situation.place.map(|place| since + self.wait_for_turn(place, situation)),
            State::Storing { asked, .. } => Some(asked + self.timing.storing),
            State::Holding { renewed, .. } => Some(renewed + self.timing.ttl / 3),
        }
    }

    fn wait_for_turn(&self, place: usize, situation: &Situation) -> Duration {
        if situation.alone {
            return Duration::ZERO;
        }
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        let queue = self.timing.step.checked_mul(place).unwrap_or(MAX_WAIT).min(MAX_WAIT);
        let catch_up = if situation.lower_term_live { self.timing.ttl / 2 } else { Duration::ZERO };
        self.timing.grace + queue + catch_up
    }

    fn wait(&mut self, since: Duration, situation: &Situation, mono: Duration, out: &mut Vec<Step>) {
        let Some(place) = situation.place else { return };
        if mono >= since + self.wait_for_turn(place, situation) {
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
        raising: Option<(u64, Duration)>,
        situation: &Situation,
        mono: Duration,
        out: &mut Vec<Step>,
    ) {
        let outranked = situation.best.is_some_and(|best| best.term >= term && best.holder != self.me);
        if mono.saturating_sub(renewed) >= self.timing.ttl {
            self.interrupted(mono, out);
        } else if outranked || situation.place.is_none() || situation.hand_over {
            out.extend([Step::Follow, Step::GiveUp(term)]);
            self.state = if situation.live { State::Following } else { State::Vacant { since: mono } };
        } else if let Some((higher, _)) = raising.filter(|(higher, _)| self.stored >= *higher) {
            self.state = State::Holding { term: higher, renewed: mono, raising: None };
            out.extend([Step::Renew(higher), Step::Lead(higher)]);
        } else if situation.highest > term && raising.is_none_or(|(_, asked)| mono >= asked + self.timing.storing) {
            // A node stored a term and died before claiming it: claim a higher one without a pause
            // in publishing. Ask the disk again after a while, because it may have been full.
            let higher = self.asked.max(self.stored) + 1;
            self.asked = higher;
            self.state = State::Holding { term, renewed, raising: Some((higher, mono)) };
            out.push(Step::Store(higher));
        } else if mono.saturating_sub(renewed) >= self.timing.ttl / 3 {
            self.state = State::Holding { term, renewed: mono, raising };
            out.push(Step::Renew(term));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_public_key([n; 32])
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn claim(n: u8, term: u64, priority: u8) -> Claim {
        Claim { term, holder: node(n), rank: Rank::new(priority, term, node(n)) }
    }

    fn vacant(place: usize) -> Situation {
        Situation { place: Some(place), ..Situation::default() }
    }

    fn live(claim: Claim) -> Situation {
        Situation { best: Some(claim), live: true, highest: claim.term, place: Some(0), ..Situation::default() }
    }

    fn step(election: &mut Election, situation: &Situation, at: u64) -> Vec<Step> {
        let mut out = Vec::new();
        election.step(situation, seconds(at), &mut out);
        out
    }

    /// An election that holds term 6 since second 12.
    fn holding() -> Election {
        let mut election = Election::new(node(1), Timing::default(), 5);
        assert_eq!(step(&mut election, &vacant(0), 10), vec![]);
        assert_eq!(step(&mut election, &vacant(0), 12), vec![Step::Store(6)]);
        election.stored(6);
        assert_eq!(step(&mut election, &vacant(0), 12), vec![Step::Renew(6), Step::Lead(6)]);
        election
    }

    fn mine(term: u64) -> Situation {
        live(claim(1, term, 100))
    }

    #[test]
    fn claims_are_ordered_by_term_then_priority_then_lot() {
        assert!(claim(1, 2, 200) > claim(2, 1, 0));
        assert!(claim(1, 2, 9) > claim(2, 2, 10));
        let winners: Vec<bool> = (0..20).map(|term| claim(1, term, 9) > claim(2, term, 9)).collect();
        assert!(winners.contains(&true) && winners.contains(&false));
    }

    #[test]
    fn a_candidate_listens_waits_its_turn_stores_the_term_and_then_claims() {
        let mut election = Election::new(node(1), Timing::default(), 5);
        assert_eq!(step(&mut election, &vacant(1), 9), vec![]);
        assert_eq!(election.next_deadline(&vacant(1)), Some(seconds(10)));
        assert_eq!(step(&mut election, &vacant(1), 10), vec![]);
        assert_eq!(election.next_deadline(&vacant(1)), Some(seconds(16)));
        assert_eq!(step(&mut election, &vacant(1), 15), vec![]);
        assert_eq!(step(&mut election, &vacant(1), 16), vec![Step::Store(6)]);
        assert_eq!(step(&mut election, &vacant(1), 17), vec![]);
        assert_eq!(election.leading(), None);
        election.stored(6);
        assert_eq!(step(&mut election, &vacant(1), 18), vec![Step::Renew(6), Step::Lead(6)]);
        assert_eq!(election.leading(), Some(6));
    }

    #[test]
    fn a_node_that_is_alone_waits_only_for_the_disk() {
        let mut election = Election::new(node(1), Timing::default(), 0);
        let alone = Situation { alone: true, all_heard: true, ..vacant(0) };
        assert_eq!(step(&mut election, &alone, 0), vec![Step::Store(1)]);
        election.stored(1);
        assert_eq!(step(&mut election, &alone, 0), vec![Step::Renew(1), Step::Lead(1)]);
    }

    #[test]
    fn a_node_that_may_not_publish_never_claims_the_lease() {
        let mut election = Election::new(node(1), Timing::default(), 0);
        for at in 0..500 {
            assert_eq!(step(&mut election, &Situation::default(), at), vec![]);
        }
    }

    #[test]
    fn a_live_lease_is_respected_by_a_node_that_ranks_better() {
        let mut election = Election::new(node(1), Timing::default(), 0);
        let situation = live(claim(2, 7, 200));
        assert_eq!(step(&mut election, &situation, 0), vec![Step::Store(7)]);
        for at in 1..500 {
            assert_eq!(step(&mut election, &situation, at), vec![]);
        }
        let dead = Situation { live: false, ..situation };
        assert_eq!(step(&mut election, &dead, 500), vec![]);
        assert_eq!(step(&mut election, &dead, 502), vec![Step::Store(8)]);
    }

    #[test]
    fn the_holder_renews_the_lease_at_a_third_of_its_ttl() {
        let mut election = holding();
        assert_eq!(step(&mut election, &mine(6), 21), vec![]);
        assert_eq!(election.next_deadline(&mine(6)), Some(seconds(22)));
        assert_eq!(step(&mut election, &mine(6), 22), vec![Step::Renew(6)]);
        assert_eq!(step(&mut election, &mine(6), 31), vec![]);
    }

    #[test]
    fn a_lease_older_than_its_ttl_is_not_acted_on() {
        let mut election = holding();
        assert_eq!(step(&mut election, &mine(6), 42), vec![Step::Follow, Step::GiveUp(6)]);
        assert_eq!(step(&mut election, &vacant(0), 51), vec![]);
        step(&mut election, &vacant(0), 52);
        assert_eq!(step(&mut election, &vacant(0), 54), vec![Step::Store(7)]);
    }

    #[test]
    fn a_holder_that_was_stopped_steps_down_and_listens() {
        let mut election = holding();
        let mut out = Vec::new();
        election.interrupted(seconds(30), &mut out);
        assert_eq!(out, vec![Step::Follow, Step::GiveUp(6)]);
        assert_eq!(step(&mut election, &vacant(0), 39), vec![]);
    }

    #[test]
    fn a_better_claim_wins_and_a_worse_one_does_not() {
        let (better, worse) = if claim(2, 6, 100) > claim(1, 6, 100) { (50, 150) } else { (99, 101) };
        let mut election = holding();
        assert!(claim(2, 6, worse) < claim(1, 6, 100));
        assert_eq!(step(&mut election, &mine(6), 13), vec![]);
        assert_eq!(step(&mut election, &live(claim(2, 6, better)), 14), vec![Step::Follow, Step::GiveUp(6)]);
        let mut election = holding();
        assert_eq!(
            step(&mut election, &live(claim(2, 9, 255)), 14),
            vec![Step::Store(9), Step::Follow, Step::GiveUp(6)]
        );
        assert_eq!(election.leading(), None);
    }

    #[test]
    fn the_lease_is_handed_over_at_once() {
        let mut election = holding();
        let situation = Situation { hand_over: true, ..mine(6) };
        assert_eq!(step(&mut election, &situation, 13), vec![Step::Follow, Step::GiveUp(6)]);
    }

    #[test]
    fn the_holder_moves_above_a_higher_term_of_another_node_without_a_pause() {
        let mut election = holding();
        let burned = Situation { highest: 9, ..mine(6) };
        assert_eq!(step(&mut election, &burned, 14), vec![Step::Store(9), Step::Store(10)]);
        assert_eq!(election.leading(), Some(6));
        assert_eq!(step(&mut election, &burned, 15), vec![]);
        election.stored(10);
        assert_eq!(step(&mut election, &burned, 16), vec![Step::Renew(10), Step::Lead(10)]);
        assert_eq!(election.leading(), Some(10));
    }

    #[test]
    fn a_disk_that_was_full_is_asked_again_while_the_lease_is_renewed() {
        let mut election = holding();
        let burned = Situation { highest: 9, ..mine(6) };
        assert_eq!(step(&mut election, &burned, 14), vec![Step::Store(9), Step::Store(10)]);
        for at in [22, 32, 42] {
            assert_eq!(step(&mut election, &burned, at), vec![Step::Renew(6)]);
        }
        assert_eq!(step(&mut election, &burned, 44), vec![Step::Store(11)]);
        election.stored(11);
        assert_eq!(step(&mut election, &burned, 45), vec![Step::Renew(11), Step::Lead(11)]);
    }

    #[test]
    fn a_claim_is_dropped_if_another_was_faster_than_the_disk() {
        let mut election = Election::new(node(1), Timing::default(), 5);
        step(&mut election, &vacant(0), 10);
        assert_eq!(step(&mut election, &vacant(0), 12), vec![Step::Store(6)]);
        assert_eq!(step(&mut election, &live(claim(2, 6, 100)), 13), vec![]);
        election.stored(6);
        assert_eq!(step(&mut election, &live(claim(2, 6, 100)), 14), vec![]);
        assert_eq!(election.leading(), None);
    }

    #[test]
    fn a_disk_that_does_not_answer_is_asked_for_a_higher_term() {
        let mut election = Election::new(node(1), Timing::default(), 5);
        step(&mut election, &vacant(0), 10);
        assert_eq!(step(&mut election, &vacant(0), 12), vec![Step::Store(6)]);
        assert_eq!(step(&mut election, &vacant(0), 42), vec![]);
        assert_eq!(step(&mut election, &vacant(0), 44), vec![Step::Store(7)]);
        election.stored(6);
        assert_eq!(step(&mut election, &vacant(0), 45), vec![]);
        election.stored(7);
        assert_eq!(step(&mut election, &vacant(0), 46), vec![Step::Renew(7), Step::Lead(7)]);
    }
}
