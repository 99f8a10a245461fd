//! WireGuard inside the process: no device, no privilege, and nothing of the host that a peer could
//! reach but the links.
//!
//! [`Userspace`] is the engine. `machine` decides, without socket or clock; `tunnel` is WireGuard
//! by boringtun, `stack` TCP by smoltcp, `peer` joins the two for one peer, `packet` says what may
//! pass between them, `gate` bounds handshakes. `socket` and `stream` do the IO.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rustbalance_gossip::id::NodeId;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::machine::{Action, Event, Machine, StreamId};
use self::socket::{Datagrams, Sockets};
use self::stream::{TunnelEnd, Wakers};
use super::{Desired, Engine, EngineError, PeerStatus, TunnelStream};
use crate::counters::{Counter, Counters};
use crate::link::ChannelBinding;

mod gate;
pub mod machine;
mod packet;
mod peer;
mod socket;
mod stack;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod tunnel;

/// Streams of peers that wait for their owner.
const ARRIVALS: usize = 32;

/// The engine inside the process. Dropping it ends all its streams.
pub struct Userspace {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    stop: CancellationToken,
}

/// What the task of the engine and the owners of streams share.
struct Shared {
    state: Mutex<EngineState>,
    /// The machine has something to do.
    changed: Notify,
}

/// The machine, and the tasks that wait for it.
struct EngineState {
    machine: Machine,
    /// Actions of events that did not come from the engine's task, which carries them out.
    actions: Vec<Action>,
    wakers: HashMap<StreamId, Wakers>,
    dials: HashMap<StreamId, oneshot::Sender<ChannelBinding>>,
    has_stopped: bool,
}

impl Userspace {
    /// Binds one IPv4 address, one IPv6 address, or one of each, and starts without keys or peers.
    /// The receiver yields the streams that peers open; those that find it full are refused.
    ///
    /// # Errors
    /// [`EngineError::Bind`], and [`EngineError::Addresses`], also for an unspecified address.
    pub async fn start(
        me: NodeId,
        bind: &[SocketAddr],
        counters: Counters,
    ) -> Result<(Self, mpsc::Receiver<TunnelStream>), EngineError> {
        Ok(Self::start_on(me, Sockets::bind(bind).await?, counters))
    }

    fn start_on(me: NodeId, sockets: impl Datagrams, counters: Counters) -> (Self, mpsc::Receiver<TunnelStream>) {
        let addresses = sockets.addresses();
        let hosts = addresses.iter().map(SocketAddr::ip).collect();
        let machine = Machine::new(me, hosts, counters.clone(), rand::random(), Instant::now());
        let state = EngineState {
            machine,
            actions: Vec::new(),
            wakers: HashMap::new(),
            dials: HashMap::new(),
            has_stopped: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() });
        let (arrivals, receiver) = mpsc::channel(ARRIVALS);
        let stop = CancellationToken::new();
        let task = Task { shared: Arc::clone(&shared), sockets, arrivals, counters };
        tokio::spawn(task.run(stop.clone()));
        (Self { shared, addresses, stop }, receiver)
    }

    /// The addresses that it sends from and listens on, with their ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

#[async_trait]
impl Engine for Userspace {
    fn apply(&self, desired: Desired) {
        let mut state = self.shared.state.lock();
        let actions = state.machine.handle(Event::Apply(desired), Instant::now());
        state.actions.extend(actions);
        drop(state);
        self.shared.changed.notify_one();
    }

    fn reaches(&self, to: NodeId) -> bool {
        self.shared.state.lock().machine.reaches(to, Instant::now())
    }

    async fn dial(&self, to: NodeId, limit: Duration) -> Result<TunnelStream, EngineError> {
        let (end, opened) = self.shared.dial(to)?;
        match timeout(limit, opened).await {
            Ok(Ok(binding)) => Ok(TunnelStream { peer: to, binding, stream: Box::new(end) }),
            Ok(Err(_)) if self.shared.state.lock().has_stopped => Err(EngineError::Stopped),
            Ok(Err(_)) => Err(EngineError::Refused(to)),
            Err(_) => Err(EngineError::Timeout { peer: to, limit }),
        }
    }

