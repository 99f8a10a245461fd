//! The content of an endpoint record: a node's WireGuard keys and where it takes packets
//! (docs/PROTOCOL.md, section 15).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
use rustbalance_gossip::codec::{self, DecodeError};
use rustbalance_gossip::record::Endpoint;
use serde::{Deserialize, Serialize};

use super::{MOST_ENDPOINTS, WeakKey, WireguardKey};

/// Most keys of one node: the one in use, and one that is coming or going.
pub const MOST_KEYS: usize = 2;

/// Why the content of an endpoint record is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnouncementError {
    /// It cannot be read.
    #[error("the announcement of WireGuard cannot be read")]
    Decode(#[from] DecodeError),
    /// The number of keys is not one or two.
    #[error("{0} WireGuard keys: 1 to {MOST_KEYS} are allowed")]
    Keys(usize),
    /// The keys are not in the order of their start, or they are the same.
    #[error("the WireGuard keys are not in the order of their start")]
    Order,
    /// A key protects nothing.
    #[error(transparent)]
    Weak(#[from] WeakKey),
    /// There are too many addresses.
    #[error("{0} WireGuard addresses: at most {MOST_ENDPOINTS} are allowed")]
    Endpoints(usize),
    /// An address has neither the length of an IPv4 nor that of an IPv6 address with its port.
    #[error("a WireGuard address of {0} bytes")]
    Length(usize),
    /// No host can have this address, or packets to it go to more than one host.
    #[error("{0} cannot be the WireGuard address of a node")]
    Address(SocketAddr),
}

/// A key, and when its node begins to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatedKey {
    /// The public key.
    pub key: WireguardKey,
    /// Start of its use, in seconds since the Unix epoch.
    pub from: u64,
}

/// A node's WireGuard keys and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// One key, or two during a rotation, in the order of their start. The node accepts all of
    /// them.
    pub keys: Vec<DatedKey>,
    /// Where the node takes packets, the best address first, at most [`MOST_ENDPOINTS`]. Empty if
    /// it can only be reached after it has sent.
    pub endpoints: Vec<SocketAddr>,
}

/// The form on the wire. Later versions may add fields.
#[derive(Serialize, Deserialize)]
struct Content {
    keys: Vec<ContentKey>,
    /// Each is the address and the port (big-endian): 6 or 18 bytes.
    endpoints: Vec<VarBytes>,
}

#[derive(Serialize, Deserialize)]
struct ContentKey {
    key: FixedBytes<32>,
    from: u64,
}

impl Announcement {
    /// The message to be sealed.
    ///
    /// # Errors
    /// None in practice: it has no type that CBOR lacks.
    pub fn to_bytes(&self) -> Result<Vec<u8>, DecodeError> {
        let keys =
            self.keys.iter().map(|dated| ContentKey { key: FixedBytes(*dated.key.as_bytes()), from: dated.from });
        let content = Content { keys: keys.collect(), endpoints: self.endpoints.iter().map(packed).collect() };
        codec::encode(&content)
    }

    /// Reads and checks the output of [`Announcement::to_bytes`].
    ///
    /// # Errors
    /// See [`AnnouncementError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AnnouncementError> {
        let content: Content = codec::decode(bytes, Endpoint::MAX_SEALED)?;
        let (keys, endpoints) = (content.keys.len(), content.endpoints.len());
        if !(1..=MOST_KEYS).contains(&keys) {
            return Err(AnnouncementError::Keys(keys));
        }
        if endpoints > MOST_ENDPOINTS {
            return Err(AnnouncementError::Endpoints(endpoints));
        }
        let dated = |key: &ContentKey| Ok(DatedKey { key: WireguardKey::from_bytes(key.key.0)?, from: key.from });
        let keys = content.keys.iter().map(dated).collect::<Result<Vec<_>, WeakKey>>()?;
        if let [first, second] = keys.as_slice()
            && (first.from >= second.from || first.key == second.key)
        {
            return Err(AnnouncementError::Order);
        }
        let endpoints = content.endpoints.iter().map(|packed| unpacked(&packed.0)).collect::<Result<_, _>>()?;
        Ok(Self { keys, endpoints })
    }

    /// The keys in the order in which to try them at `unix` seconds since the epoch: first the one
    /// in use.
    pub fn keys_at(&self, unix: u64) -> Vec<WireguardKey> {
        in_order_of_use(&self.keys, |dated| dated.from, unix).map(|dated| dated.key).collect()
    }
}

/// Keys with rising times of start, the one in use at `unix` first: the latest that has begun, or
/// the first if none has.
pub(super) fn in_order_of_use<T>(keys: &[T], from: impl Fn(&T) -> u64, unix: u64) -> impl Iterator<Item = &T> {
    let in_use = keys.iter().take_while(|key| from(key) <= unix).count().saturating_sub(1);
    let others = keys.iter().enumerate().filter(move |(at, _)| *at != in_use).map(|(_, key)| key);
    keys.get(in_use).into_iter().chain(others)
}

fn packed(endpoint: &SocketAddr) -> VarBytes {
    let mut bytes = match endpoint.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend_from_slice(&endpoint.port().to_be_bytes());
    VarBytes(bytes)
}

