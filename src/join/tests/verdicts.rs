//! The decisions on joiners and the refusals, by both state machines, with injected time.

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::codec;

use super::*;
use crate::frame;
use crate::join::message::{FromJoiner, FromPublisher};
use crate::keys::{PointSeed, TokenSecret};

#[test]
fn a_joining_publisher_receives_all_secrets_and_verifies_them() {
    let host = TestPublisher::new();
    let (token, node) = (host.invite(Role::Publisher, 1), node());
    let joined = host.join(&token, &node).unwrap();
    assert_eq!((joined.member.node(), joined.member.role()), (node.node_id(), Role::Publisher));
    assert_eq!(joined.publisher.node(), host.us.node.node_id());
    assert_eq!(joined.members.len(), 1);
    let secrets = joined.secrets.unwrap();
    assert_eq!(secrets.services.len(), 1);
    assert_eq!(secrets.services[0].identity().unwrap().expanded(), host.master().expanded());
    assert_eq!(secrets.authority.seed(), host.us.authority.seed());
    assert_eq!(joined.discovery.key.generation, 3);
    assert_eq!(joined.discovery.secret.as_bytes(), host.discovery.secret.as_bytes());
    assert_eq!(joined.points.as_bytes(), PointSeed::derive(&host.us.authority, node.node_id()).as_bytes());
    assert_eq!(joined.services, Snapshot(&host).services());
    let recorded = &host.known.lock().recorded[0];
    assert_eq!(recorded.invitation.redeemed, BTreeSet::from([node.node_id()]));
    assert!(recorded.invitation.unverified().verify(host.us.authority.authority_id().public_key()).is_ok());
}

#[test]
fn a_worker_is_given_no_secret_of_the_master_address() {
    let host = TestPublisher::new();
    let (token, node) = (host.invite(Role::Worker, 1), node());
    let joined = host.join(&token, &node).unwrap();
    assert_eq!(joined.member.role(), Role::Worker);
    assert!(joined.secrets.is_none());
    assert_eq!(joined.points.as_bytes(), PointSeed::derive(&host.us.authority, node.node_id()).as_bytes());
    // Searches the plain text of a worker's answer for the secrets. The search of a publisher's
    // answer must find them, which shows that the search works.
    for (role, given) in [(Role::Worker, false), (Role::Publisher, true)] {
        let facts = parcel::Facts {
            signature: FixedBytes([0; 64]),
            publisher: host.us.membership.chain(),
            member: joined.member.chain(),
            members: vec![],
            services: Snapshot(&host).services(),
            discovery: host.discovery.key.unverified(),
            unix: NOW,
        };
        let secrets = (role == Role::Publisher).then(|| PublisherSecrets {
            authority: host.us.authority.duplicate(),
            services: vec![host.us.services[0].duplicate()],
        });
        let discovery = Snapshot(&host).discovery().unwrap().secret;
        let points = PointSeed::derive(&host.us.authority, node.node_id());
        let plain = parcel::Parcel { discovery, points, secrets, facts }.to_bytes().unwrap();
        for secret in [&host.master().expanded()[..32], &host.master().expanded()[32..], host.us.authority.seed()] {
            assert_eq!(contains(&plain, secret), given, "{role}");
        }
    }
}

/// Opens the exact bytes of a worker's answer with the joiner's own key.
#[test]
fn the_decrypted_answer_to_a_worker_contains_no_secret_of_the_master_address() {
    let host = TestPublisher::new();
    let (token, node) = (host.invite(Role::Worker, 1), node());
    let (ours, theirs) = (fresh(), fresh());
    let copy = Fresh { nonce: ours.nonce, ephemeral: ours.ephemeral.clone() };
    let (mut joiner, hello) = Joiner::new(&token, &node, host.cluster(), ours).unwrap();
    let mut admission = Admission::new(theirs);
    let challenge = host.receive(&mut admission, &hello, NOW).0.unwrap();
    let Ok(Step::Send(redeem)) = joiner.handle(&challenge, NOW) else { panic!() };
    let answer = host.receive(&mut admission, &redeem, NOW).0.unwrap();
    let (Ok(FromPublisher::Challenge(sent)), Ok(FromPublisher::Answer(sealed))) =
        (codec::decode(&challenge, 4096), codec::decode(&answer, frame::MAX))
    else {
        panic!()
    };
    let request = transcript::request(&hello, &challenge, &node.node_id(), &token.invitation_id(), NOW);
    let key = transcript::answer(&request, sealed.role, &sealed.publisher);
    let plain = transcript::open(&copy.ephemeral, sent.ephemeral.0, &key, sealed.sealed.0).unwrap();
    assert!(contains(&plain, host.discovery.secret.as_bytes()));
    assert!(!contains(&answer, host.discovery.secret.as_bytes()));
    for secret in [&host.master().expanded()[..32], &host.master().expanded()[32..], host.us.authority.seed()] {
        assert!(!contains(&plain, secret));
    }
}

