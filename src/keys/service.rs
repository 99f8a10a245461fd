//! What publishers hold of each service, and secrets by what they are for.
//!
//! Today that is the identity key alone. Certificates made ahead, shares of the key and a secret of
//! all publishers can follow as further variants of [`ServiceSecret`]: each is a row of
//! [`SecretRole`], a file of its own in the state directory, and an entry of its own in what a join
//! brings.

use rustbalance_gossip::id::ServiceId;

use super::MasterSecret;

/// Most services of one cluster. All their identity keys and facts fit the answer to a join.
pub const MAX_SERVICES: usize = 64;

/// What a secret that a peer hands over is for. The numbers are on the wire: none is ever used
/// again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum SecretRole {
    /// Opens the descriptors of the members' own onion services. Every member has it.
    DiscoveryKey = 1,
    /// What the keys of a node's introduction points are derived from. That node has it.
    PointSeed = 2,
    /// Signs certificates, invitations and revocations. Publishers have it.
    AuthorityKey = 3,
    /// The identity key of a service. Publishers have it.
    IdentityKey = 4,
}

impl SecretRole {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::DiscoveryKey, Self::PointSeed, Self::AuthorityKey, Self::IdentityKey];

    /// The one of this number.
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

    /// True if each service has one of its own.
    pub fn is_of_a_service(self) -> bool {
        self == Self::IdentityKey
    }
}

/// A secret of one service.
#[derive(Debug)]
pub enum ServiceSecret {
    /// The identity key.
    Identity(MasterSecret),
}

impl ServiceSecret {
    /// A second handle on the same secret.
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
    /// Those of a service of which there is the identity key alone.
    pub fn of(identity: MasterSecret) -> Self {
        Self { service: identity.service_id(), secrets: vec![ServiceSecret::Identity(identity)] }
    }

    /// Those of a service of which this node holds none.
    pub fn none(service: ServiceId) -> Self {
        Self { service, secrets: Vec::new() }
    }

    /// The identity key, if it is among them.
    pub fn identity(&self) -> Option<&MasterSecret> {
        self.secrets.iter().map(|ServiceSecret::Identity(key)| key).next()
    }

    /// A second handle on the same secrets.
    pub fn duplicate(&self) -> Self {
        Self { service: self.service, secrets: self.secrets.iter().map(ServiceSecret::duplicate).collect() }
    }
}
