//! `rustbalance.toml` in the state directory: what the operator may choose for this node.
//!
//! One enters with [`Config::load`] when the daemon starts, and with [`Config::write_initial`] at `init` and `join`. Every
//! key has a default and bounds; a wrong value and an unknown key are errors that name the key, its table and the way
//! out. Tor's own settings go to Arti as they are: in the table `[arti]`, or in the file that `arti_config` names.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::health::HealthSettings;
use crate::join::{DoorLimits, MAX_PORTS};
use crate::link::{LINK_PORT, LinkLimits};
use crate::proxy::{PortTarget, ProxyLimits, Target};
use crate::syntax;
use crate::tor::{RefusedCounts, ServiceLimits};
use read::{Asked, Section};

mod initial;
mod peers;
mod read;

pub use initial::Initial;
pub use peers::GossipConfig;

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
    /// A key nobody reads.
    #[error("unknown key {key:?} in {table}: {hint}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The table it stands in.
        table: String,
        /// The nearest known one.
        hint: String,
    },
    /// A value that cannot be.
    #[error("{key:?} in {table}: {problem}")]
    Value {
        /// The key.
        key: String,
        /// The table it stands in.
        table: String,
        /// Why, and what could be.
        problem: String,
    },
}

/// The configuration of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[node]`.
    pub node: NodeConfig,
    /// `[[port]]`, at least one, each virtual port once.
    pub ports: Vec<PortTarget>,
    /// `[cluster]`.
    pub cluster: ClusterConfig,
    /// `[limits]`.
    pub limits: Limits,
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
        Self { priority: 100, weight: 1 }
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
            heartbeat: Duration::from_secs(2),
            lease_ttl: Duration::from_secs(30),
            intro_points: 3,
            hide_outages: false,
        }
    }
}

/// `[limits]`: bounds on what clients can make this node do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Rendezvous circuits that may be in the making at once.
    pub pending_rendezvous: usize,
    /// Rendezvous circuits open at once.
    pub open_rendezvous: usize,
    /// Streams open on one rendezvous circuit.
    pub streams_per_circuit: usize,
    /// Introductions that may wait for their turn, per introduction point.
    pub introduction_queue: usize,
    /// Introductions a second that each relay passes on (rate and burst); `None` for as many as come.
    pub introductions_per_second: Option<(u32, u32)>,
    /// Streams and their timeouts.
    pub proxy: ProxyLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pending_rendezvous: 256,
            open_rendezvous: 4096,
            streams_per_circuit: 128,
            introduction_queue: 256,
            introductions_per_second: None,
            proxy: ProxyLimits::default(),
        }
    }
}

impl Limits {
    /// The part that the Tor engine enforces, its counters at zero.
    pub fn service_limits(&self) -> ServiceLimits {
        ServiceLimits {
            pending_rendezvous: self.pending_rendezvous,
            open_rendezvous: self.open_rendezvous,
            streams_per_circuit: self.streams_per_circuit,
            introduction_queue: self.introduction_queue,
            introductions_per_second: self.introductions_per_second,
            refused: RefusedCounts::default(),
        }
    }
}

/// The burst where only the rate is given, as C tor has it.
const DEFAULT_BURST: u32 = 200;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Config {
    /// Reads the configuration in the state directory `dir`, and Arti's file if it names one.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join(FILE_NAME);
        let text = read_bounded(&path)?;
        let wrong = |problem| ConfigError { path: path.clone(), problem };
        let (mut config, arti_file) = Self::parse(&text).map_err(wrong)?;
        if let Some(file) = arti_file {
            config.arti = read_arti(&dir.join(file))?;
        }
        Ok(config)
    }

    /// Reads the text of the file; the second is the file that `arti_config` names.
    fn parse(text: &str) -> Result<(Self, Option<PathBuf>), Problem> {
        let table = text.parse().map_err(|error| Problem::Syntax(syntax::describe(text, &error)))?;
        let asked = Asked::default();
        let mut top = Section::top(table, &asked);
        let node = read_node(top.section("node")?)?;
        let ports = top.sections("port")?;
        let cluster = read_cluster(top.section("cluster")?)?;
        let limits = read_limits(top.section("limits")?)?;
        let health = read_health(top.section("health")?)?;
        let links = peers::read_links(top.section("links")?)?;
        let joins = peers::read_joins(top.section("joins")?)?;
        let gossip = peers::read_gossip(top.section("gossip")?)?;
        let arti_file: Option<PathBuf> = top.text("arti_config")?;
        let arti = match (top.take("arti"), &arti_file) {
            (None, _) => String::new(),
            (Some(toml::Value::Table(arti)), None) => {
                toml::to_string(&arti).map_err(|error| top.problem("arti", error.to_string()))?
            }
            (Some(_), Some(_)) => {
                let problem = "there is a table [arti] too: keep one of the two".into();
                return Err(top.problem("arti_config", problem));
            }
            (Some(_), None) => return Err(top.problem("arti", "it is a table, write [arti]".into())),
        };
        // A misspelt key is told before what is missing for its sake.
        let ports: Vec<_> = ports.into_iter().map(read_port).collect();
        let none = top.problem("port", "there is none: add [[port]] with \"virtual\" and \"target\"".into());
        top.finish();
        asked.finish()?;
        let ports = check_ports(ports.into_iter().collect::<Result<_, _>>()?, none)?;
        Ok((Self { node, ports, cluster, limits, health, links, joins, gossip, arti }, arti_file))
    }
}

