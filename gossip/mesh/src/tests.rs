//! Real chitchat on the in-memory network with paused time: seconds of gossip pass as fast as they
//! are computed.

use std::collections::BTreeMap;
use std::time::Duration;

use sha3::{Digest, Sha3_256};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::memory::MemoryNetwork;
use rustbalance_gossip::record::RecordKind;

mod calm;
mod hostile;

const INTERVAL: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);
/// The nodes with numbers below this are known as members.
const MEMBERS: u16 = 100;

fn node(i: u16) -> NodeId {
    NodeId::from_public_key(Sha3_256::digest(i.to_be_bytes()).into())
}

/// A node and the newest values that have reached it.
struct Peer {
    id: NodeId,
    mesh: Mesh,
    updates: mpsc::Receiver<Update>,
    seen: BTreeMap<(NodeId, RecordKind), Vec<u8>>,
}

impl Peer {
    async fn start(network: &MemoryNetwork, i: u16, generation: u64, interval: Duration) -> Self {
        let id = node(i);
        let config = MeshConfig { me: id, cluster: ClusterId::from_public_key([1; 32]), generation, interval };
        // The first two nodes are the seeds of all.
        let (mesh, updates) = Mesh::start(config, network.join(id), vec![node(0), node(1)]).await.unwrap();
        mesh.set_members((0..MEMBERS).map(node).collect());
        mesh.set(RecordKind::Card, format!("card {i}").as_bytes()).unwrap();
        Self { id, mesh, updates, seen: BTreeMap::new() }
    }

    fn drain(&mut self) {
        while let Ok(update) = self.updates.try_recv() {
            self.seen.insert((update.origin, update.kind), update.bytes);
        }
    }

    fn knows(&self, of: u16, kind: RecordKind, value: &str) -> bool {
        self.seen.get(&(node(of), kind)).is_some_and(|bytes| bytes == value.as_bytes())
    }
}

async fn start(network: &MemoryNetwork, count: u16, interval: Duration) -> Vec<Peer> {
    let mut peers = Vec::new();
    for i in 0..count {
        peers.push(Peer::start(network, i, 1, interval).await);
    }
    peers
}

/// Waits until `done` holds, and returns how long that took.
async fn until(peers: &mut [Peer], what: &str, done: impl Fn(&[Peer]) -> bool) -> Duration {
    let start = Instant::now();
    loop {
        peers.iter_mut().for_each(Peer::drain);
        if done(peers) {
            return start.elapsed();
        }
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        sleep(INTERVAL / 10).await;
    }
}

fn all_cards_everywhere(peers: &[Peer]) -> bool {
    let count = peers.len() as u16;
    peers
        .iter()
        .all(|peer| (0..count).all(|of| node(of) == peer.id || peer.knows(of, RecordKind::Card, &format!("card {of}"))))
}

/// Runs a cluster through joins, a change, a death, a partition and its end. Returns the bytes sent
/// per node and interval while nothing happens.
async fn life_of_a_cluster(count: u16, interval: Duration) -> u64 {
    let network = MemoryNetwork::default();
    network.set_delay(interval / 5);
    let mut peers = start(&network, count, interval).await;
    let joined = until(&mut peers, "all cards everywhere", all_cards_everywhere).await;

    peers[3].mesh.set(RecordKind::Lease, b"mine").unwrap();
    let spread = until(&mut peers, "a change everywhere", |peers| {
        peers.iter().all(|peer| peer.id == node(3) || peer.knows(3, RecordKind::Lease, "mine"))
    })
    .await;

    network.set_down(node(4), true);
    peers[5].mesh.set(RecordKind::Lease, b"after a death").unwrap();
    until(&mut peers, "a change after a death", |peers| {
        peers
            .iter()
            .all(|peer| [node(4), node(5)].contains(&peer.id) || peer.knows(5, RecordKind::Lease, "after a death"))
    })
    .await;
    network.set_down(node(4), false);

    for i in 0..count / 2 {
        network.set_side(node(i), 1);
    }
    peers[0].mesh.set(RecordKind::Lease, b"left").unwrap();
    peers[usize::from(count) - 1].mesh.set(RecordKind::Lease, b"right").unwrap();
    sleep(interval * 10).await;
    peers.iter_mut().for_each(Peer::drain);
    assert!(!peers[0].knows(count - 1, RecordKind::Lease, "right"), "the partition leaks");
    network.heal();
    let healed = until(&mut peers, "both sides' values everywhere", |peers| {
        peers.iter().all(|peer| {
            (peer.id == node(0) || peer.knows(0, RecordKind::Lease, "left"))
                && (peer.id == node(count - 1) || peer.knows(count - 1, RecordKind::Lease, "right"))
        })
    })
    .await;

    let before: u64 = network.traffic().values().map(|traffic| traffic.bytes).sum();
    sleep(interval * 10).await;
    let after: u64 = network.traffic().values().map(|traffic| traffic.bytes).sum();
    let idle = (after - before) / u64::from(count) / 10;
    let rounds = |time: Duration| time.as_secs_f64() / interval.as_secs_f64();
    eprintln!(
        "{count} nodes: joined in {:.0} intervals, a change spread in {:.0}, healed in {:.0}, idle {idle} bytes per node and interval",
        rounds(joined),
        rounds(spread),
        rounds(healed)
    );
    for peer in &peers {
        assert_eq!(peer.mesh.counters(), MeshCounters::default());
    }
    idle
}

#[tokio::test(start_paused = true)]
async fn twenty_nodes_agree_through_joins_a_death_and_a_partition() {
    let idle = life_of_a_cluster(20, INTERVAL).await;
    assert!(idle < 60_000, "{idle} bytes per node and interval");
}

