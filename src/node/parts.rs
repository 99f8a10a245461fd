//! All the parts of a running node: started in order, watched over, taken down in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rustbalance_gossip::coordinator::{Coordinator, Event, Settings};
use rustbalance_gossip::lease::Timing;
use rustbalance_gossip::liveness::Patience;
use rustbalance_gossip::record::{PublishedPeriod, Revocation, Role};
use rustbalance_gossip::signed::Verified;
use rustbalance_gossip::view::Condition;
use rustbalance_mesh::{Mesh, MeshConfig, ROUND};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::NodeError;
use super::admission::{Gatekeeper, JoinPort};
use super::alarms::Alarms;
use super::cluster::{self, Cluster, Decisions};
use super::control::{Daemon, Running};
use super::discovery::Rotation;
use super::disk::{MasterKeyCredentials, StoredIntroPoints, StoredRevisions};
use super::tasks::{Ended, Tasks};
use crate::balance::check::point_check;
use crate::balance::stand_in::task::StandIn;
use crate::balance::task::Balance;
use crate::clock::unix_now;
use crate::config::{Config, JOIN_PORT, LiveConfig};
use crate::counters::Counters;
use crate::health::Health;
use crate::join::Publisher as Admitting;
use crate::keys::{AuthoritySecret, DiscoveryPublic, NodeSecret, outage_secret};
use crate::link::{CarriedJoin, Channel, LINK_PORT, LinkConfig, LinkOutputs, Links, MemberSet, TorRoute};
use crate::proxy::Proxy;
use crate::publish::task::Publisher;
use crate::store::Store;
use crate::systemd;
use crate::tor::{Engine, Incoming, OwnService, Refused, RefusedCounts, ServiceGuard};

/// Client streams that may wait to be taken.
const STREAMS: usize = 256;
/// How long open client streams may go on while the daemon stops.
const GRACE: Duration = Duration::from_secs(5);
/// How long Tor takes to be seen as ended once a task has ended with it.
const TOR_ENDS: Duration = Duration::from_secs(1);
/// Bound on each step of the shutdown that waits for others.
const SHUTDOWN_STEP: Duration = Duration::from_secs(5);
/// How soon the node's own service is tried again.
const LISTEN_PAUSE: Duration = Duration::from_secs(2);

/// Between two looks at what gives no word of its own.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// Streams to the node's own service that may be in the accepting at once.
const ACCEPTING: usize = 32;
/// Bound on accepting one.
const ACCEPT_LIMIT: Duration = Duration::from_secs(30);

/// A running node.
pub(super) struct Parts {
    cluster: Cluster,
    excluded: watch::Receiver<Option<String>>,
    bootstrap: watch::Receiver<crate::tor::Bootstrap>,
    tasks: Tasks,
    actor: tokio::task::JoinHandle<Mesh>,
    proxy: tokio::task::JoinHandle<()>,
    links: Arc<Links>,
    /// Ends the parts that take new work.
    stop_serving: CancellationToken,
    /// Ends the rest.
    stop_all: CancellationToken,
}

