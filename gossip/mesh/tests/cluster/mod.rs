//! Nodes without Tor: a coordinator on a real mesh (chitchat) over the in-memory network.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustbalance_gossip::coordinator::{Action, Coordinator, Event, Leadership, Settings};
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::{Chain, Role};
use rustbalance_gossip::sim::{FOUNDED, Founder, Memo, point, served};
use rustbalance_gossip::time::Now;
use rustbalance_mesh::memory::{MemoryNetwork, Traffic};
use rustbalance_mesh::{Mesh, MeshConfig, Update};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Delay of a message, about as long as over Tor.
const DELAY: Duration = Duration::from_millis(300);
/// Introduction points of each node.
const POINTS: u32 = 3;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running node. Dropping it ends it at once.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    coordinator: Arc<Mutex<Coordinator>>,
    started: Instant,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    fn look<T>(&self, look: impl FnOnce(&Coordinator, Now) -> T) -> T {
        let now = now(self.started);
        look(&self.coordinator.lock(), now)
    }

    fn leads(&self) -> bool {
        self.look(|coordinator, _| coordinator.leadership() != Leadership::Follower)
    }

    fn holder(&self) -> Option<NodeId> {
        self.look(|coordinator, now| coordinator.view().holder(now).map(|(holder, _)| holder))
    }

    fn alive(&self) -> BTreeSet<NodeId> {
        self.look(|coordinator, _| {
            coordinator.view().members().filter(|node| node.alive).map(|node| node.node()).collect()
        })
    }

    fn wanted(&self) -> BTreeSet<NodeId> {
        self.look(|coordinator, _| {
            let service = coordinator.view().cluster().first_service();
            coordinator.desired_points(&service).iter().filter_map(|(source, _)| source.node()).collect()
        })
    }
}

fn now(started: Instant) -> Now {
    Now { mono: started.elapsed(), unix: FOUNDED + 1000 + started.elapsed().as_secs() }
}

/// Runs a coordinator on a mesh as the daemon does, without disk, directories and Tor.
async fn live(
    coordinator: Arc<Mutex<Coordinator>>,
    mesh: Mesh,
    mut updates: mpsc::Receiver<Update>,
    started: Instant,
    first: Vec<Event>,
) {
    let mut events = first;
    loop {
        while !events.is_empty() {
            let event = events.remove(0);
            let actions = coordinator.lock().handle(event, now(started));
            for action in actions {
                match action {
                    Action::Gossip { kind, bytes } => mesh.set(kind, &bytes).unwrap(),
                    Action::Retract(kind) => mesh.retract(kind),
                    Action::StoreTerm(term) => events.push(Event::TermStored(term)),
                    Action::MembersChanged => {
                        let members: BTreeSet<NodeId> =
                            coordinator.lock().view().members().map(|node| node.node()).collect();
                        mesh.set_seeds(members.iter().copied().collect());
                        mesh.set_members(members);
                    }
                    _ => {}
                }
            }
        }
        let wake = coordinator.lock().next_timeout().unwrap_or(PATIENCE);
        tokio::select! {
            Some(Update { origin, kind, bytes }) = updates.recv() => events.push(Event::Record { origin, kind, bytes }),
            () = sleep_until(started + wake) => events.push(Event::Tick),
        }
    }
}

/// A cluster of such nodes.
pub(crate) struct Cluster {
    pub(crate) network: MemoryNetwork,
    pub(crate) nodes: Vec<Node>,
    founder: Founder,
    chains: Vec<Chain>,
    /// Time between two rounds of gossip.
    round: Duration,
    /// Checks each signature once, not once per node.
    memo: Memo,
}

impl Cluster {
    /// Starts `count` nodes with this time between two rounds of gossip.
    pub(crate) async fn start(count: u32, round: Duration) -> Self {
        let founder = Founder::new(1);
        let network = MemoryNetwork::default();
        network.set_delay(DELAY);
        let chains = (0..count).map(|number| founder.node(number, role(number)).member.chain()).collect();
        let mut cluster = Self { network, nodes: Vec::new(), founder, chains, round, memo: Memo::default() };
        for number in 0..count {
            cluster.add(number).await;
        }
        cluster
    }

