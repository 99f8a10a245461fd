//! The lifecycle of Arti's client: configure, bootstrap in the background, watch, stop.
//!
//! The bootstrap is repeated for ever, with growing pauses; [`Bootstrap`] reports the progress. The
//! same client is used again only after a failure at the network: after any other failure Arti
//! ignores the next call and reports success. An attempt without progress for half an hour counts
//! as failed.
//!
//! The client stops for good, and every later call returns [`TorError::Stopped`], when it is shut
//! down or cannot recover by itself. The node then starts again with a new client.
//! The client cannot recover in these cases:
//! * A failed client does not release its cache, so a new one in its place could only read it.
//! * Arti's vanguard manager has ended, which it does when it meets an expired directory; then no
//!   circuit can be built. It cannot be asked, so two signs are used: the directory had expired and
//!   is valid again, or many circuits in a row have failed for lack of a vanguard.
//! * The task that updates the directory has ended, which it does when it cannot write to disk. The
//!   sign is a directory that has been out of date for long.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Once, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arti_client::status::{BlockageKind, BootstrapEvents, BootstrapStatus};
use arti_client::{ErrorKind, HasKind, TorClient};
use futures::StreamExt;
use parking_lot::{Mutex, RwLock};
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tor_circmgr::SkewEstimate;
use tor_circmgr::hspool::HsCircPool;
use tor_netdir::{NetDir, NetDirProvider, Timeliness};
use tor_rtcompat::PreferredRuntime;

use super::attempts::Attempts;
use super::config::ArtiConfig;
use super::dial::Dials;
use super::directories::Directories;
use super::lateness::{LATE_LIFETIMES, Lateness, refuses_writes};
use super::maker::Maker;
use super::own_service::Launched;
use super::salvage::Verdict;
use crate::backoff::Backoff;
use crate::blocking::on_disk;
use crate::causes::with_causes;
use crate::tor::circuits::Circuits;
use crate::tor::{Bootstrap, NetworkTime, TorError};

/// The status message before the first progress.
const CONNECTING: &str = "connecting to the Tor network";

/// Pauses between attempts to bootstrap.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// An attempt to bootstrap fails after this long without progress. Without a network, each attempt
/// takes that long.
const STALLED: Duration = Duration::from_secs(30 * 60);

/// Interval at which the directory is checked when no event arrives.
const DIRECTORY_CHECK: Duration = Duration::from_secs(30);

/// The vanguard manager counts as ended after this number of consecutive circuits that failed for
/// lack of a vanguard, if these failures span at least this time.
const NO_VANGUARD: (u32, Duration) = (10, Duration::from_secs(120));

/// How long a shutdown waits for the tasks to end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// The client, with its parts that build circuits directly.
#[derive(Clone)]
pub(super) struct ReadyClient {
    pub(super) tor: Arc<TorClient<PreferredRuntime>>,
    pub(super) netdir: Arc<dyn NetDirProvider>,
    pub(super) pool: Arc<HsCircPool<PreferredRuntime>>,
    pub(super) directories: Arc<Directories<PreferredRuntime>>,
}

impl ReadyClient {
    /// The network's directory, if it is valid now.
    pub(super) fn netdir(&self) -> Result<Arc<NetDir>, TorError> {
        self.netdir
            .netdir(Timeliness::Timely)
            .map_err(|error| TorError::NotReady(format!("the network's directory is missing or out of date: {error}")))
    }
}

