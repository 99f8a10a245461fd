//! Decides which questions (SYN) this node sends. Each is a digest of all nodes, about 115 bytes
//! each, and is answered with another.
//!
//! chitchat asks a few nodes in every round. While this node is busy ([`crate::supply`]) these
//! questions pass, at the rate of [`QUESTIONS`] and drawn at random, so that silent nodes get some
//! too. While it is calm only the questions pass that [`Questions::due`] names: to new links, to
//! members that are silent, and from time to time to a neighbour, for what no push has brought.
//! Answers and the last messages before a shutdown always go out.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use rustbalance_gossip::id::NodeId;
use tokio::time::Instant;

use crate::MAX_MESSAGE;
use crate::leaky::LeakyBucket;

/// Sustained rate of questions, in bytes per second.
const QUESTIONS: usize = 16_384;
/// Burst of questions after a pause, in bytes.
const BURST: f64 = MAX_MESSAGE as f64;
/// With less than this left, a coin decides whether a question is sent. A round ends with the
/// questions to silent nodes: if the first ones always used up the budget, the two sides of a
/// partition would never find each other again.
const SCARCE: f64 = BURST * 0.75;
/// Least number of rounds between two questions of a calm node.
const CALM_ROUNDS: u32 = 60;
/// Bytes of such questions per round, which makes them rarer in clusters of more than forty.
const CALM_BYTES: usize = 80;
/// Rounds for which a silent member is asked in every round; then every [`SELDOM`] rounds.
const PATIENT: u32 = 240;
/// Rounds between two questions to members that have been silent for longer.
const SELDOM: u64 = 10;
/// Fewest rounds between two questions because a peer knows more.
const AGAIN: u32 = 4;

/// Limits and schedules the questions of a node.
pub(super) struct Questions {
    /// Seeds the draws, so that nodes draw differently.
    me: NodeId,
    round: Duration,
    asked_bytes: LeakyBucket,
    asked: u64,
    /// True once the node stops: then every question is sent.
    open: bool,
    /// The nodes that a question may be sent to although the node is calm.
    granted: BTreeSet<NodeId>,
    /// The links in the last round.
    links: BTreeSet<NodeId>,
    rounds: u64,
    /// Size of the last question, in bytes.
    size: usize,
    calm_at: Instant,
    again_at: Instant,
}

impl Questions {
    pub(super) fn new(me: NodeId, round: Duration) -> Self {
        let now = Instant::now();
        Self {
            me,
            round,
            asked_bytes: LeakyBucket::new(now),
            asked: 0,
            open: false,
            granted: BTreeSet::new(),
            links: BTreeSet::new(),
            rounds: 0,
            size: 0,
            calm_at: now,
            again_at: now,
        }
    }

    /// Begins again, for a new incarnation of the node: every link counts as new.
    pub(super) fn restart(&mut self) {
        self.links.clear();
        self.granted.clear();
    }

    /// Sends every question from now on.
    pub(super) fn open(&mut self) {
        self.open = true;
    }

    /// A coin toss that decides whether the next question may be sent when the budget is scarce. It
    /// must look random: rounds repeat, and a regular pattern would always drop the same questions.
    fn draw(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.me, self.asked).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether a question of this size to `to` is sent.
    pub(super) fn allows(&mut self, to: NodeId, size: usize, busy: bool) -> bool {
        let left = BURST - self.asked_bytes.now(Instant::now(), QUESTIONS);
        self.asked += 1;
        self.size = size;
        let granted = self.granted.remove(&to);
        let drawn = granted || left >= SCARCE || self.draw().is_multiple_of(2);
        let allowed = self.open || ((granted || busy) && drawn && left >= size as f64);
        if allowed {
            self.asked_bytes.add(size);
        }
        allowed
    }

