//! Everything that serves one onion address on this node: introduction points, stand-in, publisher,
//! proxy and health checks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rustbalance_gossip::coordinator::Event;
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::PeriodId;
use rustbalance_gossip::stand_in::UnattendedPoint;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info_span};

use super::NodeError;
use super::admission::JoinPort;
use super::canary::ServiceRepairs;
use super::cluster::{Cluster, ServiceDecisions};
use super::disk::{IdentityKeyCredentials, StoredIntroPoints, StoredRevisions};
use super::reports::report;
use super::supervisor::{PartResult, Supervisor};
use crate::balance;
use crate::balance::keeping::Keeping;
use crate::balance::stand_in::task::{StandIn, StandInPoint};
use crate::balance::task::{Balance, PointRepair, PointStatus};
use crate::config::JOIN_PORT;
use crate::health::{Health, HealthSettings};
use crate::keys::{AuthoritySecret, IdentitySecret};
use crate::proxy::{Connector, PortTarget, Proxy};
use crate::publish;
use crate::publish::plan::DirectoryReport;
use crate::publish::task::{OtherPublisherSeen, Publisher};
use crate::store::Store;
use crate::sync;
use crate::tor::{Directory, Engine, Incoming, Refused, ServiceGuard};

/// Client streams that may wait to be handled.
const STREAMS: usize = 256;
/// Time that open client streams have to finish while their service stops. A node that is asked to
/// stop has given them more before.
const GRACE: Duration = Duration::from_secs(5);
/// Time limit for a part of a service to stop once its streams have ended.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for the services to stop: first their streams, then their other parts, which end at
/// once unless one hangs. Before that comes `[limits] shutdown_timeout`, an hour at most.
pub(super) const UNITS_STOP: Duration = Duration::from_secs(3600 + GRACE.as_secs() + 2 * STOP_LIMIT.as_secs());

/// State shared by the services of a node.
#[derive(Clone)]
pub(super) struct ServiceContext {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) store: Arc<Store>,
    /// Receives events about the service.
    pub(super) cluster: Cluster,
    /// Answers at the join port of the cluster's first service.
    pub(super) join_port: Option<Arc<JoinPort>>,
    /// Bounds on clients' circuits, over all services together.
    pub(super) limits: Arc<ServiceGuard>,
    /// Bounds and counts client streams, over all services together.
    pub(super) proxy: Proxy,
    /// Number of introduction points to keep for each service.
    pub(super) points: watch::Receiver<usize>,
    pub(super) health: watch::Receiver<HealthSettings>,
    /// Whether introduction points are kept; changes when the node stops.
    pub(super) keeping: Arc<watch::Sender<Keeping>>,
    /// Cancelled when the node is asked to stop. Then it serves its clients to the end; a node that
    /// stops because it has failed does not.
    pub(super) asked_to_stop: CancellationToken,
    /// Connects to targets, for clients and for health checks.
    pub(super) connector: Connector,
}

/// The secrets that a publisher holds for a service.
pub(super) struct PublisherSecrets {
    pub(super) authority: AuthoritySecret,
    pub(super) master: IdentitySecret,
}

impl PublisherSecrets {
    /// The secrets of this node; `None` on workers, and if this node stores nothing of the service.
    pub(super) fn of(service: ServiceId, store: &Store) -> Result<Option<Self>, NodeError> {
        if !store.services()?.contains(&service) {
            return Ok(None);
        }
        let (authority, master) = (store.authority_secret()?, store.identity_secret(service)?);
        Ok(authority.zip(master).map(|(authority, master)| Self { authority, master }))
    }
}

/// The desired states of a service's parts.
pub(super) struct ServiceWatches {
    publish: watch::Sender<publish::task::WantedPublication>,
    balance: watch::Sender<balance::task::WantedPoints>,
    stand_in: watch::Sender<BTreeSet<UnattendedPoint>>,
}

impl ServiceWatches {
    pub(super) fn new(first: ServiceDecisions) -> Self {
        let ServiceDecisions { publish, balance, stand_in } = first;
        let (publish, balance, stand_in) =
            (watch::Sender::new(publish), watch::Sender::new(balance), watch::Sender::new(stand_in));
        Self { publish, balance, stand_in }
    }

    /// Replaces the desired states; wakes the parts whose state changes.
    pub(super) fn set(&self, wanted: ServiceDecisions) {
        let ServiceDecisions { publish, balance, stand_in } = wanted;
        sync::publish(&self.publish, publish);
        sync::publish(&self.balance, balance);
        sync::publish(&self.stand_in, stand_in);
    }
}

