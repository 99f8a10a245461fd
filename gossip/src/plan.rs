//! Chooses the introduction points that the descriptor of one service should list.
//!
//! This is a pure function of the candidates, the last choice and the rotation epoch. Sources are
//! tried in tiers: the healthy ones; if there are none, members of the last healthy set that are
//! degraded or down; then all that are degraded or down; then the draining ones. Each relay is
//! listed once: for the source that has it in the last choice, or else for the source with the
//! lowest lot at this relay. Every source gets one point before any gets a second; the rest are
//! shared out by weight (Sainte-Laguë's divisors, so that adding or removing one source moves only
//! its own share). Points that are already published are preferred.
//!
//! With more sources than places, each source draws a weighted lot from the epoch and its key, and
//! the lowest lots are listed. The next epoch draws again, so all get a turn; adding or removing a
//! source moves at most one place. Relays are then assigned among the listed sources only.
//!
//! A descriptor offers a subprotocol at all of its points or at none. So it offers those that every
//! candidate grants, listed or not: an unlisted publisher may stand in at a listed point, and the
//! offer does not change with the epoch.

use std::collections::{BTreeMap, BTreeSet};

use crate::bytes::FixedBytes;
use crate::hash::{Label, labelled};
use crate::record::{Fitness, IntroPoint, MAX_INTRO_POINTS, Subprotocol};
use crate::source::{Candidate, Source, relay_lot};

/// The choice for one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The points that the descriptor should list, sorted by session key, so that their order does
    /// not reveal which points belong to one source.
    pub points: Vec<(Source, IntroPoint)>,
    /// The subprotocols that the descriptor should offer.
    pub subprotocols: BTreeSet<Subprotocol>,
    /// The sources that were healthy when last any source was.
    pub healthy: BTreeSet<Source>,
}

/// Chooses at most `limit` (and never more than [`MAX_INTRO_POINTS`]) points.
///
/// `before` is the last choice; `rotation_epoch` changes the listed sources when there are more of
/// them than places. Without any candidate the choice is empty: the published descriptor is then
/// best left as it is.
pub fn choose(candidates: &[Candidate<'_>], before: &Choice, limit: usize, rotation_epoch: u64) -> Choice {
    let limit = limit.min(MAX_INTRO_POINTS);
    let candidates: Vec<Candidate<'_>> = candidates.iter().copied().filter(|it| !it.points.is_empty()).collect();
    let chosen = best_tier(&candidates, &before.healthy);
    let published: BTreeSet<_> = before.points.iter().map(|(source, point)| (*source, point.session_key)).collect();
    let mut points = share(draw(chosen, &published, limit, rotation_epoch), limit);
    points.sort_by_key(|(_, point)| point.session_key);
    let healthy: BTreeSet<Source> =
        candidates.iter().filter(|it| it.fitness == Fitness::Healthy).map(|it| it.source).collect();
    let healthy = if healthy.is_empty() { before.healthy.clone() } else { healthy };
    Choice { points, subprotocols: granted_by_all(&candidates), healthy }
}

/// The subprotocols that each of these candidates grants.
fn granted_by_all(candidates: &[Candidate<'_>]) -> BTreeSet<Subprotocol> {
    let Some((first, others)) = candidates.split_first() else { return BTreeSet::new() };
    let by_others = |it: &&Subprotocol| others.iter().all(|other| other.subprotocols.contains(it));
    first.subprotocols.iter().filter(by_others).copied().collect()
}

/// The candidates of the first tier that is not empty.
fn best_tier<'a>(candidates: &[Candidate<'a>], last_healthy: &BTreeSet<Source>) -> Vec<Candidate<'a>> {
    let unfit = |it: &Candidate<'_>| matches!(it.fitness, Fitness::Degraded | Fitness::Down);
    let tiers: [&dyn Fn(&Candidate<'_>) -> bool; 4] =
        [&|it| it.fitness == Fitness::Healthy, &|it| unfit(it) && last_healthy.contains(&it.source), &unfit, &|it| {
            it.fitness == Fitness::Draining
        }];
    for tier in tiers {
        let chosen: Vec<Candidate<'a>> = candidates.iter().copied().filter(|it| tier(it)).collect();
        if !chosen.is_empty() {
            return chosen;
        }
    }
    Vec::new()
}

/// The points of a source after each relay was assigned to one source; the published ones first.
struct Offer<'a> {
    source: Source,
    weight: u8,
    points: Vec<&'a IntroPoint>,
}

