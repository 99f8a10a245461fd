//! A node of a later version announces records and fields and sends messages that the daemons do
//! not know. None of them ends a link, the records are forwarded to nodes that know them, and the
//! cluster serves.

use anyhow::{Result, ensure};
use ciborium::Value;
use rustbalance::clock::unix_now;
use rustbalance::frame::{self, MAX};
use rustbalance::link::Frame;
use rustbalance::link::handshake::Purpose;
use rustbalance::stream::BoxStream;
use rustbalance_gossip::codec;
use rustbalance_gossip::record::{NodeCard, RecordKind, Role};
use rustbalance_gossip::signed::{Sign, Statement, sign_unknown_kind};
use tokio::time::timeout;

use crate::hand::payload;
use crate::member::Member;
use crate::test_cluster::{PATIENCE, TestCluster, until};

/// An encoded message with these fields.
fn fields(fields: &[(&str, Value)]) -> Vec<u8> {
    let fields = fields.iter().map(|(name, value)| (Value::Text((*name).into()), value.clone()));
    codec::encode(&Value::Map(fields.collect())).unwrap()
}

fn key(key: &[u8; 32]) -> Value {
    Value::Bytes(key.to_vec())
}

/// A card with an additional field.
fn card(member: &Member) -> Vec<u8> {
    let Value::Map(mut entries) = Value::serialized(&member.card(member.id(), 2 << 32)).unwrap() else {
        panic!("a record is a map")
    };
    entries.push((Value::Text("region".into()), Value::Text("north".into())));
    let statement = codec::encode(&Value::Map(entries)).unwrap();
    sign_unknown_kind(NodeCard::CONTEXT, statement, &member.store.node_secret().unwrap()).unwrap()
}

/// A record about the node itself, of a kind that the daemons do not know.
fn endpoint(member: &Member) -> Vec<u8> {
    let cluster = key(member.store.cluster().public_key());
    let node = key(member.id().public_key());
    let statement = fields(&[("cluster", cluster), ("node", node), ("seq", 1.into()), ("port", 51_820.into())]);
    sign_unknown_kind("rustbalance record ep", statement, &member.store.node_secret().unwrap()).unwrap()
}

/// A fact of a kind that the daemons do not know.
fn region(member: &Member) -> Vec<u8> {
    let (cluster, expires) = (key(member.store.cluster().public_key()), unix_now() + 3600);
    let statement = fields(&[("cluster", cluster), ("seq", 1.into()), ("expires", expires.into())]);
    let authority = member.store.authority_secret().unwrap().unwrap();
    sign_unknown_kind("rustbalance record region", statement, &authority as &dyn Sign).unwrap()
}

/// Reads frames until the answer to this ping arrives.
async fn pong(stream: &mut BoxStream, ping: u64) -> Result<()> {
    let answered = async {
        loop {
            let bytes = frame::read(stream, MAX).await?;
            if let Ok(Frame::Pong(answer)) = codec::decode::<Frame>(&bytes, MAX)
                && answer == ping
            {
                return anyhow::Ok(());
            }
        }
    };
    timeout(PATIENCE, answered).await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_later_version_are_skipped_and_end_no_link() {
    let test_cluster = TestCluster::start("[links]\nbytes_per_second = 65536\nbytes_burst = 524288\n").await;
    let later = Member::join(&test_cluster, Role::Worker).await;
    let alpha = test_cluster.named("alpha");
    let mut stream = later.link(alpha.id, Purpose::Mesh).await.unwrap();
    let messages = [
        codec::encode(&"Farewell").unwrap(),
        fields(&[("Route", Value::Text("direct".into()))]),
        fields(&[("Payload", Value::Bytes(vec![7; 60_000]))]),
    ];
    for message in &messages {
        frame::write(&mut stream, message).await.unwrap();
    }
    frame::write(&mut stream, &payload(&Frame::Ping(1))).await.unwrap();
    pong(&mut stream, 1).await.unwrap();
    assert_eq!(alpha.refused("link_unknown").await, 3);
    // Too many unknown messages count as a flood.
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    for _ in 0..40 {
        frame::write(&mut writer, &messages[2]).await.unwrap();
    }
    until("the unknown messages are counted", async || {
        let counted = (alpha.refused("link_unknown").await, alpha.refused("link_flood").await);
        ensure!(counted.0 == 43 && counted.1 > 10, "{counted:?}");
        Ok(())
    })
    .await;
    assert!(!reading.is_finished(), "the link has ended");
    assert_eq!(alpha.refused("link_bad_frame").await, 0);
    test_cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_later_version_are_carried_to_the_nodes_that_know_them() {
    let mut test_cluster = TestCluster::start("").await;
    let later = Member::join(&test_cluster, Role::Publisher).await;
    let [card_kind, endpoint_kind, region_kind] =
        ["card", "ep", "region/north"].map(|key| RecordKind::from_key(key).unwrap());
    let records = [(card_kind, card(&later)), (endpoint_kind, endpoint(&later)), (region_kind, region(&later))];
    let mut raw_links = later.open(&test_cluster, 1).await;
    let raw_gossip = raw_links.speak(&test_cluster, later.id(), 2).await;
    for (kind, bytes) in &records {
        raw_gossip.announce(*kind, bytes);
    }
    until("every daemon accepts the card", async || {
        for daemon in test_cluster.running() {
            let members = daemon.status().await?.members;
            let known = members.iter().find(|member| member.node == later.id().to_string());
            ensure!(known.is_some_and(|member| member.weight == Some(100)), "{} does not accept it", daemon.name);
        }
        Ok(())
    })
    .await;
    assert_eq!(test_cluster.refused("link_bad_frame").await + test_cluster.refused("gossip_malformed").await, 0);
    // The later node leaves and a daemon restarts. A newcomer of the later version receives the
    // records from the daemons.
    drop((raw_gossip, raw_links));
    let id = later.id();
    drop(later);
    test_cluster.named_mut("beta").kill().await;
    let net = test_cluster.net.clone();
    test_cluster.named_mut("beta").run(&net);
    let token = test_cluster.invite(Role::Worker, 1).await;
    let newcomer = Member::of(&test_cluster, test_cluster.join("newcomer", &token).await);
    let mut raw_links = newcomer.open(&test_cluster, 1).await;
    let raw_gossip = raw_links.speak(&test_cluster, newcomer.id(), 1).await;
    raw_gossip.announce(RecordKind::Card, &newcomer.sign(newcomer.card(newcomer.id(), 1 << 32)));
    until("the newcomer has received all of the records", async || {
        for (kind, bytes) in &records[..2] {
            ensure!(raw_gossip.heard(id, *kind).contains(bytes), "{kind:?} is missing");
        }
        // Every daemon announces the facts that it knows.
        for daemon in test_cluster.running() {
            ensure!(
                raw_gossip.heard(daemon.id, region_kind).contains(&records[2].1),
                "{} does not announce it",
                daemon.name
            );
        }
        Ok(())
    })
    .await;
    assert_eq!(test_cluster.refused("link_bad_frame").await, 0);
    test_cluster.healthy().await;
}
