//! Links: frames, the handshake, and the messages on an open link.

use std::collections::BTreeMap;
use std::time::Duration;

use rustbalance::frame;
use rustbalance::keys::NodeSecret;
use rustbalance::link::handshake::{Dialler, HandshakeError, HandshakeSide, LinkRefusal, Listener, Purpose, Refused};
use rustbalance::link::{ChannelBinding, Frame, RouteKind};
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::codec;
use rustbalance_gossip::facts::SharedFacts;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::liveness::Patience;
use rustbalance_gossip::record::{Member, RecordKind};
use rustbalance_gossip::time::Now;
use rustbalance_gossip::view::View;
use serde_json::{Value, json};

use crate::cast::{NOW, VectorKeys, bytes, sign};
use crate::records::{invitation_redeemed, revocation};
use crate::{hex, unhex, value_of};

const LISTENER_NONCE: u8 = 0xe1;
const DIALLER_NONCE: u8 = 0xd1;

const REFUSALS: [LinkRefusal; 8] = [
    LinkRefusal::NotMember,
    LinkRefusal::Revoked,
    LinkRefusal::WrongNode,
    LinkRefusal::Expired,
    LinkRefusal::Busy,
    LinkRefusal::Duplicate,
    LinkRefusal::Version,
    LinkRefusal::Malformed,
];

fn own<'a>(membership: &'a Member, key: &'a NodeSecret, nonce: u8) -> HandshakeSide<'a> {
    HandshakeSide { membership, key, route: RouteKind::TOR, binding: ChannelBinding::BY_ID, nonce: bytes(nonce) }
}

fn listener<'a>(cast: &'a VectorKeys, membership: &'a Member) -> (Listener<'a>, Vec<u8>) {
    Listener::new(own(membership, &cast.alpha, LISTENER_NONCE)).unwrap()
}

fn dialler<'a>(cast: &'a VectorKeys, membership: &'a Member, purpose: Purpose) -> Dialler<'a> {
    Dialler { own: own(membership, &cast.beta, DIALLER_NONCE), dialled: cast.alpha.node_id(), purpose }
}

fn revoked(cast: &VectorKeys) -> Refused {
    Refused {
        why: LinkRefusal::Revoked,
        revocation: Some(Box::new(sign(revocation(cast), &cast.authority).unverified())),
    }
}

/// The handshake messages when beta dials alpha.
pub(crate) fn handshake(cast: &VectorKeys) -> Value {
    let (founder, worker) = (cast.founder(), cast.worker());
    let (listener, challenge) = listener(cast, &founder);
    let proof = |purpose| dialler(cast, &worker, purpose).challenge(&challenge).unwrap().0;
    let message = |bytes: &[u8]| json!({ "value": value_of(bytes), "bytes": hex(bytes) });
    let accepted = |purpose| {
        let proved = listener.proof(&proof(purpose), &BTreeMap::new(), NOW).unwrap();
        message(&listener.accept(&proved).unwrap())
    };
    let refused: Vec<Value> = REFUSALS.iter().map(|why| message(&Refused::from(*why).answer().unwrap())).collect();
    json!({
        "dialled": hex(cast.alpha.node_id().public_key()),
        "challenge": message(&challenge),
        "proof_mesh": message(&proof(Purpose::Mesh)),
        "proof_carry_join": message(&proof(Purpose::CarryJoin)),
        "accepted_mesh": accepted(Purpose::Mesh),
        "accepted_carry_join": accepted(Purpose::CarryJoin),
        "refused": refused,
        "refused_with_revocation": message(&revoked(cast).answer().unwrap()),
    })
}

/// Both sides accept the other side's messages from the vectors.
pub(crate) fn check_handshake(cast: &VectorKeys, vectors: &Value) {
    let (founder, worker) = (cast.founder(), cast.worker());
    let (listener, challenge) = listener(cast, &founder);
    assert_eq!(challenge, unhex(&vectors["challenge"]["bytes"]));
    let listen = |proof: &[u8]| listener.proof(proof, &BTreeMap::new(), NOW);
    let claimed = |purpose| dialler(cast, &worker, purpose).challenge(&challenge).unwrap().1;
    for (purpose, name) in [(Purpose::Mesh, "mesh"), (Purpose::CarryJoin, "carry_join")] {
        let proof = unhex(&vectors[format!("proof_{name}")]["bytes"]);
        let proved = listen(&proof).unwrap();
        assert_eq!((&proved.member, proved.purpose), (&worker, purpose));
        // Fourteen flips are harmless: each makes the name of a field a byte string instead of a
        // text string, which decodes alike.
        assert_eq!(survivors(&proof, |flipped| listen(flipped).ok(), &proved), 14, "proof_{name}");
        let accepted = unhex(&vectors[format!("accepted_{name}")]["bytes"]);
        let read = |answer: &[u8]| claimed(purpose).answer(answer, &BTreeMap::new(), NOW).ok();
        assert_eq!(read(&accepted), Some(founder.clone()));
        // Likewise for the names of thirteen fields and of the variant.
        assert_eq!(survivors(&accepted, read, &founder), 14, "accepted_{name}");
    }
    let error_for =
        |answer: &Value| claimed(Purpose::Mesh).answer(&unhex(&answer["bytes"]), &BTreeMap::new(), NOW).unwrap_err();
    let alpha = cast.alpha.node_id();
    for (why, answer) in REFUSALS.iter().zip(vectors["refused"].as_array().unwrap()) {
        assert_eq!(error_for(answer), HandshakeError::Refused(alpha, *why));
    }
    let shown = sign(revocation(cast), &cast.authority);
    assert_eq!(error_for(&vectors["refused_with_revocation"]), HandshakeError::Revoked(Box::new(shown)));
    // An answer for another purpose is not accepted.
    let unproven = HandshakeError::Unproven(alpha, LinkRefusal::WrongNode);
    assert_eq!(error_for(&vectors["accepted_carry_join"]), unproven);
}

