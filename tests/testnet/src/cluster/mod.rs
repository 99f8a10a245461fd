//! Real `rustbalance` daemons on the network, for the network tests, the demo and the benchmark.
//!
//! A [`Cluster`] holds [`Node`]s. Each node is a daemon with its own state directory and its own
//! [`Site`], which answers the node's name, so that an answer shows which node served it. The
//! harness controls daemons through the command line, as an operator does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;

use crate::client::Warmth;
use crate::hosts::Hosts;
use crate::namespace::Namespace;
use crate::network::Network;
use crate::site::Site;
use node::Common;
use place::Place;

pub use node::{CommandOutput, Node, Token};
pub use status::{
    IntroPoint, Invitation, KnownDirectory, Link, Member, OtherPublisher, Period, Publication, Published, Publisher,
    StandIn, Status, Wireguard, WireguardPeer,
};
pub use vitals::Vitals;

pub(crate) mod disk;
mod node;
mod place;
mod status;
mod vitals;

/// How long `init` may take: it makes keys, and sends nothing over the network.
const INIT_PATIENCE: Duration = Duration::from_secs(30);
/// How long `join` may take: it starts a Tor client and talks to the cluster.
pub const JOIN_PATIENCE: Duration = Duration::from_secs(300);
/// How long one fetch may take.
pub const FETCH_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take until all nodes are in the descriptor on every directory.
const SERVED_PATIENCE: Duration = Duration::from_secs(240);
/// No log filters: the daemons' own at `-vv` apply.
const LOG: &str = "";

/// Nodes that serve one onion address. Dropping the cluster kills all its daemons.
#[derive(Debug)]
pub struct Cluster<'n> {
    network: &'n Network,
    common: Arc<Common>,
    /// The option `--wireguard` of the nodes that have it, by name.
    wireguard: BTreeMap<String, String>,
    nodes: Mutex<Vec<Arc<Node>>>,
    master: Mutex<Option<String>>,
}

impl<'n> Cluster<'n> {
    /// A cluster without nodes; `binary` is the `rustbalance` to run.
    pub fn new(network: &'n Network, binary: impl AsRef<Path>) -> Result<Self> {
        Self::logging(network, binary, LOG)
    }

    /// Like [`Cluster::new`], with filters for the daemons' logs in the syntax of `tracing`; if
    /// they are empty, those of `-vv` apply.
    pub fn logging(network: &'n Network, binary: impl AsRef<Path>, filters: &str) -> Result<Self> {
        let binary = std::fs::canonicalize(binary.as_ref())
            .with_context(|| format!("there is no {}; build it first", binary.as_ref().display()))?;
        let common = Common {
            base: network.base().to_path_buf(),
            record: network.keeper().own_record().to_owned(),
            binary,
            arti: network.base().join("arti.toml"),
            cabled: false,
            place: Place::Here,
            log: filters.to_owned(),
        };
        let (common, wireguard) = (Arc::new(common), BTreeMap::new());
        Ok(Self { network, common, wireguard, nodes: Mutex::default(), master: Mutex::default() })
    }

    /// Puts each node's Tor client behind a cable that can be cut. To be called before any node is
    /// made.
    pub fn cabled(mut self) -> Self {
        Arc::make_mut(&mut self.common).cabled = true;
        self
    }

    /// Makes the nodes of these names with `--wireguard`, each listening on its address, or on
    /// those of its default routes if that is empty. To be called before any node is made.
    pub fn with_wireguard(mut self, listens: &[(&str, &str)]) -> Self {
        self.wireguard =
            listens.iter().map(|(name, address)| ((*name).into(), format!("--wireguard={address}"))).collect();
        self
    }

    /// Puts all daemons and commands into a network namespace, from which they reach only their own
    /// sites and the ports on which relays accept connections. To be called before any node is
    /// made.
    pub fn within(self, namespace: &Arc<Namespace>) -> Result<Self> {
        self.at(Place::Namespace(Arc::clone(namespace)))
    }

