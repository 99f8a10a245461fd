//! A cluster that serves two services: one publisher publishes both, with separate revisions; a
//! node that joins receives both; a dead node is removed from both; and the next publisher takes
//! over both.

use std::collections::BTreeSet;
use std::time::SystemTime;

use anyhow::{Result, ensure};
use rustbalance::clock::unix_now;
use rustbalance::join::found_with;
use rustbalance::keys::IdentitySecret;
use rustbalance::store::Store;
use rustbalance::tor::{descriptor, subprotocols};
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::Role;

use crate::test_cluster::{TestCluster, until};

/// The session keys of a service's published introduction points, and its revision. Fails unless
/// all directories of the current period hold the same, and offer what every node grants.
fn published(test_cluster: &TestCluster, service: ServiceId) -> Result<(BTreeSet<String>, u64)> {
    let period = test_cluster.net.periods()[0];
    let mut all = BTreeSet::new();
    for directory in test_cluster.net.directories(service, period) {
        let held = test_cluster.net.held(&directory, service, period);
        let text = held.ok_or_else(|| anyhow::anyhow!("{} has no descriptor", directory.relay))?;
        let content = descriptor::read(&text, service, period, SystemTime::now())?;
        ensure!(content.subprotocols == subprotocols::granted(), "it offers {:?}", content.subprotocols);
        let keys: BTreeSet<_> =
            content.points.iter().map(|point| data_encoding::HEXLOWER.encode(&point.session_key.0)).collect();
        all.insert((keys, content.revision));
    }
    ensure!(all.len() == 1, "the directories differ: {all:?}");
    all.pop_first().ok_or_else(|| anyhow::anyhow!("there is no directory"))
}

/// Waits until all these nodes have served clients of both services.
async fn both_served_by(test_cluster: &TestCluster, names: &[&str]) {
    for service in [test_cluster.service(), test_cluster.further.unwrap()] {
        let mut seen = BTreeSet::new();
        until(&format!("{names:?} serve {service}"), async || {
            seen.insert(test_cluster.visit_service(service).await?);
            let missing: Vec<_> = names.iter().filter(|name| !seen.contains(**name)).collect();
            ensure!(missing.is_empty(), "{missing:?} have not served a client yet");
            Ok(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cluster_serves_two_addresses() {
    let second = IdentitySecret::generate(&mut rand::rng());
    let services = |test_cluster: &TestCluster| [test_cluster.service(), test_cluster.further.unwrap()];
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("alpha");
    let draft = Store::create(&dir).unwrap();
    let alpha = found_with(draft, None, std::slice::from_ref(&second), unix_now(), &mut rand::rng()).unwrap();
    let (cluster, id) = (alpha.cluster(), alpha.node_id());
    drop(alpha);
    let mut test_cluster = TestCluster::without_nodes(cluster, folder);
    test_cluster.further = Some(second.service_id());
    test_cluster.add("alpha", id, dir).await;
    both_served_by(&test_cluster, &["alpha"]).await;

    // A node that joins receives both services, and a publisher their keys.
    for (name, role) in [("beta", Role::Publisher), ("gamma", Role::Worker)] {
        let token = test_cluster.invite(role, 1).await;
        let store = test_cluster.join(name, &token).await;
        assert_eq!(store.services().unwrap(), services(&test_cluster));
        for service in services(&test_cluster) {
            assert_eq!(store.identity_secret(service).unwrap().is_some(), role == Role::Publisher, "{name}");
        }
        let (id, dir) = (store.node_id(), store.dir().to_owned());
        drop(store);
        test_cluster.add(name, id, dir).await;
    }
    test_cluster.healthy().await;
    both_served_by(&test_cluster, &["alpha", "beta", "gamma"]).await;

    // One node publishes both, with separate revisions.
    let revisions = services(&test_cluster).map(|service| published(&test_cluster, service).unwrap().1);
    assert_ne!(revisions[0], revisions[1]);

    // A dead node is removed from both descriptors.
    let of_gamma: BTreeSet<_> = test_cluster
        .named("gamma")
        .status()
        .await
        .unwrap()
        .intro_points
        .into_iter()
        .map(|point| point.session_key)
        .collect();
    assert_eq!(of_gamma.len(), 2 * 3, "three introduction points for each service");
    test_cluster.named_mut("gamma").kill().await;
    until("gamma is in neither descriptor", async || {
        for service in services(&test_cluster) {
            let (keys, _) = published(&test_cluster, service)?;
            ensure!(!keys.is_empty() && keys.is_disjoint(&of_gamma), "the descriptor of {service} still names gamma");
        }
        Ok(())
    })
    .await;

    // The next publisher takes over both services.
    test_cluster.healthy().await;
    let before = services(&test_cluster).map(|service| published(&test_cluster, service).unwrap().1);
    let (publisher, _) = test_cluster.publisher().await;
    let name = test_cluster.daemons.iter().find(|daemon| daemon.id.to_string() == publisher).unwrap().name.clone();
    let left = if name == "alpha" { "beta" } else { "alpha" };
    test_cluster.named_mut(&name).kill().await;
    until("the other publisher publishes both, with its own points only", async || {
        let own = test_cluster.named(left).status().await?.intro_points.into_iter().map(|point| point.session_key);
        let own: BTreeSet<_> = own.collect();
        for (service, before) in services(&test_cluster).into_iter().zip(before) {
            let (keys, revision) = published(&test_cluster, service)?;
            ensure!(keys.is_subset(&own) && revision > before, "the descriptor of {service} has not changed");
        }
        Ok(())
    })
    .await;
    both_served_by(&test_cluster, &[left]).await;
    test_cluster.named_mut(left).stop().await;

    // On disk, too, each service has its own revisions.
    let store = Store::open(&test_cluster.named(left).dir).unwrap();
    let [first, second] = services(&test_cluster).map(|service| store.revisions(service).unwrap());
    assert!(!first.is_empty() && !second.is_empty() && first != second, "{first:?} {second:?}");
}
