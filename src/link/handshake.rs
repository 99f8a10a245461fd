//! The handshake that opens a link, both sides, without IO.
//!
//! ```text
//! dialler                                   listener
//!    <------------ Challenge { versions, nonce }
//!    Proof { version, chain, proof } ---------->      both proofs: a Session signed by the node
//!    <-- Accepted { chain, proof }, or Refused        key, each under the context of its role
//! ```
//!
//! Both sides prove that they are members and name the peer they mean, on every route: neither an
//! onion address nor a tunnel's key stands for a node. They sign the [`Session`], which names the
//! route, both nodes, both nonces, the purpose and the versions. So a proof is good for one stream,
//! one direction and one peer: it cannot be replayed, reflected, relayed or moved to another route.
//! The dialler proves itself first, so that a stranger learns nothing of the listener but its
//! versions.

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

/// The use of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// Carries the messages of the mesh.
    Mesh,
    /// Carries a joiner's frames, unread, to a publisher.
    CarryJoin,
}

/// The listener's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Challenge {
    versions: (u16, u16),
    nonce: FixedBytes<32>,
}

/// The statement that both sides sign: everything that identifies this stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    cluster: ClusterId,
    /// The versions offered by the listener, as the dialler read them. The signature prevents a man
    /// in the middle from narrowing the range.
    versions: (u16, u16),
    /// The version that the dialler has chosen.
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

/// A refusal on the wire. A node that was evicted while it was away, or lost the race for a token,
/// gets no link, so gossip cannot tell it why: the refusal shows it the authority's revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The reason.
    pub why: LinkRefusal,
    /// Present with [`LinkRefusal::Revoked`].
    pub revocation: Option<Box<Unverified<Revocation>>>,
}

impl Refused {
    /// The listener's last message, encoded.
    ///
    /// # Errors
    /// Never in practice: a message of this fixed form can be encoded.
    pub fn answer(&self) -> Result<Vec<u8>, DecodeError> {
        codec::encode(&Answer::Refused(self.clone()))
    }
}

impl From<LinkRefusal> for Refused {
    fn from(why: LinkRefusal) -> Self {
        Self { why, revocation: None }
    }
}

/// Why a side does not open a link. A stranger learns only that it is not a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum LinkRefusal {
    /// No valid certificate of this cluster, or the peer does not hold its key.
    #[error("not a member of this cluster")]
    NotMember,
    /// The node was evicted, or other nodes have redeemed its invitation.
    #[error("the membership has been revoked; the node can join again with a new key and a new invitation")]
    Revoked,
    /// The proof was made for another node, stream or route.
    #[error("the proof was made for another connection")]
    WrongNode,
    /// The certificate has ended, or the clocks differ.
    #[error("the member certificate has expired; if it has not, set the clocks right")]
    Expired,
    /// Too many links, or no consumer for the stream.
    #[error("busy, try later")]
    Busy,
    /// There already is a link between the two nodes over this route.
    #[error("there is a link already")]
    Duplicate,
    /// No common version of the link protocol.
    #[error("no common version of the link protocol; update the older node")]
    Version,
    /// The message cannot be decoded.
    #[error("malformed message")]
    Malformed,
}

impl LinkRefusal {
    /// The counter for this refusal.
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

impl From<ChainError> for LinkRefusal {
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
    /// The listener refused the link.
    #[error("{0} refused the link: {1}")]
    Refused(NodeId, LinkRefusal),
    /// The listener refused the link, and has proved that the cluster's authority revoked this
    /// node.
    #[error("this node is no longer a member of the cluster")]
    Revoked(Box<Verified<Revocation>>),
    /// The answering node is not the one that was dialled, or is not a member.
    #[error("the node that answers as {0} has not proved its identity: {1}")]
    Unproven(NodeId, LinkRefusal),
    /// No common version.
    #[error("{node} speaks versions {theirs:?} of the link protocol, this node {ours:?}: update the older one")]
    Version {
        /// The node that was dialled.
        node: NodeId,
        /// Its oldest and newest version.
        theirs: (u16, u16),
        /// The oldest and newest version of this node.
        ours: (u16, u16),
    },
    /// The listener's message cannot be decoded.
    #[error("the answer of {0} is not a valid message of the link protocol")]
    Malformed(NodeId, #[source] DecodeError),
}

/// The inputs of one side of a handshake: its identity and the stream.
#[derive(Clone, Copy)]
pub struct HandshakeSide<'a> {
    /// The certificates of this side.
    pub membership: &'a Member,
    /// The key of this side.
    pub key: &'a (dyn Sign + Sync),
    /// The route of the stream.
    pub route: RouteKind,
    /// Binds the proofs to the stream.
    pub binding: ChannelBinding,
    /// 32 random bytes, fresh for each handshake.
    pub nonce: [u8; 32],
}

impl HandshakeSide<'_> {
    fn node(&self) -> NodeId {
        self.membership.node()
    }

    fn cluster(&self) -> ClusterId {
        self.membership.authority.cluster
    }

    /// Checks the other side's certificates, at `unix` seconds since the epoch.
    fn member(&self, chain: Chain, unix: u64) -> Result<Member, LinkRefusal> {
        let member = chain.verify(self.cluster(), unix)?;
        // The service's master key may have certified another authority, whose revocations this
        // node does not know.
        let known: AuthorityId = self.membership.authority_id();
        if member.authority_id() == known { Ok(member) } else { Err(LinkRefusal::NotMember) }
    }
}

