//! The parcel: the content of the sealed answer, for a new member.
//!
//! ```text
//! 1 byte    version of the parcel: 1
//! 2 bytes   number of secrets
//! each      2 bytes   what it is for (see [`SecretPurpose`])
//!           32 bytes  the service that it belongs to, or zeroes
//!           4 bytes   its version: 0
//!           2 bytes   its length in bytes
//!           the secret
//! the rest  everything public, encoded as usual
//! ```
//!
//! Numbers are big-endian. The secrets come before the decoded part, so that no decoder leaves
//! copies of them in memory. A reader skips secrets with an unknown role or version: a later
//! release may add some. A worker gets the discovery key and the seed of its points; a parcel that
//! gives a worker a publisher's secret is refused.

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::codec;
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{Chain, DiscoveryKey, NodeCard, Role};
use rustbalance_gossip::signed::Unverified;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::frame;
use crate::keys::{
    AuthoritySecret, DiscoverySecret, IdentitySecret, MAX_SERVICES, PointSeed, SecretPurpose, ServiceSecret,
    ServiceSecrets,
};

/// The version of the parcel that this build writes and reads.
const VERSION: u8 = 1;
/// Maximum size of a parcel: with its seal and its message it must fit a frame.
const MAX: usize = frame::MAX - 1024;
/// Maximum number of secrets in a parcel: 16 for the node, and 16 for each service.
const MAX_SECRETS: usize = 16 + 16 * MAX_SERVICES;
/// Size of the label before each secret, in bytes.
const LABEL: usize = 2 + 32 + 4 + 2;
/// Maximum number of other members' chains in a parcel; gossip brings the rest.
pub(super) const MAX_CHAINS: usize = 128;
/// Maximum number of virtual ports of one service.
pub const MAX_PORTS: usize = NodeCard::MAX_PORTS;

/// Why a parcel cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParcelError {
    /// It ends before its content does.
    #[error("it is cut short")]
    Short,
    /// It is of another version.
    #[error("it is of version {0}, and this build reads version {VERSION}")]
    Version(u8),
    /// A list in it is longer than allowed, or names something twice.
    #[error("it is out of bounds")]
    Bounds,
    /// It lacks a secret that the role needs.
    #[error("it lacks the {0:?}")]
    Lacks(SecretPurpose),
    /// It is for a worker, and contains a secret that only publishers may have.
    #[error("it gives a worker the {0:?}, which only publishers may have")]
    NotForWorkers(SecretPurpose),
    /// A secret is not a valid key of its role.
    #[error("its {0:?} is not a key")]
    Key(SecretPurpose),
    /// Its public part is malformed.
    #[error("it cannot be decoded")]
    Malformed,
}

/// The public part of a parcel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// The publisher's signature, by its node key, over the answer's transcript.
    pub(super) signature: FixedBytes<64>,
    /// The publisher's certificates.
    pub(super) publisher: Chain,
    /// The new member's certificates.
    pub(super) member: Chain,
    /// The certificates of other members, at most [`MAX_CHAINS`].
    pub(super) members: Vec<Chain>,
    /// The services of the cluster, at most [`MAX_SERVICES`]; the first is the one that names the
    /// cluster.
    pub(super) services: Vec<JoinedService>,
    /// The authority's statement of the discovery key.
    pub(super) discovery: Unverified<DiscoveryKey>,
    /// The publisher's clock, in seconds since the Unix epoch.
    pub(super) unix: u64,
}

/// A service, as a parcel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedService {
    /// The service.
    pub service: ServiceId,
    /// Its virtual ports: at most [`MAX_PORTS`], none of them 0.
    pub ports: Vec<u16>,
}

/// The secrets that only publishers are given.
#[derive(Debug)]
pub struct PublisherSecrets {
    /// The certificate-signing key.
    pub authority: AuthoritySecret,
    /// The secrets of each service, sorted by service.
    pub services: Vec<ServiceSecrets>,
}

/// Everything that a new member is given, including secrets.
#[derive(Debug)]
pub struct Parcel {
    pub(super) discovery: DiscoverySecret,
    pub(super) points: PointSeed,
    pub(super) secrets: Option<PublisherSecrets>,
    pub(super) facts: Facts,
}

/// A secret with its label.
struct Entry<'a> {
    role: SecretPurpose,
    service: Option<ServiceId>,
    secret: &'a [u8],
}

impl Parcel {
    /// The plain text, with spare capacity for the seal; `None` if it cannot be encoded or is too
    /// large.
    pub fn to_bytes(&self) -> Option<Zeroizing<Vec<u8>>> {
        let entries = self.entries();
        let secrets = 3 + entries.iter().map(|entry| LABEL + entry.secret.len()).sum::<usize>();
        let mut facts = self.facts.clone();
        facts.members.truncate(MAX_CHAINS);
        let mut encoded = codec::encode(&facts).ok()?;
        while secrets + encoded.len() > MAX {
            if facts.members.is_empty() {
                return None;
            }
            facts.members.truncate(facts.members.len() / 2);
            encoded = codec::encode(&facts).ok()?;
        }
        // A single allocation, so that no freed copy of a secret stays in memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(secrets + encoded.len() + 64));
        bytes.push(VERSION);
        bytes.extend_from_slice(&u16::try_from(entries.len()).ok()?.to_be_bytes());
        for Entry { role, service, secret } in entries {
            bytes.extend_from_slice(&role.number().to_be_bytes());
            bytes.extend_from_slice(service.as_ref().map_or(&[0; 32][..], |service| &service.public_key()[..]));
            bytes.extend_from_slice(&0u32.to_be_bytes());
            bytes.extend_from_slice(&u16::try_from(secret.len()).ok()?.to_be_bytes());
            bytes.extend_from_slice(secret);
        }
        bytes.extend_from_slice(&encoded);
        Some(bytes)
    }