fn one_per_relay<'a>(candidates: &[Candidate<'a>], published: &BTreeSet<(Source, FixedBytes<32>)>) -> Vec<Offer<'a>> {
    let mut candidates = candidates.to_vec();
    candidates.sort_by_key(|it| it.source);
    candidates.dedup_by_key(|it| it.source);
    let name = |source: Source, point: &IntroPoint| (source, point.session_key);
    let all = || candidates.iter().flat_map(|it| it.points.iter().map(|point| (it.source, point)));
    let mut uses: BTreeMap<&[u8], u32> = BTreeMap::new();
    for identity in all().flat_map(|(_, point)| point.relay.identities()) {
        *uses.entry(identity).or_default() += 1;
    }
    let mut claims: Vec<_> = all()
        .map(|(source, point)| {
            let contested = point.relay.identities().iter().any(|identity| uses.get(identity) > Some(&1));
            let lot = if contested { relay_lot(&point.relay, source) } else { Default::default() };
            (!published.contains(&name(source, point)), lot, name(source, point), point)
        })
        .collect();
    claims.sort_unstable();
    let mut taken = BTreeSet::new();
    claims.retain(|(.., point)| {
        let free = point.relay.identities().iter().all(|identity| !taken.contains(identity));
        if free {
            taken.extend(point.relay.identities());
        }
        free
    });
    let held: BTreeSet<_> = claims.iter().map(|(.., name, _)| *name).collect();
    let offers = candidates.iter().map(|it| {
        let mut points: Vec<_> = it.points.iter().filter(|point| held.contains(&name(it.source, point))).collect();
        points.sort_by_key(|point| !published.contains(&name(it.source, point)));
        Offer { source: it.source, weight: it.weight.clamp(1, 100), points }
    });
    offers.filter(|offer| !offer.points.is_empty()).collect()
}

/// The offers of the sources; if they are more than `limit`, of those with the lowest lots of this
/// epoch. A source that lost all its relays to sources with lower lots is replaced by the next one.
fn draw<'a>(
    mut candidates: Vec<Candidate<'a>>,
    published: &BTreeSet<(Source, FixedBytes<32>)>,
    limit: usize,
    rotation_epoch: u64,
) -> Vec<Offer<'a>> {
    if candidates.len() <= limit {
        return one_per_relay(&candidates, published);
    }
    candidates.sort_by_cached_key(|it| (lot(it, rotation_epoch), it.source));
    let mut drawn = limit;
    loop {
        let offers = one_per_relay(&candidates[..drawn], published);
        let room = limit.saturating_sub(offers.len()).min(candidates.len() - drawn);
        if room == 0 {
            return offers;
        }
        drawn += room;
    }
}

/// An exponential variate with the source's weight as its rate: among many sources, each draws the
/// least with a probability proportional to its weight. Returned as bits, which sort as the number
/// does.
fn lot(of: &Candidate<'_>, rotation_epoch: u64) -> u64 {
    let digest = labelled(Label::Lot, &[&rotation_epoch.to_be_bytes(), of.source.public_key()]);
    let bits = digest.iter().take(6).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    let uniform = (bits as f64 + 1.0) / (1u64 << 48) as f64;
    (uniform.ln().abs() / f64::from(of.weight.clamp(1, 100))).to_bits()
}

