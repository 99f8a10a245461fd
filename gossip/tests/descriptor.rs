//! A descriptor has at most twenty points, one at each relay, each of a member.

use std::time::Duration;

use rustbalance_gossip::sim::{Scenario, Weights, sweep};

/// More nodes than places in a descriptor, points that change, new members.
#[test]
fn a_descriptor_is_always_publishable() {
    sweep("descriptor", &[(500, 22)], 2, 22, |seed, nodes| Scenario {
        chaos: Duration::from_secs(60),
        weights: Weights { point: 30, target: 10, join: 4, race: 2, crash: 4, restart: 6, evict: 1, ..Weights::NONE },
        every: Duration::from_secs(2),
        ..Scenario::new(seed, nodes)
    });
}
