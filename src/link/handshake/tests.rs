//! Handshakes of two sides, with and without an attacker between them.

use proptest::prelude::*;

use super::super::conformance::TestCluster;
use super::super::tests::{NOW, revocation};
use super::*;
use crate::keys::NodeSecret;

/// One side of a handshake: a node of a world and its stream.
struct Side {
    membership: Member,
    key: NodeSecret,
    route: RouteKind,
    binding: ChannelBinding,
    nonce: [u8; 32],
}

impl Side {
    fn new(world: &TestCluster, i: usize) -> Self {
        let (membership, key) = (world.member(i), world.key(i));
        let nonce = [10 + i as u8; 32];
        Self { membership, key, route: RouteKind::TOR, binding: ChannelBinding::BY_ID, nonce }
    }

    fn own(&self) -> HandshakeSide<'_> {
        let Self { membership, key, route, binding, nonce } = self;
        HandshakeSide { membership, key, route: *route, binding: *binding, nonce: *nonce }
    }

    fn dials(&self, dialled: NodeId) -> Dialler<'_> {
        Dialler { own: self.own(), dialled, purpose: Purpose::Mesh }
    }

    fn listens(&self) -> (Listener<'_>, Vec<u8>) {
        Listener::new(self.own()).unwrap()
    }
}

fn none() -> BTreeMap<NodeId, Verified<Revocation>> {
    BTreeMap::new()
}

/// Runs a handshake without an attacker; returns its outcome for the listener, then for the
/// dialler.
fn meet(
    dialler: &Side,
    listener: &Side,
    dialled: NodeId,
    unix: u64,
) -> (Result<ProvedPeer, LinkRefusal>, Result<Member, HandshakeError>) {
    let (listener, challenge) = listener.listens();
    let dialler = dialler.dials(dialled);
    let (proof, claimed) = dialler.challenge(&challenge).unwrap();
    assert!(proof.len() < MAX_UNPROVEN / 2, "{} bytes", proof.len());
    let judged = listener.proof(&proof, &none(), unix);
    let answer = match &judged {
        Ok(proved) => listener.accept(proved).unwrap(),
        Err(refused) => refused.answer().unwrap(),
    };
    assert!(answer.len() < MAX_UNPROVEN / 2, "{} bytes", answer.len());
    (judged.map_err(|refused| refused.why), claimed.answer(&answer, &none(), unix))
}

#[test]
fn both_sides_learn_the_identity_of_the_other_and_the_purpose() {
    let world = TestCluster::new();
    let (alpha, beta) = (Side::new(&world, 0), Side::new(&world, 1));
    for purpose in [Purpose::Mesh, Purpose::CarryJoin] {
        let (listener, challenge) = alpha.listens();
        let dialler = Dialler { purpose, ..beta.dials(world.node(0)) };
        let (proof, claimed) = dialler.challenge(&challenge).unwrap();
        let proved = listener.proof(&proof, &none(), NOW).unwrap();
        assert_eq!((&proved.member, proved.purpose), (&world.member(1), purpose));
        let answer = listener.accept(&proved).unwrap();
        assert_eq!(claimed.answer(&answer, &none(), NOW), Ok(world.member(0)));
        let busy = Refused::from(LinkRefusal::Busy).answer().unwrap();
        let refused = HandshakeError::Refused(world.node(0), LinkRefusal::Busy);
        assert_eq!(claimed.answer(&busy, &none(), NOW), Err(refused));
        assert!(matches!(claimed.answer(b"\x01nonsense", &none(), NOW), Err(HandshakeError::Malformed(..))));
    }
}

#[test]
fn strangers_are_refused() {
    let (world, other) = (TestCluster::new(), TestCluster::new());
    let (alpha, here) = (Side::new(&world, 0), world.node(0));
    let judged = |stranger: &Side| meet(stranger, &alpha, here, NOW).0.map(|_| ());
    // A member of another cluster.
    assert_eq!(judged(&Side::new(&other, 1)), Err(LinkRefusal::NotMember));
    // The certificates of a member, which are public, with another node's key.
    let thief = Side { key: world.key(2), ..Side::new(&world, 1) };
    assert_eq!(judged(&thief), Err(LinkRefusal::NotMember));
    // A certificate signed by a key that is not the authority's.
    let forged = Member { certificate: other.member_of(1, world.cluster()).certificate, ..world.member(1) };
    assert_eq!(judged(&Side { membership: forged, ..Side::new(&other, 1) }), Err(LinkRefusal::NotMember));
}

