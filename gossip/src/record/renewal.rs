//! A renewal: a member's certificate with a later end.

use serde::{Deserialize, Serialize};

use super::own::within;
use super::{AuthorityCertificate, Chain, Fact, MemberCertificate, OutOfBounds, Role};
use crate::bytes::FixedBytes;
use crate::codec::DecodeError;
use crate::id::{ClusterId, InvitationId, NodeId};
use crate::signed::{Statement, Unverified, Verified};
use crate::time::CALENDAR_END;

/// A statement of the authority that carries a member's renewed [`MemberCertificate`]: its fields
/// and its signature. So the certificate reaches its node, and all others, like any fact.
///
/// The whole certificate would repeat three keys. A publisher announces one renewal for each
/// member, and a thousand of them must fit into what gossip keeps of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The member.
    pub node: NodeId,
    /// As in the certificate, [`MemberCertificate::role`].
    pub role: Role,
    /// As in the certificate, [`MemberCertificate::issued`].
    pub issued: u64,
    /// As in the certificate, [`MemberCertificate::expires`].
    pub expires: u64,
    /// As in the certificate, [`MemberCertificate::invitation`].
    pub invitation: Option<InvitationId>,
    /// The authority's signature of the certificate. Signs less than a whole renewal, so it is
    /// checked when the certificate is assembled again.
    pub signature: FixedBytes<64>,
}

impl Statement for Renewal {
    const CONTEXT: &'static str = "rustbalance record renewal";
    const MAX_SIZE: usize = 1024;
}

impl Renewal {
    /// The renewal that carries this certificate.
    pub fn of(certificate: &Verified<MemberCertificate>) -> Self {
        let MemberCertificate { cluster, node, role, issued, expires, invitation } = **certificate;
        let signature = FixedBytes(*certificate.signature());
        Self { cluster, node, role, issued, expires, invitation, signature }
    }

    /// The certificates of the member, if its authority is this one. The signature of the second
    /// has not been checked.
    ///
    /// # Errors
    /// None in practice: the fields were encoded before.
    pub fn chain(&self, authority: &Verified<AuthorityCertificate>) -> Result<Chain, DecodeError> {
        let Self { cluster, node, role, issued, expires, invitation, signature } = *self;
        let certificate = MemberCertificate { cluster, node, role, issued, expires, invitation };
        let signer = authority.authority;
        let bytes = Unverified::assemble(&certificate, signer.public_key(), &signature.0)?;
        Ok(Chain { authority: authority.unverified(), member: Unverified::from_bytes(&bytes)? })
    }

    fn rank(&self) -> (u64, u64, Role, Option<InvitationId>, [u8; 64]) {
        (self.expires, self.issued, self.role, self.invitation, self.signature.0)
    }
}

impl Fact for Renewal {
    type Id = NodeId;
    const PLURAL: &'static str = "renewals";
    /// One for each member of the largest cluster ([`crate::view::MAX_NODES`]).
    const MAX_KEPT: usize = 1024;
    /// The publishers are enough: the certificate also reaches the other nodes with the node's
    /// card.
    const BY_WORKERS: bool = false;

    fn cluster(&self) -> ClusterId {
        self.cluster
    }

    fn id(&self) -> NodeId {
        self.node
    }

    fn check_bounds(&self) -> Result<(), OutOfBounds> {
        within(self.issued <= self.expires && self.expires < CALENDAR_END, "end of a certificate")
    }

    /// Keeps the certificate with the latest end.
    fn merge(&mut self, other: &Self) {
        if other.rank() > self.rank() {
            *self = other.clone();
        }
    }

    fn kept_until(&self) -> u64 {
        self.expires
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{AnyFact, RecordKind, UnknownFact};
    use crate::sim::{FOUNDED, Founder};

    #[test]
    fn the_certificate_is_restored_from_its_renewal_and_its_signature_holds() {
        let founder = Founder::new(1);
        let node = founder.admit(1, Role::Worker, FOUNDED, Some(founder.invitation(1, 1, &[]).token));
        let renewal = Renewal::of(&node.member.certificate);
        let chain = renewal.chain(&node.member.authority).unwrap();
        assert_eq!(chain, node.member.chain());
        assert_eq!(chain.verify(node.cluster(), FOUNDED).unwrap(), node.member);
        let longer = Renewal { expires: renewal.expires + 1, ..renewal };
        assert!(longer.chain(&node.member.authority).unwrap().verify(node.cluster(), FOUNDED).is_err());
    }

    #[test]
    fn the_renewal_with_the_latest_end_counts_in_any_order() {
        let founder = Founder::new(1);
        let node = founder.node(1, Role::Worker);
        let [early, late] = [1, 2].map(|day| (*founder.renew(&node, FOUNDED + day * 86_400)).clone());
        let merged = [(&early, &late), (&late, &early)].map(|(one, other)| {
            let mut merged = one.clone();
            merged.merge(other);
            merged
        });
        assert_eq!(merged, [late.clone(), late.clone()]);
        let bad = [Renewal { expires: late.issued - 1, ..late.clone() }, Renewal { expires: CALENDAR_END, ..late }];
        assert!(bad.iter().all(|renewal| renewal.check_bounds().is_err()));
    }

    #[test]
    fn a_node_of_an_earlier_version_keeps_the_latest_renewal_without_reading_it() {
        let founder = Founder::new(1);
        let node = founder.node(1, Role::Worker);
        let authority = node.member.authority_id();
        let Some(RecordKind::Unknown(key)) = RecordKind::from_key("later/x") else { panic!("a known kind") };
        let unread = |day: u64| {
            let renewal = founder.renew(&node, FOUNDED + day * 86_400);
            let bytes = founder.sign_unknown_kind("rustbalance record later", renewal.encoded().to_vec());
            UnknownFact::read(key, &bytes, authority.public_key(), &crate::signed::Strict).unwrap()
        };
        assert!(unread(300).rank() > unread(30).rank() && unread(30).rank() > unread(1).rank());
        let fact = AnyFact::from(founder.renew(&node, FOUNDED));
        assert_eq!(fact.kind().key(), format!("renewal/{}", node.node()));
    }
}
