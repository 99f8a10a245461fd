//! The publisher's side: challenges each joiner, and admits those that prove that they hold a valid
//! token.
//!
//! The order matters. Until a signature by the key of a known token has been checked, the publisher
//! computes nothing but a hash, and discloses nothing but its version. The redemption is recorded
//! (on disk and in gossip) before the answer is sent: a lost answer can be requested again with the
//! same node key and token, but a redemption that was never recorded could be repeated by another
//! node.

use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
use rustbalance_gossip::codec::{self, DecodeError};
use rustbalance_gossip::id::{InvitationId, NodeId};
use rustbalance_gossip::record::{Chain, Invitation, MEMBERSHIP_SECONDS, Member, MemberCertificate, Role};
use rustbalance_gossip::signed::Verified;

use super::MAX_SKEW;
use super::message::{self, Answer, Challenge, FromJoiner, FromPublisher, Hello, JoinRefusal, Redeem};
use super::parcel::{Facts, JoinedService, Parcel, PublisherSecrets};
use super::transcript::{self, BY_NODE, BY_PUBLISHER, BY_TOKEN, Fresh};
use crate::discovery::Offer;
use crate::frame;
use crate::keys::{AuthoritySecret, NodeSecret, PointSeed, ServiceSecrets};

/// The identity and secrets of the publisher that admits.
#[derive(Debug)]
pub struct Publisher {
    /// The membership of this publisher, as of its start. Joiners are shown the one in
    /// [`Admissions::member`], which is renewed meanwhile.
    pub membership: Member,
    /// The node key of this publisher.
    pub node: NodeSecret,
    /// Signs the new member's certificate.
    pub authority: AuthoritySecret,
    /// The secrets of every service, given to new publishers.
    pub services: Vec<ServiceSecrets>,
}

/// The state of the cluster at the moment of a decision.
pub trait Admissions {
    /// The invitation, merged from all known versions; `None` if it is unknown.
    fn invitation(&self, id: &InvitationId) -> Option<Invitation>;
    /// The certificates of a node that is a member now; `None` if it is not.
    fn member(&self, node: &NodeId) -> Option<Member>;
    /// True if the node is revoked.
    fn is_revoked(&self, node: &NodeId) -> bool;
    /// Why no joiner may be admitted as `role` for now, even with a valid token. `None` if one may.
    fn postponed(&self, role: Role) -> Option<JoinRefusal>;
    /// Certificates of members for the new node, the most useful first: publishers, nodes that are
    /// alive.
    fn chains(&self) -> Vec<Chain>;
    /// The services of the cluster with their virtual ports; the first is the one that names the
    /// cluster.
    fn services(&self) -> Vec<JoinedService>;
    /// The newest discovery key; `None` if it is not known yet.
    fn discovery(&self) -> Option<Offer>;
}

/// An input of an admission.
#[derive(Debug)]
pub enum Event<'a> {
    /// A frame from the joiner.
    Frame(&'a [u8]),
    /// The requested redemption has been recorded (true), or could not be.
    Recorded(bool),
}

/// An output of an admission, to be carried out in order.
#[derive(Debug)]
pub enum Effect {
    /// Send this frame.
    Send(Vec<u8>),
    /// Write this to disk and gossip it, then pass in [`Event::Recorded`].
    Record(Box<Redemption>),
    /// The admission is over; close the stream.
    Close(Outcome),
}

/// A new member, to be recorded.
#[derive(Debug, Clone)]
pub struct Redemption {
    /// The invitation with the new member among its redemptions.
    pub invitation: Verified<Invitation>,
    /// The new member's certificates.
    pub member: Member,
}

/// The result of an admission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The node is a member and its answer has been sent.
    Admitted {
        /// The id of the node.
        node: NodeId,
        /// The role that the invitation gives it.
        role: Role,
        /// True if it was a member before and requested its lost answer.
        again: bool,
    },
    /// The joiner was refused.
    Refused(JoinRefusal),
}

/// The admission of one joiner.
pub struct Admission {
    fresh: Fresh,
    state: State,
}

enum State {
    /// Waits for Hello.
    Silent,
    /// The challenge has been sent.
    Challenged(Challenged),
    /// The answer is ready, and waits until the redemption is recorded.
    Recording {
        answer: Vec<u8>,
        outcome: Outcome,
    },
    Over,
}

/// The messages so far, as they were on the wire.
struct Challenged {
    hello: Vec<u8>,
    challenge: Vec<u8>,
    /// The joiner's ephemeral key.
    theirs: [u8; 32],
}

impl Admission {
    /// Waits for Hello. `fresh` must never be used for another admission.
    pub fn new(fresh: Fresh) -> Self {
        Self { fresh, state: State::Silent }
    }

