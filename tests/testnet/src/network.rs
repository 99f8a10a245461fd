//! Booting a network, attaching to one, and ending it.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use crate::client::{Client, MAIN, Warmth};
use crate::cluster::disk::unmount_below;
use crate::facts::Facts;
use crate::onion::OnionService;
use crate::options::{Options, Ports, TEMPORARY_PREFIX};
use crate::process::{self, Keeper, NETWORK_RECORD, Scope};
use crate::published::{self, PublishedDescriptor};
use crate::relay::{Relay, log_tail};
use crate::{ENV_DIR, keys, torrc};

/// How long booting may take. An idle machine needs 20 s, most of them for votes.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);

/// A private Tor network. Dropping it ends what it started: everything if this process booted the
/// network, otherwise only its own clients.
#[derive(Debug)]
pub struct Network {
    facts: Facts,
    client: Client,
    /// Asks the directories what they hold; started at its first use.
    monitor: Mutex<Option<Arc<Client>>>,
    keeper: Keeper,
    /// `None` unless this process booted the network.
    ownership: Option<Ownership>,
}

/// Held as long as the network runs. The kernel releases both when the process ends, however it
/// ends.
#[derive(Debug)]
struct Ownership {
    _lock: File,
    _ports: Ports,
}

impl Network {
    /// Boots a network and waits until its consensus lists every relay and its client is warm.
    pub fn boot(options: Options) -> Result<Self> {
        Self::boot_with_progress(options, |_| {})
    }

    /// Like [`Network::boot`]; `report` receives a line for each step.
    pub fn boot_with_progress(options: Options, report: impl Fn(&str)) -> Result<Self> {
        options.check()?;
        sweep_temporary();
        keys::create_private(&options.base)?;
        let base = fs::canonicalize(&options.base)?;
        if base.as_os_str().to_string_lossy().contains(['\n', '#', '"', '\\']) {
            bail!(
                "tor cannot work in {}; choose a folder whose name has no #, quote, backslash or line break",
                base.display()
            );
        }
        let lock = lock(&base)?;
        // The lock shows that the previous owner of this folder is gone; what it left is removed.
        Facts::remove(&base);
        process::sweep(&base, None);
        unmount_below(&base);
        for entry in fs::read_dir(&base)?.flatten() {
            if entry.path().is_dir() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }

        let ports = options.reserve_ports()?;
        let started = Instant::now();
        let relays = keys::relays(&options, &ports, &base)?;
        report(&format!(
            "keys of {} relays are ready after {:.1} s; ports from {}",
            relays.len(),
            started.elapsed().as_secs_f64(),
            ports.base
        ));
        let mut facts = Facts {
            owner: std::process::id(),
            port_base: ports.base,
            voting_interval: options.voting_interval.as_secs(),
            relays,
            client: None,
        };
        for relay in &facts.relays {
            fs::write(relay.folder().join("torrc"), torrc::relay(relay, &facts))?;
        }
        let bandwidths = torrc::bandwidths(&facts, since_epoch().as_secs());
        for authority in facts.authorities() {
            fs::write(authority.folder().join("bandwidths"), &bandwidths)?;
        }
        fs::write(base.join("arti.toml"), torrc::arti(&facts))?;

        let keeper = Keeper::new(&base, Scope::Everything, options.wipe)?;
        await_time_before_vote();
        for relay in &facts.relays {
            process::launch(&base, &relay.nickname, NETWORK_RECORD)?;
        }
        wait_for_consensus(&base, &facts, &report)?;
        // A client that starts before there is a consensus fails to get one, and then waits longer
        // before each new attempt.
        let teacher = facts.authorities().next().map(Relay::folder);
        let mut client = Client::launch(&keeper, &facts, MAIN.to_owned(), teacher.as_deref(), |_| String::new())?;
        client.release();
        let client = client.finish(BOOT_PATIENCE)?;
        facts.client = Some(client.ports());
        facts.save(&base)?;
        report(&format!("the network is up after {:.1} s", started.elapsed().as_secs_f64()));
        Ok(Self {
            facts,
            client,
            monitor: Mutex::new(None),
            keeper,
            ownership: Some(Ownership { _lock: lock, _ports: ports }),
        })
    }

