//! One WireGuard tunnel: between one own key and one key of a peer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use defguard_boringtun::noise::errors::WireGuardError;
use defguard_boringtun::noise::rate_limiter::RateLimiter;
use defguard_boringtun::noise::{Tunn, TunnResult};
use defguard_boringtun::x25519::{PublicKey, StaticSecret};
use tokio::time::Instant;

use super::gate::COOKIE_AFTER;
use super::packet::MTU;
use crate::backoff::Backoff;
use crate::link::ChannelBinding;
use crate::wireguard::{WireguardKey, WireguardSecret, channel_binding};

/// Longest datagram of a tunnel: a packet with header and tag, after padding to 16 bytes.
pub(super) const LONGEST_DATAGRAM: usize = MTU + 32;
/// Pauses between handshakes that are not answered. The first are shorter than WireGuard's 5 s, so
/// that one lost datagram costs a second; the longest is how long a path that works again may stay
/// unnoticed.
const HANDSHAKES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8));

/// A key of this node, with what bounds the handshakes for it.
pub(super) struct OwnKey {
    pub(super) secret: StaticSecret,
    pub(super) public: PublicKey,
    pub(super) key: WireguardKey,
    /// Checks that a handshake is made for this key, and demands cookies under load.
    pub(super) limiter: RateLimiter,
    /// Given to the tunnels, which must not count again what `limiter` has counted.
    unlimited: Arc<RateLimiter>,
}

impl OwnKey {
    pub(super) fn new(secret: &WireguardSecret) -> Self {
        let static_secret = StaticSecret::from(*secret.as_bytes());
        let public = PublicKey::from(&static_secret);
        Self {
            secret: static_secret,
            public,
            key: secret.public(),
            limiter: RateLimiter::new(&public, COOKIE_AFTER),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
        }
    }
}

/// The two static keys of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyPair {
    pub(super) own: WireguardKey,
    pub(super) peer: WireguardKey,
}

impl KeyPair {
    pub(super) fn binding(&self) -> ChannelBinding {
        channel_binding(&self.own, &self.peer)
    }
}

/// What a datagram gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// It is not authentic, or a replay.
    Nothing,
    /// It is authentic; a packet for the stack, if it was not a keepalive.
    Data(Option<Vec<u8>>),
    /// It continues a handshake or is a cookie, and this is the answer. `proves` if it shows that
    /// the sender has just answered this node.
    Handshake {
        /// The datagram to send.
        reply: Option<Vec<u8>>,
        /// See above.
        proves: bool,
    },
}

/// One tunnel. Its protocol timers have a clock of their own, inside boringtun; what this engine
/// adds (retries, keepalives) goes by the time that it is given.
pub(super) struct Tunnel {
    pub(super) pair: KeyPair,
    /// 24 bits that the peer sends with each datagram to this tunnel.
    pub(super) index: u32,
    tunn: Box<Tunn>,
    tries: u32,
    /// When the next handshake may be sent.
    pub(super) next_try: Instant,
}

impl Tunnel {
    pub(super) fn new(own: &OwnKey, peer: WireguardKey, index: u32, now: Instant) -> Self {
        let theirs = PublicKey::from(*peer.as_bytes());
        let limiter = Some(Arc::clone(&own.unlimited));
        let tunn = Box::new(Tunn::new(own.secret.clone(), theirs, None, None, index, limiter));
        Self { pair: KeyPair { own: own.key, peer }, index, tunn, tries: 0, next_try: now }
    }

    /// Whether packets can be sent: the session is confirmed and has not expired.
    pub(super) fn has_session(&self) -> bool {
        self.since_handshake().is_some()
    }

    pub(super) fn since_handshake(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }

    /// A datagram that begins a handshake, also while another one is under way. `round` is the
    /// number of datagrams after which the pause grows.
    pub(super) fn initiate(&mut self, round: u32, now: Instant) -> Option<Vec<u8>> {
        self.next_try = now + HANDSHAKES.pause(self.tries / round.max(1));
        self.tries = self.tries.saturating_add(1);
        let mut buffer = [0; LONGEST_DATAGRAM];
        sent(self.tunn.format_handshake_initiation(&mut buffer, true))
    }

    /// Number of handshakes begun since the last one that was answered.
    pub(super) fn tries(&self) -> u32 {
        self.tries
    }

    /// Lets the next handshake begin at once.
    pub(super) fn try_again(&mut self, now: Instant) {
        (self.tries, self.next_try) = (0, now);
    }

    /// Encrypts a packet, or a keepalive if it is empty; `None` without a session.
    pub(super) fn seal(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        // Without a session, boringtun would queue the packet and begin a handshake of its own.
        if !self.has_session() || packet.len() > MTU {
            return None;
        }
        let mut buffer = [0; LONGEST_DATAGRAM];
        sent(self.tunn.encapsulate(packet, &mut buffer))
    }

    /// Takes a datagram that was sent to this tunnel, of at most [`LONGEST_DATAGRAM`] bytes.
    pub(super) fn receive(&mut self, from: IpAddr, datagram: &[u8], kind: Kind) -> Received {
        let mut buffer = [0; LONGEST_DATAGRAM];
        let received = match self.tunn.decapsulate(Some(from), datagram, &mut buffer) {
            TunnResult::Err(_) => return Received::Nothing,
            TunnResult::WriteToTunnelV6(packet, _) | TunnResult::WriteToTunnelV4(packet, _) => {
                Received::Data(Some(packet.to_vec()))
            }
            TunnResult::WriteToNetwork(reply) => {
                Received::Handshake { reply: Some(reply.to_vec()), proves: kind == Kind::Response }
            }
            TunnResult::Done if kind == Kind::Data => Received::Data(None),
            TunnResult::Done => Received::Handshake { reply: None, proves: false },
        };
        if matches!(received, Received::Data(_) | Received::Handshake { proves: true, .. }) {
            self.tries = 0;
        }
        received
    }

    /// Lets the protocol's timers act: rekeying, expiry. Returns a datagram to send.
    pub(super) fn tick(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; LONGEST_DATAGRAM];
        sent(self.tunn.update_timers(&mut buffer))
    }
}

/// The datagram of a result. An error here means that the session has expired, and the next
/// handshake begins it again.
fn sent(result: TunnResult<'_>) -> Option<Vec<u8>> {
    match result {
        TunnResult::WriteToNetwork(datagram) => Some(datagram.to_vec()),
        _ => None,
    }
}

/// The kinds of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Begins a handshake.
    Initiation,
    /// Answers one.
    Response,
    /// Answers one under load.
    Cookie,
    /// Carries a packet.
    Data,
}

impl Kind {
    /// The kind, and for all but the first the index of the tunnel it is sent to. `None` if it
    /// cannot be a datagram of WireGuard (the paper, section 5.4).
    pub(super) fn of(datagram: &[u8]) -> Option<(Self, u32)> {
        let number = |at: usize| datagram.get(at..at + 4)?.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
        let kind = match (number(0)?, datagram.len()) {
            (1, 148) => return Some((Self::Initiation, 0)),
            (2, 92) => return Some((Self::Response, number(8)? >> 8)),
            (3, 64) => Self::Cookie,
            (4, 32..=LONGEST_DATAGRAM) => Self::Data,
            _ => return None,
        };
        Some((kind, number(4)? >> 8))
    }
}

/// Whether a handshake was made for another key.
pub(super) fn is_for_another_key(result: &TunnResult<'_>) -> bool {
    matches!(result, TunnResult::Err(WireGuardError::InvalidMac))
}
