//! Both sides of a link's handshake, and discovery keys.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use rustbalance::discovery::{Discovery, KeyRing, MAX_KEYS, Offer};
use rustbalance::frame::{MAX, MAX_UNPROVEN};
use rustbalance::link::handshake::{
    AwaitingAnswer, Dialler, HandshakeError, HandshakeSide, LinkRefusal, Listener, Purpose, Refused,
};
use rustbalance::link::{ChannelBinding, RouteKind};
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::codec;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::{DiscoveryKey, Revocation};
use rustbalance_gossip::signed::{Unverified, Verified};

use super::Seed;
use super::world::{NOW, unsigned, world};

/// The first byte chooses which handshake message the rest is.
pub(crate) fn handshake(bytes: &[u8]) -> bool {
    let Some((&turn, bytes)) = bytes.split_first() else { return false };
    match turn % 3 {
        0 => challenge(bytes),
        1 => proof(bytes),
        _ => answer(bytes),
    }
}

/// The local side of a handshake at node `i`.
fn own(i: usize, nonce: u8) -> HandshakeSide<'static> {
    let (membership, key) = (&world().members[i], &world().keys[i]);
    HandshakeSide { membership, key, route: RouteKind::TOR, binding: ChannelBinding::BY_ID, nonce: [nonce; 32] }
}

/// Node 1 dials node 0.
fn dialler(purpose: Purpose) -> Dialler<'static> {
    Dialler { own: own(1, 6), dialled: world().nodes[0], purpose }
}

/// Node 0 as listener, with the challenge that it sends.
fn listener() -> (Listener<'static>, Vec<u8>) {
    Listener::new(own(0, 5)).unwrap()
}

/// Node 1 as dialler, after it has answered node 0's challenge.
fn claimed() -> AwaitingAnswer<'static> {
    dialler(Purpose::Mesh).challenge(&listener().1).unwrap().1
}

/// The known revocations: node 3 is evicted.
fn revoked() -> &'static BTreeMap<NodeId, Verified<Revocation>> {
    static REVOKED: OnceLock<BTreeMap<NodeId, Verified<Revocation>>> = OnceLock::new();
    let revocation = || Verified::sign(world().revocation(3), &world().authority).unwrap();
    REVOKED.get_or_init(|| BTreeMap::from([(world().nodes[3], revocation())]))
}

/// A challenge from a listener. Whatever it contains, the dialler's proof is valid only for that
/// listener's nonce.
fn challenge(bytes: &[u8]) -> bool {
    let Ok((proof, _)) = dialler(Purpose::Mesh).challenge(bytes) else { return false };
    assert!(proof.len() <= MAX_UNPROVEN);
    let (listener, own) = listener();
    match listener.proof(&proof, revoked(), NOW) {
        Ok(proved) => assert!(proved.member == world().members[1] && !own.is_empty()),
        Err(refused) => assert_eq!(refused.why, LinkRefusal::WrongNode),
    }
    true
}

/// A proof from a dialler. It is accepted only if a member made it for this stream.
fn proof(bytes: &[u8]) -> bool {
    let (listener, _) = listener();
    match listener.proof(bytes, revoked(), NOW) {
        Ok(proved) => {
            assert_eq!(proved.member, world().members[1], "only node 1 has ever dialled");
            assert!(listener.accept(&proved).unwrap().len() <= MAX_UNPROVEN);
            true
        }
        Err(refused) => {
            assert_eq!(refused.revocation.is_some(), refused.why == LinkRefusal::Revoked);
            assert!(refused.answer().unwrap().len() <= MAX_UNPROVEN);
            false
        }
    }
}

/// The listener's last message. It is accepted only if the dialled node made it for this stream.
fn answer(bytes: &[u8]) -> bool {
    match claimed().answer(bytes, revoked(), NOW) {
        Ok(member) => {
            assert_eq!(member, world().members[0]);
            true
        }
        Err(HandshakeError::Refused(..)) => true,
        Err(HandshakeError::Revoked(revocation)) => {
            assert_eq!(revocation.signer(), world().authority_id.public_key());
            assert_eq!(*revocation, Verified::sign(world().revocation(1), &world().authority).unwrap());
            true
        }
        Err(_) => false,
    }
}

