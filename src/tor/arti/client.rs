//! Arti's client: configured, bootstrapped in the background, watched, stopped.
//!
//! Bootstrapping is tried for ever, with growing pauses; [`Bootstrap`] tells how far it is. The client is given up for
//! good, and every later call answers [`TorError::Stopped`], when it is shut down or when it cannot recover by itself:
//! Arti's vanguard manager ends for good if it meets an expired directory, and no circuit can be built from then on.
//! There is no way to ask it, so two signs are taken for it: the directory had expired and is back, or many circuits
//! in a row have failed for want of a vanguard. And the task that updates the directory ends for good if it cannot write
//! to disk; the sign of that is a directory long out of date. Whoever supervises the engine then starts another.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use arti_client::config::TorClientConfig;
use arti_client::status::{BlockageKind, BootstrapStatus};
use arti_client::{BootstrapBehavior, TorClient};
use futures::StreamExt;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tor_circmgr::hspool::HsCircPool;
use tor_config::load::ConfigResolveOptions;
use tor_config::sources::MustRead;
use tor_config::{ConfigurationSource, ConfigurationSources};
use tor_netdir::{NetDir, NetDirProvider, Timeliness};
use tor_rtcompat::PreferredRuntime;

use super::dial::Dials;
use super::directories::Directories;
use super::memory;
use super::own_service::Launched;
use super::slots::Slots;
use crate::tor::{Bootstrap, TorError};

/// What is told at first.
const CONNECTING: &str = "connecting to the Tor network";

/// Between two attempts to bootstrap: doubles from the first to the second.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How often the directory is looked at without an event.
const DIRECTORY_CHECK: Duration = Duration::from_secs(30);

/// How much longer than it is valid the network's directory may stay without a new one, at least.
const LATE: Duration = Duration::from_secs(120);

/// The same, in lifetimes of the directory (3 hours on the public network): after the disk was full, and otherwise, of which
/// each client draws its own. If the authorities make no directory, Arti goes on with the old one for three days, and
/// the nodes of a cluster must not give up soon, nor all at once.
const LATE_LIFETIMES: (f64, Range<f64>) = (0.25, 1.0..3.0);

/// A disk with less room than this, in bytes, may have been too full for a directory.
const ROOM: u64 = 16 << 20;

/// So many failures for want of a vanguard in a row, over at least this time, mean that none will come.
const NO_VANGUARD: (u32, Duration) = (10, Duration::from_secs(120));

/// For the tasks to end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// How the engine is set up.
#[derive(Debug, Clone)]
pub struct ArtiConfig {
    /// Arti's own configuration, as TOML, handed over as it is; its storage directories and key store are replaced.
    pub toml: String,
    /// Arti's state.
    pub state_dir: PathBuf,
    /// Arti's cache. Never shared with another running client.
    pub cache_dir: PathBuf,
}

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
    /// Rendezvous in the making, node-wide.
    pub(super) pending: Arc<Slots>,
    /// Rendezvous circuits open, node-wide.
    pub(super) open: Arc<Slots>,
    /// Circuits open to the node's own service.
    pub(super) own: Arc<Slots>,
    pub(super) dials: Dials,
    pub(super) launched: Launched,
    pub(super) state_dir: PathBuf,
}

/// Makes the client and starts to bootstrap it. Returns at once; must be called within a Tokio runtime.
pub(super) fn start(config: ArtiConfig) -> Result<Arc<Shared>, TorError> {
    install_crypto();
    let runtime = PreferredRuntime::current()
        .map_err(|e| TorError::Config("there is no Tokio runtime".into(), Some(Box::new(e))))?;
    let tor = TorClient::with_runtime(runtime)
        .config(configure(&config)?)
        .bootstrap_behavior(BootstrapBehavior::Manual)
        .create_unbootstrapped()
        .map_err(|e| TorError::State { dir: config.state_dir.clone(), why: chain(&e) })?;
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
        pending: Arc::default(),
        open: Arc::default(),
        own: Arc::default(),
        dials: Dials::default(),
        launched: Launched::default(),
        state_dir: config.state_dir,
    });
    let watched = watch_client(Arc::clone(&shared), tor, config.cache_dir, bootstrap_sender, changes_sender);
    shared.tasks.spawn(shared.shutdown.clone().run_until_cancelled_owned(watched));
    Ok(shared)
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
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

