//! WireGuard in this node: starts the engine where the configuration says so, gives it what the
//! plan decides, announces this node's keys and addresses, and hands the peers' streams to the
//! links.
//!
//! It is never needed: a failure is a state with a reason, which `status` shows, and the links stay
//! on Tor.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::coordinator::Event;
use rustbalance_gossip::id::NodeId;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::cluster::{Cluster, SealedEndpoints};
use super::supervisor::PartResult;
use crate::blocking::on_disk;
use crate::causes::with_causes;
use crate::clock::unix_now;
use crate::config::{WIREGUARD_PORT, WireguardConfig, WireguardDevice};
use crate::counters::Counters;
use crate::discovery::Discovery;
use crate::keys::DiscoverySecret;
use crate::link::{Channel, LinkStatus, Links, RouteKind, RouteState};
use crate::store::Store;
use crate::sync;
use crate::wireguard::{
    Announcement, Engine, EngineError, EngineSlot, Kernel, NotAPeer, OwnKeys, PlanAction, Situation, TunnelStream,
    Userspace, WireguardPlan, WireguardSecret, default_addresses, seal,
};

/// Interval at which the plan is reviewed: keys rotate by time alone, and routes become proven.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Pause before WireGuard is started again after a failure: a busy port or a missing address may
/// need the operator, and a network that is not up yet some seconds.
const RETRY: Duration = Duration::from_secs(5);
/// Time limit for a request to take effect.
const SWITCH_LIMIT: Duration = Duration::from_secs(5);

/// Whether WireGuard runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum WireguardState {
    /// It is switched off.
    #[default]
    Off,
    /// It is switched on and starts.
    Starting,
    /// It cannot run, for this reason; tried again every few seconds.
    Failed(String),
    /// It runs.
    On {
        /// Where it listens.
        listens: Vec<SocketAddr>,
        /// The addresses that this node announces.
        endpoints: Vec<SocketAddr>,
        /// Why members that announce WireGuard are not peers.
        refused: BTreeMap<NodeId, NotAPeer>,
    },
}

/// Starts engines.
#[async_trait]
pub(super) trait EngineStarter: Send + Sync {
    /// Starts an engine on these addresses. Returns it, the streams that peers open, and the
    /// addresses with their ports.
    async fn start(&self, listens: &[SocketAddr]) -> Result<Started, EngineError>;
}

/// An engine that runs.
pub(super) struct Started {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) streams: mpsc::Receiver<TunnelStream>,
    pub(super) listens: Vec<SocketAddr>,
}

/// Starts the engine that the configuration names.
pub(super) struct ConfiguredStarter {
    pub(super) device: WireguardDevice,
    pub(super) me: NodeId,
    pub(super) counters: Counters,
}

#[async_trait]
impl EngineStarter for ConfiguredStarter {
    async fn start(&self, listens: &[SocketAddr]) -> Result<Started, EngineError> {
        let counters = self.counters.clone();
        Ok(match self.device {
            WireguardDevice::Userspace => {
                let (engine, streams) = Userspace::start(self.me, listens, counters).await?;
                Started { listens: engine.addresses().to_vec(), engine: Arc::new(engine), streams }
            }
            WireguardDevice::Kernel => {
                let (engine, streams) = Kernel::start(self.me, listens, counters).await?;
                Started { listens: engine.addresses().to_vec(), engine: Arc::new(engine), streams }
            }
        })
    }
}

/// The handle of WireGuard in this node.
pub(super) struct WireguardHandle {
    wanted: watch::Sender<bool>,
    state: watch::Receiver<WireguardState>,
    slot: Arc<EngineSlot>,
}

impl WireguardHandle {
    /// The state now.
    pub(super) fn state(&self) -> WireguardState {
        self.state.borrow().clone()
    }

    /// What the engine knows of its peers.
    pub(super) fn engine(&self) -> &EngineSlot {
        &self.slot
    }

