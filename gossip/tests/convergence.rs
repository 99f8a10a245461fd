//! Within sixty seconds after the faults end there is one publisher, one view and a complete
//! descriptor.

use rustbalance_gossip::sim::{Scenario, sweep};

/// All kinds of faults. `./scripts/sim.sh` sweeps this test first.
///
/// Seed 5389144: a worker waited for ever for a publisher to exceed the term of an evicted node.
/// Seed 8802610: the first fix for that also forgot terms which no evicted node had claimed.
#[test]
fn all_nodes_agree_after_the_faults() {
    sweep("convergence", &[(5_389_144, 3), (8_802_610, 3)], 12, 7, Scenario::new);
}
