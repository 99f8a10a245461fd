//! Between nodes with faster routes a dead node is dead for the others after about three seconds. A
//! node that only loses its faster route is not taken for dead, whatever else happens to it.

use std::time::Duration;

use rustbalance_gossip::sim::{Death, Scenario, Trouble, Weights, death_noticed, false_deaths, sweep, takeover};

const SEEDS: std::ops::RangeInclusive<u64> = 1..=3;

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// The times until the nodes with and without faster routes notice the death of a node that has
/// one.
fn noticed(nodes: usize, fast: usize, death: Death) -> [Vec<Duration>; 2] {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for seed in SEEDS {
        let times = death_noticed(seed, nodes, fast, death).unwrap_or_default();
        assert_eq!(times.len(), nodes - 1, "seed {seed}: it is not noticed");
        let (these, those) = times.split_at(fast.saturating_sub(1));
        with.extend(these.iter().copied());
        without.extend(those.iter().copied());
    }
    with.sort();
    without.sort();
    [with, without]
}

#[test]
fn a_dead_node_is_noticed_in_four_seconds_over_faster_routes_and_in_ten_without() {
    for (nodes, death) in [(3, Death::Killed), (3, Death::Frozen), (7, Death::Killed), (7, Death::Frozen)] {
        let [with, _] = noticed(nodes, nodes, death);
        let (median, last) = (with[with.len() / 2], with[with.len() - 1]);
        println!("{nodes} nodes with faster routes, {death:?}: median {median:?}, last {last:?}");
        assert!(median <= seconds(3.5) && last <= seconds(4.5), "{nodes} nodes, {death:?}: {with:?}");
    }
    let [_, without] = noticed(5, 0, Death::Killed);
    println!("without: {:?} to {:?}", without[0], without[without.len() - 1]);
    assert!(without[0] >= seconds(8.0), "{without:?}");
}

#[test]
fn in_a_mixed_cluster_only_the_nodes_with_faster_routes_judge_sooner() {
    for death in [Death::Killed, Death::Frozen] {
        let [with, without] = noticed(5, 3, death);
        assert!(with[with.len() - 1] <= seconds(6.0), "{with:?}");
        assert!(without[0] >= seconds(8.0), "{without:?}");
    }
    // With one other node, nothing tells its death from a failure of the own network, but Tor does.
    let [killed, _] = noticed(2, 2, Death::Killed);
    let [frozen, _] = noticed(2, 2, Death::Frozen);
    assert!(killed[killed.len() - 1] <= seconds(4.5), "{killed:?}");
    assert!(frozen[0] >= seconds(8.0), "{frozen:?}");
}

#[test]
fn no_living_node_is_taken_for_dead_when_the_faster_routes_fail() {
    for trouble in [Trouble::BlockedForAll, Trouble::BlockedForOne, Trouble::Lossy(0.3), Trouble::Lossy(0.7)] {
        for (nodes, fast) in [(2, 2), (5, 3), (7, 7)] {
            for seed in SEEDS {
                let [taken, _] = false_deaths(seed, nodes, fast, trouble).expect("it settles");
                assert!(taken.is_empty(), "{trouble:?}, seed {seed}, {fast} of {nodes} nodes: {taken:?}");
            }
        }
    }
}

#[test]
fn a_node_that_is_cut_off_is_dead_for_the_others_and_back_soon() {
    let troubles = [
        (Trouble::CutOff, true),
        (Trouble::Frozen(seconds(8.0)), true),
        (Trouble::Restarted(seconds(6.0)), true),
        (Trouble::Frozen(seconds(1.0)), false),
    ];
    for (trouble, dies) in troubles {
        for seed in SEEDS {
            let [taken, left] = false_deaths(seed, 5, 5, trouble).expect("it settles");
            assert!(left.is_empty(), "{trouble:?}, seed {seed}: {left:?}");
            let of_it = taken.iter().filter(|(_, of)| *of == 0).count();
            let by_it = taken.iter().filter(|(by, _)| *by == 0).count();
            assert_eq!(of_it, if dies { 4 } else { 0 }, "{trouble:?}, seed {seed}: {taken:?}");
            // A node that is cut off takes the others for dead, and one that was stopped does not.
            // One that has just started has not heard them yet.
            match trouble {
                Trouble::CutOff => assert_eq!(by_it, 4, "seed {seed}: {taken:?}"),
                Trouble::Frozen(_) => assert_eq!(by_it, 0, "{trouble:?}, seed {seed}: {taken:?}"),
                _ => {}
            }
            assert_eq!(taken.len(), of_it + by_it, "{trouble:?}, seed {seed}: {taken:?}");
        }
    }
}

#[test]
fn a_dead_publisher_is_replaced_sooner_over_faster_routes() {
    for seed in 1..=3 {
        let followed = |fast| takeover(seed, 5, fast, Death::Killed).expect("another node follows").followed;
        let [with, without] = [followed(5), followed(0)];
        println!("seed {seed}: {with:?} with faster routes, {without:?} without");
        assert!(with + seconds(4.0) <= without, "seed {seed}: {with:?}, {without:?}");
    }
}

/// All faults, while the faster routes come and go.
#[test]
fn every_invariant_holds_while_faster_routes_come_and_go() {
    sweep("fast_routes", &[], 3, 6, |seed, nodes| Scenario {
        fast: nodes.div_ceil(2),
        weights: Weights { udp: 10, ..Weights::default() },
        ..Scenario::new(seed, nodes)
    });
}
