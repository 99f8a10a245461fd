//! Messages as bytes: which are read, which are refused, and which parts are left out.

use super::*;
use chitchat::Serializable;
use proptest::prelude::*;
use rustbalance_gossip::id::ClusterId;

/// An ACK with these values of an incarnation: key, value, version.
pub(crate) fn ack(node: NodeId, generation: u64, values: &[(String, String, u64)]) -> Vec<u8> {
    let values = values.iter().map(|(key, value, version)| Operation::Value {
        key: key.clone(),
        value: value.clone(),
        version: *version,
        status: 0,
    });
    let incarnation = Operation::Incarnation { incarnation: Incarnation { node, generation }, from: 0 };
    ack_of(std::iter::once(incarnation).chain(values).collect())
}

/// An ACK that raises the version without a value, as chitchat does after it has garbage-collected
/// tombstones.
pub(crate) fn bare_version(node: NodeId, generation: u64, collected: u64, version: u64) -> Vec<u8> {
    let mut body = Vec::new();
    write_operation(&mut body, &Operation::Incarnation { incarnation: Incarnation { node, generation }, from: 0 });
    let at = body.len() - 16;
    body[at..at + 8].copy_from_slice(&collected.to_le_bytes());
    body.push(2);
    body.extend(version.to_le_bytes());
    let mut bytes = [&MAGIC[..], &[VERSION, ACK]].concat();
    write_stream(&mut bytes, &body);
    bytes
}

fn ack_of(delta: Vec<Operation>) -> Vec<u8> {
    Message { kind: ACK, digest: Vec::new(), delta, cluster: String::new(), unknown: false, unpacked: 0 }.write()
}

/// A SYN whose digest names these incarnations, with these counters.
pub(crate) fn syn(incarnations: impl Iterator<Item = (NodeId, u64)>, heartbeat: u64, version: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend([VERSION, SYN]);
    let incarnations: Vec<_> = incarnations.collect();
    bytes.extend((incarnations.len() as u16).to_le_bytes());
    for (node, generation) in incarnations {
        write_known(
            &mut bytes,
            &DigestEntry { incarnation: Incarnation { node, generation }, heartbeat, last_gc: 0, version },
        );
    }
    write_text(&mut bytes, &ClusterId::from_public_key([1; 32]).to_string());
    bytes
}

/// Names of the cluster of these tests, without any incarnation.
pub(crate) fn names() -> Names {
    Names::new(ClusterId::from_public_key([1; 32]))
}

fn read(bytes: &[u8]) -> Result<Message, WireError> {
    Message::read(bytes, &mut names())
}

fn node(i: u8) -> NodeId {
    NodeId::from_public_key([i; 32])
}

#[test]
fn our_parser_reads_a_message_as_chitchat_does() {
    let bytes = syn([(node(1), 7), (node(2), 9)].into_iter(), 3, 4);
    let again = for_chitchat(&bytes).unwrap().serialize_to_vec();
    let (mut ours, theirs) = (read(&bytes).unwrap(), read(&again).unwrap());
    ours.digest.sort_by_key(|known| known.incarnation.node.to_string());
    assert_eq!(ours, theirs);
    assert_eq!(theirs.digest()[0].version, 4);
}

fn value(version: u64) -> Operation {
    Operation::Value { key: "k".into(), value: "v".into(), version, status: 0 }
}

fn incarnation(i: u8) -> Operation {
    Operation::Incarnation { incarnation: Incarnation { node: node(i), generation: 1 }, from: 0 }
}

#[test]
fn values_that_are_not_admitted_are_removed_and_the_rest_stays() {
    let delta = vec![incarnation(1), value(1), value(2), incarnation(2), value(3), value(4)];
    let mut message = read(&ack_of(delta.clone())).unwrap();
    assert_eq!(
        message
            .values_by_incarnation()
            .iter()
            .map(|values_by_incarnation| values_by_incarnation.values.len())
            .collect::<Vec<_>>(),
        [2, 2]
    );
    // The leading values alone are a valid message too.
    assert!(message.retain(|_| true, |values_by_incarnation| usize::from(values_by_incarnation.node == node(2))));
    assert_eq!(message.delta, [incarnation(2), value(3)]);
    assert_eq!(read(&message.write()).map(|read| read.delta), Ok(message.delta.clone()));
    assert!(message.for_chitchat().is_ok());
}

#[test]
fn falling_versions_and_repeated_incarnations_are_refused() {
    let values_by_incarnation = |delta: &[Operation]| read(&ack_of(delta.to_vec())).is_ok();
    assert!(values_by_incarnation(&[incarnation(1), value(1), value(5), incarnation(2), value(2)]));
    assert!(!values_by_incarnation(&[incarnation(1), value(5), value(4)]));
    assert!(!values_by_incarnation(&[incarnation(1), value(5), value(5)]));
    assert!(!values_by_incarnation(&[incarnation(1), value(5), incarnation(1), value(6)]));
    assert!(!values_by_incarnation(&[value(1), incarnation(1)]));
}

