//! WireGuard of the Linux kernel, over the crate `defguard_wireguard_rs`: a network interface with
//! this node's mesh address, and a route to each peer's.
//!
//! [`Kernel`] is the engine. `table` and `peer` decide, without IO; `claim` says which interface
//! may be touched; `device` and `netlink` make the calls, on the thread of `worker`; `stream` is
//! TCP through the interface. docs/DECISIONS.md, "WireGuard of the kernel is an option", says where
//! the crate is held back.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::address::mesh_socket;
use rustbalance_gossip::id::NodeId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, timeout};
use tracing::{debug, info};

use self::claim::interface_name;
use self::device::{Device, Interface};
pub use self::error::KernelError;
use self::shared::Shared;
use self::stream::{Hold, KernelStream};
use self::worker::{CALL_LIMIT, Worker};
use super::{Desired, Engine, EngineError, PeerStatus, TunnelStream};
use crate::counters::{Counter, Counters};

mod claim;
mod device;
mod error;
mod netlink;
mod peer;
mod shared;
mod stream;
mod table;
#[cfg(test)]
mod tests;
mod worker;

/// Streams of peers that wait for their owner, as in the userspace engine.
const ARRIVALS: usize = 32;
/// The time to make the interface: the kernel may have to load its module.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Interval at which the thread's call is watched.
const WATCH: Duration = Duration::from_millis(250);

/// The engine in the kernel. Dropping it ends all its streams and removes the interface.
pub struct Kernel {
    me: NodeId,
    interface: String,
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    worker: Worker,
}

impl Kernel {
    /// Makes the interface, and starts without keys or peers. The kernel takes packets at the port
    /// of `listens`, on every address of the host. The receiver yields the streams that peers open;
    /// those that find it full are refused.
    ///
    /// # Errors
    /// [`EngineError::Kernel`] and [`EngineError::Addresses`].
    pub async fn start(
        me: NodeId,
        listens: &[SocketAddr],
        counters: Counters,
    ) -> Result<(Self, mpsc::Receiver<TunnelStream>), EngineError> {
        let port = common_port(listens)?;
        let bound = listens.iter().map(SocketAddr::ip).collect();
        let (shared, worker) = begin(me, bound, START_LIMIT, move || Interface::make(&me, port)).await?;
        let interface = interface_name(&me);
        let own = mesh_socket(&me);
        let listener = listen_soon(&interface, own)
            .await
            .map_err(|source| KernelError::Listen { name: interface.clone(), source })?;
        info!(
            name: "kernel_wireguard_on",
            interface, port,
            "the kernel takes WireGuard packets at this port of all addresses"
        );
        let (arrivals, receiver) = mpsc::channel(ARRIVALS);
        tokio::spawn(attend(Arc::clone(&shared), listener, arrivals, counters));
        Ok((Self { me, interface, addresses: listens.to_vec(), shared, worker }, receiver))
    }

    /// The addresses that it was given, at which the host takes packets for it.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Removes the interface that an earlier process of this node has left over, which was killed.
    /// True if there was one. An interface of another program by the same name stays.
    ///
    /// # Errors
    /// [`KernelError::Netlink`], such as without CAP_NET_ADMIN.
    pub fn remove_left_over(me: &NodeId) -> Result<bool, KernelError> {
        // Most processes may not ask the kernel, and have no need to.
        if !Path::new("/sys/class/net").join(interface_name(me)).exists() {
            return Ok(false);
        }
        match device::remove_left_over(me) {
            Err(KernelError::Foreign(_)) => Ok(false),
            removed => removed,
        }
    }

    async fn connect(&self, to: NodeId) -> Result<(TcpStream, Hold), EngineError> {
        let hold = self.shared.hold(to, true)?;
        let connecting = stream::connect(&self.interface, mesh_socket(&self.me), mesh_socket(&to));
        let connected = hold.cut.run_until_cancelled(connecting).await;
        match connected {
            Some(Ok(tcp)) => Ok((tcp, hold)),
            Some(Err(error)) => {
                debug!(%to, %error, "cannot open a stream through the tunnel");
                Err(EngineError::Refused(to))
            }
            None if self.shared.has_stopped() => Err(EngineError::Stopped),
            None => Err(EngineError::Refused(to)),
        }
    }
}

