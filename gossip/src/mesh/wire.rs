//! chitchat's messages as bytes, read with suspicion.
//!
//! chitchat trusts its peers: a short message can unpack to hundreds of megabytes, a made-up node id stays in every
//! node's state and in every digest until the digest no longer fits, a version near the end of its range makes it panic.
//! So each message is first taken apart here, within bounds, and what is not admitted is left out of what chitchat sees.
//! The layout is that of chitchat 0.11 (`message.rs`, `digest.rs`, `delta.rs`, `serialize.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use chitchat::{ChitchatMessage, Deserializable};

use crate::address::mesh_socket;
use crate::id::NodeId;

/// The largest message, in bytes; chitchat makes none larger.
pub const MAX_MESSAGE: usize = 65_507;

/// Blocks in one compressed stream. Each unpacks to at most 64 KiB; an honest message has about six.
const MAX_BLOCKS: usize = 24;
/// Bytes in one unpacked block.
const MAX_BLOCK: usize = u16::MAX as usize;
/// Bytes in a key; ours have at most 68.
const MAX_KEY: usize = 128;
/// Bytes in a value: base64 of the largest record.
const MAX_VALUE: usize = super::MAX_RECORD.div_ceil(3) * 4;
/// Versions and heartbeats beyond this are lies: a node would have to count a million times a second for nine years.
const MAX_COUNT: u64 = 1 << 48;

const MAGIC: [u8; 2] = 45_139u16.to_le_bytes();
const VERSION: u8 = 0;
const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;
const BAD_CLUSTER: u8 = 3;

/// Why a message was thrown away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Larger than chitchat makes them, packed or unpacked.
    #[error("gossip message larger than allowed")]
    TooLong,
    /// Ends early, or is followed by something.
    #[error("gossip message of the wrong length")]
    Length,
    /// No message of a version that this build knows.
    #[error("malformed gossip message: {0}")]
    Malformed(&'static str),
    /// A node id that is no onion address, or whose mesh address is another's.
    #[error("gossip message names a node whose address does not belong to its id")]
    Identity,
    /// A counter beyond any honest node's.
    #[error("gossip message with an absurd counter, {0}")]
    Count(u64),
}

/// True for the message that begins a comparison.
pub(super) fn is_question(bytes: &[u8]) -> bool {
    bytes.get(3) == Some(&SYN)
}

/// Has chitchat read a message that was taken apart here before.
pub(super) fn for_chitchat(mut bytes: &[u8]) -> Result<ChitchatMessage, WireError> {
    let message = ChitchatMessage::deserialize(&mut bytes).map_err(|_| WireError::Malformed("chitchat"))?;
    if bytes.is_empty() { Ok(message) } else { Err(WireError::Length) }
}

/// One life of a node, as chitchat names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Life {
    pub(super) node: NodeId,
    pub(super) generation: u64,
}

/// What a peer says it knows of one life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) life: Life,
    pub(super) heartbeat: u64,
    pub(super) last_gc: u64,
    pub(super) version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operation {
    Life { life: Life, last_gc: u64, from: u64 },
    Value { key: String, value: String, version: u64, status: u8 },
    Version(u64),
}

/// Names read before, so that a node's address need not be derived each time that it is mentioned.
#[derive(Default)]
pub(super) struct Names(BTreeMap<String, (NodeId, SocketAddr)>);

impl Names {
    /// Names remembered; past that, they are all forgotten.
    const MAX: usize = 1024;

    /// The node of that name, if the name is written as it should be and the address is its.
    fn node(&mut self, name: &str, address: SocketAddr) -> Result<NodeId, WireError> {
        if let Some((node, at)) = self.0.get(name) {
            return if *at == address { Ok(*node) } else { Err(WireError::Identity) };
        }
        let node: NodeId = name.parse().map_err(|_| WireError::Identity)?;
        if node.to_string() != name || mesh_socket(&node) != address {
            return Err(WireError::Identity);
        }
        if self.0.len() >= Self::MAX {
            self.0.clear();
        }
        self.0.insert(name.to_owned(), (node, address));
        Ok(node)
    }
}

