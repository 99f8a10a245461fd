//! The order of arrival does not matter, and no record does harm.

use proptest::prelude::*;

use super::*;
use crate::bytes::FixedBytes;
use crate::codec;
use crate::record::IntroPoints;
use crate::signed::Sign;

/// One record or fact, as gossip delivers it.
#[derive(Debug, Clone)]
struct Announced {
    origin: NodeId,
    kind: RecordKind,
    bytes: Vec<u8>,
}

/// All records of a cluster: three publishers, five workers of which three raced for an invitation
/// with two uses, and an eviction.
fn everything() -> Vec<Announced> {
    let founder = Founder::new(1);
    let token = founder.invitation(1, 2, &[]).token;
    let mut nodes: Vec<Identity> = (1..4).map(|n| founder.node(n, Role::Publisher)).collect();
    nodes.extend((4..6).map(|n| founder.node(n, Role::Worker)));
    nodes.extend((6..9).map(|n| founder.admit(n, Role::Worker, FOUNDED + u64::from(n % 2), Some(token))));
    let mut all = Vec::new();
    let mut push =
        |origin: NodeId, kind, bytes: Result<Vec<u8>, _>| all.push(Announced { origin, kind, bytes: bytes.unwrap() });
    for (index, who) in nodes.iter().enumerate() {
        let id = who.node();
        push(id, RecordKind::Card, sign(who.card(1, index as u8), &who.key).to_bytes());
        for n in [2, 3] {
            push(id, RecordKind::Heartbeat, sign(who.beat(n, Phase::Active), &who.key).to_bytes());
        }
        push(
            id,
            RecordKind::IntroPoints(who.service()),
            sign(who.points(4, vec![point(index as u32, index as u32)]), &who.key).to_bytes(),
        );
        push(id, RecordKind::Lease, sign(who.lease(5, 3 + index as u64 / 2, TTL), &who.key).to_bytes());
    }
    for redeemer in &nodes[5..] {
        let version = founder.invitation(1, 2, &[redeemer.node()]);
        push(nodes[0].node(), RecordKind::Invitation(token), version.to_bytes());
    }
    push(nodes[0].node(), RecordKind::Revocation(nodes[3].node()), founder.revoke(nodes[3].node()).to_bytes());
    // A member, one that raced for the invitation, and the evicted node, by two publishers each.
    for (renewed, day) in [(0, 1), (0, 2), (6, 1), (6, 2), (3, 1), (3, 2)] {
        let renewal = founder.renew(&nodes[renewed], FOUNDED + (400 + day) * 86_400);
        push(nodes[1].node(), RecordKind::Renewal(nodes[renewed].node()), renewal.to_bytes());
    }
    all
}

/// The part of a view on which two nodes must agree.
#[derive(Debug, PartialEq)]
struct Opinion {
    /// With its points, and the end of its certificate.
    members: Vec<(NodeId, bool, u64)>,
    best: Option<Claim>,
    holder: Option<(NodeId, u64)>,
    invitations: Vec<Invitation>,
}

