//! A member that misuses its links: it floods, sends nonsense, opens crowds of links, or never
//! reads.

use std::time::Duration;

use anyhow::ensure;
use rustbalance::discovery::Discovery;
use rustbalance::frame;
use rustbalance::keys::AuthoritySecret;
use rustbalance::link::Frame;
use rustbalance::link::handshake::Purpose;
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::record::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::hand::{nonsense, payload, question};
use crate::member::Member;
use crate::test_cluster::{PATIENCE, TestCluster, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_bounded_and_disturbs_no_other_node() {
    let test_cluster = TestCluster::start("[links]\nbytes_per_second = 65536\nbytes_burst = 524288\n").await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let visitors = test_cluster.visitors();
    let syn = question(&mallory.store, test_cluster.daemons[0].id).await;
    let heavy = payload(&Frame::Gossip(VarBytes(vec![0x5a; 60_000])));
    let mut floods = JoinSet::new();
    for daemon in &test_cluster.daemons {
        let stream = mallory.link(daemon.id, Purpose::Mesh).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(stream);
        // It reads all answers, so that its links are not closed because it does not read.
        floods.spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await.map(|_| ()) });
        let (syn, heavy) = (syn.clone(), heavy.clone());
        floods.spawn(async move {
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(5) {
                for message in [&syn, &heavy, &syn] {
                    frame::write(&mut writer, message).await.map_err(std::io::Error::other)?;
                }
            }
            Ok(())
        });
    }
    for _ in &test_cluster.daemons {
        test_cluster.healthy().await;
    }
    floods.shutdown().await;
    for daemon in &test_cluster.daemons {
        assert!(daemon.refused("link_flood").await > 50, "{} counts no flood", daemon.name);
        assert!(daemon.refused("gossip_malformed").await > 0, "{} counts no nonsense", daemon.name);
    }
    test_cluster.healthy().await;
    visitors.all_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_and_truncated_frames_end_one_link() {
    let test_cluster = TestCluster::start(
        "[links]\nsilence_timeout = \"2s\"\nping_interval = \"500ms\"\nhandshake_timeout = \"1s\"\n",
    )
    .await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let visitors = test_cluster.visitors();
    let alpha = test_cluster.named("alpha");
    let links = async || alpha.status().await.unwrap().links.len();
    let before = links().await;
    for bytes in nonsense() {
        // Once after the handshake and once before it. The stream stays open on this side: alpha
        // must close it.
        for mut stream in [mallory.link(alpha.id, Purpose::Mesh).await.unwrap(), mallory.dial(alpha.id).await.unwrap()]
        {
            let _ = stream.write_all(&bytes).await;
            let mut rest = Vec::new();
            let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "after {} bytes alpha keeps the stream open", bytes.len());
            assert!(rest.len() < 4096, "{} bytes were answered with {}", bytes.len(), rest.len());
        }
    }
    for (name, least) in [("link_bad_frame", 5), ("link_malformed", 4), ("link_unfinished", 2)] {
        test_cluster.counts(name, least).await;
    }
    until("the links with the other nodes are the same as before", async || {
        let now = links().await;
        ensure!(now == before, "{now} of {before} links");
        Ok(())
    })
    .await;
    test_cluster.healthy().await;
    visitors.all_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_links_of_one_member_are_one() {
    let test_cluster = TestCluster::start("").await;
    let mallory = std::sync::Arc::new(Member::join(&test_cluster, Role::Worker).await);
    let visitors = test_cluster.visitors();
    let alpha = test_cluster.named("alpha");
    let mut dials = JoinSet::new();
    for _ in 0..1000 {
        let (mallory, to) = (std::sync::Arc::clone(&mallory), alpha.id);
        dials.spawn(async move { mallory.link(to, Purpose::Mesh).await.ok() });
    }
    let mut open = Vec::new();
    while let Some(stream) = dials.join_next().await {
        open.extend(stream.unwrap());
        if open.len() % 8 == 1 {
            let status = alpha.status().await.unwrap();
            let of_it = status.links.iter().filter(|link| link.peer == mallory.id().to_string()).count();
            assert!(of_it <= 1 && status.links.len() <= 3, "{} links, {of_it} with one member", status.links.len());
        }
    }
    assert!((1..=200).contains(&open.len()), "{} of 1000 links were accepted", open.len());
    let counted = alpha.refused("link_over_rate").await + alpha.refused("link_streams_over_limit").await;
    assert!(
        counted + alpha.refused("link_busy").await + 100 > 1000 - open.len() as u64,
        "only {counted} refusals are counted"
    );
    test_cluster.healthy().await;
    visitors.all_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discovery_key_that_a_member_made_itself_is_refused() {
    let test_cluster = TestCluster::start("").await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let visitors = test_cluster.visitors();
    let before = test_cluster.named("alpha").status().await.unwrap().discovery_generation;
    let own = AuthoritySecret::generate(&mut rand::rng());
    let false_key = || Discovery::generate(test_cluster.cluster, 99, &own, &mut rand::rng()).unwrap();
    // A key signed by the attacker's own authority, and the authority's statement with the
    // attacker's secret.
    let mut borrowed = mallory.store.discovery().unwrap().newest().offer();
    borrowed.secret = false_key().secret;
    let offers = [false_key().offer(), borrowed].map(|offer| payload(&Frame::Discovery(offer)));
    for daemon in &test_cluster.daemons {
        let mut stream = mallory.link(daemon.id, Purpose::Mesh).await.unwrap();
        for offer in &offers {
            frame::write(&mut stream, offer).await.unwrap();
        }
        until("both offers are refused", async || {
            let refused = daemon.refused("link_unsigned_key").await;
            ensure!(refused == 2, "{refused} are refused");
            Ok(())
        })
        .await;
        assert_eq!(daemon.status().await.unwrap().discovery_generation, before);
    }
    test_cluster.healthy().await;
    visitors.all_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_pings_is_bounded_as_any_other() {
    let test_cluster = TestCluster::start("[links]\nbytes_per_second = 65536\nbytes_burst = 524288\n").await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let visitors = test_cluster.visitors();
    let alpha = test_cluster.named("alpha");
    let stream = mallory.link(alpha.id, Purpose::Mesh).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let answers = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    for ping in [Frame::Ping(1), Frame::Pong(1)] {
        let before = alpha.refused("link_flood").await;
        let ping = payload(&ping);
        for _ in 0..5000 {
            frame::write(&mut writer, &ping).await.unwrap();
        }
        until("most of the flood is refused", async || {
            let refused = alpha.refused("link_flood").await - before;
            ensure!(refused > 2000, "{refused} messages are refused");
            Ok(())
        })
        .await;
    }
    answers.abort();
    test_cluster.healthy().await;
    visitors.all_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_never_reads_is_disconnected() {
    let test_cluster = TestCluster::start("[links]\nwrite_timeout = \"1s\"\n").await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let visitors = test_cluster.visitors();
    let syn = question(&mallory.store, test_cluster.daemons[0].id).await;
    let ping = payload(&Frame::Ping(1));
    let mut deaf = JoinSet::new();
    for daemon in &test_cluster.daemons {
        let mut stream = mallory.link(daemon.id, Purpose::Mesh).await.unwrap();
        let (syn, ping) = (syn.clone(), ping.clone());
        // It asks for all records and reads no answer.
        deaf.spawn(async move {
            while frame::write(&mut stream, &ping).await.is_ok() && frame::write(&mut stream, &syn).await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
        });
    }
    let ended = async { while deaf.join_next().await.is_some() {} };
    timeout(PATIENCE, ended).await.expect("a member that never reads keeps its links");
    for daemon in &test_cluster.daemons {
        assert!(daemon.refused("link_stuck").await > 0, "{} counts no member that never reads", daemon.name);
    }
    test_cluster.healthy().await;
    visitors.all_served().await;
}
