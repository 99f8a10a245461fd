//! Signed records and certificates, in the envelopes in which they travel.

use std::fmt::Debug;

use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::codec;
use rustbalance_gossip::record::{
    AuthorityCertificate, Chain, DiscoveryKey, Endpoint, Fitness, Heartbeat, IntroPoints, Invitation, Lease,
    MemberCertificate, NodeCard, NodeReport, Phase, Publication, PublishedPeriod, Renewal, Subprotocol,
};
use rustbalance_gossip::signed::{Sign, Statement, Unverified, Verified};

use super::Seed;
use super::world::{Lenient, NOW, PERIOD, envelope, nonce, point, unsigned, world};

/// Decodes the bytes as a statement of one kind; true if that succeeds.
type Reader = fn(&[u8]) -> bool;

macro_rules! readers {
    (
        own { $($Own:ident($own:literal): $OwnType:ty => $own_fold:ident;)* }
        keyed { $($Keyed:ident($keyed:literal, $Key:ty): $KeyedType:ty => $keyed_fold:ident;)* }
        facts { $($Fact:ident($fact:literal, $Id:ty): $FactType:ty, $facts:ident => $learn:ident;)* }
    ) => {
        /// A decoder for every signed statement: certificates and the discovery key, then the kinds
        /// of record.
        const READERS: &[(&str, Reader)] = &[
            (AuthorityCertificate::CONTEXT, signed::<AuthorityCertificate>),
            (MemberCertificate::CONTEXT, signed::<MemberCertificate>),
            (DiscoveryKey::CONTEXT, signed::<DiscoveryKey>),
            $((<$OwnType>::CONTEXT, signed::<$OwnType>),)*
            $((<$KeyedType>::CONTEXT, signed::<$KeyedType>),)*
            $((<$FactType>::CONTEXT, signed::<$FactType>),)*
        ];
    };
}

rustbalance_gossip::record_kinds!(readers);

/// The first byte chooses the kind of the statement that follows.
pub(crate) fn record(bytes: &[u8]) -> bool {
    let Some((&kind, bytes)) = bytes.split_first() else { return false };
    let (_, read) = READERS[usize::from(kind) % READERS.len()];
    read(bytes)
}

/// The first byte of an input for a statement of this type.
fn number<T: Statement>() -> u8 {
    READERS.iter().position(|(context, _)| *context == T::CONTEXT).unwrap() as u8
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
        assert!(world().knows(&signer), "a valid signature of an unknown key");
        assert_eq!(strict, verified);
    }
    // The envelope and the statement in it have one encoding each.
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
        nonces: (1..4).map(point).map(|point| nonce(&point)).collect(),
        subprotocols: vec![Subprotocol(2, 6)],
    };
    let endpoint = Endpoint { cluster, node, seq: 1 << 32, sealed: VarBytes(vec![7; 120]) };
    let (name, problems) = ("web-1".parse().ok(), vec!["disk_full".parse().unwrap()]);
    let report = NodeReport { cluster, node, seq: 1 << 32, name, problems };
    let lease = Lease { cluster, holder, seq: 1 << 32, term: 3, priority: 100, ttl_ms: 30_000 };
    let period = PublishedPeriod { period: PERIOD, revision: 1 << 40, confirmed: 5, directories: 6 };
    let publication =
        Publication { cluster, node, seq: 1 << 32, service: cluster.first_service(), term: 3, periods: vec![period] };
    let mut invitation = world.invitation(3);
    invitation.redeemed.extend(&world.nodes[1..3]);
    let service = world.service(2, vec![80]);
    let member = &world.members[1];
    let (key, authority) = (&world.keys[1], &world.authority);
    let of_a_beat = number::<Heartbeat>();
    let forged = [&[of_a_beat][..], &unsigned(node.public_key(), &beat)].concat();
    let newer = [&[of_a_beat, 2][..], &unsigned(node.public_key(), &beat)[1..]].concat();
    vec![
        seed("authority-certificate", &member.authority),
        seed("member-certificate", &member.certificate),
        seed("revocation", &by(world.revocation(3), authority)),
        seed("discovery-key", &world.discovery.key),
        seed("card", &by(card, key)),
        seed("heartbeat", &by(beat, key)),
        Seed::good("forged-heartbeat", forged),
        seed("intro-points", &by(points, key)),
        seed("endpoint", &by(endpoint, key)),
        seed("report", &by(report, key)),
        seed("lease", &by(lease, key)),
        seed("publication", &by(publication, key)),
        seed("invitation", &by(invitation, authority)),
        seed("service", &by(service, authority)),
        seed("renewal", &by(Renewal::of(&world.members[2].certificate), authority)),
        Seed::bad("not-a-heartbeat", [&[of_a_beat][..], &envelope(node.public_key(), b"\x01\xa0")].concat()),
        Seed::bad("newer-version", newer),
        Seed::bad("deep", [&[number::<Invitation>(), 1][..], &[0x81; 200]].concat()),
        Seed::bad("large", [&[of_a_beat][..], &envelope(node.public_key(), &[0; 600])].concat()),
    ]
}

fn seed<T: Statement>(name: &str, statement: &Verified<T>) -> Seed {
    Seed::good(name, [&[number::<T>()][..], &statement.to_bytes().unwrap()].concat())
}

fn by<T: Statement>(statement: T, key: &dyn Sign) -> Verified<T> {
    Verified::sign(statement, key).unwrap()
}

/// A member's certificate chain: the authority's certificate and its own.
pub(crate) fn chain(bytes: &[u8]) -> bool {
    let world = world();
    // The size limit is that of a proof of membership.
    let Ok(chain) = codec::decode::<Chain>(bytes, rustbalance::frame::MAX_UNPROVEN) else { return false };
    let strict = chain.clone().verify(world.cluster, NOW);
    let Ok(member) = chain.verify_with(world.cluster, NOW, &Lenient) else {
        assert!(strict.is_err());
        return false;
    };
    if let Ok(strict) = strict {
        assert!(world.members.contains(&strict), "a member that was never certified");
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
