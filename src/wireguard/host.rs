//! The addresses of this host, and those that it can send to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::is_possible;

/// Destinations outside of every host's own networks: addresses reserved for documentation (RFC
/// 5737, RFC 3849). Nothing is sent to them.
const ELSEWHERE: [(IpAddr, IpAddr); 2] = [
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))),
];

/// The addresses from which this host sends by its default routes, each with this port: at most one
/// of IPv4 and one of IPv6. Empty without a default route.
pub fn default_addresses(port: u16) -> Vec<SocketAddr> {
    let addresses = ELSEWHERE.into_iter().filter_map(|(any, elsewhere)| {
        #[expect(
            clippy::disallowed_methods,
            reason = "asks the kernel for the source address of a route; sends nothing"
        )]
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((elsewhere, port)).ok()?;
        let source = socket.local_addr().ok()?.ip();
        Some(SocketAddr::new(source, port))
    });
    addresses.filter(is_possible).filter(|address| !address.ip().is_loopback()).collect()
}

/// Whether a host can be at this address, as far as a node that is bound to `bound` can tell.
pub(super) fn is_usable(endpoint: SocketAddr, bound: &[IpAddr]) -> bool {
    let ip = endpoint.ip();
    // Else a hostile member could send this node's datagrams to its own local services.
    let may_be_local = bound.iter().any(|bound| bound.is_ipv4() == ip.is_ipv4() && bound.is_loopback());
    let has_family = bound.iter().any(|bound| bound.is_ipv4() == ip.is_ipv4());
    is_possible(&endpoint) && has_family && (may_be_local || !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_learnt_address_is_one_that_this_host_can_listen_on() {
        let addresses = default_addresses(0x7440 >> 1);
        assert!(addresses.len() <= 2);
        for address in addresses {
            assert!(UdpSocket::bind((address.ip(), 0)).is_ok(), "{address}");
        }
    }
}
