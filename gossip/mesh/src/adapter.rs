//! chitchat's transport over a [`Carrier`].
//!
//! chitchat compares itself with three others every second, and each comparison begins with a digest of all nodes, about
//! 115 bytes each. In a cluster of hundreds nothing else would be sent. So questions are asked only as often as
//! [`QUESTIONS`] allows, drawn at random, so that the silent are asked, too; answers and farewells always go out. Up to
//! 45 nodes or so this changes nothing.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Serializable};
use rustbalance_gossip::address::mesh_socket;
use rustbalance_gossip::id::NodeId;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tracing::debug;

use crate::gate::Gate;
use crate::leaky::LeakyBucket;
use crate::{Carrier, MAX_MESSAGE, wire};

/// Messages with their senders.
type Inbox = mpsc::Receiver<(NodeId, Vec<u8>)>;

/// Bytes of questions a second.
const QUESTIONS: usize = 16_384;
/// What may be asked at once after a pause.
const BURST: f64 = MAX_MESSAGE as f64;
/// With less than this left, half of the questions are left out, whichever: a round ends with those to the silent, and where
/// its first were always asked, halves of a cluster that were cut off from each other would never meet again.
const SCARCE: f64 = BURST * 0.75;

/// Bounds the questions that a node asks.
struct Budget {
    /// Draws otherwise than others do.
    me: NodeId,
    asked_bytes: LeakyBucket,
    asked: u64,
    /// Goodbyes are said at any price.
    open: bool,
}

impl Budget {
    fn new(me: NodeId) -> Self {
        Self { me, asked_bytes: LeakyBucket::new(Instant::now()), asked: 0, open: false }
    }

    /// Whether the question whose turn it is may be asked when not all can be. A coin: what repeats, as a round does, would
    /// fall in step with anything less.
    fn draw(&self) -> bool {
        let mut hasher = DefaultHasher::new();
        (self.me, self.asked).hash(&mut hasher);
        hasher.finish().is_multiple_of(2)
    }

    fn allows(&mut self, size: usize) -> bool {
        let left = BURST - self.asked_bytes.now(Instant::now(), QUESTIONS);
        self.asked += 1;
        let drawn = left >= SCARCE || self.draw();
        let allowed = self.open || (drawn && left >= size as f64);
        if allowed {
            self.asked_bytes.add(size);
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
    pub(super) fn new(me: NodeId, carrier: Carrier, gate: Arc<Gate>) -> Self {
        Self {
            gate,
            send: carrier.send,
            received: Arc::new(Mutex::new(carrier.received)),
            budget: Arc::new(Mutex::new(Budget::new(me))),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// In each round three of the living are asked, then two of the silent; there is enough for less than one of them.
    #[tokio::test(start_paused = true)]
    async fn the_silent_are_asked_too_where_not_all_can_be() {
        for digest in [10_000, 12_000, 25_000, 40_000] {
            let mut budget = Budget::new(NodeId::from_public_key([7; 32]));
            let mut asked = [0_usize; 5];
            for _ in 0..10_000 {
                for count in &mut asked {
                    *count += usize::from(budget.allows(digest));
                }
                tokio::time::advance(Duration::from_millis(500)).await;
            }
            let all: usize = asked.iter().sum();
            assert!(all * digest <= 10_000 * QUESTIONS / 2 + BURST as usize, "{asked:?}");
            assert!(asked.iter().all(|count| *count * 50 >= all), "of {digest} bytes: {asked:?}");
        }
    }
}
