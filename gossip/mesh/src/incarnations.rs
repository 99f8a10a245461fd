//! Admits incarnations to chitchat's state: few of each node, with places reserved for those that a
//! member announces over its own link.
//!
//! chitchat keeps an incarnation for an hour after its last sign of life and names it in every
//! digest, even if a peer made it up, and it cannot be made to forget one. So their number is
//! limited on entry. A peer can make up incarnations of itself and of any other node, but cannot
//! fake the link over which a member announces its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustbalance_gossip::id::NodeId;
use tokio::time::Instant;

use crate::wire::Incarnation;

/// Most incarnations at once, apart from the reserved places.
const MAX_INCARNATIONS: usize = 376;
/// Further places, reserved for incarnations that members announce of themselves. A digest of all
/// together has 49 kB. With a larger one, less than one of chitchat's blocks would be left for
/// values in a message, and then it panics.
const RESERVED: usize = 48;
/// A member with fewer first-hand incarnations than this may use a reserved place.
const RESERVED_OF_ONE: usize = 4;
/// Most incarnations that one member announces of itself. It may have restarted several times
/// within the hour.
const FIRST_HAND: usize = 24;
/// Most incarnations of one member that only other peers have named.
const MAX_SECOND_HAND: usize = 12;
/// Most incarnations that only other peers have named, over all members, beyond the first of each.
const MAX_FURTHER_SECOND_HAND: usize = 120;
/// Most incarnations of one node that is not known as a member.
const OF_A_STRANGER: usize = 2;
/// A node at its limit is granted one more incarnation per interval of this length. This is the
/// rate at which a node whose versions are spoofed restarts its gossip.
const PACE: Duration = Duration::from_secs(60);
/// How long an incarnation of which chitchat has no state is remembered after a peer named it last.
const FORGET: Duration = Duration::from_secs(60);

/// The admitted incarnations.
#[derive(Default)]
pub(super) struct Incarnations(BTreeMap<Incarnation, AdmittedIncarnation>);

struct AdmittedIncarnation {
    since: Instant,
    named: Instant,
    /// True if its own node has named it.
    first_hand: bool,
}

/// The circumstances in which a peer names an incarnation.
#[derive(Debug, Clone, Copy)]
pub(super) struct NamingContext<'a> {
    pub(super) from: NodeId,
    pub(super) members: &'a BTreeSet<NodeId>,
    /// Most incarnations of all nodes that are not known as members.
    pub(super) unknown_nodes: usize,
    pub(super) now: Instant,
}

impl Incarnations {
    /// Admits an incarnation that a peer names, if there is room. True if it is admitted now or was
    /// before.
    pub(super) fn admit(&mut self, incarnation: Incarnation, naming: NamingContext<'_>) -> bool {
        let first_hand = incarnation.node == naming.from;
        if let Some(held) = self.0.get_mut(&incarnation) {
            held.named = naming.now;
            held.first_hand |= first_hand;
            return true;
        }
        let total = self.0.len();
        let admitted = if !naming.members.contains(&incarnation.node) {
            total < MAX_INCARNATIONS && self.admits_stranger(incarnation.node, naming)
        } else if first_hand {
            (total < MAX_INCARNATIONS && self.has_few(incarnation.node, true, FIRST_HAND, naming.now))
                || (total < MAX_INCARNATIONS + RESERVED
                    && self.has_few(incarnation.node, true, RESERVED_OF_ONE, naming.now))
        } else {
            total < MAX_INCARNATIONS
                && self.has_few(incarnation.node, false, MAX_SECOND_HAND, naming.now)
                && self.admits_hearsay(incarnation.node, naming.members)
        };
        if admitted {
            self.0.insert(incarnation, AdmittedIncarnation { since: naming.now, named: naming.now, first_hand });
        }
        admitted
    }

    fn of(&self, node: NodeId) -> impl Iterator<Item = &AdmittedIncarnation> {
        let all = Incarnation { node, generation: 0 }..=Incarnation { node, generation: u64::MAX };
        self.0.range(all).map(|(_, held)| held)
    }

    /// Whether a node has fewer than `most` incarnations of this sort (named by itself or only by
    /// others), or got the last one at least [`PACE`] ago.
    fn has_few(&self, node: NodeId, first_hand: bool, most: usize, now: Instant) -> bool {
        let alike = || self.of(node).filter(|held| held.first_hand == first_hand);
        alike().count() < most || alike().all(|held| now.duration_since(held.since) >= PACE)
    }

    fn admits_hearsay(&self, node: NodeId, members: &BTreeSet<NodeId>) -> bool {
        let named_incarnations =
            || self.0.iter().filter(|(incarnation, held)| !held.first_hand && members.contains(&incarnation.node));
        let nodes: BTreeSet<_> = named_incarnations().map(|(incarnation, _)| incarnation.node).collect();
        self.of(node).next().is_none() || named_incarnations().count() - nodes.len() < MAX_FURTHER_SECOND_HAND
    }

    fn admits_stranger(&self, node: NodeId, naming: NamingContext<'_>) -> bool {
        let unknown_nodes = self.0.keys().filter(|incarnation| !naming.members.contains(&incarnation.node)).count();
        unknown_nodes < naming.unknown_nodes && self.of(node).count() < OF_A_STRANGER
    }

