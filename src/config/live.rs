//! The configuration of a running daemon. Some tables of it can change without a restart.
//!
//! [`LiveConfig::apply`] takes a new configuration; the daemon has no reload yet that calls it. The
//! parts of the node that can follow a change hold a watch and read it at each use. So connections
//! and streams that are open keep their limits, and new ones get the new limits.

use std::collections::BTreeSet;

use tokio::sync::watch;

use super::keys::{Effect, KeyVisitor, Value};
use super::{Config, tables};
use crate::health::HealthSettings;
use crate::join::DoorLimits;
use crate::link::LinkLimits;
use crate::proxy::ProxyLimits;
use crate::sync::publish;
use crate::tor::ServiceLimits;

/// A configuration in use.
#[derive(Debug)]
pub struct LiveConfig {
    start: Config,
    service: watch::Sender<ServiceLimits>,
    proxy: watch::Sender<ProxyLimits>,
    health: watch::Sender<HealthSettings>,
    links: watch::Sender<LinkLimits>,
    joins: watch::Sender<DoorLimits>,
}

impl LiveConfig {
    /// The configuration that the daemon starts with.
    pub fn new(start: Config) -> Self {
        Self {
            service: watch::Sender::new(start.service),
            proxy: watch::Sender::new(start.proxy.clone()),
            health: watch::Sender::new(start.health.clone()),
            links: watch::Sender::new(start.links.clone()),
            joins: watch::Sender::new(start.joins),
            start,
        }
    }

    /// The configuration at the start, for the keys that need a restart to change.
    pub fn at_start(&self) -> &Config {
        &self.start
    }

    /// Applies the tables of `new` that can change while the daemon runs. Returns the names, as
    /// `[table] key`, of the other keys that differ from the start: they need a restart.
    pub fn apply(&self, new: &Config) -> Vec<String> {
        publish(&self.service, new.service);
        publish(&self.proxy, new.proxy.clone());
        publish(&self.health, new.health.clone());
        publish(&self.links, new.links.clone());
        publish(&self.joins, new.joins);
        let (old, new) = (RestartKeys::of(&self.start), RestartKeys::of(new));
        let differs = |key: &&KeyAndValue| !new.contains(key) || !old.contains(key);
        let names: BTreeSet<_> = old.iter().chain(&new).filter(differs).map(|key| key.name.clone()).collect();
        names.into_iter().collect()
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

    /// Bounds on links.
    pub fn links(&self) -> watch::Receiver<LinkLimits> {
        self.links.subscribe()
    }

    /// Bounds on joins.
    pub fn joins(&self) -> watch::Receiver<DoorLimits> {
        self.joins.subscribe()
    }
}

/// A key and its value.
#[derive(PartialEq)]
struct KeyAndValue {
    name: String,
    value: String,
}

/// The keys of a configuration that need a restart to change.
struct RestartKeys {
    keys: Vec<KeyAndValue>,
    /// Prefix of the names of the current table's keys.
    table: String,
    /// When changes of these keys take effect.
    effect: Effect,
}

impl RestartKeys {
    fn new(effect: Effect) -> Self {
        Self { keys: Vec::new(), table: String::new(), effect }
    }

    fn of(config: &Config) -> Vec<KeyAndValue> {
        let mut list = Self::new(Effect::Restart);
        tables::walk(&mut list, &mut config.clone());
        list.keys
    }

    fn push(&mut self, name: &str, value: String) {
        if self.effect == Effect::Restart {
            self.keys.push(KeyAndValue { name: format!("{}{name}", self.table), value });
        }
    }
}

impl KeyVisitor for RestartKeys {
    fn table(&mut self, name: &'static str, effect: Effect, _meaning: &'static str) {
        (self.table, self.effect) = (format!("[{name}] "), effect);
    }

    fn key<V: Value>(&mut self, name: &'static str, _allowed: V::Allowed, value: &mut V, _meaning: &'static str) {
        self.push(name, value.show());
    }

    fn optional<V: Value>(
        &mut self,
        name: &'static str,
        _allowed: V::Allowed,
        value: &mut Option<V>,
        _example: V,
        _meaning: &'static str,
    ) {
        self.push(name, value.as_ref().map_or_else(String::new, Value::show));
    }

    fn each<T: Default>(
        &mut self,
        name: &'static str,
        effect: Effect,
        _meaning: &'static str,
        items: &mut Vec<T>,
        keys: fn(&mut Self, &mut T, &[T]),
    ) {
        // All the tables are compared as one value, because they may have changed places.
        let mut inner = Self::new(Effect::Restart);
        for at in 0..items.len() {
            let (before, rest) = items.split_at_mut(at);
            rest.first_mut().into_iter().for_each(|item| keys(&mut inner, item, before));
        }
        let values: Vec<_> = inner.keys.into_iter().map(|key| format!("{} = {}", key.name, key.value)).collect();
        (self.table, self.effect) = (String::new(), effect);
        self.push(&format!("[[{name}]]"), values.join(", "));
    }

    fn foreign(&mut self, name: &'static str, effect: Effect, _meaning: &'static str, text: &mut String) -> bool {
        (self.table, self.effect) = (String::new(), effect);
        self.push(&format!("[{name}]"), text.clone());
        false
    }

    fn require(&mut self, _name: &'static str, _holds: bool, _why: impl FnOnce() -> String) {}
}
