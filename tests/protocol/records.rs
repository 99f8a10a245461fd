//! Encodings, names and every signed statement.

use std::collections::BTreeSet;
use std::fmt::Debug;

use rustbalance::keys::AuthoritySecret;
use rustbalance::wireguard::{Announcement, DatedKey, WireguardSecret, seal};
use rustbalance_gossip::address::mesh_address;
use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
use rustbalance_gossip::codec;
use rustbalance_gossip::id::{ClusterId, NodeId};
use rustbalance_gossip::record::*;
use rustbalance_gossip::signed::{Sign, Statement, Unverified};
use rustbalance_gossip::time::Now;
use rustbalance_gossip::view::{Condition, View};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::cast::{FOUNDED, NOW, VectorKeys, bytes, sign};
use crate::{hex, render, unhex};

/// An example of every form of CBOR in use.
pub(crate) fn codec_examples() -> Value {
    let example = |name: &str, bytes: Result<Vec<u8>, _>| json!({ "what": name, "bytes": hex(&bytes.unwrap()) });
    json!([
        example("0", codec::encode(&0u64)),
        example("23", codec::encode(&23u64)),
        example("24", codec::encode(&24u64)),
        example("255", codec::encode(&255u64)),
        example("256", codec::encode(&256u64)),
        example("65536", codec::encode(&65_536u64)),
        example("4294967296", codec::encode(&4_294_967_296u64)),
        example("true", codec::encode(&true)),
        example("none", codec::encode(&None::<u8>)),
        example("byte string h'0102'", codec::encode(&VarBytes(vec![1, 2]))),
        example("list [1, 2]", codec::encode(&vec![1u8, 2])),
        example("pair (1, 1)", codec::encode(&(1u16, 1u16))),
        example("variant without a value", codec::encode(&Role::Worker)),
        example("variant with fields", codec::encode(&rustbalance::join::JoinRefusal::Expired { ago: 10 })),
        example("variant with a value", codec::encode(&rustbalance::join::JoinRefusal::Version(2))),
    ])
}

/// Public keys, their onion addresses and their mesh addresses.
pub(crate) fn names(cast: &VectorKeys) -> Value {
    let name = |id: NodeId| {
        let (address, mesh) = (id.to_string(), mesh_address(&id).to_string());
        json!({ "public": hex(id.public_key()), "address": address, "mesh": mesh })
    };
    let of_zeros = NodeId::from_public_key([0; 32]);
    json!([name(cast.alpha.node_id()), name(cast.beta.node_id()), name(cast.gamma.node_id()), name(of_zeros)])
}

/// A statement of any type with its signer.
pub(crate) trait VectorCase {
    fn describe(&self) -> Value;
    /// Decodes and verifies the vector's envelope, and checks that changed envelopes are refused.
    fn check(&self, vector: &Value);
}

struct StatementCase<T> {
    statement: T,
    signer: Box<dyn Sign>,
}

fn statement_case<T: Statement>(statement: T, signer: impl Sign + 'static) -> StatementCase<T> {
    StatementCase { statement, signer: Box::new(signer) }
}

impl<T: Statement + Serialize + Debug + PartialEq> VectorCase for StatementCase<T> {
    fn describe(&self) -> Value {
        json!({
            "context": T::CONTEXT,
            "max": T::MAX_SIZE,
            "signer": hex(&self.signer.public_key()),
            "value": render(&ciborium::Value::serialized(&self.statement).unwrap()),
            "statement": hex(&codec::encode(&self.statement).unwrap()),
            "envelope": hex(&sign(self.statement.clone(), &*self.signer).to_bytes().unwrap()),
        })
    }

    fn check(&self, vector: &Value) {
        let envelope = unhex(&vector["envelope"]);
        let read = |bytes: &[u8]| Unverified::<T>::from_bytes(bytes).ok()?.verify(&self.signer.public_key()).ok();
        let verified = read(&envelope).unwrap();
        assert_eq!(*verified, self.statement);
        assert_eq!(codec::decode::<T>(&unhex(&vector["statement"]), T::MAX_SIZE).unwrap(), self.statement);

        let stranger = AuthoritySecret::from_seed(&zeroize::Zeroizing::new(bytes(9)));
        assert!(Unverified::<T>::from_bytes(&envelope).unwrap().verify(&stranger.public_key()).is_err());
        let mut survivors = 0;
        for flipped in crate::flips(&envelope) {
            // A flip may change a field name of the envelope to another CBOR form of the same name;
            // the signed content is the same then.
            if let Some(again) = read(&flipped) {
                assert!(verified.is_same(&again.unverified()), "{}", T::CONTEXT);
                survivors += 1;
            }
        }
        // Text string and byte string differ by one bit, and both decode as the name of a field:
        // one harmless flip for each of the three fields.
        assert_eq!(survivors, 3, "{}", T::CONTEXT);
    }
}

