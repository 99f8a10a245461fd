//! The cluster's task, and the state that it brings to disk.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rand::rng;
use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::coordinator::{Isolated, Settings};
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::{Heartbeat, Member, MemberCertificate, NodeCard, RecordKind, Role};
use rustbalance_gossip::signed::Sign;
use rustbalance_mesh::{Carrier, MeshConfig};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::super::reports::report_reach;
use super::super::writer;
use super::*;
use crate::join::{Terms, found_with, invite};
use crate::keys::{IdentitySecret, NodeSecret};
use crate::link::Reach;
use crate::store::Store;

/// The state directory of a founder.
fn founder() -> (TempDir, Arc<Store>) {
    founder_with(&[])
}

/// Like [`founder`], with further services.
pub(in crate::node) fn founder_with(further: &[IdentitySecret]) -> (TempDir, Arc<Store>) {
    let folder = tempfile::tempdir().unwrap();
    let draft = Store::create(&folder.path().join("state")).unwrap();
    (folder, Arc::new(found_with(draft, None, further, unix_now(), &mut rng()).unwrap()))
}

/// The cluster's task of a node, not running yet, over a mesh without other members.
pub(in crate::node) struct IdleCluster {
    pub(in crate::node) cluster: Cluster,
    pub(in crate::node) starting: Starting,
    pub(in crate::node) disk: Disk,
    pub(in crate::node) _others: mpsc::Sender<(NodeId, Vec<u8>)>,
}

/// A running cluster's task, with its disk writer.
pub(in crate::node) struct Running {
    stop: CancellationToken,
    task: JoinHandle<Mesh>,
    writer: JoinHandle<()>,
}

impl Running {
    pub(in crate::node) fn start(store: &Arc<Store>, starting: Starting, disk: Disk) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(starting.run(stop.clone()));
        let writer = tokio::spawn(writer::write_all(Arc::clone(store), disk.wanted, disk.stored_term));
        Self { stop, task, writer }
    }

    /// Stops the task, and waits until everything is on disk.
    pub(in crate::node) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().shutdown().await;
        self.writer.await.unwrap();
    }
}

pub(in crate::node) async fn alone(store: &Arc<Store>, known: Vec<Event>) -> IdleCluster {
    let (others, received) = mpsc::channel(1);
    let carrier = Carrier { send: Arc::new(|_, _| {}), received, links: Arc::new(BTreeSet::new) };
    let config = MeshConfig {
        me: store.node_id(),
        cluster: store.cluster(),
        generation: 1,
        interval: Duration::from_millis(100),
    };
    let (mesh, updates) = Mesh::start(config, carrier, Vec::new()).await.unwrap();
    let key = Box::new(store.node_secret().unwrap());
    let coordinator = Coordinator::new(Settings::new(1, 1, store.term().unwrap()), key, store.membership().clone());
    let authority = store.authority_secret().unwrap();
    let (cluster, _, disk, starting) = start(ClusterParts {
        coordinator,
        mesh,
        updates,
        facts: mpsc::channel(1).1,
        members: watch::channel(MemberSet::default()).0,
        cluster: store.cluster(),
        services: store.services().unwrap(),
        alarms: Arc::default(),
        authority,
        known,
    });
    IdleCluster { cluster, starting, disk, _others: others }
}

/// A worker of the cluster of `store`.
fn worker(store: &Store) -> (NodeSecret, Member) {
    member(store, Role::Worker)
}

/// A member of the cluster of `store`.
fn member(store: &Store, role: Role) -> (NodeSecret, Member) {
    let key = NodeSecret::generate(&mut rng());
    let (cluster, node, issued) = (store.cluster(), key.node_id(), unix_now());
    let expires = issued + 1_000_000;
    let certificate = MemberCertificate { cluster, node, role, issued, expires, invitation: None };
    let certificate = Verified::sign(certificate, &store.authority_secret().unwrap().unwrap()).unwrap();
    (key, Member { authority: store.membership().authority.clone(), certificate })
}

fn record_event<T: Statement>(key: &NodeSecret, kind: RecordKind, statement: T) -> Event {
    let bytes = Verified::sign(statement, key).unwrap().to_bytes().unwrap();
    Event::Record { origin: NodeId::from_public_key(key.public_key()), kind, bytes }
}

/// The inode of a file. Each write replaces the file, so the inode changes.
fn inode(dir: &Path, name: &str) -> u64 {
    fs::metadata(dir.join(name)).unwrap().ino()
}

