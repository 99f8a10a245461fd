//! Replays, forgeries and garbage against both state machines.

use proptest::prelude::*;
use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
use rustbalance_gossip::codec;

use super::*;
use crate::frame;
use crate::join::message::{Challenge, FromJoiner, FromPublisher, Redeem};

#[test]
fn a_captured_join_is_worth_nothing_against_another_challenge() {
    let host = TestPublisher::new();
    let (token, node) = (host.invite(Role::Worker, 5), node());
    let (mut joiner, hello) = Joiner::new(&token, &node, host.cluster(), fresh()).unwrap();
    let mut admission = Admission::new(fresh());
    let challenge = host.receive(&mut admission, &hello, NOW).0.unwrap();
    let Ok(Step::Send(redeem)) = joiner.handle(&challenge, NOW) else { panic!() };

    let mut other = Admission::new(fresh());
    host.receive(&mut other, &hello, NOW);
    assert_eq!(host.receive(&mut other, &redeem, NOW).1, Some(Outcome::Refused(JoinRefusal::UnknownToken)));
    assert_eq!(host.recorded(), 0);
    // A captured answer, sent to another join.
    let answer = host.receive(&mut admission, &redeem, NOW).0.unwrap();
    let (mut again, hello) = Joiner::new(&token, &node, host.cluster(), fresh()).unwrap();
    let challenge = host.receive(&mut Admission::new(fresh()), &hello, NOW).0.unwrap();
    again.handle(&challenge, NOW).unwrap();
    assert!(matches!(again.handle(&answer, NOW), Err(JoinError::Impostor { .. })));
    assert!(joiner.handle(&answer, NOW).is_ok());
}

/// A worker that carries a join can change its messages; the changed ones must be rejected.
#[test]
fn a_carrier_cannot_put_itself_in_the_joiner_s_or_the_publisher_s_place() {
    let host = TestPublisher::new();
    let (token, node) = (host.invite(Role::Worker, 5), node());
    let (mut joiner, hello) = Joiner::new(&token, &node, host.cluster(), fresh()).unwrap();
    let mut admission = Admission::new(fresh());
    let challenge = host.receive(&mut admission, &hello, NOW).0.unwrap();
    // The carrier's ephemeral key in the publisher's challenge.
    let Ok(FromPublisher::Challenge(original)) = codec::decode(&challenge, 4096) else { panic!() };
    let forged = Challenge { ephemeral: FixedBytes(fresh().public()), ..original };
    let forged = codec::encode(&FromPublisher::Challenge(forged)).unwrap();
    let Ok(Step::Send(redeem)) = joiner.handle(&forged, NOW) else { panic!() };
    assert_eq!(host.receive(&mut admission, &redeem, NOW).1, Some(Outcome::Refused(JoinRefusal::UnknownToken)));

    // The carrier's node id under the joiner's token signature.
    let (mut joiner, hello) = Joiner::new(&token, &node, host.cluster(), fresh()).unwrap();
    let mut admission = Admission::new(fresh());
    let challenge = host.receive(&mut admission, &hello, NOW).0.unwrap();
    let Ok(Step::Send(redeem)) = joiner.handle(&challenge, NOW) else { panic!() };
    let Ok(FromJoiner::Redeem(redeem)) = codec::decode(&redeem, 4096) else { panic!() };
    let thief = super::node();
    let request = transcript::request(&hello, &challenge, &thief.node_id(), &token.invitation_id(), NOW);
    let node_signature = FixedBytes(transcript::sign(transcript::BY_NODE, &request, &thief));
    let stolen = Redeem { node: thief.node_id(), node_signature, ..redeem };
    let stolen = codec::encode(&FromJoiner::Redeem(stolen)).unwrap();
    assert_eq!(host.receive(&mut admission, &stolen, NOW).1, Some(Outcome::Refused(JoinRefusal::UnknownToken)));
    assert_eq!(host.recorded(), 0);
}

