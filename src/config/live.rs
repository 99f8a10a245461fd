//! The configuration of a running daemon, which a reload changes.
//!
//! [`LiveConfig::reload`] takes a new configuration. The parts of the node hold a watch of what
//! they use, and work towards its latest value. So connections and streams that are open keep their
//! limits and targets, and new ones get the new ones. A reload is refused before anything of it is
//! applied.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use rustbalance_gossip::id::ServiceId;
use rustbalance_mesh::MeshLimits;
use tokio::sync::watch;

use super::changes::{Change, changes};
use super::keys::Effect;
use super::{ClusterConfig, Config, FurtherPorts, GossipConfig, LogConfig, NodeConfig, WireguardConfig};
use crate::alerts::AlertSettings;
use crate::canary::plan::CanarySettings;
use crate::health::HealthSettings;
use crate::join::DoorLimits;
use crate::link::LinkLimits;
use crate::proxy::{PortTarget, ProxyLimits};
use crate::sync::publish;
use crate::tor::ServiceLimits;

/// A configuration in use.
#[derive(Debug)]
pub struct LiveConfig {
    start: Config,
    /// The configuration of the last reload. Locked during a reload, so that the file that was read
    /// last is the one in use.
    newest: Mutex<Config>,
    announced: watch::Sender<AnnouncedSettings>,
    targets: watch::Sender<Targets>,
    points: watch::Sender<usize>,
    service: watch::Sender<ServiceLimits>,
    proxy: watch::Sender<ProxyLimits>,
    health: watch::Sender<HealthSettings>,
    canary: watch::Sender<CanarySettings>,
    links: watch::Sender<LinkLimits>,
    joins: watch::Sender<DoorLimits>,
    gossip: watch::Sender<MeshLimits>,
    wireguard: watch::Sender<WireguardConfig>,
    alerts: watch::Sender<AlertSettings>,
    log: watch::Sender<LogConfig>,
}

/// The settings that the coordinator takes while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnouncedSettings {
    /// `[node]`: name, priority and weight.
    pub node: NodeConfig,
    /// The virtual ports of the first service.
    pub ports: Vec<u16>,
    /// `hide_outages` in `[cluster]`.
    pub hide_outages: bool,
    /// `pending_records` in `[gossip]`.
    pub waiting: usize,
}

/// The targets of all services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Targets {
    /// Those of the service that names the cluster.
    pub first: Vec<PortTarget>,
    /// Those of the further services.
    pub further: FurtherPorts,
}

impl Targets {
    /// The targets by service; `first` is the service that names the cluster.
    pub fn by_service(&self, first: ServiceId) -> BTreeMap<ServiceId, Vec<PortTarget>> {
        let mut targets = self.further.clone();
        targets.entry(first).or_default().extend(self.first.iter().cloned());
        targets
    }

    /// The virtual ports by service.
    pub fn ports(&self, first: ServiceId) -> BTreeMap<ServiceId, Vec<u16>> {
        let ports = |targets: Vec<PortTarget>| targets.iter().map(|target| target.port).collect();
        self.by_service(first).into_iter().map(|(service, targets)| (service, ports(targets))).collect()
    }
}

/// The outcome of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reloaded {
    /// The changes that are in use now.
    pub applied: Vec<Change>,
    /// The differences from the start that take effect after a restart.
    pub after_restart: Vec<Change>,
}

/// The part of a configuration that a reload applies, split up for the parts of the node.
struct LiveParts {
    announced: AnnouncedSettings,
    targets: Targets,
    points: usize,
    service: ServiceLimits,
    proxy: ProxyLimits,
    health: HealthSettings,
    canary: CanarySettings,
    links: LinkLimits,
    joins: DoorLimits,
    gossip: MeshLimits,
    wireguard: WireguardConfig,
    alerts: AlertSettings,
    log: LogConfig,
}

impl From<Config> for LiveParts {
    /// Names every field, so that a new one needs a decision here. A test checks that it is the
    /// decision in `tables`.
    fn from(config: Config) -> Self {
        let Config {
            threads: _,
            node,
            ports,
            further_ports,
            cluster: ClusterConfig { heartbeat: _, lease_ttl: _, intro_points, hide_outages },
            service,
            proxy,
            health,
            canary,
            links,
            joins,
            gossip: GossipConfig { mesh, waiting },
            wireguard,
            metrics: _,
            alerts,
            log,
            arti: _,
            arti_file: _,
        } = config;
        let of_first = ports.iter().map(|target| target.port).collect();
        Self {
            announced: AnnouncedSettings { node, ports: of_first, hide_outages, waiting },
            targets: Targets { first: ports, further: further_ports },
            points: intro_points,
            service,
            proxy,
            health,
            canary,
            links,
            joins,
            gossip: mesh,
            wireguard,
            alerts,
            log,
        }
    }
}