#[test]
fn each_token_that_is_not_good_has_its_own_refusal_and_none_is_recorded() {
    let host = TestPublisher::new();
    let unknown = Token::new(TokenSecret::generate(&mut rng()), host.cluster());
    assert_eq!(host.refusal(&unknown, &node()), JoinRefusal::UnknownToken);

    let token = host.invite(Role::Worker, 2);
    assert_eq!(refusal(host.join_at(&token, &node(), NOW + 3610, NOW + 3610)), JoinRefusal::Expired { ago: 10 });
    host.change(&token, |invitation| invitation.revoked = true);
    assert_eq!(host.refusal(&token, &node()), JoinRefusal::Revoked);
    host.change(&token, |invitation| {
        invitation.revoked = false;
        invitation.redeemed = [1, 2].map(|id| NodeId::from_public_key([id; 32])).into();
    });
    assert_eq!(host.refusal(&token, &node()), JoinRefusal::UsedUp { uses: 2 });

    let foreign = TestPublisher::new().invite(Role::Worker, 1);
    let error = host.join(&foreign, &node()).unwrap_err();
    assert!(matches!(error, JoinError::ForeignToken(cluster) if cluster == host.cluster()), "{error}");
    assert!(!error.may_have_joined());
    assert_eq!(host.recorded(), 0);
}

#[test]
fn clocks_too_far_apart_are_reported_before_the_token_is_used() {
    let host = TestPublisher::new();
    let token = host.invite(Role::Worker, 1);
    for joiner in [NOW - 3600, NOW + 3600, NOW + 601, NOW - 601] {
        let refused = refusal(host.join_at(&token, &node(), joiner, NOW));
        assert_eq!(refused, JoinRefusal::ClockSkew { publisher: NOW, joiner });
    }
    let text = JoinRefusal::ClockSkew { publisher: NOW, joiner: NOW + 3600 }.to_string();
    assert!(text.contains("3600 s apart (this node is ahead)") && text.contains("set this node's clock"), "{text}");
    assert_eq!(host.recorded(), 0);
    host.join_at(&token, &node(), NOW + 600, NOW).unwrap();
}

#[test]
fn a_member_an_evicted_node_and_the_publisher_itself_are_refused_with_the_reason() {
    let host = TestPublisher::new();
    let (first, second, node) = (host.invite(Role::Worker, 1), host.invite(Role::Worker, 1), node());
    host.join(&first, &node).unwrap();
    assert_eq!(host.refusal(&second, &node), JoinRefusal::AlreadyMember);
    assert_eq!(host.refusal(&second, &host.us.node.duplicate()), JoinRefusal::AlreadyMember);
    host.known.lock().revoked.insert(node.node_id());
    assert_eq!(host.refusal(&first, &node), JoinRefusal::Evicted);
    assert_eq!(host.recorded(), 1);
}

#[test]
fn another_cluster_another_version_and_a_worker_are_reported_at_once() {
    let host = TestPublisher::new();
    let other = ClusterId::from_public_key([9; 32]);
    let token = Token::new(TokenSecret::generate(&mut rng()), other);
    let (mut joiner, hello) = Joiner::new(&token, &node(), other, fresh()).unwrap();
    let refused = host.receive(&mut Admission::new(fresh()), &hello, NOW).0.unwrap();
    assert!(matches!(joiner.handle(&refused, NOW), Err(JoinError::Refused(JoinRefusal::OtherCluster(_)))));

    let Ok(FromJoiner::Hello(mut newer)) = codec::decode(&hello, 4096) else { panic!() };
    newer.version = 3;
    let newer = codec::encode(&FromJoiner::Hello(newer)).unwrap();
    let (_, outcome) = host.receive(&mut Admission::new(fresh()), &newer, NOW);
    assert_eq!(outcome, Some(Outcome::Refused(JoinRefusal::Version(2))));

    let worker = TestPublisher::beside(host.master().duplicate(), host.us.authority.duplicate(), Role::Worker);
    assert_eq!(worker.refusal(&worker.invite(Role::Worker, 1), &node()), JoinRefusal::NotPublisher);
}

