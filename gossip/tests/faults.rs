//! The simulation itself: in an hour every kind of fault strikes, terms are lost on their way to
//! disk, and one seed always gives the same run.

use std::time::Duration;

use rustbalance_gossip::sim::{Fault, Scenario, Weights, run};

fn an_hour(seed: u64) -> Scenario {
    let weights = Weights { crash: 12, restart: 14, slow_disk: 14, ..Weights::default() };
    Scenario { chaos: Duration::from_secs(3600), weights, ..Scenario::new(seed, 6) }
}

#[test]
fn every_fault_strikes() {
    let outcome = run(an_hour(1));
    assert!(outcome.violations.is_empty(), "{:?}", outcome.violations);
    let with_fast_routes =
        run(Scenario { fast: 3, weights: Weights { udp: 10, ..Weights::default() }, ..Scenario::new(1, 3) });
    assert!(with_fast_routes.violations.is_empty(), "{:?}", with_fast_routes.violations);
    let has_struck = |fault: &Fault| [&outcome, &with_fast_routes].iter().any(|run| run.struck.contains_key(fault));
    let idle: Vec<_> = Fault::ALL.into_iter().filter(|fault| !has_struck(fault)).collect();
    assert!(idle.is_empty(), "never struck: {idle:?}");
    assert!(outcome.killed_while_storing > 0, "no process died while it stored a term");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let once = || run(Scenario::new(3, 5));
    let (one, two) = (once(), once());
    assert_eq!((one.traffic, one.log, one.settled), (two.traffic, two.log, two.settled));
}
