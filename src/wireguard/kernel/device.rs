//! One WireGuard interface of the kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::SystemTime;

use data_encoding::BASE64;
use defguard_wireguard_rs::error::WireguardInterfaceError;
use defguard_wireguard_rs::key::Key;
use defguard_wireguard_rs::net::IpAddrMask;
use defguard_wireguard_rs::peer::Peer;
use defguard_wireguard_rs::{InterfaceConfiguration, Kernel, WGApi, WireguardInterfaceApi};
use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::id::NodeId;
use tracing::warn;

use super::claim::{Claim, Link, alias, interface_name, refusal};
use super::{KernelError, netlink};
use crate::wireguard::{WireguardKey, WireguardSecret};

/// The smallest MTU that IPv6 allows. A path of 1340 bytes (IPv4) or 1360 (IPv6) carries it.
const MTU: u32 = 1280;
/// Interval in seconds at which a silent session sends something, as in the userspace engine.
const KEEPALIVE: u16 = 15;

/// What the engine asks of an interface. Every call blocks until the kernel has answered.
pub(super) trait Device {
    /// The interface's name.
    fn name(&self) -> &str;

    /// Whether the interface is the one that was made, and still there.
    fn is_there(&mut self) -> Result<bool, KernelError>;

    /// Changes the private key. What peers send by their sessions still arrives; the next packet to
    /// each peer waits for a new handshake.
    fn set_key(&mut self, secret: &WireguardSecret) -> Result<(), KernelError>;

    /// Adds a peer that is not there. With the node's `address` it carries the packets of the node,
    /// and sends a handshake at once if the endpoint is given. Without one, it only answers.
    fn add_peer(&mut self, key: &WireguardKey, place: Place) -> Result<(), KernelError>;

    /// Moves the node's address to another peer that is there, at once and without a gap.
    fn give_address(&mut self, key: &WireguardKey, address: Ipv6Addr) -> Result<(), KernelError>;

    /// Lets a peer that is there only answer.
    fn rest(&mut self, key: &WireguardKey) -> Result<(), KernelError>;

    /// Removes a peer.
    fn remove_peer(&mut self, key: &WireguardKey) -> Result<(), KernelError>;

    /// Sends what goes to this address by the interface.
    fn add_route(&mut self, address: Ipv6Addr) -> Result<(), KernelError>;

    /// Undoes that: a route that stays would swallow the packets.
    fn remove_route(&mut self, address: Ipv6Addr) -> Result<(), KernelError>;

    /// What the kernel knows of each peer.
    fn read(&mut self) -> Result<BTreeMap<WireguardKey, Measured>, KernelError>;
}

/// Where a new peer is, and what it carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Where to send to, until it sends from elsewhere.
    pub(super) endpoint: Option<SocketAddr>,
    /// The node's address, if this peer is to carry it.
    pub(super) address: Option<Ipv6Addr>,
}

/// What the kernel knows of a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Measured {
    /// Where it is, as learnt from its packets.
    pub(super) endpoint: Option<SocketAddr>,
    /// When the last handshake was.
    pub(super) handshake: Option<SystemTime>,
    /// Bytes received since it was added.
    pub(super) bytes_in: u64,
    /// Bytes sent since it was added.
    pub(super) bytes_out: u64,
}

/// An interface that this process has made. Dropping it removes the interface.
pub(super) struct Interface {
    name: String,
    index: u32,
    api: WGApi<Kernel>,
}

impl Interface {
    /// Makes the interface of this node, with its mesh address and this UDP port, without peers and
    /// with a random key. Removes one that this node has left over.
    ///
    /// # Errors
    /// [`KernelError`]; then there is no interface of this node.
    pub(super) fn make(node: &NodeId, port: u16) -> Result<Self, KernelError> {
        remove_left_over(node)?;
        // Only now: what was left over had the port.
        is_port_free(port)?;
        let name = interface_name(node);
        let failed = |what| call_error(what, &name);
        let mut api = WGApi::<Kernel>::new(name.clone()).map_err(failed("prepare the making"))?;
        if api.create_interface().is_err() {
            return Err(refusal(name, &std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default()));
        }
        let Link { index, is_wireguard, alias: former } =
            find(&name)?.ok_or_else(|| KernelError::Gone(name.clone()))?;
        // The crate reports success for one that another program has made since the check above.
        if !is_wireguard || former.is_some() {
            return Err(KernelError::Foreign(name));
        }
        // From here on, dropping removes it. A process that is killed before the next call leaves
        // an interface that its next start refuses to touch.
        let made = Self { name: name.clone(), index, api };
        netlink::set_alias(index, alias(node)).map_err(netlink_error("set the alias", &name))?;
        let unused = WireguardSecret::generate(&mut rand::rng());
        let configuration = InterfaceConfiguration {
            name: name.clone(),
            prvkey: BASE64.encode(unused.as_bytes()),
            addresses: vec![host(mesh_address(node))],
            port,
            peers: Vec::new(),
            mtu: Some(MTU),
            fwmark: None,
        };
        // Once in the interface's life: it removes all addresses and peers.
        made.api.configure_interface(&configuration).map_err(failed("set the address and the port"))?;
        Ok(made)
    }

