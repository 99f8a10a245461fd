//! The header of HAProxy's PROXY protocol, which says to an application on which circuit a stream
//! came.
//!
//! A header for a client names the circuit as C tor does (`HiddenServiceExportCircuitID haproxy`):
//! from the address of [`ExportedCircuitId`] to `::1`, with the virtual port. One for a connection
//! that no client has made says so: the `LOCAL` command of version 2, `UNKNOWN` in version 1.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};

use ppp::{v1, v2};

use crate::tor::ExportedCircuitId;

/// The version of the PROXY protocol that an application expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A line of text, as C tor writes it.
    V1,
    /// The binary form.
    V2,
}

impl ProxyProtocol {
    /// The header of a stream for the virtual port `port`, on a circuit with this id; `None` for a
    /// connection of this node itself.
    pub(super) fn header(self, circuit: Option<ExportedCircuitId>, port: u16) -> io::Result<Vec<u8>> {
        match (self, circuit) {
            (Self::V1, Some(id)) => {
                let addresses = v1::Addresses::new_tcp6(id.address(), Ipv6Addr::LOCALHOST, id.port(), port);
                Ok(addresses.to_string().into_bytes())
            }
            (Self::V1, None) => Ok(v1::Addresses::Unknown.to_string().into_bytes()),
            (Self::V2, Some(id)) => {
                let from = SocketAddr::new(id.address().into(), id.port());
                let to = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
                let command = v2::Version::Two | v2::Command::Proxy;
                v2::Builder::with_addresses(command, v2::Protocol::Stream, (from, to)).build()
            }
            (Self::V2, None) => {
                let command = v2::Version::Two | v2::Command::Local;
                v2::Builder::with_addresses(command, v2::Protocol::Unspecified, v2::Addresses::Unspecified).build()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> ExportedCircuitId {
        ExportedCircuitId::new(number).unwrap()
    }

    #[test]
    fn version_1_is_the_line_that_c_tor_writes() {
        // From C tor's own tests of `export_hs_client_circuit_id`, and its format for another id.
        for (number, line) in [
            (0xffff_ffff, "PROXY TCP6 fc00:dead:beef:4dad::ffff:ffff ::1 65535 42\r\n"),
            (0x0a01_029a, "PROXY TCP6 fc00:dead:beef:4dad::a01:29a ::1 666 42\r\n"),
        ] {
            let header = ProxyProtocol::V1.header(Some(id(number)), 42).unwrap();
            assert_eq!(String::from_utf8(header).unwrap(), line);
        }
        assert_eq!(ProxyProtocol::V1.header(None, 42).unwrap(), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_has_the_bytes_of_the_specification() {
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        let mut expected = [&signature[..], &[0x21, 0x21, 0, 36]].concat();
        expected.extend([0xfc, 0, 0xde, 0xad, 0xbe, 0xef, 0x4d, 0xad, 0, 0, 0, 0, 0x0a, 0x01, 0x02, 0x9a]);
        expected.extend(Ipv6Addr::LOCALHOST.octets());
        expected.extend([0x02, 0x9a, 0, 80]);
        assert_eq!(ProxyProtocol::V2.header(Some(id(0x0a01_029a)), 80).unwrap(), expected);
        let local = [&signature[..], &[0x20, 0, 0, 0]].concat();
        assert_eq!(ProxyProtocol::V2.header(None, 80).unwrap(), local);
    }
}
