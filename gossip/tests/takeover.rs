//! On a network that behaves, a dead publisher is followed within a stated time, its points leave the descriptor and each
//! is served by one other, and when it comes back it has its points again and does not take the lease back.

use std::time::Duration;

use rustbalance_gossip::sim::{Death, takeover};

/// Has the publisher of clusters of these sizes end so; all must agree on the next within `limit`.
fn is_followed(death: Death, limit: Duration) {
    for nodes in [3, 5, 8] {
        for seed in 1..=3 {
            let seen = takeover(seed, nodes, death);
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
fn a_killed_publisher_is_followed_within_25_seconds() {
    is_followed(Death::Killed, Duration::from_secs(25));
}

#[test]
fn a_frozen_publisher_is_followed_within_25_seconds() {
    is_followed(Death::Frozen, Duration::from_secs(25));
}

#[test]
fn a_goodbye_is_followed_within_12_seconds() {
    is_followed(Death::Goodbye, Duration::from_secs(12));
}
