//! Who is there? Both sides of the opening of a link, without IO.
//!
//! ```text
//! dialler                                   listener
//!    <------------ Challenge { versions, nonce }
//!    Proof { version, chain, proof } ---------->      both proofs: a Session, signed by the node key,
//!    <-- Accepted { chain, proof }, or Refused        each under the context of its role
//! ```
//!
//! Both sides prove that they are members and whom they mean, whatever the route: neither an onion
//! address nor a tunnel's key stands for a node. What they sign, the [`Session`], names the route,
//! both nodes and nonces, the purpose and the versions. So a proof is good for one stream, one
//! direction and one peer: it can be neither replayed, nor reflected, nor passed on, nor moved to
//! another route. The dialler proves itself first, so that a stranger learns nothing of the listener
//! but its versions.

use std::collections::BTreeMap;

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::codec::{self, DecodeError};
use rustbalance_gossip::id::{AuthorityId, ClusterId, NodeId};
use rustbalance_gossip::record::{Chain, ChainError, Member, Revocation};
use rustbalance_gossip::signed::{Sign, Statement, Unverified, Verified};
use serde::{Deserialize, Serialize};

use super::{ChannelBinding, RouteKind};
use crate::counters::Counter;
use crate::frame::MAX_UNPROVEN;

/// The oldest and the newest version of the link protocol that this build speaks.
pub const VERSIONS: (u16, u16) = (3, 3);

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// Gossip.
    Mesh,
    /// A joiner's frames, passed on unread to a publisher.
    CarryJoin,
}

/// The listener's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Challenge {
    versions: (u16, u16),
    nonce: FixedBytes<32>,
}

/// What both sides sign: all that makes this stream this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    cluster: ClusterId,
    /// The range that the listener has offered, as the dialler has read it: in the middle, it
    /// cannot be narrowed.
    versions: (u16, u16),
    /// The one that the dialler has chosen.
    version: u16,
    route: RouteKind,
    /// The [`ChannelBinding`].
    channel: FixedBytes<32>,
    dialler: NodeId,
    listener: NodeId,
    dialler_nonce: FixedBytes<32>,
    listener_nonce: FixedBytes<32>,
    purpose: Purpose,
}

/// The session, signed by the dialler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct DiallerProof(Session);

impl Statement for DiallerProof {
    const CONTEXT: &'static str = "rustbalance link dialler v1";
    const MAX_SIZE: usize = 768;
}

/// The session, signed by the listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct ListenerProof(Session);

impl Statement for ListenerProof {
    const CONTEXT: &'static str = "rustbalance link listener v1";
    const MAX_SIZE: usize = 768;
}

/// The dialler's answer to the challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Proof {
    version: u16,
    chain: Chain,
    proof: Unverified<DiallerProof>,
}

/// The listener's last message before the link is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    Accepted { chain: Box<Chain>, proof: Unverified<ListenerProof> },
    Refused(Refused),
}

/// A refusal as it travels. A node that was evicted while it was away, or has lost the race for a token, is let in nowhere
/// and would never hear why by gossip: so it is shown the authority's revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
    /// With [`Refusal::Revoked`].
    pub revocation: Option<Box<Unverified<Revocation>>>,
}

impl Refused {
    /// The listener's last message, to be sent.
    ///
    /// # Errors
    /// None in practice: it is of a fixed form.
    pub fn answer(&self) -> Result<Vec<u8>, DecodeError> {
        codec::encode(&Answer::Refused(self.clone()))
    }
}

impl From<Refusal> for Refused {
    fn from(why: Refusal) -> Self {
        Self { why, revocation: None }
    }
}

/// Why a side does not open a link. A stranger learns no more than that it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No valid certificate of this cluster, or not the holder of its key.
    #[error("not a member of this cluster")]
    NotMember,
    /// Evicted, or its invitation was redeemed by others.
    #[error("the membership has been revoked; the node can join again with a new key and a new invitation")]
    Revoked,
    /// The proof was made for another node, stream or route.
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
    /// Where it is counted.
    pub fn counter(self) -> Counter {
        match self {
            Self::NotMember => Counter::LinkNotMember,
            Self::Revoked => Counter::LinkRevoked,
            Self::WrongNode => Counter::LinkWrongNode,
            Self::Expired => Counter::LinkExpired,
            Self::Busy => Counter::LinkBusy,
            Self::Duplicate => Counter::LinkDuplicate,
            Self::Version => Counter::LinkVersion,
            Self::Malformed => Counter::LinkMalformed,
        }
    }
}