    /// The nodes to ask in this round; each may then be asked once. `silent` are the silent members
    /// and for how long they have been, `unknown` the peers that know nodes unknown here.
    pub(super) fn due(
        &mut self,
        links: BTreeSet<NodeId>,
        silent: &[(NodeId, Duration)],
        unknown: BTreeSet<NodeId>,
        now: Instant,
    ) -> Vec<NodeId> {
        self.rounds += 1;
        let mut due: BTreeSet<NodeId> = links.difference(&self.links).copied().collect();
        if now >= self.again_at && !unknown.is_empty() {
            due.extend(unknown);
            self.again_at = now + self.round * AGAIN;
        }
        let patient =
            |(_, time): &&(NodeId, Duration)| *time <= self.round * PATIENT || self.rounds.is_multiple_of(SELDOM);
        let silent: Vec<_> = silent.iter().filter(patient).collect();
        due.extend(nth(&silent, self.rounds as usize).map(|(node, _)| *node));
        if now >= self.calm_at {
            let links: Vec<_> = links.iter().collect();
            due.extend(nth(&links, self.draw() as usize).copied());
            let rounds = CALM_ROUNDS.max((self.size / CALM_BYTES) as u32);
            // Up to an eighth later, so that nodes that were started together do not ask together.
            let jitter = (self.draw() % 64) as u32;
            self.calm_at = now + self.round * rounds * (512 + jitter) / 512;
        }
        self.links = links;
        self.granted.clone_from(&due);
        due.into_iter().collect()
    }
}

fn nth<'a, T>(all: &[&'a T], turn: usize) -> Option<&'a T> {
    all.get(turn % all.len().max(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: Duration = Duration::from_millis(500);

    fn node(i: u8) -> NodeId {
        NodeId::from_public_key([i; 32])
    }

    /// Each round has questions to three living nodes, then to two silent ones. The budget of a
    /// round is enough for less than one.
    #[tokio::test(start_paused = true)]
    async fn the_silent_are_asked_too_where_not_all_can_be() {
        for digest in [10_000, 12_000, 25_000, 40_000] {
            let mut questions = Questions::new(node(7), ROUND);
            let mut asked = [0_usize; 5];
            for _ in 0..10_000 {
                for (i, count) in asked.iter_mut().enumerate() {
                    *count += usize::from(questions.allows(node(i as u8), digest, true));
                }
                tokio::time::advance(ROUND).await;
            }
            let all: usize = asked.iter().sum();
            assert!(all * digest <= 10_000 * QUESTIONS / 2 + BURST as usize, "{asked:?}");
            assert!(asked.iter().all(|count| *count * 50 >= all), "of {digest} bytes: {asked:?}");
        }
    }

    /// Number of questions in this number of rounds, to these links and silent nodes.
    async fn asked(questions: &mut Questions, rounds: u32, links: &[u8], silent: Option<u8>, size: usize) -> usize {
        let mut count = 0;
        for round in 0..rounds {
            let silent: Vec<_> = silent.iter().map(|i| (node(*i), ROUND * round)).collect();
            let links = links.iter().map(|i| node(*i)).collect();
            for to in questions.due(links, &silent, BTreeSet::new(), Instant::now()) {
                count += usize::from(questions.allows(to, size, false));
                assert!(!questions.allows(to, size, false), "asked twice in a round");
            }
            assert!(!questions.allows(node(99), size, false), "a question of chitchat's own");
            tokio::time::advance(ROUND).await;
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn a_calm_node_asks_new_links_at_once_and_others_seldom() {
        let mut questions = Questions::new(node(7), ROUND);
        assert_eq!(asked(&mut questions, 1, &[1, 2], None, 400).await, 2);
        let calm = asked(&mut questions, 600, &[1, 2], None, 400).await;
        assert!((8..=10).contains(&calm), "{calm}");
        assert_eq!(asked(&mut questions, 1, &[1, 2, 3], None, 400).await, 1);
        let many = asked(&mut questions, 1200, &[1, 2, 3], None, 23_000).await;
        assert!((4..=6).contains(&many), "{many}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_member_is_asked_in_every_round_and_later_seldom() {
        let mut questions = Questions::new(node(7), ROUND);
        assert_eq!(asked(&mut questions, PATIENT, &[], Some(5), 400).await, PATIENT as usize);
        let later = asked(&mut questions, PATIENT * 2, &[], Some(5), 400).await - PATIENT as usize;
        assert!((20..=26).contains(&later), "{later}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_knows_more_is_asked_but_not_in_every_round() {
        let mut questions = Questions::new(node(7), ROUND);
        let knows = || BTreeSet::from([node(3)]);
        let links = || BTreeSet::from([node(3)]);
        questions.due(links(), &[], knows(), Instant::now());
        let mut count = 0;
        for _ in 0..40 {
            tokio::time::advance(ROUND).await;
            count += questions.due(links(), &[], knows(), Instant::now()).len();
        }
        assert_eq!(count, 40 / AGAIN as usize);
    }
}
