//! A hostile worker: it claims the lease, redeems tokens of joins that it only carries, and asks
//! for publishers' secrets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustbalance::clock::unix_now;
use rustbalance::join::{JoinError, JoinRefusal, redeem};
use rustbalance::keys::NodeSecret;
use rustbalance::link::handshake::Purpose;
use rustbalance_gossip::codec;
use rustbalance_gossip::record::{Chain, Lease, MemberCertificate, NodeCard, Publication, RecordKind, Role};
use rustbalance_gossip::signed::Verified;
use tokio::time::sleep;

use crate::door::{carried, replayed};
use crate::member::Member;
use crate::test_cluster::{OWN_TERMS, TestCluster, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_claims_the_lease_in_vain() {
    let test_cluster = TestCluster::start("").await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let before = test_cluster.publisher().await;
    let mut raw_links = mallory.open(&test_cluster, 1).await;
    let raw_gossip = mallory.speak(&test_cluster, &mut raw_links).await;
    let visitors = test_cluster.visitors();
    let (cluster, me, seq) = (test_cluster.cluster, mallory.id(), 1 << 32);
    // A publisher's certificate that the worker has signed itself.
    let own = &mallory.store.membership().certificate;
    let promoted = MemberCertificate { role: Role::Publisher, issued: own.issued + 1, ..(**own).clone() };
    let promoted = Verified::sign(promoted, &mallory.store.node_secret().unwrap()).unwrap();
    let chain = Chain { authority: mallory.store.membership().authority.unverified(), member: promoted.unverified() };
    let lease = Lease { cluster, holder: me, seq, term: before.1 + OWN_TERMS, priority: 0, ttl_ms: 60_000 };
    raw_gossip.announce(RecordKind::Lease, &mallory.sign(lease));
    let (service, term) = (test_cluster.service(), before.1 + OWN_TERMS);
    let publication = Publication { cluster, node: me, seq, service, term, periods: Vec::new() };
    raw_gossip.announce(RecordKind::Publication(service), &mallory.sign(publication));
    test_cluster.counts("record_role", 6).await;
    raw_gossip.announce(RecordKind::Card, &mallory.sign(NodeCard { chain, ..mallory.card(me, seq + 1) }));
    test_cluster.counts("record_chain", 3).await;
    sleep(Duration::from_secs(2)).await;
    test_cluster.healthy().await;
    test_cluster.assert_honest_publisher(&before, me).await;
    for daemon in test_cluster.running() {
        let status = daemon.status().await.unwrap();
        let known = status.members.iter().find(|member| member.node == me.to_string()).unwrap();
        assert_eq!(known.role, Role::Worker, "{}", daemon.name);
    }
    visitors.all_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_cannot_redeem_a_token_that_it_carries() {
    let test_cluster = TestCluster::start("").await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let token = test_cluster.invite(Role::Publisher, 1).await;
    let visitors = test_cluster.visitors();
    let key = NodeSecret::generate(&mut rand::rng());
    // The worker carries a join, keeps the Redeem frame and closes the connection.
    let (capture, joined) =
        until("a join is carried", async || Box::pin(carried(&test_cluster, &token, &key, true)).await).await;
    assert!(joined.is_none());
    // First the captured frame, then the same with the worker's own node id in it.
    let mut stolen: ciborium::Value = codec::decode(&capture.redeem, 4096).unwrap();
    let fields =
        stolen.as_map_mut().and_then(|map| map[0].1.as_map_mut()).context("the frame is not a Redeem").unwrap();
    let node =
        fields.iter_mut().find(|(key, _)| key.as_text() == Some("node")).context("the Redeem has no node").unwrap();
    let id: ciborium::Value = codec::decode(&codec::encode(&mallory.id()).unwrap(), 100).unwrap();
    node.1 = id;
    let stolen = codec::encode(&stolen).unwrap();
    for publisher in ["alpha", "beta"] {
        for redeem in [&capture.redeem, &stolen] {
            let to = test_cluster.named(publisher).id;
            let stream = mallory.link(to, Purpose::CarryJoin).await.unwrap();
            assert_eq!(replayed(stream, &capture.hello, redeem).await.unwrap(), "UnknownToken");
        }
        until("both refusals are counted", async || {
            let refused = test_cluster.named(publisher).refused("join_unknown_token").await;
            ensure!(refused == 2, "{publisher} counts {refused}");
            Ok(())
        })
        .await;
    }
    // The joiner tries again through another node and is admitted.
    let joined = until("the joiner joins", async || test_cluster.redeem(&token, &key).await).await;
    assert_eq!((joined.member.node(), joined.member.role()), (key.node_id(), Role::Publisher));
    test_cluster.healthy().await;
    visitors.all_served().await;
}

/// The files below a folder that contain these bytes.
fn holders(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(holders(&path, bytes));
        } else if kind.is_file() && std::fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes) {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_given_no_secret_of_the_address() {
    let test_cluster = TestCluster::start("").await;
    let own = test_cluster.invite(Role::Worker, 2).await;
    let mallory = Member::of(&test_cluster, test_cluster.join("mallory", &own).await);
    let visitors = test_cluster.visitors();
    let key = mallory.store.node_secret().unwrap();
    let alpha = test_cluster.named("alpha").id;
    // A member may repeat its join, as after a lost answer. It receives the same as before and
    // nothing more.
    let stream = mallory.link(alpha, Purpose::CarryJoin).await.unwrap();
    let again = redeem(stream, &own, &key, test_cluster.cluster, unix_now).await.unwrap();
    assert_eq!(again.member.role(), Role::Worker);
    assert!(again.secrets.is_none(), "a worker was given publishers' secrets");
    // A publisher's token under the same key does not help either: the node is already a member.
    let better = test_cluster.invite(Role::Publisher, 1).await;
    let stream = mallory.link(alpha, Purpose::CarryJoin).await.unwrap();
    let refused = redeem(stream, &better, &key, test_cluster.cluster, unix_now).await.unwrap_err();
    assert!(matches!(refused, JoinError::Refused(JoinRefusal::AlreadyMember)), "{refused}");
    test_cluster.counts("join_already_member", 1).await;
    // No piece of a publisher's keys is in the worker's state directory. The same search finds it
    // in beta's, a publisher's.
    let label = test_cluster.service().to_string().trim_end_matches(".onion").to_owned();
    for name in [&*format!("services/{label}/identity.key"), "authority.key"] {
        let file = std::fs::read(test_cluster.named("alpha").dir().join(name)).unwrap();
        let (_, secret) = file.split_at(file.iter().position(|byte| *byte == b'\n').unwrap() + 1);
        assert!(secret.len() >= 32);
        for piece in secret.chunks(16) {
            assert_eq!(holders(mallory.store.dir(), piece), Vec::<PathBuf>::new(), "these files contain {name}");
            assert!(!holders(test_cluster.named("beta").dir(), piece).is_empty(), "no file of beta contains {name}");
        }
    }
    test_cluster.healthy().await;
    visitors.all_served().await;
}