#[tokio::test]
async fn a_member_that_changes_its_phase_all_the_time_causes_no_writes() {
    let (_folder, store) = founder();
    let (key, member) = worker(&store);
    let (cluster, node) = (store.cluster(), key.node_id());
    // The list on disk, as after an earlier run.
    let mut chains = vec![store.membership().chain(), member.chain()];
    chains.sort_by_key(|chain| chain.clone().verify(cluster, 0).unwrap().node());
    store.put_members(&chains).unwrap();
    let before = inode(store.dir(), "members");
    let IdleCluster { cluster: handle, starting, disk, _others } =
        alone(&store, vec![Event::KnownMembers(chains)]).await;
    let running = Running::start(&store, starting, disk);
    let card = NodeCard {
        cluster,
        node,
        seq: 1 << 32,
        chain: member.chain(),
        address: mesh_address(&node),
        priority: 0,
        weight: 1,
        version: "1".into(),
        ports: vec![80],
    };
    handle.send_event(record_event(&key, RecordKind::Card, card)).await.unwrap();
    for turn in 1..200 {
        let phase = if turn % 2 == 0 { Phase::Draining } else { Phase::Active };
        let beat = Heartbeat { cluster, node, seq: (1 << 32) + turn, phase, hears: 1, unix: unix_now(), instance: 1 };
        handle.send_event_and_wait(record_event(&key, RecordKind::Heartbeat, beat)).await.unwrap();
    }
    let known = handle.look(|coordinator, _| coordinator.view().member(&node).map(|member| member.phase()));
    assert_eq!(known, Some(Phase::Active), "the heartbeats of the worker were not accepted");
    running.stop().await;
    assert_eq!(inode(store.dir(), "members"), before, "the list of members was rewritten");
    assert_eq!(store.members().unwrap().len(), 2);
}

#[tokio::test]
async fn facts_on_disk_are_not_written_again_and_a_new_term_is_stored() {
    let (_folder, store) = founder();
    let authority = store.authority_secret().unwrap().unwrap();
    let invitations: Vec<_> = (0..100)
        .map(|_| invite(store.cluster(), &authority, Terms::default(), unix_now(), &mut rng()).unwrap().1)
        .collect();
    store.put_invitations(&invitations, unix_now()).unwrap();
    let before = inode(store.dir(), "invitations");
    let known = store.invitations().unwrap().into_iter().map(|fact| Event::Fact(fact.into())).collect();
    let IdleCluster { cluster: handle, starting, disk, _others } = alone(&store, known).await;
    let running = Running::start(&store, starting, disk);
    // Alone in its cluster, the node publishes as soon as its term is on disk.
    while handle.look(|coordinator, _| coordinator.leadership()) == Leadership::Follower {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.stop().await;
    assert_eq!(store.term().unwrap(), 1);
    assert_eq!(inode(store.dir(), "invitations"), before, "the invitations were rewritten");
}

#[tokio::test]
async fn the_coordinator_learns_of_every_change_of_the_reach_of_the_links() {
    let (_folder, store) = founder();
    // A node can be shut out only if there is another publisher.
    let (_, member) = member(&store, Role::Publisher);
    let known = vec![Event::KnownMembers(vec![store.membership().chain(), member.chain()])];
    let IdleCluster { cluster, starting, disk, _others } = alone(&store, known).await;
    let running = Running::start(&store, starting, disk);
    let (reach, watch) = watch::channel(Reach::default());
    let reporting = tokio::spawn(report_reach(watch, cluster.clone()));
    let becomes = async |isolation: Option<Isolated>| {
        while cluster.look(|coordinator, now| coordinator.isolation(now)) != isolation {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert_eq!(cluster.look(|coordinator, _| coordinator.phase()), Phase::Joining);
    reach.send_replace(Reach { linked: true, ..Reach::default() });
    while cluster.look(|coordinator, _| coordinator.phase()) == Phase::Joining {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..2 {
        reach.send_replace(Reach { refused: true, shut_out: true, linked: false });
        becomes(Some(Isolated::ShutOut)).await;
        reach.send_replace(Reach { linked: true, ..Reach::default() });
        becomes(None).await;
    }
    drop(reach);
    reporting.await.unwrap().unwrap();
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_term_that_could_not_be_stored_is_stored_later() {
    let (_folder, store) = founder();
    let (path, aside) = (store.dir().join("term"), store.dir().join("aside"));
    fs::rename(&path, &aside).unwrap();
    let (desired, wanted) = watch::channel(DesiredState { term: 7, ..DesiredState::default() });
    let (stored, mut reported) = watch::channel(0);
    let writer = tokio::spawn(writer::write_all(Arc::clone(&store), wanted, stored));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*reported.borrow(), 0, "a term was reported that is not on disk");
    // A second term arrives while the first is not on disk.
    desired.send_modify(|desired| desired.term = 9);
    tokio::time::sleep(Duration::from_secs(60)).await;
    fs::rename(&aside, &path).unwrap();
    tokio::time::timeout(Duration::from_secs(60), reported.changed())
        .await
        .expect("the write was not tried again")
        .unwrap();
    assert_eq!((*reported.borrow_and_update(), store.term().unwrap()), (9, 9));
    // The last state is written before the writer ends.
    desired.send_modify(|desired| desired.term = 10);
    drop(desired);
    writer.await.unwrap();
    assert_eq!(store.term().unwrap(), 10);
}

#[tokio::test]
async fn a_ping_is_answered_by_a_task_that_runs_and_by_no_other() {
    let (_folder, store) = founder();
    let IdleCluster { cluster, starting, disk, _others } = alone(&store, Vec::new()).await;
    let early = tokio::time::timeout(Duration::from_millis(100), cluster.ping()).await;
    assert!(early.is_err(), "the task does not run yet");
    let running = Running::start(&store, starting, disk);
    tokio::time::timeout(Duration::from_secs(10), cluster.ping()).await.unwrap().unwrap();
    running.stop().await;
    assert_eq!(cluster.ping().await, Err(Stopping));
}