/// The state of a service for `status`.
#[derive(Clone)]
pub(super) struct ServiceView {
    pub(super) points: watch::Receiver<Vec<PointStatus>>,
    pub(super) stand_ins: watch::Receiver<Vec<StandInPoint>>,
    pub(super) other_publisher: watch::Receiver<Option<OtherPublisherSeen>>,
    /// What each directory has confirmed; empty unless this node publishes.
    pub(super) directories: watch::Receiver<Vec<DirectoryReport>>,
    /// `None` if this node has no targets for the service.
    pub(super) health: Option<Arc<Health>>,
    /// What the canary can have repaired.
    pub(super) repairs: ServiceRepairs,
}

/// A running service. Dropping it aborts its parts.
pub(super) struct ServiceUnit {
    parts: Supervisor,
    view: ServiceView,
}

impl ServiceUnit {
    /// Starts to serve `service` at `targets`. A publisher also publishes it, even without targets.
    /// A unit that starts without targets never has any.
    pub(super) fn start(
        service: ServiceId,
        targets: watch::Receiver<Vec<PortTarget>>,
        wanted: &ServiceWatches,
        context: &ServiceContext,
    ) -> Result<Self, NodeError> {
        let secrets = PublisherSecrets::of(service, &context.store)?;
        context.connector.refuse_own(service.address());
        // Log lines name the service, unless it is the cluster's first.
        let mut parts = match service == context.store.cluster().first_service() {
            true => Supervisor::default(),
            false => Supervisor::in_span(info_span!("service", address = service.short())),
        };
        let limits = Arc::new(context.limits.of_service(service));
        let starting = Starting { service, context, limits, parts: &mut parts };
        let view = starting.start(targets, wanted, secrets)?;
        Ok(Self { parts, view })
    }

    /// The state of the service for `status`.
    pub(super) fn view(&self) -> ServiceView {
        self.view.clone()
    }

    /// Runs until `stop`, and then until its streams have ended or their time is over. If a part
    /// ends by itself, its error goes to `failed` at once, and clients are served until `stop`:
    /// other nodes must take over first.
    pub(super) async fn run(mut self, stop: CancellationToken, failed: mpsc::Sender<NodeError>) {
        let error = stop.run_until_cancelled(self.parts.first_end()).await;
        if let Some(error) = error {
            // One error is enough to end the node.
            let _ = failed.try_send(error);
            stop.cancelled().await;
        }
        self.parts.stop().await;
    }
}

/// A service whose parts are being started.
struct Starting<'a> {
    service: ServiceId,
    context: &'a ServiceContext,
    /// The bounds on clients' circuits, which count what happens for this service.
    limits: Arc<ServiceGuard>,
    parts: &'a mut Supervisor,
}