/// A message taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    kind: u8,
    digest: Vec<Known>,
    delta: Vec<Operation>,
    cluster: String,
}

impl Message {
    /// Takes a message apart, within bounds.
    pub(super) fn read(bytes: &[u8], names: &mut Names) -> Result<Self, WireError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(WireError::TooLong);
        }
        let mut reader = Reader(bytes);
        if reader.array()? != MAGIC {
            return Err(WireError::Malformed("magic number"));
        }
        let [version, kind] = reader.array()?;
        if version != VERSION {
            return Err(WireError::Malformed("version"));
        }
        let mut message = Self { kind, digest: Vec::new(), delta: Vec::new(), cluster: String::new() };
        if matches!(kind, SYN | SYN_ACK) {
            message.digest = (0..reader.u16()?).map(|_| reader.known(names)).collect::<Result<_, _>>()?;
        }
        match kind {
            SYN => message.cluster = reader.text(MAX_KEY)?.to_owned(),
            SYN_ACK | ACK => {
                message.delta = reader.stream(|r| r.operation(names))?;
                check_order(&message.delta)?;
            }
            BAD_CLUSTER => {}
            _ => return Err(WireError::Malformed("type")),
        }
        if reader.0.is_empty() { Ok(message) } else { Err(WireError::Length) }
    }

    /// What it says is known of each life.
    pub(super) fn digest(&self) -> &[Known] {
        &self.digest
    }

    /// Every life it mentions.
    pub(super) fn lives(&self) -> BTreeSet<Life> {
        let told = self.delta.iter().filter_map(|operation| match operation {
            Operation::Life { life, .. } => Some(*life),
            _ => None,
        });
        self.digest.iter().map(|known| known.life).chain(told).collect()
    }

    /// Every value it tells: of which life, its key, and the bytes of both.
    pub(super) fn values(&self) -> impl Iterator<Item = (Life, &str, usize)> {
        let mut told_of = None;
        self.delta.iter().filter_map(move |operation| match operation {
            Operation::Life { life, .. } => {
                told_of = Some(*life);
                None
            }
            Operation::Value { key, value, .. } => told_of.map(|life| (life, key.as_str(), key.len() + value.len())),
            Operation::Version(_) => None,
        })
    }

    /// Leaves out what is not admitted: what is known of lives and what is told of them. True if anything was.
    pub(super) fn retain(&mut self, mut known: impl FnMut(&Life) -> bool, mut told: impl FnMut(&Life) -> bool) -> bool {
        let before = (self.digest.len(), self.delta.len());
        self.digest.retain(|entry| known(&entry.life));
        let mut keep = false;
        self.delta.retain(|operation| {
            if let Operation::Life { life, .. } = operation {
                keep = told(life);
            }
            keep
        });
        before != (self.digest.len(), self.delta.len())
    }

    /// Puts it together again for chitchat.
    pub(super) fn for_chitchat(&self) -> Result<ChitchatMessage, WireError> {
        for_chitchat(&self.write())
    }

    fn write(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([VERSION, self.kind]);
        if matches!(self.kind, SYN | SYN_ACK) {
            // No more than were read, and their number was 16 bits.
            bytes.extend((self.digest.len() as u16).to_le_bytes());
            self.digest.iter().for_each(|known| write_known(&mut bytes, known));
        }
        match self.kind {
            SYN => write_text(&mut bytes, &self.cluster),
            SYN_ACK | ACK => {
                let mut body = Vec::new();
                self.delta.iter().for_each(|operation| write_operation(&mut body, operation));
                write_stream(&mut bytes, &body);
            }
            _ => {}
        }
        bytes
    }
}

