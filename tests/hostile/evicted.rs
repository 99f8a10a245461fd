//! An evicted member tries to come back: over links, with its old key and a new token, and as a
//! whole daemon.

use anyhow::{bail, ensure};
use rustbalance::control::{Request, Response};
use rustbalance::join::{JoinError, JoinRefusal};
use rustbalance::link::handshake::Purpose;
use rustbalance::node::NodeError;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::Role;

use crate::member::{Member, is_revoked};
use crate::test_cluster::{TestCluster, until};

pub(crate) async fn evict(test_cluster: &TestCluster, node: NodeId) {
    let prefix = node.to_string().trim_end_matches(".onion").parse().unwrap();
    let answer = test_cluster.named("alpha").call(Request::Evict { node: prefix }).await.unwrap();
    assert!(matches!(answer, Response::Done { .. }), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_member_is_kept_out_for_good() {
    let mut test_cluster = TestCluster::start("").await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let id = mallory.id();
    let mut raw_links = mallory.open(&test_cluster, 1).await;
    let raw_gossip = mallory.speak(&test_cluster, &mut raw_links).await;
    until("every node knows the member", async || {
        for daemon in test_cluster.running() {
            let known = daemon.status().await?.members;
            ensure!(known.iter().any(|member| member.node == id.to_string()), "{} does not know it", daemon.name);
        }
        Ok(())
    })
    .await;
    let visitors = test_cluster.visitors();
    evict(&test_cluster, id).await;
    until("all links of the evicted member are closed", async || {
        for daemon in test_cluster.running() {
            let status = daemon.status().await?;
            ensure!(status.links.iter().all(|link| link.peer != id.to_string()), "{} has a link with it", daemon.name);
            ensure!(status.members.iter().all(|member| member.node != id.to_string()), "{} lists it", daemon.name);
        }
        Ok(())
    })
    .await;
    drop((raw_gossip, raw_links));
    // The nodes' descriptors may be unreadable for it by now. If it connects, the link must be
    // refused.
    let knocks = async |test_cluster: &TestCluster| {
        for daemon in test_cluster.running() {
            for purpose in [Purpose::Mesh, Purpose::CarryJoin] {
                let Err(error) = mallory.link(daemon.id, purpose).await else {
                    panic!("{} has accepted its link", daemon.name)
                };
                if is_revoked(&error) {
                    assert!(daemon.refused("link_revoked").await > 0, "{} does not count it", daemon.name);
                }
            }
        }
    };
    knocks(&test_cluster).await;
    // It joins with a new token and its old key.
    let token = test_cluster.invite(Role::Worker, 1).await;
    let key = mallory.store.node_secret().unwrap();
    let refused = until("its join is answered", async || match test_cluster.redeem(&token, &key).await {
        Ok(_) => panic!("the evicted node has joined again"),
        Err(error) => match error.downcast::<JoinError>()? {
            JoinError::Refused(refusal) if !refusal.is_transient() => Ok(refusal),
            other => bail!("{other}"),
        },
    })
    .await;
    assert_eq!(refused, JoinRefusal::Evicted);
    test_cluster.counts("join_evicted", 1).await;
    test_cluster.healthy().await;
    // A restarted node still refuses it.
    let net = test_cluster.net.clone();
    for name in ["alpha", "beta"] {
        test_cluster.named_mut(name).kill().await;
        test_cluster.named_mut(name).run(&net);
        test_cluster.healthy().await;
    }
    knocks(&test_cluster).await;
    let seen = visitors.end().await;
    assert!(seen.failures.len() <= 2, "more visits have failed than the dead nodes explain: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_daemon_stops_and_does_not_come_back() {
    let mut test_cluster = TestCluster::start("").await;
    let visitors = test_cluster.visitors();
    evict(&test_cluster, test_cluster.named("gamma").id).await;
    let why = test_cluster.named_mut("gamma").end().await;
    assert!(matches!(&why, NodeError::Excluded(why) if why.contains("evicted")), "{why}");
    test_cluster.healthy().await;
    // A restarted node may not have the revocation yet; then it receives it from its peers.
    let net = test_cluster.net.clone();
    test_cluster.named_mut("gamma").run(&net);
    let why = test_cluster.named_mut("gamma").end().await;
    assert!(matches!(&why, NodeError::Excluded(why) if why.contains("evicted")), "{why}");
    test_cluster.healthy().await;
    let served = test_cluster.visitors();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert!(!served.end().await.by.contains_key("gamma"));
    let seen = visitors.end().await;
    assert!(seen.failures.len() <= 1, "more visits have failed than gamma's end explains: {seen:?}");
}