impl Parts {
    /// Starts everything on a Tor that is ready.
    pub(super) async fn start(
        engine: Arc<dyn Engine>,
        store: Arc<Store>,
        live: &LiveConfig,
        daemon: &Daemon,
    ) -> Result<Self, NodeError> {
        let config = live.at_start();
        let (stop_serving, stop_all) = (CancellationToken::new(), CancellationToken::new());
        let (boot, instance) = (store.next_boot(unix_now())?, rand::rng().random());
        let me = store.node_id();
        let authority = store.authority_secret()?;
        let (members, members_watch) = watch::channel(known_members(&store)?);
        let (newest, discovery) = watch::channel(None);
        let (accepted, accepted_watch) = watch::channel(Vec::new());
        let config_of_links = LinkConfig {
            base: Arc::new(TorRoute::new(Arc::clone(&engine))),
            faster: Vec::new(),
            identity: store.node_secret()?,
            membership: store.membership().clone(),
            discovery: discovery.clone(),
            limits: config.links.clone(),
        };
        let members_of_rotation = members_watch.clone();
        let (links, LinkOutputs { carrier, joins, revoked, offered, facts }) =
            Links::start(config_of_links, members_watch);
        let links = Arc::new(links);
        let rotation = Rotation {
            engine: Arc::clone(&engine),
            store: Arc::clone(&store),
            links: Arc::clone(&links),
            members: members_of_rotation,
            newest,
            accepted,
        };
        let seeds = members.borrow().members.iter().copied().filter(|node| *node != me).collect();
        let mesh = MeshConfig { me, cluster: store.cluster(), generation: generation(boot, instance), interval: ROUND };
        let (mesh, updates) = Mesh::start(mesh, carrier, seeds).await?;
        mesh.set_limits(config.gossip.mesh);
        let gossip = mesh.counting();
        let coordinator = Coordinator::new(
            settings(&store, config, (boot, instance), authority.as_ref())?,
            Box::new(store.node_secret()?),
            store.membership().clone(),
        )
        .with_point_check(point_check(authority.as_ref().map(|authority| authority.duplicate())));
        let alarms = Arc::new(Alarms::new(store.alarms()?));
        let parts = cluster::Parts {
            coordinator,
            mesh,
            updates,
            facts,
            store: Arc::clone(&store),
            alarms: Arc::clone(&alarms),
            authority: authority.as_ref().map(|authority| authority.duplicate()),
            known: what_the_disk_knows(&store)?,
        };
        let (cluster, decisions, actor) = cluster::start(parts);
        let actor = tokio::spawn(actor.run(stop_all.clone()));

        let mut tasks = Tasks::default();
        let Decisions { publish, balance, stand_in, members: decided, excluded } = decisions;
        tasks.spawn("members", forward_members(decided, members));
        tasks.spawn("discovery keys", rotation.run(cluster.clone(), publish.clone(), offered));
        let counters = Counters::default();
        let own = Arc::new(RefusedCounts::of_members(counters.clone()));
        let service = listen(
            Arc::clone(&engine),
            store.node_secret()?,
            accepted_watch,
            Arc::clone(&links),
            own,
            stop_all.clone(),
        );
        tasks.spawn("own service", service);
        tasks.spawn("revocations", take_word(revoked, cluster.clone()));
        tasks.spawn("mesh report", tell_of_mesh(Arc::clone(&links), cluster.clone()));

        let service = store.cluster().first_service();
        let (streams, incoming) = mpsc::channel(STREAMS);
        let limits = Arc::new(ServiceGuard::new(live.service(), RefusedCounts::of_clients(counters.clone())));
        let (advertised, advertised_watch) = watch::channel(Vec::new());
        let (points, points_watch) = watch::channel(Vec::new());
        let balancing = Balance {
            engine: Arc::clone(&engine),
            service,
            store: Arc::new(StoredIntroPoints::new(Arc::clone(&store), service)?),
            limits: Arc::clone(&limits),
            streams: streams.clone(),
            points: config.cluster.intro_points,
            wanted: balance,
            advertised,
            status: points,
        };
        let stop = stop_all.clone();
        tasks.spawn("intro points", async move { balancing.run(stop).await.map_err(NodeError::IntroPoints) });
        tasks.spawn(
            "intro points report",
            pump(advertised_watch, cluster.clone(), move |points| Event::IntroPoints { service, points }),
        );

        let (stand_ins, stand_ins_watch) = watch::channel(Vec::new());
        let (stranger, stranger_watch) = watch::channel(None);
        let admitting = match (store.membership().role(), authority, store.identity_secret(service)?) {
            (Role::Publisher, Some(authority), Some(master)) => {
                let (report, report_watch) = watch::channel(Vec::new());
                let (unable, unable_watch) = watch::channel(());
                let publisher = Publisher {
                    engine: Arc::clone(&engine),
                    service,
                    credentials: Arc::new(MasterKeyCredentials(master)),
                    revisions: Arc::new(StoredRevisions { store: Arc::clone(&store), service }),
                    wanted: publish,
                    report,
                    unable,
                    stranger,
                    refresh: Duration::from_secs(rand::rng().random_range(3600..7200)),
                };
                let stop = stop_all.clone();
                tasks.spawn("publisher", async move {
                    publisher.run(stop).await;
                    Ok(())
                });
                tasks.spawn(
                    "publication report",
                    pump(report_watch, cluster.clone(), move |periods| Event::Published { service, periods }),
                );
                tasks.spawn(
                    "inability report",
                    pump(unable_watch, cluster.clone(), move |()| Event::CannotPublish { service }),
                );
                let standing_in = StandIn {
                    engine: Arc::clone(&engine),
                    service,
                    authority: authority.duplicate(),
                    limits: Arc::clone(&limits),
                    streams,
                    wanted: stand_in,
                    status: stand_ins,
                };
                let stop = stop_all.clone();
                tasks.spawn("stand-in", async move { standing_in.run(stop).await.map_err(NodeError::IntroPoints) });
                Some(Admitting {
                    membership: store.membership().clone(),
                    node: store.node_secret()?,
                    authority,
                    services: store.service_secrets()?,
                })
            }
            _ => None,
        };

        let health = Arc::new(Health::start(config.ports.clone(), live.health()));
        let mut ready = health.ready();
        ready.mark_changed();
        tasks.spawn("health report", pump(ready, cluster.clone(), move |ready| Event::Ready { service, ready }));
        let proxy = Proxy::new(config.ports.clone(), live.proxy(), daemon.descriptors.room(), counters.clone());
        let gatekeeper = admitting.map(|publisher| Gatekeeper {
            publisher,
            cluster: cluster.clone(),
            store: Arc::clone(&store),
            ports: config.ports.iter().map(|target| target.port).collect(),
            discovery: discovery.clone(),
        });
        let door =
            Arc::new(JoinPort::new(cluster.clone(), Arc::clone(&links), gatekeeper, live.joins(), counters.clone()));
        let (to_proxy, clients) = mpsc::channel(STREAMS);
        tasks.spawn("client streams", sort_streams(incoming, to_proxy, Arc::clone(&door), Arc::clone(&limits)));
        tasks.spawn("carried joins", answer_carried(joins, Arc::clone(&door)));
        let proxy = tokio::spawn(proxy.run(clients, stop_serving.clone(), GRACE));
        tasks.spawn("phase report", tell_systemd(cluster.clone()));

        let running = Running {
            cluster: cluster.clone(),
            links: Arc::clone(&links),
            points: points_watch,
            stand_ins: stand_ins_watch,
            stranger: stranger_watch,
            discovery,
            health,
            counters,
            gossip: Box::new(gossip),
            alarms,
        };
        // Set once: a daemon starts its parts once.
        let _ = daemon.running.set(running);
        let bootstrap = engine.bootstrap();
        Ok(Self { cluster, excluded, bootstrap, tasks, actor, proxy, links, stop_serving, stop_all })
    }

