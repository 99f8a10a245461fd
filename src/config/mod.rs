//! `rustbalance.toml` in the state directory: the operator's settings for this node.
//!
//! `init` and `join` write the initial file with [`Config::write_initial`], the daemon reads it
//! with [`Config::load`], and [`LiveConfig`] holds it while the daemon runs. `tables` defines every
//! key once: its name, default, allowed values and meaning. A wrong value and an unknown key are
//! errors that name the line, the key, its table and the way out. Tor's own settings are passed to
//! Arti unchanged: they are in the table `[arti]`, or in the file that `arti_config` names.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::lease::Timing;
use rustbalance_gossip::liveness::Patience;
use rustbalance_gossip::record::{NodeCard, NodeName};
use rustbalance_gossip::view::DEFAULT_WAITING;
use rustbalance_mesh::MeshLimits;
use toml::de::DeTable;
use tracing::warn;

use crate::alerts::AlertSettings;
use crate::canary::plan::CanarySettings;
use crate::health::HealthSettings;
use crate::join::DoorLimits;
use crate::link::{LINK_PORT, LinkLimits};
use crate::log::LogLevel;
use crate::new_file::{self, Existing};
use crate::proxy::{PortTarget, ProxyLimits};
use crate::syntax;
use crate::tor::ServiceLimits;

pub use changes::Change;
pub use initial::Initial;
pub(crate) use keys::socket_address;
pub use live::{AnnouncedSettings, LiveConfig, Reloaded, Targets};
pub use reader::{Mistake, Mistakes};

mod alert_values;
mod changes;
mod check_keys;
#[cfg(test)]
mod document;
mod initial;
mod keys;
mod live;
mod port;
mod reader;
mod tables;

/// The file's name in the state directory.
pub const FILE_NAME: &str = "rustbalance.toml";
/// Name in the state directory for the copy of the file given with `--arti-config`.
pub const ARTI_FILE_NAME: &str = "arti.toml";
/// Largest configuration file, in bytes: room for Arti's lists of bridges and relays.
const MAX_FILE: u64 = 1 << 20;
/// UDP port for WireGuard, unless another is configured: the number of the port for links. Not
/// WireGuard's usual 51820, which a tunnel of the host itself may have.
pub const WIREGUARD_PORT: u16 = LINK_PORT;
/// Virtual port of the cluster's first service, to which joining nodes connect.
pub const JOIN_PORT: u16 = 7441;

/// Why a configuration file cannot be read or written. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// The problem with it.
    pub problem: Problem,
}

impl ConfigError {
    /// True if the error lasts until the operator fixes the file or its permissions. Other errors
    /// of the operating system may pass.
    pub fn is_permanent(&self) -> bool {
        let lasts = |kind| matches!(kind, io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidData);
        !matches!(&self.problem, Problem::Io(_, error) if !lasts(error.kind()))
    }
}

/// A problem with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file does not exist.
    #[error("there is no such file: `rustbalance init` or `rustbalance join` makes it")]
    Missing,
    /// The file cannot be read or written. Holds the failed action and the system's error.
    #[error("cannot be {0}: {1}")]
    Io(&'static str, io::Error),
    /// The file is larger than [`MAX_FILE`].
    #[error("is larger than {MAX_FILE} bytes, the most that a configuration may have")]
    TooLarge,
    /// A file with another content exists.
    #[error("already exists with another content, and is never overwritten: move it away")]
    Exists,
    /// The file is not TOML. Holds the place and perhaps the key, but no value, which may be
    /// secret.
    #[error("is not valid TOML: {0}")]
    Syntax(String),
    /// The file has unknown keys, or values that are not allowed.
    #[error("{0}")]
    Keys(Mistakes),
}

/// The ports of the services other than the first. Each service has at least one port.
pub type FurtherPorts = BTreeMap<ServiceId, Vec<PortTarget>>;

/// The configuration of one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Threads that run the daemon's tasks; `None` for one for two processors.
    pub threads: Option<usize>,
    /// `[node]`: values that this node announces.
    pub node: NodeConfig,
    /// `[[port]]` of the service that names the cluster, at least one, each virtual port once.
    pub ports: Vec<PortTarget>,
    /// `[[port]]` with `service`: the ports of further services.
    pub further_ports: FurtherPorts,
    /// `[cluster]`: timing and introduction points.
    pub cluster: ClusterConfig,
    /// `[limits]`: the limits that the Tor engine enforces.
    pub service: ServiceLimits,
    /// `[limits]`: the limits on streams to targets.
    pub proxy: ProxyLimits,
    /// `[health]`: checks of the targets.
    pub health: HealthSettings,
    /// `[canary]`: whether and how often this node uses its services as a client.
    pub canary: CanarySettings,
    /// `[links]`: links to other members, and limits on them.
    pub links: LinkLimits,
    /// `[joins]`: limits on joining nodes.
    pub joins: DoorLimits,
    /// `[gossip]`: limits on the gossip that is kept.
    pub gossip: GossipConfig,
    /// `[wireguard]`: the faster route between members.
    pub wireguard: WireguardConfig,
    /// `[metrics]`: where monitors ask this node.
    pub metrics: MetricsConfig,
    /// `[alerts]`: where alerts go when something is wrong.
    pub alerts: AlertSettings,
    /// `[log]`: what is logged.
    pub log: LogConfig,
    /// Arti's settings as TOML text; empty for its defaults.
    pub arti: String,
    /// The file that `arti_config` names and from which `arti` was read; `None` without that key.
    pub arti_file: Option<PathBuf>,
}

