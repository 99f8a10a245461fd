//! Links: frames, the handshake, and what crosses an open link.

use std::collections::BTreeMap;
use std::time::Duration;

use rustbalance::frame;
use rustbalance::link::Frame;
use rustbalance::link::handshake::{Dialler, HandshakeError, Listener, Purpose, Refusal, Refused};
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::codec;
use rustbalance_gossip::facts::Facts;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::liveness::Patience;
use rustbalance_gossip::record::{Member, RecordKind};
use rustbalance_gossip::time::Now;
use rustbalance_gossip::view::View;
use serde_json::{Value, json};

use crate::cast::{Cast, NOW, bytes, sign};
use crate::records::{invitation_redeemed, revocation};
use crate::{hex, unhex, value_of};

const NONCE: u8 = 0xe1;

const REFUSALS: [Refusal; 8] = [
    Refusal::NotMember,
    Refusal::Revoked,
    Refusal::WrongNode,
    Refusal::Expired,
    Refusal::Busy,
    Refusal::Duplicate,
    Refusal::Version,
    Refusal::Malformed,
];

fn listener(cast: &Cast) -> (Listener, Vec<u8>) {
    Listener::new(&cast.founder(), bytes(NONCE)).unwrap()
}

fn dialler<'a>(cast: &'a Cast, membership: &'a Member, purpose: Purpose) -> Dialler<'a> {
    Dialler { membership, key: &cast.beta, cluster: cast.cluster(), dialled: cast.alpha.node_id(), purpose }
}

fn revoked(cast: &Cast) -> Refused {
    Refused { why: Refusal::Revoked, revocation: Some(Box::new(sign(revocation(cast), &cast.authority).unverified())) }
}

/// Beta dials alpha.
pub(crate) fn handshake(cast: &Cast) -> Value {
    let (membership, (_, challenge)) = (cast.worker(), listener(cast));
    let proof = |purpose| dialler(cast, &membership, purpose).challenge(&challenge).unwrap();
    let message = |bytes: &[u8]| json!({ "value": value_of(bytes), "bytes": hex(bytes) });
    let answer = |refused: Option<Refused>| message(&Listener::answer(refused).unwrap());
    let refused: Vec<Value> = REFUSALS.iter().map(|why| answer(Some((*why).into()))).collect();
    json!({
        "dialled": hex(cast.alpha.node_id().public_key()),
        "challenge": message(&challenge),
        "proof_mesh": message(&proof(Purpose::Mesh)),
        "proof_carry_join": message(&proof(Purpose::CarryJoin)),
        "accepted": answer(None),
        "refused": refused,
        "refused_with_revocation": answer(Some(revoked(cast))),
    })
}

/// Both sides read what the vectors say that the other has sent.
pub(crate) fn check_handshake(cast: &Cast, vectors: &Value) {
    let membership = cast.worker();
    let listen = |proof: &[u8]| {
        let (listener, challenge) = listener(cast);
        assert_eq!(challenge, unhex(&vectors["challenge"]["bytes"]));
        listener.proof(proof, &BTreeMap::new(), NOW)
    };
    for (purpose, name) in [(Purpose::Mesh, "proof_mesh"), (Purpose::CarryJoin, "proof_carry_join")] {
        let proof = unhex(&vectors[name]["bytes"]);
        let proved = listen(&proof).unwrap();
        assert_eq!((&proved.member, proved.purpose), (&membership, purpose));
        let mut survivors = 0;
        for flipped in crate::flips(&proof) {
            if let Ok(again) = listen(&flipped) {
                assert_eq!(again, proved);
                survivors += 1;
            }
        }
        // The names of fourteen fields, as in a statement's envelope.
        assert_eq!(survivors, 14, "{name}");
    }
    let hears = |answer: &Value| dialler(cast, &membership, Purpose::Mesh).answer(&unhex(&answer["bytes"]));
    let alpha = cast.alpha.node_id();
    assert_eq!(hears(&vectors["accepted"]), Ok(()));
    for (why, answer) in REFUSALS.iter().zip(vectors["refused"].as_array().unwrap()) {
        assert_eq!(hears(answer), Err(HandshakeError::Refused(alpha, *why)));
    }
    let shown = sign(revocation(cast), &cast.authority);
    assert_eq!(hears(&vectors["refused_with_revocation"]), Err(HandshakeError::Revoked(Box::new(shown))));
}

fn frames(cast: &Cast, gossip: &[u8]) -> [(&'static str, Frame); 6] {
    let facts = facts_of(cast);
    [
        ("ping", Frame::Ping(1000)),
        ("pong", Frame::Pong(1000)),
        ("gossip", Frame::Gossip(VarBytes(gossip.to_vec()))),
        ("discovery", Frame::Discovery(cast.discovery(1).offer())),
        ("factsdigest", Frame::FactsDigest(facts.digest())),
        ("facts", Frame::Facts(facts.batches().concat())),
    ]
}

/// A revocation and a redeemed invitation.
fn facts_of(cast: &Cast) -> Facts {
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
    Facts::of(&view, NOW)
}

/// What crosses an open link; `gossip` is a message of the mesh.
pub(crate) async fn messages(cast: &Cast, gossip: &[u8]) -> Value {
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

/// Reads them back.
pub(crate) async fn check_messages(cast: &Cast, gossip: &[u8], vectors: &Value) {
    for (name, sent) in frames(cast, gossip) {
        let stream = unhex(&vectors[name]["frame"]);
        let payload = frame::read(&mut &stream[..], frame::MAX).await.unwrap();
        assert_eq!(payload, unhex(&vectors[name]["bytes"]));
        match (codec::decode(&payload, frame::MAX).unwrap(), sent) {
            (Frame::Ping(read), Frame::Ping(sent)) | (Frame::Pong(read), Frame::Pong(sent)) => assert_eq!(read, sent),
            (Frame::Gossip(read), Frame::Gossip(sent)) => assert_eq!(read, sent),
            (Frame::FactsDigest(read), Frame::FactsDigest(sent)) => assert_eq!(read, sent),
            (Frame::Facts(read), Frame::Facts(sent)) => assert_eq!(read, sent),
            (Frame::Discovery(read), Frame::Discovery(_)) => {
                let (cluster, authority) = (cast.cluster(), cast.authority.authority_id());
                assert_eq!(read.verify(cluster, authority).unwrap().key, cast.discovery(1).key);
                for flipped in crate::flips(&payload) {
                    let Ok(Frame::Discovery(offer)) = codec::decode(&flipped, frame::MAX) else { continue };
                    let secret = *offer.secret.as_bytes();
                    // Of a secret's 256 bits X25519 does not look at five, and names of fields may be byte strings.
                    if let Ok(believed) = offer.verify(cluster, authority) {
                        assert_eq!(believed.key, cast.discovery(1).key);
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

/// Who of ten members a node of a large cluster opens links to.
pub(crate) fn neighbours(cast: &Cast) -> Value {
    let me = cast.alpha.node_id();
    let members = (1..10).map(|n| NodeId::from_public_key(bytes(n * 25))).chain([me]).collect();
    let chosen = rustbalance_gossip::neighbours::neighbours(me, &members, 4);
    let keys =
        |nodes: &std::collections::BTreeSet<NodeId>| nodes.iter().map(|it| hex(it.public_key())).collect::<Vec<_>>();
    json!({ "me": hex(me.public_key()), "members": keys(&members), "links": 4, "chosen": keys(&chosen) })
}
