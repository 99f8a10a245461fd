//! Why records are refused, and how often each reason occurred.

use std::collections::BTreeMap;

use strum::{EnumDiscriminants, IntoStaticStr, VariantNames};

use crate::codec::DecodeError;
use crate::facts::FactError;
use crate::record::{ChainError, OpenError, OutOfBounds};
use crate::signed::VerifyError;

/// Why a record was not folded into the view. The view is unchanged, with one exception:
/// [`RecordRejection::Old`] marks the signer as possibly alive, which keeps its lease live a little
/// longer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, EnumDiscriminants)]
#[strum_discriminants(name(Reason), vis(), derive(IntoStaticStr, VariantNames), strum(serialize_all = "snake_case"))]
pub enum RecordRejection {
    /// The bytes are not a record of this kind.
    #[error("cannot be read")]
    Unreadable(#[from] DecodeError),
    /// It is signed by, or is about, another node than the one under whose name it was received.
    #[error("not signed by and about the node under whose name it was received")]
    Origin,
    /// The signature does not match.
    #[error("bad signature")]
    Signature,
    /// Its signer is not known yet; the record waits for the signer's card.
    #[error("its signer's card is not known yet")]
    Unknown,
    /// The card's certificates do not make its signer a member.
    #[error("its signer is not a member")]
    Chain(#[source] ChainError),
    /// The signer's member certificate has expired.
    #[error("the member certificate has expired")]
    Expired,
    /// The signer was revoked.
    #[error("its signer has been revoked")]
    Revoked,
    /// The signer joined with a token that other nodes had used up.
    #[error("its signer joined with a token that other nodes had used up")]
    Overdrawn,
    /// It is not signed by the authority that signed this node's own certificate.
    #[error("not signed by the cluster's authority")]
    Authority,
    /// It names another cluster.
    #[error("belongs to another cluster")]
    Cluster,
    /// A record of this kind with the same or a higher sequence number is known.
    #[error("sequence number {got} is not above {known}")]
    Stale {
        /// The highest sequence number known.
        known: u64,
        /// The record's sequence number.
        got: u64,
    },
    /// A sequence number, term or revision so high that only an attacker would sign it.
    #[error("a {0} too far ahead")]
    Jump(&'static str),
    /// The mesh address in the card is not the one derived from the node id.
    #[error("the mesh address in the card is not the node's")]
    Address,
    /// A lease or publication of a worker, which may not publish.
    #[error("its signer may not publish")]
    Role,
    /// A field outside its bounds.
    #[error("{0} outside its bounds")]
    Bounds(&'static str),
    /// An introduction point that is not fit for a descriptor, or cannot be its signer's.
    #[error("an introduction point that cannot be the node's")]
    Points,
    /// A bounded container is full; the text names its contents.
    #[error("too many {0}")]
    TooMany(&'static str),
    /// A heartbeat dated too long ago, of a node that has been silent: it may be a replay.
    #[error("a heartbeat dated too long ago")]
    Old,
    /// A record of this node itself, received from another node.
    #[error("a record of this node itself")]
    Own,
}

impl From<VerifyError> for RecordRejection {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Decode(error) => Self::Unreadable(error),
            VerifyError::Signer => Self::Origin,
            VerifyError::Signature => Self::Signature,
        }
    }
}

impl From<OpenError> for RecordRejection {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Verify(error) => error.into(),
            OpenError::Key => Self::Origin,
        }
    }
}

impl From<OutOfBounds> for RecordRejection {
    fn from(error: OutOfBounds) -> Self {
        match error {
            OutOfBounds::Field(what) => Self::Bounds(what),
            OutOfBounds::Jump(what) => Self::Jump(what),
            OutOfBounds::Address => Self::Address,
        }
    }
}

impl From<FactError> for RecordRejection {
    fn from(error: FactError) -> Self {
        match error {
            FactError::Bounds(error) => error.into(),
            FactError::Full(what) => Self::TooMany(what),
        }
    }
}

impl From<ChainError> for RecordRejection {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Expired(_) => Self::Expired,
            ChainError::Cluster(_) => Self::Cluster,
            other => Self::Chain(other),
        }
    }
}

impl RecordRejection {
    /// The name of the reason in counters, in snake case.
    pub fn name(&self) -> &'static str {
        Reason::from(self).into()
    }

    /// The names of all reasons.
    pub fn names() -> &'static [&'static str] {
        Reason::VARIANTS
    }
}

/// Records refused since the process started, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefusedRecords(BTreeMap<&'static str, u64>);

impl RefusedRecords {
    /// Counts one more refusal.
    pub(super) fn count(&mut self, rejection: &RecordRejection) {
        *self.0.entry(rejection.name()).or_default() += 1;
    }

    /// Each reason that occurred, by [`RecordRejection::name`], with its count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(name, count)| (*name, *count))
    }

    /// The count of the reason with this [`RecordRejection::name`]; 0 if it never occurred.
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }
}
