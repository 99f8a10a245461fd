//! chitchat's messages as bytes, read with suspicion.
//!
//! chitchat trusts its peers: a short message can unpack to hundreds of megabytes, a made-up node id stays in every
//! node's state and in every digest until the digest no longer fits, a version near the end of its range makes it panic.
//! So each message is first taken apart here, within bounds, and what is not admitted is left out of what chitchat sees.
//! The layout is that of chitchat 0.11 (`message.rs`, `digest.rs`, `delta.rs`, `serialize.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use chitchat::{ChitchatMessage, Deserializable};
use rustbalance_gossip::address::mesh_socket;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::MAX_RECORD;

/// The largest message, in bytes; chitchat makes none larger.
pub const MAX_MESSAGE: usize = 65_507;

/// Blocks in one packed stream. An honest message has about six, or some thirty where the same few facts stand in the
/// states of hundreds of nodes.
const MAX_BLOCKS: usize = 48;
/// Bytes in one unpacked block; chitchat fills none further.
const MAX_BLOCK: usize = 16_384;
/// Operations in one message. The shortest that cannot be packed, a value taken back, still needs some 45 bytes of it.
const MAX_OPERATIONS: usize = 4096;
/// Bytes of the name of a life in a delta.
const LIFE: usize = 108;
/// Bytes in a key; ours have at most 68.
const MAX_KEY: usize = 128;
/// Bytes in a value: base64 of the largest record.
const MAX_VALUE: usize = MAX_RECORD.div_ceil(3) * 4;
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
    /// From a peer whose messages have unpacked to more than is read of one.
    #[error("more gossip than is read of one peer")]
    Greedy,
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

/// chitchat has a third, which raises a life's version without a value. It stands for values that were taken back and
/// collected since, and we never collect; from anybody else it would hide all that the life says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Operation {
    Life { life: Life, from: u64 },
    Value { key: String, value: String, version: u64, status: u8 },
}

/// What a message tells of one life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told<'a> {
    pub(super) life: Life,
    /// It is all above this version.
    pub(super) from: u64,
    /// In the order of their versions.
    pub(super) words: Vec<Word<'a>>,
}

