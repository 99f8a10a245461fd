//! A member that announces false records: replayed ones, forged ones of other nodes, and absurd
//! values.

use std::time::Duration;

use anyhow::{Context, ensure};
use rustbalance::clock::unix_now;
use rustbalance_gossip::id::{InvitationId, NodeId};
use rustbalance_gossip::lease::TERMS_PER_SECOND;
use rustbalance_gossip::record::{
    Fitness, Heartbeat, IntroPoints, Invitation, Lease, Phase, RecordKind, Revocation, Role,
};
use rustbalance_gossip::signed::Unverified;
use tokio::time::{Instant, sleep};

use crate::member::{Member, RawGossip};
use crate::test_cluster::{OWN_TERMS, TestCluster, until};

/// A start number that no node has used: it is above the hours since the epoch.
const FUTURE: u64 = 1 << 20;

/// Fails if a running daemon takes the dead node for alive or knows it as published within the next
/// four seconds.
async fn stays_dead(test_cluster: &TestCluster, dead: NodeId) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        for daemon in test_cluster.running() {
            let status = daemon.status().await.unwrap();
            let member = status.members.iter().find(|member| member.node == dead.to_string()).unwrap();
            assert!(!member.alive && member.published == 0, "{} takes the dead node for alive", daemon.name);
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until a gossip instance has received at least `least` records of a kind from a node, and
/// returns them.
async fn receives(raw_gossip: &RawGossip, origin: NodeId, kind: RecordKind, least: usize) -> Vec<Vec<u8>> {
    until("the hostile member receives the records", async || {
        let heard = raw_gossip.heard(origin, kind);
        ensure!(heard.len() >= least, "{} records of {kind:?}", heard.len());
        Ok(heard)
    })
    .await
}

/// The generation of a node's gossip, computed from a heartbeat: its start number, and some bits of
/// its instance number.
async fn generation_of(raw_gossip: &RawGossip, node: NodeId) -> u64 {
    let beats = receives(raw_gossip, node, RecordKind::Heartbeat, 1).await;
    let beat = Unverified::<Heartbeat>::from_bytes(&beats[0]).unwrap().verify(node.public_key()).unwrap();
    beat.seq >> 32 << 16 | beat.instance & 0xffff
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_records_do_not_keep_the_dead_alive() {
    let mut test_cluster = TestCluster::start("").await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let beta = test_cluster.named("beta").id;
    let mut raw_links = mallory.open(&test_cluster, 2).await;
    let own = mallory.speak(&test_cluster, &mut raw_links).await;
    let beats = receives(&own, beta, RecordKind::Heartbeat, 5).await;
    let kind = RecordKind::IntroPoints(test_cluster.service());
    let points = receives(&own, beta, kind, 1).await;
    let visitors = test_cluster.visitors();
    test_cluster.named_mut("beta").kill().await;
    // Beta's old records, repeated without end in an incarnation that beta never had.
    let liar = raw_links.speak(&test_cluster, beta, FUTURE << 16).await;
    liar.announce(kind, &points[0]);
    let replay = async {
        for beat in beats.iter().cycle() {
            liar.announce(RecordKind::Heartbeat, beat);
            sleep(Duration::from_millis(100)).await;
        }
    };
    let judged = async {
        test_cluster.healthy().await;
        stays_dead(&test_cluster, beta).await;
        test_cluster.counts("record_stale", 5).await;
    };
    tokio::select! { () = replay => {}, () = judged => {} }
    let seen = visitors.end().await;
    assert!(seen.failures.len() <= 1, "more visits have failed than beta's death explains: {seen:?}");
    // The restarted beta is heard in spite of the replays.
    let net = test_cluster.net.clone();
    test_cluster.named_mut("beta").run(&net);
    test_cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_records_of_other_nodes_are_refused_by_every_node() {
    let test_cluster = TestCluster::start("").await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let (alpha, gamma) = (test_cluster.named("alpha").id, test_cluster.named("gamma").id);
    let before = test_cluster.publisher().await;
    let mut raw_links = mallory.open(&test_cluster, 2).await;
    let visitors = test_cluster.visitors();
    let cluster = test_cluster.cluster;
    let seq = FUTURE << 32;
    let mut liars = Vec::new();
    for victim in [alpha, gamma] {
        let liar = raw_links.speak(&test_cluster, victim, FUTURE << 16).await;
        let gone =
            Heartbeat { cluster, node: victim, seq, phase: Phase::Gone, hears: 0, unix: unix_now(), instance: 1 };
        let (service, fitness) = (test_cluster.service(), Fitness::Down);
        let points = IntroPoints {
            cluster,
            node: victim,
            seq,
            service,
            fitness,
            points: Vec::new(),
            nonces: Vec::new(),
            subprotocols: Vec::new(),
        };
        let lease = Lease { cluster, holder: victim, seq, term: before.1 + OWN_TERMS, priority: 0, ttl_ms: 60_000 };
        let card = mallory.card(victim, seq);
        let revocation = Revocation { cluster, node: alpha, revoked: 7 };
        let token = InvitationId::from_public_key([7; 32]);
        let invitation = Invitation {
            cluster,
            token,
            role: Role::Publisher,
            uses: 9,
            issued: 7,
            expires: u64::MAX,
            redeemed: [mallory.id()].into(),
            revoked: false,
        };
        // Some are signed with the attacker's key, some name the victim as the signer with a false
        // signature.
        liar.announce(RecordKind::Heartbeat, &mallory.forge(gone, *victim.public_key()));
        liar.announce(RecordKind::IntroPoints(service), &mallory.sign(points));
        liar.announce(RecordKind::Lease, &mallory.forge(lease, *victim.public_key()));
        liar.announce(RecordKind::Card, &mallory.sign(card));
        liar.announce(RecordKind::Revocation(alpha), &mallory.sign(revocation));
        liar.announce(RecordKind::Invitation(token), &mallory.sign(invitation));
        for name in ["record_signature", "record_origin", "record_authority"] {
            test_cluster.counts(name, 2).await;
        }
        liars.push(liar);
    }
    sleep(Duration::from_secs(2)).await;
    test_cluster.healthy().await;
    test_cluster.assert_honest_publisher(&before, mallory.id()).await;
    for daemon in test_cluster.running() {
        let status = daemon.status().await.unwrap();
        assert!(status.invitations.iter().all(|invitation| invitation.uses == 1), "{}", daemon.name);
        assert!(status.members.iter().all(|member| member.weight != Some(100)), "{}", daemon.name);
        assert!(status.members.len() <= 4, "{}", daemon.name);
    }
    // The operator sees the refusals.
    let shown = test_cluster.named("alpha").shown();
    assert!(shown.contains("Refused") && shown.contains("record_signature"), "{shown}");
    visitors.all_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spoofed_heartbeats_neither_keep_dead_nodes_alive_nor_silence_living_ones() {
    let mut test_cluster = TestCluster::start("").await;
    let mallory = Member::join(&test_cluster, Role::Worker).await;
    let (beta, gamma) = (test_cluster.named("beta").id, test_cluster.named("gamma").id);
    let mut raw_links = mallory.open(&test_cluster, 3).await;
    let own = mallory.speak(&test_cluster, &mut raw_links).await;
    let (of_beta, of_gamma) = (generation_of(&own, beta).await, generation_of(&own, gamma).await);
    let visitors = test_cluster.visitors();
    test_cluster.named_mut("beta").kill().await;
    // To chitchat, beta's own incarnation continues.
    let _dead = raw_links.speak(&test_cluster, beta, of_beta).await;
    test_cluster.healthy().await;
    stays_dead(&test_cluster, beta).await;
    // Spoofed versions for gamma: a node that believes them receives nothing from gamma until gamma
    // starts a new incarnation.
    let living = raw_links.speak(&test_cluster, gamma, of_gamma).await;
    let mut version = 0_u32;
    until("gamma detects the spoofed versions", async || {
        // Gamma's own versions rise meanwhile. On a busy machine, few values are sent in a second,
        // so each time there are many at once.
        for subject in 0..100 {
            let kind = RecordKind::Revocation(NodeId::from_public_key([subject; 32]));
            living.announce(kind, &version.to_be_bytes());
        }
        version += 1;
        let (lies, restarts) = (
            test_cluster.named("gamma").refused("gossip_spoofed").await,
            test_cluster.named("gamma").refused("gossip_restarts").await,
        );
        ensure!(lies > 0 && restarts > 0, "{lies} spoofed versions, {restarts} restarts");
        Ok(())
    })
    .await;
    drop(living);
    test_cluster.healthy().await;
    let seen = visitors.end().await;
    assert!(seen.failures.len() <= 1, "more visits have failed than beta's death explains: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_terms_are_claimed_in_vain() {
    let mut test_cluster = TestCluster::start("").await;
    // The attacker is a publisher, whose leases count.
    let mallory = Member::join(&test_cluster, Role::Publisher).await;
    let before = test_cluster.publisher().await;
    let mut raw_links = mallory.open(&test_cluster, 1).await;
    let raw_gossip = mallory.speak(&test_cluster, &mut raw_links).await;
    let visitors = test_cluster.visitors();
    let (cluster, me) = (test_cluster.cluster, mallory.id());
    let hour = 3600 * TERMS_PER_SECOND;
    let terms = [u64::MAX, u64::MAX / 2, unix_now() * TERMS_PER_SECOND + hour, (1 << 60) - 1];
    for (seq, term) in ((1 << 32) + 1..).zip(terms) {
        let lease = Lease { cluster, holder: me, seq, term, priority: 0, ttl_ms: u32::MAX };
        raw_gossip.announce(RecordKind::Lease, &mallory.sign(lease));
        sleep(Duration::from_millis(700)).await;
    }
    let absurd =
        Heartbeat { cluster, node: me, seq: u64::MAX, phase: Phase::Active, hears: 3, unix: unix_now(), instance: 1 };
    raw_gossip.announce(RecordKind::Heartbeat, &mallory.sign(absurd));
    test_cluster.counts("record_jump", 6).await;
    test_cluster.healthy().await;
    test_cluster.assert_honest_publisher(&before, mallory.id()).await;
    // The next publisher takes the next term, not one of those.
    let before = test_cluster.publisher().await;
    let publisher =
        test_cluster.running().find(|daemon| daemon.id.to_string() == before.0).context("no publisher runs").unwrap();
    let name = publisher.name.clone();
    test_cluster.named_mut(&name).kill().await;
    test_cluster.healthy().await;
    test_cluster.assert_honest_publisher(&before, mallory.id()).await;
    assert!(test_cluster.publisher().await.1 > before.1, "the term has not risen after the publisher's death");
    let seen = visitors.end().await;
    assert!(seen.failures.len() <= 1, "more visits have failed than the publisher's death explains: {seen:?}");
    // Twice the highest term that is still accepted: the publisher claims a higher one, and a node
    // that was offline accepts it.
    for seq in [(1 << 32) + 10, (1 << 32) + 11] {
        let term = unix_now() * TERMS_PER_SECOND;
        let lease = Lease { cluster, holder: me, seq, term, priority: 0, ttl_ms: 0 };
        raw_gossip.announce(RecordKind::Lease, &mallory.sign(lease));
        until("the publisher claims a higher term", async || {
            let status = test_cluster.running().next().context("no daemon runs")?.status().await?;
            let highest = status.publisher.map_or(0, |publisher| publisher.term);
            ensure!(highest > term, "it publishes in term {highest}");
            Ok(())
        })
        .await;
    }
    let net = test_cluster.net.clone();
    test_cluster.named_mut(&name).run(&net);
    test_cluster.healthy().await;
}
