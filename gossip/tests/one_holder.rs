//! In one term one holder is believed, one that really claimed it, and whoever knows of a better claim does not publish.
//!
//! Two nodes that cannot hear each other may claim the same term: no quorum is asked. What holds is that everybody who
//! hears of both believes the same one, never turns back, and that the other stops publishing when it hears of it.

use rustbalance_gossip::sim::{Scenario, Weights, sweep};

/// The network falls apart and is joined again; members lie.
#[test]
fn a_term_has_one_holder() {
    sweep("one_holder", &[(200, 6)], 3, 6, |seed, nodes| Scenario {
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
