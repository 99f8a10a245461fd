//! Membership certificates: the chain from the key of the first service to a member.
//!
//! `key of the first service -> authority key -> member`. The whole chain verifies against the
//! [`ClusterId`] alone.

use serde::{Deserialize, Serialize};

use crate::bytes::FixedBytes;
use crate::id::{AuthorityId, ClusterId, InvitationId, NodeId};
use crate::signed::{Check, Statement, Strict, Unverified, Verified, VerifyError};

/// A statement by the identity key of the first service: this authority key signs certificates for
/// the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityCertificate {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The key that may sign member certificates, invitations and revocations.
    pub authority: AuthorityId,
    /// When it was issued, in seconds since the Unix epoch.
    pub issued: u64,
}

impl Statement for AuthorityCertificate {
    const CONTEXT: &'static str = "rustbalance authority certificate v1";
    const MAX_SIZE: usize = 512;
}

/// The role of a member, which decides its rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May be elected, admits joiners, and holds the secrets that publishing needs.
    Publisher,
    /// Serves clients and gossips; never holds a secret key of a service address.
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

/// Lifetime of a membership, in seconds: 30 days. A publisher renews it when half is left, so a
/// node may be away, or without a publisher, for 15 days without losing it.
pub const MEMBERSHIP_SECONDS: u64 = 30 * 86_400;
/// With less than this left, in seconds, a certificate should have been renewed: a quarter of its
/// lifetime. All publishers renew at three eighths, the leaseholder at half.
pub const NEAR_END_SECONDS: u64 = MEMBERSHIP_SECONDS / 4;

/// A statement of the authority: a node is a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberCertificate {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The member.
    pub node: NodeId,
    /// Its role, which does not change.
    pub role: Role,
    /// When the node became a member, in seconds since the Unix epoch. A renewal does not change
    /// it: it decides which of the nodes that joined with one token count.
    pub issued: u64,
    /// When it expires, in seconds since the Unix epoch.
    pub expires: u64,
    /// The invitation with which the node joined; `None` for the founder.
    pub invitation: Option<InvitationId>,
}

impl MemberCertificate {
    /// Seconds until it expires, at `unix` seconds since the epoch; 0 if it has expired.
    pub fn left(&self, unix: u64) -> u64 {
        self.expires.saturating_sub(unix)
    }

    /// The same membership for another lifetime from `unix` on.
    pub fn renewed(&self, unix: u64) -> Self {
        Self { expires: unix.saturating_add(MEMBERSHIP_SECONDS), ..self.clone() }
    }
}

impl Statement for MemberCertificate {
    const CONTEXT: &'static str = "rustbalance member certificate v1";
    const MAX_SIZE: usize = 768;
}

/// A statement of the authority: the key that opens the descriptors of the members' own onion
/// services. A new one is made after each revocation, so that a revoked node can no longer find the
/// others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoveryKey {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// Number of members that were revoked when it was made. A node that knows fewer revocations
    /// must not hand it on.
    pub generation: u32,
    /// The public half, an X25519 key.
    pub public: FixedBytes<32>,
}

impl Statement for DiscoveryKey {
    const CONTEXT: &'static str = "rustbalance discovery key v1";
    const MAX_SIZE: usize = 512;
}

impl DiscoveryKey {
    /// Orders keys by age: by generation, then by key for two that were made at the same time.
    pub fn rank(&self) -> (u32, [u8; 32]) {
        (self.generation, self.public.0)
    }
}

/// Both certificates of a member, as they are transmitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Signed by the identity key of the first service.
    pub authority: Unverified<AuthorityCertificate>,
    /// Signed by the authority key.
    pub member: Unverified<MemberCertificate>,
}

/// Reason why a chain was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The authority certificate is not signed by the key of the first service.
    #[error("the authority certificate is not signed by the cluster's key")]
    Authority(#[source] VerifyError),
    /// The member certificate is not signed by the authority.
    #[error("the member certificate is not signed by the cluster's authority")]
    Member(#[source] VerifyError),
    /// A certificate is for this other cluster.
    #[error("the certificate is for another cluster, {0}")]
    Cluster(ClusterId),
    /// The member certificate has expired; seconds since then.
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
    /// Checks both certificates against the key of the cluster, at `unix` seconds since the epoch.
    ///
    /// # Errors
    /// A signature is bad, a certificate is for another cluster, or the member certificate has
    /// expired.
    pub fn verify(self, cluster: ClusterId, unix: u64) -> Result<Member, ChainError> {
        self.verify_with(cluster, unix, &Strict)
    }

    /// As [`Chain::verify`], with another implementation of the signature check.
    ///
    /// # Errors
    /// As [`Chain::verify`].
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
    /// The member's node id.
    pub fn node(&self) -> NodeId {
        self.certificate.node
    }

    /// The member's role.
    pub fn role(&self) -> Role {
        self.certificate.role
    }

    /// The key that signs for the cluster.
    pub fn authority_id(&self) -> AuthorityId {
        self.authority.authority
    }

    /// Both certificates, for sending them to another node.
    pub fn chain(&self) -> Chain {
        Chain { authority: self.authority.unverified(), member: self.certificate.unverified() }
    }
}
