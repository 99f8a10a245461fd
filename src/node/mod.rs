//! The daemon: connects the parts, supervises them, and stops them in order.
//!
//! [`run`] is the entry. The parts are tasks that do not know each other; watches (desired states)
//! and the events of the [`cluster`]'s task connect them. `parts` starts them in order under a
//! `supervisor`: `mesh_part` makes this node a member of the cluster, and each `service_unit`
//! serves one onion address.
//!
//! ```text
//!   mesh ──records──► cluster ──► balance (own intro points) ──► engine
//!   health ─────────►    │   └──► publish (descriptors)      ──► engine
//!   links ──────────►    └──────► links (whom to reach)      ──► engine
//!   engine ──client streams──► proxy | join port
//! ```

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustbalance_mesh::MeshError;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::alerts::{Sender, SenderInputs};
use crate::config::{ConfigError, LiveConfig};
use crate::control::ControlError;
use crate::counters::Counters;
use crate::open_files::OpenFiles;
use crate::store::{Store, StoreError};
use crate::systemd;
use crate::tor::arti::{ArtiConfig, ArtiEngine};
use crate::tor::{Engine, TorError};
use control::Daemon;
use renewal::Renewals;
use supervisor::{PartResult, Supervisor};

pub use check::{Finding, Severity, check};
pub use preflight::{PreflightError, preflight};
pub use reload::{ReloadError, reload};
pub use renewal::run_with;

mod admission;
pub mod alarms;
mod alerting;
mod canary;
mod check;
mod circuits;
mod closing;
pub mod cluster;
mod control;
mod discovery;
mod disk;
mod invitations;
mod known;
mod mesh_part;
mod metrics;
mod older_self;
mod own_service;
mod parts;
mod preflight;
mod reload;
mod renewal;
mod reports;
mod service_facts;
mod service_unit;
mod service_units;
mod status;
mod supervisor;
mod target_dialer;
mod timekeeping;
mod wireguard;
mod wireguard_status;
mod writer;

/// Time limit for stopping the control socket: 10 s for requests in progress, and a margin.
const CONTROL_STOPS: Duration = Duration::from_secs(15);

/// Why the daemon ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine or the state directory cannot run a node.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The state directory cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control socket cannot be opened.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The Tor engine failed.
    #[error(transparent)]
    Tor(#[from] TorError),
    /// Gossip could not start.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// This node's membership has ended, or a second process runs with its key. Contains the
    /// reason.
    #[error("this node is no longer a member of the cluster: {0}")]
    Excluded(String),
    /// Clients do not get through to this node, and no smaller repair than a new Tor client has
    /// helped. Contains the reason.
    #[error("clients do not get through to this node, and a new Tor client may help: {0}")]
    Unreachable(String),
    /// A new Tor client has not helped either. Contains the reason.
    #[error("clients do not get through to this node, with a new Tor client either: {0}")]
    StillUnreachable(String),
    /// This node was restored, and the machine that its backup was made on runs or may run.
    /// Contains what to do.
    #[error("{0}")]
    OlderSelf(String),
    /// The introduction points' keys cannot be used. Contains the reason.
    #[error("cannot keep introduction points: {0}")]
    IntroPoints(String),
    /// A part that must not end has ended, by itself or by a panic. Contains its name.
    #[error("the part {0:?} of this node has ended unexpectedly: please report this with the log")]
    TaskEnded(String),
}

impl NodeError {
    /// True if every start fails in the same way until the operator has fixed the cause.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Config(error) => error.is_permanent(),
            Self::Excluded(_) | Self::OlderSelf(_) | Self::Preflight(_) => true,
            Self::Tor(error) => matches!(error, TorError::Config(..) | TorError::Files(_)),
            Self::Control(error) => matches!(error, ControlError::PathTooLong(_)),
            Self::Store(error) => error.is_permanent(),
            _ => false,
        }
    }
}

/// Runs the node of this state directory over Tor until `stop`, until the operator has it leave, or
/// until it cannot continue. If only its Tor client cannot continue, the node starts again with a
/// new one (see [`run_with`]).
///
/// # Errors
/// See [`NodeError`].
pub async fn run(store: Store, live: Arc<LiveConfig>, stop: CancellationToken) -> Result<(), NodeError> {
    let toml = live.at_start().arti.clone();
    let make = |store: &Store| {
        let (state_dir, cache_dir) = (store.arti_state_dir(), store.arti_cache_dir());
        Ok(ArtiEngine::start(ArtiConfig { toml: toml.clone(), state_dir, cache_dir })? as Arc<dyn Engine>)
    };
    run_with(make, Arc::new(store), live, stop).await
}

/// Like [`run`], on the given engine alone.
///
/// # Errors
/// See [`NodeError`].
pub async fn run_on(
    engine: Arc<dyn Engine>,
    store: Arc<Store>,
    live: Arc<LiveConfig>,
    stop: CancellationToken,
) -> Result<(), NodeError> {
    run_once(engine, None, store, live, stop).await
}

