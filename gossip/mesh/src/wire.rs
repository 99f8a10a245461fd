//! Reads chitchat's messages from untrusted bytes.
//!
//! chitchat trusts its peers: a short message can unpack to hundreds of megabytes, a made-up node
//! id stays in every node's state and in every digest until the digest no longer fits a message,
//! and a version near the end of its range makes chitchat panic. So this module first parses each
//! message within bounds and leaves out what is not admitted before chitchat sees it. The layout is
//! that of chitchat 0.11 (`message.rs`, `digest.rs`, `delta.rs`, `serialize.rs`).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use chitchat::{ChitchatId, ChitchatMessage, Deserializable};
use rustbalance_gossip::address::mesh_socket;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::MAX_RECORD;

pub(super) use names::{Names, ShortName};
pub(super) use outgoing::{Fresh, pull, push};
pub use packed::{PUSH_DICTIONARY, is_push};
pub(super) use packed::{subscribe, subscriptions};

mod names;
mod outgoing;
mod packed;

/// Largest message, in bytes; chitchat does not make larger ones.
pub const MAX_MESSAGE: usize = 65_507;

/// Most blocks in one packed stream. An honest message has about six, or about thirty if the states
/// of hundreds of nodes hold the same few facts.
const MAX_BLOCKS: usize = 48;
/// Most bytes in one unpacked block, as in chitchat.
const MAX_BLOCK: usize = 16_384;
/// Most operations in one message. Even the shortest, a retracted value, takes about 45 bytes that
/// cannot be compressed.
const MAX_OPERATIONS: usize = 4096;
/// Bytes that name an incarnation in a delta.
const INCARNATION_BYTES: usize = 108;
/// Most bytes in a key; ours have at most 68.
const MAX_KEY: usize = 128;
/// Most bytes in a value: base64 of the largest record.
const MAX_VALUE: usize = MAX_RECORD.div_ceil(3) * 4;
/// Versions and heartbeats above this are spoofed: to reach it, a node would have to count a
/// million times a second for nine years.
const MAX_COUNT: u64 = 1 << 48;

const MAGIC: [u8; 2] = 45_139u16.to_le_bytes();
const VERSION: u8 = 0;
const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;
const BAD_CLUSTER: u8 = 3;

/// Why a message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It is larger than chitchat's own messages, packed or unpacked.
    #[error("gossip message larger than allowed")]
    TooLong,
    /// It ends early, or is followed by further bytes.
    #[error("gossip message of the wrong length")]
    Length,
    /// It is not a message of the one version that this build knows.
    #[error("malformed gossip message: {0}")]
    Malformed(&'static str),
    /// It names a node id that is not an onion address, or a mesh address that does not belong to
    /// its id.
    #[error("gossip message names a node whose address does not belong to its id")]
    Identity,
    /// The peer has sent more than is read from one peer; unpacked sizes count too.
    #[error("more gossip than is accepted from one peer")]
    Greedy,
    /// A version or heartbeat higher than any honest node can reach.
    #[error("gossip message with an impossible version or heartbeat, {0}")]
    Count(u64),
}

/// True for the message that opens a comparison (SYN).
pub(super) fn is_question(bytes: &[u8]) -> bool {
    bytes.get(3) == Some(&SYN)
}

/// Has chitchat parse a message that this module has checked before.
pub(super) fn for_chitchat(mut bytes: &[u8]) -> Result<ChitchatMessage, WireError> {
    let message = ChitchatMessage::deserialize(&mut bytes).map_err(|_| WireError::Malformed("chitchat"))?;
    if bytes.is_empty() { Ok(message) } else { Err(WireError::Length) }
}

/// One incarnation of a node, as chitchat names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Incarnation {
    pub(super) node: NodeId,
    pub(super) generation: u64,
}

impl Incarnation {
    /// The incarnation that chitchat names so; `None` if its name is not an onion address.
    pub(super) fn of(id: &ChitchatId) -> Option<Self> {
        Some(Self { node: id.node_id.parse().ok()?, generation: id.generation_id })
    }
}

/// An entry of a digest: what a peer claims to know of one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DigestEntry {
    pub(super) incarnation: Incarnation,
    pub(super) heartbeat: u64,
    last_gc: u64,
    pub(super) version: u64,
}

/// An operation in a delta. chitchat has a third one, which raises the version of an incarnation
/// without a value. It stands for tombstones of retracted values that were garbage-collected. Our
/// nodes never collect any, and a hostile peer could hide all values of an incarnation with it, so
/// it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Operation {
    Incarnation { incarnation: Incarnation, from: u64 },
    Value { key: String, value: String, version: u64, status: u8 },
}

/// The values of one incarnation in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IncarnationDelta<'a> {
    pub(super) incarnation: Incarnation,
    /// All values have versions above this one.
    pub(super) from: u64,
    /// The values, in the order of their versions.
    pub(super) values: Vec<ValueHeader<'a>>,
}

/// One value, with the size of key and value in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ValueHeader<'a> {
    pub(super) key: &'a str,
    pub(super) bytes: usize,
    pub(super) version: u64,
}

