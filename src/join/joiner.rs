//! The joiner's side: sends Hello, proves itself when challenged, and accepts the answer only if
//! all of it verifies against the address that the operator typed.

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::codec::{self, DecodeError};
use rustbalance_gossip::id::ClusterId;
use rustbalance_gossip::record::{ChainError, Member, Role};

use super::MAX_SKEW;
use super::message::{self, Answer, Challenge, FromJoiner, FromPublisher, Hello, JoinRefusal, Redeem};
use super::parcel::{JoinedService, Parcel, PublisherSecrets};
use super::token::Token;
use super::transcript::{self, BY_NODE, BY_PUBLISHER, BY_TOKEN, Fresh};
use crate::discovery::{Discovery, Offer};
use crate::frame::{self, FrameError};
use crate::keys::{NodeSecret, PointSeed, ServiceSecrets, TokenSecret};

/// Why a join failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is for another cluster. Nothing was dialled.
    #[error("the token was made for another cluster than {0}: check the address, or use a token of that cluster")]
    ForeignToken(ClusterId),
    /// The publisher, or a worker in between, refused the joiner.
    #[error("{0}")]
    Refused(JoinRefusal),
    /// The publisher's clock differs too much from ours. The publisher has admitted this node all
    /// the same.
    #[error("{}", JoinRefusal::ClockSkew { publisher: *publisher, joiner: *joiner })]
    ClockSkew {
        /// The publisher's clock, in seconds since the Unix epoch.
        publisher: u64,
        /// This node's clock, in seconds since the Unix epoch.
        joiner: u64,
    },
    /// The answer does not come from a publisher of this cluster. Nothing in it was used.
    #[error("the node that answered is not a publisher of {cluster}: {why}; check the address and try again")]
    Impostor {
        /// The cluster to be joined.
        cluster: ClusterId,
        /// The check that failed.
        why: String,
    },
    /// A message that cannot be decoded.
    #[error("cannot read the publisher's message: {0}")]
    Decode(#[from] DecodeError),
    /// A message that does not belong at this step.
    #[error("the publisher sent a message out of turn: try again")]
    OutOfTurn,
    /// The connection failed.
    #[error("the connection to the cluster was lost: {0}; try again")]
    Connection(#[from] FrameError),
    /// No frame arrived within this number of seconds.
    #[error("the cluster did not answer within {0} s: try again")]
    Timeout(u64),
    /// The answer was lost: the cluster may have admitted this node.
    #[error(
        "{0} (the cluster may have taken this node in: run the same command again, the token is not used up by that)"
    )]
    Unanswered(#[source] Box<JoinError>),
}

impl JoinError {
    /// True if the cluster may have admitted this node: then its key must be kept for another try.
    /// No refusal proves the contrary: a worker that carries the join can forge one, and a
    /// publisher that admitted this node may have died before the others heard of it.
    pub fn may_have_joined(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::ClockSkew { .. } | Self::Unanswered(_))
    }
}

/// The result of a join. All of it is verified.
#[derive(Debug)]
pub struct Joined {
    /// The membership of this node.
    pub member: Member,
    /// The publisher that admitted this node.
    pub publisher: Member,
    /// The other members that the answer names, the publisher first.
    pub members: Vec<Member>,
    /// The newest discovery key.
    pub discovery: Discovery,
    /// The seed for the keys of this node's introduction points.
    pub points: PointSeed,
    /// The services of the cluster with their virtual ports; the first is the one that names the
    /// cluster.
    pub services: Vec<JoinedService>,
    /// The publisher's secrets; `None` if this node joined as a worker.
    pub secrets: Option<PublisherSecrets>,
    /// The publisher's clock minus this node's, in seconds.
    pub skew: i64,
}

/// The next step of a join.
#[derive(Debug)]
pub enum Step {
    /// Send this frame and wait for another.
    Send(Vec<u8>),
    /// The join is complete.
    Joined(Box<Joined>),
}

/// One attempt to join.
pub struct Joiner {
    cluster: ClusterId,
    token: TokenSecret,
    node: NodeSecret,
    fresh: Fresh,
    state: State,
}

enum State {
    /// Hello has been sent.
    Greeted {
        hello: Vec<u8>,
    },
    /// Redeem has been sent.
    Redeemed {
        request: [u8; 32],
        theirs: [u8; 32],
    },
    Over,
}

impl Joiner {
    /// Starts a join; returns the first frame to send. `fresh` must never be used for another join.
    pub fn new(
        token: &Token,
        node: &NodeSecret,
        cluster: ClusterId,
        fresh: Fresh,
    ) -> Result<(Self, Vec<u8>), JoinError> {
        if !token.is_for(cluster) {
            return Err(JoinError::ForeignToken(cluster));
        }
        let (nonce, ephemeral) = (FixedBytes(fresh.nonce), FixedBytes(fresh.public()));
        let hello = codec::encode(&FromJoiner::Hello(Hello { version: message::VERSION, cluster, nonce, ephemeral }))?;
        let state = State::Greeted { hello: hello.clone() };
        Ok((Self { cluster, token: token.secret().duplicate(), node: node.duplicate(), fresh, state }, hello))
    }

    /// True once a lost connection may leave this node a member without its knowledge.
    pub fn has_redeemed(&self) -> bool {
        matches!(self.state, State::Redeemed { .. })
    }