fn unpacked(bytes: &[u8]) -> Result<SocketAddr, AnnouncementError> {
    let length = AnnouncementError::Length(bytes.len());
    let Some((ip, port)) = bytes.split_last_chunk::<2>() else { return Err(length) };
    let ip = match (<[u8; 4]>::try_from(ip), <[u8; 16]>::try_from(ip)) {
        (Ok(four), _) => IpAddr::V4(four.into()),
        (_, Ok(sixteen)) => IpAddr::V6(sixteen.into()),
        _ => return Err(length),
    };
    let endpoint = SocketAddr::new(ip, u16::from_be_bytes(*port));
    if is_possible(&endpoint) { Ok(endpoint) } else { Err(AnnouncementError::Address(endpoint)) }
}

/// Whether a node may take packets at this address. A loopback address is possible: several nodes
/// may run on one host. Link-local addresses are not, because each host has its own.
pub fn is_possible(endpoint: &SocketAddr) -> bool {
    endpoint.port() != 0
        && match endpoint.ip() {
            IpAddr::V4(ip) => is_of_one_host(ip),
            IpAddr::V6(ip) => is_of_one_host_v6(ip),
        }
}

/// False for "this network" (0.0.0.0/8), link-local addresses, multicast, and the reserved block
/// with the broadcast address (240.0.0.0/4).
fn is_of_one_host(ip: Ipv4Addr) -> bool {
    let first = ip.octets()[0];
    first != 0 && first < 224 && !ip.is_link_local()
}

/// False for the unspecified address, link-local addresses, multicast, and IPv4 addresses in
/// another form.
fn is_of_one_host_v6(ip: Ipv6Addr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local() && ip.to_ipv4_mapped().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::WireguardSecret;

    fn key() -> WireguardKey {
        WireguardSecret::generate(&mut rand::rng()).public()
    }

    fn announcement(endpoints: &[&str]) -> Announcement {
        let keys = [100, 200].map(|from| DatedKey { key: key(), from });
        Announcement { keys: keys.to_vec(), endpoints: endpoints.iter().map(|text| text.parse().unwrap()).collect() }
    }

    #[test]
    fn an_announcement_of_any_allowed_content_is_read_as_it_was_written() {
        for endpoints in
            [&[][..], &["203.0.113.7:7440"], &["[2001:db8::7]:1", "10.0.0.7:7440", "127.0.0.1:9", "[::1]:65535"]]
        {
            let announcement = announcement(endpoints);
            let bytes = announcement.to_bytes().unwrap();
            assert!(bytes.len() + 28 <= Endpoint::MAX_SEALED, "{}", bytes.len());
            assert_eq!(Announcement::from_bytes(&bytes), Ok(announcement));
        }
    }

    #[test]
    fn an_address_that_no_single_host_has_is_refused() {
        for address in [
            "0.0.0.0:7440",
            "0.1.2.3:7440",
            "169.254.169.254:80",
            "224.0.0.1:7440",
            "255.255.255.255:7440",
            "203.0.113.7:0",
            "[::]:7440",
            "[ff02::1]:7440",
            "[fe80::1]:7440",
            "[::ffff:203.0.113.7]:7440",
        ] {
            let bytes = announcement(&[address]).to_bytes().unwrap();
            assert_eq!(Announcement::from_bytes(&bytes), Err(AnnouncementError::Address(address.parse().unwrap())));
        }
    }

    #[test]
    fn an_announcement_out_of_its_bounds_is_refused() {
        let good = announcement(&["203.0.113.7:7440"]);
        let read = |changed: &Announcement| Announcement::from_bytes(&changed.to_bytes().unwrap());
        let none = Announcement { keys: Vec::new(), ..good.clone() };
        assert_eq!(read(&none), Err(AnnouncementError::Keys(0)));
        let three =
            Announcement { keys: [100, 200, 300].map(|from| DatedKey { key: key(), from }).into(), ..good.clone() };
        assert_eq!(read(&three), Err(AnnouncementError::Keys(3)));
        let turned = Announcement { keys: good.keys.iter().rev().copied().collect(), ..good.clone() };
        assert_eq!(read(&turned), Err(AnnouncementError::Order));
        let mut twice = good.clone();
        twice.keys[1].key = twice.keys[0].key;
        assert_eq!(read(&twice), Err(AnnouncementError::Order));
        let many = Announcement { endpoints: vec![good.endpoints[0]; MOST_ENDPOINTS + 1], ..good.clone() };
        assert_eq!(read(&many), Err(AnnouncementError::Endpoints(MOST_ENDPOINTS + 1)));
        let weak = Content { keys: vec![ContentKey { key: FixedBytes([0; 32]), from: 1 }], endpoints: Vec::new() };
        let weak = codec::encode(&weak).unwrap();
        assert_eq!(Announcement::from_bytes(&weak), Err(AnnouncementError::Weak(WeakKey)));
        let keys = vec![ContentKey { key: FixedBytes(*key().as_bytes()), from: 1 }];
        let cut = Content { keys, endpoints: vec![VarBytes(vec![1; 7])] };
        assert_eq!(Announcement::from_bytes(&codec::encode(&cut).unwrap()), Err(AnnouncementError::Length(7)));
        assert!(matches!(Announcement::from_bytes(&[1, 2, 3]), Err(AnnouncementError::Decode(_))));
    }

    #[test]
    fn the_key_in_use_comes_first() {
        let announcement = announcement(&[]);
        let [old, new] = [announcement.keys[0].key, announcement.keys[1].key];
        for (unix, order) in
            [(0, [old, new]), (100, [old, new]), (199, [old, new]), (200, [new, old]), (900, [new, old])]
        {
            assert_eq!(announcement.keys_at(unix), order, "at {unix}");
        }
    }
}
