//! Arti's client: configured, bootstrapped in the background, watched, stopped.
//!
//! Bootstrapping is tried for ever, with growing pauses; [`Bootstrap`] tells how far it is. Only an attempt that failed at
//! the network is repeated with the same client: after any other failure Arti ignores the next call and reports success.
//! An attempt without progress for half an hour has failed too.
//!
//! The client is given up for good, and every later call answers [`TorError::Stopped`], when it is shut down or when it
//! cannot recover by itself. A client that failed may keep its cache, which another in its place could only read.
//! Arti's vanguard manager ends for good if it meets an expired directory, and no circuit can be built from then on.
//! There is no way to ask it, so two signs are taken for it: the directory had expired and is back, or many circuits
//! in a row have failed for want of a vanguard. And the task that updates the directory ends for good if it cannot write
//! to disk; the sign of that is a directory long out of date. Whoever supervises the engine then starts another.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Once, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use arti_client::status::{BlockageKind, BootstrapEvents, BootstrapStatus};
use arti_client::{ErrorKind, HasKind, TorClient};
use futures::StreamExt;
use parking_lot::{Mutex, RwLock};
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
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
use crate::tor::{Bootstrap, TorError};

/// What is told at first.
const CONNECTING: &str = "connecting to the Tor network";

/// Between two attempts to bootstrap: doubles from the first to the second.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// How long an attempt to bootstrap may go without progress. Without a network it always takes that long.
const STALLED: Duration = Duration::from_secs(30 * 60);

/// How often the directory is looked at without an event.
const DIRECTORY_CHECK: Duration = Duration::from_secs(30);

/// So many failures for want of a vanguard in a row, over at least this time, mean that none will come.
const NO_VANGUARD: (u32, Duration) = (10, Duration::from_secs(120));

/// For the tasks to end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// The client and what one needs of it to build circuits oneself.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) tor: Arc<TorClient<PreferredRuntime>>,
    pub(super) netdir: Arc<dyn NetDirProvider>,
    pub(super) pool: Arc<HsCircPool<PreferredRuntime>>,
    pub(super) directories: Arc<Directories<PreferredRuntime>>,
}

impl Live {
    /// The network's directory as long as it is good.
    pub(super) fn netdir(&self) -> Result<Arc<NetDir>, TorError> {
        self.netdir
            .netdir(Timeliness::Timely)
            .map_err(|e| TorError::NotReady(format!("there is no timely directory of the network: {e}")))
    }
}

/// What the calls and the tasks of one engine share.
pub(super) struct Shared {
    /// The client; gone once stopped.
    tor: RwLock<Option<Arc<TorClient<PreferredRuntime>>>>,
    /// Filled once bootstrapped; gone once stopped.
    live: RwLock<Option<Live>>,
    stopped: OnceLock<String>,
    vanguards: Mutex<Option<(u32, Instant)>>,
    /// Kept to read it; the sender is with the task that watches the client.
    pub(super) bootstrap: watch::Receiver<Bootstrap>,
    pub(super) changes: watch::Receiver<u64>,
    /// Ends all tasks.
    pub(super) shutdown: CancellationToken,
    pub(super) tasks: TaskTracker,
    /// The circuits of clients.
    pub(super) circuits: Arc<Circuits>,
    /// The circuits of members to the node's own service.
    pub(super) own: Arc<Circuits>,
    pub(super) dials: Dials,
    pub(super) attempts: Arc<Attempts>,
    pub(super) launched: Launched,
    pub(super) state_dir: PathBuf,
}

/// Makes the client and starts to bootstrap it. Returns at once; must be called within a Tokio runtime.
pub(super) fn start(config: ArtiConfig) -> Result<Arc<Shared>, TorError> {
    install_crypto();
    let mut maker = Maker::new(&config)?;
    if maker.cache_is_held() {
        let cache = maker.cache_dir.display();
        tracing::warn!("another Tor client has {cache} open: this one can only wait for what that one puts there");
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
        launched: Launched::default(),
        state_dir: config.state_dir,
    });
    let watched = watch_client(Arc::clone(&shared), maker, tor, bootstrap_sender, changes_sender);
    shared.tasks.spawn(shared.shutdown.clone().run_until_cancelled_owned(watched));
    Ok(shared)
}

