//! Who is there? Both sides of the opening of a link, without IO.
//!
//! ```text
//! dialler                                   listener
//!    <------------ Challenge { versions, nonce }
//!    Proof { version, chain, proof } ---------->      proof: signed by the node key over
//!    <------------ Answer: accepted, or why not          cluster, nonce, dialled node, own id, purpose
//! ```
//!
//! The dialler knows whom it has reached: the onion address is the node id. The listener learns who dials from the
//! proof. It is good for one stream (the nonce is fresh) and for one listener (whom it was meant for is signed), so it
//! can neither be replayed nor passed on.

use std::collections::BTreeMap;

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::codec::{self, DecodeError};
use rustbalance_gossip::id::{AuthorityId, ClusterId, NodeId};
use rustbalance_gossip::record::{Chain, ChainError, Member, Revocation};
use rustbalance_gossip::signed::{Sign, Statement, Unverified, Verified};
use serde::{Deserialize, Serialize};

use crate::frame::MAX_UNPROVEN;

/// The oldest and the newest version of the link protocol that this build speaks.
pub const VERSIONS: (u16, u16) = (2, 2);

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// Gossip.
    Mesh,
    /// A joiner's frames, passed on unread to a publisher.
    CarryJoin,
}

/// The listener's first word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Challenge {
    versions: (u16, u16),
    nonce: FixedBytes<32>,
}

/// What the dialler signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LinkProof {
    cluster: ClusterId,
    nonce: FixedBytes<32>,
    dialled: NodeId,
    dialler: NodeId,
    purpose: Purpose,
    version: u16,
}

impl Statement for LinkProof {
    const CONTEXT: &'static str = "rustbalance link proof v1";
    const MAX_SIZE: usize = 768;
}

/// The dialler's answer to the challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Proof {
    version: u16,
    chain: Chain,
    proof: Unverified<LinkProof>,
}

/// The listener's last word before the link is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    Accepted,
    Refused(Refused),
}

/// A refusal as it travels. Whoever was evicted while it was away, or has lost the race for a token, meets closed doors
/// and would never hear why by gossip: so it is shown the authority's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
    /// With [`Refusal::Revoked`].
    pub revocation: Option<Box<Unverified<Revocation>>>,
}

impl From<Refusal> for Refused {
    fn from(why: Refusal) -> Self {
        Self { why, revocation: None }
    }
}

/// Why a listener does not open a link. A stranger learns no more than that it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No valid certificate of this cluster, or not the holder of its key.
    #[error("not a member of this cluster")]
    NotMember,
    /// Evicted, or its invitation was redeemed by others.
    #[error("the membership has been revoked; the node can join again with a new key and a new invitation")]
    Revoked,
    /// The proof was made for another node or another stream.
    #[error("the proof was made for another connection")]
    WrongNode,
    /// The certificate has ended, or the clocks differ.
    #[error("the member certificate has expired; if it has not, set the clocks right")]
    Expired,
    /// Too many links, or nobody to take the stream.
    #[error("busy, try later")]
    Busy,
    /// There is a link between the two already.
    #[error("there is a link already")]
    Duplicate,
    /// No common version.
    #[error("no common version of the link protocol; update the older node")]
    Version,
    /// Not what belongs here.
    #[error("malformed message")]
    Malformed,
}

impl Refusal {
    /// Its name in counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotMember => "link_not_member",
            Self::Revoked => "link_revoked",
            Self::WrongNode => "link_wrong_node",
            Self::Expired => "link_expired",
            Self::Busy => "link_busy",
            Self::Duplicate => "link_duplicate",
            Self::Version => "link_version",
            Self::Malformed => "link_malformed",
        }
    }
}

/// Why a dialler gave up. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The listener said no.
    #[error("{0} refused the link: {1}")]
    Refused(NodeId, Refusal),
    /// The listener said no, and has shown that the cluster's authority has put this node out.
    #[error("this node is no member of the cluster any more")]
    Revoked(Box<Verified<Revocation>>),
    /// No common version.
    #[error("{node} speaks versions {theirs:?} of the link protocol, this node {ours:?}: update the older one")]
    Version {
        /// Whom.
        node: NodeId,
        /// Its oldest and newest.
        theirs: (u16, u16),
        /// Ours.
        ours: (u16, u16),
    },
    /// What came is no part of this conversation.
    #[error("{0} does not answer as a node does")]
    Malformed(NodeId, #[source] DecodeError),
}

