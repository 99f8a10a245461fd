//! Where the daemons of a cluster run.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;

use crate::hosts::Hosts;
use crate::namespace::Namespace;
use crate::network::Network;

/// Where the daemons and commands of a cluster run.
#[derive(Clone, Debug, Default)]
pub(super) enum Place {
    /// Where this process runs.
    #[default]
    Here,
    /// All in one network namespace.
    Namespace(Arc<Namespace>),
    /// Each node on the host of its name.
    Hosts(Arc<Hosts>),
}

impl Place {
    /// Lets nodes here reach the ports on which relays accept connections.
    pub(super) fn forward_relays(&self, network: &Network) -> Result<()> {
        for relay in network.relays() {
            match self {
                Self::Here => {}
                Self::Namespace(namespace) => namespace.forward(relay.or_port)?,
                Self::Hosts(hosts) => {
                    for host in hosts.names() {
                        hosts.forward(host, relay.or_port, true)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets a node reach the port of its own site.
    pub(super) fn forward_site(&self, node: &str, port: u16) -> Result<()> {
        match self {
            Self::Here => Ok(()),
            Self::Namespace(namespace) => namespace.forward(port),
            Self::Hosts(hosts) => hosts.forward(node, port, false),
        }
    }

    /// The command that enters the place of a node, to be put before another command.
    pub(super) fn entry(&self, node: &str) -> Vec<String> {
        let path: Option<PathBuf> = match self {
            Self::Here => None,
            Self::Namespace(namespace) => Some(namespace.path()),
            Self::Hosts(hosts) => hosts.path(node),
        };
        path.map(|path| vec!["nsenter".into(), format!("--net={}", path.display()), "--".into()]).unwrap_or_default()
    }
}