impl Config {
    /// The keys that differ from the defaults, in texts without secrets and onion addresses.
    pub fn differences(&self) -> Vec<Change> {
        let (default, effects) = (Self::default(), [Effect::Running, Effect::Restart]);
        effects.into_iter().flat_map(|effect| changes(&default, self, effect)).collect()
    }
}

impl LiveConfig {
    /// The configuration that the daemon starts with.
    pub fn new(start: Config) -> Self {
        let LiveParts {
            announced,
            targets,
            points,
            service,
            proxy,
            health,
            canary,
            links,
            joins,
            gossip,
            wireguard,
            alerts,
            log,
        } = start.clone().into();
        Self {
            newest: Mutex::new(start.clone()),
            announced: watch::Sender::new(announced),
            targets: watch::Sender::new(targets),
            points: watch::Sender::new(points),
            service: watch::Sender::new(service),
            proxy: watch::Sender::new(proxy),
            health: watch::Sender::new(health),
            canary: watch::Sender::new(canary),
            links: watch::Sender::new(links),
            joins: watch::Sender::new(joins),
            gossip: watch::Sender::new(gossip),
            wireguard: watch::Sender::new(wireguard),
            alerts: watch::Sender::new(alerts),
            log: watch::Sender::new(log),
            start,
        }
    }

    /// The configuration at the start, for the keys that need a restart to change.
    pub fn at_start(&self) -> &Config {
        &self.start
    }

    /// Reads a new configuration with `read` and applies it. One reload at a time.
    ///
    /// # Errors
    /// Those of `read`; then nothing has changed.
    pub fn reload<E>(&self, read: impl FnOnce() -> Result<Config, E>) -> Result<Reloaded, E> {
        let mut newest = self.newest.lock();
        let new = read()?;
        let reloaded = Reloaded {
            applied: changes(&newest, &new, Effect::Running),
            after_restart: changes(&self.start, &new, Effect::Restart),
        };
        newest.clone_from(&new);
        let LiveParts {
            announced,
            targets,
            points,
            service,
            proxy,
            health,
            canary,
            links,
            joins,
            gossip,
            mut wireguard,
            alerts,
            log,
        } = new.into();
        wireguard.device = self.start.wireguard.device;
        publish(&self.announced, announced);
        publish(&self.targets, targets);
        publish(&self.points, points);
        publish(&self.service, service);
        publish(&self.proxy, proxy);
        publish(&self.health, health);
        publish(&self.canary, canary);
        publish(&self.links, links);
        publish(&self.joins, joins);
        publish(&self.gossip, gossip);
        publish(&self.wireguard, wireguard);
        publish(&self.alerts, alerts);
        publish(&self.log, log);
        Ok(reloaded)
    }

    /// The settings of the coordinator.
    pub fn announced(&self) -> watch::Receiver<AnnouncedSettings> {
        self.announced.subscribe()
    }

    /// Where the streams of clients go.
    pub fn targets(&self) -> watch::Receiver<Targets> {
        self.targets.subscribe()
    }

    /// Introduction points to keep open for each service.
    pub fn points(&self) -> watch::Receiver<usize> {
        self.points.subscribe()
    }

    /// Bounds on introductions and on clients' circuits.
    pub fn service(&self) -> watch::Receiver<ServiceLimits> {
        self.service.subscribe()
    }

    /// Bounds on clients' streams.
    pub fn proxy(&self) -> watch::Receiver<ProxyLimits> {
        self.proxy.subscribe()
    }

    /// How targets are checked.
    pub fn health(&self) -> watch::Receiver<HealthSettings> {
        self.health.subscribe()
    }

    /// How often this node uses its services as a client.
    pub fn canary(&self) -> watch::Receiver<CanarySettings> {
        self.canary.subscribe()
    }

    /// Bounds on links.
    pub fn links(&self) -> watch::Receiver<LinkLimits> {
        self.links.subscribe()
    }

    /// Bounds on joins.
    pub fn joins(&self) -> watch::Receiver<DoorLimits> {
        self.joins.subscribe()
    }

    /// Bounds on the gossip that is kept.
    pub fn gossip(&self) -> watch::Receiver<MeshLimits> {
        self.gossip.subscribe()
    }

    /// The faster route between members.
    pub fn wireguard(&self) -> watch::Receiver<WireguardConfig> {
        self.wireguard.subscribe()
    }

    /// Which alerts are sent, and where they go.
    pub fn alerts(&self) -> watch::Receiver<AlertSettings> {
        self.alerts.subscribe()
    }

    /// What is logged.
    pub fn log(&self) -> watch::Receiver<LogConfig> {
        self.log.subscribe()
    }
}
