//! A node's term never falls, not even over restarts, and is on disk before the node claims it.

use rustbalance_gossip::sim::{Scenario, Weights, sweep};

/// Processes die and restart all the time, on slow disks.
#[test]
fn a_term_never_falls() {
    sweep("terms", &[(100, 5)], 6, 5, |seed, nodes| Scenario {
        weights: Weights {
            crash: 10,
            restart: 14,
            freeze: 4,
            partition: 2,
            heal: 4,
            slow_disk: 8,
            full_disk: 3,
            ..Weights::NONE
        },
        ..Scenario::new(seed, nodes)
    });
}