    /// True if the next frame is a Redeem. Its effects must be carried out before another admission
    /// decides, or a token could be used twice.
    pub fn decides_next(&self) -> bool {
        matches!(self.state, State::Challenged(_))
    }

    /// Handles an event, at `unix` seconds since the epoch, as the publisher `us`.
    pub fn handle(&mut self, event: Event<'_>, unix: u64, us: &Publisher, cluster: &dyn Admissions) -> Vec<Effect> {
        let state = std::mem::replace(&mut self.state, State::Over);
        let result = match (state, event) {
            (State::Silent, Event::Frame(frame)) => self.challenge(frame, us),
            (State::Challenged(challenged), Event::Frame(frame)) => self.decide(frame, &challenged, unix, us, cluster),
            (State::Recording { answer, outcome }, Event::Recorded(true)) => {
                Ok(vec![Effect::Send(answer), Effect::Close(outcome)])
            }
            (State::Recording { .. }, Event::Recorded(false)) => Err(JoinRefusal::Failed),
            _ => Err(JoinRefusal::Malformed),
        };
        result.unwrap_or_else(|refusal| {
            let frame = message::refusal(&refusal).ok().map(Effect::Send);
            frame.into_iter().chain([Effect::Close(Outcome::Refused(refusal))]).collect()
        })
    }

    fn challenge(&mut self, frame: &[u8], us: &Publisher) -> Result<Vec<Effect>, JoinRefusal> {
        let FromJoiner::Hello(Hello { version, cluster, ephemeral, .. }) = read(frame)? else {
            return Err(JoinRefusal::Malformed);
        };
        if version != message::VERSION {
            return Err(JoinRefusal::Version(message::VERSION));
        }
        if us.membership.role() != Role::Publisher {
            return Err(JoinRefusal::NotPublisher);
        }
        let ours = us.membership.certificate.cluster;
        if cluster != ours {
            return Err(JoinRefusal::OtherCluster(ours));
        }
        let (nonce, public) = (FixedBytes(self.fresh.nonce), FixedBytes(self.fresh.public()));
        let challenge = Challenge { version: message::VERSION, nonce, ephemeral: public };
        let challenge = codec::encode(&FromPublisher::Challenge(challenge)).map_err(|_| JoinRefusal::Failed)?;
        let challenged = Challenged { hello: frame.to_vec(), challenge: challenge.clone(), theirs: ephemeral.0 };
        self.state = State::Challenged(challenged);
        Ok(vec![Effect::Send(challenge)])
    }

    fn decide(
        &mut self,
        frame: &[u8],
        challenged: &Challenged,
        unix: u64,
        us: &Publisher,
        cluster: &dyn Admissions,
    ) -> Result<Vec<Effect>, JoinRefusal> {
        let FromJoiner::Redeem(redeem) = read(frame)? else { return Err(JoinRefusal::Malformed) };
        let invitation = cluster.invitation(&redeem.invitation).ok_or(JoinRefusal::UnknownToken)?;
        let request = transcript::request(
            &challenged.hello,
            &challenged.challenge,
            &redeem.node,
            &redeem.invitation,
            redeem.unix,
        );
        let proven =
            |context, key, signature: &FixedBytes<64>| transcript::verify(context, &request, key, &signature.0);
        if !proven(BY_TOKEN, redeem.invitation.public_key(), &redeem.token_signature) {
            return Err(JoinRefusal::UnknownToken);
        }
        if !proven(BY_NODE, redeem.node.public_key(), &redeem.node_signature) {
            return Err(JoinRefusal::Malformed);
        }

        let known = judge(&redeem, &invitation, unix, us, cluster)?;
        // Checked after the refusals of `judge`, which waiting cannot change. It also holds for a
        // member that requests its lost answer, because that contains secrets.
        if let Some(postponed) = cluster.postponed(invitation.role) {
            return Err(postponed);
        }
        let again = known.is_some();
        let member = match known {
            Some(member) => member,
            None => certify(&redeem, &invitation, unix, us)?,
        };
        let answer = self.answer(&request, challenged.theirs, &member, unix, us, cluster)?;
        let (node, role) = (member.node(), member.role());
        let outcome = Outcome::Admitted { node, role, again };
        if again {
            return Ok(vec![Effect::Send(answer), Effect::Close(outcome)]);
        }
        let mut redeemed = invitation;
        redeemed.redeemed.insert(node);
        let invitation = Verified::sign(redeemed, &us.authority).map_err(|_| JoinRefusal::Failed)?;
        self.state = State::Recording { answer, outcome };
        Ok(vec![Effect::Record(Box::new(Redemption { invitation, member }))])
    }

