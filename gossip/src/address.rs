//! The address plan: each node has one fixed IPv6 unique local address, derived from its id. Over
//! Tor it is only a name that the transport resolves to the node's onion address; over WireGuard it
//! is the node's tunnel address.

use std::net::{Ipv6Addr, SocketAddr};

use crate::hash::{Label, labelled};
use crate::id::NodeId;

/// The port in every mesh address. A socket listens on it only while the WireGuard fast path is up.
pub const MESH_PORT: u16 = 7440;

/// The node's address: `fd`, then the first 15 bytes of SHA3-256 over a label and the node id.
pub fn mesh_address(node: &NodeId) -> Ipv6Addr {
    let digest = labelled(Label::MeshAddress, &[node.public_key()]);
    let mut octets = [0xfd; 16];
    octets[1..].copy_from_slice(&digest[..15]);
    Ipv6Addr::from(octets)
}

/// [`mesh_address`] with [`MESH_PORT`]: the form in which chitchat takes a peer's address.
pub fn mesh_socket(node: &NodeId) -> SocketAddr {
    SocketAddr::from((mesh_address(node), MESH_PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_local_and_fixed() {
        let node = NodeId::from_public_key([7; 32]);
        assert_eq!(mesh_address(&node).octets()[0], 0xfd);
        assert_eq!(mesh_address(&node), mesh_address(&node));
        assert_ne!(mesh_address(&node), mesh_address(&NodeId::from_public_key([8; 32])));
    }
}