#[test]
fn a_version_without_its_values_is_refused() {
    assert_eq!(read(&bare_version(node(1), 1, 0, 9)), Err(WireError::Malformed("operation")));
    assert_eq!(read(&bare_version(node(1), 1, 9, 9)), Err(WireError::Malformed("collected values")));
}

#[test]
fn incarnations_that_a_digest_claims_to_know_are_known_to_chitchat() {
    let incarnation = |i| Incarnation { node: node(i), generation: 7 };
    let mut bytes = syn([(node(1), 7), (node(2), 7)].into_iter(), 3, 4);
    let length = bytes.len();
    suppress(&mut bytes, &mut names(), |declined| *declined == incarnation(2)).unwrap();
    assert_eq!(bytes.len(), length);
    let mut message = read(&bytes).unwrap();
    assert_eq!(message.digest().iter().map(|known| known.version).collect::<Vec<_>>(), [4, MAX_COUNT]);
    assert_eq!(message.digest().iter().map(|known| known.heartbeat).collect::<Vec<_>>(), [3, 3]);
    assert!(message.claim_up_to_date(&BTreeSet::from([incarnation(1), incarnation(3)])));
    let known = |known: &DigestEntry| (known.incarnation.node, known.heartbeat, known.version);
    let all = [(node(1), 3, MAX_COUNT), (node(2), 3, MAX_COUNT), (node(3), 0, MAX_COUNT)];
    assert_eq!(message.digest().iter().map(known).collect::<Vec<_>>(), all);
    assert!(message.for_chitchat().is_ok());
}

#[test]
fn each_forgery_is_refused_for_its_reason() {
    let good = syn([(node(1), 7)].into_iter(), 3, 4);
    assert!(matches!(read(&good[..good.len() - 1]), Err(WireError::Length)));
    assert_eq!(read(&[&good[..], &[0]].concat()), Err(WireError::Length));
    assert_eq!(read(&syn([(node(1), 7)].into_iter(), u64::MAX, 4)), Err(WireError::Count(u64::MAX)));
    assert_eq!(read(&vec![0; MAX_MESSAGE + 1]), Err(WireError::TooLong));
    let mut stolen = good.clone();
    let address = good
        .windows(16)
        .position(|window| window == rustbalance_gossip::address::mesh_address(&node(1)).octets())
        .unwrap();
    stolen[address + 1] ^= 1;
    assert_eq!(read(&stolen), Err(WireError::Identity));
    let mut shouted = good.clone();
    shouted[9..12].make_ascii_uppercase();
    assert_eq!(read(&shouted), Err(WireError::Identity));
}

#[test]
fn a_message_that_unpacks_to_too_much_is_refused() {
    let block = zstd::bulk::compress(&[0; MAX_BLOCK], 0).unwrap();
    let mut bytes = [&MAGIC[..], &[VERSION, ACK]].concat();
    while bytes.len() + block.len() + 4 < MAX_MESSAGE {
        bytes.push(1);
        bytes.extend((block.len() as u16).to_le_bytes());
        bytes.extend(&block);
    }
    bytes.push(0);
    assert_eq!(read(&bytes), Err(WireError::TooLong));
}

#[test]
fn a_message_of_too_many_operations_is_refused() {
    let many = |count: usize| {
        let mut body = Vec::new();
        write_operation(&mut body, &incarnation(1));
        (1..count as u64).for_each(|version| write_operation(&mut body, &value(version)));
        let mut bytes = [&MAGIC[..], &[VERSION, ACK]].concat();
        for block in body.chunks(MAX_BLOCK) {
            let packed = zstd::bulk::compress(block, 0).unwrap();
            bytes.push(1);
            bytes.extend((packed.len() as u16).to_le_bytes());
            bytes.extend(packed);
        }
        bytes.push(0);
        read(&bytes).map(|read| read.delta.len())
    };
    assert_eq!(many(MAX_OPERATIONS), Ok(MAX_OPERATIONS));
    assert_eq!(many(MAX_OPERATIONS + 1), Err(WireError::TooLong));
}

#[test]
fn a_block_larger_than_chitchat_makes_is_refused() {
    let block = zstd::bulk::compress(&[0; MAX_BLOCK + 1], 0).unwrap();
    let mut bytes = [&MAGIC[..], &[VERSION, ACK, 1]].concat();
    bytes.extend((block.len() as u16).to_le_bytes());
    bytes.extend(&block);
    bytes.push(0);
    assert_eq!(read(&bytes), Err(WireError::Malformed("block")));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes).and_then(|_| for_chitchat(&bytes));
    }

    #[test]
    fn any_change_of_a_good_message_is_survived(at in 0usize..400, to in any::<u8>()) {
        let mut bytes = syn([(node(1), 7), (node(2), 9), (node(3), 1)].into_iter(), 3, 4);
        let at = at % bytes.len();
        bytes[at] = to;
        let _ = read(&bytes).and_then(|_| for_chitchat(&bytes));
    }
}