    fn entries(&self) -> Vec<Entry<'_>> {
        let own = |role, secret| Entry { role, service: None, secret };
        let mut entries = vec![
            own(SecretPurpose::DiscoveryKey, self.discovery.as_bytes()),
            own(SecretPurpose::PointSeed, self.points.as_bytes()),
        ];
        if let Some(PublisherSecrets { authority, services }) = &self.secrets {
            entries.push(own(SecretPurpose::AuthorityKey, authority.seed()));
            for of in services {
                entries.extend(of.secrets.iter().map(|secret| match secret {
                    ServiceSecret::Identity(key) => {
                        Entry { role: SecretPurpose::IdentityKey, service: Some(of.service), secret: key.expanded() }
                    }
                }));
            }
        }
        entries
    }

    /// Reads the plain text of an answer that names the role `role`. Nothing is verified yet.
    ///
    /// # Errors
    /// It is malformed, out of bounds, or does not hold the secrets of the role.
    pub fn from_bytes(bytes: &[u8], role: Role) -> Result<Self, ParcelError> {
        let (entries, rest) = read_entries(bytes)?;
        let facts: Facts = codec::decode(rest, MAX).map_err(|_| ParcelError::Malformed)?;
        let is_bounded = |it: &JoinedService| it.ports.len() <= MAX_PORTS && !it.ports.contains(&0);
        let services = &facts.services;
        if facts.members.len() > MAX_CHAINS
            || !(1..=MAX_SERVICES).contains(&services.len())
            || !services.iter().all(is_bounded)
            || services
                .iter()
                .enumerate()
                .any(|(at, it)| services[..at].iter().any(|other| other.service == it.service))
        {
            return Err(ParcelError::Bounds);
        }
        if let Some(entry) = entries.iter().find(|it| role == Role::Worker && it.role.is_of_publishers()) {
            return Err(ParcelError::NotForWorkers(entry.role));
        }
        let one = |role| entries.iter().find(|entry| entry.role == role).ok_or(ParcelError::Lacks(role));
        let discovery = DiscoverySecret::from_bytes(&key(one(SecretPurpose::DiscoveryKey)?)?);
        let points = PointSeed::from_bytes(&key(one(SecretPurpose::PointSeed)?)?);
        let secrets = match role {
            Role::Worker => None,
            Role::Publisher => Some(PublisherSecrets {
                authority: AuthoritySecret::from_seed(&key(one(SecretPurpose::AuthorityKey)?)?),
                services: secrets_of_services(&entries)?,
            }),
        };
        Ok(Self { discovery, points, secrets, facts })
    }
}

/// The secrets of known roles and versions, each at most once, and the bytes after all secrets.
fn read_entries(bytes: &[u8]) -> Result<(Vec<Entry<'_>>, &[u8]), ParcelError> {
    let (&[version], rest) = bytes.split_first_chunk().ok_or(ParcelError::Short)?;
    if version != VERSION {
        return Err(ParcelError::Version(version));
    }
    let (count, mut rest) = rest.split_first_chunk().ok_or(ParcelError::Short)?;
    let count = usize::from(u16::from_be_bytes(*count));
    if count > MAX_SECRETS {
        return Err(ParcelError::Bounds);
    }
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for _ in 0..count {
        let (role, after) = rest.split_first_chunk().ok_or(ParcelError::Short)?;
        let (service, after) = after.split_first_chunk::<32>().ok_or(ParcelError::Short)?;
        let (version, after) = after.split_first_chunk().ok_or(ParcelError::Short)?;
        let (length, after) = after.split_first_chunk().ok_or(ParcelError::Short)?;
        let (secret, after) = after.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(ParcelError::Short)?;
        rest = after;
        let Some(role) =
            SecretPurpose::from_number(u16::from_be_bytes(*role)).filter(|_| u32::from_be_bytes(*version) == 0)
        else {
            continue;
        };
        let service = (*service != [0; 32]).then(|| ServiceId::from_public_key(*service));
        let is_twice = entries.iter().any(|known| (known.role, known.service) == (role, service));
        if is_twice || service.is_some() != role.is_per_service() {
            return Err(ParcelError::Bounds);
        }
        entries.push(Entry { role, service, secret });
    }
    Ok((entries, rest))
}

/// The secrets of all services, sorted by service.
fn secrets_of_services(entries: &[Entry<'_>]) -> Result<Vec<ServiceSecrets>, ParcelError> {
    let mut services: Vec<ServiceSecrets> = Vec::new();
    for entry in entries {
        let (SecretPurpose::IdentityKey, Some(service)) = (entry.role, entry.service) else { continue };
        let identity = IdentitySecret::from_expanded(&key(entry)?).map_err(|_| ParcelError::Key(entry.role))?;
        services.push(ServiceSecrets { service, secrets: vec![ServiceSecret::Identity(identity)] });
    }
    services.sort_by_key(|of| of.service);
    Ok(services)
}

/// Copies a key into a buffer that is zeroed, so that no copy stays on the stack.
fn key<const N: usize>(entry: &Entry<'_>) -> Result<Zeroizing<[u8; N]>, ParcelError> {
    let mut key = Zeroizing::new([0; N]);
    if entry.secret.len() != N {
        return Err(ParcelError::Key(entry.role));
    }
    key.copy_from_slice(entry.secret);
    Ok(key)
}
