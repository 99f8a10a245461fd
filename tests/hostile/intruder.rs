//! An evicted worker that reaches a returning publisher before any honest node does, over any
//! engine. It makes the publisher believe that it already has all records, and continues as the
//! member that it was.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rustbalance::clock::unix_now;
use rustbalance::frame::{self, MAX};
use rustbalance::link::handshake::Purpose;
use rustbalance::store::Store;
use rustbalance::stream::BoxStream;
use rustbalance::tor::{Engine, IntroPointKeys, IntroRequest, RelayChoice, ReplayLog, ServiceGuard, ServiceLimits};
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::{Fitness, Heartbeat, IntroPoints, Phase, RecordKind};
use tokio::io::AsyncRead;
use tokio::time::sleep;

use crate::hand;
use crate::raw_gossip::{self, Known};

/// Generation number of the evicted worker's gossip after its return.
const GENERATION: u64 = 7 << 32;
/// Start number in the worker's records. It is above all earlier ones, which grow with the hours
/// since the epoch.
const BOOT: u64 = 1 << 20;

/// A claim about the node `to`: its current incarnation and version, as it announces them, plus
/// `ahead` versions.
pub(crate) async fn claim(engine: &dyn Engine, store: &Store, to: NodeId, ahead: u64) -> Result<Known> {
    let mut stream = hand::link(engine, store, to, Purpose::Mesh).await?;
    let own = Known { node: store.node_id(), generation: GENERATION, version: 0 };
    raw_gossip::send(&mut stream, raw_gossip::question(store.cluster(), 1, &[own])).await?;
    let known = raw_gossip::read_known(&mut stream, to).await?;
    Ok(Known { version: known.version + ahead, ..known })
}

/// Sends spoofed versions for the nodes of these claims, which hide their records from the peer.
/// Then announces its own card, heartbeats and a working introduction point until the link ends.
pub(crate) async fn stay(engine: &dyn Engine, store: &Store, stream: BoxStream, claims: Vec<Known>) -> Result<()> {
    let (id, cluster) = (store.node_id(), store.cluster());
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut named = claims.clone();
    named.push(Known { node: id, generation: GENERATION, version: 3 });
    raw_gossip::send(&mut writer, raw_gossip::question(cluster, 1, &named)).await?;
    for claim in claims {
        let hides = [("x".to_string(), vec![1], claim.version)];
        raw_gossip::send(&mut writer, raw_gossip::answer(claim.node, claim.generation, &hides)).await?;
    }
    let card = hand::sign(store, hand::card(store, id, BOOT << 32));
    let points = points(engine, store).await?;
    let talk = async {
        for turn in 1.. {
            let (seq, phase) = ((BOOT << 32) + 10 + turn, Phase::Active);
            let beat = Heartbeat { cluster, node: id, seq, phase, hears: 2, unix: unix_now(), instance: 9 };
            let version = 3 * turn;
            let values = [
                raw_gossip::value(RecordKind::Card, &card, version - 2),
                raw_gossip::value(RecordKind::IntroPoints(cluster.first_service()), &points, version - 1),
                raw_gossip::value(RecordKind::Heartbeat, &hand::sign(store, beat), version),
            ];
            let own = Known { node: id, generation: GENERATION, version };
            raw_gossip::send(&mut writer, raw_gossip::question(cluster, turn + 1, &[own])).await?;
            raw_gossip::send(&mut writer, raw_gossip::answer(id, GENERATION, &values)).await?;
            sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    };
    tokio::select! {
        ended = talk => ended,
        () = read_all(&mut reader) => Ok(()),
    }
}

async fn read_all(reader: &mut (impl AsyncRead + Unpin)) {
    while frame::read(reader, MAX).await.is_ok() {}
}

/// A record of a real introduction point. Its circuit closes at the end of this function.
async fn points(engine: &dyn Engine, store: &Store) -> Result<Vec<u8>> {
    let limits = Arc::new(ServiceGuard::fixed(ServiceLimits::default()));
    let service = store.cluster().first_service();
    let secrets = store.point_seed()?.draw(&mut rand::rng());
    let nonce = secrets.nonce;
    let keys = IntroPointKeys { secrets, replays: Arc::new(ReplayLog::ephemeral()) };
    let relay = RelayChoice::AnyBut(Default::default());
    let (clients, _) = tokio::sync::mpsc::channel(9);
    let request = IntroRequest { service, keys, relay, limits };
    let opened = engine.open_intro_point(request, clients).await?;
    let (cluster, node, seq) = (store.cluster(), store.node_id(), (BOOT << 32) + 1);
    let (fitness, points, nonces) = (Fitness::Healthy, vec![opened.describe()], vec![nonce]);
    Ok(hand::sign(
        store,
        IntroPoints { cluster, node, seq, service, fitness, points, nonces, subprotocols: Vec::new() },
    ))
}
