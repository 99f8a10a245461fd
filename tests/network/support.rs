//! Shared by the scenarios: the network, the permit to use it, a reader of descriptors, and lookup
//! of nodes by name.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::{Condvar, Mutex};
use rustbalance::stream::BoxStream;
use rustbalance::tor::arti::{ArtiConfig, ArtiEngine};
use rustbalance::tor::descriptor::{self, DescriptorContent};
use rustbalance::tor::{Directory, Engine, TorError};
use rustbalance_gossip::id::{OnionAddress, ServiceId};
use rustbalance_gossip::record::PeriodId;
use rustbalance_testnet::cluster::{Cluster, Node};
use rustbalance_testnet::{Network, Options};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// The daemon under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_rustbalance");

/// Most clusters at the same time: with more, the load on the machine distorts measurements.
const TURNS: usize = 3;
/// Time limit for a change of the route. A route that was lost must answer several probes before it
/// is used again.
const ROUTE_LIMIT: Duration = Duration::from_secs(90);
/// Time limit for Arti to become ready to build circuits.
const READY_LIMIT: Duration = Duration::from_secs(180);
/// Most attempts of an operation that needs a circuit.
const TRIES: usize = 5;
/// Time limit of one dial.
const DIAL_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for the answer of a directory.
const ASK_LIMIT: Duration = Duration::from_secs(8);
/// Time limit for the answer of a directory that is asked repeatedly.
const GLANCE_LIMIT: Duration = Duration::from_secs(4);

/// The network that the scenarios share. It has more relays than the default, for several clusters
/// at once.
pub(crate) fn network() -> &'static Network {
    Network::shared_or(Options { relays: 13, exits: 4, ..Options::default() }).unwrap()
}

/// A permit to run a cluster on the shared network, until it is dropped.
pub(crate) struct ClusterPermit;

static TAKEN: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl ClusterPermit {
    /// Waits until fewer than [`TURNS`] clusters run.
    pub(crate) fn take() -> Self {
        let (taken, freed) = &TAKEN;
        let mut taken = taken.lock();
        freed.wait_while(&mut taken, |taken| *taken >= TURNS);
        *taken += 1;
        Self
    }
}

impl Drop for ClusterPermit {
    fn drop(&mut self) {
        let (taken, freed) = &TAKEN;
        *taken.lock() -= 1;
        freed.notify_one();
    }
}

/// Runs a scenario on its own cluster with these nodes, of which the first two are publishers.
pub(crate) fn scenario(
    title: &str,
    names: &[&str],
    body: impl FnOnce(&mut Progress, &Cluster<'_>, &Nodes) -> Result<()>,
) {
    with_cluster(title, |progress, cluster| {
        let nodes = cluster.grow(names, &["publisher", "publisher", "worker"])?;
        progress.report(format_args!("{} nodes are published", nodes.len()));
        body(progress, cluster, &Nodes(nodes))
    });
}

/// Runs a scenario that makes the nodes of its cluster itself.
pub(crate) fn with_cluster(title: &str, body: impl FnOnce(&mut Progress, &Cluster<'_>) -> Result<()>) {
    let _turn = ClusterPermit::take();
    let mut progress = Progress::new(title);
    let cluster = Cluster::new(network(), BINARY).unwrap();
    let done = body(&mut progress, &cluster);
    // Before the cluster is dropped, so that its logs are kept.
    progress.ends(done);
}

/// Prints the progress of a scenario to standard error.
pub(crate) struct Progress {
    title: String,
    started: Instant,
}

impl Progress {
    pub(crate) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), started: Instant::now() }
    }

    pub(crate) fn report(&mut self, what: std::fmt::Arguments<'_>) {
        // One write call, so that lines of parallel scenarios do not mix.
        let line = format!("{:>20} {:6.1} s  {what}\n", self.title, self.started.elapsed().as_secs_f64());
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// Prints the result of the scenario, and panics if it failed. The first line of the error is
    /// printed separately, because the panic message contains the nodes' logs and may be cut.
    pub(crate) fn ends(&mut self, done: Result<()>) {
        let Err(error) = done else { return self.report(format_args!("done")) };
        let message = format!("{error:#}");
        self.report(format_args!("failed: {}", message.lines().next().unwrap_or_default()));
        panic!("{}: {message}", self.title);
    }
}

/// The running nodes of a cluster.
pub(crate) struct Nodes(pub(crate) Vec<Arc<Node>>);

impl Nodes {
    pub(crate) fn named(&self, name: &str) -> Result<&Arc<Node>> {
        self.0.iter().find(|node| node.name() == name).with_context(|| format!("there is no node {name}"))
    }