/// Arti's configuration from the text, with our directories and a key store in memory: the node's key file is the only
/// copy of its key.
fn configure(config: &ArtiConfig) -> Result<TorClientConfig, TorError> {
    let invalid = |e: &dyn std::error::Error, what: &str| {
        TorError::Config(format!("{what}: {}", without_bridges(chain(e), &config.toml)), None)
    };
    let mut sources = ConfigurationSources::new_empty();
    // Later ones win: the operator's over our defaults, and what is ours alone over both.
    sources.push_source(ConfigurationSource::from_verbatim(defaults(memory::quota())), MustRead::MustRead);
    sources.push_source(ConfigurationSource::from_verbatim(config.toml.clone()), MustRead::MustRead);
    sources.push_source(ConfigurationSource::from_verbatim(ours(config)?), MustRead::MustRead);
    let tree = sources.load().map_err(|e| invalid(&e, "its configuration cannot be read"))?;
    let options = ConfigResolveOptions::default();
    let resolved = tor_config::resolve_return_results::<TorClientConfig>(&tree, &options)
        .map_err(|e| invalid(&e, "its configuration is not valid; mend the [arti] table or the file it names"))?;
    if let Some(key) = resolved.unrecognized.first() {
        return Err(TorError::Config(
            format!(
                "its configuration has a key {key:?} that Arti's client does not know; correct or remove it (what \
                 belongs to the arti program alone, such as proxy and logging, has no place here)",
                key = key.to_string()
            ),
            None,
        ));
    }
    Ok(resolved.value)
}

/// An error text without the words of the bridge lines in the configuration: it ends in the journal, and a bridge's address
/// and fingerprint must not.
fn without_bridges(mut text: String, toml: &str) -> String {
    let table: toml::Table = toml.parse().unwrap_or_default();
    let bridges = table.get("bridges").and_then(|table| table.get("bridges"));
    let lines = match bridges {
        Some(toml::Value::String(lines)) => vec![lines.as_str()],
        Some(toml::Value::Array(lines)) => lines.iter().filter_map(toml::Value::as_str).collect(),
        _ => Vec::new(),
    };
    // Shorter ones name a transport, or nothing that tells one bridge from another.
    let words = lines.iter().flat_map(|line| line.split([' ', '\t', '\n', '=', ','])).filter(|word| word.len() > 5);
    for word in words {
        text = text.replace(word, "[bridge]");
    }
    text
}

/// What we would have otherwise than Arti's defaults, unless the operator says it, as TOML.
fn defaults(quota: Option<u64>) -> String {
    quota.map(|bytes| format!("[system.memory]\nmax = \"{bytes}\"\n")).unwrap_or_default()
}

/// The part of the configuration that is ours, as TOML.
fn ours(config: &ArtiConfig) -> Result<String, TorError> {
    let literal = |path: &Path| {
        let text = path.to_str().ok_or_else(|| {
            TorError::Config(format!("the directory {} is not valid UTF-8; choose another", path.display()), None)
        })?;
        Ok(toml::Table::from_iter([("literal".to_owned(), toml::Value::from(text))]))
    };
    let mut storage = toml::Table::new();
    storage.insert("state_dir".into(), literal(&config.state_dir)?.into());
    storage.insert("cache_dir".into(), literal(&config.cache_dir)?.into());
    let kind = toml::Table::from_iter([("kind".to_owned(), toml::Value::from("ephemeral"))]);
    let mut keystore = toml::Table::from_iter([("enabled".to_owned(), toml::Value::from(true))]);
    keystore.insert("primary".into(), kind.into());
    storage.insert("keystore".into(), keystore.into());
    Ok(toml::Table::from_iter([("storage".to_owned(), toml::Value::from(storage))]).to_string())
}

