//! Names of nodes and incarnations in messages.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rustbalance_gossip::address::mesh_socket;
use rustbalance_gossip::hash::{Label, labelled};
use rustbalance_gossip::id::{ClusterId, NodeId};

use super::{Incarnation, WireError};

/// Length of a short name in bytes: no two incarnations get the same by chance, and a name that is
/// also that of a given other incarnation takes 2^64 attempts.
pub(super) const SHORT: usize = 8;

/// The name of an incarnation among nodes that know it, such as a push has it.
pub(crate) type ShortName = [u8; SHORT];

/// Most texts in the cache; a full cache is cleared.
const MAX_TEXTS: usize = 1024;

/// What the names in a message mean.
pub(crate) struct Names {
    /// The cluster of all nodes.
    pub(super) cluster: ClusterId,
    /// A cache of node names in chitchat's form with their addresses, which are costly to derive.
    texts: BTreeMap<String, (NodeId, SocketAddr)>,
    /// The admitted incarnations.
    short: BTreeMap<ShortName, Incarnation>,
}

/// The short name of an incarnation.
pub(crate) fn short_name(incarnation: &Incarnation) -> ShortName {
    let generation = incarnation.generation.to_le_bytes();
    let hash = labelled(Label::Incarnation, &[incarnation.node.public_key(), &generation]);
    std::array::from_fn(|at| hash[at])
}

impl Names {
    pub(crate) fn new(cluster: ClusterId) -> Self {
        Self { cluster, texts: BTreeMap::new(), short: BTreeMap::new() }
    }

    /// The node of this name. Fails unless the name is an onion address and the mesh address
    /// belongs to it.
    pub(super) fn node(&mut self, name: &str, address: SocketAddr) -> Result<NodeId, WireError> {
        if let Some((node, at)) = self.texts.get(name) {
            return if *at == address { Ok(*node) } else { Err(WireError::Identity) };
        }
        let node: NodeId = name.parse().map_err(|_| WireError::Identity)?;
        if mesh_socket(&node) != address {
            return Err(WireError::Identity);
        }
        if self.texts.len() >= MAX_TEXTS {
            self.texts.clear();
        }
        self.texts.insert(name.to_owned(), (node, address));
        Ok(node)
    }

    /// The admitted incarnation of this short name.
    pub(crate) fn incarnation(&self, name: &ShortName) -> Option<Incarnation> {
        self.short.get(name).copied()
    }

    /// Notes an admitted incarnation. If two have one name, the first keeps it.
    pub(crate) fn learn(&mut self, incarnation: Incarnation) {
        self.short.entry(short_name(&incarnation)).or_insert(incarnation);
    }

    /// Forgets incarnations that are no longer admitted.
    pub(crate) fn retain(&mut self, admitted: impl Fn(&Incarnation) -> bool) {
        self.short.retain(|_, incarnation| admitted(incarnation));
    }
}
