//! What a new member is given, as it lies in the sealed answer.
//!
//! ```text
//! 1 byte    0: worker, 1: publisher
//! 32 bytes  discovery key
//! 32 bytes  seed of the node's introduction points
//! 96 bytes  publishers only: expanded master key (64), seed of the authority key (32)
//! the rest  everything public, encoded as usual
//! ```
//!
//! The secrets stand at fixed places, so that no decoder makes copies of them that nobody wipes.

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::codec;
use rustbalance_gossip::record::{Chain, DiscoveryKey, NodeCard, Role};
use rustbalance_gossip::signed::Unverified;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::frame;
use crate::keys::{AuthoritySecret, DiscoverySecret, MasterSecret, PointSeed};

/// Bytes of secrets for a worker.
const WORKER: usize = 1 + 32 + 32;
/// Bytes of secrets for a publisher.
const PUBLISHER: usize = WORKER + 64 + 32;
/// The largest parcel: with its seal and the message around it, it must fit a frame.
const MAX: usize = frame::MAX - 1024;
/// Most chains of other members in a parcel; the rest comes by gossip.
pub(super) const MAX_CHAINS: usize = 128;
/// Most virtual ports of the master address.
pub const MAX_PORTS: usize = NodeCard::MAX_PORTS;

/// Everything public in a parcel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// By the publisher's node key, over the answer's transcript.
    pub(super) signature: FixedBytes<64>,
    /// The publisher's certificates.
    pub(super) publisher: Chain,
    /// The new member's.
    pub(super) member: Chain,
    /// Other members', at most [`MAX_CHAINS`].
    pub(super) members: Vec<Chain>,
    /// Virtual ports of the master address, at most [`MAX_PORTS`].
    pub(super) ports: Vec<u16>,
    /// The authority's word on the discovery key.
    pub(super) discovery: Unverified<DiscoveryKey>,
    /// The publisher's clock, in seconds since the Unix epoch.
    pub(super) unix: u64,
}

/// What only publishers are given.
#[derive(Debug)]
pub struct PublisherSecrets {
    /// The master identity key.
    pub master: MasterSecret,
    /// The certificate-signing key.
    pub authority: AuthoritySecret,
}

/// What a new member is given, secrets included.
#[derive(Debug)]
pub struct Parcel {
    pub(super) discovery: DiscoverySecret,
    pub(super) points: PointSeed,
    pub(super) secrets: Option<PublisherSecrets>,
    pub(super) facts: Facts,
}

impl Parcel {
    /// The plain text, with room for the seal; `None` if it cannot be encoded.
    pub fn to_bytes(&self) -> Option<Zeroizing<Vec<u8>>> {
        let mut facts = self.facts.clone();
        facts.members.truncate(MAX_CHAINS);
        let mut encoded = codec::encode(&facts).ok()?;
        while PUBLISHER + encoded.len() > MAX && !facts.members.is_empty() {
            facts.members.truncate(facts.members.len() / 2);
            encoded = codec::encode(&facts).ok()?;
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(PUBLISHER + encoded.len() + 64));
        bytes.push(u8::from(self.secrets.is_some()));
        bytes.extend_from_slice(self.discovery.as_bytes());
        bytes.extend_from_slice(self.points.as_bytes());
        if let Some(secrets) = &self.secrets {
            bytes.extend_from_slice(secrets.master.expanded());
            bytes.extend_from_slice(secrets.authority.seed());
        }
        bytes.extend_from_slice(&encoded);
        Some(bytes)
    }

    /// Reads the plain text of an answer in which the role was said to be `role`. Nothing in it is verified yet. An error
    /// says in words what is wrong with it.
    pub fn from_bytes(bytes: &[u8], role: Role) -> Result<Self, &'static str> {
        let publisher = role == Role::Publisher;
        let size = if publisher { PUBLISHER } else { WORKER };
        let (secret, rest) = bytes.split_at_checked(size).ok_or("it is cut short")?;
        if secret[0] != u8::from(publisher) {
            return Err("it is for another role");
        }
        let facts: Facts = codec::decode(rest, MAX).map_err(|_| "it cannot be read")?;
        if facts.members.len() > MAX_CHAINS || facts.ports.len() > MAX_PORTS || facts.ports.contains(&0) {
            return Err("it is out of bounds");
        }
        let discovery = DiscoverySecret::from_bytes(&key(&secret[1..33])?);
        let points = PointSeed::from_bytes(&key(&secret[33..WORKER])?);
        let secrets = if publisher {
            let master = MasterSecret::from_expanded(&key(&secret[WORKER..WORKER + 64])?)
                .map_err(|_| "its master key is none")?;
            let authority = AuthoritySecret::from_seed(&key(&secret[WORKER + 64..])?);
            Some(PublisherSecrets { master, authority })
        } else {
            None
        };
        Ok(Self { discovery, points, secrets, facts })
    }
}

/// A key, without a copy of it on the stack that nobody wipes.
fn key<const N: usize>(bytes: &[u8]) -> Result<Zeroizing<[u8; N]>, &'static str> {
    let mut key = Zeroizing::new([0; N]);
    if bytes.len() != N {
        return Err("it is cut short");
    }
    key.copy_from_slice(bytes);
    Ok(key)
}