fn read_node(mut section: Section<'_>) -> Result<NodeConfig, Problem> {
    let default = NodeConfig::default();
    let node = NodeConfig {
        priority: section.number("priority", 0..=255)?.unwrap_or(default.priority),
        weight: section.number("weight", 1..=100)?.unwrap_or(default.weight),
    };
    section.finish();
    Ok(node)
}

fn read_port(mut section: Section<'_>) -> Result<PortTarget, Problem> {
    let port = section.number::<u16>("virtual", 1..=65_535);
    let target = section.text::<Target>("target");
    let missing = |key: &str, say: &str| section.problem(key, say.into());
    let read = match (port, target) {
        (Err(problem), _) | (_, Err(problem)) => Err(problem),
        (Ok(None), _) => Err(missing("virtual", "is missing: which port of the onion address is it?")),
        (_, Ok(None)) => Err(missing("target", "is missing: where do its streams go, as in \"127.0.0.1:8080\"?")),
        (Ok(Some(port)), Ok(Some(target))) => match check_virtual_port(port) {
            Ok(port) => Ok(PortTarget { port, target }),
            Err(problem) => Err(missing("virtual", &problem)),
        },
    };
    section.finish();
    read
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

/// At least one port, and each once.
fn check_ports(ports: Vec<PortTarget>, none: Problem) -> Result<Vec<PortTarget>, Problem> {
    let wrong = |problem| Problem::Value { key: "virtual".into(), table: "[[port]]".into(), problem };
    if ports.len() > MAX_PORTS {
        return Err(wrong(format!("there are {} ports, at most {MAX_PORTS} are possible", ports.len())));
    }
    for (at, port) in ports.iter().enumerate() {
        if ports.iter().take(at).any(|other| other.port == port.port) {
            return Err(wrong(format!("{} stands there twice: a port has one target", port.port)));
        }
    }
    if ports.is_empty() { Err(none) } else { Ok(ports) }
}

fn read_cluster(mut section: Section<'_>) -> Result<ClusterConfig, Problem> {
    let default = ClusterConfig::default();
    let heartbeat =
        section.duration("heartbeat", Duration::from_millis(200)..=seconds(30))?.unwrap_or(default.heartbeat);
    let lease_ttl = section.duration("lease_ttl", seconds(3)..=seconds(600))?.unwrap_or(default.lease_ttl);
    let intro_points = section.number::<u16>("intro_points", 1..=10)?.map_or(default.intro_points, usize::from);
    if lease_ttl < heartbeat * 3 {
        let (ttl, beat) = (read::show(lease_ttl), read::show(heartbeat));
        let problem = format!("{ttl} is shorter than 3 heartbeats of {beat}: a lease must outlive a lost one");
        return Err(section.problem("lease_ttl", problem));
    }
    let hide_outages = section.flag("hide_outages")?.unwrap_or(default.hide_outages);
    section.finish();
    Ok(ClusterConfig { heartbeat, lease_ttl, intro_points, hide_outages })
}

fn read_limits(mut section: Section<'_>) -> Result<Limits, Problem> {
    let default = Limits::default();
    let mut count = |key, default| section.number(key, 1..=1_000_000_u32).map(|n| n.map_or(default, |n| n as usize));
    let pending_rendezvous = count("pending_rendezvous", default.pending_rendezvous)?;
    let open_rendezvous = count("open_rendezvous", default.open_rendezvous)?;
    let streams_per_circuit = count("streams_per_circuit", default.streams_per_circuit)?;
    let introduction_queue = count("introduction_queue", default.introduction_queue)?;
    let streams = count("streams", default.proxy.streams)?;
    let rate = section.number("introductions_per_second", 1..=1_000_000_u32)?;
    let burst = section.number("introductions_burst", 1..=1_000_000_u32)?;
    let introductions_per_second = match (rate, burst) {
        (None, None) => None,
        (Some(rate), None) => Some((rate, DEFAULT_BURST.max(rate))),
        (Some(rate), Some(burst)) if burst >= rate => Some((rate, burst)),
        (Some(rate), Some(burst)) => {
            let problem = format!("{burst} is less than the {rate} a second of introductions_per_second");
            return Err(section.problem("introductions_burst", problem));
        }
        (None, Some(_)) => {
            let problem = "means nothing without introductions_per_second".into();
            return Err(section.problem("introductions_burst", problem));
        }
    };
    let mut time = |key, most, default| section.duration(key, seconds(1)..=most).map(|time| time.unwrap_or(default));
    let day = seconds(24 * 3600);
    let proxy = ProxyLimits {
        streams,
        connect: time("connect_timeout", seconds(60), default.proxy.connect)?,
        half_closed: time("half_closed_timeout", day, default.proxy.half_closed)?,
        idle: section.duration_or_never("idle_timeout", seconds(1)..=day)?.unwrap_or(default.proxy.idle),
        stall: section.duration_or_never("stall_timeout", seconds(1)..=day)?.unwrap_or(default.proxy.stall),
    };
    section.finish();
    Ok(Limits {
        pending_rendezvous,
        open_rendezvous,
        streams_per_circuit,
        introduction_queue,
        introductions_per_second,
        proxy,
    })
}

fn read_health(mut section: Section<'_>) -> Result<HealthSettings, Problem> {
    let default = HealthSettings::default();
    let shortest = Duration::from_millis(100);
    let health = HealthSettings {
        interval: section.duration("interval", shortest..=seconds(600))?.unwrap_or(default.interval),
        timeout: section.duration("timeout", shortest..=seconds(60))?.unwrap_or(default.timeout),
        failures: section.number("failures", 1..=100)?.unwrap_or(default.failures),
    };
    section.finish();
    Ok(health)
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
