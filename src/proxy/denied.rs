//! Whether this host lets this process reach private networks.
//!
//! `IPAddressDeny=` in the unit drops packets where they leave the process. A TCP connection then
//! only gets no answer, as if the other host were off. UDP gets an error, so [`is_denied`] asks
//! with a datagram for that address which is sent to the loopback interface: the rules look at its
//! address, and it never leaves this host.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;

use super::target::Target;

/// One address of each of RFC 1918's networks.
const PRIVATE: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(172, 16, 0, 1), Ipv4Addr::new(192, 168, 0, 1)];
/// The discard port: the loopback interface has no such address, so nothing receives the datagram.
const PORT: u16 = 9;

/// Whether rules of this host, such as the unit's, keep this process from sending to the address of
/// a target in a private network. For a name, whose DNS servers may be denied, and for an IPv6
/// address, which the loopback interface does not route: from sending to any network of RFC 1918.
/// False if that cannot be found out.
pub async fn is_denied(target: &Target) -> bool {
    match target {
        Target::Private(SocketAddr::V4(address)) => denies(*address.ip()).await,
        Target::Private(SocketAddr::V6(_)) | Target::Name(..) => {
            for address in PRIVATE {
                if !denies(address).await {
                    return false;
                }
            }
            true
        }
        Target::Tcp(_) | Target::Localhost(_) | Target::Unix(_) | Target::Onion(..) => false,
    }
}

async fn denies(address: Ipv4Addr) -> bool {
    #[expect(clippy::disallowed_methods, reason = "on loopback alone, and dropped at once")]
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await;
    // Before Linux 5.7 the second step needs a capability, and its failure says nothing.
    let Ok(socket) = socket.and_then(|socket| socket.bind_device(Some(b"lo")).map(|()| socket)) else { return false };
    let sent = socket.send_to(&[], (IpAddr::V4(address), PORT)).await;
    sent.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_called_denied_where_no_rule_denies_it() {
        for target in ["10.0.0.7:80", "[fd00::7]:80", "web:80", "127.0.0.1:80", "unix:/run/app.sock"] {
            assert!(!is_denied(&target.parse().unwrap()).await, "{target}");
        }
    }
}
