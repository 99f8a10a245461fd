//! After the faults end there is one publisher, one view and a full descriptor, within sixty seconds.

use rustbalance_gossip::sim::{Scenario, sweep};

/// Everything at once. `./scripts/sim.sh` sweeps this one.
#[test]
fn after_the_faults_all_agree() {
    sweep("convergence", &[1], 3, 7, Scenario::new);
}
