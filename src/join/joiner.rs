//! The joiner's side: says Hello, proves itself when challenged, and believes the answer only if everything in it
//! verifies against the address the operator typed.

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::codec::{self, DecodeError};
use rustbalance_gossip::id::ClusterId;
use rustbalance_gossip::record::{ChainError, Member, Role};

use super::MAX_SKEW;
use super::message::{self, Answer, Challenge, FromJoiner, FromPublisher, Hello, Redeem, Refusal};
use super::parcel::{JoinedService, Parcel, PublisherSecrets};
use super::token::Token;
use super::transcript::{self, BY_NODE, BY_PUBLISHER, BY_TOKEN, Fresh};
use crate::discovery::{Discovery, Offer};
use crate::frame::{self, FrameError};
use crate::keys::{NodeSecret, PointSeed, ServiceSecrets, TokenSecret};

/// Why a join did not come about.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is of another cluster: nothing was dialled.
    #[error("the token was made for another cluster than {0}: check the address, or take the token that belongs to it")]
    ForeignToken(ClusterId),
    /// Turned away.
    #[error("{0}")]
    Refused(Refusal),
    /// The publisher's clock is too far from ours, and it has taken us in all the same.
    #[error("{}", Refusal::ClockSkew { publisher: *publisher, joiner: *joiner })]
    ClockSkew {
        /// The publisher's, in seconds since the Unix epoch.
        publisher: u64,
        /// Ours.
        joiner: u64,
    },
    /// The answer does not come from a publisher of this cluster. Nothing of it was believed.
    #[error("whoever answered is no publisher of {cluster}: {why}; check the address and try again")]
    Impostor {
        /// The cluster asked for.
        cluster: ClusterId,
        /// What does not fit.
        why: String,
    },
    /// A message that cannot be read.
    #[error("cannot read the publisher's message: {0}")]
    Decode(#[from] DecodeError),
    /// A message out of turn.
    #[error("the publisher sent a message out of turn: try again")]
    OutOfTurn,
    /// The connection failed.
    #[error("the connection to the cluster was lost: {0}; try again")]
    Connection(#[from] FrameError),
    /// Nothing came for too long.
    #[error("the cluster did not answer within {0} s: try again")]
    Timeout(u64),
    /// The answer was lost on its way: the cluster may or may not have taken us in.
    #[error(
        "{0} (the cluster may have taken this node in: run the same command again, the token is not used up by that)"
    )]
    Unanswered(#[source] Box<JoinError>),
}

impl JoinError {
    /// True if the cluster may have taken us in all the same: then the node key must be kept for another try. No refusal
    /// proves the contrary: whoever carries a join can make one up, and a publisher that took us in may have died
    /// before the others heard of it.
    pub fn may_have_joined(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::ClockSkew { .. } | Self::Unanswered(_))
    }
}

/// What a new member has been given. All of it is verified.
#[derive(Debug)]
pub struct Joined {
    /// Our own membership.
    pub member: Member,
    /// Who took us in.
    pub publisher: Member,
    /// Other members, the publisher first.
    pub members: Vec<Member>,
    /// The key of the restricted discovery.
    pub discovery: Discovery,
    /// What the keys of our introduction points are derived from.
    pub points: PointSeed,
    /// The services of the cluster with their virtual ports, the one that names the cluster first.
    pub services: Vec<JoinedService>,
    /// If we joined as a publisher.
    pub secrets: Option<PublisherSecrets>,
    /// The publisher's clock less ours, in seconds.
    pub skew: i64,
}

/// What is to be done next.
#[derive(Debug)]
pub enum Step {
    /// Send this frame and wait for another.
    Send(Vec<u8>),
    /// It is done.
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
    /// Hello is out.
    Greeted {
        hello: Vec<u8>,
    },
    /// Redeem is out.
    Redeemed {
        request: [u8; 32],
        theirs: [u8; 32],
    },
    Over,
}

impl Joiner {
    /// Begins, with the first frame to send. `fresh` must never be used again.
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

    /// True from the moment on in which a lost connection may leave us a member without knowing it.
    pub fn has_redeemed(&self) -> bool {
        matches!(self.state, State::Redeemed { .. })
    }

    /// Takes a frame, at `unix` seconds since the epoch by our clock. After an error it takes no more.
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
            return Err(JoinError::Refused(Refusal::Version(challenge.version)));
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
        let said = transcript::answer(request, answer.role, &answer.publisher);
        let plain = transcript::open(&self.fresh.ephemeral, theirs, &said, answer.sealed.0)
            .ok_or_else(|| impostor("its answer is not sealed for this join".into()))?;
        let parcel =
            Parcel::from_bytes(&plain, answer.role).map_err(|why| impostor(format!("its answer is wrong: {why}")))?;
        let facts = parcel.facts;
        if facts.unix.abs_diff(unix) > MAX_SKEW {
            return Err(JoinError::ClockSkew { publisher: facts.unix, joiner: unix });
        }

        let chain = |who: &str, error: ChainError| impostor(format!("{who} certificate: {error}"));
        // The clocks differ a little, so a certificate is held to the earlier one.
        let now = facts.unix.min(unix);
        let publisher = facts.publisher.verify(self.cluster, now).map_err(|error| chain("its", error))?;
        if publisher.role() != Role::Publisher || publisher.node() != answer.publisher {
            return Err(impostor("its certificate is not a publisher's, or another node's".into()));
        }
        if !transcript::verify(BY_PUBLISHER, &said, publisher.node().public_key(), &facts.signature.0) {
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
        // Others' certificates are a help to find them; one that has expired meanwhile is none.
        let others = facts.members.into_iter().filter_map(|chain| chain.verify(self.cluster, now).ok());
        let others = others.filter(|other| other.authority_id() == publisher.authority_id());
        let others = others.filter(|other| other.node() != member.node() && other.node() != publisher.node());
        let members = std::iter::once(publisher.clone()).chain(others).collect();
        let skew = i64::try_from(facts.unix).unwrap_or(i64::MAX).saturating_sub_unsigned(unix);
        let (points, services, secrets) = (parcel.points, facts.services, parcel.secrets);
        Ok(Joined { member, publisher, members, discovery, points, services, secrets, skew })
    }
}
