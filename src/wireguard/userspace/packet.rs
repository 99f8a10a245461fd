//! The packets inside the tunnel: only TCP over IPv6, between the mesh addresses of two nodes, to
//! or from the port for links.

use std::net::Ipv6Addr;

use rustbalance_gossip::address::MESH_PORT;

/// Longest packet inside the tunnel that is taken, in bytes: the smallest MTU that IPv6 permits,
/// which a peer with an interface of the kernel has. This node sends shorter ones.
pub(super) const MTU: usize = 1280;
/// Length of an IPv6 header without extensions.
const IP_HEADER: usize = 40;
/// Length of a TCP header without options.
const TCP_HEADER: usize = 20;
/// The number of TCP among the next headers of IPv6.
const TCP: u8 = 6;

/// What the engine must know of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) source: u16,
    pub(super) destination: u16,
    /// It opens a connection: SYN without ACK.
    pub(super) opens: bool,
    /// The receiver has to answer it: it has data, or begins or ends a direction.
    pub(super) wants_answer: bool,
}

impl Segment {
    /// Reads a packet from `from` to `to`; `None` for any other packet, and for one that is not of
    /// a link. Checksums and the rest of the header are left to the TCP stack.
    pub(super) fn parse(packet: &[u8], from: Ipv6Addr, to: Ipv6Addr) -> Option<Self> {
        let (header, tcp) = packet.split_at_checked(IP_HEADER)?;
        let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let of_peer = header[8..24] == from.octets() && header[24..40] == to.octets();
        if header[0] >> 4 != 6 || header[6] != TCP || payload != tcp.len() || packet.len() > MTU || !of_peer {
            return None;
        }
        let fixed = tcp.first_chunk::<TCP_HEADER>()?;
        let port = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
        let (source, destination) = (port(0), port(2));
        if source == 0 || destination == 0 || (source == MESH_PORT) == (destination == MESH_PORT) {
            return None;
        }
        let data = tcp.len().checked_sub(4 * usize::from(fixed[12] >> 4))?;
        let [fin, syn, ack] = [0x01, 0x02, 0x10].map(|flag| fixed[13] & flag != 0);
        Some(Self { source, destination, opens: syn && !ack, wants_answer: data > 0 || syn || fin })
    }

    /// Whether it belongs to a connection that the receiver of the packet has accepted.
    pub(super) fn is_to_listener(&self) -> bool {
        self.destination == MESH_PORT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const TO: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    fn packet(ports: (u16, u16), flags: u8, data: usize) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(((TCP_HEADER + data) as u16).to_be_bytes());
        packet.extend([TCP, 64]);
        packet.extend(FROM.octets().into_iter().chain(TO.octets()));
        packet.extend(ports.0.to_be_bytes().into_iter().chain(ports.1.to_be_bytes()));
        packet.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags]);
        packet.resize(IP_HEADER + TCP_HEADER + data, 0);
        packet
    }

    fn parse(packet: &[u8]) -> Option<Segment> {
        Segment::parse(packet, FROM, TO)
    }

    #[test]
    fn a_segment_of_a_link_is_read() {
        let opening = parse(&packet((50_000, MESH_PORT), 0x02, 0)).unwrap();
        assert!(opening.opens && opening.wants_answer && opening.is_to_listener());
        let answer = parse(&packet((MESH_PORT, 50_000), 0x12, 0)).unwrap();
        assert!(!answer.opens && answer.wants_answer && !answer.is_to_listener());
        assert!(!parse(&packet((MESH_PORT, 50_000), 0x10, 0)).unwrap().wants_answer);
        assert!(parse(&packet((MESH_PORT, 50_000), 0x10, 1220)).unwrap().wants_answer);
    }

    #[test]
    fn anything_else_is_refused() {
        let good = packet((50_000, MESH_PORT), 0x10, 8);
        assert!(parse(&good).is_some());
        let with = |at: usize, byte: u8| {
            let mut changed = good.clone();
            changed[at] = byte;
            changed
        };
        // The version, another protocol, another length, another source, another destination, a
        // header that is longer than the packet.
        for (at, byte) in [(0, 0x40), (6, 17), (6, 58), (5, 27), (9, 1), (39, 3), (IP_HEADER + 12, 0xf0)] {
            assert_eq!(parse(&with(at, byte)), None, "byte {at}");
        }
        for ports in [(50_000, 22), (MESH_PORT, MESH_PORT), (0, MESH_PORT), (MESH_PORT, 0)] {
            assert_eq!(parse(&packet(ports, 0x02, 0)), None, "{ports:?}");
        }
        assert_eq!(parse(&packet((50_000, MESH_PORT), 0x10, 1221)), None);
        for length in 0..good.len() {
            assert_eq!(parse(&good[..length]), None);
        }
    }
}