    /// Follows `enabled` in the configuration when a reload changes it. Other reloads leave a
    /// switch by [`WireguardHandle::switch`] as it is.
    pub(super) fn follow(
        &self,
        mut config: watch::Receiver<WireguardConfig>,
    ) -> impl Future<Output = PartResult> + use<> {
        let wanted = self.wanted.clone();
        let mut before = config.borrow_and_update().enabled;
        async move {
            while config.changed().await.is_ok() {
                let now = config.borrow_and_update().enabled;
                if now != before {
                    wanted.send_replace(now.unwrap_or_default());
                }
                before = now;
            }
            Ok(())
        }
    }

    /// Switches WireGuard on or off until the next start, and waits until it is so or has failed.
    pub(super) async fn switch(&self, on: bool) -> WireguardState {
        self.wanted.send_replace(on);
        let mut state = self.state.clone();
        let is_settled = |state: &WireguardState| match state {
            WireguardState::Off => !on,
            WireguardState::Starting => false,
            WireguardState::Failed(_) | WireguardState::On { .. } => on,
        };
        let _ = timeout(SWITCH_LIMIT, state.wait_for(is_settled)).await;
        self.state()
    }
}

/// Removes the interface that an earlier process left over when it was killed, also if WireGuard is
/// off or in userspace now: its peers could still reach this host.
fn remove_left_over(me: &NodeId) {
    match on_disk(|| Kernel::remove_left_over(me)) {
        Ok(false) => {}
        Ok(true) => info!(
            name: "wireguard_leftover_removed",
            "removed the WireGuard interface that an earlier process has left over"
        ),
        Err(error) => {
            let why = with_causes(&error);
            warn!(
                name: "wireguard_leftover_remove_failed",
                %why,
                "cannot remove the WireGuard interface that an earlier process has left over"
            );
        }
    }
}

/// WireGuard before it runs.
pub(super) struct WireguardPart {
    pub(super) starter: Box<dyn EngineStarter>,
    /// The configuration, which a reload changes.
    pub(super) config: watch::Receiver<WireguardConfig>,
    pub(super) store: Arc<Store>,
    pub(super) cluster: Cluster,
    /// Takes the streams of peers.
    pub(super) links: Arc<Links>,
    /// The engine that the route uses.
    pub(super) slot: Arc<EngineSlot>,
    /// The members' announcements.
    pub(super) sealed: watch::Receiver<SealedEndpoints>,
    /// The newest discovery key.
    pub(super) newest: watch::Receiver<Option<Arc<Discovery>>>,
}

impl WireguardPart {
    /// The handle, and the task to run.
    pub(super) fn into_task(self) -> (WireguardHandle, WireguardTask) {
        let (wanted, watched) = watch::channel(self.config.borrow().enabled.unwrap_or_default());
        let (state, states) = watch::channel(WireguardState::Off);
        let handle = WireguardHandle { wanted, state: states, slot: Arc::clone(&self.slot) };
        (handle, WireguardTask { part: self, wanted: watched, state, ring: Vec::new(), has_announced: false })
    }
}

/// The task that runs WireGuard while it is wanted.
pub(super) struct WireguardTask {
    part: WireguardPart,
    wanted: watch::Receiver<bool>,
    state: watch::Sender<WireguardState>,
    /// This node's discovery keys, newest first.
    ring: Vec<DiscoverySecret>,
    /// True while the others know keys and addresses of this node.
    has_announced: bool,
}

/// Why WireGuard does not run, or stops to.
enum End {
    /// It is no longer wanted.
    SwitchedOff,
    /// The addresses of this host have changed.
    Moved,
    /// It cannot run, for this reason.
    Failed(String),
}

impl WireguardTask {
    /// Runs until `stop`. Ends earlier only with the cluster's task.
    pub(super) async fn run(mut self, stop: CancellationToken) -> PartResult {
        remove_left_over(&self.part.store.node_id());
        stop.run_until_cancelled(self.keep_running()).await;
        self.part.slot.set(None);
        Ok(())
    }

