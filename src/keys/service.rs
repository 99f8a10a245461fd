//! The secrets of each service, and the purposes of secrets that peers hand over.
//!
//! Today a service has only its identity key. Certificates made in advance, shares of the key and a
//! secret of all publishers can be added as further variants of [`ServiceSecret`]: each gets a row
//! of [`SecretPurpose`], a file of its own in the state directory, and an entry of its own in the
//! answer to a join.

use rustbalance_gossip::id::ServiceId;

use super::IdentitySecret;

/// Most services of one cluster: the answer to a join has room for all their identity keys and
/// facts.
pub const MAX_SERVICES: usize = 64;

/// The purpose of a secret that a peer hands over. The numbers are on the wire: none is ever used
/// again for another purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum SecretPurpose {
    /// Opens the descriptors of the members' own onion services. Every member has it.
    DiscoveryKey = 1,
    /// Seed of the keys of a node's introduction points. That node has it.
    PointSeed = 2,
    /// Signs certificates, invitations and revocations. Publishers have it.
    AuthorityKey = 3,
    /// The identity key of a service. Publishers have it.
    IdentityKey = 4,
}

impl SecretPurpose {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::DiscoveryKey, Self::PointSeed, Self::AuthorityKey, Self::IdentityKey];

    /// The role with this number; `None` if there is none.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.number() == number)
    }

    /// Its number on the wire.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// True if workers must not have it.
    pub fn is_of_publishers(self) -> bool {
        matches!(self, Self::AuthorityKey | Self::IdentityKey)
    }

    /// True if each service has a secret of its own in this role.
    pub fn is_per_service(self) -> bool {
        self == Self::IdentityKey
    }
}

/// A secret of one service.
#[derive(Debug)]
pub enum ServiceSecret {
    /// The identity key.
    Identity(IdentitySecret),
}

impl ServiceSecret {
    /// A copy of the secret; explicit, because the type is not `Clone`.
    pub fn duplicate(&self) -> Self {
        match self {
            Self::Identity(key) => Self::Identity(key.duplicate()),
        }
    }
}

/// All secrets of one service.
#[derive(Debug)]
pub struct ServiceSecrets {
    /// The service.
    pub service: ServiceId,
    /// At most one of each kind.
    pub secrets: Vec<ServiceSecret>,
}

impl ServiceSecrets {
    /// The secrets of a service of which this node holds only the identity key.
    pub fn of(identity: IdentitySecret) -> Self {
        Self { service: identity.service_id(), secrets: vec![ServiceSecret::Identity(identity)] }
    }

    /// The secrets of a service of which this node holds none.
    pub fn none(service: ServiceId) -> Self {
        Self { service, secrets: Vec::new() }
    }

    /// The identity key, if this node holds it.
    pub fn identity(&self) -> Option<&IdentitySecret> {
        self.secrets.iter().map(|ServiceSecret::Identity(key)| key).next()
    }

    /// A copy of the secrets; explicit, because the type is not `Clone`.
    pub fn duplicate(&self) -> Self {
        Self { service: self.service, secrets: self.secrets.iter().map(ServiceSecret::duplicate).collect() }
    }
}