pub(crate) fn handshake_seeds() -> Vec<Seed> {
    let seed = |turn: u8, bytes: Vec<u8>| [&[turn][..], &bytes].concat();
    let (listener, challenge) = listener();
    let proof = |purpose, challenge: &[u8]| dialler(purpose).challenge(challenge).unwrap().0;
    let refused = |why, revoked: Option<Revocation>| {
        let revocation =
            revoked.map(|revoked| Box::new(Verified::sign(revoked, &world().authority).unwrap().unverified()));
        Refused { why, revocation }.answer().unwrap()
    };
    let other = Listener::new(own(0, 7)).unwrap().1;
    let accepted = |purpose| {
        let proved = listener.proof(&proof(purpose, &challenge), revoked(), NOW).unwrap();
        listener.accept(&proved).unwrap()
    };
    vec![
        Seed::good("challenge", seed(0, challenge.clone())),
        Seed::good("mesh", seed(1, proof(Purpose::Mesh, &challenge))),
        Seed::good("carry-join", seed(1, proof(Purpose::CarryJoin, &challenge))),
        Seed::bad("replayed", seed(1, proof(Purpose::Mesh, &other))),
        Seed::good("accepted", seed(2, accepted(Purpose::Mesh))),
        Seed::bad("accepted-otherwise", seed(2, accepted(Purpose::CarryJoin))),
        Seed::good("busy", seed(2, refused(LinkRefusal::Busy, None))),
        Seed::good("revoked", seed(2, refused(LinkRefusal::Revoked, Some(world().revocation(1))))),
        Seed::good("anothers-revocation", seed(2, refused(LinkRefusal::Revoked, Some(world().revocation(2))))),
    ]
}

/// One key that a member offers, or the whole key ring from the disk; the first byte chooses.
pub(crate) fn discovery(bytes: &[u8]) -> bool {
    let Some((&which, bytes)) = bytes.split_first() else { return false };
    if which % 2 == 0 { offer(bytes) } else { ring(bytes) }
}

fn offer(bytes: &[u8]) -> bool {
    let world = world();
    let Ok(offer) = codec::decode::<Offer>(bytes, MAX) else { return false };
    let written = codec::encode(&offer).unwrap();
    assert_eq!(codec::encode(&codec::decode::<Offer>(&written, MAX).unwrap()).unwrap(), written);
    let Ok(discovery) = offer.verify(world.cluster, world.authority_id) else { return false };
    assert_eq!(discovery.key.signer(), world.authority_id.public_key());
    assert_eq!(discovery.key.public.0, discovery.secret.public().0);
    true
}

fn ring(bytes: &[u8]) -> bool {
    let world = world();
    let Ok(ring) = KeyRing::from_bytes(bytes, world.cluster, world.authority_id) else { return false };
    let written = ring.to_bytes().unwrap();
    let again = KeyRing::from_bytes(&written, world.cluster, world.authority_id).unwrap();
    assert_eq!(*again.to_bytes().unwrap(), *written);
    assert!((1..=MAX_KEYS).contains(&ring.secrets().len()));
    assert!((1..=2).contains(&ring.accepted(NOW, false).len()));
    assert!(ring.due(0).is_none());
    true
}

/// The discovery key of this generation; its secret follows from the generation.
fn key(generation: u32) -> Discovery {
    let secret = zeroize::Zeroizing::new([generation as u8 + 1; 32]);
    let secret = rustbalance::keys::DiscoverySecret::from_bytes(&secret);
    let key = DiscoveryKey { cluster: world().cluster, generation, public: FixedBytes(secret.public().0) };
    Discovery { key: Verified::sign(key, &world().authority).unwrap(), secret }
}

pub(crate) fn discovery_seeds() -> Vec<Seed> {
    let world = world();
    let offered = |offer: Offer| [&[0][..], &codec::encode(&offer).unwrap()].concat();
    let unsigned = unsigned(world.authority_id.public_key(), &*key(1).key);
    let forged = Offer { key: Unverified::from_bytes(&unsigned).unwrap(), secret: key(1).secret };
    let swapped = Offer { key: key(1).key.unverified(), secret: key(2).secret };
    let ring = |rotations: u32| {
        let mut ring = KeyRing::new(key(0));
        (1..=rotations).for_each(|generation| assert!(ring.adopt(key(generation), NOW)));
        [&[1][..], &ring.to_bytes().unwrap()].concat()
    };
    let whole = ring(3);
    vec![
        Seed::good("offer", offered(world.discovery.offer())),
        Seed::bad("forged-offer", offered(forged)),
        Seed::bad("swapped-offer", offered(swapped)),
        Seed::good("ring", ring(0)),
        Seed::good("rotated-ring", ring(1)),
        Seed::good("full-ring", ring(12)),
        Seed::bad("cut-ring", &whole[..whole.len() - 1]),
    ]
}