    fn status(&self) -> BTreeMap<NodeId, PeerStatus> {
        self.shared.state.lock().machine.status(Instant::now())
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    /// Begins to open a stream. Dropping the end gives it up.
    fn dial(self: &Arc<Self>, to: NodeId) -> Result<(TunnelEnd, oneshot::Receiver<ChannelBinding>), EngineError> {
        let (sender, opened) = oneshot::channel();
        let mut state = self.state.lock();
        if state.has_stopped {
            return Err(EngineError::Stopped);
        }
        let id = state.machine.dial(to)?;
        state.dials.insert(id, sender);
        drop(state);
        self.changed.notify_one();
        Ok((TunnelEnd { shared: Arc::clone(self), id }, opened))
    }
}

/// Does the IO for the machine.
struct Task<D> {
    shared: Arc<Shared>,
    sockets: D,
    arrivals: mpsc::Sender<TunnelStream>,
    counters: Counters,
}

impl<D: Datagrams> Task<D> {
    async fn run(self, stop: CancellationToken) {
        loop {
            let due = self.shared.state.lock().machine.next_timeout();
            let received = tokio::select! {
                () = stop.cancelled() => break,
                received = self.sockets.receive() => received,
                () = self.shared.changed.notified() => Vec::new(),
                () = sleep_until(due) => Vec::new(),
            };
            for (to, datagram) in self.handle(&received) {
                if let Err(error) = self.sockets.send(to, &datagram).await {
                    debug!(%error, "cannot send a WireGuard datagram");
                    let event = Event::NotSent { to, error: error.to_string() };
                    let mut state = self.shared.state.lock();
                    let actions = state.machine.handle(event, Instant::now());
                    state.actions.extend(actions);
                }
            }
        }
        let mut state = self.shared.state.lock();
        state.has_stopped = true;
        // Forgets the keys, and the streams of owners that are still there.
        state.machine.handle(Event::Apply(Desired::default()), Instant::now());
        state.dials.clear();
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_values().for_each(Wakers::wake);
    }

    /// Gives the machine what came, and carries out its actions but for the datagrams, which it
    /// returns.
    fn handle(&self, received: &[socket::Received]) -> Vec<(SocketAddr, Vec<u8>)> {
        let (mut out, mut arrived, mut wakers) = (Vec::new(), Vec::new(), Vec::new());
        let mut state = self.shared.state.lock();
        let mut actions = std::mem::take(&mut state.actions);
        for (from, bytes) in received {
            actions.extend(state.machine.handle(Event::Datagram { from: *from, bytes }, Instant::now()));
        }
        actions.extend(state.machine.handle(Event::Tick, Instant::now()));
        for action in actions {
            match action {
                Action::Send(to, datagram) => out.push((to, datagram)),
                Action::Opened(id, binding) => {
                    let dial = state.dials.remove(&id);
                    // A dial that was given up has dropped its end.
                    let _ = dial.map(|dial| dial.send(binding));
                }
                Action::Failed(id) => drop(state.dials.remove(&id)),
                Action::Arrived(id, binding) => arrived.push((id, binding)),
                Action::Wake(id) => wakers.extend(state.wakers.remove(&id)),
            }
        }
        drop(state);
        wakers.into_iter().for_each(Wakers::wake);
        for (id, binding) in arrived {
            let stream = Box::new(TunnelEnd { shared: Arc::clone(&self.shared), id });
            // Dropping the stream ends it.
            if self.arrivals.try_send(TunnelStream { peer: id.peer, binding, stream }).is_err() {
                self.counters.count(Counter::WireguardStreamsOverLimit);
            }
        }
        out
    }
}