#[test]
fn an_answer_from_another_than_the_dialled_node_is_refused() {
    let (world, other) = (TestCluster::new(), TestCluster::new());
    let (beta, dialled) = (Side::new(&world, 1), world.node(0));
    let error_for = |answer: &[u8], challenge: &[u8]| {
        let dialler = beta.dials(dialled);
        dialler.challenge(challenge).unwrap().1.answer(answer, &none(), NOW).unwrap_err()
    };
    let session = |listener: &Side| {
        let (_, challenge) = listener.listens();
        (beta.dials(dialled).challenge(&challenge).unwrap().1.session, challenge)
    };
    let unproven = |why| HandshakeError::Unproven(dialled, why);
    let signed = |side: &Side, session: Session| {
        let proof = Verified::sign(ListenerProof(session), &side.key).unwrap().unverified();
        codec::encode(&Answer::Accepted { chain: Box::new(side.membership.chain()), proof }).unwrap()
    };
    // A member that names itself; one that names the dialled node; a stranger.
    let gamma = Side::new(&world, 2);
    let (meant, challenge) = session(&gamma);
    assert_eq!(error_for(&signed(&gamma, meant.clone()), &challenge), unproven(LinkRefusal::WrongNode));
    let thief = Side { key: world.key(2), ..Side::new(&world, 0) };
    assert_eq!(error_for(&signed(&thief, meant.clone()), &challenge), unproven(LinkRefusal::NotMember));
    assert_eq!(error_for(&signed(&Side::new(&other, 0), meant), &challenge), unproven(LinkRefusal::NotMember));
    // The dialled node itself, with one field of the session changed.
    let alpha = Side::new(&world, 0);
    let (meant, challenge) = session(&alpha);
    let mut others = vec![meant.clone(); 9];
    others[0].cluster = other.cluster();
    others[1].versions.1 += 1;
    others[2].version += 1;
    others[3].route = RouteKind::new(7);
    others[4].channel = FixedBytes([7; 32]);
    others[5].dialler = world.node(2);
    others[6].dialler_nonce = FixedBytes([7; 32]);
    others[7].listener_nonce = FixedBytes([7; 32]);
    others[8].purpose = Purpose::CarryJoin;
    for session in others {
        assert_eq!(error_for(&signed(&alpha, session), &challenge), unproven(LinkRefusal::WrongNode));
    }
    let claimed = beta.dials(dialled).challenge(&challenge).unwrap().1;
    assert_eq!(claimed.answer(&signed(&alpha, meant), &none(), NOW), Ok(world.member(0)));
}

#[test]
fn the_revoked_and_the_expired_are_refused_on_either_side() {
    let world = TestCluster::new();
    let (alpha, beta) = (Side::new(&world, 0), Side::new(&world, 1));
    let (listener, challenge) = alpha.listens();
    let (proof, claimed) = beta.dials(world.node(0)).challenge(&challenge).unwrap();
    let revoked = BTreeMap::from([(world.node(1), revocation(&world, 1))]);
    let refused = listener.proof(&proof, &revoked, NOW).unwrap_err();
    assert_eq!(refused.why, LinkRefusal::Revoked);
    // The dialler sees the authority's revocation.
    let error_for = |refused: Refused| claimed.answer(&refused.answer().unwrap(), &none(), NOW).unwrap_err();
    assert_eq!(error_for(refused), HandshakeError::Revoked(Box::new(revocation(&world, 1))));
    // A revocation of another node, or of another cluster, evicts no node.
    let other = TestCluster::new();
    for unrelated in [revocation(&world, 2), revocation(&other, 1)] {
        let refused = Refused { why: LinkRefusal::Revoked, revocation: Some(Box::new(unrelated.unverified())) };
        assert_eq!(error_for(refused), HandshakeError::Refused(world.node(0), LinkRefusal::Revoked));
    }
    // A listener that was evicted.
    let proved = listener.proof(&proof, &none(), NOW).unwrap();
    let evicted = BTreeMap::from([(world.node(0), revocation(&world, 0))]);
    let why = claimed.answer(&listener.accept(&proved).unwrap(), &evicted, NOW);
    assert_eq!(why, Err(HandshakeError::Unproven(world.node(0), LinkRefusal::Revoked)));
    let end = beta.membership.certificate.expires;
    assert!(meet(&beta, &alpha, world.node(0), end).1.is_ok());
    assert_eq!(meet(&beta, &alpha, world.node(0), end + 1).0, Err(LinkRefusal::Expired));
    let answer = listener.accept(&proved).unwrap();
    let late = claimed.answer(&answer, &none(), end + 1);
    assert_eq!(late, Err(HandshakeError::Unproven(world.node(0), LinkRefusal::Expired)));
}