/// One value, with the bytes that it and its key have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word<'a> {
    pub(super) key: &'a str,
    pub(super) bytes: usize,
    pub(super) version: u64,
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
        if mesh_socket(&node) != address {
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

    /// Whether it says what its sender knows.
    pub(super) fn has_digest(&self) -> bool {
        matches!(self.kind, SYN | SYN_ACK)
    }

    /// What it tells of each life.
    pub(super) fn told(&self) -> Vec<Told<'_>> {
        let mut told: Vec<Told<'_>> = Vec::new();
        for operation in &self.delta {
            match operation {
                Operation::Life { life, from } => told.push(Told { life: *life, from: *from, words: Vec::new() }),
                Operation::Value { key, value, version, .. } => {
                    if let Some(told) = told.last_mut() {
                        told.words.push(Word { key, bytes: key.len() + value.len(), version: *version });
                    }
                }
            }
        }
        told
    }

    /// Bytes of all that it tells.
    pub(super) fn told_bytes(&self) -> usize {
        let bytes = |operation: &Operation| match operation {
            Operation::Life { .. } => LIFE,
            Operation::Value { key, value, .. } => key.len() + value.len(),
        };
        self.delta.iter().map(bytes).sum()
    }

    /// Leaves out what is not admitted: what is known of lives, and what is told of each beyond so many values. The first
    /// values of a life are a message of their own, up to their version. True if anything was left out.
    pub(super) fn retain(
        &mut self,
        mut known: impl FnMut(&Life) -> bool,
        mut told: impl FnMut(&Life) -> usize,
    ) -> bool {
        let before = (self.digest.len(), self.delta.len());
        self.digest.retain(|entry| known(&entry.life));
        let mut left = 0;
        self.delta.retain(|operation| match operation {
            Operation::Life { life, .. } => {
                left = told(life);
                left > 0
            }
            Operation::Value { .. } if left > 0 => {
                left -= 1;
                true
            }
            Operation::Value { .. } => false,
        });
        before != (self.digest.len(), self.delta.len())
    }

    /// Has it say that its sender knows all of these lives, so that chitchat tells nothing of them. True if there are any.
    pub(super) fn know_all(&mut self, lives: &BTreeSet<Life>) -> bool {
        let mut named = BTreeSet::new();
        for known in self.digest.iter_mut().filter(|known| lives.contains(&known.life)) {
            known.version = MAX_COUNT;
            named.insert(known.life);
        }
        let unnamed = lives.difference(&named);
        self.digest.extend(unnamed.map(|life| Known { life: *life, heartbeat: 0, last_gc: 0, version: MAX_COUNT }));
        !lives.is_empty()
    }

    /// Puts it together again for chitchat.
    pub(super) fn for_chitchat(&self) -> Result<ChitchatMessage, WireError> {
        for_chitchat(&self.write())
    }

    fn write(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([VERSION, self.kind]);
        if matches!(self.kind, SYN | SYN_ACK) {
            // No more than were read and are kept, which 16 bits can count.
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

/// What is told must be told of a life, of each once, and its versions must rise: chitchat panics where they end below the
/// highest.
fn check_order(delta: &[Operation]) -> Result<(), WireError> {
    let mut lives = BTreeSet::new();
    let mut highest = None;
    for operation in delta {
        highest = match (operation, highest) {
            (Operation::Life { life, .. }, _) if lives.insert(*life) => Some(0),
            (Operation::Value { version, .. }, Some(known)) if *version > known => Some(*version),
            _ => return Err(WireError::Malformed("order of versions")),
        };
    }
    Ok(())
}

/// Has a message that goes out say that all is known of some lives, so that the peer tells nothing of them. It keeps its
/// length.
pub(super) fn decline(bytes: &mut [u8], names: &mut Names, life: impl Fn(&Life) -> bool) -> Result<(), WireError> {
    let length = bytes.len();
    let mut reader = Reader(bytes);
    let [.., kind] = reader.array::<4>()?;
    if !matches!(kind, SYN | SYN_ACK) {
        return Ok(());
    }
    let mut ends = Vec::new();
    for _ in 0..reader.u16()? {
        if life(&reader.known(names)?.life) {
            ends.push(length - reader.0.len());
        }
    }
    for end in ends {
        if let Some(version) = bytes.get_mut(end - 8..end) {
            version.copy_from_slice(&MAX_COUNT.to_le_bytes());
        }
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
            0 => {
                let life = self.life(names)?;
                // Where values were collected, chitchat would throw away what it has.
                if self.count()? != 0 {
                    return Err(WireError::Malformed("collected values"));
                }
                Operation::Life { life, from: self.count()? }
            }
            1 => Operation::Value {
                key: self.text(MAX_KEY)?.to_owned(),
                value: self.text(MAX_VALUE)?.to_owned(),
                version: self.count()?,
                status: self.array::<1>()?[0],
            },
            _ => return Err(WireError::Malformed("operation")),
        })
    }

    /// A stream of blocks, each packed with zstd or not, and the items in it.
    fn stream<T>(
        &mut self,
        mut item: impl FnMut(&mut Reader<'_>) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let mut unpacked: Vec<u8> = Vec::new();
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
                2 if length > MAX_BLOCK => return Err(WireError::TooLong),
                2 => unpacked.extend(bytes),
                _ => return Err(WireError::Malformed("block type")),
            }
        }
        let mut reader = Reader(&unpacked);
        let mut items = Vec::new();
        while !reader.0.is_empty() {
            if items.len() == MAX_OPERATIONS {
                return Err(WireError::TooLong);
            }
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
    out.extend(rustbalance_gossip::address::mesh_address(&life.node).octets());
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
        Operation::Life { life, from } => {
            out.push(0);
            write_life(out, life);
            out.extend(0u64.to_le_bytes());
            out.extend(from.to_le_bytes());
        }
        Operation::Value { key, value, version, status } => {
            out.push(1);
            write_text(out, key);
            write_text(out, value);
            out.extend(version.to_le_bytes());
            out.push(*status);
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
pub(super) mod tests;