/// Bootstraps the client and then watches it, to the end.
async fn watch_client(
    shared: Arc<Shared>,
    tor: Arc<TorClient<PreferredRuntime>>,
    cache_dir: PathBuf,
    bootstrap: watch::Sender<Bootstrap>,
    changes: watch::Sender<u64>,
) {
    let mut progress = tor.bootstrap_events();
    let tell = |status: BootstrapStatus| {
        bootstrap.send_modify(|told| (told.fraction, told.message) = (status.as_frac(), in_words(&status)));
    };
    let follow = async {
        while let Some(status) = progress.next().await {
            tell(status);
        }
        std::future::pending().await
    };
    tokio::select! {
        () = bootstrap_for_ever(&tor, &bootstrap) => {}
        () = follow => {}
    }
    let live = match live(&tor) {
        Ok(live) => live,
        Err(e) => return shared.fail(&format!("it came up without its parts: {e}")),
    };
    drop(tor);
    let netdir = Arc::clone(&live.netdir);
    *shared.live.write().unwrap_or_else(PoisonError::into_inner) = Some(live);
    bootstrap.send_modify(|told| *told = Bootstrap { fraction: 1.0, ready: true, message: "connected".into() });
    changes.send_modify(|count| *count += 1);
    let mut events = netdir.events();
    let mut check = interval(DIRECTORY_CHECK);
    let mut expired = false;
    let mut lateness = Lateness::new(rand::rng().random_range(LATE_LIFETIMES.1));
    loop {
        tokio::select! {
            Some(status) = progress.next() => tell(status),
            Some(_) = events.next() => changes.send_modify(|count| *count += 1),
            _ = check.tick() => {}
        }
        match netdir.netdir(Timeliness::Timely) {
            Ok(_) if expired => return shared.fail("the network's directory had expired and is back"),
            Ok(_) => {}
            Err(_) => expired = true,
        }
        // With an old one a publisher puts descriptors where nobody looks.
        if let Ok(directory) = netdir.netdir(Timeliness::Unchecked) {
            let valid = (directory.lifetime().valid_after(), directory.lifetime().valid_until());
            if lateness.is_too_much(valid, is_full(&cache_dir), SystemTime::now(), Instant::now()) {
                return shared.fail("the network's directory is not updated any more");
            }
        }
    }
}

/// Whether the disk of this folder is full, or nearly.
fn is_full(folder: &Path) -> bool {
    rustix::fs::statvfs(folder).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM)
}

/// For how long the network's directory has been out of date.
#[derive(Debug)]
struct Lateness {
    /// Until when the one in use is valid.
    until: Option<SystemTime>,
    since: Option<Instant>,
    /// Whether the disk was full while it was in use: then Arti has most likely ended its updates.
    disk_was_full: bool,
    /// How many of its lifetimes are too long, if it was not.
    lifetimes: f64,
}

impl Lateness {
    fn new(lifetimes: f64) -> Self {
        Self { until: None, since: None, disk_was_full: false, lifetimes }
    }

    /// Looks at the directory in use and the disk; whether it has been out of date for too long. That is measured by the
    /// monotonic clock: one that was set is no reason to give up.
    fn is_too_much(&mut self, valid: (SystemTime, SystemTime), full: bool, now: SystemTime, mono: Instant) -> bool {
        let (from, until) = valid;
        if self.until.replace(until) != Some(until) {
            (self.since, self.disk_was_full) = (None, false);
        }
        self.disk_was_full |= full;
        if now <= until {
            self.since = None;
            return false;
        }
        let lifetimes = if self.disk_was_full { LATE_LIFETIMES.0 } else { self.lifetimes };
        let patience = until.duration_since(from).unwrap_or_default().mul_f64(lifetimes);
        mono.duration_since(*self.since.get_or_insert(mono)) >= LATE.max(patience)
    }
}

/// Ends once the client has bootstrapped.
async fn bootstrap_for_ever(tor: &TorClient<PreferredRuntime>, bootstrap: &watch::Sender<Bootstrap>) {
    let mut pause = RETRY_PAUSE.0;
    while let Err(e) = tor.bootstrap().await {
        tracing::warn!("cannot connect to the Tor network, will try again in {pause:?}: {}", chain(&e));
        bootstrap.send_modify(|told| told.message = format!("cannot connect yet, still trying: {e}"));
        sleep(pause).await;
        pause = (pause * 2).min(RETRY_PAUSE.1);
    }
}