#[test]
fn a_proof_is_good_for_one_stream_one_node_and_one_route() {
    let world = TestCluster::new();
    let (alpha, beta) = (Side::new(&world, 0), Side::new(&world, 1));
    let judged = |dialler: &Side, dialled| meet(dialler, &alpha, dialled, NOW).0.map(|_| ());
    assert_eq!(judged(&beta, world.node(0)), Ok(()));
    // Relay: a proof made for node 2, which node 2 sends on to node 0.
    assert_eq!(judged(&beta, world.node(2)), Err(LinkRefusal::WrongNode));
    // Reflection: a proof sent back to the node that made it.
    assert_eq!(judged(&alpha, world.node(0)), Err(LinkRefusal::WrongNode));
    // Another route, and another stream of the same route.
    let other_route = Side { route: RouteKind::new(7), ..Side::new(&world, 1) };
    assert_eq!(judged(&other_route, world.node(0)), Err(LinkRefusal::WrongNode));
    let other_stream = Side { binding: ChannelBinding([7; 32]), ..Side::new(&world, 1) };
    assert_eq!(judged(&other_stream, world.node(0)), Err(LinkRefusal::WrongNode));
    // Replay of the proof, and of the answer.
    let (first, challenge) = alpha.listens();
    let (proof, _) = beta.dials(world.node(0)).challenge(&challenge).unwrap();
    let answer = first.accept(&first.proof(&proof, &none(), NOW).unwrap()).unwrap();
    let again = Side { nonce: [6; 32], ..Side::new(&world, 0) };
    assert_eq!(again.listens().0.proof(&proof, &none(), NOW), Err(LinkRefusal::WrongNode.into()));
    let later = Side { nonce: [7; 32], ..Side::new(&world, 1) };
    let replayed = later.dials(world.node(0)).challenge(&challenge).unwrap().1.answer(&answer, &none(), NOW);
    assert_eq!(replayed, Err(HandshakeError::Unproven(world.node(0), LinkRefusal::WrongNode)));
}

#[test]
fn a_proof_of_one_side_is_not_valid_for_the_other() {
    let world = TestCluster::new();
    let (alpha, beta) = (Side::new(&world, 0), Side::new(&world, 1));
    let (listener, challenge) = alpha.listens();
    let (proof, claimed) = beta.dials(world.node(0)).challenge(&challenge).unwrap();
    let answer = listener.accept(&listener.proof(&proof, &none(), NOW).unwrap()).unwrap();
    let Proof { chain, proof: signed, version } = codec::decode(&proof, MAX_UNPROVEN).unwrap();
    // The dialler's own signature, reflected to it as the answer.
    let envelope = codec::encode(&signed).unwrap();
    let reflected = Answer::Accepted { chain: Box::new(chain), proof: Unverified::from_bytes(&envelope).unwrap() };
    let heard = claimed.answer(&codec::encode(&reflected).unwrap(), &none(), NOW);
    assert_eq!(heard, Err(HandshakeError::Unproven(world.node(0), LinkRefusal::NotMember)));
    // The listener's signature, reflected to it as a dialler's proof.
    let Ok(Answer::Accepted { chain, proof }) = codec::decode(&answer, MAX_UNPROVEN) else { panic!("refused") };
    let envelope = codec::encode(&proof).unwrap();
    let swapped = Proof { version, chain: *chain, proof: Unverified::from_bytes(&envelope).unwrap() };
    let judged = listener.proof(&codec::encode(&swapped).unwrap(), &none(), NOW);
    assert_eq!(judged, Err(LinkRefusal::NotMember.into()));
}