    /// All nodes except this one.
    pub(crate) fn but(&self, left_out: &Node) -> Vec<Arc<Node>> {
        self.0.iter().filter(|node| node.name() != left_out.name()).cloned().collect()
    }

    /// The running node with this address.
    pub(crate) fn at(&self, address: &str) -> Result<&Arc<Node>> {
        for node in &self.0 {
            if node.is_running() && node.status()?.node == address {
                return Ok(node);
            }
        }
        bail!("no running node has the address {address}")
    }

    /// The current publisher and its term, if all running nodes agree on them.
    pub(crate) fn publisher(&self) -> Result<(&Arc<Node>, u64)> {
        let running: Vec<_> = self.0.iter().filter(|node| node.is_running()).cloned().collect();
        let (address, term) = agreed_publisher(&running)?;
        Ok((self.at(&address)?, term))
    }
}

/// The address of the publisher and its term, if all these nodes agree on them and that node alone
/// reports that it publishes.
pub(crate) fn agreed_publisher(nodes: &[Arc<Node>]) -> Result<(String, u64)> {
    let mut leaders = BTreeSet::new();
    let mut holders = Vec::new();
    for node in nodes {
        let status = node.status()?;
        let publisher = status.publisher.with_context(|| format!("{} knows no publisher", node.name()))?;
        if publisher.me {
            holders.push(publisher.node.clone());
        }
        leaders.insert((publisher.node, publisher.term));
    }
    let mut leaders = leaders.into_iter();
    match (leaders.next(), leaders.next(), holders.as_slice()) {
        (Some((node, term)), None, [holder]) if *holder == node => Ok((node, term)),
        (first, second, _) => bail!("the nodes do not agree on a publisher: {first:?}, {second:?}, {holders:?}"),
    }
}

/// An Arti client with its own folders, ready to build circuits, and its runtime.
pub(crate) struct Arti {
    pub(crate) runtime: Runtime,
    pub(crate) engine: Arc<ArtiEngine>,
}

impl Arti {
    /// Starts a client on the shared network, without any stored state.
    pub(crate) fn start(name: &str) -> Result<Self> {
        Self::start_on(network(), name)
    }

