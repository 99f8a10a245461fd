//! `rustbalance.toml` in the state directory: what the operator may choose for this node.
//!
//! The daemon reads it with [`Config::load`], `init` and `join` write the first one with [`Config::write_initial`], and
//! [`LiveConfig`] holds it while the daemon runs. `tables` has every key once: its name, default, the values allowed and
//! its meaning. A wrong value and an unknown key are errors that name the line, the key, its table and the way out.
//! Tor's own settings go to Arti as they are: in the table `[arti]`, or in the file that `arti_config` names.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::lease::Timing;
use rustbalance_gossip::liveness::Patience;
use rustbalance_gossip::record::NodeCard;
use rustbalance_gossip::view::DEFAULT_WAITING;
use rustbalance_mesh::MeshLimits;
use toml::de::DeTable;

use crate::health::HealthSettings;
use crate::join::DoorLimits;
use crate::link::{LINK_PORT, LinkLimits};
use crate::proxy::{PortTarget, ProxyLimits};
use crate::syntax;
use crate::tor::ServiceLimits;

pub use initial::Initial;
pub use live::LiveConfig;
pub use reader::{Mistake, Mistakes};

#[cfg(test)]
mod document;
mod initial;
mod keys;
mod live;
mod reader;
mod tables;

/// The file's name in the state directory.
pub const FILE_NAME: &str = "rustbalance.toml";
/// Where `init` and `join` put a copy of the file given with `--arti-config`.
pub const ARTI_FILE_NAME: &str = "arti.toml";
/// Largest configuration file, in bytes: room for Arti's lists of bridges and relays.
const MAX_FILE: u64 = 1 << 20;
/// Virtual port of the master address, at which joining nodes dial.
pub const JOIN_PORT: u16 = 7441;

/// Why there is no configuration. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

impl ConfigError {
    /// True if it stays so until somebody mends it: what is written is wrong, not the disk or the moment.
    pub fn is_permanent(&self) -> bool {
        let lasts = |kind| matches!(kind, io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidData);
        !matches!(&self.problem, Problem::Io(_, error) if !lasts(error.kind()))
    }
}

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Not there.
    #[error("there is no such file: `rustbalance init` or `rustbalance join` makes it")]
    Missing,
    /// Cannot be read or written.
    #[error("cannot be {0}: {1}")]
    Io(&'static str, io::Error),
    /// Larger than [`MAX_FILE`].
    #[error("is larger than {MAX_FILE} bytes, which no configuration is")]
    TooLarge,
    /// Is there already.
    #[error("is there already, says something else, and is never overwritten: move it away")]
    Exists,
    /// Not TOML. Says where, and quotes nothing of the file.
    #[error("is not valid TOML: {0}")]
    Syntax(String),
    /// Keys that are unknown, or values that are not allowed.
    #[error("{0}")]
    Keys(Mistakes),
}

/// Ports of services beside the one that names the cluster, each with at least one.
pub type FurtherPorts = BTreeMap<ServiceId, Vec<PortTarget>>;

/// The configuration of one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// `[node]`.
    pub node: NodeConfig,
    /// `[[port]]` of the service that names the cluster, at least one, each virtual port once.
    pub ports: Vec<PortTarget>,
    /// `[[port]]` with `service`: the ports of further services.
    pub further_ports: FurtherPorts,
    /// `[cluster]`.
    pub cluster: ClusterConfig,
    /// `[limits]`, as far as the Tor engine enforces it.
    pub service: ServiceLimits,
    /// `[limits]`, as far as it is about streams.
    pub proxy: ProxyLimits,
    /// `[health]`.
    pub health: HealthSettings,
    /// `[links]`.
    pub links: LinkLimits,
    /// `[joins]`.
    pub joins: DoorLimits,
    /// `[gossip]`.
    pub gossip: GossipConfig,
    /// What Arti is configured with, as TOML text; empty for its defaults.
    pub arti: String,
    /// The file that `arti_config` names, from which `arti` was read.
    pub arti_file: Option<PathBuf>,
}