#[async_trait]
impl Engine for Kernel {
    fn apply(&self, desired: Desired) {
        self.shared.apply(desired);
        self.worker.wake();
    }

    fn reaches(&self, to: NodeId) -> bool {
        self.shared.is_up(&to)
    }

    async fn dial(&self, to: NodeId, limit: Duration) -> Result<TunnelStream, EngineError> {
        let connected = timeout(limit, self.connect(to)).await;
        let (tcp, hold) = connected.map_err(|_| EngineError::Timeout { peer: to, limit })??;
        tunnel_stream(&self.shared, to, tcp, hold).ok_or(EngineError::Refused(to))
    }

    fn status(&self) -> BTreeMap<NodeId, PeerStatus> {
        self.shared.status()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// Starts the thread, and waits until it has made the interface.
async fn begin<D: Device>(
    me: NodeId,
    bound: Vec<IpAddr>,
    limit: Duration,
    make: impl FnOnce() -> Result<D, KernelError> + Send + 'static,
) -> Result<(Arc<Shared>, Worker), KernelError> {
    let shared = Arc::new(Shared::new(me, bound));
    let (worker, outcome) = Worker::start(Arc::clone(&shared), make);
    match timeout(limit, outcome).await {
        Ok(Ok(made)) => made.map(|()| (Arc::clone(&shared), worker)),
        Ok(Err(_)) => Err(KernelError::Ended),
        Err(_) => Err(KernelError::TooSlow(limit)),
    }
}

/// Listens on the interface's own address, which the kernel lets be used some milliseconds after it
/// was assigned.
async fn listen_soon(interface: &str, own: SocketAddr) -> io::Result<TcpListener> {
    for _ in 0..100 {
        match stream::listen(interface, own) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => sleep(Duration::from_millis(10)).await,
            listener => return listener,
        }
    }
    stream::listen(interface, own)
}

/// The one port of these addresses.
fn common_port(listens: &[SocketAddr]) -> Result<u16, EngineError> {
    let mut ports = listens.iter().map(SocketAddr::port);
    let first = ports.next().ok_or_else(|| EngineError::Addresses(Vec::new()))?;
    match ports.find(|port| *port != first) {
        Some(other) => Err(KernelError::Ports(first, other).into()),
        None => Ok(first),
    }
}

/// Hands on the streams that peers open, and watches the thread, until the engine stops.
async fn attend(shared: Arc<Shared>, listener: TcpListener, arrivals: mpsc::Sender<TunnelStream>, counters: Counters) {
    let mut watch = interval(WATCH);
    loop {
        tokio::select! {
            () = shared.stopped() => return,
            _ = watch.tick() => check_on_thread(&shared, CALL_LIMIT),
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => accept(&shared, tcp, from, &arrivals, &counters),
                // Such as too many open files.
                Err(error) => {
                    debug!(%error, "cannot accept a stream through the tunnel");
                    watch.tick().await;
                }
            },
        }
    }
}

/// Throws the interface away if the kernel does not answer: it is not asked again.
fn check_on_thread(shared: &Shared, limit: Duration) {
    if shared.is_overdue(limit) {
        shared.fail(&KernelError::TooSlow(limit).to_string());
    }
}

/// Hands on a stream. The kernel lets no packet in by the interface whose source is not the peer's.
fn accept(
    shared: &Shared,
    tcp: TcpStream,
    from: SocketAddr,
    arrivals: &mpsc::Sender<TunnelStream>,
    counters: &Counters,
) {
    let IpAddr::V6(address) = from.ip() else { return };
    // Dropping a stream refuses it.
    let Some(node) = shared.node(&address) else { return };
    let arrived = shared.hold(node, false).ok().and_then(|hold| tunnel_stream(shared, node, tcp, hold));
    if arrived.is_none_or(|stream| arrivals.try_send(stream).is_err()) {
        counters.count(Counter::WireguardStreamsOverLimit);
    }
}

fn tunnel_stream(shared: &Shared, peer: NodeId, tcp: TcpStream, hold: Hold) -> Option<TunnelStream> {
    let binding = shared.binding(&peer)?;
    let stream = KernelStream::new(tcp, hold).ok()?;
    Some(TunnelStream { peer, binding, stream: Box::new(stream) })
}