#[tokio::test(start_paused = true)]
async fn a_lossy_network_delays_values_but_loses_none() {
    let network = MemoryNetwork::default();
    network.set_loss(30, 7);
    let mut peers = start(&network, 6, INTERVAL).await;
    until(&mut peers, "all cards despite loss", all_cards_everywhere).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_lags_still_gets_the_latest() {
    let network = MemoryNetwork::default();
    let mut peers = start(&network, 2, INTERVAL).await;
    // More values than the queue holds: many kinds, and one kind again and again.
    for i in 0..200u16 {
        let kind = RecordKind::Revocation(node(1000 + i));
        peers[0].mesh.set(kind, &i.to_be_bytes()).unwrap();
        peers[0].mesh.set(RecordKind::Heartbeat, &i.to_be_bytes()).unwrap();
        if i % 20 == 0 {
            sleep(INTERVAL / 2).await;
        }
    }
    sleep(INTERVAL * 5).await;
    until(&mut peers, "every last value", |peers| {
        let seen = &peers[1].seen;
        (0..200u16).all(|i| seen.contains_key(&(node(0), RecordKind::Revocation(node(1000 + i)))))
            && seen.get(&(node(0), RecordKind::Heartbeat)) == Some(&199u16.to_be_bytes().to_vec())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_is_heard_at_once() {
    let network = MemoryNetwork::default();
    let mut peers = start(&network, 3, INTERVAL).await;
    until(&mut peers, "all cards", all_cards_everywhere).await;
    let old = peers.pop().unwrap();
    old.mesh.shutdown().await;
    let again = Peer::start(&network, 2, 2, INTERVAL).await;
    again.mesh.set(RecordKind::Card, b"card again").unwrap();
    peers.push(again);
    until(&mut peers, "its new card", |peers| {
        peers[..2].iter().all(|peer| peer.knows(2, RecordKind::Card, "card again"))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_last_value_is_sent_before_a_node_stops() {
    let network = MemoryNetwork::default();
    let mut peers = start(&network, 4, INTERVAL).await;
    until(&mut peers, "all cards", all_cards_everywhere).await;
    let leaving = peers.pop().unwrap();
    leaving.mesh.set(RecordKind::Lease, b"given up").unwrap();
    leaving.mesh.shutdown().await;
    until(&mut peers, "the farewell", |peers| peers.iter().all(|peer| peer.knows(3, RecordKind::Lease, "given up")))
        .await;
}

#[tokio::test(start_paused = true)]
async fn seeds_can_be_set_later_and_kinds_retracted() {
    let network = MemoryNetwork::default();
    let config =
        |i| MeshConfig { me: node(i), cluster: ClusterId::from_public_key([1; 32]), generation: 1, interval: INTERVAL };
    // Without links: only a seed brings them together.
    let carrier = |i| Carrier { links: Arc::new(BTreeSet::new), ..network.join(node(i)) };
    let (a, mut heard) = Mesh::start(config(0), carrier(0), vec![]).await.unwrap();
    let (b, _updates) = Mesh::start(config(1), carrier(1), vec![]).await.unwrap();
    b.set(RecordKind::Lease, b"taken back").unwrap();
    b.set(RecordKind::Card, b"card").unwrap();
    b.retract(RecordKind::Lease);
    assert!(timeout(INTERVAL * 5, heard.recv()).await.is_err());
    a.set_seeds(vec![node(1)]);
    let update = timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
    assert_eq!(update, Update { origin: node(1), kind: RecordKind::Card, bytes: b"card".to_vec() });
    assert!(timeout(INTERVAL * 5, heard.recv()).await.is_err(), "a retracted value is still sent");
    assert!(matches!(b.set(RecordKind::Card, &[0; MAX_RECORD + 1]), Err(MeshError::TooLong(_))));
}

#[tokio::test(start_paused = true)]
async fn values_of_another_cluster_are_not_received() {
    let network = MemoryNetwork::default();
    let config = |i| MeshConfig {
        me: node(i),
        cluster: ClusterId::from_public_key([i as u8; 32]),
        generation: 1,
        interval: INTERVAL,
    };
    let (_a, mut heard) = Mesh::start(config(0), network.join(node(0)), vec![node(1)]).await.unwrap();
    let (b, _updates) = Mesh::start(config(1), network.join(node(1)), vec![node(0)]).await.unwrap();
    b.set(RecordKind::Card, b"card").unwrap();
    assert!(timeout(INTERVAL * 10, heard.recv()).await.is_err());
}

/// A node whose disk was replaced by an older copy receives its own later values, so that it can
/// count on from there.
#[tokio::test(start_paused = true)]
async fn a_node_receives_its_own_values_of_another_incarnation() {
    let network = MemoryNetwork::default();
    let mut peers = vec![Peer::start(&network, 0, 1, INTERVAL).await, Peer::start(&network, 1, 5, INTERVAL).await];
    peers[1].mesh.set(RecordKind::Lease, b"in the fifth").unwrap();
    until(&mut peers, "all cards", all_cards_everywhere).await;
    until(&mut peers, "its lease", |peers| peers[0].knows(1, RecordKind::Lease, "in the fifth")).await;
    peers.pop().unwrap().mesh.shutdown().await;
    peers.push(Peer::start(&network, 1, 2, INTERVAL).await);
    until(&mut peers, "its own value", |peers| peers[1].knows(1, RecordKind::Lease, "in the fifth")).await;
    // It does not receive the values of its present incarnation.
    peers[1].mesh.set(RecordKind::Lease, b"in the second").unwrap();
    until(&mut peers, "its new lease", |peers| peers[0].knows(1, RecordKind::Lease, "in the second")).await;
    sleep(INTERVAL * 5).await;
    until(&mut peers, "no change", |peers| peers[1].knows(1, RecordKind::Lease, "in the fifth")).await;
}
