//! Messages as bytes: which are read, which are refused, and which parts are left out.

use super::*;
use chitchat::Serializable;
use proptest::prelude::*;

/// An ACK with these values of an incarnation: key, value, version.
pub(crate) fn ack(node: NodeId, generation: u64, values: &[(String, String, u64)]) -> Vec<u8> {
    let values = values.iter().map(|(key, value, version)| Operation::Value {
        key: key.clone(),
        value: value.clone(),
        version: *version,
        status: 0,
    });
    let life = Operation::Life { life: Life { node, generation }, from: 0 };
    ack_of(std::iter::once(life).chain(values).collect())
}

/// An ACK that raises the version without a value, as chitchat does after it has collected values.
pub(crate) fn bare_version(node: NodeId, generation: u64, collected: u64, version: u64) -> Vec<u8> {
    let mut body = Vec::new();
    write_operation(&mut body, &Operation::Life { life: Life { node, generation }, from: 0 });
    let at = body.len() - 16;
    body[at..at + 8].copy_from_slice(&collected.to_le_bytes());
    body.push(2);
    body.extend(version.to_le_bytes());
    let mut bytes = [&MAGIC[..], &[VERSION, ACK]].concat();
    write_stream(&mut bytes, &body);
    bytes
}

fn ack_of(delta: Vec<Operation>) -> Vec<u8> {
    Message { kind: ACK, digest: Vec::new(), delta, cluster: String::new() }.write()
}

/// A SYN whose digest names these incarnations, with these counters.
pub(crate) fn syn(lives: impl Iterator<Item = (NodeId, u64)>, heartbeat: u64, version: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend([VERSION, SYN]);
    let lives: Vec<_> = lives.collect();
    bytes.extend((lives.len() as u16).to_le_bytes());
    for (node, generation) in lives {
        write_known(&mut bytes, &Known { life: Life { node, generation }, heartbeat, last_gc: 0, version });
    }
    write_text(&mut bytes, &rustbalance_gossip::id::ClusterId::from_public_key([1; 32]).to_string());
    bytes
}

fn read(bytes: &[u8]) -> Result<Message, WireError> {
    Message::read(bytes, &mut Names::default())
}

fn node(i: u8) -> NodeId {
    NodeId::from_public_key([i; 32])
}

#[test]
fn our_reading_is_chitchats() {
    let bytes = syn([(node(1), 7), (node(2), 9)].into_iter(), 3, 4);
    let again = for_chitchat(&bytes).unwrap().serialize_to_vec();
    let (mut ours, theirs) = (read(&bytes).unwrap(), read(&again).unwrap());
    ours.digest.sort_by_key(|known| known.life.node.to_string());
    assert_eq!(ours, theirs);
    assert_eq!(theirs.digest()[0].version, 4);
}

fn value(version: u64) -> Operation {
    Operation::Value { key: "k".into(), value: "v".into(), version, status: 0 }
}

fn life(i: u8) -> Operation {
    Operation::Life { life: Life { node: node(i), generation: 1 }, from: 0 }
}

#[test]
fn what_is_not_admitted_is_left_out_and_the_rest_stays() {
    let delta = vec![life(1), value(1), value(2), life(2), value(3), value(4)];
    let mut message = read(&ack_of(delta.clone())).unwrap();
    assert_eq!(message.told().iter().map(|told| told.words.len()).collect::<Vec<_>>(), [2, 2]);
    // The leading values alone are a valid message too.
    assert!(message.retain(|_| true, |told| usize::from(told.node == node(2))));
    assert_eq!(message.delta, [life(2), value(3)]);
    assert_eq!(read(&message.write()).map(|read| read.delta), Ok(message.delta.clone()));
    assert!(message.for_chitchat().is_ok());
}

#[test]
fn versions_that_fall_and_lives_told_twice_are_refused() {
    let told = |delta: &[Operation]| read(&ack_of(delta.to_vec())).is_ok();
    assert!(told(&[life(1), value(1), value(5), life(2), value(2)]));
    assert!(!told(&[life(1), value(5), value(4)]));
    assert!(!told(&[life(1), value(5), value(5)]));
    assert!(!told(&[life(1), value(5), life(1), value(6)]));
    assert!(!told(&[value(1), life(1)]));
}

#[test]
fn a_version_without_its_values_is_refused() {
    assert_eq!(read(&bare_version(node(1), 1, 0, 9)), Err(WireError::Malformed("operation")));
    assert_eq!(read(&bare_version(node(1), 1, 9, 9)), Err(WireError::Malformed("collected values")));
}

#[test]
fn incarnations_that_a_digest_claims_to_know_are_known_to_chitchat() {
    let life = |i| Life { node: node(i), generation: 7 };
    let mut bytes = syn([(node(1), 7), (node(2), 7)].into_iter(), 3, 4);
    let length = bytes.len();
    decline(&mut bytes, &mut Names::default(), |declined| *declined == life(2)).unwrap();
    assert_eq!(bytes.len(), length);
    let mut message = read(&bytes).unwrap();
    assert_eq!(message.digest().iter().map(|known| known.version).collect::<Vec<_>>(), [4, MAX_COUNT]);
    assert_eq!(message.digest().iter().map(|known| known.heartbeat).collect::<Vec<_>>(), [3, 3]);
    assert!(message.know_all(&BTreeSet::from([life(1), life(3)])));
    let known = |known: &Known| (known.life.node, known.heartbeat, known.version);
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
        write_operation(&mut body, &life(1));
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