#[test]
fn a_member_in_the_middle_cannot_pass_a_handshake_on() {
    let world = TestCluster::new();
    let route = RouteKind::new(7);
    let at = |i: usize, channel: u8| Side { route, binding: ChannelBinding([channel; 32]), ..Side::new(&world, i) };
    // Node 2 is in the middle: node 1 dials node 0, and reaches node 2 (channel 1). Node 2 dials
    // node 0 (channel 2).
    let (alpha, beta) = (at(0, 2), at(1, 1));
    let (listener, challenge) = alpha.listens();
    let (proof, claimed) = beta.dials(world.node(0)).challenge(&challenge).unwrap();
    assert_eq!(listener.proof(&proof, &none(), NOW), Err(LinkRefusal::WrongNode.into()));
    // Node 2 runs its own handshake with node 0, and relays the answer to node 1.
    let middle = at(2, 2);
    let (own, _) = middle.dials(world.node(0)).challenge(&challenge).unwrap();
    let answer = listener.accept(&listener.proof(&own, &none(), NOW).unwrap()).unwrap();
    let unproven = Err(HandshakeError::Unproven(world.node(0), LinkRefusal::WrongNode));
    assert_eq!(claimed.answer(&answer, &none(), NOW), unproven);
}

#[test]
fn versions_must_overlap_and_a_man_in_the_middle_cannot_narrow_them() {
    let world = TestCluster::new();
    let (alpha, beta) = (Side::new(&world, 0), Side::new(&world, 1));
    let dialler = beta.dials(world.node(0));
    let challenge = |versions| codec::encode(&Challenge { versions, nonce: FixedBytes(alpha.nonce) }).unwrap();
    // A newer listener that still speaks this version, and ones that do not.
    assert!(dialler.challenge(&challenge((VERSIONS.0, VERSIONS.1 + 4))).is_ok());
    for theirs in [(VERSIONS.1 + 1, VERSIONS.1 + 4), (0, 0), (VERSIONS.1, VERSIONS.0 - 1)] {
        let error = dialler.challenge(&challenge(theirs)).err();
        assert_eq!(error, Some(HandshakeError::Version { node: world.node(0), theirs, ours: VERSIONS }));
    }
    let (listener, ours) = alpha.listens();
    let mut proof: Proof = codec::decode(&dialler.challenge(&ours).unwrap().0, MAX_UNPROVEN).unwrap();
    proof.version = VERSIONS.1 + 1;
    let judged = listener.proof(&codec::encode(&proof).unwrap(), &none(), NOW);
    assert_eq!(judged, Err(LinkRefusal::Version.into()));
    // The versions that the dialler read are not those that the listener offered.
    let (proof, _) = dialler.challenge(&challenge((VERSIONS.0 - 1, VERSIONS.1))).unwrap();
    assert_eq!(listener.proof(&proof, &none(), NOW), Err(LinkRefusal::WrongNode.into()));
}

#[test]
fn malformed_and_newer_messages_are_refused_as_such() {
    let world = TestCluster::new();
    let alpha = Side::new(&world, 0);
    let judged = |bytes: &[u8]| alpha.listens().0.proof(bytes, &none(), NOW);
    assert_eq!(judged(b""), Err(LinkRefusal::Malformed.into()));
    assert_eq!(judged(b"\x02later"), Err(LinkRefusal::Version.into()));
    assert_eq!(judged(&[1; MAX_UNPROVEN + 1]), Err(LinkRefusal::Malformed.into()));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let world = TestCluster::new();
        let (alpha, beta) = (Side::new(&world, 0), Side::new(&world, 1));
        let (listener, challenge) = alpha.listens();
        let dialler = beta.dials(world.node(0));
        prop_assert!(listener.proof(&bytes, &none(), NOW).is_err());
        prop_assert!(dialler.challenge(&bytes).is_err());
        let (_, claimed) = dialler.challenge(&challenge).unwrap();
        prop_assert!(claimed.answer(&bytes, &none(), NOW).is_err());
    }
}