    /// Runs until told to stop, put out, or broken; then takes everything down in order.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<(), NodeError> {
        let outcome = tokio::select! {
            () = stop.cancelled() => Ok(()),
            why = excluded(&mut self.excluded) => Err(NodeError::Excluded(why)),
            () = closed(&mut self.bootstrap) => Err(tor_stopped()),
            _ = &mut self.proxy => Err(NodeError::TaskEnded("proxy")),
            () = self.cluster.ended() => Err(NodeError::TaskEnded("cluster")),
            error = self.tasks.first_end() => {
                // Tasks that need Tor or the cluster task end with it, in any order: the cause is
                // named, not the first of them.
                let tor_ended = tokio::time::timeout(TOR_ENDS, closed(&mut self.bootstrap)).await.is_ok();
                Err(match error {
                    _ if tor_ended => tor_stopped(),
                    _ if self.actor.is_finished() => NodeError::TaskEnded("cluster"),
                    error => error,
                })
            }
        };
        if let Err(error) = &outcome {
            warn!(%error, "stopping");
        }
        self.shut_down().await;
        outcome
    }

    /// First goodbye, so that the others take over at once; then the clients; then the rest.
    async fn shut_down(mut self) {
        info!("saying goodbye");
        // An actor that has ended has nothing to say.
        let _ = self.cluster.tell_and_wait(Event::Leave).await;
        self.stop_serving.cancel();
        // One that has ended by itself has been waited for.
        if !self.proxy.is_finished() && tokio::time::timeout(GRACE + SHUTDOWN_STEP, &mut self.proxy).await.is_err() {
            self.proxy.abort();
        }
        self.stop_all.cancel();
        match tokio::time::timeout(SHUTDOWN_STEP, self.actor).await {
            Ok(Ok(mesh)) => {
                if tokio::time::timeout(SHUTDOWN_STEP, mesh.shutdown()).await.is_err() {
                    warn!("the others may not have heard the goodbye");
                }
            }
            Ok(Err(error)) => warn!(%error, "the cluster task has failed: the others have heard no goodbye"),
            Err(_) => warn!("the cluster task did not end in time"),
        }
        self.links.shutdown();
        self.tasks.shutdown().await;
        info!("stopped");
    }
}