fn opinion(view: &View) -> Opinion {
    Opinion {
        members: view
            .members()
            .map(|node| {
                let points = node.intro_points(&view.cluster().first_service()).is_some();
                (node.node(), points, node.member.certificate.expires)
            })
            .collect(),
        best: view.best_claim(),
        holder: view.holder(at(1)),
        invitations: view.invitations().iter().cloned().collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn views_that_ingested_the_same_records_agree(
        order in Just(everything()).prop_shuffle(),
        repeated in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let (mut scene, mut other) = (Scene::new(), Scene::new());
        for announced in everything() {
            let _ = scene.view.ingest(announced.origin, announced.kind, &announced.bytes, at(0));
        }
        let again: Vec<Announced> = repeated.iter().map(|index| index.get(&order).clone()).collect();
        for announced in order.into_iter().chain(again) {
            let _ = other.view.ingest(announced.origin, announced.kind, &announced.bytes, at(0));
        }
        prop_assert_eq!(opinion(&scene.view), opinion(&other.view));
        prop_assert_eq!(scene.view.members().count(), 7);
    }

    #[test]
    fn any_statement_of_a_member_is_survived(
        kind in 0usize..5,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        junk in prop::option::weighted(0.2, prop::collection::vec(any::<u8>(), 0..400)),
    ) {
        let mut scene = Scene::new();
        let who = scene.meet(1, at(0));
        let mut statement = junk.unwrap_or_else(|| statements(&scene, &who)[kind].clone());
        for (place, byte) in changes.into_iter().filter(|_| !statement.is_empty()).collect::<Vec<_>>() {
            let place = place.index(statement.len());
            statement[place] = byte;
        }
        let outcome = match kind {
            0 => scene.put::<NodeCard>(&who, RecordKind::Card, statement),
            1 => scene.put::<Heartbeat>(&who, RecordKind::Heartbeat, statement),
            2 => scene.put::<IntroPoints>(&who, RecordKind::IntroPoints(who.service()), statement),
            3 => scene.put::<Lease>(&who, RecordKind::Lease, statement),
            _ => scene.put::<Publication>(&who, RecordKind::Publication(who.service()), statement),
        };
        // The signature is good, so only the content can be the reason for a refusal.
        prop_assert!(!matches!(outcome, Err(RecordRejection::Signature | RecordRejection::Unknown)), "{outcome:?}");
        let known = scene.view.member(&who.node()).unwrap();
        prop_assert!((1..=100).contains(&known.weight()));
        let points = known.intro_points(&who.service()).map_or(0, |record| record.points.len());
        prop_assert!(points <= crate::record::MAX_INTRO_POINTS);
        scene.view.refresh(at(60));
    }
}

/// The encoded statement of one record of each kind.
fn statements(scene: &Scene, who: &Identity) -> [Vec<u8>; 5] {
    let day = PeriodId { number: 20_000, length_minutes: 1440, offset_seconds: 0 };
    let periods = vec![PublishedPeriod { period: day, revision: 1, confirmed: 1, directories: 1 }];
    let (cluster, node, service, seq) = (scene.founder.cluster(), who.node(), who.service(), seq(1, 9));
    let statements = [
        codec::encode(&who.card(seq, 100)),
        codec::encode(&who.beat(seq, Phase::Active)),
        codec::encode(&who.points(seq, vec![point(1, 1), point(2, 2)])),
        codec::encode(&who.lease(seq, 1, TTL)),
        codec::encode(&Publication { cluster, node, seq, service, term: 1, periods }),
    ];
    statements.map(Result::unwrap)
}

/// The envelope of the wire format, around any bytes.
#[derive(serde::Serialize)]
struct Envelope {
    signer: FixedBytes<32>,
    statement: VarBytes,
    signature: FixedBytes<64>,
}

impl Scene {
    /// Ingests bytes as a statement that `who` has signed.
    fn put<T: Statement>(
        &mut self,
        who: &Identity,
        kind: RecordKind,
        statement: Vec<u8>,
    ) -> Result<Changes, RecordRejection> {
        let signed = [T::CONTEXT.as_bytes(), &[0], &statement].concat();
        let (signer, signature) = (FixedBytes(who.key.public_key()), FixedBytes(who.key.sign_bytes(&signed)));
        let envelope = codec::encode(&Envelope { signer, statement: VarBytes(statement), signature }).unwrap();
        self.view.ingest(who.node(), kind, &envelope, at(3))
    }
}

#[test]
fn an_envelope_built_by_hand_is_accepted_like_a_signed_record() {
    let mut scene = Scene::new();
    let who = scene.meet(1, at(0));
    let [card, beat, points, lease, publication] = statements(&scene, &who);
    assert!(scene.put::<NodeCard>(&who, RecordKind::Card, card).is_ok());
    assert!(scene.put::<Heartbeat>(&who, RecordKind::Heartbeat, beat).is_ok());
    assert!(scene.put::<IntroPoints>(&who, RecordKind::IntroPoints(who.service()), points).is_ok());
    assert!(scene.put::<Lease>(&who, RecordKind::Lease, lease).is_ok());
    assert!(scene.put::<Publication>(&who, RecordKind::Publication(who.service()), publication).is_ok());
}