    /// Puts each daemon and its commands on the host of its name, from which they reach only their
    /// own site, the other hosts, and the ports on which relays accept connections. To be called
    /// before any node is made.
    pub fn across(self, hosts: &Arc<Hosts>) -> Result<Self> {
        self.at(Place::Hosts(Arc::clone(hosts)))
    }

    fn at(mut self, place: Place) -> Result<Self> {
        place.forward_relays(self.network)?;
        Arc::make_mut(&mut self.common).place = place;
        Ok(self)
    }

    /// The network on which the cluster runs.
    pub fn network(&self) -> &'n Network {
        self.network
    }

    /// Makes the first node with `init`, without running it.
    pub fn init(&self, name: &str) -> Result<Arc<Node>> {
        self.found(name, &[])
    }

    /// Makes the first node with `init --import-key`, without running it. `key` holds the address's
    /// key: a file, or C tor's folder.
    pub fn import(&self, name: &str, key: &Path) -> Result<Arc<Node>> {
        self.found(name, &["--import-key", &key.to_string_lossy()])
    }

    /// Makes the first node with `init --vanity`, without running it.
    pub fn search(&self, name: &str, prefix: &str) -> Result<Arc<Node>> {
        self.found(name, &["--vanity", prefix])
    }

    /// Makes the first node with `init` and further options.
    fn found(&self, name: &str, options: &[&str]) -> Result<Arc<Node>> {
        let node = self.vacant(name)?;
        let target = node.site().addr().to_string();
        let arti = node.arti().to_string_lossy().into_owned();
        let mut words = [&["init", "--target", &target, "--arti-config", &arti], options].concat();
        words.extend(self.wireguard.get(name).map(String::as_str));
        let output = node.command(&words, "", INIT_PATIENCE)?.ok("init")?;
        let address = onion_in(&output).with_context(|| format!("init does not print the address: {output}"))?;
        *self.master.lock() = Some(address);
        Ok(node)
    }

    /// Makes a node with its site. It has not joined anything, and its state directory does not
    /// exist.
    pub fn vacant(&self, name: &str) -> Result<Arc<Node>> {
        let site = Site::start(name)?;
        self.common.place.forward_site(name, site.addr().port())?;
        let node = Arc::new(Node::new(&self.common, name, site)?);
        self.nodes.lock().push(Arc::clone(&node));
        Ok(node)
    }

    /// Tries to make a vacant node a member of this cluster with `join`.
    pub fn try_join(&self, node: &Node, token: &Token) -> Result<CommandOutput> {
        let target = node.site().addr().to_string();
        let arti = node.arti().to_string_lossy().into_owned();
        let master = self.onion()?;
        let mut words = vec!["join", &master, "--token-file", "-", "--target", &target, "--arti-config", &arti];
        words.extend(self.wireguard.get(node.name()).map(String::as_str));
        node.command(&words, &format!("{}\n", token.0), JOIN_PATIENCE)
    }

    /// Makes another node and lets it join, without running it.
    pub fn join(&self, name: &str, token: &Token) -> Result<Arc<Node>> {
        let node = self.vacant(name)?;
        self.try_join(&node, token)?.ok("join").with_context(|| self.diagnosis())?;
        Ok(node)
    }

    /// Starts a cluster: the first two nodes are publishers, all others workers. Returns once every
    /// node is in the descriptor on every directory.
    pub fn start(network: &'n Network, binary: impl AsRef<Path>, names: &[&str]) -> Result<(Self, Vec<Arc<Node>>)> {
        let cluster = Self::new(network, binary)?;
        let nodes = cluster.grow(names, &["publisher", "publisher", "worker"])?;
        Ok((cluster, nodes))
    }

    /// Like [`Cluster::start`], with a role for each name; the last role is also that of all
    /// further names.
    pub fn grow(&self, names: &[&str], roles: &[&str]) -> Result<Vec<Arc<Node>>> {
        let (Some((first, rest)), Some(last_role)) = (names.split_first(), roles.last()) else {
            bail!("a cluster needs at least one name and one role");
        };
        let mut nodes = vec![self.init(first)?];
        nodes[0].run()?;
        self.await_served(&nodes)?;
        for (index, name) in rest.iter().enumerate() {
            let role = roles.get(index + 1).unwrap_or(last_role);
            nodes.push(self.add(&nodes[0], name, role)?);
        }
        self.await_served(&nodes)?;
        Ok(nodes)
    }

    /// Lets a new node join by an invitation from `host`, and runs it.
    pub fn add(&self, host: &Node, name: &str, role: &str) -> Result<Arc<Node>> {
        let node = self.join(name, &host.invite(role, 1, "1h")?)?;
        node.run()?;
        Ok(node)
    }

    /// Waits until each of these nodes knows that they are all in the descriptor on every
    /// directory.
    pub fn await_served(&self, nodes: &[Arc<Node>]) -> Result<()> {
        self.wait_until("every node is published", SERVED_PATIENCE, || {
            for node in nodes {
                let status = node.status()?;
                for other in nodes {
                    let own = other.status()?;
                    if status.published_of(&own.node) == 0 {
                        bail!("{} does not know that {} is published", node.name(), other.name());
                    }
                }
                if !status.is_confirmed() {
                    bail!("{} does not know that every directory holds the newest descriptor", node.name());
                }
            }
            Ok(())
        })
    }

    /// The onion address that the cluster serves, `.onion` included.
    pub fn onion(&self) -> Result<String> {
        let master = self.master.lock();
        master.clone().context("the cluster has no address yet; call init")
    }

    /// Fetches `/` from the cluster's address with a new stock client that knows no descriptor and
    /// has no circuits. Returns the name of the node that served, and the time from the request to
    /// the answer.
    pub fn fetch(&self) -> Result<(String, Duration)> {
        self.fetch_as(Warmth::Warm)
    }

    /// Like [`Cluster::fetch`], with a client of the given warmth.
    pub fn fetch_as(&self, warmth: Warmth) -> Result<(String, Duration)> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("visitor{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let client = self.network.client(&name, warmth)?;
        let answer = client.get(&format!("http://{}/", self.onion()?), FETCH_PATIENCE)?;
        if answer.status != 200 {
            bail!("the site answered with status {}", answer.status);
        }
        Ok((answer.text(), answer.elapsed))
    }

    /// Polls until `check` succeeds; its errors say what is still missing. On a timeout the error
    /// has the last of them and the state of every node.
    pub fn wait_until<T>(&self, what: &str, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            let missing = match check() {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            if started.elapsed() > limit {
                bail!("not within {limit:?}: {what}: {missing:#}\n{}", self.diagnosis());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Copies the nodes' logs to cargo's target folder before the network's folder is removed. A
    /// panic of a test has the same effect.
    pub fn keep_logs(&self) {
        let Some(folder) = crate::options::target_folder() else { return };
        for node in self.nodes.lock().iter() {
            let kept = folder.join("network-failures").join(node.folder().file_name().unwrap_or_default());
            let _ = std::fs::create_dir_all(&kept);
            for file in node.output_files() {
                let _ = std::fs::copy(&file, kept.join(file.file_name().unwrap_or_default()));
            }
        }
    }

    /// The state of every node, for error messages.
    pub fn diagnosis(&self) -> String {
        let nodes = self.nodes.lock().clone();
        nodes.iter().map(|node| node.diagnosis()).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        let nodes = self.nodes.get_mut();
        for node in nodes.iter() {
            let _ = node.kill9();
        }
        if std::thread::panicking() {
            self.keep_logs();
        }
    }
}

/// The first v3 onion address in a text, `.onion` included.
fn onion_in(text: &str) -> Option<String> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '.')
        .filter_map(|word| word.trim_matches('.').strip_suffix(".onion"))
        .find(|label| label.len() == 56)
        .map(|label| format!("{label}.onion"))
}

/// The `rustbalance` that cargo puts beside this program, for the demo and the benchmark.
pub fn binary_beside() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("rustbalance");
    if !path.exists() {
        bail!("there is no {}; build it with `cargo build`", path.display());
    }
    Ok(path)
}
