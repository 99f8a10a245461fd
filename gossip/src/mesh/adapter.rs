//! chitchat's transport over a [`Carrier`].
//!
//! chitchat compares itself with three others every second, and each comparison begins with a digest of all nodes, about
//! 115 bytes each. In a cluster of hundreds nothing else would be sent. So questions are asked only as often as
//! [`QUESTIONS`] allows, drawn at random, so that the silent are asked, too; answers and farewells always go out. Up to
//! 45 nodes or so this changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Serializable};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tracing::debug;

use super::gate::Gate;
use super::{Carrier, MAX_MESSAGE, wire};
use crate::address::mesh_socket;
use crate::id::NodeId;

/// Messages with their senders.
type Inbox = mpsc::Receiver<(NodeId, Vec<u8>)>;

/// Bytes of questions a second.
const QUESTIONS: f64 = 16_384.0;
/// What may be asked at once after a pause.
const BURST: f64 = MAX_MESSAGE as f64;
/// With less than this left, every second question is left out: the first of a round are no better than the others.
const SCARCE: f64 = BURST * 0.75;

/// What may be asked now.
struct Budget {
    bytes: f64,
    at: Instant,
    asked: u64,
    /// Goodbyes are said at any price.
    open: bool,
}

impl Budget {
    fn new() -> Self {
        Self { bytes: BURST, at: Instant::now(), asked: 0, open: false }
    }

    fn allows(&mut self, size: usize) -> bool {
        let now = Instant::now();
        let since = now.duration_since(self.at).as_secs_f64();
        self.bytes = (self.bytes + since * QUESTIONS).min(BURST);
        self.at = now;
        self.asked += 1;
        // A hash of their number (Fibonacci hashing) is random enough for that.
        let drawn = self.bytes >= SCARCE || self.asked.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0;
        let allowed = self.open || (drawn && self.bytes >= size as f64);
        if allowed {
            self.bytes = (self.bytes - size as f64).max(0.0);
        }
        allowed
    }
}

/// Opened once per life; a later socket takes the messages over from the one before.
#[derive(Clone)]
pub(super) struct Adapter {
    gate: Arc<Gate>,
    send: Arc<dyn Fn(NodeId, Vec<u8>) + Send + Sync>,
    received: Arc<Mutex<Inbox>>,
    budget: Arc<Mutex<Budget>>,
}

impl Adapter {
    pub(super) fn new(carrier: Carrier, gate: Arc<Gate>) -> Self {
        Self {
            gate,
            send: carrier.send,
            received: Arc::new(Mutex::new(carrier.received)),
            budget: Arc::new(Mutex::new(Budget::new())),
        }
    }

    /// From now on every question is asked.
    pub(super) async fn ask_freely(&self) {
        self.budget.lock().await.open = true;
    }
}

#[async_trait]
impl Transport for Adapter {
    async fn open(&self, _address: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(AdapterSocket { adapter: self.clone() }))
    }
}

struct AdapterSocket {
    adapter: Adapter,
}

#[async_trait]
impl Socket for AdapterSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        // An address without a node is that of a life which has just been forgotten.
        if let Some(node) = self.adapter.gate.node_at(&to) {
            let mut bytes = message.serialize_to_vec();
            self.adapter.gate.decline(node, &mut bytes);
            if !wire::is_question(&bytes) || self.adapter.budget.lock().await.allows(bytes.len()) {
                (self.adapter.send)(node, bytes);
            }
        }
        Ok(())
    }

    /// Cancel-safe, as chitchat needs it. Ends with an error when the carrier has gone: chitchat stops then.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        let mut received = self.adapter.received.lock().await;
        loop {
            let Some((from, bytes)) = received.recv().await else {
                anyhow::bail!("nothing carries gossip any more");
            };
            match self.adapter.gate.read(from, &bytes) {
                Ok(message) => return Ok((mesh_socket(&from), message)),
                Err(error) => debug!(%from, %error, "gossip message refused"),
            }
        }
    }
}
