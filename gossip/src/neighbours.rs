//! Chooses the few members to which a node keeps links. All nodes compute the same function, and
//! the graph of all links stays connected.
//!
//! The members form a ring in the order of their ids. Each keeps links to its two successors, so
//! the ring alone connects all members and stays connected when one node dies. The rest of its `k`
//! links go to the members that a hash of both ids prefers: these shortcuts across the ring keep
//! the number of hops small.

use std::collections::BTreeSet;

use crate::hash::{Label, labelled};
use crate::id::NodeId;

/// Links that a node opens by default. Other members open links to it as well.
pub const DEFAULT_NEIGHBOURS: usize = 6;

/// Number of neighbours that are successors on the ring.
const SUCCESSORS: usize = 2;

/// The members to which `me` opens links: at most `k`, but at least one if there is another member.
/// `members` may contain `me`.
pub fn neighbours(me: NodeId, members: &BTreeSet<NodeId>, k: usize) -> BTreeSet<NodeId> {
    let k = k.max(1);
    let others = || members.range(me..).chain(members.range(..me)).copied().filter(|member| *member != me);
    if others().count() <= k {
        return others().collect();
    }
    let mut chosen: BTreeSet<NodeId> = others().take(SUCCESSORS.min(k)).collect();
    let mut rest: Vec<_> = others().filter(|member| !chosen.contains(member)).collect();
    rest.sort_by_cached_key(|member| preference(me, *member));
    chosen.extend(rest.into_iter().take(k - chosen.len()));
    chosen
}

/// Sort key: members with a lower value are chosen first. It is symmetric, so both ends tend to
/// choose the same link.
fn preference(a: NodeId, b: NodeId) -> [u8; 32] {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    labelled(Label::Neighbours, &[low.public_key(), high.public_key()])
}

#[cfg(test)]
mod tests {
    use sha3::{Digest, Sha3_256};

    use super::*;

    fn members(count: u8) -> BTreeSet<NodeId> {
        (0..count).map(|i| NodeId::from_public_key(Sha3_256::digest([i]).into())).collect()
    }

    /// The members that can be reached from the first one over links in either direction.
    fn reached(members: &BTreeSet<NodeId>, k: usize, gone: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let edges: Vec<_> = members
            .iter()
            .flat_map(|a| neighbours(*a, members, k).into_iter().map(|b| (*a, b)))
            .filter(|(a, b)| !gone.contains(a) && !gone.contains(b))
            .collect();
        let mut seen: BTreeSet<NodeId> = members.iter().filter(|m| !gone.contains(m)).take(1).copied().collect();
        loop {
            let before = seen.len();
            for (a, b) in &edges {
                if seen.contains(a) || seen.contains(b) {
                    seen.extend([*a, *b]);
                }
            }
            if seen.len() == before {
                return seen;
            }
        }
    }

    #[test]
    fn a_small_cluster_is_a_full_mesh() {
        let all = members(7);
        for me in &all {
            let mut others = all.clone();
            others.remove(me);
            assert_eq!(neighbours(*me, &all, 6), others);
        }
        assert!(neighbours(NodeId::from_public_key([9; 32]), &BTreeSet::new(), 6).is_empty());
    }

    #[test]
    fn the_graph_is_connected_for_every_size_and_number_of_neighbours() {
        for count in [2, 3, 8, 20, 61, 200] {
            for k in [0, 1, 2, 3, 6] {
                let all = members(count);
                assert_eq!(reached(&all, k, &BTreeSet::new()), all, "{count} members, {k} neighbours");
                assert!(all.iter().all(|me| neighbours(*me, &all, k).len() <= k.max(1)));
            }
        }
    }

    #[test]
    fn the_graph_stays_connected_after_any_single_death() {
        let all = members(40);
        for dead in &all {
            let gone = BTreeSet::from([*dead]);
            assert_eq!(reached(&all, DEFAULT_NEIGHBOURS, &gone).len(), all.len() - 1);
        }
    }

    #[test]
    fn a_newcomer_moves_few_links() {
        let mut all = members(50);
        let before: Vec<_> = all.iter().map(|me| (*me, neighbours(*me, &all, 6))).collect();
        all.insert(NodeId::from_public_key([77; 32]));
        let moved: usize = before.iter().map(|(me, old)| old.difference(&neighbours(*me, &all, 6)).count()).sum();
        assert!(moved <= 20, "{moved} of 300 links moved");
    }
}
