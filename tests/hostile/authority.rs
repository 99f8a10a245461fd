//! A hostile publisher certifies a second authority with the service's identity key. No node
//! accepts it, and all nodes store the facts that the first authority signs.

use std::fs;

use anyhow::ensure;
use rustbalance::clock::unix_now;
use rustbalance::control::{Request, Response};
use rustbalance::keys::AuthoritySecret;
use rustbalance::store::Store;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::{AuthorityCertificate, Chain, NodeCard, RecordKind, Revocation, Role};
use rustbalance_gossip::signed::Verified;

use crate::member::Member;
use crate::test_cluster::{TestCluster, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_authority_keeps_no_revocation_off_the_disk() {
    let mut test_cluster = TestCluster::start("").await;
    let mallory = Member::join(&test_cluster, Role::Publisher).await;
    let (cluster, me) = (test_cluster.cluster, mallory.id());
    let master = mallory.store.identity_secret(test_cluster.service()).unwrap().unwrap();
    let second = AuthoritySecret::generate(&mut rand::rng());
    let certified = AuthorityCertificate { cluster, authority: second.authority_id(), issued: unix_now() };
    let own = (*mallory.store.membership().certificate).clone();
    let chain = Chain {
        authority: Verified::sign(certified, &master).unwrap().unverified(),
        member: Verified::sign(own, &second).unwrap().unverified(),
    };
    let stranger = NodeId::from_public_key([9; 32]);
    let revocation = Revocation { cluster, node: stranger, revoked: 7 };
    let empty = fs::metadata(test_cluster.named("gamma").dir().join("revocations")).unwrap().len();

    let mut raw_links = mallory.open(&test_cluster, 1).await;
    let raw_gossip = mallory.speak(&test_cluster, &mut raw_links).await;
    raw_gossip.announce(RecordKind::Card, &mallory.sign(NodeCard { chain, ..mallory.card(me, (1 << 32) + 1) }));
    raw_gossip
        .announce(RecordKind::Revocation(stranger), &Verified::sign(revocation, &second).unwrap().to_bytes().unwrap());
    test_cluster.counts("record_authority", 6).await;
    // If the forged revocation were accepted, every later list of revocations would contain it and
    // could not be stored.
    let evict = Request::Evict { node: me.to_string().parse().unwrap() };
    let answer = test_cluster.named("alpha").call(evict).await.unwrap();
    assert!(matches!(answer, Response::Done { .. }), "{answer:?}");
    for name in ["beta", "gamma"] {
        let file = test_cluster.named(name).dir().join("revocations");
        until("the other nodes have stored the eviction", async || {
            let size = fs::metadata(&file)?.len();
            ensure!(size > empty, "{name}'s list still has {size} bytes");
            Ok(())
        })
        .await;
    }
    test_cluster.named_mut("gamma").kill().await;
    let stored = Store::open(test_cluster.named("gamma").dir()).unwrap().revocations().unwrap();
    assert_eq!(stored.iter().map(|revocation| revocation.node).collect::<Vec<_>>(), [me]);
    let net = test_cluster.net.clone();
    test_cluster.named_mut("gamma").run(&net);
    test_cluster.healthy().await;
}