    /// Starts a client on any network.
    fn start_on(network: &Network, name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder: PathBuf = network.base().join(format!("arti/{}-{number}-{name}", std::process::id()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let engine = runtime.block_on(async {
            ArtiEngine::start(ArtiConfig {
                toml: network.arti_toml(),
                state_dir: folder.join("state"),
                cache_dir: folder.join("cache"),
            })
        })?;
        let mut bootstrap = engine.bootstrap();
        runtime.block_on(async {
            tokio::time::timeout(READY_LIMIT, bootstrap.wait_for(|state| state.ready))
                .await
                .with_context(|| format!("Arti was not ready within {READY_LIMIT:?}"))?
                .context("Arti has stopped")?;
            anyhow::Ok(())
        })?;
        Ok(Self { runtime, engine })
    }

    /// Opens a stream to an address that is expected to be reachable, with several attempts.
    pub(crate) async fn reach(&self, to: OnionAddress, port: u16) -> Result<BoxStream> {
        Ok(over_tor(|| self.engine.dial(to, port, DIAL_LIMIT)).await?)
    }
}

/// Repeats an operation that needs a circuit: one failed circuit does not show that the other side
/// is at fault.
pub(crate) async fn over_tor<T, E, F: Future<Output = Result<T, E>>>(mut attempt: impl FnMut() -> F) -> Result<T, E> {
    let mut outcome = attempt().await;
    for _ in 1..TRIES {
        if outcome.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        outcome = attempt().await;
    }
    outcome
}

/// The content of one directory for a service.
#[derive(Debug)]
pub(crate) struct DirectoryContent {
    pub(crate) period: PeriodId,
    pub(crate) directory: Directory,
    /// `None` if the directory has no descriptor of the service.
    pub(crate) content: Option<DescriptorContent>,
}

impl DirectoryContent {
    /// The session keys of the introduction points in the descriptor, in hexadecimal digits.
    pub(crate) fn keys(&self) -> BTreeSet<String> {
        self.content.iter().flat_map(|content| &content.points).map(|point| hex(&point.session_key.0)).collect()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Reads descriptors from the directories of one network.
pub(crate) struct DescriptorReader(Arti);

impl DescriptorReader {
    /// Starts a reader with its own Tor client.
    pub(crate) fn open(network: &Network) -> Result<Self> {
        Arti::start_on(network, "eye").map(Self)
    }

    /// Asks every responsible directory of every current period. A directory that does not answer
    /// is an error.
    pub(crate) fn look(&self, master: &str) -> Result<Vec<DirectoryContent>> {
        self.answers(master, 3, ASK_LIMIT)?.into_iter().collect()
    }

    /// Asks the same directories once. Returns the answers and the number of directories that did
    /// not answer.
    pub(crate) fn glance(&self, master: &str) -> Result<(Vec<DirectoryContent>, usize)> {
        let answers = self.answers(master, 1, GLANCE_LIMIT)?;
        let asked = answers.len();
        let held: Vec<_> = answers.into_iter().flatten().collect();
        let silent = asked - held.len();
        Ok((held, silent))
    }

    fn answers(&self, service: &str, tries: usize, limit: Duration) -> Result<Vec<Result<DirectoryContent>>> {
        let engine = &self.0.engine;
        let service: ServiceId = service.parse()?;
        self.0.runtime.block_on(async {
            let mut asked = JoinSet::new();
            for period in engine.publication(service).await? {
                for directory in period.directories {
                    asked.spawn(ask(Arc::clone(engine), service, period.id, directory, tries, limit));
                }
            }
            Ok(asked.join_all().await)
        })
    }
}

/// Asks every responsible directory of every current period on the shared network.
pub(crate) fn look(service: &str) -> Result<Vec<DirectoryContent>> {
    static EYE: OnceLock<Result<DescriptorReader, String>> = OnceLock::new();
    let eye = EYE.get_or_init(|| DescriptorReader::open(network()).map_err(|error| format!("{error:#}")));
    eye.as_ref().map_err(|error| anyhow::anyhow!(error.clone()))?.look(service)
}

/// Asks one directory, at most `tries` times if the circuit fails.
async fn ask(
    engine: Arc<ArtiEngine>,
    service: ServiceId,
    period: PeriodId,
    directory: Directory,
    tries: usize,
    limit: Duration,
) -> Result<DirectoryContent> {
    let mut last: Option<TorError> = None;
    for _ in 0..tries {
        match engine.fetch(&directory, service, period, limit).await {
            Ok(text) => {
                let now = std::time::SystemTime::now();
                let content = text.map(|text| descriptor::read(&text, service, period, now)).transpose()?;
                return Ok(DirectoryContent { period, directory, content });
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("never asked")?.into())
}

/// The session keys of a node's own introduction points, from its status.
pub(crate) fn session_keys(node: &Node) -> Result<BTreeSet<String>> {
    Ok(node.status()?.intro_points.into_iter().map(|point| point.session_key).collect())
}

/// Fails unless every responsible directory holds a descriptor with at least one point of every
/// node in `there` and none of `gone`.
pub(crate) fn check_directories(
    master: &str,
    there: &[BTreeSet<String>],
    gone: &BTreeSet<String>,
) -> Result<Vec<DirectoryContent>> {
    let held = look(master)?;
    if held.is_empty() {
        bail!("no directory is responsible");
    }
    for one in &held {
        let keys = one.keys();
        let place = format!("{} in period {}", one.directory.relay, one.period.number);
        if one.content.is_none() {
            bail!("{place} has no descriptor");
        }
        if let Some(key) = keys.intersection(gone).next() {
            bail!("{place} still holds the point {key}");
        }
        if let Some(missed) = there.iter().position(|node| node.is_disjoint(&keys)) {
            bail!("{place} holds no point of node {missed}");
        }
    }
    Ok(held)
}

/// Waits until both nodes reach each other over this route.
pub(crate) fn linked_over(cluster: &Cluster<'_>, nodes: &[Arc<Node>], route: &str) -> Result<()> {
    let [one, two] = nodes else { bail!("not two nodes") };
    cluster.wait_until(&format!("both nodes reach each other over {route}"), ROUTE_LIMIT, || {
        for (node, other) in [(one, two), (two, one)] {
            let (status, other) = (node.status()?, other.status()?.node);
            let link = status.links.iter().find(|link| link.peer == other && link.carries);
            ensure!(link.is_some_and(|link| link.route == route), "{}: {:?}", node.name(), status.wireguard);
        }
        Ok(())
    })
}

/// The median of the durations, which must not be empty.
pub(crate) fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations[durations.len() / 2]
}

/// Fetches `count` times, each time with a fresh client; each must succeed. Returns the names of
/// the nodes that served.
pub(crate) fn all_served(cluster: &Cluster<'_>, count: usize) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for index in 0..count {
        let (name, _) = cluster.fetch().with_context(|| {
            format!("fresh client {} of {count} was not served\n{}", index + 1, cluster.diagnosis())
        })?;
        names.insert(name);
    }
    Ok(names)
}
