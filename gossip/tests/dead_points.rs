//! No intro point of a node that is long silent is wanted in the descriptor.

use rustbalance_gossip::sim::{Scenario, Weights, sweep};

/// Nodes die, freeze, leave, are evicted and fall ill.
#[test]
fn no_dead_nodes_point_stays() {
    sweep("dead_points", &[(400, 8)], 3, 8, |seed, nodes| Scenario {
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
