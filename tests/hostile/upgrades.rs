//! This release takes over state directories of an earlier release.

use std::fs;

use rustbalance::store::{Store, VERSION};
use rustbalance_gossip::record::PeriodId;

use crate::fixtures;
use crate::test_cluster::TestCluster;

/// The state that a store must not lose: the term, the revisions, and the nonces of the
/// introduction points.
type StoredState = (u64, Vec<(PeriodId, u64)>, Vec<[u8; 16]>);

fn kept(store: &Store) -> StoredState {
    let service = store.cluster().first_service();
    let points = store.intro_points(service).unwrap().iter().map(|point| point.nonce.0.0).collect();
    (store.term().unwrap(), store.revisions(service).unwrap(), points)
}

/// Fails if a value of `before` is lost.
fn nothing_is_lost(before: &StoredState, after: &StoredState) {
    assert!(after.0 >= before.0, "{before:?} {after:?}");
    for (period, revision) in &before.1 {
        let after = after.1.iter().find(|(known, _)| known == period).map(|(_, revision)| *revision);
        assert!(after >= Some(*revision), "{before:?} {after:?}");
    }
    // A node keeps a point until the end of its lifetime, which is centuries away in the fixture.
    let live = before.2.iter().take(2);
    assert!(live.clone().all(|nonce| after.2.contains(nonce)), "{before:?} {after:?}");
}

/// The state directories of a publisher and a worker were written by version 1;
/// `tests/fixtures/state-v1` says how.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_version_1_is_migrated_starts_serves_and_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = [("alpha", "publisher"), ("gamma", "worker")];
    let [alpha, gamma] = nodes.map(|(name, fixture)| {
        let dir = folder.path().join(name);
        fixtures::copy(&fixtures::of_version_1(fixture), &dir);
        assert!(!dir.join("version").exists());
        let again = folder.path().join(format!("{name}-opened"));
        fixtures::copy(&fixtures::of_version_1(fixture), &again);
        let store = Store::open(&again).unwrap();
        (dir, store.node_id(), store.cluster(), kept(&store))
    });
    let mut test_cluster = TestCluster::without_nodes(alpha.2, folder);
    test_cluster.add("alpha", alpha.1, alpha.0.clone()).await;
    test_cluster.add("gamma", gamma.1, gamma.0.clone()).await;
    test_cluster.healthy().await;
    let net = test_cluster.net.clone();
    for daemon in &mut test_cluster.daemons {
        daemon.stop().await;
        daemon.run(&net);
    }
    test_cluster.healthy().await;
    for daemon in &mut test_cluster.daemons {
        daemon.stop().await;
    }
    for (dir, node, cluster, before) in [alpha, gamma] {
        let store = Store::open(&dir).unwrap();
        assert_eq!((store.node_id(), store.cluster()), (node, cluster));
        nothing_is_lost(&before, &kept(&store));
        let version = fs::read_to_string(dir.join("version")).unwrap();
        assert!(version.lines().nth(1).unwrap().starts_with(&format!("{VERSION} ")), "{version}");
    }
}
