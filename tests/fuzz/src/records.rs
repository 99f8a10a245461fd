//! Signed records and certificates, as envelopes on the wire.

use std::fmt::Debug;

use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::codec;
use rustbalance_gossip::record::{
    AuthorityCertificate, Chain, DiscoveryKey, Fitness, Heartbeat, IntroPoints, Invitation, Lease, MemberCertificate,
    NodeCard, Phase, Publication, PublishedPeriod, Revocation,
};
use rustbalance_gossip::signed::{Sign, Statement, Unverified, Verified};

use super::Seed;
use super::world::{Lenient, NOW, PERIOD, envelope, nonce, point, unsigned, world};

/// The first byte says of which kind the rest is.
pub(crate) fn record(bytes: &[u8]) -> bool {
    let Some((&kind, bytes)) = bytes.split_first() else { return false };
    match kind % 10 {
        0 => signed::<AuthorityCertificate>(bytes),
        1 => signed::<MemberCertificate>(bytes),
        2 => signed::<Revocation>(bytes),
        3 => signed::<DiscoveryKey>(bytes),
        4 => signed::<NodeCard>(bytes),
        5 => signed::<Heartbeat>(bytes),
        6 => signed::<IntroPoints>(bytes),
        7 => signed::<Lease>(bytes),
        8 => signed::<Publication>(bytes),
        _ => signed::<Invitation>(bytes),
    }
}

fn signed<T: Statement + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(record) = Unverified::<T>::from_bytes(bytes) else { return false };
    assert!(bytes.len() <= T::MAX_SIZE);
    let signer = *record.claimed_signer();
    let mut other = signer;
    other[0] ^= 1;
    assert!(record.clone().verify_with(&other, &Lenient).is_err());
    let strict = record.clone().verify(&signer);
    let Ok(verified) = record.verify_with(&signer, &Lenient) else {
        assert!(strict.is_err());
        return false;
    };
    if let Ok(strict) = strict {
        assert!(world().knows(&signer), "a signature that nobody here has made");
        assert_eq!(strict, verified);
    }
    // The envelope has one encoding, and what is in it has one.
    let written = verified.to_bytes().unwrap();
    let again = Unverified::<T>::from_bytes(&written).unwrap();
    assert!(verified.is_same(&again));
    assert_eq!(again.verify_with(&signer, &Lenient).as_ref(), Ok(&verified));
    let statement = codec::encode(&*verified).unwrap();
    assert_eq!(codec::decode::<T>(&statement, usize::MAX).as_ref(), Ok(&*verified));
    true
}

pub(crate) fn record_seeds() -> Vec<Seed> {
    let world = world();
    let (cluster, node, holder) = (world.cluster, world.nodes[1], world.nodes[1]);
    let card = NodeCard {
        cluster,
        node,
        seq: 1 << 32,
        chain: world.chain(1),
        address: mesh_address(&node),
        priority: 100,
        weight: 1,
        version: "0.1.0".into(),
        ports: vec![22, 80],
    };
    let beat = Heartbeat { cluster, node, seq: 1 << 32, phase: Phase::Active, hears: 3, unix: NOW, instance: 7 };
    let points = IntroPoints {
        cluster,
        node,
        seq: 1 << 32,
        service: cluster.first_service(),
        fitness: Fitness::Healthy,
        points: (1..4).map(point).collect(),
        nonces: (1..4).map(point).map(|it| nonce(&it)).collect(),
    };
    let lease = Lease { cluster, holder, seq: 1 << 32, term: 3, priority: 100, ttl_ms: 30_000 };
    let period = PublishedPeriod { period: PERIOD, revision: 1 << 40, confirmed: 5, directories: 6 };
    let publication =
        Publication { cluster, node, seq: 1 << 32, service: cluster.first_service(), term: 3, periods: vec![period] };
    let mut invitation = world.invitation(3);
    invitation.redeemed.extend(&world.nodes[1..3]);
    let member = &world.members[1];
    let (key, authority) = (&world.keys[1], &world.authority);
    let seed = |kind: u8, name: &str, bytes: Vec<u8>| Seed::good(name, [&[kind][..], &bytes].concat());
    vec![
        seed(0, "authority-certificate", member.authority.to_bytes().unwrap()),
        seed(1, "member-certificate", member.certificate.to_bytes().unwrap()),
        seed(2, "revocation", by(world.revocation(3), authority)),
        seed(3, "discovery-key", world.discovery.key.to_bytes().unwrap()),
        seed(4, "card", by(card, key)),
        seed(5, "heartbeat", by(beat.clone(), key)),
        seed(5, "forged-heartbeat", unsigned(node.public_key(), &beat)),
        seed(6, "intro-points", by(points, key)),
        seed(7, "lease", by(lease, key)),
        seed(8, "publication", by(publication, key)),
        seed(9, "invitation", by(invitation, authority)),
        Seed::bad("not-a-heartbeat", [&[5][..], &envelope(node.public_key(), b"\x01\xa0")].concat()),
        Seed::bad("newer-version", [&[5, 2][..], &unsigned(node.public_key(), &beat)[1..]].concat()),
        Seed::bad("deep", [&[9, 1][..], &[0x81; 200]].concat()),
        Seed::bad("large", [&[5][..], &envelope(node.public_key(), &[0; 600])].concat()),
    ]
}

fn by<T: Statement>(statement: T, key: &dyn Sign) -> Vec<u8> {
    Verified::sign(statement, key).unwrap().to_bytes().unwrap()
}

/// Both certificates of a member.
pub(crate) fn chain(bytes: &[u8]) -> bool {
    let world = world();
    // As large as they come in a proof of membership.
    let Ok(chain) = codec::decode::<Chain>(bytes, rustbalance::frame::MAX_UNPROVEN) else { return false };
    let strict = chain.clone().verify(world.cluster, NOW);
    let Ok(member) = chain.verify_with(world.cluster, NOW, &Lenient) else {
        assert!(strict.is_err());
        return false;
    };
    if let Ok(strict) = strict {
        assert!(world.members.contains(&strict), "a member that nobody here has certified");
    }
    assert_eq!(member.authority.signer(), world.cluster.public_key());
    assert_eq!(member.certificate.signer(), member.authority_id().public_key());
    assert_eq!((member.authority.cluster, member.certificate.cluster), (world.cluster, world.cluster));
    assert!(member.certificate.expires >= NOW);
    let written = codec::encode(&member.chain()).unwrap();
    let again: Chain = codec::decode(&written, usize::MAX).unwrap();
    assert_eq!(again.verify_with(world.cluster, NOW, &Lenient), Ok(member));
    true
}

pub(crate) fn chain_seeds() -> Vec<Seed> {
    let world = world();
    let encode = |chain: &Chain| codec::encode(chain).unwrap();
    let expired = MemberCertificate { expires: NOW - 1, ..(*world.members[1].certificate).clone() };
    let expired = Verified::sign(expired, &world.authority).unwrap();
    let upside_down = MemberCertificate { node: world.nodes[5], ..(*world.members[1].certificate).clone() };
    let forged = unsigned(world.authority_id.public_key(), &upside_down);
    vec![
        Seed::good("publisher", encode(&world.chain(0))),
        Seed::good("worker", encode(&world.chain(3))),
        Seed::good("forged", encode(&Chain { member: Unverified::from_bytes(&forged).unwrap(), ..world.chain(0) })),
        Seed::bad("expired", encode(&Chain { member: expired.unverified(), ..world.chain(1) })),
    ]
}
