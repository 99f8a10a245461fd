//! Records on their way into a member's view. Every signature is accepted, so that only the content
//! of a record decides.

use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::codec;
use rustbalance_gossip::id::{ClusterId, InvitationId, NodeId, ServiceId};
use rustbalance_gossip::lease::Claim;
use rustbalance_gossip::liveness::Patience;
use rustbalance_gossip::record::{
    AnyFact, Chain, Endpoint, Fitness, Heartbeat, IntroPoints, Invitation, Lease, MAX_INTRO_POINTS, MAX_SERVICES,
    MemberCertificate, NodeCard, NodeReport, PeriodId, Phase, Publication, PublishedPeriod, RecordKind, Renewal,
    Revocation, Role, Service, Signer, Subprotocol,
};
use rustbalance_gossip::signed::{Unverified, Verified};
use rustbalance_gossip::time::Now;
use rustbalance_gossip::view::{MAX_NODES, RecordRejection, Standing, View};
use serde::Serialize;

use super::Seed;
use super::script::{Script, ScriptBuilder};
use super::world::{Lenient, MEMBERS, NODES, NOW, PERIOD, envelope, nonce, point, unsigned, world};

/// Most steps in one input; longer scripts find nothing new.
const MOST: usize = 64;
/// Highest revision in a valid publication: the record's own bound.
const MAX_REVISION: u64 = 1 << 57;

/// Step: hand in raw bytes as a record.
const RAW: u8 = 0;
/// Step: hand in raw bytes as the statement in an envelope.
const STATEMENT: u8 = 1;
/// Step: hand in a well-formed record whose fields come from the script.
const RECORD: u8 = 2;
/// Step: hand in the previous record again, as if it came from a node that the script chooses.
const AGAIN: u8 = 3;
/// Step: let time pass.
const WAIT: u8 = 4;
const ORDERS: usize = 5;

/// Applies a script of records to a view; true if one of them changed it.
pub(crate) fn view(bytes: &[u8]) -> bool {
    let mut script = Script::new(bytes);
    let mut view = View::new(world().members[0].clone(), Patience::default(), 2).with_check(Box::new(Lenient));
    let mut now = Now { mono: std::time::Duration::from_secs(100), unix: NOW };
    let mut last = (RecordKind::Card, Vec::new());
    let mut taken = false;
    for _ in 0..MOST {
        if script.is_over() {
            break;
        }
        let order = script.choice(ORDERS) as u8;
        if order == WAIT {
            now = now.plus(std::time::Duration::from_secs(u64::from(script.byte())));
            view.refresh(now);
        } else {
            let who = script.choice(NODES);
            let origin = world().nodes[who];
            if order != AGAIN {
                let kind = kind(&mut script);
                let record = match order {
                    RAW => script.bytes().to_vec(),
                    STATEMENT => envelope(&signer(kind, origin), script.bytes()),
                    _ => composed(&mut script, kind, origin),
                };
                last = (kind, record);
            }
            taken |= put(&mut view, origin, last.0, &last.1, now);
        }
        check(&view, now);
    }
    taken
}

