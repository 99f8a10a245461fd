//! Rules that every node must compute in the same way, and the rules of publishers: orders, merges,
//! choices.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use rustbalance::keys::{NodeSecret, PointSeed};
use rustbalance::tor::arti::disaster;
use rustbalance::tor::descriptor::PeriodCredentials;
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::lease::{Claim, Rank};
use rustbalance_gossip::liveness::{Liveness, Patience};
use rustbalance_gossip::plan::{Choice, choose};
use rustbalance_gossip::record::{Fitness, IntroPoint, Invitation, RecordKind, RelayId, Role, Subprotocol};
use rustbalance_gossip::source::Candidate;
use rustbalance_gossip::stand_in;
use rustbalance_gossip::time::Now;
use rustbalance_gossip::view::View;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::cast::{NOW, VectorKeys, bytes, sign};
use crate::records::{PERIOD, SEAL_NONCE, announcement, lease, nonce, point};
use crate::{hex, render, value_of};

fn node(n: u8) -> NodeId {
    NodeId::from_public_key(bytes(n))
}

fn key(node: &NodeId) -> String {
    hex(node.public_key())
}

pub(crate) fn rules(cast: &VectorKeys) -> Value {
    json!({
        "ranks": ranks(),
        "claims": claims(cast),
        "liveness": liveness(),
        "invitations": invitations(cast),
        "overdrawn": overdrawn(cast),
        "discovery": discovery(cast),
        "neighbours": crate::links::neighbours(cast),
        "choices": choices(),
        "point_keys": point_keys(cast),
        "stand_ins": stand_ins(),
        "revisions": revisions(cast),
        "ring": ring(),
        "announcement": announced(),
    })
}

/// The ranking of the nodes for three terms, best first.
fn ranks() -> Value {
    let nodes = [(10, 100), (20, 100), (30, 100), (40, 100), (50, 200), (60, 50)];
    let queue = |term: u64| {
        let mut ranked: Vec<_> =
            nodes.iter().map(|(n, priority)| (Rank::new(*priority, term, node(*n)), node(*n))).collect();
        ranked.sort();
        json!({ "term": term, "order": ranked.iter().map(|(_, node)| key(node)).collect::<Vec<_>>() })
    };
    let nodes: Vec<_> =
        nodes.iter().map(|(n, priority)| json!({ "node": key(&node(*n)), "priority": priority })).collect();
    json!({ "nodes": nodes, "queues": [queue(1), queue(2), queue(1 << 40)] })
}

/// Claims to the lease, from the worst to the best.
fn claims(cast: &VectorKeys) -> Value {
    let made = [(1, 10, 0), (2, 10, 100), (2, 20, 100), (2, 30, 50), (3, 40, 200), (3, 50, 200)];
    let mut claims: Vec<_> =
        made.iter().map(|(term, n, priority)| lease(cast.cluster(), node(*n), *term, *priority)).collect();
    claims.sort_by_key(Claim::of);
    let described =
        claims.iter().map(|it| json!({ "term": it.term, "holder": key(&it.holder), "priority": it.priority }));
    described.collect()
}

/// The arrival times of heartbeats, and the time at which the node counts as dead if no more
/// arrive, in milliseconds.
fn liveness() -> Value {
    let deadline = |nodes: usize, beats: &[u64]| {
        let mut liveness = Liveness::new(Patience::default());
        liveness.adapt(nodes);
        for at in beats {
            liveness.expire(Duration::from_millis(*at));
            liveness.on_heartbeat(node(1), false, Duration::from_millis(*at));
        }
        let dead = liveness.next_deadline().map(|at| at.as_millis() as u64);
        json!({ "nodes": nodes, "beats": beats, "dead_at": dead })
    };
    json!([
        deadline(3, &[0]),
        deadline(3, &[0, 2000]),
        deadline(3, &[0, 2000, 4000, 6500, 9000]),
        deadline(3, &[0, 8000, 16_000, 24_000, 32_000, 40_000]),
        deadline(3, &[0, 2000, 100_000]),
        deadline(500, &[0, 10_000, 20_000]),
    ])
}

fn view(cast: &VectorKeys) -> View {
    View::new(cast.founder(), Patience::default(), 0)
}

fn now() -> Now {
    Now { mono: Duration::ZERO, unix: NOW }
}

/// Versions of one invitation, and the merged invitation.
fn invitations(cast: &VectorKeys) -> Value {
    let mut view = view(cast);
    let first = Invitation { uses: 2, ..cast.invitation(Role::Publisher) };
    let mut versions = vec![first.clone(), first.clone(), first];
    versions[0].redeemed = [node(20), node(10)].into();
    versions[1].redeemed = [node(30)].into();
    versions[1].expires -= 3600;
    versions[1].role = Role::Worker;
    versions[2].revoked = true;
    versions[2].issued -= 60;
    let token = versions[0].token;
    for version in &versions {
        let bytes = sign(version.clone(), &cast.authority).to_bytes().unwrap();
        view.ingest(node(1), RecordKind::Invitation(token), &bytes, now()).unwrap();
    }
    let rendered = |invitation: &Invitation| render(&ciborium::Value::serialized(invitation).unwrap());
    let merged = rendered(view.invitations().get(&token).unwrap());
    json!({ "versions": versions.iter().map(rendered).collect::<Vec<_>>(), "merged": merged })
}

