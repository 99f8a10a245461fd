//! The task of a mesh. It starts chitchat, writes this node's values, delivers those of others,
//! pushes new values to peers, and asks for what is missing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use rustbalance_gossip::address::mesh_socket;
use rustbalance_gossip::id::NodeId;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{debug, warn};

use crate::adapter::Adapter;
use crate::delivery::Delivery;
use crate::gate::{Claim, Gate};
use crate::news::{Found, News};
use crate::wire::{Fresh, Incarnation};
use crate::{Carrier, MeshConfig, MeshError, Own, Update, wire};

/// Bits of chitchat's generation that count the incarnations within one start of the node. The bits
/// above them are [`MeshConfig::generation`].
const INCARNATION_BITS: u32 = 16;
/// Number of peers that get the last values at a shutdown.
const FAREWELLS: usize = 3;
/// Part of a round for which new values are collected before they are pushed in one message.
const PUSH_DELAY: u32 = 5;
/// Rounds after the start of an incarnation in which all others are new to this node: it need not
/// push them to its neighbours.
const ALL_IS_NEW: u32 = 20;
/// How long chitchat remembers a silent node. After half of it the node's values are no longer
/// forwarded.
const DEAD_NODE_GRACE: Duration = Duration::from_secs(3600);
/// How long chitchat keeps the tombstone of a retracted value: longer than any incarnation lasts,
/// so tombstones are never garbage-collected. Otherwise gaps in the versions would be normal, and a
/// hostile peer could hide values by claiming that they were collected.
const DELETION_GRACE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Shortest time between the first restarts of gossip: while versions of this node are spoofed, the
/// others ignore its values.
const QUICK_RESTART_AFTER: Duration = Duration::from_secs(5);
/// Number of restarts after [`QUICK_RESTART_AFTER`] only. Then [`RESTART_AFTER`] applies, because
/// each incarnation stays in the digests of all nodes for as long as chitchat remembers it.
const QUICK_RESTARTS: u64 = 8;
/// Shortest time between two further restarts of gossip.
const RESTART_AFTER: Duration = Duration::from_secs(60);

pub(super) struct Keeper {
    config: MeshConfig,
    adapter: Adapter,
    own: Arc<Own>,
    gate: Arc<Gate>,
    updates: mpsc::Sender<Update>,
    chitchat: ChitchatHandle,
    changed: Arc<Notify>,
    /// Values have changed that may have to be pushed.
    stale: Arc<Notify>,
    push_at: Option<Instant>,
    news: News,
    links: Arc<dyn Fn() -> BTreeSet<NodeId> + Send + Sync>,
    incarnation: u64,
    born: Instant,
    /// The last spoofed version that was counted.
    claimed: Claim,
    delivery: Delivery,
    outbox: VecDeque<Update>,
}

impl Keeper {
    pub(super) async fn start(
        config: MeshConfig,
        carrier: Carrier,
        own: Arc<Own>,
        gate: Arc<Gate>,
        updates: mpsc::Sender<Update>,
    ) -> Result<Self, MeshError> {
        let links = Arc::clone(&carrier.links);
        let adapter = Adapter::new(&config, carrier, Arc::clone(&gate));
        let (changed, stale) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let chitchat = begin(&config, 0, &adapter, &gate, [&changed, &stale]).await?;
        Ok(Self {
            config,
            adapter,
            own,
            gate,
            updates,
            chitchat,
            changed,
            stale,
            push_at: None,
            news: News::default(),
            links,
            incarnation: 0,
            born: Instant::now(),
            claimed: Claim::default(),
            delivery: Delivery::default(),
            outbox: VecDeque::new(),
        })
    }

    pub(super) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut tick = interval(self.config.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let own = Arc::clone(&self.own);
        let (changed, stale) = (Arc::clone(&self.changed), Arc::clone(&self.stale));
        let updates = self.updates.clone();
        loop {
            let push_at = self.push_at;
            tokio::select! {
                _ = &mut stop => break,
                () = own.changed.notified() => self.write_own().await,
                () = changed.notified(), if self.outbox.is_empty() => self.collect().await,
                () = stale.notified(), if push_at.is_none() => {
                    self.push_at = Some(Instant::now() + self.config.interval / PUSH_DELAY);
                }
                () = sleep_until(push_at.unwrap_or_else(Instant::now)), if push_at.is_some() => self.push().await,
                permit = updates.reserve(), if !self.outbox.is_empty() => {
                    let Ok(permit) = permit else { break };
                    if let Some(update) = self.outbox.pop_front() {
                        permit.send(update);
                    }
                }
                _ = tick.tick() => self.look_after().await,
            }
        }
        self.send_last_values().await;
    }

