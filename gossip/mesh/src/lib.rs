//! The mesh: signed records spread over all members by chitchat (scuttlebutt anti-entropy).
//!
//! One enters with [`Mesh::start`], puts own records in with [`Mesh::set`], and takes the others' from the queue of
//! [`Update`]s. Nothing that comes out of it is verified: gossip is dissemination, never authority.
//!
//! One task looks after everything ([`Keeper`]). Own records are kept here and written to chitchat whenever they differ
//! from what stands there. Others' values are [delivered](delivery) by version: for every life of every node the task remembers
//! the highest version it has handed on, and whenever something has changed it hands on what is newer. A receiver that lags
//! thus loses superseded values and never the latest. Messages pass a [`gate`] on their way in, and out.
//!
//! If chitchat stops, or if others have been told lies about this node's present life (versions it has never reached,
//! which would make them ignore what it really says), gossip begins anew under a higher generation.

mod adapter;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod delivery;
mod gate;
mod hoard;
mod keeper;
mod leaky;
mod lives;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
#[cfg(test)]
mod tests;
mod wire;

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
pub use wire::{MAX_MESSAGE, WireError};

/// Between two rounds of gossip of a daemon.
pub const ROUND: Duration = Duration::from_millis(500);

/// Updates that may wait for the receiver; what comes later waits in chitchat's state.
const QUEUE: usize = 64;

/// What carries gossip between nodes. Messages may be lost, reordered, and delivered to another node than asked for.
pub struct Carrier {
    /// Sends a message to a node, or to any other if it has no way to that one. Must not block.
    pub send: Arc<dyn Fn(NodeId, Vec<u8>) + Send + Sync>,
    /// Messages that have come, each with the node that has sent it.
    pub received: mpsc::Receiver<(NodeId, Vec<u8>)>,
}

/// What a mesh is started with.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// This node.
    pub me: NodeId,
    /// Its cluster; others' gossip is refused.
    pub cluster: ClusterId,
    /// Tells this start of the node from others: higher than in every earlier one, below 2^47.
    pub generation: u64,
    /// Between two rounds of gossip: [`ROUND`], or less in a test.
    pub interval: Duration,
}

/// A value that is new or has changed. Not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// In whose state it stands: the only node that it may speak for, unless it is signed by the authority. This node's own
    /// words come back, too, if they are of an earlier life.
    pub origin: NodeId,
    /// What it is said to be.
    pub kind: RecordKind,
    /// The signed record; at most [`MAX_RECORD`] bytes.
    pub bytes: Vec<u8>,
}

/// Why the mesh refused. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// chitchat could not be started.
    #[error("cannot start gossip: {0}")]
    Start(String),
    /// A record that no node would take.
    #[error("record of {0} bytes, at most {MAX_RECORD} can be gossiped")]
    TooLong(usize),
}

/// What this node says: by key the value, `None` for what it has taken back.
#[derive(Default)]
struct Own {
    values: Mutex<BTreeMap<String, Option<String>>>,
    seeds: Mutex<Vec<NodeId>>,
    changed: Notify,
    /// Gossip is to begin again, with nothing known.
    restart: AtomicBool,
}

/// A running mesh; dropped, it stops at once.
pub struct Mesh {
    own: Arc<Own>,
    gate: Arc<Gate>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Mesh {
    /// Begins to gossip, first of all with `seeds`.
    pub async fn start(
        config: MeshConfig,
        carrier: Carrier,
        seeds: Vec<NodeId>,
    ) -> Result<(Self, mpsc::Receiver<Update>), MeshError> {
        let own = Arc::new(Own { seeds: Mutex::new(seeds), ..Own::default() });
        let gate = Arc::new(Gate::new(config.me));
        let (updates, queue) = mpsc::channel(QUEUE);
        let (stop, stopped) = oneshot::channel();
        let keeper = Keeper::start(config, carrier, Arc::clone(&own), Arc::clone(&gate), updates).await?;
        let task = tokio::spawn(keeper.run(stopped));
        Ok((Self { own, gate, stop: Some(stop), task }, queue))
    }

    /// Says this, instead of what was said under this kind before.
    pub fn set(&self, kind: RecordKind, bytes: &[u8]) -> Result<(), MeshError> {
        if bytes.len() > MAX_RECORD {
            return Err(MeshError::TooLong(bytes.len()));
        }
        self.put(kind, Some(BASE64.encode(bytes)));
        Ok(())
    }

    /// Takes back what was said under this kind. Those who have heard it are not told.
    pub fn retract(&self, kind: RecordKind) {
        self.put(kind, None);
    }

    fn put(&self, kind: RecordKind, value: Option<String>) {
        self.own.values.lock().insert(kind.key(), value);
        self.own.changed.notify_one();
    }

    /// From now on these are asked when nobody is known yet, and now and then to mend partitions.
    pub fn set_seeds(&self, seeds: Vec<NodeId>) {
        *self.own.seeds.lock() = seeds;
    }

    /// Forgets what others have said and hears it again, under a higher generation. Within some
    /// seconds, or a minute if that happened often.
    pub fn restart(&self) {
        self.own.restart.store(true, Ordering::Relaxed);
    }

    /// Tells who is known as a member; of others, only a few are let in at a time.
    pub fn set_members(&self, members: BTreeSet<NodeId>) {
        self.gate.set_members(members);
    }

    /// Sets other bounds than the default ones.
    pub fn set_limits(&self, limits: MeshLimits) {
        self.gate.set_limits(limits);
    }

    /// What was kept out since start.
    pub fn counters(&self) -> MeshCounters {
        self.gate.counters()
    }

    /// The same for those who do not hold the mesh.
    pub fn counting(&self) -> impl Fn() -> MeshCounters + Send + Sync + 'static {
        let gate = Arc::clone(&self.gate);
        move || gate.counters()
    }

    /// Tells some neighbours what was set last, then stops. Takes about one interval.
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