/// Nodes that joined with one token for two uses, and the ones among them that are not members
/// because the token was used up.
fn overdrawn(cast: &VectorKeys) -> Value {
    let mut view = view(cast);
    let invitation = Invitation { uses: 2, ..cast.invitation(Role::Worker) };
    let token = invitation.token;
    let joined = [(10, NOW - 10), (20, NOW - 10), (30, NOW - 20), (40, NOW)].map(|(first, issued)| {
        let secret = NodeSecret::from_seed(&Zeroizing::new(bytes(first)));
        let member = cast.member(&secret, Role::Worker, issued, Some(token));
        view.admit_chain(member.chain(), now()).unwrap();
        (member.node(), issued)
    });
    let bytes = sign(invitation, &cast.authority).to_bytes().unwrap();
    view.ingest(node(1), RecordKind::Invitation(token), &bytes, now()).unwrap();
    let joined = joined.map(|(node, issued)| json!({ "node": key(&node), "issued": issued }));
    json!({ "uses": 2, "joined": joined, "overdrawn": view.overdrawn().map(|node| key(&node)).collect::<Vec<_>>() })
}

/// Discovery keys by rank, from the oldest to the newest.
fn discovery(cast: &VectorKeys) -> Value {
    let mut keys: Vec<_> = [0, 1].map(|generation| cast.discovery(generation).key.clone()).into();
    let mut twin = (*keys[1]).clone();
    twin.public = FixedBytes(bytes(0xff));
    keys.push(sign(twin, &cast.authority));
    keys.sort_by_key(|key| key.rank());
    let described = keys.iter().map(|key| json!({ "generation": key.generation, "public": hex(&key.public.0) }));
    described.collect()
}

struct Server {
    node: NodeId,
    fitness: Fitness,
    weight: u8,
    points: Vec<IntroPoint>,
    subprotocols: Vec<Subprotocol>,
}

fn server(n: u8, fitness: Fitness, weight: u8, relays: &[u8]) -> Server {
    let points = relays.iter().map(|relay| {
        let mut point = point(*relay);
        // Two nodes at the same relay have different session keys.
        point.session_key = FixedBytes(bytes(relay.wrapping_mul(7).wrapping_add(n)));
        point
    });
    Server { node: node(n), fitness, weight, points: points.collect(), subprotocols: vec![Subprotocol(2, 6)] }
}

/// A choice of introduction points. `published` are the points of the last choice, as pairs of
/// server and point; `healthy` are the servers that were healthy at the last time when any server
/// was.
fn choice(servers: &[Server], published: &[(usize, usize)], healthy: &[usize], limit: usize, count: u64) -> Value {
    let candidates: Vec<Candidate<'_>> = servers
        .iter()
        .map(|it| Candidate {
            source: it.node.into(),
            fitness: it.fitness,
            weight: it.weight,
            points: &it.points,
            subprotocols: &it.subprotocols,
        })
        .collect();
    let before = published.iter().map(|(at, which)| (servers[*at].node.into(), servers[*at].points[*which].clone()));
    let healthy = healthy.iter().map(|at| servers[*at].node.into()).collect();
    let before = Choice { points: before.collect(), healthy, ..Choice::default() };
    let described: Vec<_> = servers
        .iter()
        .map(|it| {
            let point = |point: &IntroPoint| {
                let RelayId { rsa, ed25519 } = point.relay;
                json!({ "rsa": hex(&rsa.0), "ed25519": hex(&ed25519.0), "session_key": hex(&point.session_key.0) })
            };
            let points: Vec<_> = it.points.iter().map(point).collect();
            json!({ "node": key(&it.node), "fitness": it.fitness, "weight": it.weight, "points": points, "subprotocols": it.subprotocols })
        })
        .collect();
    let keys = |choice: &Choice| choice.points.iter().map(|(_, point)| hex(&point.session_key.0)).collect::<Vec<_>>();
    let chosen = choose(&candidates, &before, limit, count);
    json!({
        "servers": described,
        "published": keys(&before),
        "last_healthy": before.healthy.iter().filter_map(|it| it.node()).map(|it| key(&it)).collect::<Vec<_>>(),
        "limit": limit,
        "count": count,
        "chosen": keys(&chosen),
        "offered": chosen.subprotocols,
    })
}