/// A peer that has proved itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    /// Who, with its certificates.
    pub member: Member,
    /// What for.
    pub purpose: Purpose,
}

/// The listener's side of one stream. Takes one proof.
pub struct Listener {
    me: NodeId,
    cluster: ClusterId,
    authority: AuthorityId,
    nonce: FixedBytes<32>,
}

impl Listener {
    /// Begins, as the node of this membership, with a nonce that was never used before; gives the
    /// challenge to be sent.
    pub fn new(membership: &Member, nonce: [u8; 32]) -> Result<(Self, Vec<u8>), DecodeError> {
        let nonce = FixedBytes(nonce);
        let challenge = codec::encode(&Challenge { versions: VERSIONS, nonce })?;
        let (me, authority) = (membership.node(), membership.authority_id());
        Ok((Self { me, cluster: membership.authority.cluster, authority, nonce }, challenge))
    }

    /// Judges the dialler's proof, at `unix` seconds since the epoch.
    pub fn proof(
        self,
        bytes: &[u8],
        revoked: &BTreeMap<NodeId, Verified<Revocation>>,
        unix: u64,
    ) -> Result<Proved, Refused> {
        let proof: Proof = codec::decode(bytes, MAX_UNPROVEN).map_err(|error| match error {
            DecodeError::Version(_) => Refusal::Version,
            _ => Refusal::Malformed,
        })?;
        if proof.version < VERSIONS.0 || proof.version > VERSIONS.1 {
            return Err(Refusal::Version.into());
        }
        let member = proof.chain.verify(self.cluster, unix).map_err(|error| match error {
            ChainError::Expired(_) => Refusal::Expired,
            _ => Refusal::NotMember,
        })?;
        // The master key may have certified another authority, of which no revocation is known
        // here.
        if member.authority_id() != self.authority {
            return Err(Refusal::NotMember.into());
        }
        let stated = proof.proof.verify(member.node().public_key()).map_err(|_| Refusal::NotMember)?;
        if let Some(revocation) = revoked.get(&member.node()) {
            return Err(Refused { why: Refusal::Revoked, revocation: Some(Box::new(revocation.unverified())) });
        }
        let meant = stated.cluster == self.cluster && stated.dialled == self.me && stated.nonce == self.nonce;
        let honest = stated.dialler == member.node() && stated.version == proof.version;
        // A node does not dial itself: what looks like it is a proof sent back.
        if !meant || !honest || member.node() == self.me {
            return Err(Refusal::WrongNode.into());
        }
        Ok(Proved { member, purpose: stated.purpose })
    }

    /// The last word, to be sent.
    pub fn answer(refusal: Option<Refused>) -> Result<Vec<u8>, DecodeError> {
        codec::encode(&refusal.map_or(Answer::Accepted, Answer::Refused))
    }
}

/// The dialler's side of one stream.
pub struct Dialler<'a> {
    /// Its certificates.
    pub membership: &'a Member,
    /// Its key.
    pub key: &'a (dyn Sign + Sync),
    /// The cluster.
    pub cluster: ClusterId,
    /// Whom it has dialled.
    pub dialled: NodeId,
    /// What for.
    pub purpose: Purpose,
}