/// `[node]`: values that this node announces to the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The name of this node in the `status` of all members; `None` for its address alone.
    pub name: Option<NodeName>,
    /// Order in which publishers are chosen to publish: the lowest number first.
    pub priority: u8,
    /// Share of the introduction points, relative to the other nodes' weights; 1 to 100.
    pub weight: u8,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { name: None, priority: NodeCard::DEFAULT_PRIORITY, weight: NodeCard::DEFAULT_WEIGHT }
    }
}

/// `[cluster]`: timing, which should be the same on all nodes, and introduction points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// How long the right to publish lasts without renewal; at least 3 heartbeats.
    pub lease_ttl: Duration,
    /// Introduction points this node keeps, 1 to 10.
    pub intro_points: usize,
    /// True if the introduction points of a silent node stay in the descriptor for a random time,
    /// while publishers stand in at them. Only publishers use it.
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

/// `[gossip]`: limits on the gossip of other members that this node keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipConfig {
    /// Limits in the mesh.
    pub mesh: MeshLimits,
    /// Most records that wait for their signer's certificates.
    pub waiting: usize,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self { mesh: MeshLimits::default(), waiting: DEFAULT_WAITING }
    }
}

/// `[wireguard]`: the faster route between members that know each other's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WireguardConfig {
    /// True if the node takes part. `None`: it does not, and shows no address to anyone.
    pub enabled: Option<bool>,
    /// Where to listen: one IPv4 address, one IPv6 address, or one of each. `None`: the addresses
    /// that this host's default routes have, with [`WIREGUARD_PORT`].
    pub listen: Option<Vec<SocketAddr>>,
    /// The addresses to announce, if other nodes reach this one at others than it listens on.
    pub endpoints: Option<Vec<SocketAddr>>,
    /// What carries the packets.
    pub device: WireguardDevice,
}

/// `[metrics]`: where monitors ask this node, in addition to the Unix socket in the state
/// directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MetricsConfig {
    /// A loopback address. `None`: the Unix socket alone.
    pub listen: Option<SocketAddr>,
}

/// `[log]`: what is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// The level of the daemon; `None`: as its command line says.
    pub level: Option<LogLevel>,
    /// Whether onion addresses are shortened and IP addresses of other hosts left out.
    pub safe_logging: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: None, safe_logging: true }
    }
}

/// What carries WireGuard's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WireguardDevice {
    /// The daemon itself, without privileges and without a network interface.
    #[default]
    Userspace,
    /// WireGuard of the Linux kernel, which needs CAP_NET_ADMIN and makes a network interface.
    Kernel,
}

impl Config {
    /// Reads the configuration in the state directory `dir`, and Arti's file if it names one.
    ///
    /// # Errors
    /// A file cannot be read, or has mistakes: the error lists all of them with their places.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let (config, renamed) = Self::read(dir)?;
        for key in renamed {
            warn!(name: "config_key_renamed", file = %dir.join(FILE_NAME).display(), "{key}");
        }
        Ok(config)
    }

    /// Like [`Config::load`], but returns the hints about keys with their former names, instead of
    /// logging them.
    pub fn read(dir: &Path) -> Result<(Self, Vec<Mistake>), ConfigError> {
        let path = dir.join(FILE_NAME);
        let text = read_bounded(&path)?;
        let (mut config, renamed) = Self::parse(&text).map_err(|problem| ConfigError { path, problem })?;
        if let Some(file) = &config.arti_file {
            config.arti = read_arti(&dir.join(file))?;
        }
        Ok((config, renamed))
    }

    /// Also returns a hint for each key that has its former name.
    fn parse(text: &str) -> Result<(Self, Vec<Mistake>), Problem> {
        let syntax = |error| Problem::Syntax(syntax::describe(text, &error));
        let table = text.parse().map_err(syntax)?;
        let document = DeTable::parse(text).map_err(syntax)?;
        reader::read(text, document, table).map_err(Problem::Keys)
    }
}

/// Returns a virtual port that clients may use.
///
/// # Errors
/// The reason why the port is not allowed, for the operator.
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

/// Reads a configuration file for Arti. It must be valid TOML; its keys are not checked here.
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

/// Writes a new file atomically, readable by its owner alone. An existing file with the same
/// content is accepted, because an interrupted command may have written it.
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
    new_file::write(path, Existing::Keep, |file| file.write_all(text.as_bytes())).map_err(wrong)
}

#[cfg(test)]
mod reloads;
#[cfg(test)]
mod tests;