/// Gives each source one place, then the rest by weight.
fn share(offers: Vec<Offer<'_>>, limit: usize) -> Vec<(Source, IntroPoint)> {
    let mut seats: BTreeMap<Source, usize> = offers.iter().map(|offer| (offer.source, 1)).collect();
    for _ in offers.len()..limit {
        // Compares weight / (2 seats + 1) by cross multiplication; of equals the lower id wins.
        let due = offers.iter().filter(|offer| seats[&offer.source] < offer.points.len()).max_by(|a, b| {
            let (of_a, of_b) = (2 * seats[&a.source] + 1, 2 * seats[&b.source] + 1);
            let (a_due, b_due) = (usize::from(a.weight) * of_b, usize::from(b.weight) * of_a);
            a_due.cmp(&b_due).then(b.source.cmp(&a.source))
        });
        let Some(source) = due.map(|offer| offer.source) else { break };
        *seats.entry(source).or_default() += 1;
    }
    let taken = |offer: &Offer<'_>| seats.get(&offer.source).copied().unwrap_or_default();
    offers
        .iter()
        .flat_map(|offer| offer.points.iter().take(taken(offer)).map(|point| (offer.source, (*point).clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;
    use crate::record::RelayId;
    use crate::sim::{point, relay};
    use proptest::prelude::*;

    fn source(n: u32) -> Source {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        Source::Node(NodeId::from_public_key(key))
    }

    #[derive(Debug, Clone)]
    struct TestSource {
        node: u32,
        fitness: Fitness,
        weight: u8,
        points: Vec<IntroPoint>,
        subprotocols: Vec<Subprotocol>,
    }

    impl TestSource {
        fn healthy(node: u32, points: u32) -> Self {
            let points = (0..points).map(|n| point(node * 100 + n, node * 100 + n)).collect();
            Self { node, fitness: Fitness::Healthy, weight: 10, points, subprotocols: Vec::new() }
        }

        fn fitness(self, fitness: Fitness) -> Self {
            Self { fitness, ..self }
        }

        fn weight(self, weight: u8) -> Self {
            Self { weight, ..self }
        }
    }

    fn choose_from(given: &[TestSource], before: &Choice, limit: usize, rotation_epoch: u64) -> Choice {
        let candidates: Vec<Candidate<'_>> = given
            .iter()
            .map(|it| Candidate {
                source: source(it.node),
                fitness: it.fitness,
                weight: it.weight,
                points: &it.points,
                subprotocols: &it.subprotocols,
            })
            .collect();
        choose(&candidates, before, limit, rotation_epoch)
    }

    fn shares(choice: &Choice) -> BTreeMap<Source, usize> {
        let mut shares = BTreeMap::new();
        for (source, _) in &choice.points {
            *shares.entry(*source).or_default() += 1;
        }
        shares
    }

    fn changed(a: &Choice, b: &Choice) -> usize {
        b.points.iter().filter(|point| !a.points.contains(point)).count()
    }

    #[test]
    fn shares_follow_weights() {
        let given = [
            TestSource::healthy(1, 20).weight(30),
            TestSource::healthy(2, 20).weight(10),
            TestSource::healthy(3, 20).weight(10),
        ];
        let choice = choose_from(&given, &Choice::default(), 20, 0);
        assert_eq!(shares(&choice), BTreeMap::from([(source(1), 12), (source(2), 4), (source(3), 4)]));
    }

    #[test]
    fn a_relay_is_named_once_and_a_lot_decides_for_which_source() {
        let mut won = BTreeMap::<Source, u32>::new();
        for at in 0..40 {
            let mut given = [TestSource::healthy(1, 2), TestSource::healthy(2, 2)];
            given[0].points[0].relay = relay(at);
            given[1].points[0].relay = relay(at);
            let choice = choose_from(&given, &Choice::default(), 20, 0);
            assert_eq!(choice.points.len(), 3);
            let (winner, _) = choice.points.iter().find(|(_, point)| point.relay == relay(at)).unwrap();
            *won.entry(*winner).or_default() += 1;
        }
        assert!(won.values().all(|won| *won > 8), "{won:?}");
    }

    #[test]
    fn a_source_that_names_published_relays_displaces_no_published_point() {
        let honest = [TestSource::healthy(2, 3), TestSource::healthy(3, 3)];
        let first = choose_from(&honest, &Choice::default(), 20, 0);
        for id in [1, 4] {
            // Relays with both identities, or with one of them and a foreign one.
            let relays = first.points.iter().map(|(_, point)| point.relay);
            let half = relays.clone().map(|it| RelayId { rsa: FixedBytes([7; 20]), ..it });
            let other_half = relays.clone().map(|it| RelayId { ed25519: FixedBytes([7; 32]), ..it });
            let relays = relays.chain(half).chain(other_half);
            let points = relays.zip(0..).map(|(relay, n)| IntroPoint { relay, ..point(0, 900 + n) }).collect();
            let greedy = TestSource { points, ..TestSource::healthy(id, 0).weight(100) };
            let given = [greedy, honest[0].clone(), honest[1].clone()];
            assert_eq!(choose_from(&given, &first, 20, 0).points, first.points);
        }
    }

    #[test]
    fn unhealthy_sources_are_named_if_there_are_no_healthy_ones() {
        let healthy =
            [TestSource::healthy(1, 2), TestSource::healthy(2, 2), TestSource::healthy(3, 2).fitness(Fitness::Down)];
        let first = choose_from(&healthy, &Choice::default(), 20, 0);
        assert_eq!(shares(&first).len(), 2);
        let sick: Vec<TestSource> = healthy.iter().cloned().map(|it| it.fitness(Fitness::Degraded)).collect();
        let second = choose_from(&sick, &first, 20, 0);
        assert_eq!(second.points, first.points);
        assert_eq!(shares(&choose_from(&sick[1..], &second, 20, 0)).len(), 1);
        assert_eq!(shares(&choose_from(&sick[2..], &second, 20, 0)), BTreeMap::from([(source(3), 2)]));
        let leaving: Vec<TestSource> = sick.iter().cloned().map(|it| it.fitness(Fitness::Draining)).collect();
        assert_eq!(shares(&choose_from(&leaving, &second, 20, 0)).len(), 3);
        assert!(choose_from(&[], &second, 20, 0).points.is_empty());
    }

    #[test]
    fn a_subprotocol_is_offered_if_every_source_with_points_grants_it() {
        let grants = |node, granted: &[u8]| TestSource {
            subprotocols: granted.iter().map(|version| Subprotocol(2, *version)).collect(),
            ..TestSource::healthy(node, 3)
        };
        let offered = |given: &[TestSource], limit| {
            let versions = choose_from(given, &Choice::default(), limit, 0).subprotocols;
            versions.into_iter().map(|Subprotocol(_, version)| version).collect::<Vec<_>>()
        };
        assert!(offered(&[], 20).is_empty());
        assert_eq!(offered(&[grants(1, &[5, 6])], 20), [5, 6]);
        assert_eq!(offered(&[grants(1, &[5, 6]), grants(2, &[6, 9])], 20), [6]);
        // A source that is not listed counts, whatever the reason; one without points does not.
        let mut given = vec![grants(1, &[6]), grants(2, &[6]), grants(3, &[])];
        assert!(offered(&given, 20).is_empty() && offered(&given, 2).is_empty());
        for fitness in [Fitness::Degraded, Fitness::Draining, Fitness::Down] {
            given[2].fitness = fitness;
            assert!(offered(&given, 20).is_empty(), "{fitness:?}");
        }
        given[2].points.clear();
        assert_eq!(offered(&given, 20), [6]);
    }

    #[test]
    fn published_points_are_kept() {
        let mut given = vec![TestSource::healthy(1, 20), TestSource::healthy(2, 20)];
        let first = choose_from(&given, &Choice::default(), 20, 0);
        given[0].points.reverse();
        given[1].points.rotate_left(7);
        assert_eq!(choose_from(&given, &first, 20, 0).points, first.points);
    }

    #[test]
    fn every_node_has_a_turn_if_there_are_more_nodes_than_places() {
        let given: Vec<TestSource> = (0..60).map(|n| TestSource::healthy(n, 3)).collect();
        let mut seen = BTreeSet::new();
        for rotation_epoch in 0..40 {
            let choice = choose_from(&given, &Choice::default(), 20, rotation_epoch);
            assert_eq!((choice.points.len(), shares(&choice).len()), (20, 20));
            assert_eq!(
                changed(&choice, &choose_from(&given[1..], &choice, 20, rotation_epoch)),
                usize::from(shares(&choice).contains_key(&source(0)))
            );
            seen.extend(shares(&choice).into_keys());
        }
        assert_eq!(seen.len(), 60);
    }

    fn any_given() -> impl Strategy<Value = Vec<TestSource>> {
        let fitness = prop::sample::select(vec![Fitness::Healthy, Fitness::Degraded, Fitness::Down, Fitness::Draining]);
        let points = prop::collection::btree_map(0u32..10_000, 0u32..40, 0..20);
        let node = (0u32..50, fitness, 0u8..=255, points).prop_map(|(node, fitness, weight, points)| {
            let points = points.into_iter().map(|(key, at)| {
                // Some points combine one relay's RSA identity with another relay's Ed25519
                // identity.
                let ed25519 = relay(if key % 3 == 0 { key % 40 } else { at }).ed25519;
                let point = point(at, node * 10_000 + key);
                IntroPoint { relay: RelayId { ed25519, ..point.relay }, ..point }
            });
            let points = points.collect();
            TestSource { points, ..TestSource::healthy(node, 0).fitness(fitness).weight(weight) }
        });
        prop::collection::vec(node, 0..40).prop_map(|mut given| {
            given.sort_by_key(|it| it.node);
            given.dedup_by_key(|it| it.node);
            given
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn every_choice_is_publishable(given in any_given(), limit in 0usize..30, rotation_epoch: u64) {
            let choice = choose_from(&given, &Choice::default(), limit, rotation_epoch);
            let limit = limit.min(MAX_INTRO_POINTS);
            prop_assert!(choice.points.len() <= limit);
            let identities: BTreeSet<&[u8]> = choice.points.iter().flat_map(|(_, point)| point.relay.identities()).collect();
            prop_assert_eq!(identities.len(), 2 * choice.points.len());
            let of = |it: &TestSource, point: &IntroPoint| it.points.contains(point);
            for (id, point) in &choice.points {
                prop_assert!(given.iter().any(|it| source(it.node) == *id && of(it, point)));
            }
            // No source has a second point while another that could have one has none.
            let shares = shares(&choice);
            let clash = |a: &IntroPoint, b: &IntroPoint| a != b && (a.relay.rsa == b.relay.rsa || a.relay.ed25519 == b.relay.ed25519);
            let free = |it: &&TestSource| it.points.iter().any(|point| {
                given.iter().all(|other| !other.points.iter().any(|b| clash(point, b)))
            });
            let absent = given.iter().filter(|it| it.fitness == Fitness::Healthy && !shares.contains_key(&source(it.node))).find(free);
            if limit > 0 && absent.is_some() {
                prop_assert!(shares.len() == limit);
            }
            prop_assert_eq!(&choose_from(&given, &Choice::default(), limit, rotation_epoch), &choice);
            let again = choose_from(&given, &choice, limit, rotation_epoch);
            prop_assert_eq!(choose_from(&given, &again, limit, rotation_epoch), again);
        }

        #[test]
        fn one_node_more_moves_only_its_own_share(nodes in 1u32..30, weights in prop::collection::vec(1u8..=100, 31), rotation_epoch: u64) {
            let given: Vec<TestSource> = (0..=nodes).map(|n| TestSource::healthy(n, 20).weight(weights[n as usize])).collect();
            let before = choose_from(&given[..nodes as usize], &Choice::default(), 20, rotation_epoch);
            let after = choose_from(&given, &before, 20, rotation_epoch);
            let newcomer = shares(&after).get(&source(nodes)).copied().unwrap_or_default();
            prop_assert_eq!(changed(&before, &after), newcomer);
            prop_assert_eq!(before.points.len(), 20);
            let gone = choose_from(&given[..nodes as usize], &after, 20, rotation_epoch);
            prop_assert_eq!(changed(&after, &gone), newcomer);
        }
    }
}