/// Choices of the introduction points for a descriptor.
fn choices() -> Value {
    use Fitness::{Degraded, Down, Draining, Healthy};
    let few = || {
        vec![
            server(30, Healthy, 10, &[1, 2, 3, 4]),
            server(10, Healthy, 30, &[4, 5, 6, 7]),
            server(20, Degraded, 10, &[8]),
            server(40, Healthy, 10, &[9, 10, 11]),
        ]
    };
    let many: Vec<Server> = (1..=12).map(|n| server(n * 20, Healthy, n, &[n, n / 2 + 20, 60 + n])).collect();
    // One point names the RSA identity of one relay and the Ed25519 identity of another.
    let mut mixed = few();
    mixed[3].points[0].relay = RelayId { rsa: mixed[0].points[1].relay.rsa, ..mixed[1].points[2].relay };
    // Two servers grant another subprotocol as well; one, without points, grants none.
    let mut unlike = few();
    unlike[0].subprotocols = vec![Subprotocol(2, 6), Subprotocol(11, 3)];
    unlike[1].subprotocols = vec![Subprotocol(2, 5), Subprotocol(2, 6)];
    unlike.push(Server { subprotocols: Vec::new(), ..server(50, Healthy, 10, &[]) });
    // A server of a version that grants nothing.
    let mut earlier = few();
    earlier[2].subprotocols.clear();
    let ill = [server(10, Down, 10, &[1, 2]), server(20, Draining, 10, &[3]), server(30, Degraded, 10, &[4])];
    json!([
        choice(&few(), &[], &[], 9, 0),
        choice(&few(), &[(0, 2), (1, 3), (3, 2)], &[], 6, 0),
        choice(&few(), &[(0, 3)], &[], 20, 0),
        choice(&few(), &[(1, 0)], &[], 20, 0),
        choice(&mixed, &[], &[], 20, 0),
        choice(&mixed, &[(0, 1)], &[], 20, 0),
        choice(&unlike, &[], &[], 20, 0),
        choice(&earlier, &[], &[], 20, 0),
        choice(&ill, &[], &[], 20, 0),
        choice(&ill, &[], &[2], 20, 0),
        choice(&many, &[], &[], 5, 1),
        choice(&many, &[], &[], 5, 2),
    ])
}

/// The keys of one of beta's points. Beta received the seed when it joined, and every publisher can
/// derive it.
fn point_keys(cast: &VectorKeys) -> Value {
    let seed = PointSeed::derive(&cast.authority, cast.beta.node_id());
    let secrets = seed.secrets(nonce(1));
    json!({
        "seed": hex(seed.as_bytes()),
        "nonce": hex(&secrets.nonce.0.0),
        "session_seed": hex(&secrets.session),
        "session_key": hex(&secrets.session_key()),
        "encryption_secret": hex(&secrets.encryption),
        "encryption_key": hex(&secrets.encryption_key()),
    })
}

/// The content of the record `statements.endpoint`, and the nonce under which it is sealed.
fn announced() -> Value {
    let content = announcement().to_bytes().unwrap();
    json!({ "content": hex(&content), "value": value_of(&content), "nonce": hex(&SEAL_NONCE) })
}

/// The publisher, of three, that stands in at each point.
fn stand_ins() -> Value {
    let publishers = [node(10), node(20), node(30)];
    let at = |n: u8| {
        let point = point(n);
        let stands_in = stand_in::publisher_for(&point, &publishers).unwrap();
        json!({ "session_key": hex(&point.session_key.0), "stands_in": key(&stands_in) })
    };
    json!({ "publishers": publishers.each_ref().map(key), "points": (1..=6).map(at).collect::<Vec<_>>() })
}

/// Revisions that follow from the clock alone, by the seconds since the shared-random protocol run
/// began.
fn revisions(cast: &VectorKeys) -> Value {
    let credentials = PeriodCredentials::derive(&cast.master, PERIOD, UNIX_EPOCH + Duration::from_secs(NOW)).unwrap();
    let revision =
        |seconds| json!({ "clock": seconds, "revision": credentials.revision(Duration::from_secs(seconds)) });
    let revisions = [0, 1, 3600, 86_399, 100_000].map(revision);
    json!({ "period": period(), "revisions": revisions })
}

fn period() -> Value {
    render(&ciborium::Value::serialized(&PERIOD).unwrap())
}

/// The responsible directories of a period without a shared random value.
fn ring() -> Value {
    let relays: BTreeSet<RelayId> =
        (1..=12).map(|n| RelayId { rsa: FixedBytes([n; 20]), ed25519: FixedBytes(bytes(n)) }).collect();
    let blinded = bytes(0xc1);
    let chosen = disaster::responsible(relays.clone(), &blinded, PERIOD, 2, 4);
    let keys = |relay: &RelayId| hex(&relay.ed25519.0);
    json!({
        "period": period(),
        "blinded": hex(&blinded),
        "replicas": 2,
        "spread": 4,
        "relays": relays.iter().map(keys).collect::<Vec<_>>(),
        "directories": chosen.iter().map(|directory| keys(&directory.relay)).collect::<Vec<_>>(),
    })
}
