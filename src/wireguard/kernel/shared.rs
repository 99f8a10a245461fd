//! What the engine, its thread and its streams share.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustbalance_gossip::id::NodeId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::device::Measured;
use super::stream::Hold;
use super::table::{Action, Table};
use crate::link::ChannelBinding;
use crate::wireguard::{Desired, EngineError, PeerStatus, WireguardKey, channel_binding};

/// Streams of one node that each side may open, as in the userspace engine.
const MOST_STREAMS: usize = 8;

pub(super) struct Shared {
    state: Mutex<State>,
    /// Cancelled when the engine stops or fails.
    stop: CancellationToken,
}

struct State {
    table: Table,
    /// What the thread has to do.
    actions: Vec<Action>,
    streams: HashMap<NodeId, Streams>,
    /// When the thread has begun the call that it makes now.
    busy: Option<Instant>,
}

/// The streams with one node.
#[derive(Default)]
struct Streams {
    /// Cancelled when the node is no longer a peer.
    cut: CancellationToken,
    /// Each stream holds one of those it belongs to: opened here, and opened there.
    opened: Arc<()>,
    arrived: Arc<()>,
}

impl Shared {
    pub(super) fn new(me: NodeId, bound: Vec<IpAddr>) -> Self {
        let state = State {
            table: Table::new(me, bound, Instant::now()),
            actions: Vec::new(),
            streams: HashMap::new(),
            busy: None,
        };
        Self { state: Mutex::new(state), stop: CancellationToken::new() }
    }

    /// Takes the desired state. Streams with nodes that it does not name end at once.
    pub(super) fn apply(&self, desired: Desired) {
        let mut state = self.state.lock();
        let actions = state.table.apply(desired, Instant::now());
        state.actions.extend(actions);
        let State { table, streams, .. } = &mut *state;
        streams.retain(|node, streams| {
            let stays = table.has(node);
            if !stays {
                streams.cut.cancel();
            }
            stays
        });
    }

    /// What there is to do.
    pub(super) fn take_actions(&self) -> Vec<Action> {
        mem::take(&mut self.state.lock().actions)
    }

    /// Takes what the kernel knows, and returns when to ask again. If the desired state has changed
    /// meanwhile, it is outdated.
    pub(super) fn measure(&self, measured: &BTreeMap<WireguardKey, Measured>) -> Instant {
        let mut state = self.state.lock();
        let now = Instant::now();
        if !state.actions.is_empty() {
            return now;
        }
        state.actions = state.table.measure(measured, now);
        state.table.next_look(now)
    }

    /// Makes a call to the kernel, whose time [`Self::is_overdue`] watches.
    pub(super) fn timed<T>(&self, call: impl FnOnce() -> T) -> T {
        self.state.lock().busy = Some(Instant::now());
        let done = call();
        self.state.lock().busy = None;
        done
    }

    /// Whether a call has not returned within this time.
    pub(super) fn is_overdue(&self, limit: Duration) -> bool {
        self.state.lock().busy.is_some_and(|since| since.elapsed() > limit)
    }

    /// Ends everything, for this reason.
    pub(super) fn fail(&self, why: &str) {
        if !self.has_stopped() {
            warn!(name: "kernel_wireguard_failed", why, "the kernel's WireGuard has failed");
            self.stop();
        }
    }

    /// Ends all streams, and what waits for [`Self::stopped`].
    pub(super) fn stop(&self) {
        self.stop.cancel();
        self.state.lock().streams.drain().for_each(|(_, streams)| streams.cut.cancel());
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns once the engine has stopped.
    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    pub(super) fn is_up(&self, node: &NodeId) -> bool {
        !self.has_stopped() && self.state.lock().table.is_up(node, Instant::now())
    }

    pub(super) fn status(&self) -> BTreeMap<NodeId, PeerStatus> {
        self.state.lock().table.status(Instant::now())
    }

    /// The binding of a stream with a node that opens now; `None` if it is not a peer with a key.
    pub(super) fn binding(&self, node: &NodeId) -> Option<ChannelBinding> {
        let (own, theirs) = self.state.lock().table.pair(node)?;
        Some(channel_binding(&own, &theirs))
    }

    /// The node at an address, if it is a peer.
    pub(super) fn node(&self, address: &Ipv6Addr) -> Option<NodeId> {
        self.state.lock().table.node(address)
    }

    /// Room for a stream with a node: opened here, or by the node.
    ///
    /// # Errors
    /// [`EngineError::Stopped`], [`EngineError::UnknownPeer`], [`EngineError::TooManyStreams`].
    pub(super) fn hold(&self, node: NodeId, is_opened_here: bool) -> Result<Hold, EngineError> {
        let mut state = self.state.lock();
        if self.has_stopped() {
            return Err(EngineError::Stopped);
        }
        if !state.table.has(&node) {
            return Err(EngineError::UnknownPeer(node));
        }
        let streams = state.streams.entry(node).or_default();
        let places = if is_opened_here { &streams.opened } else { &streams.arrived };
        // One more than there are streams.
        if Arc::strong_count(places) > MOST_STREAMS {
            return Err(EngineError::TooManyStreams(node));
        }
        Ok(Hold { cut: streams.cut.clone(), _place: Arc::clone(places) })
    }
}
