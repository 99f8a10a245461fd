//! The parts that make this node a member of its cluster: links, its own onion service, gossip, and
//! the cluster's task.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rustbalance_gossip::coordinator::{Coordinator, Event};
use rustbalance_gossip::record::Revocation;
use rustbalance_gossip::signed::Verified;
use rustbalance_mesh::{Carrier, Mesh, MeshConfig, MeshCounters, MeshLimits, ROUND, Update};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::warn;

use super::NodeError;
use super::alarms::Alarms;
use super::cluster::{self, Cluster, ClusterParts, Decisions, DecisionsByService};
use super::discovery::Rotation;
use super::known::{self, Boot};
use super::own_service::OwnServicePart;
use super::reports::{report, report_eviction, report_reach, show_phase};
use super::service_facts;
use super::supervisor::{PartResult, Supervisor};
use super::wireguard::{ConfiguredStarter, WireguardHandle, WireguardPart};
use super::writer;
use crate::balance::check::point_check;
use crate::clock::unix_now;
use crate::config::LiveConfig;
use crate::counters::Counters;
use crate::discovery::{Discovery, Offer};
use crate::keys::{AuthoritySecret, outage_secret};
use crate::link::{CarriedJoin, LinkConfig, LinkOutputs, Links, MemberSet, Route, TorRoute};
use crate::store::Store;
use crate::tor::{Engine as TorEngine, RefusedCounts};
use crate::wireguard::{Engine, EngineSlot, WireguardRoute};

/// Time limit for the cluster's task to end, and then for the mesh to spread the goodbye.
const STOP_STEP: Duration = Duration::from_secs(5);

/// The inputs of [`MeshPart::start`].
pub(super) struct MeshInputs<'a> {
    /// A Tor engine that is ready.
    pub(super) engine: &'a Arc<dyn TorEngine>,
    pub(super) store: &'a Arc<Store>,
    pub(super) live: &'a LiveConfig,
    /// `None` on workers.
    pub(super) authority: Option<&'a AuthoritySecret>,
    /// The node's counters.
    pub(super) counters: &'a Counters,
}

/// The results of [`MeshPart::start`].
pub(super) struct MeshPart {
    /// The handle of the cluster's task.
    pub(super) cluster: Cluster,
    /// The decisions for each service.
    pub(super) services: watch::Receiver<DecisionsByService>,
    pub(super) links: Arc<Links>,
    /// Joiners that workers carry here.
    pub(super) joins: mpsc::Receiver<CarriedJoin>,
    /// The newest discovery key.
    pub(super) discovery: watch::Receiver<Option<Arc<Discovery>>>,
    /// Reads how many messages gossip has refused, by reason.
    pub(super) gossip: Box<dyn Fn() -> MeshCounters + Send + Sync>,
    pub(super) alarms: Arc<Alarms>,
    pub(super) wireguard: WireguardHandle,
}

impl MeshPart {
    /// Starts the links first and the cluster's task last: its goodbye needs all the others.
    pub(super) async fn start(needs: MeshInputs<'_>, parts: &mut Supervisor) -> Result<Self, NodeError> {
        let MeshInputs { engine, store, authority, .. } = needs;
        let (newest, discovery) = watch::channel(None);
        let (accepted, accepted_watch) = watch::channel(Vec::new());
        let slot = Arc::new(EngineSlot::default());
        let faster = WireguardRoute::new(Arc::clone(&slot) as Arc<dyn Engine>);
        let LinkParts { links, members, carrier, outputs } =
            start_links(&needs, Arc::new(faster), discovery.clone(), parts)?;
        let own_service = OwnServicePart {
            engine: Arc::clone(engine),
            identity: store.node_secret()?,
            accepted: accepted_watch,
            links: Arc::clone(&links),
            refused: Arc::new(RefusedCounts::of_members(needs.counters.clone())),
        };
        parts.start("own service", STOP_STEP, |stop| own_service.run(stop));

        let boot = Boot { number: store.next_boot(unix_now())?, instance: rand::rng().random() };
        let (mesh, updates) = start_gossip(&needs, boot, carrier, &members).await?;
        let gossip = Box::new(mesh.counting());
        parts.spawn("limits of gossip", limit_gossip(needs.live.gossip(), mesh.limiting()));
        let alarms = Arc::new(Alarms::new(store.alarms()?));
        let ports = needs.live.targets().borrow().ports(store.cluster().first_service());
        service_facts::ensure(store, &ports, unix_now())?;
        let rotation = Rotation {
            engine: Arc::clone(engine),
            store: Arc::clone(store),
            links: Arc::clone(&links),
            reach: links.reach(),
            members: members.subscribe(),
            newest,
            accepted,
        };
        let cluster_parts = ClusterParts {
            coordinator: coordinator(&needs, boot)?,
            mesh,
            updates,
            facts: outputs.facts,
            members,
            cluster: store.cluster(),
            services: store.services()?,
            alarms: Arc::clone(&alarms),
            authority: authority.map(AuthoritySecret::duplicate),
            known: known::events(store)?,
        };
        let (cluster, decisions) = start_cluster(cluster_parts, Arc::clone(store), parts);
        let Decisions { services, publishes, phase, excluded, endpoints } = decisions;
        parts.spawn("membership", end_of_membership(excluded));
        parts.spawn("announced settings", announce_settings(&needs, cluster.clone()));
        parts.spawn("discovery keys", rotation.run(cluster.clone(), publishes, outputs.offered));
        parts.spawn("report of evictions", report_eviction(outputs.revoked, cluster.clone()));
        parts.spawn("report of links", report_reach(links.reach(), cluster.clone()));
        parts.spawn("report of silence", report(links.unreachable(), cluster.clone(), Event::Unreachable));
        parts.spawn("report of phases", show_phase(phase));
        let starter = ConfiguredStarter {
            device: needs.live.at_start().wireguard.device,
            me: store.node_id(),
            counters: needs.counters.clone(),
        };
        let wireguard = WireguardPart {
            starter: Box::new(starter),
            config: needs.live.wireguard(),
            store: Arc::clone(store),
            cluster: cluster.clone(),
            links: Arc::clone(&links),
            slot,
            sealed: endpoints,
            newest: discovery.clone(),
        };
        let (wireguard, task) = wireguard.into_task();
        parts.start("WireGuard", STOP_STEP, |stop| task.run(stop));
        parts.spawn("switch of WireGuard", wireguard.follow(needs.live.wireguard()));
        Ok(Self { cluster, services, links, joins: outputs.joins, discovery, gossip, alarms, wireguard })
    }
}