    /// Attaches to a network that another process owns and that goes on without this process.
    /// Clients that are started here end with this process.
    pub fn attach(base: &Path) -> Result<Self> {
        let base = fs::canonicalize(base).with_context(|| format!("no test network runs in {}", base.display()))?;
        let facts = Facts::load(&base)?;
        if lock(&base).is_ok() {
            bail!(
                "the test network in {} has died with its owner, process {}; boot it again",
                base.display(),
                facts.owner
            );
        }
        let ports = facts.client.with_context(|| format!("the test network in {} is not up yet", base.display()))?;
        Ok(Self {
            client: Client::main(&base, ports),
            keeper: Keeper::new(&base, Scope::Own, false)?,
            facts,
            monitor: Mutex::new(None),
            ownership: None,
        })
    }

    /// Ends the network in `base`: asks its owner to, if that is the command `rustbalance-testnet`;
    /// if the owner is dead, ends what it left. Returns what was done, as a sentence.
    pub fn end(base: &Path) -> Result<String> {
        let base = fs::canonicalize(base).with_context(|| format!("no test network runs in {}", base.display()))?;
        let left = process::count(&base);
        if sweep_abandoned(&base) {
            return Ok(match left {
                0 => "nothing was running".to_owned(),
                _ => format!("ended {left} processes whose owner was gone"),
            });
        }
        if !base.join("lock").exists() {
            bail!("{} holds no test network", base.display());
        }
        ask_owner_to_end(&base)?;
        let deadline = Instant::now() + Duration::from_secs(15);
        while lock(&base).is_err() {
            if Instant::now() > deadline {
                bail!("the owner of the network in {} did not end within 15 s", base.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        sweep_abandoned(&base);
        Ok(format!("ended the network, {left} processes"))
    }

    /// The network that all tests of this process share: the one that `RUSTBALANCE_TESTNET` names;
    /// if it names none, one in a temporary folder, which is booted now and ends with the process.
    pub fn shared() -> Result<&'static Self> {
        Self::shared_or(Options::default())
    }

    /// Like [`Network::shared`]; the options of the first caller in a process decide which network
    /// is booted.
    pub fn shared_or(options: Options) -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Network, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| {
            match std::env::var_os(ENV_DIR) {
                Some(base) => Self::attach(Path::new(&base)),
                None => Self::boot(options),
            }
            .map_err(|error| format!("{error:#}"))
        });
        shared.as_ref().map_err(|error| anyhow!(error.clone()))
    }

    /// Starts processes on the network, and ends them when it is dropped.
    pub(crate) fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// The folder that holds everything of the network.
    pub fn base(&self) -> &Path {
        self.keeper.base()
    }

    /// Whether this process booted the network. If so, the network ends with it.
    pub fn is_owner(&self) -> bool {
        self.ownership.is_some()
    }

    /// The pid of the process that booted the network.
    pub fn owner(&self) -> u32 {
        self.facts.owner
    }

    /// The first of its ports.
    pub fn port_base(&self) -> u16 {
        self.facts.port_base
    }

    /// How many tor processes run, clients included.
    pub fn processes(&self) -> usize {
        process::count(self.base())
    }

    /// Arti's configuration for this network, as `arti-client`'s `TorClientConfigBuilder` takes it,
    /// without the folders of its storage. The file `arti.toml` in [`Network::base`] holds the
    /// same.
    pub fn arti_toml(&self) -> String {
        torrc::arti(&self.facts)
    }

    /// The authorities, then the exits, then the other relays. All are directories of onion
    /// services.
    pub fn relays(&self) -> &[Relay] {
        &self.facts.relays
    }

    /// The network's own client, which is warm.
    pub fn main_client(&self) -> &Client {
        &self.client
    }

    /// The SOCKS port of the network's own client.
    pub fn socks(&self) -> SocketAddr {
        self.client.socks()
    }

    /// Starts another stock C tor client, which ends when it is dropped. `name` is for the logs and
    /// need not be unique.
    pub fn client(&self, name: &str, warmth: Warmth) -> Result<Client> {
        Client::start(&self.keeper, &self.facts, name, warmth, |_| String::new())
    }

    /// Like [`Network::client`], but the client uses a circuit only for `dirtiness` after its first
    /// use, not for ten minutes.
    pub fn brief_client(&self, name: &str, warmth: Warmth, dirtiness: Duration) -> Result<Client> {
        let line = format!("MaxCircuitDirtiness {}\n", dirtiness.as_secs());
        Client::start(&self.keeper, &self.facts, name, warmth, |_| line)
    }

    /// Starts a plain C tor with a v3 onion service that leads to `target`, and waits until its
    /// descriptor is published.
    pub fn onion_service(&self, name: &str, virtual_port: u16, target: SocketAddr) -> Result<OnionService> {
        OnionService::start(&self.keeper, &self.facts, name, virtual_port, target, "")
    }