impl From<ChainError> for Refusal {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Expired(_) => Self::Expired,
            _ => Self::NotMember,
        }
    }
}

/// Why a dialler gave up. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The listener said no.
    #[error("{0} refused the link: {1}")]
    Refused(NodeId, Refusal),
    /// The listener said no, and has shown that the cluster's authority has revoked this node.
    #[error("this node is no member of the cluster any more")]
    Revoked(Box<Verified<Revocation>>),
    /// What answers is not the node that was dialled, or no member any more.
    #[error("what answers as {0} has not proved it: {1}")]
    Unproven(NodeId, Refusal),
    /// No common version.
    #[error("{node} speaks versions {theirs:?} of the link protocol, this node {ours:?}: update the older one")]
    Version {
        /// The node that was dialled.
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

/// What a side of the handshake knows and has before it begins.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    /// Its certificates.
    pub membership: &'a Member,
    /// Its key.
    pub key: &'a (dyn Sign + Sync),
    /// The route of the stream.
    pub route: RouteKind,
    /// What binds the proofs to the stream.
    pub binding: ChannelBinding,
    /// 32 random bytes that were never used before.
    pub nonce: [u8; 32],
}

impl Own<'_> {
    fn node(&self) -> NodeId {
        self.membership.node()
    }

    fn cluster(&self) -> ClusterId {
        self.membership.authority.cluster
    }

    /// Checks the other side's certificates, at `unix` seconds since the epoch.
    fn member(&self, chain: Chain, unix: u64) -> Result<Member, Refusal> {
        let member = chain.verify(self.cluster(), unix)?;
        // The master key may have certified another authority, of which no revocation is known
        // here.
        let known: AuthorityId = self.membership.authority_id();
        if member.authority_id() == known { Ok(member) } else { Err(Refusal::NotMember) }
    }
}

/// A peer that has proved itself to this listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    /// The peer, with its certificates.
    pub member: Member,
    /// What it wants.
    pub purpose: Purpose,
    session: Session,
}

/// The listener's side of one stream. Takes one proof.
pub struct Listener<'a> {
    own: Own<'a>,
}

impl<'a> Listener<'a> {
    /// Begins; gives the challenge to be sent.
    ///
    /// # Errors
    /// None in practice: the challenge is of a fixed form.
    pub fn new(own: Own<'a>) -> Result<(Self, Vec<u8>), DecodeError> {
        let challenge = codec::encode(&Challenge { versions: VERSIONS, nonce: FixedBytes(own.nonce) })?;
        Ok((Self { own }, challenge))
    }

    /// Judges the dialler's proof, at `unix` seconds since the epoch.
    ///
    /// # Errors
    /// Why the dialler is refused, to be sent ([`Refused::answer`]).
    pub fn proof(
        &self,
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
        let member = self.own.member(proof.chain, unix)?;
        let stated = proof.proof.verify(member.node().public_key()).map_err(|_| Refusal::NotMember)?;
        if let Some(revocation) = revoked.get(&member.node()) {
            return Err(Refused { why: Refusal::Revoked, revocation: Some(Box::new(revocation.unverified())) });
        }
        let session = Session {
            cluster: self.own.cluster(),
            versions: VERSIONS,
            version: proof.version,
            route: self.own.route,
            channel: FixedBytes(self.own.binding.0),
            dialler: member.node(),
            listener: self.own.node(),
            dialler_nonce: stated.0.dialler_nonce,
            listener_nonce: FixedBytes(self.own.nonce),
            purpose: stated.0.purpose,
        };
        // A node does not dial itself: what looks like it is a proof sent back.
        if stated.0 != session || session.dialler == session.listener {
            return Err(Refusal::WrongNode.into());
        }
        Ok(Proved { member, purpose: session.purpose, session })
    }

    /// Proves this side to a dialler that has proved itself; gives the last message, to be sent.
    ///
    /// # Errors
    /// None in practice: the proof is of a fixed form.
    pub fn accept(&self, proved: &Proved) -> Result<Vec<u8>, DecodeError> {
        let proof = Verified::sign(ListenerProof(proved.session.clone()), self.own.key)?.unverified();
        codec::encode(&Answer::Accepted { chain: Box::new(self.own.membership.chain()), proof })
    }
}

