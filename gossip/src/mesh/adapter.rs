//! chitchat's transport over a [`Carrier`].

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Serializable};
use tokio::sync::{Mutex, mpsc};
use tracing::debug;

use super::Carrier;
use super::gate::Gate;
use crate::address::mesh_socket;
use crate::id::NodeId;

/// Messages with their senders.
type Inbox = mpsc::Receiver<(NodeId, Vec<u8>)>;

/// Opened once per life; a later socket takes the messages over from the one before.
#[derive(Clone)]
pub(super) struct Adapter {
    gate: Arc<Gate>,
    send: Arc<dyn Fn(NodeId, Vec<u8>) + Send + Sync>,
    received: Arc<Mutex<Inbox>>,
}

impl Adapter {
    pub(super) fn new(carrier: Carrier, gate: Arc<Gate>) -> Self {
        Self { gate, send: carrier.send, received: Arc::new(Mutex::new(carrier.received)) }
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
            (self.adapter.send)(node, message.serialize_to_vec());
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