impl Starting<'_> {
    fn start(
        mut self,
        targets: watch::Receiver<Vec<PortTarget>>,
        wanted: &ServiceWatches,
        secrets: Option<PublisherSecrets>,
    ) -> Result<ServiceView, NodeError> {
        let (other_publisher, other_publisher_watch) = watch::channel(None);
        let (directories, directories_watch) = watch::channel(Vec::new());
        let (stand_ins, stand_ins_watch) = watch::channel(Vec::new());
        let (points, points_watch) = watch::channel(Vec::new());
        let (repairs, of_points, of_directories) = ServiceRepairs::new();
        let mut health = None;
        let authority = secrets.map(|PublisherSecrets { authority, master }| {
            let seen = (directories, other_publisher);
            self.publisher(master, wanted.publish.subscribe(), of_directories, seen);
            authority
        });
        if !targets.borrow().is_empty() {
            let checks = self.health(targets.clone());
            let failed_streams = checks.failed_streams();
            health = Some(checks);
            let (streams, incoming) = mpsc::channel(STREAMS);
            self.introduction_points(wanted.balance.subscribe(), of_points, streams.clone(), points)?;
            if let Some(authority) = authority {
                self.stand_in(authority, wanted.stand_in.subscribe(), streams, stand_ins);
            }
            self.proxy(targets, incoming, failed_streams);
        }
        Ok(ServiceView {
            points: points_watch,
            stand_ins: stand_ins_watch,
            other_publisher: other_publisher_watch,
            directories: directories_watch,
            health,
            repairs,
        })
    }

    fn report<T: Clone + Send + Sync + 'static>(
        &mut self,
        name: &str,
        watch: watch::Receiver<T>,
        event: impl Fn(T) -> Event + Send + 'static,
    ) {
        self.parts.spawn(name, report(watch, self.context.cluster.clone(), event));
    }

    fn publisher(
        &mut self,
        master: IdentitySecret,
        wanted: watch::Receiver<publish::task::WantedPublication>,
        doubts: mpsc::Receiver<(PeriodId, Directory)>,
        (directories, other_publisher): (
            watch::Sender<Vec<DirectoryReport>>,
            watch::Sender<Option<OtherPublisherSeen>>,
        ),
    ) {
        let (published, published_watch) = watch::channel(Vec::new());
        let (cannot_publish, unable_watch) = watch::channel(());
        let publisher = Publisher {
            engine: Arc::clone(&self.context.engine),
            service: self.service,
            credentials: Arc::new(IdentityKeyCredentials(master)),
            revisions: Arc::new(StoredRevisions { store: Arc::clone(&self.context.store), service: self.service }),
            wanted,
            doubts,
            report: published,
            directories,
            cannot_publish,
            other_publisher,
            refresh: Duration::from_secs(rand::rng().random_range(3600..7200)),
        };
        self.parts.start("publisher", STOP_LIMIT, |stop| async move {
            if let Err(error) = publisher.run(stop).await {
                error!(name: "publish_task_failed", %error, "the publisher has failed");
            }
            Ok(())
        });
        let service = self.service;
        self.report("report of publications", published_watch, move |periods| Event::Published { service, periods });
        let cannot_publish = move |()| Event::CannotPublish { service };
        self.report("report of a publisher that cannot publish", unable_watch, cannot_publish);
    }

    fn health(&mut self, targets: watch::Receiver<Vec<PortTarget>>) -> Arc<Health> {
        let health = Arc::new(Health::start(targets, self.context.health.clone(), self.context.connector.clone()));
        let mut ready = health.ready();
        ready.mark_changed();
        let service = self.service;
        self.report("report of health", ready, move |ready| Event::Ready { service, ready });
        health
    }

    fn introduction_points(
        &mut self,
        wanted: watch::Receiver<balance::task::WantedPoints>,
        repairs: mpsc::Receiver<PointRepair>,
        streams: mpsc::Sender<Incoming>,
        status: watch::Sender<Vec<PointStatus>>,
    ) -> Result<(), NodeError> {
        let (advertised, advertised_watch) = watch::channel(Vec::new());
        let points = Balance {
            engine: Arc::clone(&self.context.engine),
            service: self.service,
            store: Arc::new(StoredIntroPoints::new(Arc::clone(&self.context.store), self.service)?),
            limits: Arc::clone(&self.limits),
            streams,
            points: self.context.points.clone(),
            wanted,
            repairs,
            keeping: self.context.keeping.subscribe(),
            advertised,
            status,
        };
        let run = |stop| async move { points.run(stop).await.map_err(NodeError::IntroPoints) };
        self.parts.start("introduction points", STOP_LIMIT, run);
        let service = self.service;
        let event = move |points| Event::IntroPoints { service, points };
        self.report("report of introduction points", advertised_watch, event);
        Ok(())
    }

    fn stand_in(
        &mut self,
        authority: AuthoritySecret,
        wanted: watch::Receiver<BTreeSet<UnattendedPoint>>,
        streams: mpsc::Sender<Incoming>,
        status: watch::Sender<Vec<StandInPoint>>,
    ) {
        let stand_in = StandIn {
            engine: Arc::clone(&self.context.engine),
            service: self.service,
            authority,
            limits: Arc::clone(&self.limits),
            streams,
            wanted,
            keeping: self.context.keeping.subscribe(),
            status,
        };
        let run = |stop| async move { stand_in.run(stop).await.map_err(NodeError::IntroPoints) };
        self.parts.start("stand-in", STOP_LIMIT, run);
    }

    fn proxy(
        &mut self,
        targets: watch::Receiver<Vec<PortTarget>>,
        incoming: mpsc::Receiver<Incoming>,
        failed_streams: mpsc::Sender<u16>,
    ) {
        let (to_proxy, clients) = mpsc::channel(STREAMS);
        // Joiners dial the cluster's first service.
        let is_first = self.service == self.context.store.cluster().first_service();
        let join_port = self.context.join_port.clone().filter(|_| is_first);
        let sorted = sort_streams(incoming, to_proxy, join_port, Arc::clone(&self.limits));
        self.parts.spawn("client streams", sorted);
        let proxy = self.context.proxy.with_targets(self.service, targets).reporting_to(failed_streams);
        self.parts.start("proxy", GRACE + STOP_LIMIT, |stop| async move {
            proxy.run(clients, stop, GRACE).await;
            Ok(())
        });
    }
}

/// Passes streams to the join port if there is one, and all other streams to the proxy.
async fn sort_streams(
    mut incoming: mpsc::Receiver<Incoming>,
    proxy: mpsc::Sender<Incoming>,
    join_port: Option<Arc<JoinPort>>,
    limits: Arc<ServiceGuard>,
) -> PartResult {
    while let Some(stream) = incoming.recv().await {
        match &join_port {
            Some(join_port) if stream.port == JOIN_PORT => {
                // The join port bounds these by its own places.
                let join_port = Arc::clone(join_port);
                tokio::spawn(async move { join_port.answer(stream).await });
            }
            _ => {
                // Dropping a stream rejects it: the queue is full, or the service stops.
                if let Err(mpsc::error::TrySendError::Full(_)) = proxy.try_send(stream) {
                    limits.refused.count(Refused::Queue);
                }
            }
        }
    }
    Ok(())
}