    pub(super) fn contains(&self, incarnation: &Incarnation) -> bool {
        self.0.contains_key(incarnation)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Incarnation> {
        self.0.keys().copied()
    }

    /// The newest incarnation that each member has announced of itself.
    pub(super) fn newest_self_announced(&self, members: &BTreeSet<NodeId>) -> BTreeSet<Incarnation> {
        let named = self.0.iter().filter(|(incarnation, held)| held.first_hand && members.contains(&incarnation.node));
        let newest: BTreeMap<NodeId, Incarnation> =
            named.map(|(incarnation, _)| (incarnation.node, *incarnation)).collect();
        newest.into_values().collect()
    }

    /// Forgets the incarnations that chitchat has forgotten.
    pub(super) fn prune(&mut self, has: impl Fn(&Incarnation) -> bool, now: Instant) {
        self.0.retain(|incarnation, held| has(incarnation) || now.duration_since(held.named) < FORGET);
    }

    /// Forgets all incarnations.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha3::{Digest, Sha3_256};

    const MEMBERS: u16 = 300;

    fn node(i: u16) -> NodeId {
        NodeId::from_public_key(Sha3_256::digest(i.to_be_bytes()).into())
    }

    /// Number of these incarnations that are admitted if a peer names them all at once.
    fn name(
        incarnations: &mut Incarnations,
        from: u16,
        named: impl Iterator<Item = (u16, u64)>,
        now: Instant,
    ) -> usize {
        let members = (0..MEMBERS).map(node).collect();
        let naming = NamingContext { from: node(from), members: &members, unknown_nodes: 64, now };
        named
            .filter(|(of, generation)| {
                incarnations.admit(Incarnation { node: node(*of), generation: *generation }, naming)
            })
            .count()
    }

    #[test]
    fn a_peer_cannot_fill_the_table_with_incarnations_of_one_node() {
        let (mut incarnations, now) = (Incarnations::default(), Instant::now());
        assert_eq!(name(&mut incarnations, 7, (0..400).map(|incarnation| (7, incarnation)), now), FIRST_HAND);
        assert_eq!(name(&mut incarnations, 8, (400..800).map(|incarnation| (7, incarnation)), now), MAX_SECOND_HAND);
        assert_eq!(name(&mut incarnations, 7, (0..400).map(|incarnation| (9, incarnation)), now), MAX_SECOND_HAND);
        assert_eq!(name(&mut incarnations, 9, [(9, 1000)].into_iter(), now), 1, "a member names its own");
    }

    #[test]
    fn a_node_with_too_many_incarnations_gets_one_more_after_each_interval() {
        let (mut incarnations, now) = (Incarnations::default(), Instant::now());
        assert_eq!(name(&mut incarnations, 7, (0..100).map(|incarnation| (7, incarnation)), now), FIRST_HAND);
        assert_eq!(name(&mut incarnations, 8, (100..200).map(|incarnation| (7, incarnation)), now), MAX_SECOND_HAND);
        assert_eq!(name(&mut incarnations, 7, (200..300).map(|incarnation| (7, incarnation)), now + PACE), 1);
        assert_eq!(name(&mut incarnations, 8, (300..400).map(|incarnation| (7, incarnation)), now + PACE), 1);
    }

    #[test]
    fn invented_incarnations_leave_room_for_one_of_each_member_and_for_first_hand_ones() {
        let (mut incarnations, now) = (Incarnations::default(), Instant::now());
        let all = (0..MEMBERS - 100).flat_map(|of| (0..20).map(move |incarnation| (of, incarnation)));
        // One of each of the 199 other members, the further ones, and twenty of its own.
        assert_eq!(name(&mut incarnations, 7, all, now), 199 + MAX_FURTHER_SECOND_HAND + 20);
        let unknown_nodes = (0..200).flat_map(|of| (0..20).map(move |incarnation| (1000 + of, incarnation)));
        name(&mut incarnations, 7, unknown_nodes, now);
        name(&mut incarnations, 7, (0..MEMBERS).map(|of| (of, 77)), now);
        assert_eq!(incarnations.iter().count(), MAX_INCARNATIONS);
        for member in 20..30 {
            assert_eq!(
                name(&mut incarnations, member, (100..200).map(|incarnation| (member, incarnation)), now),
                RESERVED_OF_ONE
            );
        }
        name(&mut incarnations, 40, (100..200).map(|incarnation| (40, incarnation)), now);
        assert!(incarnations.iter().count() <= MAX_INCARNATIONS + RESERVED);
    }

    #[test]
    fn incarnations_of_unknown_nodes_are_bounded() {
        let (mut incarnations, now) = (Incarnations::default(), Instant::now());
        let unknown_nodes = (0..200).flat_map(|of| (0..20).map(move |incarnation| (1000 + of, incarnation)));
        assert_eq!(name(&mut incarnations, 7, unknown_nodes, now), 64);
        assert_eq!(name(&mut incarnations, 1500, [(1500, 1)].into_iter(), now), 0);
        incarnations.prune(|_| false, now + FORGET);
        assert_eq!(name(&mut incarnations, 7, (0..20).map(|incarnation| (1000, incarnation)), now), OF_A_STRANGER);
    }

    /// chitchat panics if a digest leaves less than one of its blocks in a message.
    #[test]
    fn the_digest_leaves_room_for_a_block_of_values() {
        let digest = 2 + 115 * (MAX_INCARNATIONS + RESERVED + 1);
        assert!(crate::MAX_MESSAGE - 1 - digest >= 16_384);
    }
}
