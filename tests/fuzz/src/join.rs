//! Both sides of a join, the sealed parcel between them, and the token that a person types.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rustbalance::discovery::Offer;
use rustbalance::frame::{MAX, MAX_UNPROVEN};
use rustbalance::join::{
    Admission, Admissions, Effect, Event, Fresh, JoinRefusal, JoinedService, Joiner, Outcome, Parcel, Publisher, Step,
    Token,
};
use rustbalance::keys::{IdentitySecret, ServiceSecrets, TokenSecret};
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::codec;
use rustbalance_gossip::id::{InvitationId, NodeId};
use rustbalance_gossip::record::{Chain, DiscoveryKey, Invitation, Member, Role};
use rustbalance_gossip::signed::Unverified;
use serde::Serialize;
use zeroize::Zeroizing;

use super::Seed;
use super::world::{MEMBERS, NOW, world};

/// Index of the node that joins; it is not a member yet.
const JOINER: usize = 4;

/// The publisher's knowledge: the members, and the token's invitation for this role.
struct Cluster(Role);

impl Admissions for Cluster {
    fn invitation(&self, id: &InvitationId) -> Option<Invitation> {
        (*id == world().token_id).then(|| Invitation { role: self.0, ..world().invitation(9) })
    }

    fn member(&self, node: &NodeId) -> Option<Member> {
        world().members.iter().find(|member| member.node() == *node).cloned()
    }

    fn is_revoked(&self, node: &NodeId) -> bool {
        *node == world().nodes[3]
    }

    fn postponed(&self, _: Role) -> Option<JoinRefusal> {
        None
    }

    fn chains(&self) -> Vec<Chain> {
        (0..MEMBERS).map(|i| world().chain(i)).collect()
    }

    fn services(&self) -> Vec<JoinedService> {
        services()
    }

    fn discovery(&self) -> Option<Offer> {
        Some(world().discovery.offer())
    }
}

/// Node 0, a publisher, and the joiner before the first frame.
struct Meeting {
    publisher: Publisher,
    cluster: Cluster,
    admission: Admission,
    joiner: Joiner,
    hello: Vec<u8>,
}

/// The identity key of a second service.
fn second() -> IdentitySecret {
    IdentitySecret::generate(&mut StdRng::seed_from_u64(22))
}

fn services() -> Vec<JoinedService> {
    let services = [world().cluster.first_service(), second().service_id()];
    services.map(|service| JoinedService { service, ports: vec![80, 443] }).into()
}

fn fresh(seed: u64) -> Fresh {
    Fresh::generate(&mut StdRng::seed_from_u64(seed))
}

impl Meeting {
    fn new(role: Role) -> Self {
        let world = world();
        let publisher = Publisher {
            membership: world.members[0].clone(),
            node: world.keys[0].duplicate(),
            authority: world.authority.duplicate(),
            services: vec![ServiceSecrets::of(world.master.duplicate()), ServiceSecrets::of(second())],
        };
        let token = Token::new(world.token.duplicate(), world.cluster);
        let (joiner, hello) = Joiner::new(&token, &world.keys[JOINER], world.cluster, fresh(1)).unwrap();
        Self { publisher, cluster: Cluster(role), admission: Admission::new(fresh(2)), joiner, hello }
    }

    /// Gives the publisher a frame and confirms the redemption if it asks for that; returns its
    /// answer and, if the join has ended, the outcome.
    fn knock(&mut self, frame: &[u8]) -> (Vec<u8>, Option<Outcome>) {
        let Self { publisher, cluster, admission, .. } = self;
        let mut effects = admission.handle(Event::Frame(frame), NOW, publisher, cluster);
        if let [Effect::Record(redemption)] = effects.as_slice() {
            assert!(redemption.invitation.redeemed.contains(&redemption.member.node()));
            assert_eq!(redemption.member.role(), redemption.invitation.role);
            effects = admission.handle(Event::Recorded(true), NOW, publisher, cluster);
        }
        let (mut answer, mut outcome) = (Vec::new(), None);
        for effect in effects {
            match effect {
                Effect::Send(frame) => answer = frame,
                Effect::Close(how) => outcome = Some(how),
                Effect::Record(_) => panic!("a second record"),
            }
        }
        assert!(!answer.is_empty() && answer.len() <= MAX, "an answer of {} bytes", answer.len());
        (answer, outcome)
    }

    fn challenge(&mut self) -> Vec<u8> {
        let hello = self.hello.clone();
        self.knock(&hello).0
    }

    fn redeem(&mut self) -> Vec<u8> {
        let challenge = self.challenge();
        let Ok(Step::Send(redeem)) = self.joiner.handle(&challenge, NOW) else { panic!("no redeem") };
        redeem
    }

    fn answer(&mut self) -> Vec<u8> {
        let redeem = self.redeem();
        self.knock(&redeem).0
    }
}

