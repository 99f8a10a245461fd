//! A cluster with two services. One publisher publishes complete descriptors of both, with separate
//! revisions, and a dead node leaves both within the stated time.

#![allow(missing_docs, clippy::unwrap_used)]

use rustbalance_gossip::sim::{Scenario, longest_silence, services, sweep};

/// All kinds of faults. Some nodes serve only one of the services and still publish both.
#[test]
fn both_services_are_whole_after_the_faults() {
    sweep("two_services", &[(700, 6)], 4, 6, |seed, nodes| Scenario { services: 2, ..Scenario::new(seed, nodes) });
}

#[test]
fn one_publisher_keeps_separate_revisions_and_a_dead_node_leaves_both_services() {
    let mut published_without_serving = false;
    for seed in 1..=6 {
        let seen = services(seed, 6, 2).unwrap();
        assert_eq!(seen.publishers, 1, "seed {seed}");
        assert_eq!(seen.after[0], seen.before[0], "seed {seed}: the first service did not change");
        assert!(seen.after[1] > seen.before[1], "seed {seed}: {seen:?}");
        assert!(seen.gone <= longest_silence(6), "seed {seed}: {:?}", seen.gone);
        published_without_serving |= !seen.publisher_serves_all;
    }
    assert!(published_without_serving, "no publisher published a service that it does not serve");
}