/// What is told must be told of a life, and its versions must rise: chitchat panics where they end below the highest.
fn check_order(delta: &[Operation]) -> Result<(), WireError> {
    let mut highest = None;
    for operation in delta {
        highest = match (operation, highest) {
            (Operation::Life { .. }, _) => Some(0),
            (Operation::Value { version, .. }, Some(known)) if *version > known => Some(*version),
            (Operation::Version(version), Some(known)) if *version >= known => Some(*version),
            _ => return Err(WireError::Malformed("order of versions")),
        };
    }
    Ok(())
}

/// Bytes not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(WireError::Length)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Length)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self) -> Result<u64, WireError> {
        let count = self.u64()?;
        if count > MAX_COUNT { Err(WireError::Count(count)) } else { Ok(count) }
    }

    fn text(&mut self, max: usize) -> Result<&'a str, WireError> {
        let length = usize::from(self.u16()?);
        if length > max {
            return Err(WireError::TooLong);
        }
        std::str::from_utf8(self.take(length)?).map_err(|_| WireError::Malformed("text"))
    }

    /// A node id with the address that belongs to it. Written in one way only, so that one node is one key.
    fn life(&mut self, names: &mut Names) -> Result<Life, WireError> {
        let name = self.text(MAX_KEY)?;
        let generation = self.u64()?;
        let [family] = self.array()?;
        if family != 6 {
            return Err(WireError::Identity);
        }
        let octets: [u8; 16] = self.array()?;
        let address = SocketAddr::from((octets, self.u16()?));
        Ok(Life { node: names.node(name, address)?, generation })
    }

    fn known(&mut self, names: &mut Names) -> Result<Known, WireError> {
        Ok(Known { life: self.life(names)?, heartbeat: self.count()?, last_gc: self.count()?, version: self.count()? })
    }

    fn operation(&mut self, names: &mut Names) -> Result<Operation, WireError> {
        let [tag] = self.array()?;
        Ok(match tag {
            0 => Operation::Life { life: self.life(names)?, last_gc: self.count()?, from: self.count()? },
            1 => Operation::Value {
                key: self.text(MAX_KEY)?.to_owned(),
                value: self.text(MAX_VALUE)?.to_owned(),
                version: self.count()?,
                status: self.array::<1>()?[0],
            },
            2 => Operation::Version(self.count()?),
            _ => return Err(WireError::Malformed("operation")),
        })
    }

    /// A stream of blocks, each packed with zstd or not, and the items in it.
    fn stream<T>(
        &mut self,
        mut item: impl FnMut(&mut Reader<'_>) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let mut unpacked = Vec::new();
        for blocks in 0.. {
            let [block] = self.array()?;
            if block == 0 {
                break;
            }
            if blocks == MAX_BLOCKS {
                return Err(WireError::TooLong);
            }
            let length = usize::from(self.u16()?);
            let bytes = self.take(length)?;
            match block {
                1 => {
                    let bytes = zstd::bulk::decompress(bytes, MAX_BLOCK).map_err(|_| WireError::Malformed("block"))?;
                    unpacked.extend(bytes);
                }
                2 => unpacked.extend(bytes),
                _ => return Err(WireError::Malformed("block type")),
            }
        }
        let mut reader = Reader(&unpacked);
        let mut items = Vec::new();
        while !reader.0.is_empty() {
            items.push(item(&mut reader)?);
        }
        Ok(items)
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    // Texts come from `Reader::text`, so their length fits.
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_life(out: &mut Vec<u8>, life: &Life) {
    write_text(out, &life.node.to_string());
    out.extend(life.generation.to_le_bytes());
    let address = mesh_socket(&life.node);
    out.push(6);
    out.extend(crate::address::mesh_address(&life.node).octets());
    out.extend(address.port().to_le_bytes());
}

fn write_known(out: &mut Vec<u8>, known: &Known) {
    write_life(out, &known.life);
    for count in [known.heartbeat, known.last_gc, known.version] {
        out.extend(count.to_le_bytes());
    }
}

fn write_operation(out: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Life { life, last_gc, from } => {
            out.push(0);
            write_life(out, life);
            out.extend(last_gc.to_le_bytes());
            out.extend(from.to_le_bytes());
        }
        Operation::Value { key, value, version, status } => {
            out.push(1);
            write_text(out, key);
            write_text(out, value);
            out.extend(version.to_le_bytes());
            out.push(*status);
        }
        Operation::Version(version) => {
            out.push(2);
            out.extend(version.to_le_bytes());
        }
    }
}

/// Writes blocks that are not packed: the message does not leave this process again.
fn write_stream(out: &mut Vec<u8>, body: &[u8]) {
    for block in body.chunks(MAX_BLOCK) {
        out.push(2);
        out.extend((block.len() as u16).to_le_bytes());
        out.extend(block);
    }
    out.push(0);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use chitchat::Serializable;
    use proptest::prelude::*;

    /// A SYN that knows these lives.
    pub(in crate::mesh) fn syn(lives: impl Iterator<Item = (NodeId, u64)>, heartbeat: u64, version: u64) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([VERSION, SYN]);
        let lives: Vec<_> = lives.collect();
        bytes.extend((lives.len() as u16).to_le_bytes());
        for (node, generation) in lives {
            write_known(&mut bytes, &Known { life: Life { node, generation }, heartbeat, last_gc: 0, version });
        }
        write_text(&mut bytes, &crate::id::MasterId::from_public_key([1; 32]).to_string());
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

    #[test]
    fn what_is_not_admitted_is_left_out_and_the_rest_stays() {
        let life = |i| Life { node: node(i), generation: 1 };
        let value = |version| Operation::Value { key: "k".into(), value: "v".into(), version, status: 0 };
        let mut message = Message {
            kind: ACK,
            digest: Vec::new(),
            delta: vec![
                Operation::Life { life: life(1), last_gc: 0, from: 0 },
                value(1),
                value(2),
                Operation::Life { life: life(2), last_gc: 0, from: 0 },
                value(3),
            ],
            cluster: String::new(),
        };
        assert_eq!(message.lives(), BTreeSet::from([life(1), life(2)]));
        let rest = message.delta[3..].to_vec();
        assert!(message.retain(|_| true, |told| *told == life(2)));
        assert_eq!(message.delta, rest);
        assert_eq!(read(&message.write()).map(|read| read.delta), Ok(rest));
        assert!(message.for_chitchat().is_ok());
    }

    #[test]
    fn versions_that_fall_are_refused() {
        let life = Operation::Life { life: Life { node: node(1), generation: 1 }, last_gc: 0, from: 0 };
        let value = |version| Operation::Value { key: "k".into(), value: "v".into(), version, status: 0 };
        let told = |delta: &[Operation]| {
            let message = Message { kind: ACK, digest: Vec::new(), delta: delta.to_vec(), cluster: String::new() };
            read(&message.write()).is_ok()
        };
        assert!(told(&[life.clone(), value(1), value(5), Operation::Version(5)]));
        assert!(told(&[life.clone(), Operation::Version(9), life.clone(), Operation::Version(2)]));
        assert!(!told(&[life.clone(), value(5), Operation::Version(4)]));
        assert!(!told(&[life.clone(), Operation::Version(9), Operation::Version(8)]));
        assert!(!told(&[life.clone(), value(5), value(5)]));
        assert!(!told(&[value(1), life]));
    }

    #[test]
    fn lies_are_told_apart() {
        let good = syn([(node(1), 7)].into_iter(), 3, 4);
        assert!(matches!(read(&good[..good.len() - 1]), Err(WireError::Length)));
        assert_eq!(read(&[&good[..], &[0]].concat()), Err(WireError::Length));
        assert_eq!(read(&syn([(node(1), 7)].into_iter(), u64::MAX, 4)), Err(WireError::Count(u64::MAX)));
        assert_eq!(read(&vec![0; MAX_MESSAGE + 1]), Err(WireError::TooLong));
        let mut stolen = good.clone();
        let address = good.windows(16).position(|w| w == crate::address::mesh_address(&node(1)).octets()).unwrap();
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
}