/// A parsed message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    kind: u8,
    digest: Vec<DigestEntry>,
    delta: Vec<Operation>,
    cluster: String,
    /// Whether it is a push with values of an incarnation that is unknown here.
    unknown: bool,
    /// Unpacked size of a push, with what was left out.
    unpacked: usize,
}

impl Message {
    /// Parses a message within bounds.
    pub(super) fn read(bytes: &[u8], names: &mut Names) -> Result<Self, WireError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(WireError::TooLong);
        }
        if is_push(bytes) {
            let packed::Push { delta, unknown, unpacked } = packed::read(bytes, names)?;
            check_order(&delta)?;
            return Ok(Self { kind: ACK, digest: Vec::new(), delta, cluster: String::new(), unknown, unpacked });
        }
        let mut reader = Reader(bytes);
        if reader.array()? != MAGIC {
            return Err(WireError::Malformed("magic number"));
        }
        let [version, kind] = reader.array()?;
        if version != VERSION {
            return Err(WireError::Malformed("version"));
        }
        let (digest, delta, cluster) = (Vec::new(), Vec::new(), String::new());
        let mut message = Self { kind, digest, delta, cluster, unknown: false, unpacked: 0 };
        if matches!(kind, SYN | SYN_ACK) {
            message.digest = (0..reader.u16()?).map(|_| reader.known(names)).collect::<Result<_, _>>()?;
        }
        match kind {
            SYN => message.cluster = reader.text(MAX_KEY)?.to_owned(),
            SYN_ACK | ACK => {
                message.delta = reader.stream(|reader| reader.operation(names))?;
                check_order(&message.delta)?;
            }
            BAD_CLUSTER => {}
            _ => return Err(WireError::Malformed("type")),
        }
        if reader.0.is_empty() { Ok(message) } else { Err(WireError::Length) }
    }

    /// The digest; empty if the message has none.
    pub(super) fn digest(&self) -> &[DigestEntry] {
        &self.digest
    }

    /// Whether the message has a digest.
    pub(super) fn has_digest(&self) -> bool {
        matches!(self.kind, SYN | SYN_ACK)
    }

    /// Whether it has the form of a [`pull`]. So has the answer to a question if it has no values.
    pub(super) fn may_be_pull(&self) -> bool {
        self.kind == SYN_ACK && self.delta.is_empty()
    }

    /// Whether it is a push with values of an incarnation that is unknown here, which are left out.
    pub(super) fn names_unknown(&self) -> bool {
        self.unknown
    }

    /// The values in the message, by incarnation.
    pub(super) fn values_by_incarnation(&self) -> Vec<IncarnationDelta<'_>> {
        let mut values_by_incarnation: Vec<IncarnationDelta<'_>> = Vec::new();
        for operation in &self.delta {
            match operation {
                Operation::Incarnation { incarnation, from } => values_by_incarnation.push(IncarnationDelta {
                    incarnation: *incarnation,
                    from: *from,
                    values: Vec::new(),
                }),
                Operation::Value { key, value, version, .. } => {
                    if let Some(values_by_incarnation) = values_by_incarnation.last_mut() {
                        values_by_incarnation.values.push(ValueHeader {
                            key,
                            bytes: key.len() + value.len(),
                            version: *version,
                        });
                    }
                }
            }
        }
        values_by_incarnation
    }

    /// Unpacked size of the delta, in bytes.
    pub(super) fn delta_bytes(&self) -> usize {
        let bytes = |operation: &Operation| match operation {
            Operation::Incarnation { .. } => INCARNATION_BYTES,
            Operation::Value { key, value, .. } => key.len() + value.len(),
        };
        self.delta.iter().map(bytes).sum::<usize>().max(self.unpacked)
    }

    /// Leaves out what is not admitted: digest entries of incarnations for which `known` is false,
    /// and the values of each incarnation beyond the number that `room` returns. The leading values
    /// of an incarnation are valid without the others. True if anything was left out.
    pub(super) fn retain(
        &mut self,
        mut known: impl FnMut(&Incarnation) -> bool,
        mut room: impl FnMut(&Incarnation) -> usize,
    ) -> bool {
        let before = (self.digest.len(), self.delta.len());
        self.digest.retain(|entry| known(&entry.incarnation));
        let mut left = 0;
        self.delta.retain(|operation| match operation {
            Operation::Incarnation { incarnation, .. } => {
                left = room(incarnation);
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

    /// Changes the digest so that its sender seems to know all of these incarnations; chitchat then
    /// answers with nothing of them. True if there are any.
    pub(super) fn claim_up_to_date(&mut self, incarnations: &BTreeSet<Incarnation>) -> bool {
        let mut named = BTreeSet::new();
        for known in self.digest.iter_mut().filter(|known| incarnations.contains(&known.incarnation)) {
            known.version = MAX_COUNT;
            named.insert(known.incarnation);
        }
        let unnamed = incarnations.difference(&named);
        self.digest.extend(unnamed.map(|incarnation| DigestEntry {
            incarnation: *incarnation,
            heartbeat: 0,
            last_gc: 0,
            version: MAX_COUNT,
        }));
        !incarnations.is_empty()
    }

    /// Writes the message again and has chitchat parse it.
    pub(super) fn for_chitchat(&self) -> Result<ChitchatMessage, WireError> {
        for_chitchat(&self.write())
    }

    fn write(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([VERSION, self.kind]);
        if matches!(self.kind, SYN | SYN_ACK) {
            // 16 bits suffice: a message has room for some 600 entries, and `claim_up_to_date` adds
            // at most the admitted incarnations.
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

/// Requires that values follow an incarnation, that each incarnation occurs once, and that its
/// versions rise: chitchat panics if the last version is not the highest.
fn check_order(delta: &[Operation]) -> Result<(), WireError> {
    let mut incarnations = BTreeSet::new();
    let mut highest = None;
    for operation in delta {
        highest = match (operation, highest) {
            (Operation::Incarnation { incarnation, .. }, _) if incarnations.insert(*incarnation) => Some(0),
            (Operation::Value { version, .. }, Some(known)) if *version > known => Some(*version),
            _ => return Err(WireError::Malformed("order of versions")),
        };
    }
    Ok(())
}

/// Changes the digest in an outgoing message so that this node seems to know all of the
/// incarnations for which `incarnation` is true; the peer then sends nothing of them. The length
/// stays the same.
pub(super) fn suppress(
    bytes: &mut [u8],
    names: &mut Names,
    incarnation: impl Fn(&Incarnation) -> bool,
) -> Result<(), WireError> {
    let length = bytes.len();
    let mut reader = Reader(bytes);
    let [.., kind] = reader.array::<4>()?;
    if !matches!(kind, SYN | SYN_ACK) {
        return Ok(());
    }
    let mut ends = Vec::new();
    for _ in 0..reader.u16()? {
        if incarnation(&reader.known(names)?.incarnation) {
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

/// The bytes that have not been read yet.
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

    /// Reads an incarnation: a node id, a generation and the mesh address that belongs to the id.
    /// There is only one valid form, so that one node is one key.
    fn incarnation(&mut self, names: &mut Names) -> Result<Incarnation, WireError> {
        let name = self.text(MAX_KEY)?;
        let generation = self.u64()?;
        let [family] = self.array()?;
        if family != 6 {
            return Err(WireError::Identity);
        }
        let octets: [u8; 16] = self.array()?;
        let address = SocketAddr::from((octets, self.u16()?));
        Ok(Incarnation { node: names.node(name, address)?, generation })
    }

    fn known(&mut self, names: &mut Names) -> Result<DigestEntry, WireError> {
        Ok(DigestEntry {
            incarnation: self.incarnation(names)?,
            heartbeat: self.count()?,
            last_gc: self.count()?,
            version: self.count()?,
        })
    }

    fn operation(&mut self, names: &mut Names) -> Result<Operation, WireError> {
        let [tag] = self.array()?;
        Ok(match tag {
            0 => {
                let incarnation = self.incarnation(names)?;
                // The last garbage-collected version, 0 at our nodes: a higher one makes chitchat
                // discard values.
                if self.count()? != 0 {
                    return Err(WireError::Malformed("collected values"));
                }
                Operation::Incarnation { incarnation, from: self.count()? }
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

    /// Reads items until the end, at most [`MAX_OPERATIONS`].
    fn all<T>(mut self, mut item: impl FnMut(&mut Reader<'_>) -> Result<T, WireError>) -> Result<Vec<T>, WireError> {
        let mut items = Vec::new();
        while !self.0.is_empty() {
            if items.len() == MAX_OPERATIONS {
                return Err(WireError::TooLong);
            }
            items.push(item(&mut self)?);
        }
        Ok(items)
    }

    /// Reads the items of a stream of blocks, each compressed with zstd or plain.
    fn stream<T>(&mut self, item: impl FnMut(&mut Reader<'_>) -> Result<T, WireError>) -> Result<Vec<T>, WireError> {
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
        Reader(&unpacked).all(item)
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    // Texts come from `Reader::text`, so their length fits.
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_life(out: &mut Vec<u8>, incarnation: &Incarnation) {
    write_text(out, &incarnation.node.to_string());
    out.extend(incarnation.generation.to_le_bytes());
    let address = mesh_socket(&incarnation.node);
    out.push(6);
    out.extend(rustbalance_gossip::address::mesh_address(&incarnation.node).octets());
    out.extend(address.port().to_le_bytes());
}

fn write_known(out: &mut Vec<u8>, known: &DigestEntry) {
    write_life(out, &known.incarnation);
    for count in [known.heartbeat, known.last_gc, known.version] {
        out.extend(count.to_le_bytes());
    }
}

fn write_operation(out: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Incarnation { incarnation, from } => {
            out.push(0);
            write_life(out, incarnation);
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

/// Writes plain blocks: the message does not leave this process.
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
