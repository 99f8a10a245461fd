//! Nodes believe only holders that really claimed their term, and a node that knows of a better
//! claim does not publish.
//!
//! Two nodes that cannot hear each other may claim the same term, because there is no quorum. But
//! all nodes that receive both claims believe the same one and never return to the other, and the
//! holder of the other stops publishing when it receives the better one.

use rustbalance_gossip::sim::{Scenario, Weights, sweep};

/// Partitions come and go, and members send forged records.
#[test]
fn a_term_has_one_holder() {
    sweep("one_holder", &[(200, 6)], 6, 6, |seed, nodes| Scenario {
        weights: Weights {
            partition: 8,
            one_way: 8,
            heal: 10,
            freeze: 6,
            sleep: 3,
            crash: 2,
            restart: 4,
            drain: 2,
            forge: 10,
            ..Weights::NONE
        },
        ..Scenario::new(seed, nodes)
    });
}
