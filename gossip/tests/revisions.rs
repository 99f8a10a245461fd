//! A publisher's revision never falls, and is above every revision that it knows of.

use rustbalance_gossip::sim::{Scenario, Weights, sweep};

/// Clocks are minutes apart and jump, and publishers die.
#[test]
fn a_revision_never_falls() {
    sweep("revisions", &[(300, 5)], 6, 5, |seed, nodes| Scenario {
        weights: Weights {
            clock: 10,
            crash: 6,
            restart: 9,
            freeze: 4,
            partition: 2,
            heal: 4,
            point: 10,
            ..Weights::NONE
        },
        ..Scenario::new(seed, nodes)
    });
}