    /// The sealed answer for this member.
    fn answer(
        &self,
        request: &[u8; 32],
        theirs: [u8; 32],
        member: &Member,
        unix: u64,
        us: &Publisher,
        cluster: &dyn Admissions,
    ) -> Result<Vec<u8>, JoinRefusal> {
        let (role, publisher) = (member.role(), us.membership.node());
        let transcript = transcript::answer(request, role, &publisher);
        let discovery = cluster.discovery().ok_or(JoinRefusal::Failed)?;
        let facts = Facts {
            signature: FixedBytes(transcript::sign(BY_PUBLISHER, &transcript, &us.node)),
            publisher: cluster.member(&publisher).as_ref().unwrap_or(&us.membership).chain(),
            member: member.chain(),
            members: cluster.chains(),
            services: cluster.services(),
            discovery: discovery.key,
            unix,
        };
        let secrets = (role == Role::Publisher).then(|| PublisherSecrets {
            authority: us.authority.duplicate(),
            services: us.services.iter().map(ServiceSecrets::duplicate).collect(),
        });
        let points = PointSeed::derive(&us.authority, member.node());
        let parcel = Parcel { discovery: discovery.secret, points, secrets, facts };
        let plain = parcel.to_bytes().ok_or(JoinRefusal::Failed)?;
        let sealed =
            transcript::seal(&self.fresh.ephemeral, theirs, &transcript, plain).ok_or(JoinRefusal::Malformed)?;
        let answer = Answer { role, publisher, sealed: VarBytes(sealed) };
        codec::encode(&FromPublisher::Answer(answer)).map_err(|_| JoinRefusal::Failed)
    }
}

/// Decides on a joiner that has proved itself. Returns its membership if it is a member already and
/// requests its lost answer.
fn judge(
    redeem: &Redeem,
    invitation: &Invitation,
    unix: u64,
    us: &Publisher,
    cluster: &dyn Admissions,
) -> Result<Option<Member>, JoinRefusal> {
    if redeem.unix.abs_diff(unix) > MAX_SKEW {
        return Err(JoinRefusal::ClockSkew { publisher: unix, joiner: redeem.unix });
    }
    if cluster.is_revoked(&redeem.node) {
        return Err(JoinRefusal::Evicted);
    }
    if let Some(member) = cluster.member(&redeem.node) {
        let same = member.certificate.invitation == Some(redeem.invitation) && member.role() == invitation.role;
        return if same { Ok(Some(member)) } else { Err(JoinRefusal::AlreadyMember) };
    }
    if redeem.node == us.membership.node() {
        return Err(JoinRefusal::AlreadyMember);
    }
    if invitation.revoked {
        return Err(JoinRefusal::Revoked);
    }
    let (used, uses) = (invitation.redeemed.len(), usize::from(invitation.uses));
    if invitation.redeemed.contains(&redeem.node) {
        // The redemption was recorded, but the certificate was lost before any node received it:
        // the joiner gets another one.
        return if used <= uses { Ok(None) } else { Err(JoinRefusal::UsedUp { uses: invitation.uses }) };
    }
    if unix > invitation.expires {
        return Err(JoinRefusal::Expired { ago: unix - invitation.expires });
    }
    if used >= uses {
        return Err(JoinRefusal::UsedUp { uses: invitation.uses });
    }
    Ok(None)
}

/// Makes the new member's certificate. A second one for the same node is dated like the invitation:
/// if two nodes race for a token, the earlier certificate wins, and a node must not fall behind
/// because it asked again.
fn certify(redeem: &Redeem, invitation: &Invitation, unix: u64, us: &Publisher) -> Result<Member, JoinRefusal> {
    let again = invitation.redeemed.contains(&redeem.node);
    let certificate = MemberCertificate {
        cluster: us.membership.certificate.cluster,
        node: redeem.node,
        role: invitation.role,
        issued: if again { invitation.issued.min(unix) } else { unix },
        expires: unix.saturating_add(MEMBERSHIP_SECONDS),
        invitation: Some(redeem.invitation),
    };
    let certificate = Verified::sign(certificate, &us.authority).map_err(|_| JoinRefusal::Failed)?;
    Ok(Member { authority: us.membership.authority.clone(), certificate })
}

/// Decodes a message from a peer that has proved nothing.
fn read(frame: &[u8]) -> Result<FromJoiner, JoinRefusal> {
    message::read(frame, frame::MAX_UNPROVEN).map_err(|error| match error {
        DecodeError::Version(_) => JoinRefusal::Version(message::VERSION),
        _ => JoinRefusal::Malformed,
    })
}
