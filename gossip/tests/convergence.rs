//! After the faults end there is one publisher, one view and a full descriptor, within sixty seconds.

use rustbalance_gossip::sim::{Scenario, sweep};

/// Everything at once. `./scripts/sim.sh` sweeps this one first.
///
/// 5389144: a worker waited for ever for a publisher to go above the claim of an evicted node. 8802610: its remedy forgot
/// more than the evicted had claimed.
#[test]
fn after_the_faults_all_agree() {
    sweep("convergence", &[(5_389_144, 3), (8_802_610, 3)], 2, 7, Scenario::new);
}
