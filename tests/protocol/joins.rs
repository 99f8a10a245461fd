//! Whole joins between the two state machines, with fixed values in place of random ones.

use rustbalance::discovery::Offer;
use rustbalance::frame;
use rustbalance::join::transcript;
use rustbalance::join::{
    Admission, Admissions, Effect, Event, Fresh, JoinError, JoinRefusal, Joined, JoinedService, Joiner, Outcome,
    Publisher, Redemption, Step, Token, refuse,
};
use rustbalance::keys::{NodeSecret, PointSeed, ServiceSecrets};
use rustbalance_gossip::id::{ClusterId, InvitationId, NodeId};
use rustbalance_gossip::record::{Chain, Invitation, Member, Role};
use serde_json::{Value, json};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::cast::{FixedRng, NOW, VectorKeys, bytes};
use crate::{hex, unhex, value_of};

const JOINER_EPHEMERAL: u8 = 0x11;
const JOINER_NONCE: u8 = 0x31;
const PUBLISHER_EPHEMERAL: u8 = 0x12;
const PUBLISHER_NONCE: u8 = 0x32;
/// The joiner's clock, 3 s behind the publisher's.
const JOINER_UNIX: u64 = NOW - 3;

/// Alpha as the publisher that admits nodes, with one invitation.
struct Host<'a> {
    cast: &'a VectorKeys,
    us: Publisher,
    invitation: Invitation,
}

impl<'a> Host<'a> {
    fn new(cast: &'a VectorKeys, role: Role) -> Self {
        let us = Publisher {
            membership: cast.founder(),
            node: cast.alpha.duplicate(),
            authority: cast.authority.duplicate(),
            services: vec![ServiceSecrets::of(cast.master.duplicate())],
        };
        Self { cast, us, invitation: cast.invitation(role) }
    }

    /// Handles a frame. Returns the answer, the redemption to record, and the outcome if the join
    /// has ended.
    fn receive(&self, admission: &mut Admission, heard: &[u8]) -> (Vec<u8>, Option<Redemption>, Option<Outcome>) {
        let (mut sent, mut recorded, mut outcome) = (Vec::new(), None, None);
        let mut effects = admission.handle(Event::Frame(heard), NOW, &self.us, self);
        if let [Effect::Record(redemption)] = effects.as_slice() {
            recorded = Some((**redemption).clone());
            effects = admission.handle(Event::Recorded(true), NOW, &self.us, self);
        }
        for effect in effects {
            match effect {
                Effect::Send(frame) => sent = frame,
                Effect::Close(how) => outcome = Some(how),
                Effect::Record(_) => panic!("recorded twice"),
            }
        }
        (sent, recorded, outcome)
    }
}

impl Admissions for Host<'_> {
    fn invitation(&self, id: &InvitationId) -> Option<Invitation> {
        Some(self.invitation.clone()).filter(|invitation| invitation.token == *id)
    }
    fn member(&self, _: &NodeId) -> Option<Member> {
        None
    }
    fn is_revoked(&self, _: &NodeId) -> bool {
        false
    }
    fn postponed(&self, _: Role) -> Option<JoinRefusal> {
        None
    }
    fn chains(&self) -> Vec<Chain> {
        vec![self.us.membership.chain()]
    }
    fn services(&self) -> Vec<JoinedService> {
        vec![JoinedService { service: self.cast.cluster().first_service(), ports: vec![80, 443] }]
    }
    fn discovery(&self) -> Option<Offer> {
        Some(self.cast.discovery(0).offer())
    }
}

fn fresh(ephemeral: u8, nonce: u8) -> Fresh {
    Fresh::generate(&mut FixedRng::of(&[bytes(ephemeral), bytes(nonce)]))
}

fn admission() -> Admission {
    Admission::new(fresh(PUBLISHER_EPHEMERAL, PUBLISHER_NONCE))
}

fn joiner(cast: &VectorKeys, role: Role) -> (Joiner, Vec<u8>) {
    let fresh = fresh(JOINER_EPHEMERAL, JOINER_NONCE);
    Joiner::new(&cast.token(role), node(cast, role), cast.cluster(), fresh).unwrap()
}

fn node(cast: &VectorKeys, role: Role) -> &NodeSecret {
    match role {
        Role::Worker => &cast.beta,
        Role::Publisher => &cast.gamma,
    }
}

