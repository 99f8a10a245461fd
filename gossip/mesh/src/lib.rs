//! The mesh: signed records spread over all members by chitchat (scuttlebutt anti-entropy).
//!
//! [`Mesh::start`] joins the mesh, [`Mesh::set`] announces a record of this node, and the records
//! of others arrive in a queue of [`Update`]s. Nothing that arrives is verified: gossip
//! disseminates records and proves nothing.
//!
//! One task does the work ([`Keeper`]). It writes this node's records to chitchat whenever they
//! differ from chitchat's state. It [delivers](delivery) the values of others by version: for every
//! incarnation of every node it remembers the highest version delivered, and after each change it
//! delivers what is newer. A slow receiver thus misses superseded values and never the latest.
//! Messages pass a [`gate`] on their way in and out. New values are [pushed](news) to the peers
//! that need them ([`supply`]); [comparisons](questions) find what no push has brought.
//!
//! Gossip restarts under a higher generation if chitchat stops, or if versions of this node's
//! present incarnation were spoofed: a peer that believes in a version which the node has not
//! reached would ignore its real values.
//!
//! # Examples
//!
//! Two meshes over a channel in memory. What one announces, the other receives, unverified.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use rustbalance_gossip::id::{ClusterId, NodeId};
//! use rustbalance_gossip::record::RecordKind;
//! use rustbalance_mesh::{Carrier, Mesh, MeshConfig};
//! use tokio::sync::mpsc;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let [alpha, beta] = [1, 2].map(|seed| NodeId::from_public_key([seed; 32]));
//! let (to_alpha, for_alpha) = mpsc::channel(64);
//! let (to_beta, for_beta) = mpsc::channel(64);
//! // A carrier may lose messages, so a full channel does no harm.
//! let carrier = |me: NodeId, peer: NodeId, queue: mpsc::Sender<(NodeId, Vec<u8>)>, received| {
//!     let send = Arc::new(move |_to, message| drop(queue.try_send((me, message))));
//!     Carrier { send, received, links: Arc::new(move || [peer].into()) }
//! };
//! let config = |me| MeshConfig {
//!     me,
//!     cluster: ClusterId::from_public_key([9; 32]),
//!     generation: 1,
//!     interval: Duration::from_millis(50),
//! };
//! let carriers =
//!     (carrier(alpha, beta, to_beta, for_alpha), carrier(beta, alpha, to_alpha, for_beta));
//! let (one, _) = Mesh::start(config(alpha), carriers.0, vec![beta]).await?;
//! let (other, mut updates) = Mesh::start(config(beta), carriers.1, vec![alpha]).await?;
//! one.set(RecordKind::Card, b"a signed record")?;
//! let update = updates.recv().await.ok_or("the mesh has ended")?;
//! assert_eq!((update.origin, update.bytes.as_slice()), (alpha, &b"a signed record"[..]));
//! # drop((one, other));
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use data_encoding::BASE64;
use parking_lot::Mutex;
use rustbalance_gossip::id::{ClusterId, NodeId};
use rustbalance_gossip::record::{MAX_RECORD, RecordKind};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

pub use gate::{Gate, MeshCounters, MeshLimits};
use keeper::Keeper;
pub use wire::{MAX_MESSAGE, PUSH_DICTIONARY, WireError, is_push};

mod adapter;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod delivery;
mod gate;
mod incarnations;
mod keeper;
mod leaky;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
mod news;
mod questions;
mod quota;
mod supply;
#[cfg(test)]
mod tests;
mod wire;

/// Time between two rounds of gossip in the daemon.
pub const ROUND: Duration = Duration::from_millis(500);

/// Most updates that wait for the receiver; later ones wait in chitchat's state.
const QUEUE: usize = 64;

/// Carries gossip messages between nodes. Messages may be lost, reordered, or delivered to another
/// node than asked for.
pub struct Carrier {
    /// Sends a message to a node, or to any other node if it cannot reach that one. Must not block.
    pub send: Arc<dyn Fn(NodeId, Vec<u8>) + Send + Sync>,
    /// Received messages, each with the node that sent it.
    pub received: mpsc::Receiver<(NodeId, Vec<u8>)>,
    /// Returns the nodes that have a link with this node now. Must not block.
    pub links: Arc<dyn Fn() -> BTreeSet<NodeId> + Send + Sync>,
}

/// The settings of a mesh.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// The id of this node.
    pub me: NodeId,
    /// The cluster of this node; gossip of other clusters is refused.
    pub cluster: ClusterId,
    /// Number of this start of the node: higher than that of every earlier start, below 2^47.
    pub generation: u64,
    /// Time between two rounds of gossip: [`ROUND`], or less in a test.
    pub interval: Duration,
}

