//! The description of a running network, written to `facts.json` for processes that attach to it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::relay::Relay;

const FILE: &str = "facts.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The pid of the process that owns the network.
    pub(crate) owner: u32,
    /// The first of its ports.
    pub(crate) port_base: u16,
    /// Seconds between two consensuses.
    pub(crate) voting_interval: u64,
    /// Authorities first, then exits, then the others.
    pub(crate) relays: Vec<Relay>,
    /// The ports of the network's own client; `None` until that is warm.
    pub(crate) client: Option<ClientPorts>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct ClientPorts {
    pub(crate) socks: SocketAddr,
    pub(crate) control: SocketAddr,
}

impl Facts {
    /// Reads the facts of the network in `base`.
    pub(crate) fn load(base: &Path) -> Result<Self> {
        let path = base.join(FILE);
        let text = fs::read_to_string(&path).with_context(|| {
            format!("no test network runs in {}: cannot read {}; boot one there first", base.display(), path.display())
        })?;
        let mut facts: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not what this version writes", path.display()))?;
        for relay in &mut facts.relays {
            relay.base = base.to_path_buf();
        }
        Ok(facts)
    }

    /// Writes the facts, whole or not at all.
    pub(crate) fn save(&self, base: &Path) -> Result<()> {
        let path = base.join(FILE);
        let fresh = base.join(".facts.json.new");
        fs::write(&fresh, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&fresh, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the facts, so that no further process attaches.
    pub(crate) fn remove(base: &Path) {
        let _ = fs::remove_file(base.join(FILE));
    }

    pub(crate) fn authorities(&self) -> impl Iterator<Item = &Relay> {
        self.relays.iter().filter(|relay| relay.v3_identity.is_some())
    }
}