/// State shared by the calls and the tasks of one engine.
pub(super) struct Shared {
    /// `None` once stopped, and while a failed client is replaced.
    tor: RwLock<Option<Arc<TorClient<PreferredRuntime>>>>,
    /// Set after the bootstrap; `None` once stopped.
    live: RwLock<Option<ReadyClient>>,
    /// The reason, once stopped.
    stopped: OnceLock<String>,
    /// Consecutive circuits that failed for lack of a vanguard, and the time of the first.
    vanguards: Mutex<Option<(u32, Instant)>>,
    /// The task that watches the client holds the sender.
    pub(super) bootstrap: watch::Receiver<Bootstrap>,
    pub(super) changes: watch::Receiver<u64>,
    /// Ends all tasks.
    pub(super) shutdown: CancellationToken,
    pub(super) tasks: TaskTracker,
    /// The circuits of clients.
    pub(super) circuits: Arc<Circuits>,
    /// The circuits of other members to this node's own service.
    pub(super) own: Arc<Circuits>,
    pub(super) dials: Dials,
    pub(super) attempts: Arc<Attempts>,
    /// Seconds by which this machine's clock is ahead of the relays', if Arti is sure of it.
    ahead: Mutex<Option<i64>>,
    pub(super) launched: Launched,
    pub(super) state_dir: PathBuf,
}

/// Makes the client and starts its bootstrap. Does not wait for it; must be called within a Tokio
/// runtime.
pub(super) fn start(config: ArtiConfig) -> Result<Arc<Shared>, TorError> {
    install_crypto();
    let mut maker = Maker::new(&config)?;
    if maker.cache_is_held() {
        tracing::warn!(
            name: "tor_cache_shared",
            cache = %maker.cache_dir.display(),
            "another Tor client has the cache open: until it ends, this one can only read what that one writes there"
        );
    }
    let tor = maker.make()?;
    let message = CONNECTING.into();
    let (bootstrap_sender, bootstrap) = watch::channel(Bootstrap { message, ..Bootstrap::default() });
    let (changes_sender, changes) = watch::channel(0);
    let shared = Arc::new(Shared {
        tor: RwLock::new(Some(Arc::clone(&tor))),
        live: RwLock::default(),
        stopped: OnceLock::new(),
        vanguards: Mutex::default(),
        bootstrap,
        changes,
        shutdown: CancellationToken::new(),
        tasks: TaskTracker::new(),
        circuits: Arc::default(),
        own: Arc::default(),
        dials: Dials::default(),
        attempts: Arc::default(),
        ahead: Mutex::default(),
        launched: Launched::default(),
        state_dir: config.state_dir,
    });
    let watched = watch_client(Arc::clone(&shared), maker, tor, bootstrap_sender, changes_sender);
    shared.tasks.spawn(shared.shutdown.clone().run_until_cancelled_owned(watched));
    Ok(shared)
}

/// Installs the crypto provider that TLS needs, once per process.
fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("another crypto provider is installed already");
        }
    });
}

/// Bootstraps the client, then watches it until it stops.
async fn watch_client(
    shared: Arc<Shared>,
    mut maker: Maker,
    tor: Arc<TorClient<PreferredRuntime>>,
    bootstrap: watch::Sender<Bootstrap>,
    changes: watch::Sender<u64>,
) {
    let (tor, mut progress) = match connect(&shared, &mut maker, tor, &bootstrap).await {
        Ok(connected) => connected,
        Err(error) => {
            let why = error.to_string();
            bootstrap.send_modify(|state| state.message.clone_from(&why));
            if let TorError::Files(why) = error {
                bootstrap.send_modify(|state| state.hopeless = Some(why));
            }
            return shared.fail(&why);
        }
    };
    let live = match live(&tor, &shared.attempts) {
        Ok(live) => live,
        Err(error) => return shared.fail(&format!("it has bootstrapped, but a part of it is missing: {error}")),
    };
    let mut skews = match tor.circmgr() {
        Ok(circuits) => circuits.skew_events(),
        Err(error) => return shared.fail(&format!("it has bootstrapped, but cannot say how clocks differ: {error}")),
    };
    drop(tor);
    let netdir = Arc::clone(&live.netdir);
    *shared.live.write() = Some(live);
    bootstrap.send_modify(|state| {
        *state = Bootstrap { fraction: 1.0, ready: true, message: "connected".into(), hopeless: None }
    });
    changes.send_modify(|count| *count += 1);
    let mut events = netdir.events();
    let mut check = interval(DIRECTORY_CHECK);
    let mut expired = false;
    let mut lateness = Lateness::new(rand::rng().random_range(LATE_LIFETIMES.1));
    let mut refuses = false;
    loop {
        tokio::select! {
            Some(status) = progress.next() => publish_progress(&bootstrap, &status),
            Some(skew) = skews.next() => *shared.ahead.lock() = skew.as_ref().and_then(seconds_ahead),
            Some(_) = events.next() => changes.send_modify(|count| *count += 1),
            _ = check.tick() => refuses = on_disk(|| refuses_writes(&maker.cache_dir)),
        }
        match netdir.netdir(Timeliness::Timely) {
            Ok(_) if expired => return shared.fail("the network's directory had expired and is back"),
            Ok(_) => {}
            Err(_) => expired = true,
        }
        // With an outdated directory, a publisher uploads to relays that clients do not ask.
        if let Ok(directory) = netdir.netdir(Timeliness::Unchecked) {
            let valid = (directory.lifetime().valid_after(), directory.lifetime().valid_until());
            if lateness.is_too_much(valid, refuses, SystemTime::now(), Instant::now()) {
                return shared.fail("the network's directory is no longer updated");
            }
        }
    }
}

