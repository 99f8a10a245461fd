//! The signed facts that nodes gossip.
//!
//! Each node speaks only for itself: its card, heartbeat, intro points, lease and publication are signed by its own key
//! and carry a sequence number that rises over restarts. Facts about others (invitations, revocations) are signed by
//! the cluster's authority key, so that any node may pass them on.

use crate::id::{InvitationId, NodeId, ServiceId};

mod certificate;
mod invitation;
mod node;
mod service;

pub use certificate::{
    AuthorityCertificate, Chain, ChainError, DiscoveryKey, Member, MemberCertificate, Revocation, Role,
};
pub use invitation::Invitation;
pub use node::{
    Fitness, Heartbeat, IntroPoint, IntroPoints, Lease, MAX_INTRO_POINTS, MAX_SERVICES, MAX_SPECIFIED, NodeCard,
    PeriodId, Phase, PointNonce, Publication, PublishedPeriod, RelayId, ServedPoint,
};
pub use service::{Service, Setting};

/// The largest record of any kind, in bytes: the largest `Statement::MAX_SIZE`.
pub const MAX_RECORD: usize = 16_384;

/// The kinds of record, each under a key of its own in a node's gossiped state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// [`NodeCard`].
    Card,
    /// [`Heartbeat`].
    Heartbeat,
    /// The [`IntroPoints`] of one service.
    IntroPoints(ServiceId),
    /// [`Lease`].
    Lease,
    /// The [`Publication`] of one service.
    Publication(ServiceId),
    /// An [`Invitation`], one key each.
    Invitation(InvitationId),
    /// A [`Revocation`], one key each.
    Revocation(NodeId),
}

impl RecordKind {
    /// The key under which the record stands in a node's gossiped state.
    pub fn key(&self) -> String {
        match self {
            Self::Card => "card".into(),
            Self::Heartbeat => "beat".into(),
            Self::IntroPoints(service) => format!("ipts/{service}"),
            Self::Lease => "lease".into(),
            Self::Publication(service) => format!("pub/{service}"),
            Self::Invitation(id) => format!("inv/{id}"),
            Self::Revocation(node) => format!("rev/{node}"),
        }
    }

    /// Whether records of this kind are signed by the authority, so that any node may hand them on.
    pub fn is_fact(&self) -> bool {
        matches!(self, Self::Invitation(_) | Self::Revocation(_))
    }

    /// The kind a key names; `None` for a key of a newer version, which is passed on but not read. Each kind has one key: who
    /// writes an address in capitals names nothing, or one record could stand under as many keys as that has letters.
    pub fn from_key(key: &str) -> Option<Self> {
        Self::named(key).filter(|kind| kind.key() == key)
    }

    fn named(key: &str) -> Option<Self> {
        Some(match key {
            "card" => Self::Card,
            "beat" => Self::Heartbeat,
            "lease" => Self::Lease,
            other => match other.split_once('/')? {
                ("ipts", service) => Self::IntroPoints(service.parse().ok()?),
                ("pub", service) => Self::Publication(service.parse().ok()?),
                ("inv", hex) => {
                    let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok()?;
                    Self::Invitation(InvitationId::from_public_key(bytes.try_into().ok()?))
                }
                ("rev", node) => Self::Revocation(node.parse().ok()?),
                _ => return None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_one_key() {
        let (token, node) = (InvitationId::from_public_key([7; 32]), NodeId::from_public_key([8; 32]));
        let service = ServiceId::from_public_key([9; 32]);
        for kind in [
            RecordKind::Card,
            RecordKind::Heartbeat,
            RecordKind::Lease,
            RecordKind::IntroPoints(service),
            RecordKind::Publication(service),
            RecordKind::Invitation(token),
            RecordKind::Revocation(node),
        ] {
            assert_eq!(RecordKind::from_key(&kind.key()), Some(kind));
        }
        let key = RecordKind::Revocation(node).key();
        for other in [key.replace(".onion", ""), key.to_uppercase().replace("REV/", "rev/"), key + " "] {
            assert_eq!(RecordKind::from_key(&other), None, "{other}");
        }
    }
}