    /// Writes this node's values to chitchat's state. An unchanged value keeps its version.
    async fn write_own(&self) {
        let values = self.own.values.lock().clone();
        let chitchat = self.chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        let state = chitchat.self_node_state();
        for (key, value) in values {
            match value {
                Some(value) => state.set(key, value),
                None if state.contains_key(&key) => {
                    state.delete(&key);
                    // chitchat reports changed values, but not deleted ones.
                    self.stale.notify_one();
                }
                None => {}
            }
        }
    }

    /// Pushes new values: this node's own over every link to a peer that can use them, those of
    /// others to the peers that have subscribed to them.
    async fn push(&mut self) {
        self.push_at = None;
        let chitchat = self.chitchat.chitchat();
        let chitchat = chitchat.lock().await;
        let own = chitchat.self_chitchat_id();
        let (found, own) = (self.news.next(chitchat.node_states(), own), Incarnation::of(own));
        let Found { news, appeared, too_much } = found;
        drop(chitchat);
        if too_much {
            self.gate.stir();
        }
        let links = (self.links)();
        let mut by_peer: BTreeMap<NodeId, Vec<&Fresh>> = BTreeMap::new();
        for fresh in &news {
            let peers = match Some(fresh.incarnation) == own {
                true => self.gate.met(&links),
                false => self.gate.subscribers(&fresh.incarnation, &links),
            };
            peers.into_iter().for_each(|peer| by_peer.entry(peer).or_default().push(fresh));
        }
        // To the neighbours that do not know the incarnation this is the reason to ask.
        for fresh in appeared.iter().filter(|_| self.born.elapsed() > self.config.interval * ALL_IS_NEW) {
            let peers = links.iter().filter(|peer| !self.gate.is_source(&fresh.incarnation, peer));
            peers.for_each(|peer| by_peer.entry(*peer).or_default().push(fresh));
        }
        for (peer, news) in by_peer {
            for message in wire::push(self.config.cluster, &news) {
                self.adapter.send(peer, message);
            }
        }
    }

    /// Puts the next batch of values that have not been delivered into the outbox.
    async fn collect(&mut self) {
        let chitchat = self.chitchat.chitchat();
        let chitchat = chitchat.lock().await;
        let batch = self.delivery.next(chitchat.node_states(), chitchat.self_chitchat_id());
        drop(chitchat);
        self.gate.count_malformed(batch.nonsense);
        self.outbox.extend(batch.updates);
        if batch.more {
            self.changed.notify_one();
        }
    }

    /// Once per interval: restarts gossip if it must, writes values again, forgets what chitchat
    /// has forgotten, asks for what is missing.
    async fn look_after(&mut self) {
        // Picks up changes whose notification was missed.
        self.changed.notify_one();
        self.stale.notify_one();
        if self.must_restart().await {
            self.restart().await;
        }
        self.write_own().await;
        let chitchat = self.chitchat.chitchat();
        let chitchat = chitchat.lock().await;
        let states = chitchat.node_states();
        let has: BTreeMap<Incarnation, u64> =
            states.iter().filter_map(|(id, state)| Some((Incarnation::of(id)?, state.max_version()))).collect();
        self.gate.prune(&has);
        self.delivery.forget(|id| !states.contains_key(id));
        self.news.forget(|id| !states.contains_key(id));
        drop(chitchat);
        let links = (self.links)();
        self.pull(&links, &has);
        for (peer, incarnations) in self.gate.subscribe(&links) {
            self.adapter.send(peer, wire::subscribe(&incarnations));
        }
        self.ask(links);
    }

    /// Asks peers for single incarnations. `has` holds the version that chitchat has of each.
    fn pull(&self, links: &BTreeSet<NodeId>, has: &BTreeMap<Incarnation, u64>) {
        for (peer, incarnations) in self.gate.pulls(links) {
            // All of them: others may have made up one that is newer than the present one.
            let of_peer = Incarnation { node: peer, generation: 0 }..=Incarnation { node: peer, generation: u64::MAX };
            let own: Vec<_> = has.range(of_peer).map(|(own, version)| (*own, *version)).collect();
            if !own.is_empty() {
                let version = |lacked| has.get(lacked).copied().unwrap_or(0);
                let lacked: Vec<_> = incarnations.iter().map(|lacked| (*lacked, version(lacked))).collect();
                self.adapter.send(peer, wire::pull(&own, &lacked));
            }
        }
    }

