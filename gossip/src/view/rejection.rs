//! Why a record was not believed, and how often.

use std::collections::BTreeMap;

use strum::{EnumDiscriminants, IntoStaticStr, VariantNames};

use crate::codec::DecodeError;
use crate::facts::FactError;
use crate::record::{ChainError, OpenError, OutOfBounds};
use crate::signed::VerifyError;

/// Why a record was not folded into the view. Nothing in the view has changed then, but that a lease may count for longer
/// whose holder's beats are [`Rejection::Old`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, EnumDiscriminants)]
#[strum_discriminants(name(Reason), vis(), derive(IntoStaticStr, VariantNames), strum(serialize_all = "snake_case"))]
pub enum Rejection {
    /// It cannot be read.
    #[error("cannot be read")]
    Unreadable(#[from] DecodeError),
    /// Signed by, or speaking for, somebody else than the node under whose name it came.
    #[error("does not speak for the node under whose name it came")]
    Origin,
    /// The signature does not match.
    #[error("bad signature")]
    Signature,
    /// Nothing is known yet of its signer's membership; it waits for the signer's card.
    #[error("its signer's card is not known yet")]
    Unknown,
    /// The card's certificates do not make its signer a member.
    #[error("its signer is not a member")]
    Chain(#[source] ChainError),
    /// The member certificate is past its end.
    #[error("the member certificate has expired")]
    Expired,
    /// The signer was revoked.
    #[error("its signer has been revoked")]
    Revoked,
    /// The signer joined with a token that others had used up before it.
    #[error("its signer's token had been used up by others")]
    Overdrawn,
    /// Not of the one authority that signed this node's own certificate.
    #[error("not signed by the cluster's authority")]
    Authority,
    /// For another cluster.
    #[error("of another cluster")]
    Cluster,
    /// Older than what is known.
    #[error("sequence number {got} is not above {known}")]
    Stale {
        /// The highest known.
        known: u64,
        /// The record's.
        got: u64,
    },
    /// A sequence number, term or revision higher than anything but malice explains.
    #[error("a {0} too far ahead")]
    Jump(&'static str),
    /// The mesh address in the card is not the one derived from the node id.
    #[error("the mesh address in the card is not the node's")]
    Address,
    /// A lease or publication of a node that may not publish.
    #[error("its signer may not publish")]
    Role,
    /// A field outside its bounds.
    #[error("{0} outside its bounds")]
    Bounds(&'static str),
    /// An introduction point that is not fit for a descriptor, or is not its speaker's.
    #[error("an introduction point that cannot be the node's")]
    Points,
    /// The view holds as many nodes, invitations or revocations as it may.
    #[error("too many {0}")]
    TooMany(&'static str),
    /// A heartbeat from too long ago, of a node that is not known to live.
    #[error("a sign of life from too long ago")]
    Old,
    /// A record of this very node that came back from elsewhere.
    #[error("this node's own")]
    Own,
}

impl From<VerifyError> for Rejection {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Decode(error) => Self::Unreadable(error),
            VerifyError::Signer => Self::Origin,
            VerifyError::Signature => Self::Signature,
        }
    }
}

impl From<OpenError> for Rejection {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Verify(error) => error.into(),
            OpenError::Key => Self::Origin,
        }
    }
}

impl From<OutOfBounds> for Rejection {
    fn from(error: OutOfBounds) -> Self {
        match error {
            OutOfBounds::Field(what) => Self::Bounds(what),
            OutOfBounds::Jump(what) => Self::Jump(what),
            OutOfBounds::Address => Self::Address,
        }
    }
}

impl From<FactError> for Rejection {
    fn from(error: FactError) -> Self {
        match error {
            FactError::Bounds(error) => error.into(),
            FactError::Full(what) => Self::TooMany(what),
        }
    }
}

impl From<ChainError> for Rejection {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Expired(_) => Self::Expired,
            ChainError::Cluster(_) => Self::Cluster,
            other => Self::Chain(other),
        }
    }
}

impl Rejection {
    /// A short name to count under.
    pub fn name(&self) -> &'static str {
        Reason::from(self).into()
    }

    /// Every name there is.
    pub fn names() -> &'static [&'static str] {
        Reason::VARIANTS
    }
}

/// How often records were refused since start, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefusedRecords(BTreeMap<&'static str, u64>);

impl RefusedRecords {
    /// One more.
    pub(super) fn count(&mut self, rejection: &Rejection) {
        *self.0.entry(rejection.name()).or_default() += 1;
    }

    /// Every reason that occurred, by [`Rejection::name`].
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(name, count)| (*name, *count))
    }

    /// How often this one did.
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }
}
