//! chitchat's transport over a [`Carrier`].
//!
//! In each round chitchat compares itself with a few other nodes, and each comparison begins with a
//! digest of all nodes, about 115 bytes each. In a cluster of hundreds the digests would take all
//! of the bandwidth. So this adapter sends opening digests (questions) only at the rate of
//! [`QUESTIONS`], drawn at random, so that silent nodes get some too. Answers and the last messages
//! before a shutdown always go out. Up to about 45 nodes this changes nothing.

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

/// Received messages, each with its sender.
type Inbox = mpsc::Receiver<(NodeId, Vec<u8>)>;

/// Sustained rate of questions, in bytes per second.
const QUESTIONS: usize = 16_384;
/// Burst of questions after a pause, in bytes.
const BURST: f64 = MAX_MESSAGE as f64;
/// With less than this left, a coin decides whether a question is sent. A round ends with the
/// questions to silent nodes: if the first ones always used up the budget, the two sides of a
/// partition would never find each other again.
const SCARCE: f64 = BURST * 0.75;

/// Limits the rate of questions that a node sends.
struct QuestionLimit {
    /// Seeds the draws, so that nodes draw differently.
    me: NodeId,
    asked_bytes: LeakyBucket,
    asked: u64,
    /// True once the node stops: then every question is sent.
    open: bool,
}

impl QuestionLimit {
    fn new(me: NodeId) -> Self {
        Self { me, asked_bytes: LeakyBucket::new(Instant::now()), asked: 0, open: false }
    }

    /// A coin toss that decides whether the next question may be sent when the budget is scarce. It
    /// must look random: rounds repeat, and a regular pattern would always drop the same questions.
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

/// chitchat's transport. It is opened once per incarnation; a later socket takes over the messages
/// from the one before.
#[derive(Clone)]
pub(super) struct Adapter {
    gate: Arc<Gate>,
    send: Arc<dyn Fn(NodeId, Vec<u8>) + Send + Sync>,
    received: Arc<Mutex<Inbox>>,
    budget: Arc<Mutex<QuestionLimit>>,
}

impl Adapter {
    pub(super) fn new(me: NodeId, carrier: Carrier, gate: Arc<Gate>) -> Self {
        Self {
            gate,
            send: carrier.send,
            received: Arc::new(Mutex::new(carrier.received)),
            budget: Arc::new(Mutex::new(QuestionLimit::new(me))),
        }
    }

    /// Sends every question from now on.
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
        // An address without a node belongs to an incarnation that has just been forgotten.
        if let Some(node) = self.adapter.gate.node_at(&to) {
            let mut bytes = message.serialize_to_vec();
            self.adapter.gate.suppress(node, &mut bytes);
            if !wire::is_question(&bytes) || self.adapter.budget.lock().await.allows(bytes.len()) {
                (self.adapter.send)(node, bytes);
            }
        }
        Ok(())
    }

    /// Cancel-safe, as chitchat requires. Fails when the carrier has ended; then chitchat stops.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        let mut received = self.adapter.received.lock().await;
        loop {
            let Some((from, bytes)) = received.recv().await else {
                anyhow::bail!("the carrier of gossip has ended");
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

    /// Each round has questions to three living nodes, then to two silent ones. The budget of a
    /// round is enough for less than one.
    #[tokio::test(start_paused = true)]
    async fn silent_nodes_get_questions_if_the_rate_limit_allows_only_some() {
        for digest in [10_000, 12_000, 25_000, 40_000] {
            let mut budget = QuestionLimit::new(NodeId::from_public_key([7; 32]));
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