#[test]
fn a_node_key_that_is_not_the_joiner_s_is_refused() {
    let host = TestPublisher::new();
    let (token, mine, victim) = (host.invite(Role::Worker, 5), node(), node());
    let (mut joiner, hello) = Joiner::new(&token, &mine, host.cluster(), fresh()).unwrap();
    let mut admission = Admission::new(fresh());
    let challenge = host.receive(&mut admission, &hello, NOW).0.unwrap();
    joiner.handle(&challenge, NOW).unwrap();
    let request = transcript::request(&hello, &challenge, &victim.node_id(), &token.invitation_id(), NOW);
    let redeem = Redeem {
        node: victim.node_id(),
        invitation: token.invitation_id(),
        unix: NOW,
        token_signature: FixedBytes(transcript::sign(transcript::BY_TOKEN, &request, token.secret())),
        node_signature: FixedBytes(transcript::sign(transcript::BY_NODE, &request, &mine)),
    };
    let redeem = codec::encode(&FromJoiner::Redeem(redeem)).unwrap();
    assert_eq!(host.receive(&mut admission, &redeem, NOW).1, Some(Outcome::Refused(JoinRefusal::Malformed)));
    assert_eq!(host.recorded(), 0);
}

#[test]
fn an_answer_from_a_node_that_is_not_a_publisher_of_the_cluster_is_rejected() {
    // A worker that admits, with an authority key that it should not have; and a publisher of
    // another cluster.
    let host = TestPublisher::new();
    let (token, node) = (host.invite(Role::Worker, 5), node());
    let worker = TestPublisher::beside(host.master().duplicate(), host.us.authority.duplicate(), Role::Worker);
    let stranger = TestPublisher::new();
    // A carrier that has the real publisher's certificates, but not its key.
    let copycat = TestPublisher::beside(host.master().duplicate(), host.us.authority.duplicate(), Role::Publisher);
    let key = super::node();
    for (impostor, key) in [(&worker, &worker.us.node), (&stranger, &stranger.us.node), (&copycat, &key)] {
        let (mut joiner, hello) = Joiner::new(&token, &node, host.cluster(), fresh()).unwrap();
        let theirs = fresh();
        let challenge = Challenge { version: 2, nonce: FixedBytes([1; 32]), ephemeral: FixedBytes(theirs.public()) };
        let challenge = codec::encode(&FromPublisher::Challenge(challenge)).unwrap();
        joiner.handle(&challenge, NOW).unwrap();
        let Ok(FromJoiner::Hello(greeting)) = codec::decode(&hello, 4096) else { panic!() };
        let request = transcript::request(&hello, &challenge, &node.node_id(), &token.invitation_id(), NOW);
        let publisher = impostor.us.membership.node();
        let answer_transcript = transcript::answer(&request, Role::Worker, &publisher);
        let certificate = MemberCertificate {
            cluster: impostor.cluster(),
            node: node.node_id(),
            role: Role::Worker,
            issued: NOW,
            expires: NOW + 1000,
            invitation: Some(token.invitation_id()),
        };
        let certificate = Verified::sign(certificate, &impostor.us.authority).unwrap();
        let member = Member { authority: impostor.us.membership.authority.clone(), certificate };
        let facts = parcel::Facts {
            signature: FixedBytes(transcript::sign(transcript::BY_PUBLISHER, &answer_transcript, key)),
            publisher: impostor.us.membership.chain(),
            member: member.chain(),
            members: vec![],
            services: Snapshot(&host).services(),
            discovery: impostor.discovery.key.unverified(),
            unix: NOW,
        };
        let discovery = Snapshot(impostor).discovery().unwrap().secret;
        let points = PointSeed::derive(&impostor.us.authority, node.node_id());
        let plain = parcel::Parcel { discovery, points, secrets: None, facts }.to_bytes().unwrap();
        let sealed = transcript::seal(&theirs.ephemeral, greeting.ephemeral.0, &answer_transcript, plain).unwrap();
        let sealed = VarBytes(sealed);
        let answer = message::Answer { role: Role::Worker, publisher, sealed };
        let answer = codec::encode(&FromPublisher::Answer(answer)).unwrap();
        let error = joiner.handle(&answer, NOW).unwrap_err();
        assert!(matches!(error, JoinError::Impostor { .. }), "{error}");
    }
}