/// Bootstraps the client, with growing pauses, for as long as it takes. Returns the client that has
/// bootstrapped: a new one if an earlier one could not be used again. An error means that only the
/// operator or a new process can mend the cause.
async fn connect(
    shared: &Shared,
    maker: &mut Maker,
    mut tor: Arc<TorClient<PreferredRuntime>>,
    bootstrap: &watch::Sender<Bootstrap>,
) -> Result<(Arc<TorClient<PreferredRuntime>>, BootstrapEvents), TorError> {
    let mut failures = 0;
    loop {
        let mut progress = tor.bootstrap_events();
        let failed = match attempt(&tor, &mut progress, bootstrap).await {
            Ok(()) => return Ok((tor, progress)),
            Err(Failure::Stalled(percent)) => format!("it got no further than {percent} % in {STALLED:?}"),
            Err(Failure::Arti(error)) => match on_disk(|| maker.salvage.judge(&error, false)) {
                Verdict::Again => with_causes(&error),
                Verdict::Hopeless(why) => return Err(why),
                Verdict::Wait => {
                    let (pause, why) = (RETRY.pause(failures), with_causes(&error));
                    failures = failures.saturating_add(1);
                    tracing::warn!(
                        name: "tor_connect_failed",
                        error = %why, ?pause,
                        "cannot connect to the Tor network, will try again"
                    );
                    bootstrap.send_modify(|state| state.message = format!("cannot connect yet, still trying: {error}"));
                    sleep(pause).await;
                    if error.kind() == ErrorKind::TorAccessFailed {
                        continue;
                    }
                    why
                }
            },
        };
        drop(tor);
        tor = shared.renew(maker, &failed).await?;
    }
}

/// Why an attempt to bootstrap failed.
enum Failure {
    Arti(arti_client::Error),
    /// No progress for [`STALLED`]; the percentage that was reached.
    Stalled(f32),
}

/// Bootstraps a client until it has a directory of the network.
async fn attempt(
    tor: &TorClient<PreferredRuntime>,
    progress: &mut BootstrapEvents,
    bootstrap: &watch::Sender<Bootstrap>,
) -> Result<(), Failure> {
    let mut outcome = pin!(async {
        tor.bootstrap().await?;
        // Arti also reports success if it did nothing, or if the directory has too few guards.
        let netdir = tor.dirmgr()?;
        let mut events = netdir.events();
        while netdir.netdir(Timeliness::Unchecked).is_err() && events.next().await.is_some() {}
        Ok(())
    });
    let mut stalled = pin!(sleep(STALLED));
    let mut furthest = 0.0;
    loop {
        tokio::select! {
            outcome = &mut outcome => return outcome.map_err(Failure::Arti),
            Some(status) = progress.next() => {
                publish_progress(bootstrap, &status);
                if status.as_frac() > furthest {
                    furthest = status.as_frac();
                    stalled.as_mut().reset(tokio::time::Instant::now() + STALLED);
                }
            }
            () = &mut stalled => return Err(Failure::Stalled((furthest * 100.0).round())),
        }
    }
}