fn step(joiner: &mut Joiner, frame: &[u8]) -> Result<Vec<u8>, Box<Joined>> {
    match joiner.handle(frame, JOINER_UNIX).unwrap() {
        Step::Send(frame) => Ok(frame),
        Step::Joined(joined) => Err(joined),
    }
}

/// The joins of a worker and of a publisher, and every refusal.
pub(crate) async fn joins(cast: &VectorKeys) -> Value {
    json!({
        "worker": join(cast, Role::Worker),
        "publisher": join(cast, Role::Publisher),
        "refused": refusals(cast).await,
    })
}

fn join(cast: &VectorKeys, role: Role) -> Value {
    let (host, mut admission) = (Host::new(cast, role), admission());
    let (mut joiner, hello) = joiner(cast, role);
    let challenge = host.receive(&mut admission, &hello).0;
    let redeem = step(&mut joiner, &challenge).unwrap();
    let (answer, recorded, _) = host.receive(&mut admission, &redeem);
    step(&mut joiner, &answer).unwrap_err();

    let (node, invitation) = (node(cast, role).node_id(), cast.token(role).invitation_id());
    let request = transcript::request(&hello, &challenge, &node, &invitation, JOINER_UNIX);
    let answer_hash = transcript::answer(&request, role, &cast.alpha.node_id());
    let (ours, theirs) = (StaticSecret::from(bytes(JOINER_EPHEMERAL)), StaticSecret::from(bytes(PUBLISHER_EPHEMERAL)));
    let theirs = PublicKey::from(&theirs);
    let key = transcript::answer_key(&ours, theirs.to_bytes(), &answer_hash).unwrap();
    let sealed = unhex_of(&value_of(&answer)["Answer"]["sealed"]);
    let plain = transcript::open(&ours, theirs.to_bytes(), &answer_hash, sealed).unwrap();
    // A header of 3 bytes, then a header of 40 bytes before each secret.
    let secrets = 3 + if role == Role::Publisher { 4 * 40 + 3 * 32 + 64 } else { 2 * 40 + 2 * 32 };
    let message = |bytes: &[u8]| json!({ "value": value_of(bytes), "bytes": hex(bytes) });
    json!({
        "token": &**cast.token(role).text(),
        "joiner_ephemeral": hex(&bytes(JOINER_EPHEMERAL)),
        "publisher_ephemeral": hex(&bytes(PUBLISHER_EPHEMERAL)),
        "hello": message(&hello),
        "challenge": message(&challenge),
        "request_hash": hex(&request),
        "redeem": message(&redeem),
        "answer_hash": hex(&answer_hash),
        "shared": hex(ours.diffie_hellman(&theirs).as_bytes()),
        "key": hex(&key[..32]),
        "nonce": hex(&key[32..]),
        "plain": { "secrets": hex(&plain[..secrets]), "facts": message(&plain[secrets..]) },
        "answer": message(&answer),
        "recorded": hex(&recorded.unwrap().invitation.to_bytes().unwrap()),
    })
}

/// The bytes of a rendered byte string.
fn unhex_of(rendered: &Value) -> Vec<u8> {
    let text = rendered.as_str().and_then(|text| text.strip_prefix("h'")?.strip_suffix('\''));
    unhex(&text.unwrap().into())
}

fn every_refusal(cluster: ClusterId, node: NodeId) -> Vec<JoinRefusal> {
    vec![
        JoinRefusal::UnknownToken,
        JoinRefusal::Expired { ago: 10 },
        JoinRefusal::UsedUp { uses: 1 },
        JoinRefusal::Revoked,
        JoinRefusal::OtherCluster(cluster),
        JoinRefusal::ClockSkew { publisher: NOW, joiner: NOW + 601 },
        JoinRefusal::NotPublisher,
        JoinRefusal::NoPublisher,
        JoinRefusal::AlreadyMember,
        JoinRefusal::Evicted,
        JoinRefusal::Version(2),
        JoinRefusal::Busy,
        JoinRefusal::NotYet,
        JoinRefusal::Silent(node),
        JoinRefusal::Failed,
        JoinRefusal::Malformed,
    ]
}

