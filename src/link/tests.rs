//! Links between nodes in one process, and peers that misbehave.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::liveness::Patience;
use rustbalance_gossip::record::{RecordKind, Revocation};
use rustbalance_gossip::signed::Verified;
use rustbalance_gossip::time::Now;
use rustbalance_gossip::view::View;
use rustbalance_mesh::{Mesh, MeshConfig, Update, conformance};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::conformance::{Ground, Launched, LinkedNetwork, TestCluster, launch};
use super::connection::Frame;
use super::frame::{read_message, write_message};
use super::handshake::{Dialler, HandshakeSide, LinkRefusal, Purpose, Refused};
use super::*;
use crate::frame::{self, MAX, MAX_UNPROVEN};
use crate::tor::fake::{FakeEngine, FakeNet};
use crate::tor::{Engine, Listening};

mod routes;

/// The time in tests without a clock, in seconds since the epoch.
pub(super) const NOW: u64 = 1_800_000_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// The authority's revocation of node `i`.
pub(super) fn revocation(world: &TestCluster, i: usize) -> Verified<Revocation> {
    let revocation = Revocation { cluster: world.cluster(), node: world.node(i), revoked: 9 };
    Verified::sign(revocation, &world.authority).unwrap()
}

/// The facts of a node that knows the revocations of these members.
fn facts(world: &TestCluster, revoked: &[usize]) -> Arc<SharedFacts> {
    let mut view = View::new(world.member(0), Patience::default(), 0);
    for i in revoked {
        let record = revocation(world, *i).to_bytes().unwrap();
        let kind = RecordKind::Revocation(world.node(*i));
        view.ingest(world.node(1), kind, &record, Now { mono: Duration::ZERO, unix: NOW }).unwrap();
    }
    Arc::new(view.facts().shared(NOW))
}

fn net() -> FakeNet {
    FakeNet::new(1, 12)
}

/// Default limits with shorter times.
fn limits() -> LinkLimits {
    LinkLimits {
        handshake: Duration::from_millis(400),
        ping: Duration::from_millis(100),
        silence: Duration::from_millis(600),
        write: Duration::from_millis(400),
        dial: Duration::from_millis(800),
        pause: (Duration::from_millis(20), Duration::from_millis(200)),
        tick: Duration::from_millis(20),
        ..LinkLimits::default()
    }
}

struct Node {
    links: Arc<Links>,
    engine: Arc<FakeEngine>,
    set: watch::Sender<MemberSet>,
    limits: watch::Sender<LinkLimits>,
    counters: Counters,
    carrier: Option<Carrier>,
    joins: Option<mpsc::Receiver<CarriedJoin>>,
    revoked: mpsc::Receiver<Verified<Revocation>>,
    newest: watch::Sender<Option<Arc<Discovery>>>,
    offered: mpsc::Receiver<Offer>,
    facts: mpsc::Receiver<Vec<Update>>,
    _service: Box<dyn Listening>,
}

async fn node(world: &TestCluster, net: &FakeNet, i: usize, set: MemberSet, limits: LinkLimits) -> Node {
    let engine = net.engine();
    let launched = launch(world, Arc::clone(&engine) as Arc<dyn Engine>, i, set, limits).await;
    let Launched { links, outputs, set, limits, newest, counters, service } = launched;
    let LinkOutputs { carrier, joins, revoked, offered, facts } = outputs;
    let (carrier, joins) = (Some(carrier), Some(joins));
    Node { links, engine, set, limits, counters, newest, carrier, joins, revoked, offered, facts, _service: service }
}