/// A peer that has proved itself to this listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvedPeer {
    /// The peer, with its certificates.
    pub member: Member,
    /// The use of the link that it requests.
    pub purpose: Purpose,
    session: Session,
}

/// The listener's side of one stream. Handles one proof.
pub struct Listener<'a> {
    own: HandshakeSide<'a>,
}

impl<'a> Listener<'a> {
    /// Starts the handshake; returns the challenge to be sent.
    ///
    /// # Errors
    /// Never in practice: a message of this fixed form can be encoded.
    pub fn new(own: HandshakeSide<'a>) -> Result<(Self, Vec<u8>), DecodeError> {
        let challenge = codec::encode(&Challenge { versions: VERSIONS, nonce: FixedBytes(own.nonce) })?;
        Ok((Self { own }, challenge))
    }

    /// Checks the dialler's proof, at `unix` seconds since the epoch.
    ///
    /// # Errors
    /// The refusal, to be sent to the dialler ([`Refused::answer`]).
    pub fn proof(
        &self,
        bytes: &[u8],
        revoked: &BTreeMap<NodeId, Verified<Revocation>>,
        unix: u64,
    ) -> Result<ProvedPeer, Refused> {
        let proof: Proof = codec::decode(bytes, MAX_UNPROVEN).map_err(|error| match error {
            DecodeError::Version(_) => LinkRefusal::Version,
            _ => LinkRefusal::Malformed,
        })?;
        if proof.version < VERSIONS.0 || proof.version > VERSIONS.1 {
            return Err(LinkRefusal::Version.into());
        }
        let member = self.own.member(proof.chain, unix)?;
        let stated = proof.proof.verify(member.node().public_key()).map_err(|_| LinkRefusal::NotMember)?;
        if let Some(revocation) = revoked.get(&member.node()) {
            return Err(Refused { why: LinkRefusal::Revoked, revocation: Some(Box::new(revocation.unverified())) });
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
        // A node does not dial itself: such a session comes from a proof that was reflected.
        if stated.0 != session || session.dialler == session.listener {
            return Err(LinkRefusal::WrongNode.into());
        }
        Ok(ProvedPeer { member, purpose: session.purpose, session })
    }

    /// Proves this side to a dialler that has proved itself; returns the last message, to be sent.
    ///
    /// # Errors
    /// Never in practice: a message of this fixed form can be encoded.
    pub fn accept(&self, proved: &ProvedPeer) -> Result<Vec<u8>, DecodeError> {
        let proof = Verified::sign(ListenerProof(proved.session.clone()), self.own.key)?.unverified();
        codec::encode(&Answer::Accepted { chain: Box::new(self.own.membership.chain()), proof })
    }
}

/// The dialler's side of one stream, before the challenge.
pub struct Dialler<'a> {
    /// This side.
    pub own: HandshakeSide<'a>,
    /// The node it has dialled.
    pub dialled: NodeId,
    /// The use of the link that the dialler requests.
    pub purpose: Purpose,
}

impl<'a> Dialler<'a> {
    /// Answers the challenge; returns the proof to be sent, and the state that reads the answer.
    ///
    /// # Errors
    /// [`HandshakeError::Malformed`] or [`HandshakeError::Version`].
    pub fn challenge(&self, bytes: &[u8]) -> Result<(Vec<u8>, AwaitingAnswer<'a>), HandshakeError> {
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
        Ok((codec::encode(&proof).map_err(malformed)?, AwaitingAnswer { own: self.own, session }))
    }
}

/// The dialler's side of one stream after it has sent its proof. Reads one answer.
pub struct AwaitingAnswer<'a> {
    own: HandshakeSide<'a>,
    session: Session,
}

impl AwaitingAnswer<'_> {
    /// Reads the last message, at `unix` seconds since the epoch; returns the listener, which has
    /// proved itself.
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
                    true => Err(HandshakeError::Unproven(listener, LinkRefusal::Revoked)),
                    false => Ok(member),
                }
            }
            Ok(Answer::Refused(Refused { why, revocation })) => Err(revocation
                .and_then(|it| self.own_revocation(*it))
                .map_or(HandshakeError::Refused(listener, why), |it| HandshakeError::Revoked(Box::new(it)))),
            Err(error) => Err(HandshakeError::Malformed(listener, error)),
        }
    }

    fn listener(&self, chain: Chain, proof: Unverified<ListenerProof>, unix: u64) -> Result<Member, LinkRefusal> {
        let member = self.own.member(chain, unix)?;
        let stated = proof.verify(member.node().public_key()).map_err(|_| LinkRefusal::NotMember)?;
        // The listener of the session is the node that was dialled.
        let right = stated.0 == self.session && member.node() == self.session.listener;
        if right { Ok(member) } else { Err(LinkRefusal::WrongNode) }
    }

    /// The revocation, if the authority of this cluster has signed it for this node.
    fn own_revocation(&self, revocation: Unverified<Revocation>) -> Option<Verified<Revocation>> {
        let revocation = revocation.verify(self.own.membership.authority_id().public_key()).ok()?;
        let ours = revocation.cluster == self.own.cluster() && revocation.node == self.own.node();
        ours.then_some(revocation)
    }
}

#[cfg(test)]
mod tests;