    async fn must_restart(&mut self) -> bool {
        if timeout(Duration::ZERO, self.chitchat.termination_watcher()).await.is_ok() {
            return true;
        }
        let claimed = self.gate.claimed();
        let chitchat = self.chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        let state = chitchat.self_node_state();
        let lied = claimed.version > state.max_version() || claimed.heartbeat > u64::from(state.heartbeat());
        if lied && claimed != self.claimed {
            self.claimed = claimed;
            self.gate.count_spoofed_version();
        }
        let asked = self.own.restart.load(Ordering::Relaxed);
        (lied || asked)
            && self.born.elapsed()
                >= if self.incarnation < QUICK_RESTARTS { QUICK_RESTART_AFTER } else { RESTART_AFTER }
    }

    async fn restart(&mut self) {
        if self.incarnation + 1 >= 1 << INCARNATION_BITS {
            return;
        }
        let incarnation = self.incarnation + 1;
        self.chitchat.abort();
        match begin(&self.config, incarnation, &self.adapter, &self.gate, [&self.changed, &self.stale]).await {
            Ok(chitchat) => {
                warn!(name: "gossip_restarted", incarnation, "gossip restarted under a new generation");
                self.chitchat = chitchat;
                self.incarnation = incarnation;
                self.born = Instant::now();
                self.claimed = Claim::default();
                self.delivery = Delivery::default();
                self.news = News::default();
                self.adapter.questions().restart();
                self.own.restart.store(false, Ordering::Relaxed);
                self.gate.count_restart();
            }
            Err(error) => warn!(name: "gossip_restart_failed", %error, "cannot restart gossip, will try again"),
        }
    }

    /// Starts the comparisons that are due. chitchat's own seeds cannot change after its start, so
    /// it gets none.
    fn ask(&self, links: BTreeSet<NodeId>) {
        let members = self.own.seeds.lock().iter().copied().filter(|seed| *seed != self.config.me).collect::<Vec<_>>();
        let (silent, unknown) = (self.gate.silent(members.into_iter()), self.gate.take_unknown());
        let due = self.adapter.questions().due(links, &silent, unknown, Instant::now());
        for node in due {
            self.gate.know(node);
            if let Err(error) = self.chitchat.gossip(mesh_socket(&node)) {
                debug!(%error, "gossip has stopped");
            }
        }
    }

    /// Sends the last values to some peers, then stops chitchat.
    async fn send_last_values(mut self) {
        self.write_own().await;
        self.push().await;
        self.adapter.questions().open();
        let peers: Vec<_> = {
            let chitchat = self.chitchat.chitchat();
            let chitchat = chitchat.lock().await;
            let others = |id: &&ChitchatId| *id != chitchat.self_chitchat_id();
            let live = chitchat.live_nodes().filter(others);
            // Right after the start no node counts as live yet.
            let known = chitchat.node_states().keys().filter(others);
            live.chain(known).map(|id| id.gossip_advertise_addr).take(FAREWELLS).collect()
        };
        let notified = peers.iter().filter(|peer| self.chitchat.gossip(**peer).is_ok()).count();
        if notified > 0 {
            tokio::time::sleep(self.config.interval).await;
        }
        if let Err(error) = self.chitchat.shutdown().await {
            debug!(%error, "gossip had stopped before");
        }
    }
}

/// Starts chitchat for one incarnation of this node.
async fn begin(
    config: &MeshConfig,
    incarnation: u64,
    adapter: &Adapter,
    gate: &Gate,
    changed: [&Arc<Notify>; 2],
) -> Result<ChitchatHandle, MeshError> {
    let generation = (config.generation << INCARNATION_BITS) | incarnation;
    let address = mesh_socket(&config.me);
    gate.begin(generation);
    let chitchat_config = ChitchatConfig {
        chitchat_id: ChitchatId::new(config.me.to_string(), generation, address),
        cluster_id: config.cluster.to_string(),
        gossip_interval: config.interval,
        listen_addr: address,
        seed_nodes: Vec::new(),
        failure_detector_config: failure_detector(config.interval),
        marked_for_deletion_grace_period: DELETION_GRACE,
        catchup_callback: None,
        extra_liveness_predicate: None,
    };
    let handle = spawn_chitchat(chitchat_config, Vec::new(), adapter)
        .await
        .map_err(|error| MeshError::Start(error.to_string()))?;
    let changed = changed.map(Arc::clone);
    handle
        .with_chitchat(move |chitchat: &mut Chitchat| {
            let changed = changed.clone();
            chitchat.subscribe_event("", move |_| changed.iter().for_each(|changed| changed.notify_one())).forever();
        })
        .await;
    Ok(handle)
}

/// Only decides which nodes chitchat contacts while this node is busy, and when it forgets a node;
/// liveness is judged by signed heartbeats. chitchat sees signs of life in comparisons alone, which
/// are rare while nothing happens, so it waits for minutes.
fn failure_detector(interval: Duration) -> FailureDetectorConfig {
    FailureDetectorConfig::new(8.0, 8, interval * 3600, interval * 60, DEAD_NODE_GRACE)
}
