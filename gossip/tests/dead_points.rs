//! No node wants the descriptor to list points of a node that has been silent for longer than
//! `sim::longest_silence`.

use rustbalance_gossip::sim::{Scenario, Weights, replay, sweep};

/// Nodes die, freeze, leave, drain and are evicted, and their targets fail.
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

/// A member replays the records of a node that has been dead for hours, to nodes that have
/// restarted since and know nothing of it.
#[test]
fn replayed_records_do_not_revive_a_dead_node_after_a_restart() {
    for seed in 1..=3 {
        let seen = replay(seed, 5).unwrap();
        assert!(seen.violations.is_empty(), "seed {seed}: {}", seen.violations[0]);
        assert!(seen.refused.iter().all(|refused| *refused >= 20), "seed {seed}: {:?}", seen.refused);
    }
}