/// What the coordinator starts with.
fn settings(
    store: &Store,
    config: &Config,
    (boot, instance): (u64, u64),
    authority: Option<&AuthoritySecret>,
) -> Result<Settings, NodeError> {
    let heartbeat = config.cluster.heartbeat;
    let mut settings = Settings::new(boot, instance, store.term()?);
    settings.priority = config.node.priority;
    settings.weight = config.node.weight;
    settings.ports = config.ports.iter().map(|port| port.port).collect();
    settings.patience = Patience { interval: heartbeat, least: heartbeat * 5, most: heartbeat * 20 };
    settings.timing = Timing { ttl: config.cluster.lease_ttl, ..Timing::default() };
    settings.waiting = config.gossip.waiting;
    settings.hide_outages = authority.filter(|_| config.cluster.hide_outages).map(outage_secret);
    Ok(settings)
}

/// The members as of the last run, for the links to begin with.
fn known_members(store: &Store) -> Result<MemberSet, NodeError> {
    let unix = unix_now();
    let chains = store.members()?;
    let members = chains.into_iter().filter_map(|chain| chain.verify(store.cluster(), unix).ok());
    let members = members.filter(|member| member.authority_id() == store.membership().authority_id());
    let roles: BTreeMap<_, _> = members.map(|member| (member.node(), member.role())).collect();
    let revoked = store.revocations()?.into_iter().map(|revocation| (revocation.node, revocation)).collect();
    let publishers = roles.iter().filter(|(_, role)| **role == Role::Publisher).map(|(node, _)| *node).collect();
    Ok(MemberSet { members: roles.into_keys().collect(), publishers, revoked, ..MemberSet::default() })
}

/// The number under which this process gossips: higher than those of earlier starts, and not that
/// of another process which was started from a copy of the same directory, so that the two hear
/// each other.
fn generation(boot: u64, instance: u64) -> u64 {
    boot << 16 | instance & 0xffff
}

/// What the coordinator is told first.
fn what_the_disk_knows(store: &Store) -> Result<Vec<Event>, NodeError> {
    let mut events = vec![Event::KnownMembers(store.members()?)];
    events.extend(store.revocations()?.into_iter().map(Event::Revocation));
    events.extend(store.invitations()?.into_iter().map(Event::Invitation));
    let service = store.cluster().first_service();
    let revisions = store.revisions(service)?.into_iter();
    let published = |(period, revision)| PublishedPeriod { period, revision, confirmed: 0, directories: 0 };
    events.push(Event::Published { service, periods: revisions.map(published).collect() });
    if store.is_draining()? {
        info!("this node drains, as before its restart: it takes no new clients until `rustbalance resume`");
        events.push(Event::Drain);
    }
    Ok(events)
}

/// Hands every new value of a watch to the cluster; the one that is there already says nothing yet.
async fn pump<T: Clone>(mut watch: watch::Receiver<T>, cluster: Cluster, event: impl Fn(T) -> Event) -> Ended {
    while watch.changed().await.is_ok() {
        let value = watch.borrow_and_update().clone();
        if cluster.tell(event(value)).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// The links were started before there was anybody to decide on members.
async fn forward_members(mut decided: watch::Receiver<MemberSet>, members: watch::Sender<MemberSet>) -> Ended {
    while decided.changed().await.is_ok() {
        let latest = decided.borrow_and_update().clone();
        members.send_replace(latest);
    }
    Ok(())
}

/// Keeps the node's own service up for those who may find it, and hands its streams to the links.
async fn listen(
    engine: Arc<dyn Engine>,
    identity: NodeSecret,
    mut accepted: watch::Receiver<Vec<DiscoveryPublic>>,
    links: Arc<Links>,
    refused: Arc<RefusedCounts>,
    stop: CancellationToken,
) -> Ended {
    if accepted.wait_for(|keys| !keys.is_empty()).await.is_err() {
        return Ok(());
    }
    let (streams, mut incoming) = mpsc::channel::<Incoming>(STREAMS);
    let listening = loop {
        let discovery = accepted.borrow_and_update().clone();
        let (identity, refused) = (identity.duplicate(), Arc::clone(&refused));
        let service = OwnService { identity, discovery, ports: vec![LINK_PORT], refused };
        match engine.listen(service, streams.clone()).await {
            Ok(listening) => break listening,
            Err(error) if error.is_transient() => warn!(%error, "cannot start this node's own service, will try again"),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LISTEN_PAUSE).await;
    };
    let places = Arc::new(Semaphore::new(ACCEPTING));
    loop {
        let incoming = tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = accepted.changed() => {
                let keys = accepted.borrow_and_update().clone();
                listening.authorize(keys).await?;
                continue;
            }
            incoming = incoming.recv() => match incoming {
                Some(incoming) => incoming,
                None => break,
            },
        };
        // Too many at once: dropped, it is rejected.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            links.count_crowd();
            continue;
        };
        let links = Arc::clone(&links);
        tokio::spawn(async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(ACCEPT_LIMIT, incoming.request.accept()).await {
                links.accept(Channel::tor(stream));
            }
            drop(place);
        });
    }
    drop(listening);
    Ok(())
}