/// Publishes the client's progress.
fn publish_progress(bootstrap: &watch::Sender<Bootstrap>, status: &BootstrapStatus) {
    bootstrap.send_modify(|state| (state.fraction, state.message) = (status.as_frac(), in_words(status)));
}

/// Seconds by which this machine's clock is ahead, if Arti is sure of it.
fn seconds_ahead(skew: &SkewEstimate) -> Option<i64> {
    skew.noteworthy().then(|| skew.skew().as_secs_f64() as i64)
}

/// The parts of a client that has bootstrapped.
fn live(tor: &Arc<TorClient<PreferredRuntime>>, attempts: &Arc<Attempts>) -> Result<ReadyClient, arti_client::Error> {
    let netdir: Arc<dyn NetDirProvider> = tor.dirmgr()?.upcast_arc();
    let pool = tor.hs_circ_pool()?;
    let attempts = Arc::clone(attempts);
    let directories = Arc::new(Directories { netdir: Arc::clone(&netdir), pool: Arc::clone(&pool), attempts });
    Ok(ReadyClient { tor: Arc::clone(tor), netdir, pool, directories })
}

/// Arti's status as text for the operator.
fn in_words(status: &BootstrapStatus) -> String {
    match status.blocked() {
        // Arti reports this for a moment after the call that starts the bootstrap.
        Some(blockage) if matches!(blockage.kind(), BlockageKind::Disabled) => return CONNECTING.into(),
        Some(blockage) => return format!("{}: {}", blockage.kind(), blockage.message()),
        None => {}
    }
    let text = status.to_string();
    // "42%: connecting to the internet; ...": the percentage is reported separately.
    text.split_once("%: ").map(|(_, step)| step.to_owned()).unwrap_or(text)
}