/// The number of changed messages that are accepted; fails unless each decodes to the expected
/// value.
fn survivors<T: PartialEq + std::fmt::Debug>(message: &[u8], read: impl Fn(&[u8]) -> Option<T>, expected: &T) -> usize {
    let read: Vec<T> = crate::flips(message).filter_map(|flipped| read(&flipped)).collect();
    assert!(read.iter().all(|again| again == expected));
    read.len()
}

fn frames(cast: &VectorKeys, gossip: &[u8]) -> [(&'static str, Frame); 9] {
    let facts = facts_of(cast);
    [
        ("ping", Frame::Ping(1000)),
        ("pong", Frame::Pong(1000)),
        ("gossip", Frame::Gossip(VarBytes(gossip.to_vec()))),
        ("discovery", Frame::Discovery(cast.discovery(1).offer())),
        ("factsdigest", Frame::FactsDigest(facts.digest())),
        ("facts", Frame::Facts(facts.batches().concat())),
        ("probe", Frame::Probe { number: 7, padding: VarBytes(vec![0; 16]) }),
        ("probed", Frame::Probed(7)),
        ("push", Frame::Push(VarBytes(b"rb\0".to_vec()))),
    ]
}

/// A revocation and a redeemed invitation.
fn facts_of(cast: &VectorKeys) -> SharedFacts {
    let mut view = View::new(cast.founder(), Patience::default(), 0);
    let now = Now { mono: Duration::ZERO, unix: NOW };
    let (revoked, redeemed) = (revocation(cast), invitation_redeemed(cast));
    let facts = [
        (RecordKind::Revocation(revoked.node), sign(revoked, &cast.authority).to_bytes().unwrap()),
        (RecordKind::Invitation(redeemed.token), sign(redeemed, &cast.authority).to_bytes().unwrap()),
    ];
    for (kind, bytes) in facts {
        view.ingest(cast.beta.node_id(), kind, &bytes, now).unwrap();
    }
    view.facts().shared(NOW)
}

/// The messages on an open link; `gossip` is a message of the mesh.
pub(crate) async fn messages(cast: &VectorKeys, gossip: &[u8]) -> Value {
    let mut all = json!({});
    for (name, message) in frames(cast, gossip) {
        let payload = codec::encode(&message).unwrap();
        all[name] =
            json!({ "value": value_of(&payload), "bytes": hex(&payload), "frame": hex(&framed(&payload).await) });
    }
    all
}

async fn framed(payload: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    frame::write(&mut stream, payload).await.unwrap();
    stream
}

/// Decodes the messages of the vectors.
pub(crate) async fn check_messages(cast: &VectorKeys, gossip: &[u8], vectors: &Value) {
    for (name, sent) in frames(cast, gossip) {
        let stream = unhex(&vectors[name]["frame"]);
        let payload = frame::read(&mut &stream[..], frame::MAX).await.unwrap();
        assert_eq!(payload, unhex(&vectors[name]["bytes"]));
        match (codec::decode(&payload, frame::MAX).unwrap(), sent) {
            (Frame::Ping(read), Frame::Ping(sent)) | (Frame::Pong(read), Frame::Pong(sent)) => assert_eq!(read, sent),
            (Frame::Gossip(read), Frame::Gossip(sent)) | (Frame::Push(read), Frame::Push(sent)) => {
                assert_eq!(read, sent);
            }
            (Frame::Probe { number, .. }, Frame::Probe { number: sent, .. }) => assert_eq!(number, sent),
            (Frame::Probed(read), Frame::Probed(sent)) => assert_eq!(read, sent),
            (Frame::FactsDigest(read), Frame::FactsDigest(sent)) => assert_eq!(read, sent),
            (Frame::Facts(read), Frame::Facts(sent)) => assert_eq!(read, sent),
            (Frame::Discovery(read), Frame::Discovery(_)) => {
                let (cluster, authority) = (cast.cluster(), cast.authority.authority_id());
                assert_eq!(read.verify(cluster, authority).unwrap().key, cast.discovery(1).key);
                for flipped in crate::flips(&payload) {
                    let Ok(Frame::Discovery(offer)) = codec::decode(&flipped, frame::MAX) else { continue };
                    let secret = *offer.secret.as_bytes();
                    // X25519 ignores five of a secret's 256 bits, and field names may be byte
                    // strings.
                    if let Ok(verified) = offer.verify(cluster, authority) {
                        assert_eq!(verified.key, cast.discovery(1).key);
                        assert_eq!(clamped(secret), clamped(*cast.discovery(1).secret.as_bytes()));
                    }
                }
            }
            (read, _) => panic!("{name} is read as {read:?}"),
        }
    }
}

fn clamped(mut secret: [u8; 32]) -> [u8; 32] {
    secret[0] &= 248;
    secret[31] = secret[31] & 127 | 64;
    secret
}

/// The members, of ten, to which a node of a large cluster opens links.
pub(crate) fn neighbours(cast: &VectorKeys) -> Value {
    let me = cast.alpha.node_id();
    let members = (1..10).map(|n| NodeId::from_public_key(bytes(n * 25))).chain([me]).collect();
    let chosen = rustbalance_gossip::neighbours::neighbours(me, &members, 4);
    let keys =
        |nodes: &std::collections::BTreeSet<NodeId>| nodes.iter().map(|it| hex(it.public_key())).collect::<Vec<_>>();
    json!({ "me": hex(me.public_key()), "members": keys(&members), "links": 4, "chosen": keys(&chosen) })
}