    /// Starts the node of this number.
    pub(crate) async fn add(&mut self, number: u32) {
        let identity = self.founder.node(number, role(number));
        let (id, service, started) = (identity.node(), identity.service(), Instant::now());
        let coordinator =
            Coordinator::new(Settings::new(1, 1, 0), Box::new(identity.key.clone()), identity.member.clone());
        let coordinator = Arc::new(Mutex::new(coordinator.with_check(Box::new(self.memo.clone()))));
        let config = MeshConfig { me: id, cluster: identity.cluster(), generation: 1, interval: self.round };
        let (mesh, updates) = Mesh::start(config, self.network.join(id), vec![]).await.unwrap();
        let points = (0..POINTS).map(|index| served(point(number * POINTS + index, number * POINTS + index))).collect();
        let first = vec![
            Event::KnownMembers(self.chains.clone()),
            Event::IntroPoints { service, points },
            Event::Ready { service, ready: true },
            Event::MeshReached,
        ];
        let task = tokio::spawn(live(Arc::clone(&coordinator), mesh, updates, started, first));
        self.nodes.push(Node { id, coordinator, started, task });
    }

    /// The index of the publisher; `None` unless exactly one node publishes.
    pub(crate) fn publisher(&self) -> Option<usize> {
        let leading: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].leads()).collect();
        (leading.len() == 1).then(|| leading[0])
    }

    /// True if all nodes agree on the publisher and on the living nodes, and the publisher wants
    /// points of all of them, or of twenty.
    pub(crate) fn agrees(&self) -> bool {
        let Some(publisher) = self.publisher().map(|publisher| &self.nodes[publisher]) else { return false };
        let ids: BTreeSet<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        let one = |node: &Node| node.holder() == Some(publisher.id) && node.alive() == ids;
        let wanted = publisher.wanted();
        self.nodes.iter().all(one) && wanted.len() == ids.len().min(20) && wanted.is_subset(&ids)
    }

    /// Waits until `done` holds, and returns how long that took.
    pub(crate) async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) -> Duration {
        let since = Instant::now();
        let waited = timeout(PATIENCE, async {
            while !done(self) {
                sleep(Duration::from_millis(250)).await;
            }
        });
        assert!(waited.await.is_ok(), "never happened: {what}");
        since.elapsed()
    }

    /// Cuts half of the nodes off from the others for this time.
    pub(crate) async fn split(&self, time: Duration) {
        self.nodes.iter().take(self.nodes.len() / 2).for_each(|node| self.network.set_side(node.id, 1));
        sleep(time).await;
        self.network.heal();
    }

    /// Kills a node. Returns how long it took until all agreed again, on another publisher if need
    /// be, without the dead node.
    pub(crate) async fn kill(&mut self, node: usize) -> Duration {
        let dead = self.nodes.remove(node).id;
        self.network.set_down(dead, true);
        self.until("a death is noticed", Self::agrees).await
    }

    /// Messages and bytes per node and minute, while nothing happens.
    pub(crate) async fn traffic(&self, during: Duration) -> Traffic {
        let sum = |traffic: BTreeMap<NodeId, Traffic>| {
            let add = |sum: Traffic, node: &Traffic| Traffic {
                messages: sum.messages + node.messages,
                bytes: sum.bytes + node.bytes,
            };
            traffic.values().fold(Traffic::default(), add)
        };
        let before = sum(self.network.traffic());
        sleep(during).await;
        let after = sum(self.network.traffic());
        let share = self.nodes.len() as f64 * during.as_secs_f64() / 60.0;
        let per = |before: u64, after: u64| ((after - before) as f64 / share) as u64;
        Traffic { messages: per(before.messages, after.messages), bytes: per(before.bytes, after.bytes) }
    }
}

/// Every third node is a worker.
fn role(number: u32) -> Role {
    if number % 3 == 2 { Role::Worker } else { Role::Publisher }
}
