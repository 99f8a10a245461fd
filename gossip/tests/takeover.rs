//! On a network without faults another node takes over from a dead publisher within a stated time,
//! and the dead node's points leave the descriptor. One other node stands in at each of these
//! points. When the dead node returns, it serves its points again and does not take back the lease.

use std::time::Duration;

use rustbalance_gossip::sim::{Death, takeover};

/// In clusters of 3, 5 and 8 nodes the publisher ends as `death` says. All others must agree on the
/// next publisher within `limit`.
fn is_followed(death: Death, limit: Duration) {
    for nodes in [3, 5, 8] {
        for seed in 1..=3 {
            let seen = takeover(seed, nodes, 0, death);
            let soon = Duration::from_secs(30);
            let all = |counts: &[usize], are| !counts.is_empty() && counts.iter().all(|count| *count == are);
            let good = seen.as_ref().is_some_and(|seen| {
                let [dead, back] = &seen.stand_ins;
                let in_time = seen.formed <= soon && seen.followed <= limit && seen.returned <= soon;
                in_time && !seen.taken_back && all(dead, 1) && all(back, 0)
            });
            assert!(good, "seed {seed}, {nodes} nodes: {seen:?}");
        }
    }
}

#[test]
fn a_killed_publisher_is_replaced_within_25_seconds() {
    is_followed(Death::Killed, Duration::from_secs(25));
}

#[test]
fn a_frozen_publisher_is_replaced_within_25_seconds() {
    is_followed(Death::Frozen, Duration::from_secs(25));
}

#[test]
fn a_leaving_publisher_is_replaced_within_12_seconds() {
    is_followed(Death::Goodbye, Duration::from_secs(12));
}