async fn refusals(cast: &VectorKeys) -> Value {
    let mut frames = Vec::new();
    for refusal in every_refusal(cast.cluster(), cast.alpha.node_id()) {
        let (near, mut far) = tokio::io::duplex(4096);
        let refused = tokio::spawn(refuse(Box::new(near), refusal));
        let frame = frame::read(&mut far, frame::MAX).await.unwrap();
        // `refuse` waits until this end is closed.
        drop(far);
        refused.await.unwrap();
        frames.push(json!({ "value": value_of(&frame), "bytes": hex(&frame) }));
    }
    Value::Array(frames)
}

/// Each side, given the other side's messages from the vectors, sends its own messages of the
/// vectors.
pub(crate) fn check(cast: &VectorKeys, vectors: &Value) {
    for role in [Role::Worker, Role::Publisher] {
        check_join(cast, role, &vectors[role.to_string()]);
    }
    for (refusal, frame) in
        every_refusal(cast.cluster(), cast.alpha.node_id()).into_iter().zip(vectors["refused"].as_array().unwrap())
    {
        let (mut joiner, _) = joiner(cast, Role::Worker);
        let heard = joiner.handle(&unhex(&frame["bytes"]), JOINER_UNIX);
        assert!(matches!(heard, Err(JoinError::Refused(heard)) if heard == refusal), "{refusal:?}");
    }
}

fn check_join(cast: &VectorKeys, role: Role, vector: &Value) {
    let message = |name: &str| unhex(&vector[name]["bytes"]);
    let (hello, challenge, redeem, answer) =
        (message("hello"), message("challenge"), message("redeem"), message("answer"));
    let node_id = node(cast, role).node_id();

    let token = Token::parse(vector["token"].as_str().unwrap()).unwrap();
    assert!(token.is_for(cast.cluster()));
    assert_eq!(token.invitation_id(), cast.token(role).invitation_id());

    let (mut joiner, first) = joiner(cast, role);
    assert_eq!(first, hello);
    assert_eq!(step(&mut joiner, &challenge).unwrap(), redeem);
    let joined = *step(&mut joiner, &answer).unwrap_err();
    assert_eq!((joined.member.node(), joined.member.role(), joined.skew), (node_id, role, 3));
    assert_eq!((joined.publisher.node(), joined.services), (cast.alpha.node_id(), Host::new(cast, role).services()));
    assert_eq!(joined.discovery.key, cast.discovery(0).key);
    assert_eq!(joined.points.as_bytes(), PointSeed::derive(&cast.authority, node_id).as_bytes());
    let secrets = joined.secrets.map(|secrets| {
        let identities: Vec<_> = secrets.services.iter().map(|of| *of.identity().unwrap().expanded()).collect();
        (identities, *secrets.authority.seed())
    });
    let expected = (vec![*cast.master.expanded()], *cast.authority.seed());
    assert_eq!(secrets, (role == Role::Publisher).then_some(expected));

    let (host, mut admission) = (Host::new(cast, role), admission());
    assert_eq!(host.receive(&mut admission, &hello).0, challenge);
    let (reply, recorded, outcome) = host.receive(&mut admission, &redeem);
    assert_eq!(reply, answer);
    assert_eq!(outcome, Some(Outcome::Admitted { node: node_id, role, again: false }));
    assert_eq!(recorded.unwrap().member, joined.member);
    no_changed_message_is_accepted(cast, role, &hello, &challenge, &redeem, &answer);
}

fn no_changed_message_is_accepted(
    cast: &VectorKeys,
    role: Role,
    hello: &[u8],
    challenge: &[u8],
    redeem: &[u8],
    answer: &[u8],
) {
    let host = Host::new(cast, role);
    for flipped in crate::flips(redeem) {
        let mut admission = admission();
        host.receive(&mut admission, hello);
        let (_, recorded, outcome) = host.receive(&mut admission, &flipped);
        assert!(matches!(outcome, Some(Outcome::Refused(_))) && recorded.is_none());
    }
    for flipped in crate::flips(hello) {
        // The publisher may answer the changed Hello, but the Redeem was signed for the original
        // one.
        let mut admission = admission();
        host.receive(&mut admission, &flipped);
        assert!(host.receive(&mut admission, redeem).1.is_none());
    }
    for at in 0..answer.len() {
        let mut flipped = answer.to_vec();
        flipped[at] ^= 1 << (at % 8);
        let (mut joiner, _) = joiner(cast, role);
        step(&mut joiner, challenge).unwrap();
        assert!(joiner.handle(&flipped, JOINER_UNIX).is_err(), "byte {at} of the answer");
    }
}
