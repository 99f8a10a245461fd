//! No intro point of a node that is long silent (`sim::longest_silence`) is wanted in the descriptor.

use rustbalance_gossip::sim::{Scenario, Weights, replay, sweep};

/// Nodes die, freeze, leave, are evicted and fall ill.
#[test]
fn no_dead_nodes_point_stays() {
    sweep("dead_points", &[(400, 8)], 6, 8, |seed, nodes| Scenario {
        weights: Weights {
            crash: 10,
            restart: 9,
            freeze: 8,
            sleep: 2,
            leave: 1,
            evict: 1,
            target: 6,
            drain: 3,
            one_way: 3,
            heal: 4,
            forge: 4,
            ..Weights::NONE
        },
        ..Scenario::new(seed, nodes)
    });
}

/// A member repeats what a node said that is dead for hours, to others that were restarted meanwhile and know nothing of it.
#[test]
fn old_words_do_not_revive_the_dead_at_who_was_restarted() {
    for seed in 1..=3 {
        let seen = replay(seed, 5).unwrap();
        assert!(seen.violations.is_empty(), "seed {seed}: {}", seen.violations[0]);
        assert!(seen.refused.iter().all(|refused| *refused >= 20), "seed {seed}: {:?}", seen.refused);
    }
}
