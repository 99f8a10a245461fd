//! Certificates near their end: publishers renew those of the members that run, and a worker cannot
//! renew its own.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustbalance::clock::unix_now;
use rustbalance::control::MemberStatus;
use rustbalance::join::{Joined, found, persist_joined};
use rustbalance::keys::{AuthoritySecret, NodeSecret, PointSeed};
use rustbalance::store::{SetupCommand, Store};
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::{MEMBERSHIP_SECONDS, MemberCertificate, RecordKind, Renewal, Role};
use rustbalance_gossip::signed::Verified;

use crate::member::Member;
use crate::test_cluster::{Daemon, TestCluster, until};

const DAY: u64 = 86_400;
/// Time left of a membership that was renewed during a test.
const RENEWED: u64 = MEMBERSHIP_SECONDS - DAY;

/// A worker whose certificate ends at `expires`, in seconds since the Unix epoch. It knows what
/// `joined` knows.
fn worker(name: &str, expires: u64, joined: &mut Joined, authority: &AuthoritySecret, dir: PathBuf) -> Store {
    let mut draft = Store::create(&dir.join(name)).unwrap();
    draft.begin(SetupCommand::Join, joined.member.certificate.cluster).unwrap();
    let node = draft.node_secret(|| NodeSecret::generate(&mut rand::rng())).unwrap().node_id();
    let issued = expires - MEMBERSHIP_SECONDS;
    let certificate =
        MemberCertificate { node, issued, expires, invitation: None, ..(*joined.member.certificate).clone() };
    joined.member.certificate = Verified::sign(certificate, authority).unwrap();
    joined.points = PointSeed::derive(authority, node);
    persist_joined(draft, joined).unwrap()
}

async fn known(by: &Daemon, node: NodeId) -> Result<MemberStatus> {
    let members = by.status().await?.members;
    let known = members.into_iter().find(|member| member.node == node.to_string());
    known.with_context(|| format!("{} does not know it", by.name))
}

async fn is_renewed(by: &Daemon, node: NodeId) -> Result<()> {
    let left = known(by, node).await?.membership_left_seconds;
    ensure!(left > RENEWED, "{} sees {left} s left", by.name);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memberships_are_renewed_while_a_publisher_runs_and_a_worker_cannot_renew_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (alpha_dir, workers) = (folder.path().join("alpha"), folder.path().to_owned());
    let founded = unix_now() - 20 * DAY;
    let store = found(Store::create(&alpha_dir).unwrap(), None, founded, &mut rand::rng()).unwrap();
    let (cluster, alpha) = (store.cluster(), store.node_id());
    let authority = store.authority_secret().unwrap().unwrap();
    drop(store);
    let mut test_cluster = TestCluster::without_nodes(cluster, folder);
    test_cluster.add("alpha", alpha, alpha_dir).await;
    until("alpha renews its own membership", async || is_renewed(test_cluster.named("alpha"), alpha).await).await;

    let token = test_cluster.invite(Role::Worker, 1).await;
    let key = NodeSecret::generate(&mut rand::rng());
    let mut joined = until("a node joins", async || test_cluster.redeem(&token, &key).await).await;
    let now = unix_now();
    let near_end = worker("delta", now + 5 * DAY, &mut joined, &authority, workers.clone());
    let (delta, delta_dir) = (near_end.node_id(), near_end.dir().to_owned());
    drop(near_end);
    test_cluster.add("delta", delta, delta_dir.clone()).await;
    until("both nodes see that the worker is renewed", async || {
        for daemon in test_cluster.running() {
            is_renewed(daemon, delta).await?;
            let problems = daemon.status().await?.problems;
            let about_it = problems.iter().find(|problem| problem.text.contains("membership"));
            ensure!(about_it.is_none(), "{}: {about_it:?}", daemon.name);
        }
        Ok(())
    })
    .await;
    until("delta has it on disk", async || {
        let bytes = std::fs::metadata(delta_dir.join("facts"))?.len();
        ensure!(bytes > 400, "{bytes} bytes of facts");
        Ok(())
    })
    .await;
    test_cluster.named_mut("delta").kill().await;
    let store = Store::open(&delta_dir).unwrap();
    assert!(store.newest_membership().unwrap().certificate.left(now) > RENEWED);
    assert!(store.membership().certificate.left(now) <= 5 * DAY, "the first certificate stays as it was");
    drop(store);
    let net = test_cluster.net.clone();
    test_cluster.named_mut("delta").run(&net);
    until("delta runs on", async || is_renewed(test_cluster.named("delta"), delta).await).await;

    // Away for longer than the certificate lasts.
    let away = worker("epsilon", now - 10, &mut joined, &authority, workers.clone());
    let (epsilon, dir) = (away.node_id(), away.dir().to_owned());
    drop(away);
    test_cluster.add("epsilon", epsilon, dir).await;
    let ended = test_cluster.named_mut("epsilon").end().await;
    assert!(ended.is_permanent() && ended.to_string().contains("join again"), "{ended}");

    // A worker makes a certificate and signs the renewal itself.
    let hostile = worker("mallory", now + 6 * DAY, &mut joined, &authority, workers);
    let mallory = Member::of(&test_cluster, hostile);
    let (id, node_key) = (mallory.id(), mallory.store.node_secret().unwrap());
    let longer = mallory.store.membership().certificate.renewed(now + 365 * DAY);
    let forged = Verified::sign(Renewal::of(&Verified::sign(longer, &node_key).unwrap()), &node_key).unwrap();
    let mut raw_links = mallory.open(&test_cluster, 1).await;
    let raw_gossip = mallory.speak(&test_cluster, &mut raw_links).await;
    raw_gossip.announce(RecordKind::Renewal(id), &forged.to_bytes().unwrap());
    test_cluster.counts("record_authority", 2).await;
    for daemon in test_cluster.running() {
        let left = known(daemon, id).await.unwrap().membership_left_seconds;
        assert!(left < 7 * DAY, "{} sees {left} s left: no sign of life came, so nothing is renewed", daemon.name);
    }
}