/// An introduction point at relay `n`.
pub(crate) fn point(n: u8) -> IntroPoint {
    let (rsa, ed25519) = ([n; 20], [n; 32]);
    let specifier = |kind: u8, body: &[u8]| VarBytes([&[kind, body.len() as u8], body].concat());
    IntroPoint {
        relay: RelayId { rsa: FixedBytes(rsa), ed25519: FixedBytes(ed25519) },
        link_specifiers: vec![specifier(0, &[192, 0, 2, n, 0x23, 0x29]), specifier(2, &rsa), specifier(3, &ed25519)],
        onion_key: FixedBytes(bytes(n)),
        session_key: FixedBytes(bytes(n.wrapping_add(0x40))),
        encryption_key: FixedBytes(bytes(n.wrapping_add(0x80))),
    }
}

pub(crate) fn nonce(n: u8) -> PointNonce {
    PointNonce(FixedBytes([n.wrapping_add(0xc0); 16]))
}

pub(crate) const PERIOD: PeriodId = PeriodId { number: 20_832, length_minutes: 1440, offset_seconds: 43_200 };

/// Every statement with its name, except the proof of a link, which is in `links`.
pub(crate) fn statement_cases(cast: &VectorKeys) -> Vec<(&'static str, Box<dyn VectorCase>)> {
    let (cluster, node, seq) = (cast.cluster(), cast.alpha.node_id(), (7 << 32) | 1);
    let founder = cast.founder();
    let authority = || cast.authority.duplicate();
    let alpha = || cast.alpha.duplicate();
    let card = NodeCard {
        cluster,
        node,
        seq,
        chain: founder.chain(),
        address: mesh_address(&node),
        priority: 100,
        weight: 10,
        version: "0.1.0".into(),
        ports: vec![22, 80],
    };
    let published = PublishedPeriod { period: PERIOD, revision: 1_414_213_562, confirmed: 7, directories: 8 };
    let service = cluster.first_service();
    let publication = Publication { cluster, node, seq, service, term: 5, periods: vec![published] };
    vec![
        (
            "authority_certificate",
            Box::new(statement_case((*founder.authority).clone(), cast.master.duplicate())) as Box<dyn VectorCase>,
        ),
        ("founder_certificate", Box::new(statement_case((*founder.certificate).clone(), authority()))),
        ("member_certificate", Box::new(statement_case((*cast.worker().certificate).clone(), authority()))),
        ("invitation", Box::new(statement_case(cast.invitation(Role::Worker), authority()))),
        ("invitation_redeemed", Box::new(statement_case(invitation_redeemed(cast), authority()))),
        ("revocation", Box::new(statement_case(revocation(cast), authority()))),
        ("service", Box::new(statement_case(served(cast), authority()))),
        ("renewal", Box::new(statement_case(renewal(cast), authority()))),
        ("discovery_key", Box::new(statement_case((*cast.discovery(1).key).clone(), authority()))),
        ("node_card", Box::new(statement_case(card, alpha()))),
        ("heartbeat", Box::new(statement_case(heartbeat(cast), alpha()))),
        ("intro_points", Box::new(statement_case(intro_points(cast), alpha()))),
        ("endpoint", Box::new(statement_case(endpoint(cast), alpha()))),
        ("report", Box::new(statement_case(report(cast), alpha()))),
        ("lease", Box::new(statement_case(lease(cluster, node, 5, 100), alpha()))),
        ("publication", Box::new(statement_case(publication, alpha()))),
    ]
}

pub(crate) fn revocation(cast: &VectorKeys) -> Revocation {
    Revocation { cluster: cast.cluster(), node: cast.beta.node_id(), revoked: NOW }
}

/// Alpha's certificate, renewed half of its lifetime after the founding.
fn renewal(cast: &VectorKeys) -> Renewal {
    let renewed = cast.founder().certificate.renewed(FOUNDED + MEMBERSHIP_SECONDS / 2);
    Renewal::of(&sign(renewed, &cast.authority))
}

/// The worker's invitation after beta has joined with it.
pub(crate) fn invitation_redeemed(cast: &VectorKeys) -> Invitation {
    Invitation { redeemed: [cast.beta.node_id()].into(), ..cast.invitation(Role::Worker) }
}

/// The fact of the first service, with a setting that no version knows.
fn served(cast: &VectorKeys) -> Service {
    let (cluster, service) = (cast.cluster(), cast.cluster().first_service());
    let settings = [("later".to_owned(), Setting { version: 1, value: VarBytes(vec![1, 2, 3]) })].into();
    Service { cluster, service, seq: 1, issued: NOW, removed: false, ports: vec![22, 80], settings }
}

/// Alpha's WireGuard keys during a rotation, and its two addresses.
pub(crate) fn announcement() -> Announcement {
    let key = |n| WireguardSecret::from_bytes(&zeroize::Zeroizing::new(bytes(n))).public();
    let keys = [(0xb1, NOW - 82_800), (0xb2, NOW + 3600)].map(|(n, from)| DatedKey { key: key(n), from });
    let endpoints = ["203.0.113.7:7440", "[2001:db8::7]:7440"].map(|text| text.parse().unwrap());
    Announcement { keys: keys.into(), endpoints: endpoints.into() }
}

