//! What should stand in the descriptor: the choice of intro points (DESIGN, section 6, 1 and 2).
//!
//! A pure function of the candidates, what was chosen before and a counter. Who counts: the healthy ones; if nobody is,
//! those of the last healthy set who still live; then whoever answers at all. One point per relay, the lower node id
//! keeps it. Then every node gets one point before any gets a second, and the rest go by weight (Sainte-Laguë's
//! divisors, so that one node more or less moves only its own share). Points that stand already are kept before others.
//!
//! More nodes than places: each node draws a lot from the counter and its id, weighted, and the luckiest stand; the
//! next count gives others their turn, and a node more or less moves at most one place.

use std::collections::{BTreeMap, BTreeSet};

use sha3::{Digest, Sha3_256};

use crate::bytes::FixedBytes;
use crate::id::NodeId;
use crate::record::{IntroPoint, MAX_INTRO_POINTS, Phase, RelayId};

/// One living node and its intro points.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Who.
    pub node: NodeId,
    /// Where it is in its life.
    pub phase: Phase,
    /// Share relative to the others', 1 to 100.
    pub weight: u8,
    /// Where it waits for clients, those it prefers first.
    pub points: &'a [IntroPoint],
}

/// How the choice was made before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// What should stand in the descriptor, by session key: an order that does not tell which points are one node's.
    pub points: Vec<(NodeId, IntroPoint)>,
    /// The nodes that were healthy when last any was.
    pub healthy: BTreeSet<NodeId>,
}

/// Chooses at most `limit` (and never more than [`MAX_INTRO_POINTS`]) points.
///
/// `before` is the last choice; `count` turns the places when there are more nodes than places. If nobody can serve at
/// all, nothing is chosen: what stands on the directories is then best left there.
pub fn choose(candidates: &[Candidate<'_>], before: &Choice, limit: usize, count: u64) -> Choice {
    let limit = limit.min(MAX_INTRO_POINTS);
    let candidates: Vec<Candidate<'_>> = candidates.iter().copied().filter(|it| !it.points.is_empty()).collect();
    let chosen = best_tier(&candidates, &before.healthy);
    let published: BTreeSet<_> = before.points.iter().map(|(node, point)| (*node, point.session_key)).collect();
    let mut offers = one_per_relay(&chosen, &published);
    if offers.len() > limit {
        draw(&mut offers, limit, count);
    }
    let mut points = share(offers, limit);
    points.sort_by_key(|(_, point)| point.session_key);
    let healthy: BTreeSet<NodeId> =
        candidates.iter().filter(|it| it.phase == Phase::Healthy).map(|it| it.node).collect();
    let healthy = if healthy.is_empty() { before.healthy.clone() } else { healthy };
    Choice { points, healthy }
}

/// Who counts: the first of these that is anybody.
fn best_tier<'a>(candidates: &[Candidate<'a>], last_healthy: &BTreeSet<NodeId>) -> Vec<Candidate<'a>> {
    let serves = |it: &Candidate<'_>| matches!(it.phase, Phase::Unhealthy | Phase::Initializing);
    let tiers: [&dyn Fn(&Candidate<'_>) -> bool; 4] =
        [&|it| it.phase == Phase::Healthy, &|it| serves(it) && last_healthy.contains(&it.node), &serves, &|it| {
            it.phase == Phase::Draining
        }];
    for tier in tiers {
        let chosen: Vec<Candidate<'a>> = candidates.iter().copied().filter(|it| tier(it)).collect();
        if !chosen.is_empty() {
            return chosen;
        }
    }
    Vec::new()
}

/// What a node can give once every relay stands only once; those published already first.
struct Offer<'a> {
    node: NodeId,
    weight: u8,
    points: Vec<&'a IntroPoint>,
}

fn one_per_relay<'a>(candidates: &[Candidate<'a>], published: &BTreeSet<(NodeId, FixedBytes<32>)>) -> Vec<Offer<'a>> {
    let mut candidates = candidates.to_vec();
    candidates.sort_by_key(|it| it.node);
    candidates.dedup_by_key(|it| it.node);
    // Tor's clients know a relay by its RSA identity, so that alone makes two of them one.
    let mut taken = BTreeSet::new();
    let mut offers = Vec::new();
    for it in candidates {
        let mut points: Vec<&IntroPoint> = it.points.iter().collect();
        points.sort_by_key(|point| !published.contains(&(it.node, point.session_key)));
        points.retain(|point| taken.insert(identity(&point.relay)));
        if !points.is_empty() {
            offers.push(Offer { node: it.node, weight: it.weight.clamp(1, 100), points });
        }
    }
    offers
}

fn identity(relay: &RelayId) -> FixedBytes<20> {
    relay.rsa
}

/// Leaves the `limit` nodes with the best lots of this count.
fn draw(offers: &mut Vec<Offer<'_>>, limit: usize, count: u64) {
    offers.sort_by(|a, b| lot(a, count).total_cmp(&lot(b, count)).then(a.node.cmp(&b.node)));
    offers.truncate(limit);
    offers.sort_by_key(|offer| offer.node);
}

/// An exponential variate of the node's weight as its rate: the least of many falls to each in proportion to its weight.
fn lot(offer: &Offer<'_>, count: u64) -> f64 {
    let digest = Sha3_256::new()
        .chain_update(b"rustbalance lot v1\0")
        .chain_update(count.to_be_bytes())
        .chain_update(offer.node.public_key())
        .finalize();
    let bits = digest.iter().take(6).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    let uniform = (bits as f64 + 1.0) / (1u64 << 48) as f64;
    -uniform.ln() / f64::from(offer.weight)
}

/// Gives each node one place, then the rest by weight.
fn share(offers: Vec<Offer<'_>>, limit: usize) -> Vec<(NodeId, IntroPoint)> {
    let mut seats: BTreeMap<NodeId, usize> = offers.iter().map(|offer| (offer.node, 1)).collect();
    for _ in offers.len()..limit {
        // weight / (2 seats + 1), compared crosswise; of equals the lower id.
        let due = offers.iter().filter(|offer| seats[&offer.node] < offer.points.len()).max_by(|a, b| {
            let (of_a, of_b) = (2 * seats[&a.node] + 1, 2 * seats[&b.node] + 1);
            let (a_due, b_due) = (usize::from(a.weight) * of_b, usize::from(b.weight) * of_a);
            a_due.cmp(&b_due).then(b.node.cmp(&a.node))
        });
        let Some(node) = due.map(|offer| offer.node) else { break };
        *seats.entry(node).or_default() += 1;
    }
    let taken = |offer: &Offer<'_>| seats.get(&offer.node).copied().unwrap_or_default();
    offers
        .iter()
        .flat_map(|offer| offer.points.iter().take(taken(offer)).map(|point| (offer.node, (*point).clone())))
        .collect()
}