impl Shared {
    /// What the network says about the time.
    pub(super) fn time(&self) -> NetworkTime {
        let directory = self.live().ok().and_then(|live| live.netdir.netdir(Timeliness::Unchecked).ok());
        let valid_after = directory.map(|directory| directory.lifetime().valid_after());
        let valid_after = valid_after.and_then(|at| Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs()));
        NetworkTime { valid_after, ahead: *self.ahead.lock() }
    }

    /// The client and its parts, or why they are not available.
    pub(super) fn live(&self) -> Result<ReadyClient, TorError> {
        let live = self.live.read().clone();
        live.ok_or_else(|| match self.stopped.get() {
            Some(why) => TorError::Stopped(why.clone()),
            None => TorError::NotReady(self.bootstrap.borrow().message.clone()),
        })
    }

    /// Waits until the client is ready; an error means that it never will be.
    pub(super) async fn ready(&self) -> Result<ReadyClient, TorError> {
        let mut bootstrap = self.bootstrap.clone();
        let _ = bootstrap.wait_for(|state| state.ready).await;
        self.live()
    }

    /// The client, ready or not.
    pub(super) fn client(&self) -> Result<Arc<TorClient<PreferredRuntime>>, TorError> {
        let tor = self.tor.read().clone();
        tor.ok_or_else(|| TorError::Stopped(self.stopped.get().cloned().unwrap_or_default()))
    }

    /// Replaces the client, which has failed for the reason `failed`, once it has released the
    /// cache.
    async fn renew(&self, maker: &mut Maker, failed: &str) -> Result<Arc<TorClient<PreferredRuntime>>, TorError> {
        *self.tor.write() = None;
        maker.wait_cache_released(failed).await?;
        let tor = on_disk(|| maker.make())?;
        let mut place = self.tor.write();
        // If the engine was stopped meanwhile, it stays stopped.
        if self.stopped.get().is_none() {
            *place = Some(Arc::clone(&tor));
        }
        Ok(tor)
    }

    /// Records the outcome of building a circuit. Too many consecutive failures for lack of a
    /// vanguard stop the client (see [`NO_VANGUARD`]).
    pub(super) fn note_circuit(&self, built: Result<(), &tor_circmgr::Error>) {
        let mut failing = self.vanguards.lock();
        match built {
            Ok(()) => *failing = None,
            Err(tor_circmgr::Error::VanguardMgrInit(_)) => {
                let (count, since) = failing.get_or_insert_with(|| (0, Instant::now()));
                *count += 1;
                let (most, time) = NO_VANGUARD;
                if *count >= most && since.elapsed() >= time {
                    drop(failing);
                    self.fail("its vanguard manager has ended");
                }
            }
            Err(_) => {}
        }
    }

    /// Stops the client because it cannot recover.
    fn fail(&self, why: &str) {
        tracing::warn!(name: "tor_client_given_up", why, "giving up the Tor client");
        self.stop(why);
    }

    /// Stops the client. Only the reason of the first call is kept.
    pub(super) fn stop(&self, why: &str) {
        if self.stopped.set(why.into()).is_ok() {
            tracing::debug!(why, "the Tor client has stopped");
        }
        *self.live.write() = None;
        *self.tor.write() = None;
        self.shutdown.cancel();
    }

    /// Stops the client and waits, up to [`SHUTDOWN_LIMIT`], until all its tasks have ended.
    pub(super) async fn close(&self, why: &str) {
        self.stop(why);
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN_LIMIT, self.tasks.wait()).await.is_err() {
            tracing::debug!(tasks = self.tasks.len(), "some tasks of the Tor client are still running");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tokio::time::timeout;

    use super::super::maker::{CACHE_LOCK, RELEASE_WAIT};
    use super::*;

    /// Configuration with new state and cache directories. The tests need no network: no client
    /// here bootstraps.
    fn directories() -> (tempfile::TempDir, ArtiConfig) {
        let folder = tempfile::tempdir().unwrap();
        let [state_dir, cache_dir] = ["state", "cache"].map(|name| folder.path().join(name));
        (folder, ArtiConfig { toml: String::new(), state_dir, cache_dir })
    }

    /// Makes Arti fail to load the cache in a way that does not count as damage, as on a full disk.
    fn break_cache(config: &ArtiConfig) {
        let cache = rusqlite::Connection::open(config.cache_dir.join("dir.sqlite3")).unwrap();
        cache.execute_batch("DROP TABLE Consensuses").unwrap();
    }

    /// Waits until the client is given up; returns the reason.
    async fn given_up(shared: &Shared) -> String {
        timeout(STALLED + 2 * RELEASE_WAIT.0, shared.shutdown.cancelled())
            .await
            .expect("the client is not given up in time");
        assert!(!shared.bootstrap.borrow().ready, "there is no directory");
        assert!(matches!(shared.client(), Err(TorError::Stopped(_))));
        shared.stopped.get().cloned().unwrap_or_default()
    }

    /// Neither way to continue works: Arti would ignore a second attempt and report success, and a
    /// second client of the process could only read the cache.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_cannot_read_its_cache_is_given_up_with_the_reason() {
        let (_folder, config) = directories();
        let shared = start(config.clone()).unwrap();
        break_cache(&config);
        let why = given_up(&shared).await;
        assert!(why.contains("no such table") && why.contains("a new process"), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_can_only_read_its_cache_is_given_up() {
        let (_folder, config) = directories();
        drop(Maker::new(&config).unwrap().make().unwrap());
        let lock = File::open(config.cache_dir.join(CACHE_LOCK)).unwrap();
        lock.try_lock().unwrap();
        let why = given_up(&start(config).unwrap()).await;
        assert!(why.contains("no further than 0 %"), "{why}");
    }
}