impl Dialler<'_> {
    /// Answers the challenge; gives the proof to be sent.
    pub fn challenge(&self, bytes: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        let malformed = |error| HandshakeError::Malformed(self.dialled, error);
        let challenge: Challenge = codec::decode(bytes, MAX_UNPROVEN).map_err(malformed)?;
        let (oldest, newest) = challenge.versions;
        let version = newest.min(VERSIONS.1);
        if version < oldest || version < VERSIONS.0 {
            return Err(HandshakeError::Version { node: self.dialled, theirs: challenge.versions, ours: VERSIONS });
        }
        let statement = LinkProof {
            cluster: self.cluster,
            nonce: challenge.nonce,
            dialled: self.dialled,
            dialler: self.membership.node(),
            purpose: self.purpose,
            version,
        };
        let proof = Verified::sign(statement, self.key).map_err(malformed)?.unverified();
        codec::encode(&Proof { version, chain: self.membership.chain(), proof }).map_err(malformed)
    }

    /// Reads the last word.
    pub fn answer(&self, bytes: &[u8]) -> Result<(), HandshakeError> {
        match codec::decode(bytes, MAX_UNPROVEN) {
            Ok(Answer::Accepted) => Ok(()),
            Ok(Answer::Refused(Refused { why, revocation })) => Err(revocation
                .and_then(|it| self.concerned(*it))
                .map_or(HandshakeError::Refused(self.dialled, why), |it| HandshakeError::Revoked(Box::new(it)))),
            Err(error) => Err(HandshakeError::Malformed(self.dialled, error)),
        }
    }

    /// The revocation, if it is this cluster's and this node's.
    fn concerned(&self, revocation: Unverified<Revocation>) -> Option<Verified<Revocation>> {
        let revocation = revocation.verify(self.membership.authority_id().public_key()).ok()?;
        let ours = revocation.cluster == self.cluster && revocation.node == self.membership.node();
        ours.then_some(revocation)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::World;
    use super::super::tests::{NOW, revocation};
    use super::*;
    use crate::keys::NodeSecret;
    use proptest::prelude::*;

    const NONCE: [u8; 32] = [5; 32];

    fn none() -> BTreeMap<NodeId, Verified<Revocation>> {
        BTreeMap::new()
    }

    /// The proof that `key` makes with `membership` for `dialled`, and what `listener` says to it.
    fn judge(
        world: &World,
        membership: &Member,
        key: &NodeSecret,
        dialled: NodeId,
        at: u64,
    ) -> Result<Proved, Refusal> {
        let (listener, challenge) = Listener::new(&world.member(0), NONCE).unwrap();
        let dialler = Dialler { membership, key, cluster: world.cluster(), dialled, purpose: Purpose::Mesh };
        listener.proof(&dialler.challenge(&challenge).unwrap(), &none(), at).map_err(|refused| refused.why)
    }

    #[test]
    fn a_member_is_let_in_for_what_it_wants() {
        let world = World::new();
        for purpose in [Purpose::Mesh, Purpose::CarryJoin] {
            let (listener, challenge) = Listener::new(&world.member(0), NONCE).unwrap();
            let (membership, key) = (world.member(1), world.key(1));
            let dialler = Dialler {
                membership: &membership,
                key: &key,
                cluster: world.cluster(),
                dialled: world.node(0),
                purpose,
            };
            let proof = dialler.challenge(&challenge).unwrap();
            assert!(proof.len() < MAX_UNPROVEN / 2, "{} bytes", proof.len());
            let proved = listener.proof(&proof, &none(), NOW).unwrap();
            assert_eq!((proved.member.node(), proved.purpose), (world.node(1), purpose));
            assert_eq!(dialler.answer(&Listener::answer(None).unwrap()), Ok(()));
            let no = Listener::answer(Some(Refusal::Busy.into())).unwrap();
            assert_eq!(dialler.answer(&no), Err(HandshakeError::Refused(world.node(0), Refusal::Busy)));
            assert!(matches!(dialler.answer(b"\x01nonsense"), Err(HandshakeError::Malformed(..))));
        }
    }

    #[test]
    fn strangers_are_refused() {
        let (world, other) = (World::new(), World::new());
        let here = world.node(0);
        // A member of another cluster.
        assert_eq!(judge(&world, &other.member(1), &other.key(1), here, NOW), Err(Refusal::NotMember));
        // A member's certificates, which are public, with a key of one's own.
        assert_eq!(judge(&world, &world.member(1), &world.key(2), here, NOW), Err(Refusal::NotMember));
        // A certificate signed by somebody who is no authority.
        let forged = Member { certificate: other.member_of(1, world.cluster()).certificate, ..world.member(1) };
        assert_eq!(judge(&world, &forged, &other.key(1), here, NOW), Err(Refusal::NotMember));
    }

    #[test]
    fn the_revoked_and_the_expired_are_refused() {
        let world = World::new();
        let (listener, challenge) = Listener::new(&world.member(0), NONCE).unwrap();
        let (membership, key) = (world.member(1), world.key(1));
        let dialler = Dialler {
            membership: &membership,
            key: &key,
            cluster: world.cluster(),
            dialled: world.node(0),
            purpose: Purpose::Mesh,
        };
        let proof = dialler.challenge(&challenge).unwrap();
        let revoked = BTreeMap::from([(world.node(1), revocation(&world, 1))]);
        let refused = listener.proof(&proof, &revoked, NOW).unwrap_err();
        assert_eq!(refused.why, Refusal::Revoked);
        // It is shown the authority's word.
        let answer = |refused| dialler.answer(&Listener::answer(Some(refused)).unwrap()).unwrap_err();
        assert_eq!(answer(refused), HandshakeError::Revoked(Box::new(revocation(&world, 1))));
        // Another's revocation, another cluster's, or a forged one, puts nobody out.
        let other = World::new();
        for word in [revocation(&world, 2), revocation(&other, 1)] {
            let refused = Refused { why: Refusal::Revoked, revocation: Some(Box::new(word.unverified())) };
            assert_eq!(answer(refused), HandshakeError::Refused(world.node(0), Refusal::Revoked));
        }
        let end = membership.certificate.expires;
        assert_eq!(judge(&world, &membership, &key, world.node(0), end + 1), Err(Refusal::Expired));
        assert!(judge(&world, &membership, &key, world.node(0), end).is_ok());
    }

    #[test]
    fn a_proof_is_good_for_one_stream_to_one_node() {
        let world = World::new();
        // Made for node 2, passed on by it to node 0.
        assert_eq!(judge(&world, &world.member(1), &world.key(1), world.node(2), NOW), Err(Refusal::WrongNode));
        // Sent back to the one who made it.
        assert_eq!(judge(&world, &world.member(0), &world.key(0), world.node(0), NOW), Err(Refusal::WrongNode));
        // Replayed on another stream.
        let (membership, key) = (world.member(1), world.key(1));
        let dialler = Dialler {
            membership: &membership,
            key: &key,
            cluster: world.cluster(),
            dialled: world.node(0),
            purpose: Purpose::Mesh,
        };
        let (first, challenge) = Listener::new(&world.member(0), NONCE).unwrap();
        let proof = dialler.challenge(&challenge).unwrap();
        assert!(first.proof(&proof, &none(), NOW).is_ok());
        let (second, _) = Listener::new(&world.member(0), [6; 32]).unwrap();
        assert_eq!(second.proof(&proof, &none(), NOW), Err(Refusal::WrongNode.into()));
    }

    #[test]
    fn versions_must_meet() {
        let world = World::new();
        let (membership, key) = (world.member(1), world.key(1));
        let dialler = Dialler {
            membership: &membership,
            key: &key,
            cluster: world.cluster(),
            dialled: world.node(0),
            purpose: Purpose::Mesh,
        };
        let challenge = |versions| codec::encode(&Challenge { versions, nonce: FixedBytes(NONCE) }).unwrap();
        // A newer listener that still speaks ours, and two that do not.
        assert!(dialler.challenge(&challenge((VERSIONS.0, VERSIONS.1 + 4))).is_ok());
        for theirs in [(VERSIONS.1 + 1, VERSIONS.1 + 4), (0, 0)] {
            let error = dialler.challenge(&challenge(theirs)).unwrap_err();
            assert_eq!(error, HandshakeError::Version { node: world.node(0), theirs, ours: VERSIONS });
        }
        let (listener, ours) = Listener::new(&world.member(0), NONCE).unwrap();
        let mut proof: Proof = codec::decode(&dialler.challenge(&ours).unwrap(), MAX_UNPROVEN).unwrap();
        proof.version = VERSIONS.1 + 1;
        assert_eq!(listener.proof(&codec::encode(&proof).unwrap(), &none(), NOW), Err(Refusal::Version.into()));
    }

    #[test]
    fn nonsense_is_called_that() {
        let world = World::new();
        let listener = || Listener::new(&world.member(0), NONCE).unwrap().0;
        assert_eq!(listener().proof(b"", &none(), NOW), Err(Refusal::Malformed.into()));
        assert_eq!(listener().proof(b"\x02later", &none(), NOW), Err(Refusal::Version.into()));
        assert_eq!(listener().proof(&[1; MAX_UNPROVEN + 1], &none(), NOW), Err(Refusal::Malformed.into()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let world = World::new();
            let (membership, key) = (world.member(1), world.key(1));
            let dialler = Dialler { membership: &membership, key: &key, cluster: world.cluster(), dialled: world.node(0), purpose: Purpose::Mesh };
            prop_assert!(Listener::new(&world.member(0), NONCE).unwrap().0.proof(&bytes, &none(), NOW).is_err());
            prop_assert!(dialler.challenge(&bytes).is_err());
            prop_assert!(dialler.answer(&bytes).is_err());
        }
    }
}
