//! Decides which handshakes are worth a Diffie-Hellman computation.
//!
//! A handshake that is not made for one of this node's keys has been dropped before. Beyond
//! [`COOKIE_AFTER`] handshakes a second, their senders must show by a cookie that they receive at
//! the address they send from; a rate for each address and one for all bound the rest.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Handshakes in a second after which senders need a cookie (the WireGuard paper, section 5.3).
pub(super) const COOKIE_AFTER: u64 = 100;
/// Handshakes accepted in one second from one address; a /64 counts as one address of IPv6. A
/// cluster behind one address needs one for each peer and try.
const PER_ADDRESS: u32 = 50;
/// Handshakes accepted in one second from all addresses: about 5 % of one processor.
const IN_TOTAL: u32 = 500;
/// Addresses remembered in one second.
const ADDRESSES: usize = IN_TOTAL as usize;

/// Counts handshakes in intervals of one second.
#[derive(Debug)]
pub(super) struct HandshakeGate {
    since: Instant,
    total: u32,
    from: HashMap<IpAddr, u32>,
}

impl HandshakeGate {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, total: 0, from: HashMap::new() }
    }

    /// Counts a handshake from `from`, and returns whether to look at it.
    pub(super) fn admits(&mut self, from: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.total) = (now, 0);
            self.from.clear();
        }
        let address = network(from);
        if self.total >= IN_TOTAL || (self.from.len() >= ADDRESSES && !self.from.contains_key(&address)) {
            return false;
        }
        let count = self.from.entry(address).or_default();
        if *count >= PER_ADDRESS {
            return false;
        }
        *count += 1;
        self.total += 1;
        true
    }
}

/// The address whose handshakes are counted together: a host has a whole /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_use_up_the_rate_of_all() {
        let now = Instant::now();
        let mut gate = HandshakeGate::new(now);
        let flood: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!((0..1000).filter(|_| gate.admits(flood, now)).count(), PER_ADDRESS as usize);
        assert!(gate.admits("192.0.2.2".parse().unwrap(), now));
        assert!(!gate.admits(flood, now + Duration::from_millis(999)));
        assert!(gate.admits(flood, now + Duration::from_secs(1)));
    }

    #[test]
    fn a_whole_network_of_ipv6_counts_as_one_address() {
        let now = Instant::now();
        let mut gate = HandshakeGate::new(now);
        let admitted =
            (0..1000u16).filter(|host| gate.admits(IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, *host]), now));
        assert_eq!(admitted.count(), PER_ADDRESS as usize);
        let networks = (0..1000u16).filter(|net| gate.admits(IpAddr::from([0x2001, 0xdb8, 1, *net, 0, 0, 0, 1]), now));
        assert_eq!(networks.count() as u32, IN_TOTAL - PER_ADDRESS);
    }
}