/// The first byte chooses which frame of the join the rest is, and the role of the joiner.
pub(crate) fn join(bytes: &[u8]) -> bool {
    let Some((&turn, frame)) = bytes.split_first() else { return false };
    let role = if turn & 1 == 0 { Role::Worker } else { Role::Publisher };
    let mut meeting = Meeting::new(role);
    match turn / 2 % 5 {
        0 => {
            let (answer, outcome) = meeting.knock(frame);
            assert!(outcome.is_none() || answer.len() < MAX_UNPROVEN);
            outcome.is_none()
        }
        1 => {
            meeting.challenge();
            match meeting.knock(frame).1.unwrap() {
                Outcome::Admitted { node, role: became, .. } => {
                    assert_eq!((node, became), (world().nodes[JOINER], role), "only the joiner holds the token");
                    true
                }
                Outcome::Refused(_) => false,
            }
        }
        2 => matches!(meeting.joiner.handle(frame, NOW), Ok(Step::Send(redeem)) if redeem.len() <= MAX_UNPROVEN),
        3 => {
            meeting.redeem();
            let Ok(Step::Joined(joined)) = meeting.joiner.handle(frame, NOW) else { return false };
            assert_eq!(joined.member.node(), world().nodes[JOINER]);
            assert_eq!(joined.publisher, world().members[0]);
            assert_eq!(joined.secrets.is_some(), role == Role::Publisher);
            true
        }
        _ => parcel(frame, role),
    }
}

/// The parcel that the publisher's last answer carries sealed.
fn parcel(bytes: &[u8], role: Role) -> bool {
    let Ok(parcel) = Parcel::from_bytes(bytes, role) else { return false };
    let written = parcel.to_bytes().unwrap();
    assert!(written.len() < MAX);
    let again = Parcel::from_bytes(&written, role).unwrap();
    assert_eq!(again.to_bytes().unwrap(), written);
    true
}

/// A parcel as the publisher packs it: secrets by role, then everything public.
fn sealed(role: Role) -> Vec<u8> {
    #[derive(Serialize)]
    struct Facts {
        signature: FixedBytes<64>,
        publisher: Chain,
        member: Chain,
        members: Vec<Chain>,
        services: Vec<JoinedService>,
        discovery: Unverified<DiscoveryKey>,
        unix: u64,
    }
    let world = world();
    let facts = Facts {
        signature: FixedBytes([1; 64]),
        publisher: world.chain(0),
        member: world.chain(1),
        members: vec![world.chain(2)],
        services: services(),
        discovery: world.discovery.key.unverified(),
        unix: NOW,
    };
    let (own, second) = ([0; 32], second());
    let mut secrets = vec![(1u16, &own, &world.discovery.secret.as_bytes()[..]), (2, &own, &[7; 32])];
    let (one, two) = (world.cluster.first_service(), second.service_id());
    if role == Role::Publisher {
        secrets.push((3, &own, world.authority.seed()));
        secrets.push((4, one.public_key(), world.master.expanded()));
        secrets.push((4, two.public_key(), second.expanded()));
    }
    // A secret for a purpose that this version does not know.
    secrets.push((900, two.public_key(), b"later"));
    let mut bytes = vec![1];
    bytes.extend((secrets.len() as u16).to_be_bytes());
    for (role, service, secret) in secrets {
        bytes.extend(role.to_be_bytes());
        bytes.extend(service);
        bytes.extend(0u32.to_be_bytes());
        bytes.extend((secret.len() as u16).to_be_bytes());
        bytes.extend(secret);
    }
    bytes.extend(codec::encode(&facts).unwrap());
    bytes
}

pub(crate) fn join_seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (role, bit) in [(Role::Worker, 0), (Role::Publisher, 1)] {
        let meeting = || Meeting::new(role);
        let mut seed = |turn: u8, name: &str, frame: Vec<u8>| {
            seeds.push(Seed::good(format!("{name}-{role}"), [&[turn * 2 + bit][..], &frame].concat()));
        };
        seed(0, "hello", meeting().hello);
        seed(1, "redeem", meeting().redeem());
        seed(2, "challenge", meeting().challenge());
        seed(3, "answer", meeting().answer());
        seed(4, "parcel", sealed(role));
    }
    let (refusal, _) = Meeting::new(Role::Worker).knock(b"\x01nonsense");
    seeds.push(Seed::bad("refused", [&[4][..], &refusal].concat()));
    let other = Meeting { admission: Admission::new(fresh(3)), ..Meeting::new(Role::Worker) }.redeem();
    seeds.push(Seed::bad("replayed-redeem", [&[2][..], &other].concat()));
    seeds
}

/// A token as a person types it.
pub(crate) fn token(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(token) = Token::parse(text) else { return false };
    let written = token.text();
    let typed: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    // A token has one spelling, apart from case and white space.
    assert_eq!(typed.to_ascii_lowercase(), **written);
    let again = Token::parse(&written).unwrap();
    assert_eq!(again.secret().seed(), token.secret().seed());
    assert_eq!(again.is_for(world().cluster), token.is_for(world().cluster));
    true
}

pub(crate) fn token_seeds() -> Vec<Seed> {
    let token = Token::new(TokenSecret::from_seed(&Zeroizing::new([5; 32])), world().cluster);
    let text = token.text();
    vec![
        Seed::good("whole", text.as_bytes()),
        Seed::good("shouted", text.to_uppercase()),
        Seed::good("pasted", format!("  {}\r\n\t{}\n", &text[..20], &text[20..])),
        Seed::bad("cut", &text.as_bytes()[..61]),
        Seed::bad("mistyped", text.replacen('q', "r", 1)),
        Seed::bad("not-base32", text.replacen('a', "1", 1)),
    ]
}