/// The parts of a client that has bootstrapped.
fn live(tor: &Arc<TorClient<PreferredRuntime>>) -> Result<Live, arti_client::Error> {
    let netdir: Arc<dyn NetDirProvider> = tor.dirmgr()?.upcast_arc();
    let pool = tor.hs_circ_pool()?;
    let directories = Arc::new(Directories { netdir: Arc::clone(&netdir), pool: Arc::clone(&pool) });
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
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).clone();
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
        let tor = self.tor.read().unwrap_or_else(PoisonError::into_inner).clone();
        tor.ok_or_else(|| TorError::Stopped(self.stopped.get().cloned().unwrap_or_default()))
    }

    /// Notes how the building of a circuit went; many failures for want of a vanguard end the client.
    pub(super) fn note_circuit(&self, built: Result<(), &tor_circmgr::Error>) {
        let mut failing = self.vanguards.lock().unwrap_or_else(PoisonError::into_inner);
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
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = None;
        *self.tor.write().unwrap_or_else(PoisonError::into_inner) = None;
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
    use super::*;

    fn config(toml: &str) -> ArtiConfig {
        ArtiConfig { toml: toml.into(), state_dir: "/var/lib/a ${b}/state".into(), cache_dir: "/c".into() }
    }

    #[test]
    fn the_directories_are_ours_whatever_the_text_says() {
        let ours = configure(&config("[storage]\nstate_dir = \"/elsewhere\"\n")).unwrap();
        let same = configure(&config("")).unwrap();
        assert!(ours == same);
        assert!(configure(&config("[vanguards]\nmode = \"full\"\n")).unwrap() != same);
    }

    #[test]
    fn an_error_about_a_bridge_does_not_name_it() {
        for line in ["192.0.2.7:443 not-a-fingerprint", "obfs4 192.0.2.777:443 0123456789abcdef cert=c2VjcmV0"] {
            for toml in [format!("[bridges]\nbridges = [\"{line}\"]\n"), format!("[bridges]\nbridges = \"{line}\"\n")] {
                let error = configure(&config(&toml)).unwrap_err().to_string();
                let named = line.split([' ', '=']).find(|word| word.len() > 5 && error.contains(word));
                assert_eq!(named, None, "{error}");
            }
        }
    }

    #[test]
    fn the_memory_quota_is_ours_unless_the_operator_sets_it() {
        assert_eq!(defaults(None), "");
        let with = |max: &str| configure(&config(&format!("[system.memory]\nmax = \"{max}\"\n"))).unwrap();
        let ours = configure(&config("")).unwrap();
        assert!(ours == with(&memory::quota().unwrap().to_string()));
        assert!(ours != with("auto"), "Arti's own is three quarters of the machine's memory");
        assert!(with("300 MiB") == with("314572800") && with("300 MiB") != ours);
    }

    #[test]
    fn a_directory_may_be_late_for_a_while_but_not_for_ever() {
        let (from, start) = (SystemTime::UNIX_EPOCH, Instant::now());
        let until = from + Duration::from_secs(3 * 3600);
        let mut lateness = Lateness::new(2.0);
        let mut look = |now: u64, until: SystemTime, full: bool| {
            let now = Duration::from_secs(now);
            lateness.is_too_much((from, until), full, from + now, start + now)
        };
        assert!(!look(3 * 3600, until, false));
        assert!(!look(3 * 3600 + 1, until, false));
        assert!(!look(9 * 3600, until, false));
        assert!(look(9 * 3600 + 1, until, false));
        // A new one came, and gets late in turn; meanwhile the disk was full.
        let until = until + Duration::from_secs(9 * 3600);
        assert!(!look(9 * 3600 + 2, until, true));
        assert!(!look(12 * 3600 + 1, until, false));
        assert!(!look(15 * 3600, until, false));
        assert!(look(15 * 3600 + 1, until, false));
        // The next one is not to blame for it.
        let until = until + Duration::from_secs(6 * 3600);
        assert!(!look(18 * 3600 + 1, until, false));
        assert!(!look(50 * 3600, until, false));
    }

    #[test]
    fn a_key_that_arti_does_not_know_is_named() {
        let error = configure(&config("[path_rules]\nlong_live_ports = [1]\n")).unwrap_err().to_string();
        assert!(error.contains("path_rules.long_live_ports"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_named() {
        let error = configure(&config("[vanguards]\nmode = \"fool\"\n")).unwrap_err().to_string();
        assert!(error.contains("vanguards.mode"), "{error}");
        let error = configure(&config("[vanguards\n")).unwrap_err().to_string();
        assert!(error.contains("line 1, column 11"), "{error}");
    }
}