    fn configure(&self, what: &'static str, peer: &Peer) -> Result<(), KernelError> {
        self.api.configure_peer(peer).map_err(call_error(what, &self.name))
    }
}

impl Device for Interface {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_there(&mut self) -> Result<bool, KernelError> {
        Ok(find(&self.name)?.is_some_and(|link| link.index == self.index))
    }

    fn set_key(&mut self, secret: &WireguardSecret) -> Result<(), KernelError> {
        netlink::set_private_key(&self.name, secret).map_err(netlink_error("change the key", &self.name))
    }

    fn add_peer(&mut self, key: &WireguardKey, place: Place) -> Result<(), KernelError> {
        let mut peer = Peer::new(key_of(key));
        peer.endpoint = place.endpoint;
        peer.allowed_ips = place.address.map(host).into_iter().collect();
        peer.persistent_keepalive_interval = place.address.map(|_| KEEPALIVE);
        self.configure("add a peer", &peer)
    }

    fn give_address(&mut self, key: &WireguardKey, address: Ipv6Addr) -> Result<(), KernelError> {
        let mut peer = Peer::new(key_of(key));
        peer.allowed_ips = vec![host(address)];
        peer.persistent_keepalive_interval = Some(KEEPALIVE);
        self.configure("change a peer", &peer)
    }

    fn rest(&mut self, key: &WireguardKey) -> Result<(), KernelError> {
        let mut peer = Peer::new(key_of(key));
        peer.persistent_keepalive_interval = Some(0);
        self.configure("change a peer", &peer)
    }

    fn remove_peer(&mut self, key: &WireguardKey) -> Result<(), KernelError> {
        self.api.remove_peer(&key_of(key)).map_err(call_error("remove a peer", &self.name))
    }

    fn add_route(&mut self, address: Ipv6Addr) -> Result<(), KernelError> {
        let mut routed = Peer::new(Key::default());
        routed.allowed_ips = vec![host(address)];
        self.api.configure_peer_routing(&[routed]).map_err(call_error("add a route", &self.name))
    }

    fn remove_route(&mut self, address: Ipv6Addr) -> Result<(), KernelError> {
        netlink::remove_route(self.index, address).map_err(netlink_error("remove a route", &self.name))
    }

    fn read(&mut self) -> Result<BTreeMap<WireguardKey, Measured>, KernelError> {
        let host = self.api.read_interface_data().map_err(call_error("read the peers", &self.name))?;
        let measured = |peer: &Peer| Measured {
            endpoint: peer.endpoint,
            handshake: peer.last_handshake.filter(|at| *at != SystemTime::UNIX_EPOCH),
            bytes_in: peer.rx_bytes,
            bytes_out: peer.tx_bytes,
        };
        let by_key = host.peers.values().filter_map(|peer| {
            let key = WireguardKey::from_bytes(peer.public_key.as_array()).ok()?;
            Some((key, measured(peer)))
        });
        Ok(by_key.collect())
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        // By its number: another interface may have the name by now. The crate's own removal starts
        // programs that change the host's resolver, and leaves the interface if they fail.
        if let Err(error) = netlink::remove(self.index) {
            warn!(
                name: "kernel_wireguard_remove_failed",
                %error, interface = self.name,
                "cannot remove the WireGuard interface: remove it with `ip link delete`"
            );
        }
    }
}

/// Removes the interface that an earlier process of this node has left over.
///
/// # Errors
/// [`KernelError::Foreign`] for an interface of another program, which stays as it is;
/// [`KernelError::Netlink`].
pub(super) fn remove_left_over(node: &NodeId) -> Result<bool, KernelError> {
    let name = interface_name(node);
    match Claim::of(find(&name)?.as_ref(), node) {
        Claim::Free => Ok(false),
        Claim::LeftOver(index) => {
            netlink::remove(index).map_err(netlink_error("remove the rest", &name))?;
            Ok(true)
        }
        Claim::Foreign => Err(KernelError::Foreign(name)),
    }
}

/// Checks that no other program has the port, of IPv4 or IPv6: the crate would hide the reason.
#[expect(clippy::disallowed_methods, reason = "tries the port that the kernel is about to take, and sends nothing")]
fn is_port_free(port: u16) -> Result<(), KernelError> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    UdpSocket::bind(address).map(drop).map_err(|source| KernelError::Port { port, source })
}

fn find(name: &str) -> Result<Option<Link>, KernelError> {
    netlink::find(name).map_err(netlink_error("read the state", name))
}

fn call_error(what: &'static str, name: &str) -> impl FnOnce(WireguardInterfaceError) -> KernelError {
    let name = name.to_owned();
    move |source| KernelError::Call { what, name, source }
}

fn netlink_error(what: &'static str, name: &str) -> impl FnOnce(std::io::Error) -> KernelError {
    let name = name.to_owned();
    move |source| KernelError::Netlink { what, name, source }
}

fn key_of(key: &WireguardKey) -> Key {
    Key::new(*key.as_bytes())
}

fn host(address: Ipv6Addr) -> IpAddrMask {
    IpAddrMask::host(IpAddr::V6(address))
}