    /// Like [`Network::onion_service`] at port 80, but waits only until the uploads that tor has
    /// begun are done: for measuring how soon the service can be reached.
    pub fn onion_service_hastily(&self, name: &str, target: SocketAddr) -> Result<OnionService> {
        OnionService::start_hastily(&self.keeper, &self.facts, name, target)
    }

    /// Like [`Network::onion_service`], with more lines for its `torrc`, such as
    /// `HiddenServiceOnionBalanceInstance 1`.
    pub fn onion_service_with(
        &self,
        name: &str,
        virtual_port: u16,
        target: SocketAddr,
        options: &str,
    ) -> Result<OnionService> {
        OnionService::start(&self.keeper, &self.facts, name, virtual_port, target, options)
    }

    /// Time between two consensuses.
    pub fn voting_interval(&self) -> Duration {
        Duration::from_secs(self.facts.voting_interval)
    }

    /// How long a time period of onion services lasts.
    pub fn time_period_length(&self) -> Duration {
        torrc::time_period(&self.facts)
    }

    /// Time until the next time period begins. Tor takes its time from the consensus, so services
    /// and clients notice the change up to two voting intervals later.
    pub fn next_time_period(&self) -> Duration {
        let length = self.time_period_length().as_millis();
        // Time periods are offset by 12 voting intervals, half of their length.
        let now = since_epoch().as_millis();
        let passed = (now + length / 2) % length;
        millis(length - passed)
    }

    /// Waits until no time period has begun in the last 3 voting intervals and none will begin
    /// within `ahead`, which may be at most 20 voting intervals. Comparisons across a change fail,
    /// because the directories change and clients forget descriptors.
    pub fn await_steady_period(&self, ahead: Duration) {
        self.await_steady(self.time_period_length(), || self.next_time_period(), ahead);
    }

    /// Like [`Network::await_steady_period`], but also away from the middle of time periods, where
    /// the authorities begin to agree on the next shared random value. There the clock of
    /// descriptors' revisions begins again, and tors with consensuses of different ages disagree on
    /// it. `ahead` may be at most 8 voting intervals.
    pub fn await_steady_revisions(&self, ahead: Duration) {
        let half = self.time_period_length() / 2;
        let next = || {
            let next = self.next_time_period();
            next.checked_sub(half).unwrap_or(next)
        };
        self.await_steady(half, next, ahead);
    }

