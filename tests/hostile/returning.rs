//! An evicted worker that is the first to meet a publisher which was away, and has it believe that it has heard everything.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustbalance::clock::unix_now;
use rustbalance::frame::{self, MAX};
use rustbalance::link::handshake::Purpose;
use rustbalance::tor::{BoxStream, Engine, IntroPointKeys, IntroRequest, RelayChoice, ReplayLog, ServiceLimits};
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::{Heartbeat, IntroPoints, Phase, RecordKind, Role};
use tokio::io::AsyncRead;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::evicted::evict;
use crate::member::Member;
use crate::town::{Town, until};
use crate::wire::{self, Known};

/// Versions that a node reaches in the time that the test waits.
const AHEAD: u64 = 45;
/// From the first link with an honest publisher until an evicted node is out of a view and of every directory.
const OUT: Duration = Duration::from_secs(60);
/// The gossip of the evicted worker after its return.
const GENERATION: u64 = 7 << 32;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_worker_does_not_stay_a_member_of_a_publisher_that_was_away() {
    let mut town = Town::start("").await;
    let mallory = Member::join(&town, Role::Worker).await;
    let id = mallory.id();
    let mut mouth = mallory.open(&town, 1).await;
    let voice = mallory.speak(&town, &mut mouth).await;
    until("every node knows it", async || {
        for daemon in town.running() {
            ensure!(lists(daemon.status().await?.members, id), "{} does not", daemon.name);
        }
        Ok(())
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    drop((voice, mouth));
    town.named_mut("beta").kill().await;
    let claims = claims(&town, &mallory).await;
    evict_and_change_the_key_twice(&town, id).await;
    assert!(mallory.link(town.named("alpha").id, Purpose::Mesh).await.is_err(), "alpha lets it in");
    // Versions rise beyond what it is about to claim: so that claim is no lie that alpha and gamma could notice.
    sleep(Duration::from_secs(15)).await;

    let net = town.net.clone();
    town.named_mut("beta").run(&net);
    for name in ["alpha", "gamma"] {
        town.net.sever(&town.named("beta").engine, &town.named(name).engine);
    }
    let beta = town.named("beta").id;
    let stream = until("beta lets it in", async || mallory.link(beta, Purpose::Mesh).await).await;
    let talk = talk(&town, &mallory, stream, claims).await;
    sleep(Duration::from_secs(10)).await;
    assert!(lists(town.named("beta").status().await.unwrap().members, id), "beta takes it for a member");

    town.net.heal();
    let alpha = town.named("alpha").id.to_string();
    until("beta has a link with alpha", async || {
        let links = town.named("beta").status().await?.links;
        ensure!(links.iter().any(|link| link.peer == alpha), "{} links", links.len());
        Ok(())
    })
    .await;
    let linked = Instant::now();
    until("beta has put it out", async || {
        let status = town.named("beta").status().await?;
        ensure!(!lists(status.members, id), "it lists it");
        ensure!(status.links.iter().all(|link| link.peer != id.to_string()), "it has a link with it");
        Ok(())
    })
    .await;
    town.healthy().await;
    assert!(linked.elapsed() < OUT, "{:?}", linked.elapsed());
    assert_eq!(town.named("beta").status().await.unwrap().isolated, None);
    // Beta changes keys and publishes like any other from here on.
    town.named_mut("alpha").kill().await;
    town.healthy().await;
    let published = town.named("beta").status().await.unwrap().publication.unwrap().intro_points;
    let nodes: BTreeSet<_> = published.into_iter().map(|point| point.node).collect();
    assert!(!nodes.contains(&id.to_string()), "{nodes:?}");
    talk.abort();
}

fn lists(members: Vec<rustbalance::control::MemberStatus>, node: NodeId) -> bool {
    members.iter().any(|member| member.node == node.to_string())
}

/// What it will tell beta that the others have said: a little more than they have by now.
async fn claims(town: &Town, mallory: &Member) -> Vec<Known> {
    let mut claims = Vec::new();
    for name in ["alpha", "gamma"] {
        let node = town.named(name).id;
        let mut stream = mallory.link(node, Purpose::Mesh).await.unwrap();
        let own = Known { node: mallory.id(), generation: GENERATION, version: 0 };
        wire::send(&mut stream, wire::question(town.master, 1, &[own])).await.unwrap();
        let known = wire::hear(&mut stream, node).await.unwrap();
        claims.push(Known { version: known.version + AHEAD, ..known });
    }
    claims
}

/// Evicts it, and another, so that the key which it and beta have is accepted by no other.
async fn evict_and_change_the_key_twice(town: &Town, id: NodeId) {
    let token = town.invite(Role::Worker, 1).await;
    let other = town.join("other", &token).await.node_id();
    for (node, generation) in [(id, 1), (other, 2)] {
        evict(town, node).await;
        until("all that run have changed the key", async || {
            for daemon in town.running() {
                let known = daemon.status().await?.discovery_generation;
                ensure!(known >= generation, "{} has that of generation {known}", daemon.name);
            }
            Ok(())
        })
        .await;
    }
}

/// Hides from beta what the others have said, and goes on as the member that it was, with a point of its own.
async fn talk(town: &Town, mallory: &Member, stream: BoxStream, claims: Vec<Known>) -> JoinHandle<Result<()>> {
    let (id, cluster) = (mallory.id(), town.master);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut named = claims.clone();
    named.push(Known { node: id, generation: GENERATION, version: 3 });
    wire::send(&mut writer, wire::question(cluster, 1, &named)).await.unwrap();
    for claim in claims {
        let hides = [("x".to_string(), vec![1], claim.version)];
        wire::send(&mut writer, wire::answer(claim.node, claim.generation, &hides)).await.unwrap();
    }
    let card = mallory.sign(mallory.card(id, 9 << 32));
    let points = points(town, mallory).await;
    let key = mallory.store.node_secret().unwrap();
    tokio::spawn(async move {
        let reading = tokio::spawn(async move { read_all(&mut reader).await });
        for turn in 1.. {
            let seq = (9 << 32) + 10 + turn;
            let beat =
                Heartbeat { cluster, node: id, seq, phase: Phase::Healthy, hears: 2, unix: unix_now(), instance: 9 };
            let beat = rustbalance_gossip::signed::Verified::sign(beat, &key)?.to_bytes()?;
            let version = 3 * turn;
            let values = [
                wire::value(RecordKind::Card, &card, version - 2),
                wire::value(RecordKind::IntroPoints, &points, version - 1),
                wire::value(RecordKind::Heartbeat, &beat, version),
            ];
            let own = Known { node: id, generation: GENERATION, version };
            wire::send(&mut writer, wire::question(cluster, turn + 1, &[own])).await?;
            wire::send(&mut writer, wire::answer(id, GENERATION, &values)).await?;
            sleep(Duration::from_millis(300)).await;
        }
        reading.abort();
        Ok(())
    })
}

async fn read_all(reader: &mut (impl AsyncRead + Unpin)) {
    while frame::read(reader, MAX).await.is_ok() {}
}

/// A true introduction point of its own.
async fn points(town: &Town, mallory: &Member) -> Vec<u8> {
    let limits = Arc::new(ServiceLimits {
        pending_rendezvous: 9,
        open_rendezvous: 9,
        streams_per_circuit: 9,
        introduction_queue: 9,
        introductions_per_second: None,
        refused: Default::default(),
    });
    let secrets = mallory.store.point_seed().unwrap().draw(&mut rand::rng());
    let nonce = secrets.nonce;
    let keys = IntroPointKeys { secrets, replays: Arc::new(ReplayLog::ephemeral()) };
    let relay = RelayChoice::AnyBut(Default::default());
    let (clients, _) = tokio::sync::mpsc::channel(9);
    let request = IntroRequest { master: town.master, keys, relay, limits };
    let opened = mallory.engine.open_intro_point(request, clients).await.unwrap();
    let (cluster, node) = (town.master, mallory.id());
    mallory.sign(IntroPoints {
        cluster,
        node,
        seq: (9 << 32) + 1,
        points: vec![opened.describe()],
        nonces: vec![nonce],
    })
}
