//! TCP with one peer, by smoltcp: turns packets into streams and back.
//!
//! Each peer has a stack of its own, so that no peer can use up the places of another, and a stack
//! without streams costs nothing while others are busy.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rustbalance_gossip::address::MESH_PORT;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use tokio::time::Instant;

use super::packet::Segment;
use super::tunnel::KeyPair;
use crate::link::ChannelBinding;

/// Longest packet that TCP sends and asks the peer for, in bytes. With the 32 bytes of WireGuard
/// and the headers of UDP and IPv6 (48) it has 1280 bytes, which every path of IPv6 carries. Over
/// IPv4 it has 1260. WireGuard hears nothing of a packet that is too long for its path.
const LONGEST_SENT: usize = 1200;
/// Bytes buffered for each direction of a stream. smoltcp has no congestion control here, so this
/// is also the most that is under way: little enough for the socket's buffer, and 6 Mbit/s at 40
/// ms.
const BUFFER: usize = 32 * 1024;
/// Streams with one peer in each direction: a link, its successor, and joiners that are carried.
pub(super) const MOST_STREAMS: usize = 8;
/// Time without an answer from the peer after which a stream cannot be opened.
const OPENING: Duration = Duration::from_secs(8);
/// Time without an answer from the peer after which an open stream has failed. Longer than the 4 s
/// after which the links' own probes close one: with every tenth datagram lost, smoltcp's pauses
/// between retransmissions grow to 4 s, and several in a row may be lost.
const SILENCE: Duration = Duration::from_secs(30);
/// Pause after which an idle stream asks whether the other end is still there. smoltcp ends idle
/// streams after [`SILENCE`], too, so three questions must fit into it.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// How long a stream that its owner has dropped may take to deliver what is left.
const LINGER: Duration = Duration::from_secs(10);
/// Packets that one round may produce. The rest follows in the next round, after these are sent.
const PACKETS_AT_ONCE: usize = 64;
/// Ports for the streams that this node opens (RFC 6335).
const PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// What has happened to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamNews {
    /// A stream that this node dials is open.
    Opened(ChannelBinding),
    /// A stream that this node dials was refused, or not answered.
    Failed,
    /// The peer has opened a stream.
    Arrived(ChannelBinding),
    /// It can be read or written again, or has ended.
    Wake,
}

/// Why a stream cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// Later: [`super::machine::Action::Wake`] says when.
    Wait,
    /// The stream has failed.
    Broken,
}

/// One stream.
struct Stream {
    handle: SocketHandle,
    is_incoming: bool,
    local: u16,
    remote: u16,
    /// The tunnel that has carried the SYN, which both ends take for the binding.
    pair: Option<KeyPair>,
    /// Retries of the SYN went through another tunnel, so the ends might not agree on it.
    is_mixed: bool,
    is_open: bool,
    /// The peer has ended its direction.
    is_at_end: bool,
    /// The owner waits to read, and to write.
    waits: (bool, bool),
    /// The owner has dropped it, and it is removed at this time at the latest.
    ends: Option<Instant>,
}

/// The TCP stack for one peer.
pub(super) struct Stack {
    own: Ipv6Addr,
    peer: Ipv6Addr,
    started: Instant,
    interface: Interface,
    sockets: SocketSet<'static>,
    device: Packets,
    streams: BTreeMap<u64, Stream>,
}