/// Passes on the authority's word that this node has been put out, which its peers show at closed doors.
async fn take_word(mut revoked: mpsc::Receiver<Verified<Revocation>>, cluster: Cluster) -> Ended {
    while let Some(revocation) = revoked.recv().await {
        // If the actor has ended, its own task reports why.
        let _ = cluster.tell(Event::Revocation(revocation)).await;
    }
    Ok(())
}

/// Tells the cluster once that others can be heard, and whenever they seem to have shut this node out.
async fn tell_of_mesh(links: Arc<Links>, cluster: Cluster) -> Ended {
    let (mut reached, mut shut_out) = (false, false);
    loop {
        if !reached && !links.status().is_empty() {
            reached = true;
            // If the actor has ended, its own task reports why: here and below.
            let _ = cluster.tell(Event::MeshReached).await;
        }
        if links.is_shut_out() != shut_out {
            shut_out = !shut_out;
            if shut_out {
                warn!(
                    "the other members let nobody find them who has only this node's discovery keys: it was evicted, or \
                     missed a change of keys. It will not publish before one of them reaches it; if none does within \
                     minutes, look with `rustbalance status` on another node whether this one is a member still"
                );
            }
            let _ = cluster.tell(Event::ShutOut(shut_out)).await;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Joiners to the door, everybody else to the proxy.
async fn sort_streams(
    mut incoming: mpsc::Receiver<Incoming>,
    proxy: mpsc::Sender<Incoming>,
    door: Arc<JoinPort>,
    limits: Arc<ServiceGuard>,
) -> Ended {
    while let Some(stream) = incoming.recv().await {
        if stream.port == JOIN_PORT {
            // Bounded by the door's own places.
            let door = Arc::clone(&door);
            tokio::spawn(async move { door.answer(stream).await });
        } else {
            // Full: dropped, it is rejected. Closed: the daemon is stopping.
            if let Err(mpsc::error::TrySendError::Full(_)) = proxy.try_send(stream) {
                limits.refused.count(Refused::Queue);
            }
        }
    }
    Ok(())
}

/// Joiners that workers have carried here.
async fn answer_carried(mut carried: mpsc::Receiver<CarriedJoin>, door: Arc<JoinPort>) -> Ended {
    while let Some(CarriedJoin { from, stream }) = carried.recv().await {
        debug!(from = %from.short(), "a joiner is carried here");
        // Bounded by the links' own limit on carried joins.
        let door = Arc::clone(&door);
        tokio::spawn(async move { door.answer_carried(stream).await });
    }
    Ok(())
}

/// Shows the phase in the log and in `systemctl status` whenever it changes.
async fn tell_systemd(cluster: Cluster) -> Ended {
    let mut shown: Option<Condition> = None;
    loop {
        let phase = cluster.look(|coordinator, _| coordinator.condition());
        if shown != Some(phase) {
            info!(%phase, "phase");
            match phase {
                Condition::Healthy => systemd::status("serving clients"),
                other => systemd::status(&other.to_string()),
            }
            shown = Some(phase);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

async fn excluded(watch: &mut watch::Receiver<Option<String>>) -> String {
    let why = watch.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    match why {
        Some(why) => why,
        // The actor has ended: the tasks tell why.
        None => std::future::pending().await,
    }
}

fn tor_stopped() -> NodeError {
    crate::tor::TorError::Stopped("its connection to the network is lost for good".into()).into()
}

async fn closed<T>(watch: &mut watch::Receiver<T>) {
    while watch.changed().await.is_ok() {}
}
