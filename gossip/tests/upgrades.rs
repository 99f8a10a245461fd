//! Upgrades node by node: a node of a later version announces kinds and fields that the others do
//! not know. They forward them unchanged to nodes that do.

#![allow(missing_docs, clippy::panic, clippy::unwrap_used)]

use ciborium::Value;
use rustbalance_gossip::codec;
use rustbalance_gossip::id::{ClusterId, NodeId};
use rustbalance_gossip::record::{IntroPoints, MAX_SUBPROTOCOLS, NodeCard, NodeRecord, RecordKind, Role, Subprotocol};
use rustbalance_gossip::signed::{Statement, Unverified, sign_unknown_kind};
use rustbalance_gossip::sim::{FOUNDED, Founder, Identity, Records, point, sign, upgrade};
use serde::{Deserialize, Serialize};

/// A node's record of a kind that this version does not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Endpoint {
    cluster: ClusterId,
    node: NodeId,
    seq: u64,
    endpoint: String,
}

impl Statement for Endpoint {
    const CONTEXT: &'static str = "rustbalance record ep";
    const MAX_SIZE: usize = 512;
}

/// A fact of a kind that this version does not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Region {
    cluster: ClusterId,
    seq: u64,
    name: String,
    expires: u64,
}

impl Statement for Region {
    const CONTEXT: &'static str = "rustbalance record region";
    const MAX_SIZE: usize = 512;
}

/// The card of a later version, as far as the test reads it: with an additional field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct LaterCard {
    cluster: ClusterId,
    node: NodeId,
    seq: u64,
    weight: u8,
    region: String,
}

impl Statement for LaterCard {
    const CONTEXT: &'static str = NodeCard::CONTEXT;
    const MAX_SIZE: usize = NodeCard::MAX_SIZE;
}

fn kinds() -> [RecordKind; 3] {
    ["card", "ep", "region/north"].map(|key| RecordKind::from_key(key).unwrap())
}

fn announced(founder: &Founder, node: &Identity) -> Records {
    let (cluster, id) = (founder.cluster(), node.node());
    // Higher than every sequence number that this start of the node has used.
    let seq = (1 << 32) + 1_000_000;
    let Value::Map(mut fields) = Value::serialized(&node.card(seq, 100)).unwrap() else { panic!("a record is a map") };
    fields.push((Value::Text("region".into()), Value::Text("north".into())));
    let card = sign_unknown_kind(NodeCard::CONTEXT, codec::encode(&Value::Map(fields)).unwrap(), &node.key).unwrap();
    let endpoint = Endpoint { cluster, node: id, seq, endpoint: "[2001:db8::1]:51820".into() };
    let region = Region { cluster, seq: 1, name: "north".into(), expires: FOUNDED + 1_000_000 };
    let region = founder.sign_unknown_kind(Region::CONTEXT, codec::encode(&region).unwrap());
    kinds().into_iter().zip([card, sign(endpoint, &node.key).to_bytes().unwrap(), region]).collect()
}

#[test]
fn records_of_a_later_version_are_forwarded_byte_for_byte() {
    let mut sent = Records::new();
    let mut speaker = None;
    let outcome = upgrade(1, 5, |founder, node| {
        sent = announced(founder, node);
        speaker = Some((node.node(), node.member.authority_id()));
        sent.clone()
    });
    let outcome = outcome.unwrap();
    assert!(outcome.violations.is_empty(), "{}", outcome.violations[0]);
    assert_eq!(sent.len(), 3);
    for carried in [&outcome.neighbour, &outcome.restarted, &outcome.newcomer] {
        assert_eq!(carried, &sent);
    }
    // A newcomer of the later version reads all of it.
    let (node, authority) = speaker.unwrap();
    let [card, endpoint, region] = kinds().map(|kind| outcome.newcomer[&kind].clone());
    let card = Unverified::<LaterCard>::from_bytes(&card).unwrap().verify(node.public_key()).unwrap();
    assert_eq!(card.region, "north");
    let endpoint = Unverified::<Endpoint>::from_bytes(&endpoint).unwrap().verify(node.public_key()).unwrap();
    assert_eq!(endpoint.endpoint, "[2001:db8::1]:51820");
    let region = Unverified::<Region>::from_bytes(&region).unwrap().verify(authority.public_key()).unwrap();
    assert_eq!(region.name, "north");
}

#[test]
fn intro_points_of_an_earlier_version_grant_no_subprotocol() {
    let node = Founder::new(1).node(1, Role::Worker);
    let record = IntroPoints { subprotocols: vec![Subprotocol(2, 6)], ..node.points(7, vec![point(1, 1)]) };
    let Value::Map(mut fields) = Value::serialized(&record).unwrap() else { panic!("a record is a map") };
    fields.retain(|(name, _)| name.as_text() != Some("subprotocols"));
    let statement = codec::encode(&Value::Map(fields)).unwrap();
    let earlier = sign_unknown_kind(IntroPoints::CONTEXT, statement, &node.key).unwrap();
    let read = Unverified::<IntroPoints>::from_bytes(&earlier).unwrap().verify(node.node().public_key()).unwrap();
    assert_eq!(*read, IntroPoints { subprotocols: Vec::new(), ..record });
}

#[test]
fn subprotocols_are_bounded_and_rise() {
    let node = Founder::new(1).node(1, Role::Worker);
    let granting = |versions: &[u8]| IntroPoints {
        subprotocols: versions.iter().map(|version| Subprotocol(2, *version)).collect(),
        ..node.points(7, vec![point(1, 1)])
    };
    let most: Vec<u8> = (0..).take(MAX_SUBPROTOCOLS).collect();
    granting(&most).check_bounds().unwrap();
    for bad in [&[6, 6][..], &[6, 5], &[most, vec![200]].concat()] {
        assert!(granting(bad).check_bounds().is_err(), "{bad:?}");
    }
}