impl Stack {
    pub(super) fn new(own: Ipv6Addr, peer: Ipv6Addr, seed: u64, now: Instant) -> Self {
        let mut device = Packets::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, StackInstant::ZERO);
        // The prefix makes every mesh address a neighbour, so that no route is needed.
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv6(own), 8));
        });
        let (sockets, streams) = (SocketSet::new(Vec::new()), BTreeMap::new());
        Self { own, peer, started: now, interface, sockets, device, streams }
    }

    fn time(&self, now: Instant) -> StackInstant {
        let micros = now.saturating_duration_since(self.started).as_micros();
        StackInstant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Number of streams, open or not, in one direction.
    pub(super) fn count(&self, incoming: bool) -> usize {
        self.streams.values().filter(|stream| stream.is_incoming == incoming).count()
    }

    /// Begins to open a stream; false if there are too many.
    pub(super) fn dial(&mut self, id: u64, rng: &mut StdRng) -> bool {
        if self.count(false) >= MOST_STREAMS {
            return false;
        }
        let is_taken = |port| self.streams.values().any(|stream| !stream.is_incoming && stream.local == port);
        let mut local = rng.random_range(PORTS);
        while is_taken(local) {
            local = rng.random_range(PORTS);
        }
        let mut socket = socket();
        let (to, from) = ((self.peer, MESH_PORT), (self.own, local));
        if socket.connect(self.interface.context(), to, from).is_err() {
            return false;
        }
        self.insert(id, socket, false, local, MESH_PORT);
        true
    }

    fn insert(&mut self, id: u64, socket: Socket<'static>, is_incoming: bool, local: u16, remote: u16) {
        let handle = self.sockets.add(socket);
        let stream = Stream {
            handle,
            is_incoming,
            local,
            remote,
            pair: None,
            is_mixed: false,
            is_open: false,
            is_at_end: false,
            waits: (false, false),
            ends: None,
        };
        self.streams.insert(id, stream);
    }

    /// Takes a packet that came through the tunnel of `pair`. `id` is for the stream that it may
    /// open. False if it opens one too many.
    pub(super) fn receive(&mut self, packet: Vec<u8>, segment: Segment, pair: KeyPair, id: u64, now: Instant) -> bool {
        self.device.incoming.push_back(packet);
        if !segment.opens || !segment.is_to_listener() {
            return true;
        }
        let known = self.streams.values_mut().find(|stream| stream.is_incoming && stream.remote == segment.source);
        if let Some(known) = known {
            known.is_mixed |= known.pair != Some(pair);
            return true;
        }
        if self.count(true) >= MOST_STREAMS {
            self.device.incoming.pop_back();
            return false;
        }
        let mut socket = socket();
        if socket.listen((self.own, MESH_PORT)).is_ok() {
            self.insert(id, socket, true, MESH_PORT, segment.source);
            self.streams.entry(id).and_modify(|stream| stream.pair = Some(pair));
        }
        // The socket takes the first SYN that it sees, so it must see this one now.
        let time = self.time(now);
        self.interface.poll(time, &mut self.device, &mut self.sockets);
        true
    }

    /// Lets the stack work off what came, and returns what happened to its streams.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<(u64, StreamNews)> {
        let time = self.time(now);
        self.interface.poll(time, &mut self.device, &mut self.sockets);
        let mut news = Vec::new();
        for (id, stream) in &mut self.streams {
            let socket = self.sockets.get_mut::<Socket<'_>>(stream.handle);
            news.extend(stream.review(socket, now).map(|news| (*id, news)));
        }
        let sockets = &mut self.sockets;
        self.streams.retain(|_, stream| {
            let ended = stream.has_ended(sockets.get::<Socket<'_>>(stream.handle));
            if ended {
                sockets.remove(stream.handle);
            }
            !ended
        });
        news
    }

    /// The next packet to send.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        self.device.outgoing.pop_front()
    }

    /// Notes that a packet which opens a stream went through the tunnel of `pair`.
    pub(super) fn note_sent(&mut self, segment: Segment, pair: KeyPair) {
        let dialled = self.streams.values_mut().find(|stream| !stream.is_incoming && stream.local == segment.source);
        if let Some(stream) = dialled.filter(|stream| segment.opens && !stream.is_open) {
            stream.is_mixed |= stream.pair.is_some_and(|earlier| earlier != pair);
            stream.pair.get_or_insert(pair);
        }
    }

    /// When [`Self::poll`] has to be called if nothing happens.
    pub(super) fn next_timeout(&mut self, now: Instant) -> Option<Instant> {
        let time = self.time(now);
        let stack = self.interface.poll_at(time, &self.sockets);
        let stack = stack.map(|at| self.started + Duration::from_micros(at.total_micros().max(0).cast_unsigned()));
        let ends = self.streams.values().filter_map(|stream| stream.ends).min();
        [stack, ends].into_iter().flatten().min().map(|at| at.max(now))
    }

    /// Reads into `buffer`; 0 bytes are the end of the stream.
    pub(super) fn read(&mut self, id: u64, buffer: &mut [u8]) -> Result<usize, Blocked> {
        let stream = self.streams.get_mut(&id).ok_or(Blocked::Broken)?;
        let socket = self.sockets.get_mut::<Socket<'_>>(stream.handle);
        if socket.can_recv() {
            return socket.recv_slice(buffer).map_err(|_| Blocked::Broken);
        }
        match socket.state() {
            _ if stream.is_at_end => Ok(0),
            State::Closed => Err(Blocked::Broken),
            _ => {
                stream.waits.0 = true;
                Err(Blocked::Wait)
            }
        }
    }

    /// Writes a part of `bytes`.
    pub(super) fn write(&mut self, id: u64, bytes: &[u8]) -> Result<usize, Blocked> {
        let stream = self.streams.get_mut(&id).ok_or(Blocked::Broken)?;
        let socket = self.sockets.get_mut::<Socket<'_>>(stream.handle);
        if socket.can_send() {
            return socket.send_slice(bytes).map_err(|_| Blocked::Broken);
        }
        if !socket.may_send() {
            return Err(Blocked::Broken);
        }
        stream.waits.1 = true;
        Err(Blocked::Wait)
    }

    /// Ends this node's direction, after what was written.
    pub(super) fn close(&mut self, id: u64) {
        if let Some(stream) = self.streams.get(&id) {
            self.sockets.get_mut::<Socket<'_>>(stream.handle).close();
        }
    }

    /// Gives up a stream: what was written is still delivered, if the peer takes it soon.
    pub(super) fn release(&mut self, id: u64, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let socket = self.sockets.get_mut::<Socket<'_>>(stream.handle);
        // Bytes that are never read must end the stream at the peer, too.
        if socket.can_recv() {
            socket.abort()
        } else {
            socket.close()
        }
        stream.ends = Some(now + LINGER);
    }

    /// The streams that have an owner.
    pub(super) fn owned(&self) -> impl Iterator<Item = u64> {
        self.streams.iter().filter(|(_, stream)| stream.ends.is_none()).map(|(id, _)| *id)
    }
}