/// A value that is new or has changed. It is not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// The node whose chitchat state has this value. It is valid only if that node or the authority
    /// signed it. Values of earlier incarnations of this node itself are delivered too.
    pub origin: NodeId,
    /// The kind of record that its key claims.
    pub kind: RecordKind,
    /// The signed record; at most [`MAX_RECORD`] bytes.
    pub bytes: Vec<u8>,
}

/// Why the mesh could not start, or refused a record. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// chitchat could not be started.
    #[error("cannot start gossip: {0}")]
    Start(String),
    /// A record longer than any node accepts; its length in bytes.
    #[error("record of {0} bytes, at most {MAX_RECORD} can be gossiped")]
    TooLong(usize),
}

/// What this node announces, shared with the task. `values` holds `None` for a retracted key.
#[derive(Default)]
struct Own {
    values: Mutex<BTreeMap<String, Option<String>>>,
    seeds: Mutex<Vec<NodeId>>,
    changed: Notify,
    /// True if gossip must restart with an empty state.
    restart: AtomicBool,
}

/// A running mesh. Dropping it stops it at once, without sending the last values.
pub struct Mesh {
    own: Arc<Own>,
    gate: Arc<Gate>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Mesh {
    /// Begins to gossip, first with `seeds`. Returns the mesh and the queue of other nodes' values.
    ///
    /// # Errors
    ///
    /// [`MeshError::Start`] if chitchat cannot start.
    pub async fn start(
        config: MeshConfig,
        carrier: Carrier,
        seeds: Vec<NodeId>,
    ) -> Result<(Self, mpsc::Receiver<Update>), MeshError> {
        let own = Arc::new(Own { seeds: Mutex::new(seeds), ..Own::default() });
        let gate = Arc::new(Gate::new(config.me, config.cluster, config.interval));
        let (updates, queue) = mpsc::channel(QUEUE);
        let (stop, stopped) = oneshot::channel();
        let keeper = Keeper::start(config, carrier, Arc::clone(&own), Arc::clone(&gate), updates).await?;
        let task = tokio::spawn(keeper.run(stopped));
        Ok((Self { own, gate, stop: Some(stop), task }, queue))
    }

    /// Announces a record in place of the previous one of this kind.
    ///
    /// # Errors
    ///
    /// [`MeshError::TooLong`] if it has more than [`MAX_RECORD`] bytes.
    pub fn set(&self, kind: RecordKind, bytes: &[u8]) -> Result<(), MeshError> {
        if bytes.len() > MAX_RECORD {
            return Err(MeshError::TooLong(bytes.len()));
        }
        self.put(kind, Some(BASE64.encode(bytes)));
        Ok(())
    }

    /// Retracts the record of this kind. Nodes that have received it already get no update.
    pub fn retract(&self, kind: RecordKind) {
        self.put(kind, None);
    }

    fn put(&self, kind: RecordKind, value: Option<String>) {
        self.own.values.lock().insert(kind.key(), value);
        self.own.changed.notify_one();
    }

    /// Replaces the seeds. They are contacted as long as no node is known, and later from time to
    /// time, to end partitions.
    pub fn set_seeds(&self, seeds: Vec<NodeId>) {
        *self.own.seeds.lock() = seeds;
    }

    /// Restarts gossip under a higher generation: forgets the values of others and receives them
    /// again. Within some seconds, or a minute if gossip has restarted often.
    pub fn restart(&self) {
        self.own.restart.store(true, Ordering::Relaxed);
    }

    /// Replaces the set of known members. Of other nodes only a few are admitted at a time
    /// ([`MeshLimits::unknown_nodes`]).
    pub fn set_members(&self, members: BTreeSet<NodeId>) {
        self.gate.set_members(members);
    }

    /// Replaces the limits.
    pub fn set_limits(&self, limits: MeshLimits) {
        self.gate.set_limits(limits);
    }

    /// Returns a function that replaces the limits without borrowing the mesh.
    pub fn limiting(&self) -> impl Fn(MeshLimits) + Send + Sync + 'static {
        let gate = Arc::clone(&self.gate);
        move |limits| gate.set_limits(limits)
    }

    /// Messages and values refused since the start, and restarts.
    pub fn counters(&self) -> MeshCounters {
        self.gate.counters()
    }

    /// Returns a function that reads [`Mesh::counters`] without borrowing the mesh.
    pub fn counting(&self) -> impl Fn() -> MeshCounters + Send + Sync + 'static {
        let gate = Arc::clone(&self.gate);
        move || gate.counters()
    }

    /// Sends the last values to some neighbours, then stops. Takes about one interval.
    pub async fn shutdown(mut self) {
        if let Some(stop) = self.stop.take() {
            // The task may have ended already.
            let _ = stop.send(());
        }
        let _ = (&mut self.task).await;
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.task.abort();
    }
}