    /// Handles a frame, at `unix` seconds since the epoch by this node's clock. After an error it
    /// accepts no further frames.
    pub fn handle(&mut self, frame: &[u8], unix: u64) -> Result<Step, JoinError> {
        match (std::mem::replace(&mut self.state, State::Over), message::read(frame, frame::MAX)?) {
            (_, FromPublisher::Refused(refusal)) => Err(JoinError::Refused(refusal)),
            (State::Greeted { hello }, FromPublisher::Challenge(challenge)) => {
                self.redeem(&hello, frame, &challenge, unix).map(Step::Send)
            }
            (State::Redeemed { request, theirs }, FromPublisher::Answer(answer)) => {
                self.accept(&request, theirs, answer, unix).map(|joined| Step::Joined(Box::new(joined)))
            }
            _ => Err(JoinError::OutOfTurn),
        }
    }

    fn redeem(&mut self, hello: &[u8], frame: &[u8], challenge: &Challenge, unix: u64) -> Result<Vec<u8>, JoinError> {
        if challenge.version != message::VERSION {
            return Err(JoinError::Refused(JoinRefusal::Version(challenge.version)));
        }
        let (node, invitation) = (self.node.node_id(), self.token.invitation_id());
        let request = transcript::request(hello, frame, &node, &invitation, unix);
        let token_signature = FixedBytes(transcript::sign(BY_TOKEN, &request, &self.token));
        let node_signature = FixedBytes(transcript::sign(BY_NODE, &request, &self.node));
        self.state = State::Redeemed { request, theirs: challenge.ephemeral.0 };
        let redeem = Redeem { node, invitation, unix, token_signature, node_signature };
        Ok(codec::encode(&FromJoiner::Redeem(redeem))?)
    }

    fn accept(&self, request: &[u8; 32], theirs: [u8; 32], answer: Answer, unix: u64) -> Result<Joined, JoinError> {
        let impostor = |why: String| JoinError::Impostor { cluster: self.cluster, why };
        let transcript = transcript::answer(request, answer.role, &answer.publisher);
        let plain = transcript::open(&self.fresh.ephemeral, theirs, &transcript, answer.sealed.0)
            .ok_or_else(|| impostor("its answer is not sealed for this join".into()))?;
        let parcel =
            Parcel::from_bytes(&plain, answer.role).map_err(|why| impostor(format!("its answer is wrong: {why}")))?;
        let facts = parcel.facts;
        if facts.unix.abs_diff(unix) > MAX_SKEW {
            return Err(JoinError::ClockSkew { publisher: facts.unix, joiner: unix });
        }

        let chain = |who: &str, error: ChainError| impostor(format!("{who} certificate: {error}"));
        // The clocks differ a little, so certificates are checked at the earlier time.
        let now = facts.unix.min(unix);
        let publisher = facts.publisher.verify(self.cluster, now).map_err(|error| chain("its", error))?;
        if publisher.role() != Role::Publisher || publisher.node() != answer.publisher {
            return Err(impostor("its certificate is not a publisher's, or another node's".into()));
        }
        if !transcript::verify(BY_PUBLISHER, &transcript, publisher.node().public_key(), &facts.signature.0) {
            return Err(impostor("its signature is wrong".into()));
        }
        let member = facts.member.verify(self.cluster, now).map_err(|error| chain("our", error))?;
        let ours = member.node() == self.node.node_id()
            && member.role() == answer.role
            && member.authority_id() == publisher.authority_id()
            && member.certificate.invitation == Some(self.token.invitation_id());
        if !ours {
            return Err(impostor("the certificate it gives is not for this node and token".into()));
        }
        if facts.services.first().map(|first| first.service) != Some(self.cluster.first_service()) {
            return Err(impostor("the services that it names are not this cluster's".into()));
        }
        if let Some(secrets) = &parcel.secrets {
            let points = PointSeed::derive(&secrets.authority, member.node());
            let has_key = |it: &JoinedService| {
                let of = secrets.services.iter().find(|of| of.service == it.service);
                of.and_then(ServiceSecrets::identity).is_some_and(|key| key.service_id() == it.service)
            };
            let fit = facts.services.iter().all(has_key)
                && secrets.services.len() == facts.services.len()
                && secrets.authority.authority_id() == publisher.authority_id()
                && points.as_bytes() == parcel.points.as_bytes();
            if !fit {
                return Err(impostor("the keys it gives are not this cluster's".into()));
            }
        }
        let discovery = Offer { key: facts.discovery, secret: parcel.discovery };
        let discovery =
            discovery.verify(self.cluster, publisher.authority_id()).map_err(|error| impostor(error.to_string()))?;
        // The other members' certificates only help to find them, so one that has expired is
        // skipped.
        let others = facts.members.into_iter().filter_map(|chain| chain.verify(self.cluster, now).ok());
        let others = others.filter(|other| other.authority_id() == publisher.authority_id());
        let others = others.filter(|other| other.node() != member.node() && other.node() != publisher.node());
        let members = std::iter::once(publisher.clone()).chain(others).collect();
        let skew = i64::try_from(facts.unix).unwrap_or(i64::MAX).saturating_sub_unsigned(unix);
        let (points, services, secrets) = (parcel.points, facts.services, parcel.secrets);
        Ok(Joined { member, publisher, members, discovery, points, services, secrets, skew })
    }
}