/// Runs the node on one engine until it ends. `renewals`: those before it in this process.
async fn run_once(
    engine: Arc<dyn Engine>,
    renewals: Option<Renewals>,
    store: Arc<Store>,
    live: Arc<LiveConfig>,
    stop: CancellationToken,
) -> Result<(), NodeError> {
    warn_of_few_files(live.proxy().borrow().streams);
    let counters = Counters::default();
    let (alerts, deliveries) = Sender::new(SenderInputs {
        engine: Arc::clone(&engine),
        dir: store.dir().to_owned(),
        settings: live.alerts(),
        counters: counters.clone(),
    });
    let daemon = Arc::new(Daemon {
        store: Arc::clone(&store),
        engine: Arc::clone(&engine),
        renewals,
        started: Instant::now(),
        bootstrap: engine.bootstrap(),
        live: Arc::clone(&live),
        counters,
        alerts,
        running: OnceLock::new(),
        leave: stop.clone(),
    });
    let mut parts = Supervisor::default();
    parts.spawn("watchdog", watched(Arc::clone(&daemon)));
    let (socket, answering) = (crate::control::bind(store.dir())?, Arc::clone(&daemon) as _);
    parts.start("control socket", CONTROL_STOPS, |closing| async move {
        crate::control::serve(socket, answering, closing).await;
        Ok(())
    });
    metrics::start(&daemon, live.at_start().metrics.listen, &mut parts)?;
    alerting::start(&daemon, deliveries, &mut parts);
    // From here on `status` is answered. Connecting to Tor may take minutes, or never end on a
    // censored host: neither `systemctl start` nor the boot of the machine may wait for it.
    systemd::ready();
    let outcome = run_parts(engine, store, &live, &daemon, &stop, &mut parts).await;
    parts.stop().await;
    info!(name: "stopped", "stopped");
    outcome
}

/// Shows systemd that this node is alive: that its runtime is, and once the node runs, that the
/// cluster's task handles its events. A node whose coordinator hangs serves clients for a while,
/// but other nodes take it for dead.
async fn watched(daemon: Arc<Daemon>) -> PartResult {
    systemd::keep_watchdog(|| async {
        if let Some(running) = daemon.running.get() {
            // The task ends before this part only when the node stops.
            let _ = running.cluster.ping().await;
        }
    })
    .await;
    std::future::pending().await
}

/// Warns if fewer files may be open than `[limits] streams` needs.
fn warn_of_few_files(streams: usize) {
    let files = OpenFiles::of_process(streams);
    if !files.suffice() {
        let OpenFiles { limit, needed } = files;
        warn!(
            name: "open_files_too_few",
            limit, needed, streams = files.streams(),
            "too few open files are allowed for [limits] streams, so fewer streams are served at once: raise the limit \
             (LimitNOFILE= in the unit, `ulimit -n` in a shell) or lower streams"
        );
    }
}

/// Waits for Tor, starts all parts, and supervises them until the node is to stop or cannot
/// continue.
async fn run_parts(
    engine: Arc<dyn Engine>,
    store: Arc<Store>,
    live: &LiveConfig,
    daemon: &Arc<Daemon>,
    stop: &CancellationToken,
    parts: &mut Supervisor,
) -> Result<(), NodeError> {
    let ready = tokio::select! {
        ready = bootstrapped(&engine, stop) => ready?,
        error = parts.first_end() => return Err(error),
    };
    if !ready {
        return Ok(());
    }
    let heartbeat = live.at_start().cluster.heartbeat;
    let silent = tokio::select! {
        silent = older_self::await_silence(&*engine, &store, heartbeat, stop) => silent?,
        error = parts.first_end() => return Err(error),
    };
    if !silent {
        return Ok(());
    }
    parts.spawn("memory of the restore", older_self::forget(Arc::clone(&store), heartbeat));
    parts::start(engine, store, live, daemon, parts).await?;
    let ended = stop.run_until_cancelled(parts.first_end()).await;
    let Some(error) = ended else { return Ok(()) };
    warn!(name: "stopping_by_error", %error, "stopping");
    Err(error)
}

/// Waits until circuits can be built; false if `stop` comes first.
async fn bootstrapped(engine: &Arc<dyn Engine>, stop: &CancellationToken) -> Result<bool, NodeError> {
    let mut bootstrap = engine.bootstrap();
    let mut shown = String::new();
    loop {
        let now = bootstrap.borrow_and_update().clone();
        if now.message != shown {
            let percent = (now.fraction * 100.0).round();
            info!(name: "tor_progress", percent, "connecting to Tor: {}", now.message);
            systemd::status(&format!("connecting to Tor: {percent} %"));
            shown = now.message;
        }
        if now.ready {
            return Ok(true);
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            changed = bootstrap.changed() => if changed.is_err() {
                let last = bootstrap.borrow().clone();
                if let Some(why) = last.hopeless {
                    return Err(TorError::Files(why).into());
                }
                return Err(TorError::Stopped(format!("it has given up connecting: {}", last.message)).into());
            },
        }
    }
}