/// TLS needs a crypto provider, once a process.
fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("another crypto provider was installed before");
        }
    });
}

/// Bootstraps the client and then watches it, to the end.
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
            bootstrap.send_modify(|told| told.message.clone_from(&why));
            if let TorError::Files(why) = error {
                bootstrap.send_modify(|told| told.hopeless = Some(why));
            }
            return shared.fail(&why);
        }
    };
    let live = match live(&tor, &shared.attempts) {
        Ok(live) => live,
        Err(e) => return shared.fail(&format!("it came up without its parts: {e}")),
    };
    drop(tor);
    let netdir = Arc::clone(&live.netdir);
    *shared.live.write() = Some(live);
    bootstrap.send_modify(|told| {
        *told = Bootstrap { fraction: 1.0, ready: true, message: "connected".into(), hopeless: None }
    });
    changes.send_modify(|count| *count += 1);
    let mut events = netdir.events();
    let mut check = interval(DIRECTORY_CHECK);
    let mut expired = false;
    let mut lateness = Lateness::new(rand::rng().random_range(LATE_LIFETIMES.1));
    let mut refuses = false;
    loop {
        tokio::select! {
            Some(status) = progress.next() => tell(&bootstrap, &status),
            Some(_) = events.next() => changes.send_modify(|count| *count += 1),
            _ = check.tick() => refuses = on_disk(|| refuses_writes(&maker.cache_dir)),
        }
        match netdir.netdir(Timeliness::Timely) {
            Ok(_) if expired => return shared.fail("the network's directory had expired and is back"),
            Ok(_) => {}
            Err(_) => expired = true,
        }
        // With an old one a publisher puts descriptors where nobody looks.
        if let Ok(directory) = netdir.netdir(Timeliness::Unchecked) {
            let valid = (directory.lifetime().valid_after(), directory.lifetime().valid_until());
            if lateness.is_too_much(valid, refuses, SystemTime::now(), Instant::now()) {
                return shared.fail("the network's directory is not updated any more");
            }
        }
    }
}

/// Bootstraps the client, with growing pauses, for as long as it takes. Gives the one that has bootstrapped: a new one where
/// the old one does not try again. An error if only the operator or a new process can mend what is wrong.
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
                    tracing::warn!("cannot connect to the Tor network, will try again in {pause:?}: {why}");
                    bootstrap.send_modify(|told| told.message = format!("cannot connect yet, still trying: {error}"));
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

/// Why an attempt to bootstrap came to nothing.
enum Failure {
    Arti(arti_client::Error),
    /// It stopped at that percentage.
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
        // Arti reports success also where it has done nothing, or where the directory has too few guards.
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
                tell(bootstrap, &status);
                if status.as_frac() > furthest {
                    furthest = status.as_frac();
                    stalled.as_mut().reset(tokio::time::Instant::now() + STALLED);
                }
            }
            () = &mut stalled => return Err(Failure::Stalled((furthest * 100.0).round())),
        }
    }
}

/// Passes on how far the client is.
fn tell(bootstrap: &watch::Sender<Bootstrap>, status: &BootstrapStatus) {
    bootstrap.send_modify(|told| (told.fraction, told.message) = (status.as_frac(), in_words(status)));
}

/// The parts of a client that has bootstrapped.
fn live(tor: &Arc<TorClient<PreferredRuntime>>, attempts: &Arc<Attempts>) -> Result<Live, arti_client::Error> {
    let netdir: Arc<dyn NetDirProvider> = tor.dirmgr()?.upcast_arc();
    let pool = tor.hs_circ_pool()?;
    let attempts = Arc::clone(attempts);
    let directories = Arc::new(Directories { netdir: Arc::clone(&netdir), pool: Arc::clone(&pool), attempts });
    Ok(Live { tor: Arc::clone(tor), netdir, pool, directories })
}

