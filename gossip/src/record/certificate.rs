//! Who belongs: the chain from the master address to a member, and its end.
//!
//! `master identity key -> authority key -> member`. Everything verifies against the master address alone.

use serde::{Deserialize, Serialize};

use crate::bytes::FixedBytes;
use crate::id::{AuthorityId, ClusterId, InvitationId, NodeId};
use crate::signed::{Check, Statement, Strict, Unverified, Verified, VerifyError};

/// The master identity key's word that this key signs certificates for the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityCertificate {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The key that may sign member certificates, invitations and revocations.
    pub authority: AuthorityId,
    /// When, in seconds since the Unix epoch.
    pub issued: u64,
}

impl Statement for AuthorityCertificate {
    const CONTEXT: &'static str = "rustbalance authority certificate v1";
    const MAX_SIZE: usize = 512;
}

/// What a member may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May be elected, admits joiners, holds what publishing needs.
    Publisher,
    /// Serves clients and gossips; never holds a secret of the master address.
    Worker,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Publisher => "publisher",
            Self::Worker => "worker",
        })
    }
}

/// The authority's word that a node is a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberCertificate {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// Who.
    pub node: NodeId,
    /// As what.
    pub role: Role,
    /// When, in seconds since the Unix epoch.
    pub issued: u64,
    /// Until when, in seconds since the Unix epoch.
    pub expires: u64,
    /// The invitation it was redeemed with; `None` for the founder.
    pub invitation: Option<InvitationId>,
}

impl Statement for MemberCertificate {
    const CONTEXT: &'static str = "rustbalance member certificate v1";
    const MAX_SIZE: usize = 768;
}

/// The authority's word on the key that opens the descriptors of the members' own services. A new one is made after each
/// revocation, so that who was put out does not find the others any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoveryKey {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// How many members had been revoked when it was made: whoever knows of fewer must not hand it on.
    pub generation: u32,
    /// Its public half, X25519.
    pub public: FixedBytes<32>,
}

impl Statement for DiscoveryKey {
    const CONTEXT: &'static str = "rustbalance discovery key v1";
    const MAX_SIZE: usize = 512;
}

impl DiscoveryKey {
    /// What decides which of two is newer: the generation, then the key, for two that were made at once.
    pub fn rank(&self) -> (u32, [u8; 32]) {
        (self.generation, self.public.0)
    }
}

/// Both certificates of a member, as they travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Signed by the master identity key.
    pub authority: Unverified<AuthorityCertificate>,
    /// Signed by the authority key.
    pub member: Unverified<MemberCertificate>,
}

/// Why a chain was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The authority certificate is not signed by the master address.
    #[error("the authority certificate is not the master address's")]
    Authority(#[source] VerifyError),
    /// The member certificate is not signed by the authority.
    #[error("the member certificate is not the authority's")]
    Member(#[source] VerifyError),
    /// For another cluster.
    #[error("certificate of another cluster, {0}")]
    Cluster(ClusterId),
    /// Past its end.
    #[error("the member certificate expired {0} s ago")]
    Expired(u64),
}

/// A member whose chain has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The checked authority certificate.
    pub authority: Verified<AuthorityCertificate>,
    /// The checked member certificate.
    pub certificate: Verified<MemberCertificate>,
}

impl Chain {
    /// Checks both certificates against the master address, at `unix` seconds since the epoch.
    pub fn verify(self, cluster: ClusterId, unix: u64) -> Result<Member, ChainError> {
        self.verify_with(cluster, unix, &Strict)
    }

    /// The same with another way to check signatures.
    pub fn verify_with(self, cluster: ClusterId, unix: u64, check: &dyn Check) -> Result<Member, ChainError> {
        let authority = self.authority.verify_with(cluster.public_key(), check).map_err(ChainError::Authority)?;
        if authority.cluster != cluster {
            return Err(ChainError::Cluster(authority.cluster));
        }
        let certificate =
            self.member.verify_with(authority.authority.public_key(), check).map_err(ChainError::Member)?;
        if certificate.cluster != cluster {
            return Err(ChainError::Cluster(certificate.cluster));
        }
        if certificate.expires < unix {
            return Err(ChainError::Expired(unix - certificate.expires));
        }
        Ok(Member { authority, certificate })
    }
}

impl Member {
    /// Who.
    pub fn node(&self) -> NodeId {
        self.certificate.node
    }

    /// As what.
    pub fn role(&self) -> Role {
        self.certificate.role
    }

    /// The key that signs for the cluster.
    pub fn authority_id(&self) -> AuthorityId {
        self.authority.authority
    }

    /// Both certificates, to be sent on.
    pub fn chain(&self) -> Chain {
        Chain { authority: self.authority.unverified(), member: self.certificate.unverified() }
    }
}