async fn nodes<const N: usize>(
    world: &TestCluster,
    net: &FakeNet,
    sets: [MemberSet; N],
    limits: LinkLimits,
) -> Vec<Node> {
    let mut nodes = Vec::new();
    for (i, set) in sets.into_iter().enumerate() {
        nodes.push(node(world, net, i, set, limits.clone()).await);
    }
    nodes
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// One side of a handshake over Tor.
fn own<'a>(membership: &'a Member, key: &'a NodeSecret) -> HandshakeSide<'a> {
    let (route, binding) = (RouteKind::TOR, ChannelBinding::BY_ID);
    HandshakeSide { membership, key, route, binding, nonce: rand::random() }
}

impl Node {
    fn peers(&self) -> BTreeSet<NodeId> {
        self.links.status().iter().map(|link| link.peer).collect()
    }

    fn refused(&self, name: &str) -> u64 {
        self.counters.get(Counter::named(name).unwrap())
    }

    /// A raw stream to this node, as a stranger opens one.
    fn stranger(&self) -> DuplexStream {
        let (near, far) = duplex(4096);
        self.links.accept(Channel::tor(Box::new(far)));
        near
    }

    /// A stream to this node, held by the test, on which `i` has run the handshake; with the
    /// refusal, or `None` if it was accepted.
    async fn hostile(
        &self,
        world: &TestCluster,
        i: usize,
        to: usize,
        purpose: Purpose,
    ) -> (DuplexStream, Option<HandshakeError>) {
        let mut stream = self.stranger();
        let (membership, key) = (world.member(i), world.key(i));
        let dialler = Dialler { own: own(&membership, &key), dialled: world.node(to), purpose };
        let challenge = frame::read(&mut stream, MAX_UNPROVEN).await.unwrap();
        let (proof, claimed) = dialler.challenge(&challenge).unwrap();
        frame::write(&mut stream, &proof).await.unwrap();
        let answer = frame::read(&mut stream, MAX_UNPROVEN).await.unwrap();
        let refused = claimed.answer(&answer, &BTreeMap::new(), NOW).err();
        (stream, refused)
    }
}

#[tokio::test(start_paused = true)]
async fn new_limits_apply_to_links_that_begin_later() {
    let (world, net) = (TestCluster::new(), net());
    let closed = LinkLimits { handshakes: 0, ..limits() };
    let nodes = nodes(&world, &net, [(); 2].map(|()| world.set(0..2)), closed).await;
    drop(nodes[0].stranger());
    sleep(limits().tick * 5).await;
    assert!(nodes[0].peers().is_empty() && nodes[1].peers().is_empty());
    assert!(nodes[0].refused("link_over_rate") >= 1);
    for node in &nodes {
        node.limits.send_replace(limits());
    }
    until("a link", || !nodes[0].peers().is_empty() && !nodes[1].peers().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn neighbours_find_each_other_and_keep_one_link_each() {
    let (world, net) = (TestCluster::new(), net());
    let nodes = nodes(&world, &net, [(); 4].map(|()| world.set(0..4)), limits()).await;
    until("a full mesh", || nodes.iter().all(|node| node.peers().len() == 3)).await;
    sleep(Duration::from_millis(300)).await;
    for node in &nodes {
        assert_eq!(node.links.status().len(), 3);
        assert!(node.links.status().iter().all(|link| link.frames_in > 0 && link.round_trip.is_some()));
    }
    // Both ends agree on which side has dialled.
    let outgoing: usize = nodes.iter().map(|n| n.links.status().iter().filter(|link| link.outgoing).count()).sum();
    assert_eq!(outgoing, 6);
}

async fn receives(updates: &mut mpsc::Receiver<Update>, origin: NodeId, value: &[u8]) {
    let found = async {
        while let Some(update) = updates.recv().await {
            if update.origin == origin && update.bytes == value {
                return;
            }
        }
        panic!("the mesh has stopped");
    };
    timeout(PATIENCE, found).await.expect("never heard");
}

#[tokio::test(start_paused = true)]
async fn records_travel_over_links_and_again_after_they_broke() {
    let (world, net) = (TestCluster::new(), net());
    // A chain: 0 and 2 know each other only through what 1 forwards.
    let sets = [world.set([0, 1]), world.set([0, 1, 2]), world.set([1, 2])];
    let mut nodes = nodes(&world, &net, sets, limits()).await;
    let mut meshes = Vec::new();
    for (i, node) in nodes.iter_mut().enumerate() {
        let interval = Duration::from_millis(50);
        let config = MeshConfig { me: world.node(i), cluster: world.cluster(), generation: 1, interval };
        let seeds = vec![world.node(1)];
        meshes.push(Mesh::start(config, node.carrier.take().unwrap(), seeds).await.unwrap());
    }
    meshes[0].0.set(RecordKind::Card, b"from 0").unwrap();
    meshes[2].0.set(RecordKind::Card, b"from 2").unwrap();
    receives(&mut meshes[2].1, world.node(0), b"from 0").await;
    receives(&mut meshes[0].1, world.node(2), b"from 2").await;
    net.sever(&nodes[0].engine, &nodes[1].engine);
    until("the cut", || nodes[0].peers().is_empty() && !nodes[1].peers().contains(&world.node(0))).await;
    meshes[0].0.set(RecordKind::Lease, b"announced while cut off").unwrap();
    net.heal();
    receives(&mut meshes[2].1, world.node(0), b"announced while cut off").await;
}

#[tokio::test(start_paused = true)]
async fn links_with_a_frozen_node_end_and_come_back() {
    let (world, net) = (TestCluster::new(), net());
    let nodes = nodes(&world, &net, [(); 3].map(|()| world.set(0..3)), limits()).await;
    until("a full mesh", || nodes.iter().all(|node| node.peers().len() == 2)).await;
    nodes[1].engine.freeze(true);
    until("the end of the links with the frozen node", || {
        [0, 2].iter().all(|i: &usize| !nodes[*i].peers().contains(&world.node(1)))
    })
    .await;
    assert!(nodes[0].peers().contains(&world.node(2)), "the link between the other two has ended");
    nodes[1].engine.freeze(false);
    until("a full mesh again", || nodes.iter().all(|node| node.peers().len() == 2)).await;
}

#[tokio::test(start_paused = true)]
async fn the_reach_of_a_node_is_shown_as_it_changes() {
    let (world, net) = (TestCluster::new(), net());
    let nodes = nodes(&world, &net, [(); 2].map(|()| world.set(0..2)), limits()).await;
    let mut reach = nodes[0].links.reach();
    timeout(PATIENCE, reach.wait_for(|reach| reach.linked)).await.unwrap().unwrap();
    assert_eq!(*reach.borrow(), Reach { linked: true, refused: false, shut_out: false });
    nodes[1].engine.kill();
    timeout(PATIENCE, reach.wait_for(|reach| !reach.linked)).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_revoked_members_link_closes_at_once_and_stays_closed() {
    let (world, net) = (TestCluster::new(), net());
    // There is no tick: the change of the member set alone must close the link.
    let patient = LinkLimits { tick: Duration::from_secs(3600), ..limits() };
    let nodes = nodes(&world, &net, [(); 3].map(|()| world.set(0..3)), patient.clone()).await;
    until("links", || nodes[0].peers().contains(&world.node(1))).await;
    nodes[0].set.send_modify(|set| {
        set.revoked.insert(world.node(1), revocation(&world, 1));
    });
    until("the end of the link", || !nodes[0].peers().contains(&world.node(1))).await;
    let (_stream, refused) = nodes[0].hostile(&world, 1, 0, Purpose::Mesh).await;
    assert_eq!(refused, Some(HandshakeError::Revoked(Box::new(revocation(&world, 1)))));
    until("the count", || nodes[0].refused("link_revoked") > 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_evicted_while_away_is_shown_the_authoritys_revocation() {
    let (world, net) = (TestCluster::new(), net());
    let mut set = world.set([0, 1]);
    set.revoked.insert(world.node(1), revocation(&world, 1));
    let _listening = node(&world, &net, 0, set, limits()).await;
    // It does not know of its revocation, and dials.
    let mut away = node(&world, &net, 1, world.set([0, 1]), limits()).await;
    assert_eq!(timeout(PATIENCE, away.revoked.recv()).await.unwrap(), Some(revocation(&world, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_new_discovery_key_reaches_all_but_the_revoked() {
    let (world, net) = (TestCluster::new(), net());
    let mut nodes = nodes(&world, &net, [(); 3].map(|()| world.set(0..3)), limits()).await;
    until("a full mesh", || nodes.iter().all(|node| node.peers().len() == 2)).await;
    let key = Discovery::generate(world.cluster(), 1, &world.authority, &mut rand::rng()).unwrap();
    nodes[0].newest.send_replace(Some(Arc::new(key.duplicate())));
    // Two revocations are missing here, so either of the others may be revoked.
    sleep(Duration::from_millis(200)).await;
    assert!(nodes[1].offered.try_recv().is_err() && nodes[2].offered.try_recv().is_err());
    nodes[0].set.send_modify(|set| {
        set.revoked.insert(world.node(2), revocation(&world, 2));
    });
    let offer = timeout(PATIENCE, nodes[1].offered.recv()).await.unwrap().unwrap();
    assert_eq!(offer.verify(world.cluster(), world.authority.authority_id()).unwrap().key, key.key);
    assert!(nodes[2].offered.try_recv().is_err(), "handed to the revoked");
    // A newer key is handed over at once.
    let newer = Discovery::generate(world.cluster(), 2, &world.authority, &mut rand::rng()).unwrap();
    nodes[0].newest.send_replace(Some(Arc::new(newer.duplicate())));
    nodes[0].set.send_modify(|set| {
        set.revoked.insert(world.node(4), revocation(&world, 4));
    });
    let offer = timeout(PATIENCE, nodes[1].offered.recv()).await.unwrap().unwrap();
    assert_eq!(offer.key, newer.key.unverified());
    // The same key is handed over again later, because the peer may not have stored it.
    sleep(Duration::from_secs(200)).await;
    assert!(nodes[1].offered.try_recv().is_err(), "handed over again too soon");
    let offer = timeout(Duration::from_secs(200), nodes[1].offered.recv()).await.unwrap().unwrap();
    assert_eq!(offer.key, newer.key.unverified());
    assert!(nodes[2].offered.try_recv().is_err(), "handed to the revoked");
}

#[tokio::test(start_paused = true)]
async fn neighbours_hand_over_the_facts_that_the_other_lacks() {
    let (world, net) = (TestCluster::new(), net());
    let revoked = [4, 5].map(|i| (world.node(i), revocation(&world, i)));
    let knows = MemberSet { facts: facts(&world, &[4, 5]), revoked: revoked.into(), ..world.set(0..2) };
    let mut nodes = nodes(&world, &net, [knows, world.set(0..2)], limits()).await;
    let key = Discovery::generate(world.cluster(), 2, &world.authority, &mut rand::rng()).unwrap();
    nodes[0].newest.send_replace(Some(Arc::new(key)));
    let handed = timeout(PATIENCE, nodes[1].facts.recv()).await.unwrap().unwrap();
    let kinds: BTreeSet<_> = handed.iter().map(|update| update.kind).collect();
    assert_eq!(kinds, [4, 5].map(|i| RecordKind::Revocation(world.node(i))).into());
    assert!(timeout(PATIENCE, nodes[1].offered.recv()).await.unwrap().is_some());
    // Once both know the same, nothing more is handed over.
    nodes[1].set.send_modify(|set| set.facts = facts(&world, &[4, 5]));
    sleep(Duration::from_secs(10)).await;
    while nodes[1].facts.try_recv().is_ok() {}
    sleep(Duration::from_secs(200)).await;
    assert!(nodes[1].facts.try_recv().is_err() && nodes[0].facts.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_key_is_not_handed_over_before_the_facts_that_it_counts() {
    let (world, net) = (TestCluster::new(), net());
    let revoked = [4, 5].map(|i| (world.node(i), revocation(&world, i)));
    let knows = MemberSet { facts: facts(&world, &[4, 5]), revoked: revoked.into(), ..world.set([]) };
    let patient = LinkLimits { silence: Duration::from_secs(60), ..limits() };
    let node = node(&world, &net, 0, knows, patient).await;
    let key = Discovery::generate(world.cluster(), 2, &world.authority, &mut rand::rng()).unwrap();
    node.newest.send_replace(Some(Arc::new(key)));
    let (mut stream, _) = node.hostile(&world, 1, 0, Purpose::Mesh).await;
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let mut seen = Vec::new();
    write_message(&mut writer, &Frame::FactsDigest(FixedBytes([0; 32]))).await.unwrap();
    while !matches!(seen.last(), Some(Frame::Discovery(_))) {
        seen.push(read_message::<Frame>(&mut reader, MAX).await.unwrap().0.unwrap());
        seen.retain(|frame| !matches!(frame, Frame::Ping(_)));
    }
    assert!(matches!(seen[..], [Frame::FactsDigest(_), Frame::Facts(_), .., Frame::Discovery(_)]), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn strangers_and_their_garbage_change_nothing() {
    let (world, other, net) = (TestCluster::new(), TestCluster::new(), net());
    let nodes = nodes(&world, &net, [(); 2].map(|()| world.set(0..2)), limits()).await;
    until("a link", || nodes[0].peers().len() == 1).await;
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 64], &[0, 0, 0, 3, 1, 2, 3], &[0, 0, 0, 9, 1]] {
        let mut stream = nodes[0].stranger();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        // The stranger sees the challenge, perhaps a refusal, and the end of the stream.
        let mut seen = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut seen)).await.unwrap().unwrap();
        assert!(seen.len() < 200, "a stranger receives {} bytes", seen.len());
    }
    // A member of another cluster.
    let mut stream = nodes[0].stranger();
    let challenge = frame::read(&mut stream, MAX_UNPROVEN).await.unwrap();
    let (membership, key) = (other.member(1), other.key(1));
    let dialler = Dialler { own: own(&membership, &key), dialled: world.node(0), purpose: Purpose::Mesh };
    frame::write(&mut stream, &dialler.challenge(&challenge).unwrap().0).await.unwrap();
    let answer = frame::read(&mut stream, MAX_UNPROVEN).await.unwrap();
    assert_eq!(answer, Refused::from(LinkRefusal::NotMember).answer().unwrap());
    until("the counts", || nodes[0].refused("link_not_member") == 1 && nodes[0].refused("link_malformed") >= 2).await;
    assert_eq!(nodes[0].peers(), BTreeSet::from([world.node(1)]));
}

#[tokio::test(start_paused = true)]
async fn a_slow_dialler_loses_its_place() {
    let (world, net) = (TestCluster::new(), net());
    let node = node(&world, &net, 0, MemberSet::default(), LinkLimits { handshakes: 2, ..limits() }).await;
    let mut slow: Vec<_> = (0..10).map(|_| node.stranger()).collect();
    assert_eq!(node.refused("link_over_rate"), 8);
    // The first stream sends a kilobyte, byte by byte; the second sends nothing.
    let drip = async {
        slow[0].write_all(&[0, 0, 4, 0]).await.unwrap();
        while slow[0].write_all(&[0]).await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, drip).await.unwrap();
    until("both handshakes to time out", || node.refused("link_unfinished") == 2).await;
    let (_stream, refused) = node.hostile(&world, 1, 0, Purpose::Mesh).await;
    assert_eq!(refused, None);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_frozen_or_never_reads_is_disconnected() {
    let (world, net) = (TestCluster::new(), net());
    let mut node = node(&world, &net, 0, MemberSet::default(), limits()).await;
    let carrier = node.carrier.take().unwrap();
    // Frozen: nothing comes, nothing is read.
    let (_frozen, _) = node.hostile(&world, 1, 0, Purpose::Mesh).await;
    until("a link", || node.peers().len() == 1).await;
    let start = Instant::now();
    until("the end of the frozen link", || node.peers().is_empty()).await;
    assert!(start.elapsed() < limits().silence * 3);
    // Sends pings in time, but never reads.
    let (stream, _) = node.hostile(&world, 1, 0, Purpose::Mesh).await;
    until("a link", || node.peers().len() == 1).await;
    let (_unread, mut writer) = tokio::io::split(stream);
    let pinging = tokio::spawn(async move {
        while write_message(&mut writer, &Frame::Ping(1)).await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    // Sending does not block: all of this happens before the peer could read any of it.
    for _ in 0..2000 {
        (carrier.send)(world.node(1), vec![7; 1000]);
    }
    until("the end of the link that is never read", || node.peers().is_empty()).await;
    assert!(node.refused("link_dropped") > 1_900);
    timeout(PATIENCE, pinging).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn nonsense_on_an_open_link_ends_that_link_only() {
    let (world, net) = (TestCluster::new(), net());
    let mut nodes = nodes(&world, &net, [(); 2].map(|()| world.set(0..2)), limits()).await;
    until("a link", || nodes[0].peers().len() == 1).await;
    let too_long = (MAX as u32 + 1).to_be_bytes().to_vec();
    let not_cbor = [&4u32.to_be_bytes()[..], &[1, 0xff, 0xff, 0xff]].concat();
    let other_version = [&2u32.to_be_bytes()[..], &[9, 0]].concat();
    let cut_short = [&100u32.to_be_bytes()[..], &[1; 50]].concat();
    for bytes in [too_long, not_cbor, other_version, cut_short] {
        let (mut stream, _) = nodes[0].hostile(&world, 2, 0, Purpose::Mesh).await;
        until("its link", || nodes[0].peers().contains(&world.node(2))).await;
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        until("its end", || !nodes[0].peers().contains(&world.node(2))).await;
    }
    assert_eq!(nodes[0].peers(), BTreeSet::from([world.node(1)]));
    assert!(nodes[0].carrier.take().unwrap().received.try_recv().is_err(), "a malformed frame reached the mesh");
}

#[tokio::test(start_paused = true)]
async fn a_flood_and_a_thousand_links_of_one_member_are_bounded() {
    let (world, net) = (TestCluster::new(), net());
    let roomy = LinkLimits { accepts_per_second: (100_000, 100_000), handshakes: 64, ..limits() };
    let mut node = node(&world, &net, 0, MemberSet::default(), LinkLimits { bytes_burst: 100_000, ..roomy }).await;
    let mut open = Vec::new();
    for _ in 0..1000 {
        open.push(node.hostile(&world, 1, 0, Purpose::Mesh).await.0);
        assert!(node.links.status().len() <= 1);
    }
    let (mut stream, _) = node.hostile(&world, 1, 0, Purpose::Mesh).await;
    let message = Frame::Gossip(rustbalance_gossip::bytes::VarBytes(vec![1; 9_000]));
    for _ in 0..100 {
        write_message(&mut stream, &message).await.unwrap();
    }
    until("all read", || node.links.status().first().is_some_and(|link| link.frames_in >= 100)).await;
    let mut carrier = node.carrier.take().unwrap();
    let passed = std::iter::from_fn(|| carrier.received.try_recv().ok()).count();
    // The burst, and what the rate allows while a slow machine runs this test.
    assert!((9..=90).contains(&passed), "{passed} of 100 messages passed");
    assert!(node.links.status()[0].dropped >= 10);
}

#[tokio::test(start_paused = true)]
async fn a_joiners_bytes_are_carried_both_ways() {
    let (world, net) = (TestCluster::new(), net());
    let worker = node(&world, &net, 0, MemberSet::default(), limits()).await;
    let limits = LinkLimits { carried: (3, 2), ..limits() };
    let mut publisher = node(&world, &net, 1, MemberSet::default(), limits).await;
    let mut joins = publisher.joins.take().unwrap();
    let mut near = worker.links.carry_join(world.node(1)).await.unwrap();
    near.write_all(b"at once after the handshake").await.unwrap();
    let mut carried = timeout(PATIENCE, joins.recv()).await.unwrap().unwrap();
    assert_eq!(carried.from, world.node(0));
    let mut bytes = [0; 27];
    carried.stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"at once after the handshake");
    carried.stream.write_all(b"answer").await.unwrap();
    let mut bytes = [0; 6];
    near.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"answer");
    // One member may carry two streams at once; a place that is freed can be used again.
    let second = worker.links.carry_join(world.node(1)).await.unwrap();
    assert!(matches!(
        worker.links.carry_join(world.node(1)).await,
        Err(LinkError::Handshake(HandshakeError::Refused(_, LinkRefusal::Busy)))
    ));
    drop((carried, second, joins.recv().await));
    worker.links.carry_join(world.node(1)).await.unwrap();
    drop(joins);
    assert!(worker.links.carry_join(world.node(1)).await.is_err());
    assert!(matches!(worker.links.carry_join(world.node(2)).await, Err(LinkError::Dial(_))));
    // A carried stream does not count as a mesh link.
    assert!(publisher.links.status().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_running() {
    let (world, net) = (TestCluster::new(), net());
    let nodes = nodes(&world, &net, [(); 2].map(|()| world.set(0..2)), limits()).await;
    until("a link", || nodes[0].peers().len() == 1).await;
    let mut nodes = nodes.into_iter();
    let (gone, mut left) = (nodes.next().unwrap(), nodes.next().unwrap());
    gone.links.shutdown();
    until("the link's end", || left.peers().is_empty()).await;
    let mut carrier = left.carrier.take().unwrap();
    left.links.shutdown();
    drop(left);
    assert!(timeout(PATIENCE, carrier.received.recv()).await.unwrap().is_none(), "a task still holds the links");
}

#[tokio::test(start_paused = true)]
async fn a_node_without_room_for_another_link_dials_less_and_less() {
    let (world, net) = (TestCluster::new(), net());
    let patient = LinkLimits { silence: PATIENCE * 9, ..limits() };
    let full = LinkLimits { links: 1, pause: (Duration::from_millis(20), Duration::from_secs(5)), ..patient.clone() };
    let full = node(&world, &net, 0, world.set([0, 2]), full).await;
    let (_held, refused) = full.hostile(&world, 1, 0, Purpose::Mesh).await;
    assert!(refused.is_none() && full.peers() == BTreeSet::from([world.node(1)]));
    // The dialled node accepts 20 dials at once, and counts those beyond.
    let dialled =
        node(&world, &net, 2, MemberSet::default(), LinkLimits { accepts_per_second: (1, 20), ..patient }).await;
    sleep(Duration::from_secs(4)).await;
    assert_eq!(full.peers(), BTreeSet::from([world.node(1)]));
    assert_eq!(dialled.refused("link_over_rate"), 0, "it dials again and again without a pause");
}

/// Engines in memory for the suite that every carrier must pass.
struct Memory {
    net: FakeNet,
    engines: Vec<Arc<FakeEngine>>,
}

#[async_trait]
impl Ground for Memory {
    async fn engine(&self, number: usize) -> Arc<dyn Engine> {
        Arc::clone(&self.engines[number]) as Arc<dyn Engine>
    }

    fn part(&self, side: &[usize], others: &[usize]) -> bool {
        for one in side {
            others.iter().for_each(|other| self.net.sever(&self.engines[*one], &self.engines[*other]));
        }
        true
    }

    fn heal(&self) {
        self.net.heal();
    }

    fn limits(&self) -> LinkLimits {
        limits()
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(100)
    }
}

#[tokio::test(start_paused = true)]
async fn links_are_a_carrier_of_the_mesh() {
    let net = net();
    let ground = Memory { engines: (0..6).map(|_| net.engine()).collect(), net };
    conformance::check_all(|| LinkedNetwork::new(&ground)).await;
}
