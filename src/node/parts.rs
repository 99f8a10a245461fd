//! The parts of a running node, in the order in which they start. They stop in the reverse order:
//! first the goodbye, so that the other members take over at once; then the services, which hand
//! their introduction points over and serve their clients to the end; then gossip, links, Tor.

use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::coordinator::Event;
use tokio::sync::{mpsc, watch};
use tracing::info;

use super::NodeError;
use super::admission::{AdmissionInputs, JoinPort};
use super::canary::{CanaryHandle, CanaryInputs};
use super::control::{Daemon, RunningParts};
use super::mesh_part::{MeshInputs, MeshPart};
use super::reports::report_problems;
use super::service_unit::{PublisherSecrets, ServiceContext, UNITS_STOP};
use super::service_units::ServiceUnits;
use super::supervisor::{PartResult, Supervisor};
use super::target_dialer::TorDialer;
use super::timekeeping::watch_clock;
use crate::clock::ClockVerdict;
use crate::config::LiveConfig;
use crate::join::Publisher as Admitting;
use crate::memory;
use crate::proxy::{Connector, Proxy};
use crate::store::Store;
use crate::tor::{Bootstrap, Engine, RefusedCounts, ServiceGuard, TorError};

/// Time limit for the goodbye to reach the cluster's task.
const GOODBYE: Duration = Duration::from_secs(5);

/// Starts all parts on a Tor engine that is ready.
pub(super) async fn start(
    engine: Arc<dyn Engine>,
    store: Arc<Store>,
    live: &LiveConfig,
    daemon: &Arc<Daemon>,
    parts: &mut Supervisor,
) -> Result<(), NodeError> {
    let counters = daemon.counters.clone();
    parts.spawn("connection to Tor", end_of_tor(engine.bootstrap()));
    let secrets = PublisherSecrets::of(store.cluster().first_service(), &store)?;
    let authority = secrets.as_ref().map(|secrets| &secrets.authority);
    let needs = MeshInputs { engine: &engine, store: &store, live, authority, counters: &counters };
    let MeshPart { cluster, services, links, joins, discovery, gossip, alarms, wireguard } =
        MeshPart::start(needs, parts).await?;
    let admission = AdmissionInputs {
        cluster: cluster.clone(),
        links: Arc::clone(&links),
        store: Arc::clone(&store),
        targets: live.targets(),
        discovery: discovery.clone(),
        publisher: admitting(&store, secrets.as_ref())?,
        carried: joins,
        limits: live.joins(),
        counters: counters.clone(),
    };
    let join_port = JoinPort::start(admission, parts);

    let (circuits, configured) = (memory::circuits(), live.service().borrow().open_rendezvous);
    if circuits < configured {
        info!(
            name: "circuits_bounded_by_memory",
            circuits, configured,
            "this host has memory for fewer circuits of clients at once than [limits] open_rendezvous"
        );
    }
    let refused = RefusedCounts::of_clients(counters.clone());
    let limits = Arc::new(ServiceGuard::new(live.service(), circuits, refused));
    let connector = Connector::with_tor(TorDialer(Arc::clone(&engine)));
    let proxy = Proxy::new(live.proxy(), daemon.files().room(), counters.clone()).connecting_with(connector.clone());
    let context = ServiceContext {
        engine: Arc::clone(&engine),
        store: Arc::clone(&store),
        cluster: cluster.clone(),
        join_port: Some(join_port),
        limits: Arc::clone(&limits),
        proxy: proxy.clone(),
        points: live.points(),
        health: live.health(),
        keeping: Arc::default(),
        asked_to_stop: daemon.leave.clone(),
        connector,
    };
    let (failed, failure) = mpsc::channel(1);
    let units = ServiceUnits::start(context, live.targets(), services, failed)?;
    let services = units.views();
    parts.spawn("failures of services", end_of_service(failure));
    parts.start("services", UNITS_STOP, |stop| units.run(stop));
    let inputs = CanaryInputs {
        engine: Arc::clone(&engine),
        renewed: daemon.renewals.is_some(),
        cluster: cluster.clone(),
        services: services.clone(),
        targets: live.targets(),
        limits: Arc::clone(&limits),
        settings: live.canary(),
    };
    let canary = CanaryHandle::start(inputs, parts);
    let (judged, clock) = watch::channel(ClockVerdict::default());
    parts.spawn("clock", watch_clock(Arc::clone(&engine), cluster.clone(), judged));
    let saying = cluster.clone();
    parts.start("goodbye", GOODBYE, |stop| async move {
        stop.cancelled().await;
        info!(name: "goodbye", "saying goodbye");
        // If the cluster's task has ended, there is nothing to announce.
        let _ = saying.send_event_and_wait(Event::Leave).await;
        Ok(())
    });
    // The cell is set once: a daemon starts its parts once.
    let running = RunningParts {
        cluster: cluster.clone(),
        links,
        services,
        discovery,
        engine,
        limits,
        proxy,
        gossip,
        alarms,
        wireguard,
        canary,
        clock,
    };
    let _ = daemon.running.set(running);
    parts.spawn("report of problems", report_problems(Arc::clone(daemon), cluster));
    Ok(())
}

/// The secrets that a publisher admits joiners with; `None` on workers.
fn admitting(store: &Store, secrets: Option<&PublisherSecrets>) -> Result<Option<Admitting>, NodeError> {
    let Some(PublisherSecrets { authority, .. }) = secrets else { return Ok(None) };
    Ok(Some(Admitting {
        membership: store.newest_membership()?,
        node: store.node_secret()?,
        authority: authority.duplicate(),
        services: store.service_secrets()?,
    }))
}

/// Ends the node when the engine has ended for good. All parts that use Tor start later.
async fn end_of_tor(mut bootstrap: watch::Receiver<Bootstrap>) -> PartResult {
    while bootstrap.changed().await.is_ok() {}
    Err(TorError::Stopped("its connection to the network is lost for good".into()).into())
}

/// Ends the node when a service cannot continue.
async fn end_of_service(mut failure: mpsc::Receiver<NodeError>) -> PartResult {
    match failure.recv().await {
        Some(error) => Err(error),
        // The services have stopped, or their part reports its own failure.
        None => std::future::pending().await,
    }
}