/// Reads the subject of a record kind (a node, a token, a service) from the script.
trait Drawn {
    fn draw(script: &mut Script<'_>) -> Self;
}

impl Drawn for InvitationId {
    fn draw(script: &mut Script<'_>) -> Self {
        token(script)
    }
}

impl Drawn for NodeId {
    fn draw(script: &mut Script<'_>) -> Self {
        world().nodes[script.choice(NODES)]
    }
}

/// The first service or one of 255 others, which is more than a cluster may have.
impl Drawn for ServiceId {
    fn draw(script: &mut Script<'_>) -> Self {
        match script.byte() {
            0 => world().cluster.first_service(),
            other => Self::from_public_key([other; 32]),
        }
    }
}

macro_rules! drawn {
    (
        own { $($Own:ident($own:literal): $OwnType:ty => $own_fold:ident;)* }
        keyed { $($Keyed:ident($keyed:literal, $Key:ty): $KeyedType:ty => $keyed_fold:ident;)* }
        facts { $($Fact:ident($fact:literal, $Id:ty): $FactType:ty, $facts:ident => $learn:ident;)* }
    ) => {
        /// A reader for every kind of record.
        const DRAWN: &[fn(&mut Script<'_>) -> RecordKind] = &[
            $(|_| RecordKind::$Own,)*
            $(|script| RecordKind::$Keyed(<$Key>::draw(script)),)*
            $(|script| RecordKind::$Fact(<$Id>::draw(script)),)*
            |_| RecordKind::from_key("later/fact").unwrap(),
        ];
    };
}

rustbalance_gossip::record_kinds!(drawn);

/// Reads a record kind with its subject.
fn kind(script: &mut Script<'_>) -> RecordKind {
    let draw = DRAWN[script.choice(DRAWN.len())];
    draw(script)
}

fn token(script: &mut Script<'_>) -> InvitationId {
    match script.byte() {
        0 => world().token_id,
        other => InvitationId::from_public_key([other; 32]),
    }
}

/// The key that must sign a record of this kind: the authority's or the node's own.
fn signer(kind: RecordKind, origin: NodeId) -> [u8; 32] {
    match kind.signer() {
        Signer::Authority | Signer::Unknown => *world().authority_id.public_key(),
        Signer::Node => *origin.public_key(),
    }
}

/// A well-formed record of this kind; the script chooses its fields freely.
fn composed(script: &mut Script<'_>, kind: RecordKind, origin: NodeId) -> Vec<u8> {
    let (cluster, node, key) = (world().cluster, origin, signer(kind, origin));
    let seq = (u64::from(script.byte()) << 32) | script.number();
    match kind {
        RecordKind::Card => {
            let (chain, address) = (certified(script, origin), mesh_address(&node));
            let (priority, weight) = (script.byte(), script.byte());
            let version = "v".repeat(script.byte().into());
            let ports = (1..=u16::from(priority / 2)).collect();
            unsigned(&key, &NodeCard { cluster, node, seq, chain, address, priority, weight, version, ports })
        }
        RecordKind::Heartbeat => {
            let phases = [Phase::Joining, Phase::Active, Phase::Draining, Phase::Gone];
            let (phase, unix) = (phases[script.choice(phases.len())], NOW.wrapping_sub(script.number()));
            unsigned(&key, &Heartbeat { cluster, node, seq, phase, hears: 1, unix, instance: 1 })
        }
        RecordKind::IntroPoints(service) => {
            let fitness = [Fitness::Healthy, Fitness::Degraded, Fitness::Draining, Fitness::Down][script.choice(4)];
            let points: Vec<_> = (0..script.choice(MAX_INTRO_POINTS + 2)).map(|_| point(script.byte())).collect();
            let nonces = points.iter().map(nonce).collect();
            let subprotocols = (0..fitness as u8).map(|version| Subprotocol(2, version)).collect();
            unsigned(&key, &IntroPoints { cluster, node, seq, service, fitness, nonces, points, subprotocols })
        }
        RecordKind::Lease => {
            let (term, ttl_ms, priority) = (script.number(), script.number() as u32, script.byte());
            unsigned(&key, &Lease { cluster, holder: node, seq, term, priority, ttl_ms })
        }
        RecordKind::Endpoint => {
            let sealed = VarBytes(script.bytes().to_vec());
            unsigned(&key, &Endpoint { cluster, node, seq, sealed })
        }
        RecordKind::Report => {
            let name = (script.byte() & 1 == 0).then(|| format!("web-{}", script.byte()).parse().unwrap());
            let problems =
                (0..script.choice(18)).map(|_| format!("problem_{:03}", script.byte()).parse().unwrap()).collect();
            unsigned(&key, &NodeReport { cluster, node, seq, name, problems })
        }
        RecordKind::Publication(service) => {
            let mut period = || {
                let period = PeriodId { number: script.number(), ..PERIOD };
                PublishedPeriod { period, revision: script.number(), confirmed: 1, directories: 2 }
            };
            let periods = vec![period(), period()];
            unsigned(&key, &Publication { cluster, node, seq, service, term: seq & 0xff, periods })
        }
        RecordKind::Invitation(token) => {
            let (uses, revoked) = (script.byte().into(), script.byte() == 1);
            let redeemed = (0..script.choice(NODES)).map(|_| world().nodes[script.choice(NODES)]).collect();
            let expires = NOW.wrapping_add(script.number());
            unsigned(&key, &Invitation { token, redeemed, revoked, expires, ..world().invitation(uses) })
        }
        RecordKind::Service(service) => {
            let removed = script.byte() == 1;
            let ports = (0..script.choice(4)).map(|_| script.byte().into()).collect();
            unsigned(&key, &Service { service, removed, ..world().service(seq, ports) })
        }
        RecordKind::Revocation(node) => unsigned(&key, &Revocation { cluster, node, revoked: seq }),
        RecordKind::Renewal(node) => {
            let known = world().members.iter().find(|member| member.node() == node).unwrap_or(&world().members[0]);
            let expires = NOW.wrapping_add(script.number());
            let certificate = MemberCertificate { expires, node, ..(*known.certificate).clone() };
            let signed = Verified::sign(certificate, &world().authority).unwrap();
            unsigned(&key, &Renewal { issued: NOW.wrapping_sub(seq), ..Renewal::of(&signed) })
        }
        RecordKind::Unknown(_) => {
            let expires = NOW.wrapping_add(script.number());
            envelope(&key, &codec::encode(&Later { cluster, seq, expires }).unwrap())
        }
    }
}

/// A fact of a kind that this version does not know.
#[derive(Serialize)]
struct Later {
    cluster: ClusterId,
    seq: u64,
    expires: u64,
}

/// A chain with any role, dates and token.
fn certified(script: &mut Script<'_>, node: NodeId) -> Chain {
    let world = world();
    let role = if script.byte() & 1 == 0 { Role::Publisher } else { Role::Worker };
    let (issued, expires) = (NOW.wrapping_sub(script.number()), NOW.wrapping_add(script.number()));
    let invitation = (script.byte() & 1 == 0).then(|| token(script));
    let certificate = MemberCertificate { cluster: world.cluster, node, role, issued, expires, invitation };
    let member = Unverified::from_bytes(&unsigned(world.authority_id.public_key(), &certificate)).unwrap();
    Chain { member, ..world.chain(0) }
}

/// Ingests a record twice; true if the first time changed the view.
fn put(view: &mut View, origin: NodeId, kind: RecordKind, record: &[u8], now: Now) -> bool {
    let before = Summary::of(view, now);
    let outcome = view.ingest(origin, kind, record, now);
    let after = Summary::of(view, now);
    assert!(after.highest_term >= before.highest_term);
    match outcome {
        Err(RecordRejection::Unknown) => assert_eq!(after, before),
        // An old heartbeat shows that its sender may be alive, which may extend its lease.
        Err(RecordRejection::Old) => assert_eq!((&after.nodes, after.best), (&before.nodes, before.best)),
        Err(rejection) => {
            assert_eq!(after, before, "refused as {rejection:?}");
            assert!(view.refused().of(rejection.name()) > 0);
            return false;
        }
        Ok(_) => {}
    }
    // A record that is already known changes nothing.
    let _ = view.ingest(origin, kind, record, now);
    assert_eq!(Summary::of(view, now), after, "the same record changed the view a second time");
    after != before
}

/// One node: its id, its standing, whether it is alive, and the sequence number of each of its
/// records.
type NodeSummary = (NodeId, Standing, bool, Vec<(RecordKind, u64)>);

/// The visible state of a view, which a refused record must not change.
#[derive(Debug, PartialEq)]
struct Summary {
    nodes: Vec<NodeSummary>,
    highest_term: u64,
    best: Option<Claim>,
    holder: Option<(NodeId, u64)>,
    facts: Vec<AnyFact>,
    invitations: Vec<Invitation>,
}

impl Summary {
    fn of(view: &View, now: Now) -> Self {
        let nodes = world().nodes.iter().filter_map(|node| view.node(node)).map(|node| {
            let records = node.records().map(|record| (record.kind(), record.seq())).collect();
            (node.node(), node.standing, node.alive, records)
        });
        Self {
            nodes: nodes.collect(),
            highest_term: view.highest_term(),
            best: view.best_claim(),
            holder: view.holder(now),
            facts: view.facts().complete_statements(),
            invitations: view.invitations().iter().cloned().collect(),
        }
    }
}

/// Checks the invariants of every view.
fn check(view: &View, now: Now) {
    assert!(view.members().count() <= MAX_NODES);
    assert!(view.node(&view.me()).is_some());
    if let Some((holder, term)) = view.holder(now) {
        assert!(view.member(&holder).is_some_and(|node| node.member.role() == Role::Publisher));
        assert!(term <= view.highest_term());
    }
    for member in view.members() {
        assert!(!view.revoked(&member.node()));
        assert_eq!(member.member.certificate.cluster, view.cluster());
        if let Some(card) = member.card() {
            assert_eq!(card.address, mesh_address(&member.node()));
            assert!((1..=100).contains(&card.weight));
        }
        assert!(member.all_intro_points().count() <= MAX_SERVICES);
        for points in member.all_intro_points() {
            assert!(points.points.len() <= MAX_INTRO_POINTS);
            for period in member.publication(&points.service).into_iter().flat_map(|published| &published.periods) {
                assert!(period.revision <= MAX_REVISION);
                let highest = view.highest_revision(&points.service, &period.period);
                assert!(highest.is_none_or(|highest| highest >= period.revision.min(MAX_REVISION / 2)));
            }
        }
    }
    for invitation in view.invitations().iter() {
        assert!((1..=Invitation::MAX_USES).contains(&invitation.uses));
    }
}

pub(crate) fn view_seeds() -> Vec<Seed> {
    let world = world();
    let record = |who: usize, kind: u8| ScriptBuilder::default().byte(RECORD).byte(who as u8).byte(kind);
    // In this order: role, issued, expires, whether there is an invitation and its token, priority,
    // weight, length of the version.
    let card = |who: usize, role: u8| {
        let card = record(who, 0).byte(1).number(1).byte(role).number(100).number(1000);
        card.byte(0).byte(0).byte(100).byte(1).byte(5)
    };
    let beat = |who: usize, seq: u64| record(who, 1).byte(1).number(seq).byte(1).number(5);
    let points = |who: usize| record(who, 5).byte(0).byte(1).number(1).byte(0).byte(2).byte(who as u8).byte(20);
    let lease = |who: usize, term: u64| record(who, 2).byte(1).number(term).number(term).number(30_000).byte(100);
    let publication =
        |who: usize| record(who, 6).byte(0).byte(1).number(1).number(20_000).number(77).number(20_001).number(78);
    let invitation = |uses: u8| record(1, 7).byte(0).byte(1).number(1).byte(uses).byte(0).byte(0).number(9);
    let revocation = |who: usize| record(1, 8).byte(who as u8).byte(1).number(1);
    let report = |who: usize| record(who, 4).byte(1).number(1).byte(0).byte(7).byte(2).byte(1).byte(2);
    let renewal = |who: usize, ends: u64| record(1, 10).byte(who as u8).byte(1).number(1).number(ends);
    let script = |orders: Vec<ScriptBuilder>| orders.into_iter().flat_map(|orders| orders.0).collect::<Vec<u8>>();
    let again = |who: usize| ScriptBuilder::default().byte(AGAIN).byte(who as u8);
    let wait = ScriptBuilder::default().byte(WAIT).byte(60);
    let strange = unsigned(world.nodes[1].public_key(), &world.revocation(2));
    let statement = codec::encode(&Lease {
        cluster: world.cluster,
        holder: world.nodes[1],
        seq: 9 << 32,
        term: 4,
        priority: 1,
        ttl_ms: 9000,
    })
    .unwrap();
    let raw = |order: u8, kind: u8, bytes: &[u8]| ScriptBuilder::default().byte(order).byte(1).byte(kind).bytes(bytes);
    let whole = (1..MEMBERS).flat_map(|who| [card(who, u8::from(who > 1)), beat(who, 1), beat(who, 2), points(who)]);
    vec![
        Seed::good("members", script(whole.collect())),
        Seed::good("leases", script(vec![card(1, 0), card(2, 0), lease(1, 3), lease(2, 3), lease(1, 5), lease(2, 4)])),
        Seed::good("waiting", script(vec![beat(1, 1), lease(1, 3), publication(1), card(1, 0), beat(1, 2)])),
        Seed::good("overdrawn", script(vec![card(1, 0), card(2, 1), card(3, 1), invitation(1), beat(3, 1)])),
        Seed::good("evicted", script(vec![card(1, 0), lease(1, 3), revocation(1), beat(1, 9), card(1, 0)])),
        Seed::good("reported", script(vec![card(1, 0), beat(1, 1), report(1), again(2)])),
        Seed::good(
            "renewed",
            script(vec![card(1, 0), renewal(1, 1 << 20), revocation(2), renewal(2, 9), renewal(0, 7)]),
        ),
        Seed::good("silent", script(vec![card(1, 0), beat(1, 1), beat(1, 2), lease(1, 3), wait, beat(1, 3)])),
        Seed::good("statement", script(vec![card(1, 0), raw(STATEMENT, 2, &statement), again(1), again(2)])),
        Seed::bad("raw", script(vec![raw(RAW, 1, &strange), again(2)])),
        Seed::bad("strangers", script(vec![beat(1, 1), beat(2, 1), again(5)])),
    ]
}
