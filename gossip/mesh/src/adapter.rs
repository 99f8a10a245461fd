//! chitchat's transport over a [`Carrier`].
//!
//! Of the messages that chitchat wants to send, [`Questions`] holds back those that open a
//! comparison. Answers always go out.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Serializable};
use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::address::mesh_socket;
use rustbalance_gossip::id::NodeId;
use tokio::sync::mpsc;
use tracing::debug;

use crate::gate::Gate;
use crate::questions::Questions;
use crate::{Carrier, MeshConfig, wire};

/// Received messages, each with its sender.
type Inbox = mpsc::Receiver<(NodeId, Vec<u8>)>;

/// chitchat's transport. It is opened once per incarnation; a later socket takes over the messages
/// from the one before.
#[derive(Clone)]
pub(super) struct Adapter {
    gate: Arc<Gate>,
    send: Arc<dyn Fn(NodeId, Vec<u8>) + Send + Sync>,
    received: Arc<tokio::sync::Mutex<Inbox>>,
    questions: Arc<Mutex<Questions>>,
}

impl Adapter {
    pub(super) fn new(config: &MeshConfig, carrier: Carrier, gate: Arc<Gate>) -> Self {
        Self {
            gate,
            send: carrier.send,
            received: Arc::new(tokio::sync::Mutex::new(carrier.received)),
            questions: Arc::new(Mutex::new(Questions::new(config.me, config.interval))),
        }
    }

    /// The questions of this node.
    pub(super) fn questions(&self) -> MutexGuard<'_, Questions> {
        self.questions.lock()
    }

    /// Sends a message that chitchat did not write.
    pub(super) fn send(&self, to: NodeId, message: Vec<u8>) {
        (self.send)(to, message);
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
            let busy = self.adapter.gate.is_busy();
            if !wire::is_question(&bytes) || self.adapter.questions().allows(node, bytes.len(), busy) {
                self.adapter.send(node, bytes);
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
                Ok(Some(message)) => return Ok((mesh_socket(&from), message)),
                Ok(None) => {}
                Err(error) => debug!(%from, %error, "gossip message refused"),
            }
        }
    }
}