/// The nonce under which [`announcement`] is sealed.
pub(crate) const SEAL_NONCE: [u8; 12] = [0xc5; 12];

fn endpoint(cast: &VectorKeys) -> Endpoint {
    let (cluster, node, discovery) = (cast.cluster(), cast.alpha.node_id(), cast.discovery(1).secret);
    let sealed = seal(&announcement(), &discovery, cluster, node, SEAL_NONCE).unwrap();
    Endpoint { cluster, node, seq: (7 << 32) | 4, sealed }
}

/// Alpha has a name and two problems.
fn report(cast: &VectorKeys) -> NodeReport {
    let (cluster, node, name) = (cast.cluster(), cast.alpha.node_id(), "web-1".parse().unwrap());
    let problems = ["disk_full", "target_down"].map(|code| code.parse().unwrap()).into();
    NodeReport { cluster, node, seq: (7 << 32) | 5, name: Some(name), problems }
}

fn heartbeat(cast: &VectorKeys) -> Heartbeat {
    let (cluster, node) = (cast.cluster(), cast.alpha.node_id());
    Heartbeat {
        cluster,
        node,
        seq: (7 << 32) | 2,
        phase: Phase::Active,
        hears: 2,
        unix: NOW,
        instance: 0x0123_4567_89ab_cdef,
    }
}

fn intro_points(cast: &VectorKeys) -> IntroPoints {
    let (cluster, node) = (cast.cluster(), cast.alpha.node_id());
    IntroPoints {
        cluster,
        node,
        seq: (7 << 32) | 3,
        service: cluster.first_service(),
        fitness: Fitness::Healthy,
        points: vec![point(1), point(2)],
        nonces: vec![nonce(1), nonce(2)],
        subprotocols: vec![Subprotocol(2, 6)],
    }
}

pub(crate) fn lease(cluster: ClusterId, holder: NodeId, term: u64, priority: u8) -> Lease {
    Lease { cluster, holder, seq: (7 << 32) | 4, term, priority, ttl_ms: 30_000 }
}

/// All statements in the form of the file.
pub(crate) fn statements(cast: &VectorKeys) -> Value {
    let described =
        statement_cases(cast).into_iter().map(|(name, statement_case)| (name.to_owned(), statement_case.describe()));
    Value::Object(described.collect::<Map<_, _>>())
}

/// A new view accepts the vectors one after the other.
pub(crate) fn check_view(cast: &VectorKeys, vectors: &Value) {
    let gamma = cast.member(&cast.gamma, Role::Publisher, NOW, None);
    let mut view = View::new(gamma, Default::default(), 0);
    let now = Now { mono: std::time::Duration::ZERO, unix: NOW };
    let (alpha, service) = (cast.alpha.node_id(), cast.cluster().first_service());
    let invitation = RecordKind::Invitation(cast.token(Role::Worker).invitation_id());
    let mut kinds: BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
    for (kind, name) in [
        (RecordKind::Heartbeat, "heartbeat"),
        (RecordKind::Card, "node_card"),
        (RecordKind::IntroPoints(service), "intro_points"),
        (RecordKind::Endpoint, "endpoint"),
        (RecordKind::Report, "report"),
        (RecordKind::Lease, "lease"),
        (RecordKind::Publication(service), "publication"),
        (invitation, "invitation"),
        (RecordKind::Revocation(cast.beta.node_id()), "revocation"),
        (RecordKind::Service(service), "service"),
        (RecordKind::Renewal(alpha), "renewal"),
    ] {
        kinds.remove(kind.key().split('/').next().unwrap());
        let outcome = view.ingest(alpha, kind, &unhex(&vectors[name]["envelope"]), now);
        // The heartbeat comes before its signer's card: it waits for the card and is applied then.
        assert_eq!(outcome.is_ok(), name != "heartbeat", "{name}: {outcome:?}");
    }
    assert!(kinds.is_empty(), "no vector of {kinds:?}");
    let known = view.member(&alpha).unwrap();
    assert_eq!((known.phase(), known.condition()), (Phase::Active, Condition::Healthy));
    assert_eq!(known.intro_points(&service).unwrap().points, intro_points(cast).points);
    assert_eq!(**known.report().unwrap(), report(cast));
    assert_eq!(view.best_claim().unwrap().holder, alpha);
    assert_eq!(view.highest_revision(&service, &PERIOD), Some(1_414_213_562));
    assert!(view.invitations().get(&cast.token(Role::Worker).invitation_id()).is_some());
    assert!(view.revoked(&cast.beta.node_id()));
    assert_eq!(view.facts().services.get(&service), Some(&served(cast)));
    assert_eq!(known.member.certificate.expires, renewal(cast).expires);
}