/// The dialler's side of one stream, before the challenge.
pub struct Dialler<'a> {
    /// This side.
    pub own: Own<'a>,
    /// The node it has dialled.
    pub dialled: NodeId,
    /// What for.
    pub purpose: Purpose,
}

impl<'a> Dialler<'a> {
    /// Answers the challenge; gives the proof to be sent, and what waits for the answer.
    ///
    /// # Errors
    /// [`HandshakeError::Malformed`] or [`HandshakeError::Version`].
    pub fn challenge(&self, bytes: &[u8]) -> Result<(Vec<u8>, Claimed<'a>), HandshakeError> {
        let malformed = |error| HandshakeError::Malformed(self.dialled, error);
        let challenge: Challenge = codec::decode(bytes, MAX_UNPROVEN).map_err(malformed)?;
        let (oldest, newest) = challenge.versions;
        let version = newest.min(VERSIONS.1);
        if version < oldest || version < VERSIONS.0 {
            return Err(HandshakeError::Version { node: self.dialled, theirs: challenge.versions, ours: VERSIONS });
        }
        let session = Session {
            cluster: self.own.cluster(),
            versions: challenge.versions,
            version,
            route: self.own.route,
            channel: FixedBytes(self.own.binding.0),
            dialler: self.own.node(),
            listener: self.dialled,
            dialler_nonce: FixedBytes(self.own.nonce),
            listener_nonce: challenge.nonce,
            purpose: self.purpose,
        };
        let signed = Verified::sign(DiallerProof(session.clone()), self.own.key).map_err(malformed)?;
        let proof = Proof { version, chain: self.own.membership.chain(), proof: signed.unverified() };
        Ok((codec::encode(&proof).map_err(malformed)?, Claimed { own: self.own, session }))
    }
}

/// The dialler's side of one stream, once it has proved itself. Takes one answer.
pub struct Claimed<'a> {
    own: Own<'a>,
    session: Session,
}

impl Claimed<'_> {
    /// Reads the last message, at `unix` seconds since the epoch: the listener as it has proved
    /// itself.
    ///
    /// # Errors
    /// All but [`HandshakeError::Version`].
    pub fn answer(
        &self,
        bytes: &[u8],
        revoked: &BTreeMap<NodeId, Verified<Revocation>>,
        unix: u64,
    ) -> Result<Member, HandshakeError> {
        let listener = self.session.listener;
        match codec::decode(bytes, MAX_UNPROVEN) {
            Ok(Answer::Accepted { chain, proof }) => {
                let member = self.listener(*chain, proof, unix);
                let member = member.map_err(|why| HandshakeError::Unproven(listener, why))?;
                match revoked.contains_key(&listener) {
                    true => Err(HandshakeError::Unproven(listener, Refusal::Revoked)),
                    false => Ok(member),
                }
            }
            Ok(Answer::Refused(Refused { why, revocation })) => Err(revocation
                .and_then(|it| self.concerned(*it))
                .map_or(HandshakeError::Refused(listener, why), |it| HandshakeError::Revoked(Box::new(it)))),
            Err(error) => Err(HandshakeError::Malformed(listener, error)),
        }
    }

    fn listener(&self, chain: Chain, proof: Unverified<ListenerProof>, unix: u64) -> Result<Member, Refusal> {
        let member = self.own.member(chain, unix)?;
        let stated = proof.verify(member.node().public_key()).map_err(|_| Refusal::NotMember)?;
        // The listener of the session is the node that was dialled.
        let right = stated.0 == self.session && member.node() == self.session.listener;
        if right { Ok(member) } else { Err(Refusal::WrongNode) }
    }

    /// The revocation, if it is this cluster's and this node's.
    fn concerned(&self, revocation: Unverified<Revocation>) -> Option<Verified<Revocation>> {
        let revocation = revocation.verify(self.own.membership.authority_id().public_key()).ok()?;
        let ours = revocation.cluster == self.own.cluster() && revocation.node == self.own.node();
        ours.then_some(revocation)
    }
}

#[cfg(test)]
mod tests;