    async fn keep_running(&mut self) {
        loop {
            if !*self.wanted.borrow_and_update() {
                sync::publish(&self.state, WireguardState::Off);
                if self.wanted.changed().await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            }
            let end = self.serve().await;
            self.part.slot.set(None);
            self.withdraw().await;
            match end {
                End::SwitchedOff => info!(name: "wireguard_off", "WireGuard is off: everything goes over Tor"),
                End::Moved => info!(
                    name: "wireguard_host_moved",
                    "the addresses of this host have changed: WireGuard starts again"
                ),
                End::Failed(why) => {
                    if sync::publish(&self.state, WireguardState::Failed(why.clone())) {
                        warn!(
                            name: "wireguard_failed",
                            %why,
                            "WireGuard cannot run: everything goes over Tor, and it is tried again"
                        );
                    }
                    let _ = timeout(RETRY, self.wanted.changed()).await;
                }
            }
        }
    }

    /// Runs the engine while it is wanted and nothing fails.
    async fn serve(&mut self) -> End {
        if !matches!(*self.state.borrow(), WireguardState::Failed(_)) {
            self.state.send_replace(WireguardState::Starting);
        }
        let mut own = match self.own_keys() {
            Ok(own) => own,
            Err(why) => return End::Failed(why),
        };
        let chosen = self.addresses();
        if chosen.is_empty() {
            return End::Failed(
                "this host has no default route to learn an address from: set listen in [wireguard]".into(),
            );
        }
        let Started { engine, mut streams, listens } = match self.part.starter.start(&chosen).await {
            Ok(started) => started,
            Err(error) => return End::Failed(with_causes(&error)),
        };
        self.part.slot.set(Some(Arc::clone(&engine)));
        info!(name: "wireguard_on", ?listens, endpoints = ?self.endpoints(&listens), "WireGuard is on");
        let mut plan = WireguardPlan::new(self.part.store.cluster(), self.part.store.node_id());
        let mut look = interval(LOOK_PAUSE);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let endpoints = self.endpoints(&listens);
            self.rotate(&mut own);
            if let Err(why) = self.step(&mut plan, &*engine, &own, &listens, &endpoints).await {
                return End::Failed(why);
            }
            let refused = plan.refused().clone();
            let state = WireguardState::On { listens: listens.clone(), endpoints, refused };
            sync::publish(&self.state, state);
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() || !*self.wanted.borrow() {
                    return End::SwitchedOff;
                },
                stream = streams.recv() => match stream {
                    Some(stream) => self.accept(stream),
                    None => return End::Failed("the engine has stopped".into()),
                },
                Ok(()) = self.part.sealed.changed() => {}
                Ok(()) = self.part.newest.changed() => {}
                _ = look.tick() => if self.has_moved(&chosen) {
                    return End::Moved;
                },
            }
        }
    }

    /// The addresses to listen on: configured, or those of the default routes now. Read again at
    /// each look, so that a reload counts.
    fn addresses(&self) -> Vec<SocketAddr> {
        self.part.config.borrow().listen.clone().unwrap_or_else(|| default_addresses(WIREGUARD_PORT))
    }

    /// The addresses to announce: configured, or those on which the engine listens.
    fn endpoints(&self, listens: &[SocketAddr]) -> Vec<SocketAddr> {
        self.part.config.borrow().endpoints.clone().unwrap_or_else(|| listens.to_vec())
    }

    /// Whether this host has other addresses than `chosen` now. Without any, it may have lost its
    /// network for a moment.
    fn has_moved(&self, chosen: &[SocketAddr]) -> bool {
        let now = self.addresses();
        !now.is_empty() && now != chosen
    }

    /// The keys on disk, or a first one.
    fn own_keys(&self) -> Result<OwnKeys, String> {
        let store = &self.part.store;
        match on_disk(|| store.wireguard_keys()).map_err(|error| with_causes(&error))? {
            Some(bytes) => OwnKeys::from_bytes(&bytes)
                .ok_or_else(|| "wireguard.key does not hold one or two dated keys: remove it".into()),
            None => {
                let own = OwnKeys::new(WireguardSecret::generate(&mut rand::rng()), unix_now());
                on_disk(|| store.put_wireguard_keys(&own.to_bytes())).map_err(|error| with_causes(&error))?;
                Ok(own)
            }
        }
    }

    /// Rotates the keys if that is due. They are on disk before they are used; if they cannot be
    /// written, the rotation waits.
    fn rotate(&self, own: &mut OwnKeys) {
        let mut next = own.duplicate();
        if !next.rotate(unix_now(), || WireguardSecret::generate(&mut rand::rng())) {
            return;
        }
        match on_disk(|| self.part.store.put_wireguard_keys(&next.to_bytes())) {
            Ok(()) => {
                debug!("the WireGuard keys have changed");
                *own = next;
            }
            Err(error) => debug!(%error, "cannot store new WireGuard keys, will try again"),
        }
    }

    /// One step of the plan. An error is the reason why WireGuard cannot go on.
    async fn step(
        &mut self,
        plan: &mut WireguardPlan,
        engine: &dyn Engine,
        own: &OwnKeys,
        listens: &[SocketAddr],
        endpoints: &[SocketAddr],
    ) -> Result<(), String> {
        self.read_ring()?;
        let proven = proven(&self.part.links.status());
        let sealed = self.part.sealed.borrow_and_update().clone();
        let unix = unix_now();
        let (sealed, ring, proven) = (&sealed, self.ring.as_slice(), &proven);
        let actions = plan.step(&Situation { sealed, ring, own, proven, listens, endpoints, unix });
        for action in actions {
            match action {
                PlanAction::Apply(desired) => engine.apply(desired),
                PlanAction::Announce(announcement) => self.announce(&announcement).await,
            }
        }
        Ok(())
    }

    /// Reads this node's discovery keys again if there is a new one.
    fn read_ring(&mut self) -> Result<(), String> {
        let newest = self.part.newest.borrow_and_update().as_ref().map(|newest| newest.secret.public());
        if self.ring.is_empty() || newest != self.ring.first().map(DiscoverySecret::public) {
            let ring = on_disk(|| self.part.store.discovery()).map_err(|error| with_causes(&error))?;
            self.ring = ring.secrets().into_iter().map(DiscoverySecret::duplicate).collect();
        }
        Ok(())
    }

    async fn announce(&mut self, announcement: &Announcement) {
        let (cluster, node) = (self.part.store.cluster(), self.part.store.node_id());
        let sealed = self.ring.first().and_then(|newest| seal(announcement, newest, cluster, node, rand::random()));
        if let Some(sealed) = sealed {
            self.has_announced = true;
            // If the cluster's task has ended, the node is stopping.
            let _ = self.part.cluster.send_event(Event::Endpoint { sealed }).await;
        }
    }

    /// Tells the others that this node takes no packets any more.
    async fn withdraw(&mut self) {
        if std::mem::take(&mut self.has_announced) {
            let _ = self.part.cluster.send_event(Event::Endpoint { sealed: VarBytes::default() }).await;
        }
    }

    fn accept(&self, TunnelStream { binding, stream, .. }: TunnelStream) {
        self.part.links.accept(Channel { route: RouteKind::WIREGUARD, binding, stream });
    }
}

/// The peers to which the route is proven.
fn proven(links: &[LinkStatus]) -> BTreeSet<NodeId> {
    let proven = links.iter().filter(|link| link.route == RouteKind::WIREGUARD && link.state == RouteState::Proven);
    proven.map(|link| link.peer).collect()
}