    /// Waits for a time that is 3 voting intervals after an event which comes every `cycle`, `next`
    /// from now, and `ahead` before the one that follows. New tors begin with the consensus of the
    /// network's own client, so that must be later than the event, too: on a busy machine it may
    /// not be, even then. It is no longer waited for after two events.
    fn await_steady(&self, cycle: Duration, next: impl Fn() -> Duration, ahead: Duration) {
        let settling = self.voting_interval() * 3;
        let started = Instant::now();
        loop {
            let next = next();
            let since = cycle.saturating_sub(next);
            if next < ahead {
                std::thread::sleep(next + settling);
            } else if since < settling {
                std::thread::sleep(settling - since);
            } else if self.is_as_new(since_epoch().saturating_sub(since)) || started.elapsed() > cycle * 2 {
                return;
            } else {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }

    /// Whether the consensus of the network's own client is not older than `time`, since the epoch.
    fn is_as_new(&self, time: Duration) -> bool {
        valid_after(&self.client.folder()).is_some_and(|valid_after| valid_after >= time)
    }

    /// What each directory holds now for an onion address (with or without `.onion`) in the current
    /// time period. Each call asks every relay, all at once. Relays that hold nothing, or do not
    /// answer within 10 s, are left out.
    pub fn published(&self, onion: &str) -> Result<Vec<PublishedDescriptor>> {
        let monitor = {
            let mut monitor = self.monitor.lock();
            match &*monitor {
                Some(client) => Arc::clone(client),
                None => Arc::clone(monitor.insert(Arc::new(self.client("monitor", Warmth::Warm)?))),
            }
        };
        published::ask(&monitor, self.relays(), onion)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // From now on no process may attach. The keeper, which is dropped next, ends the processes.
        if self.is_owner() {
            Facts::remove(self.base());
        }
    }
}

/// Asks the owner of the network in `base` to end. Fails unless that is the command
/// `rustbalance-testnet`.
fn ask_owner_to_end(base: &Path) -> Result<()> {
    let facts = Facts::load(base)?;
    let is_ours = fs::read(format!("/proc/{}/cmdline", facts.owner)).is_ok_and(|line| {
        line.split(|byte| *byte == 0).next().is_some_and(|program| program.ends_with(b"rustbalance-testnet"))
    });
    let pid = i32::try_from(facts.owner).ok().and_then(Pid::from_raw);
    match pid {
        Some(pid) if is_ours => kill_process(pid, Signal::TERM).context("cannot signal the network's owner"),
        _ => bail!(
            "the network in {} belongs to process {}, which is not rustbalance-testnet; end that process",
            base.display(),
            facts.owner
        ),
    }
}

/// Locks a network's folder until the file is dropped.
fn lock(base: &Path) -> Result<File> {
    let path = base.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.try_lock().map_err(|_| {
        let owner = Facts::load(base)
            .map_or_else(|_| "which is still booting".to_owned(), |facts| format!("owned by process {}", facts.owner));
        anyhow!("a test network runs in {} already, {owner}; stop it or choose another folder", base.display())
    })?;
    Ok(file)
}

/// Ends what is left in a folder whose owner is gone. Returns whether it was gone.
pub(crate) fn sweep_abandoned(base: &Path) -> bool {
    if !base.join("lock").exists() {
        return false;
    }
    let Ok(_lock) = lock(base) else {
        return false;
    };
    Facts::remove(base);
    process::sweep(base, None);
    unmount_below(base);
    true
}

/// Removes temporary networks whose owners died together with their reapers.
fn sweep_temporary() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX);
        let is_over = is_ours && fs::canonicalize(entry.path()).is_ok_and(|base| sweep_abandoned(&base));
        if is_over && !entry.path().join(process::KEEP_MARKER).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Waits until the authorities' first vote is far enough away for every relay to upload its
/// descriptor before it. A consensus that misses a relay costs another voting interval.
fn await_time_before_vote() {
    const ENOUGH: Duration = Duration::from_secs(6);
    let interval = Duration::from_secs(torrc::FIRST_INTERVAL).as_millis();
    let delays = Duration::from_secs(2 * torrc::FIRST_DELAY).as_millis();
    let now = since_epoch().as_millis();
    let to_vote = millis(interval - (now + delays) % interval);
    if to_vote < ENOUGH {
        std::thread::sleep(to_vote + Duration::from_millis(200));
    }
}

fn millis(count: u128) -> Duration {
    Duration::from_millis(u64::try_from(count).unwrap_or(u64::MAX))
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Waits until every authority's consensus lists every relay as a directory of onion services.
fn wait_for_consensus(base: &Path, facts: &Facts, report: &impl Fn(&str)) -> Result<()> {
    let started = Instant::now();
    let seconds = || started.elapsed().as_secs_f64();
    let mut most = 0;
    loop {
        let listed = facts.authorities().map(|authority| directories_listed(&authority.folder())).min().unwrap_or(0);
        if listed > most {
            most = listed;
            report(&format!("the consensus lists {listed} of {} relays after {:.1} s", facts.relays.len(), seconds()));
        }
        if listed == facts.relays.len() {
            return Ok(());
        }
        let running = |name: &str| process::running(base, name).is_some();
        if let Some(dead) = facts.relays.iter().find(|relay| !running(&relay.nickname)) {
            bail!("{} ended while the network was booting; it said:\n{}", dead.nickname, log_tail(&dead.folder()));
        }
        if started.elapsed() > BOOT_PATIENCE {
            bail!(
                "the network did not come up within {BOOT_PATIENCE:?}: the consensus lists {listed} of {} relays; is \
                 the machine overloaded, or its clock being set? An authority said:\n{}",
                facts.relays.len(),
                facts.authorities().next().map_or_else(String::new, |authority| log_tail(&authority.folder()))
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn consensus(folder: &Path) -> std::io::Result<String> {
    fs::read_to_string(folder.join("cached-microdesc-consensus"))
}

/// When the consensus in a tor's folder became valid, since the epoch.
fn valid_after(folder: &Path) -> Option<Duration> {
    let text = consensus(folder).ok()?;
    let time = text.lines().find_map(|line| line.strip_prefix("valid-after "))?;
    humantime::parse_rfc3339_weak(time).ok()?.duration_since(UNIX_EPOCH).ok()
}

/// How many directories of onion services the consensus in a tor's folder lists.
fn directories_listed(folder: &Path) -> usize {
    consensus(folder).map_or(0, |text| {
        text.lines().filter(|line| line.starts_with("s ") && line.split(' ').any(|flag| flag == "HSDir")).count()
    })
}