/// The links, and the ends that the rest of the mesh needs.
struct LinkParts {
    links: Arc<Links>,
    /// The members that the links are to reach.
    members: watch::Sender<MemberSet>,
    carrier: Carrier,
    outputs: Outputs,
}

/// The outputs of the links other than the carrier.
struct Outputs {
    joins: mpsc::Receiver<CarriedJoin>,
    revoked: mpsc::Receiver<Verified<Revocation>>,
    offered: mpsc::Receiver<Offer>,
    facts: mpsc::Receiver<Vec<Update>>,
}

fn start_links(
    needs: &MeshInputs<'_>,
    faster: Arc<dyn Route>,
    discovery: watch::Receiver<Option<Arc<Discovery>>>,
    parts: &mut Supervisor,
) -> Result<LinkParts, NodeError> {
    let store = needs.store;
    let (members, members_watch) = watch::channel(known::members(store)?);
    let config = LinkConfig {
        base: Arc::new(TorRoute::new(Arc::clone(needs.engine))),
        faster: vec![faster],
        identity: store.node_secret()?,
        membership: store.newest_membership()?,
        discovery,
        limits: needs.live.links(),
        counters: needs.counters.clone(),
    };
    let (links, LinkOutputs { carrier, joins, revoked, offered, facts }) = Links::start(config, members_watch);
    let links = Arc::new(links);
    let closing = Arc::clone(&links);
    parts.start("links", STOP_STEP, |stop| async move {
        stop.cancelled().await;
        closing.shutdown();
        Ok(())
    });
    Ok(LinkParts { links, members, carrier, outputs: Outputs { joins, revoked, offered, facts } })
}

async fn start_gossip(
    needs: &MeshInputs<'_>,
    boot: Boot,
    carrier: Carrier,
    members: &watch::Sender<MemberSet>,
) -> Result<(Mesh, mpsc::Receiver<Update>), NodeError> {
    let (me, cluster) = (needs.store.node_id(), needs.store.cluster());
    let seeds = members.borrow().members.iter().copied().filter(|node| *node != me).collect();
    let config = MeshConfig { me, cluster, generation: boot.generation(), interval: ROUND };
    let (mesh, updates) = Mesh::start(config, carrier, seeds).await?;
    mesh.set_limits(*needs.live.gossip().borrow());
    Ok((mesh, updates))
}

fn coordinator(needs: &MeshInputs<'_>, boot: Boot) -> Result<Coordinator, NodeError> {
    let MeshInputs { store, live, authority, .. } = *needs;
    let settings = known::settings(store, live, boot, authority)?;
    let coordinator = Coordinator::new(settings, Box::new(store.node_secret()?), store.newest_membership()?);
    Ok(coordinator.with_point_check(point_check(authority.map(AuthoritySecret::duplicate))))
}

/// Starts the disk writer, then the cluster's task, which stops first.
fn start_cluster(made_of: ClusterParts, store: Arc<Store>, parts: &mut Supervisor) -> (Cluster, Decisions) {
    let (cluster, decisions, disk, actor) = cluster::start(made_of);
    // Needs no stop signal: it ends by itself after the cluster's task, once it has tried to write
    // the last state.
    parts.start("disk writer", STOP_STEP, |_| async move {
        writer::write_all(store, disk.wanted, disk.stored_term).await;
        Ok(())
    });
    parts.start("cluster", 2 * STOP_STEP, |stop| async move {
        let mesh = actor.run(stop).await;
        if timeout(STOP_STEP, mesh.shutdown()).await.is_err() {
            warn!(name: "goodbye_unsure", "the other members may not have received the goodbye");
        }
        Ok(())
    });
    (cluster, decisions)
}

/// Gives the mesh the limits of each reload.
async fn limit_gossip(mut limits: watch::Receiver<MeshLimits>, limit: impl Fn(MeshLimits)) -> PartResult {
    // A reload may have come since the mesh was started.
    limits.mark_changed();
    while limits.changed().await.is_ok() {
        limit(*limits.borrow_and_update());
    }
    Ok(())
}

/// Gives the coordinator the settings of each reload.
fn announce_settings(needs: &MeshInputs<'_>, cluster: Cluster) -> impl Future<Output = PartResult> + use<> {
    let secret = needs.authority.map(outage_secret);
    let mut announced = needs.live.announced();
    // A reload may have come since the coordinator was made.
    announced.mark_changed();
    report(announced, cluster, move |announced| Event::Preferences(known::preferences(&announced, secret.clone())))
}

/// Ends the node once it is no longer a member.
async fn end_of_membership(mut excluded: watch::Receiver<Option<String>>) -> PartResult {
    match excluded.wait_for(Option::is_some).await.ok().and_then(|why| why.clone()) {
        Some(why) => Err(NodeError::Excluded(why)),
        None => Ok(()),
    }
}