impl Stream {
    /// Compares the stream with its socket, and returns what has changed.
    fn review(&mut self, socket: &mut Socket<'_>, now: Instant) -> Option<StreamNews> {
        match socket.state() {
            // The packet was not a valid SYN.
            State::Listen => socket.close(),
            State::SynSent | State::SynReceived if self.is_mixed => socket.abort(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait => self.is_at_end = true,
            _ => {}
        }
        if self.ends.is_some_and(|ends| ends <= now) && socket.is_open() {
            socket.abort();
        }
        let is_closed = !socket.is_open();
        let is_opening = matches!(socket.state(), State::Listen | State::SynSent | State::SynReceived);
        match self.pair.filter(|_| !self.is_open) {
            Some(pair) if !is_closed && !is_opening => {
                self.is_open = true;
                socket.set_timeout(Some(SILENCE.into()));
                return Some(match self.is_incoming {
                    true => StreamNews::Arrived(pair.binding()),
                    false => StreamNews::Opened(pair.binding()),
                });
            }
            _ if is_closed && !self.is_open && !self.is_incoming => return Some(StreamNews::Failed),
            _ => {}
        }
        let can_read = is_closed || self.is_at_end || socket.can_recv();
        let can_write = is_closed || socket.can_send();
        if (self.waits.0 && can_read) || (self.waits.1 && can_write) {
            self.waits = (false, false);
            return Some(StreamNews::Wake);
        }
        None
    }

    /// Whether nothing is left to do, not even to send the RST of an aborted connection.
    fn has_ended(&self, socket: &Socket<'_>) -> bool {
        let is_unowned = self.ends.is_some() || (self.is_incoming && !self.is_open);
        let is_done = match socket.state() {
            State::Closed => socket.local_endpoint().is_none(),
            state => state == State::TimeWait,
        };
        is_unowned && is_done
    }
}

/// A socket with the bounds of all streams.
fn socket() -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_timeout(Some(OPENING.into()));
    socket.set_keep_alive(Some(KEEPALIVE.into()));
    socket.set_nagle_enabled(false);
    socket
}

/// The packets between the stack and the tunnels.
#[derive(Default)]
struct Packets {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

impl Device for Packets {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Incoming, Outgoing<'_>)> {
        let packet = self.incoming.pop_front()?;
        Some((Incoming(packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < PACKETS_AT_ONCE).then_some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = LONGEST_SENT;
        capabilities
    }
}

/// A packet for the stack.
struct Incoming(Vec<u8>);

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

/// A place for a packet of the stack.
struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.push_back(packet);
        result
    }
}