#[test]
fn garbage_and_messages_out_of_turn_change_nothing() {
    let host = TestPublisher::new();
    let (token, node) = (host.invite(Role::Worker, 1), node());
    let (mut joiner, hello) = Joiner::new(&token, &node, host.cluster(), fresh()).unwrap();
    let mut admission = Admission::new(fresh());
    let challenge = host.receive(&mut admission, &hello, NOW).0.unwrap();
    let Ok(Step::Send(redeem)) = joiner.handle(&challenge, NOW) else { panic!() };
    let malformed = Some(Outcome::Refused(JoinRefusal::Malformed));
    let long = [&[1][..], &vec![0x61; frame::MAX_UNPROVEN]].concat();
    for first in [&b""[..], b"\x01", &redeem, &challenge, &long] {
        assert_eq!(host.receive(&mut Admission::new(fresh()), first, NOW).1, malformed);
    }
    for second in [&b""[..], b"\x01\xff", &hello, &challenge] {
        let mut admission = Admission::new(fresh());
        host.receive(&mut admission, &hello, NOW);
        assert_eq!(host.receive(&mut admission, second, NOW).1, malformed);
        // The admission is over: even the right message changes nothing.
        assert_eq!(host.receive(&mut admission, &redeem, NOW).1, malformed);
    }
    assert_eq!(
        host.receive(&mut Admission::new(fresh()), b"GET / HTTP/1.1\r\n", NOW).1,
        Some(Outcome::Refused(JoinRefusal::Version(2)))
    );
    for frame in [&b""[..], b"\x01\xff", &hello, &redeem, &challenge] {
        let (mut joiner, _) = Joiner::new(&token, &node, host.cluster(), fresh()).unwrap();
        joiner.handle(&challenge, NOW).unwrap();
        assert!(joiner.handle(frame, NOW).is_err());
        assert!(joiner.handle(&challenge, NOW).is_err());
    }
    assert_eq!(host.recorded(), 0);
}

#[test]
fn an_answer_with_a_thousand_members_still_fits() {
    let host = TestPublisher::new();
    for id in 0..1000u64 {
        let key = std::array::from_fn(|at| id.to_be_bytes()[at % 8]);
        let mut certificate = (*host.us.membership.certificate).clone();
        certificate.node = NodeId::from_public_key(key);
        let certificate = Verified::sign(certificate, &host.us.authority).unwrap();
        let member = Member { authority: host.us.membership.authority.clone(), certificate };
        host.known.lock().members.insert(member.node(), member);
    }
    let joined = host.join(&host.invite(Role::Publisher, 1), &node()).unwrap();
    assert!(joined.members.len() > 50 && joined.members.len() <= parcel::MAX_CHAINS, "{}", joined.members.len());
    assert_eq!(joined.members[0].node(), host.us.node.node_id());
}

#[test]
fn the_same_message_in_another_encoding_is_not_taken() {
    let host = TestPublisher::new();
    let token = host.invite(Role::Worker, 1);
    let (_, mut hello) = Joiner::new(&token, &node(), host.cluster(), fresh()).unwrap();
    // The name of the first field as a byte string, which serde would accept.
    let at = hello.windows(8).position(|window| window == b"\x67version").unwrap();
    hello[at] ^= 0x20;
    assert!(codec::decode::<FromJoiner>(&hello, 4096).is_ok());
    assert_eq!(
        host.receive(&mut Admission::new(fresh()), &hello, NOW).1,
        Some(Outcome::Refused(JoinRefusal::Malformed))
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn any_change_on_the_way_ends_the_join(step in 0usize..4, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let host = TestPublisher::new();
        let (token, node) = (host.invite(Role::Worker, 1), node());
        let mut frames = 0;
        let mut disturb = |mut frame: Vec<u8>| {
            if frames == step {
                let at = at.index(frame.len());
                frame[at] ^= 1 << bit;
            }
            frames += 1;
            frame
        };
        let (mut joiner, hello) = Joiner::new(&token, &node, host.cluster(), fresh()).unwrap();
        let mut admission = Admission::new(fresh());
        let challenge = {
            let hello = disturb(hello);
            disturb(host.receive(&mut admission, &hello, NOW).0.unwrap())
        };
        if let Ok(Step::Send(redeem)) = joiner.handle(&challenge, NOW) {
            let answer = {
                let redeem = disturb(redeem);
                disturb(host.receive(&mut admission, &redeem, NOW).0.unwrap())
            };
            prop_assert!(joiner.handle(&answer, NOW).is_err());
        }
        prop_assert_eq!(host.recorded(), usize::from(step == 3));
    }

    #[test]
    fn any_frames_are_survived(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..4)) {
        let host = TestPublisher::new();
        let (token, node) = (host.invite(Role::Worker, 1), node());
        let mut admission = Admission::new(fresh());
        let (mut joiner, _) = Joiner::new(&token, &node, host.cluster(), fresh()).unwrap();
        for frame in frames {
            host.receive(&mut admission, &frame, NOW);
            prop_assert!(joiner.handle(&frame, NOW).is_err());
        }
        prop_assert_eq!(host.recorded(), 0);
    }
}