/// Arti's status for a person.
fn in_words(status: &BootstrapStatus) -> String {
    match status.blocked() {
        // For the moment between our order to bootstrap and its arrival.
        Some(blockage) if matches!(blockage.kind(), BlockageKind::Disabled) => return CONNECTING.into(),
        Some(blockage) => return format!("{}: {}", blockage.kind(), blockage.message()),
        None => {}
    }
    let text = status.to_string();
    // "42%: connecting to the internet; ...": the number is told apart.
    text.split_once("%: ").map(|(_, words)| words.to_owned()).unwrap_or(text)
}

impl Shared {
    /// The client's parts, or why there are none.
    pub(super) fn live(&self) -> Result<Live, TorError> {
        let live = self.live.read().clone();
        live.ok_or_else(|| match self.stopped.get() {
            Some(why) => TorError::Stopped(why.clone()),
            None => TorError::NotReady(self.bootstrap.borrow().message.clone()),
        })
    }

    /// The client's parts once it is ready; an error only where it never will be.
    pub(super) async fn ready(&self) -> Result<Live, TorError> {
        let mut bootstrap = self.bootstrap.clone();
        let _ = bootstrap.wait_for(|told| told.ready).await;
        self.live()
    }

    /// The client whether ready or not.
    pub(super) fn client(&self) -> Result<Arc<TorClient<PreferredRuntime>>, TorError> {
        let tor = self.tor.read().clone();
        tor.ok_or_else(|| TorError::Stopped(self.stopped.get().cloned().unwrap_or_default()))
    }

    /// Puts a new client in the place of the one that failed for this reason, once that has let go of the cache.
    async fn renew(&self, maker: &mut Maker, failed: &str) -> Result<Arc<TorClient<PreferredRuntime>>, TorError> {
        *self.tor.write() = None;
        maker.cache_let_go(failed).await?;
        let tor = on_disk(|| maker.make())?;
        let mut place = self.tor.write();
        // If it was stopped meanwhile, it stays so.
        if self.stopped.get().is_none() {
            *place = Some(Arc::clone(&tor));
        }
        Ok(tor)
    }

    /// Notes how the building of a circuit went; many failures for want of a vanguard end the client.
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

    /// Gives the client up as it is of no use any more.
    fn fail(&self, why: &str) {
        tracing::warn!("the Tor client is given up: {why}");
        self.stop(why);
    }

    /// Stops the client. The first reason stays.
    pub(super) fn stop(&self, why: &str) {
        if self.stopped.set(why.into()).is_ok() {
            tracing::debug!("the Tor client has stopped: {why}");
        }
        *self.live.write() = None;
        *self.tor.write() = None;
        self.shutdown.cancel();
    }

    /// Stops the client and waits, for a while, until all that we run on it has ended.
    pub(super) async fn close(&self, why: &str) {
        self.stop(why);
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN_LIMIT, self.tasks.wait()).await.is_err() {
            tracing::debug!("{} tasks on the Tor client are still running", self.tasks.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tokio::time::timeout;

    use super::super::maker::{CACHE_LOCK, LET_GO};
    use super::*;

    /// Directories for a client, which need no network as long as it cannot bootstrap.
    fn directories() -> (tempfile::TempDir, ArtiConfig) {
        let folder = tempfile::tempdir().unwrap();
        let [state_dir, cache_dir] = ["state", "cache"].map(|name| folder.path().join(name));
        (folder, ArtiConfig { toml: String::new(), state_dir, cache_dir })
    }

    /// As on a full disk: what is in the cache cannot be taken over, and it is not damaged.
    fn break_cache(config: &ArtiConfig) {
        let cache = rusqlite::Connection::open(config.cache_dir.join("dir.sqlite3")).unwrap();
        cache.execute_batch("DROP TABLE Consensuses").unwrap();
    }

    /// Why the client was given up, which it must be in time.
    async fn given_up(shared: &Shared) -> String {
        timeout(STALLED + 2 * LET_GO.0, shared.shutdown.cancelled()).await.expect("it waits for ever");
        assert!(!shared.bootstrap.borrow().ready, "there is no directory");
        assert!(matches!(shared.client(), Err(TorError::Stopped(_))));
        shared.stopped.get().cloned().unwrap_or_default()
    }

    /// Arti would ignore the second attempt and say that it is done, and a second client of the process would only read.
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