#[test]
fn every_refusal_has_its_own_text_that_says_what_to_do() {
    let refusals = [
        JoinRefusal::UnknownToken,
        JoinRefusal::Expired { ago: 5 },
        JoinRefusal::UsedUp { uses: 1 },
        JoinRefusal::Revoked,
        JoinRefusal::OtherCluster(ClusterId::from_public_key([9; 32])),
        JoinRefusal::ClockSkew { publisher: 1, joiner: 9 },
        JoinRefusal::NotPublisher,
        JoinRefusal::NoPublisher,
        JoinRefusal::AlreadyMember,
        JoinRefusal::Evicted,
        JoinRefusal::Version(2),
        JoinRefusal::Busy,
        JoinRefusal::NotYet,
        JoinRefusal::Silent(node().node_id()),
        JoinRefusal::Failed,
        JoinRefusal::Malformed,
    ];
    let texts: BTreeSet<String> = refusals.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), refusals.len());
    for text in texts {
        assert!(
            ["try", "check", "make", "run", "update", "start", "set"].iter().any(|word| text.contains(word)),
            "{text}"
        );
    }
}

/// A publisher that may not know of other admissions postpones a joiner without using up the token.
/// A joiner with no chance is refused for good even then.
#[test]
fn while_admitting_is_postponed_no_token_is_redeemed() {
    let host = TestPublisher::new();
    let (token, joiner) = (host.invite(Role::Publisher, 1), node());
    let postpone = |why| host.known.lock().postponed = why;
    postpone(Some(JoinRefusal::NotYet));
    assert_eq!(host.refusal(&token, &joiner), JoinRefusal::NotYet);
    assert_eq!(host.recorded(), 0);
    postpone(None);
    host.join(&token, &joiner).unwrap();
    // A member that requests its answer again is postponed, too. A joiner whose token is used up
    // learns that at once.
    postpone(Some(JoinRefusal::NotYet));
    assert_eq!(host.refusal(&token, &joiner), JoinRefusal::NotYet);
    assert_eq!(host.refusal(&token, &node()), JoinRefusal::UsedUp { uses: 1 });
}

/// The answer was lost: the same node key and token ask again.
#[test]
fn a_lost_answer_is_given_again_without_another_use() {
    let host = TestPublisher::new();
    let (token, node) = (host.invite(Role::Worker, 1), node());
    let first = host.join(&token, &node).unwrap();
    // Also after the token has expired, because it was redeemed in time.
    let again = host.join_at(&token, &node, NOW + 90_000, NOW + 90_000).unwrap();
    assert_eq!(again.member, first.member);
    assert_eq!(host.recorded(), 1);
    assert_eq!(host.refusal(&token, &super::node()), JoinRefusal::UsedUp { uses: 1 });

    // The redemption was recorded, but the publisher lost the certificate: it makes another one,
    // still for one use. It is dated like the invitation, so that no later rival can precede it.
    host.known.lock().members.clear();
    let other = host.join_at(&token, &node, NOW + 60, NOW + 60).unwrap();
    let issued = host.known.lock().invitations[&token.invitation_id()].issued;
    assert_eq!(other.member.certificate.issued, issued);
    assert!(issued <= first.member.certificate.issued);
    assert_eq!(host.known.lock().invitations[&token.invitation_id()].redeemed.len(), 1);
}

#[test]
fn the_loser_of_a_race_between_two_publishers_learns_that_the_token_is_used_up() {
    let one = TestPublisher::new();
    let two = TestPublisher::beside(one.master().duplicate(), one.us.authority.duplicate(), Role::Publisher);
    let (token, winner, loser) = (one.invite(Role::Worker, 1), node(), node());
    let invitation = one.known.lock().invitations[&token.invitation_id()].clone();
    two.known.lock().invitations.insert(invitation.token, invitation);
    one.join(&token, &winner).unwrap();
    two.join(&token, &loser).unwrap();
    // Gossip merges the two versions; then the loser is not a member.
    one.change(&token, |invitation| {
        invitation.redeemed.insert(loser.node_id());
    });
    assert_eq!(one.refusal(&token, &loser), JoinRefusal::UsedUp { uses: 1 });
    assert!(one.join(&token, &winner).is_ok());
}