/// `[node]`: what this node tells the others of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Lower is asked first to publish.
    pub priority: u8,
    /// Its share of the introduction points, against the others', 1 to 100.
    pub weight: u8,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { priority: NodeCard::DEFAULT_PRIORITY, weight: NodeCard::DEFAULT_WEIGHT }
    }
}

/// `[cluster]`: the rhythm. Nodes of one cluster should agree on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Between two signs of life.
    pub heartbeat: Duration,
    /// For how long the right to publish is good without renewal; at least 3 heartbeats.
    pub lease_ttl: Duration,
    /// Introduction points this node keeps, 1 to 10.
    pub intro_points: usize,
    /// Whether the points of a silent node stay in the descriptor for a random time while
    /// publishers stand in at them. Matters on publishers.
    pub hide_outages: bool,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            heartbeat: Patience::default().interval,
            lease_ttl: Timing::default().ttl,
            intro_points: 3,
            hide_outages: false,
        }
    }
}

/// `[gossip]`: bounds on what is kept of what other members announce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipConfig {
    /// In the mesh.
    pub mesh: MeshLimits,
    /// Records that wait for their signer's certificates.
    pub waiting: usize,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self { mesh: MeshLimits::default(), waiting: DEFAULT_WAITING }
    }
}

impl Config {
    /// Reads the configuration in the state directory `dir`, and Arti's file if it names one.
    ///
    /// # Errors
    /// With every mistake in the file, each with its place.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join(FILE_NAME);
        let text = read_bounded(&path)?;
        let mut config = Self::parse(&text).map_err(|problem| ConfigError { path, problem })?;
        if let Some(file) = &config.arti_file {
            config.arti = read_arti(&dir.join(file))?;
        }
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let syntax = |error| Problem::Syntax(syntax::describe(text, &error));
        let table = text.parse().map_err(syntax)?;
        let document = DeTable::parse(text).map_err(syntax)?;
        reader::read(text, document, table).map_err(Problem::Keys)
    }
}

/// A virtual port that clients may see; else in words why not.
pub fn check_virtual_port(port: u16) -> Result<u16, String> {
    match port {
        0 => Err("there is no port 0: choose one from 1 to 65535".into()),
        LINK_PORT | JOIN_PORT => {
            Err(format!("{LINK_PORT} and {JOIN_PORT} are used by the nodes themselves: choose another"))
        }
        _ => Ok(port),
    }
}

/// Reads a whole file of at most [`MAX_FILE`] bytes.
fn read_bounded(path: &Path) -> Result<String, ConfigError> {
    let wrong = |problem| ConfigError { path: path.into(), problem };
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => wrong(Problem::Missing),
        _ => wrong(Problem::Io("opened", error)),
    })?;
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| wrong(Problem::Io("read", error)))?;
    if text.len() as u64 > MAX_FILE { Err(wrong(Problem::TooLarge)) } else { Ok(text) }
}

/// Reads a file for Arti: its keys are Arti's business, but it must be TOML.
pub fn read_arti(path: &Path) -> Result<String, ConfigError> {
    let wrong = |problem| ConfigError { path: path.into(), problem };
    let text = read_bounded(path).map_err(|error| match error.problem {
        Problem::Missing => wrong(Problem::Io("read", io::ErrorKind::NotFound.into())),
        _ => error,
    })?;
    match text.parse::<toml::Table>() {
        Ok(_) => Ok(text),
        Err(error) => Err(wrong(Problem::Syntax(syntax::describe(&text, &error)))),
    }
}

/// Writes a new file, whole or not at all, readable by its owner alone. One that says the same already is fine: an
/// interrupted command has written it.
fn write_new(path: &Path, text: &str) -> Result<(), ConfigError> {
    if read_bounded(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let wrong = |error: io::Error| {
        let problem = match error.kind() {
            io::ErrorKind::AlreadyExists => Problem::Exists,
            _ => Problem::Io("written", error),
        };
        ConfigError { path: path.into(), problem }
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(wrong)?;
    file.write_all(text.as_bytes()).map_err(wrong)?;
    file.as_file().sync_all().map_err(wrong)?;
    file.persist_noclobber(path).map_err(|error| wrong(error.error))?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(wrong)
}

#[cfg(test)]
mod tests;
