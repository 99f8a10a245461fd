//! What nodes report of themselves: names and problems, which every node shows. A hostile member
//! reports what it wants.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use rustbalance::control::{MemberStatus, ProblemKind, Request, Response};
use rustbalance::proxy::Target;
use rustbalance_gossip::id::{ClusterId, NodeId};
use rustbalance_gossip::record::{NodeReport, RecordKind, Role};
use rustbalance_gossip::signed::Statement;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::member::Member;
use crate::schema::misfits;
use crate::test_cluster::{Daemon, TestCluster, until};

/// A report whose texts were not checked.
#[derive(Clone, Serialize, Deserialize)]
struct RawReport {
    cluster: ClusterId,
    node: NodeId,
    seq: u64,
    name: Option<String>,
    problems: Vec<String>,
}

impl Statement for RawReport {
    const CONTEXT: &'static str = NodeReport::CONTEXT;
    const MAX_SIZE: usize = 16_384;
}

async fn known(by: &Daemon, node: NodeId) -> Result<MemberStatus> {
    let members = by.status().await?.members;
    members.into_iter().find(|member| member.node == node.to_string()).ok_or_else(|| anyhow::anyhow!("not known"))
}

/// Waits until every running daemon shows, or no longer shows, a problem of this kind of the node.
async fn shown_everywhere(test_cluster: &TestCluster, kind: ProblemKind, of: &str, shown: bool) {
    let node = test_cluster.named(of).id.to_string();
    until(&format!("{kind:?} of {of} is shown: {shown}"), async || {
        for daemon in test_cluster.running() {
            let problems = daemon.status().await?.problems;
            let about_it = problems.iter().find(|problem| {
                problem.kind == kind && (problem.subject == node || (daemon.name == of && problem.subject.len() < 9))
            });
            ensure!(about_it.is_some() == shown, "{} shows {problems:?}", daemon.name);
            if let Some(problem) = about_it.filter(|_| daemon.name != of) {
                ensure!(problem.text.contains(&format!("{of}-1 (")), "{}", problem.text);
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_problems_of_a_node_show_on_every_node_and_those_of_a_hostile_one_do_no_harm() {
    let test_cluster = TestCluster::start_each(|name| format!("[node]\nname = \"{name}-1\"\n")).await;
    until("every node knows every name", async || {
        for daemon in test_cluster.running() {
            for member in daemon.status().await?.members {
                ensure!(member.name.is_some_and(|name| name.ends_with("-1")), "{} does not", daemon.name);
            }
        }
        Ok(())
    })
    .await;

    test_cluster.named("gamma").call(Request::Drain {}).await.unwrap();
    shown_everywhere(&test_cluster, ProblemKind::Draining, "gamma", true).await;
    test_cluster.named("gamma").call(Request::Resume {}).await.unwrap();
    shown_everywhere(&test_cluster, ProblemKind::Draining, "gamma", false).await;
    // A port that nothing listens on.
    let target = Target::Tcp(SocketAddr::from(([127, 0, 0, 1], 9)));
    test_cluster.named("beta").reconfigure(|config| config.ports[0].target = target);
    shown_everywhere(&test_cluster, ProblemKind::TargetDown, "beta", true).await;

    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let mut raw_links = mallory.open(&test_cluster, 1).await;
    let raw_gossip = mallory.speak(&test_cluster, &mut raw_links).await;
    let (cluster, node) = (test_cluster.cluster, mallory.id());
    let report = |seq: u64, name: &str, problems: &[String]| {
        let seq = (1 << 32) + seq;
        let bytes = mallory.sign(RawReport { cluster, node, seq, name: Some(name.into()), problems: problems.into() });
        raw_gossip.announce(RecordKind::Report, &bytes);
    };
    let refused = |counter: &'static str| {
        let test_cluster = &test_cluster;
        async move { test_cluster.counts(counter, 3).await }
    };
    let heartbeat = |seq: u64| {
        let beat = rustbalance_gossip::record::Heartbeat {
            cluster,
            node,
            seq: (1 << 32) + seq,
            phase: rustbalance_gossip::record::Phase::Active,
            hears: 1,
            unix: rustbalance::clock::unix_now(),
            instance: 7,
        };
        raw_gossip.announce(RecordKind::Heartbeat, &mallory.sign(beat));
    };
    report(10, "\u{1b}]0;owned\u{7}", &[]);
    refused("record_unreadable").await;
    report(11, "mallory", &(10..30).map(|number| format!("code_{number}")).collect::<Vec<_>>());
    refused("record_bounds").await;
    // Alpha's name, and a problem that no version has.
    report(12, "alpha-1", &["zombie_mode".into()]);
    let mut seq = 100;
    until("all show the hostile member's report", async || {
        seq += 1;
        heartbeat(seq);
        for daemon in test_cluster.running() {
            ensure!(known(daemon, node).await?.name.as_deref() == Some("alpha-1"), "{}", daemon.name);
            let problems = daemon.status().await?.problems;
            let unwell = problems.iter().any(|problem| problem.kind == ProblemKind::MemberUnwell);
            ensure!(unwell, "{} shows {problems:?}", daemon.name);
        }
        Ok(())
    })
    .await;
    let shown = test_cluster.named("gamma").shown();
    assert!(shown.contains("zombie_mode") && !shown.contains('\u{1b}'), "{shown}");

    let mut status: Value = serde_json::from_str(&test_cluster.named("alpha").printed(&["--json"])).unwrap();
    assert_eq!(misfits(&status), Vec::<String>::new());
    assert!(status["problems"].as_array().is_some_and(|problems| problems.len() > 1), "{status}");
    status["members"][0]["unheard_of"] = 1.into();
    status["tor"].as_object_mut().unwrap().remove("ready");
    assert_eq!(misfits(&status).len(), 2);

    let evict = async |name: &str| {
        test_cluster.named("beta").call(Request::Evict { node: name.parse().unwrap() }).await.unwrap()
    };
    let ambiguous = evict("alpha-1").await;
    let choices = format!("{ambiguous:?}");
    let starts = [test_cluster.named("alpha").id, node].map(|node| node.to_string()[..16].to_owned());
    assert!(matches!(ambiguous, Response::Refused { .. }) && starts.iter().all(|it| choices.contains(it)), "{choices}");
    report(13, "mallory", &[]);
    until("beta knows the new name", async || {
        ensure!(known(test_cluster.named("beta"), node).await?.name.as_deref() == Some("mallory"));
        Ok(())
    })
    .await;
    let evicted = evict("MALLORY").await;
    assert!(matches!(&evicted, Response::Done { .. }), "{evicted:?}");
}
