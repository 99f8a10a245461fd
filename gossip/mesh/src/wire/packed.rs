//! The messages of our own form: pushes of new values, and subscriptions to them. They name
//! incarnations by a hash, because only a node that knows an incarnation has a use for its values,
//! and carry a heartbeat without what its reader knows. So a heartbeat takes 100 bytes, of which 64
//! are its signature; in chitchat's form it takes 440.
//!
//! A push is read into the same [`Message`](super::Message) as chitchat's ACK, and passes the same
//! checks.

use data_encoding::BASE64;
use rustbalance_gossip::id::ClusterId;
use rustbalance_gossip::record::{Phase, RecordKind, ShortHeartbeat};

use super::names::{Names, SHORT, ShortName, short_name};
use super::{Incarnation, MAX_COUNT, MAX_KEY, MAX_VALUE, Operation, Reader, WireError};

/// A mark that chitchat's messages do not begin with. The form of the message follows.
const MARK: [u8; 2] = *b"rb";
/// A push, compressed with zstd.
const PACKED: u8 = 0;
/// A push as it is: heartbeats cannot be compressed further.
const PLAIN: u8 = 1;
/// The incarnations to whose values the sender subscribes.
const SUBSCRIPTIONS: u8 = 2;

/// Most bytes of a push, uncompressed.
pub(super) const MAX_PUSH: usize = 32_768;
/// Most incarnations in a message with subscriptions: more than a node admits.
const MAX_SUBSCRIPTIONS: usize = 512;
/// Pieces that occur in every lease. Part of the protocol: both sides must have the same.
pub const PUSH_DICTIONARY: &[u8] = b"\x01\x05lease\xdc\x01\x01\xa3fsignerX istatementXw\x01\xa6gclusterX \
fholderX cseq\x1b\0\0\0dtermhpriority\x18dfttl_ms\x19isignatureX@";

const INCARNATION: u8 = 0;
/// A value that is the base64 of the bytes sent.
const RECORD: u8 = 1;
/// A value as it is.
const TEXT: u8 = 2;
const HEARTBEAT: u8 = 3;

const PHASES: [Phase; 4] = [Phase::Joining, Phase::Active, Phase::Draining, Phase::Gone];

/// Whether a message is of our own form, and not chitchat's.
pub fn is_push(bytes: &[u8]) -> bool {
    bytes.starts_with(&MARK)
}

/// A message that replaces this node's subscriptions at a peer.
pub(crate) fn subscribe<'a>(incarnations: impl IntoIterator<Item = &'a Incarnation>) -> Vec<u8> {
    let names = incarnations.into_iter().take(MAX_SUBSCRIPTIONS).flat_map(short_name);
    MARK.into_iter().chain([SUBSCRIPTIONS]).chain(names).collect()
}

/// The names in a message with subscriptions; `None` if it is another message.
pub(crate) fn subscriptions(bytes: &[u8]) -> Option<Result<Vec<ShortName>, WireError>> {
    let names = bytes.strip_prefix(&MARK)?.strip_prefix(&[SUBSCRIPTIONS])?;
    let (names, rest) = names.as_chunks::<SHORT>();
    Some(match rest {
        [] if names.len() > MAX_SUBSCRIPTIONS => Err(WireError::TooLong),
        [] => Ok(names.to_vec()),
        _ => Err(WireError::Length),
    })
}

/// Adds values of an incarnation to the body of a push.
pub(super) fn write(
    body: &mut Vec<u8>,
    cluster: ClusterId,
    incarnation: &Incarnation,
    from: u64,
    values: &[Operation],
) {
    body.push(INCARNATION);
    body.extend(short_name(incarnation));
    write_number(body, from);
    for value in values {
        let Operation::Value { key, value, version, status } = value else { continue };
        let record = BASE64.decode(value.as_bytes()).ok().filter(|record| BASE64.encode(record) == *value);
        let is_heartbeat = *key == RecordKind::Heartbeat.key() && *status == 0;
        let heartbeat = record.as_ref().filter(|_| is_heartbeat);
        match heartbeat.and_then(|record| ShortHeartbeat::of(record, cluster, incarnation.node)) {
            Some(heartbeat) => write_heartbeat(body, &heartbeat, *version),
            None => {
                body.push(if record.is_some() { RECORD } else { TEXT });
                write_bytes(body, key.as_bytes());
                write_bytes(body, record.as_deref().unwrap_or(value.as_bytes()));
                write_number(body, *version);
                body.push(*status);
            }
        }
    }
}

fn write_heartbeat(body: &mut Vec<u8>, heartbeat: &ShortHeartbeat, version: u64) {
    let ShortHeartbeat { seq, phase, hears, unix, instance, signature } = heartbeat;
    body.push(HEARTBEAT);
    [version, seq >> 32, seq & u64::from(u32::MAX), u64::from(*hears), *unix]
        .into_iter()
        .for_each(|number| write_number(body, number));
    let phase = PHASES.iter().position(|other| other == phase).unwrap_or_default();
    body.push(phase as u8);
    body.extend(instance.to_le_bytes());
    body.extend(signature);
}

/// Writes a number in groups of seven bits, the lowest first (LEB128).
fn write_number(body: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        body.push(number as u8 | 0x80);
        number >>= 7;
    }
    body.push(number as u8);
}

fn write_bytes(body: &mut Vec<u8>, bytes: &[u8]) {
    write_number(body, bytes.len() as u64);
    body.extend(bytes);
}

/// The push with this body of at most [`MAX_PUSH`] bytes.
pub(super) fn pack(body: &[u8]) -> Vec<u8> {
    let packed = zstd::bulk::Compressor::with_dictionary(0, PUSH_DICTIONARY)
        .and_then(|mut compressor| compressor.compress(body));
    match packed {
        Ok(packed) if packed.len() < body.len() => [&MARK[..], &[PACKED], &packed].concat(),
        _ => [&MARK[..], &[PLAIN], body].concat(),
    }
}

/// The content of a push.
pub(super) struct Push {
    pub(super) delta: Vec<Operation>,
    /// Whether it has values of an incarnation that is unknown here. They are left out.
    pub(super) unknown: bool,
    /// Size of all operations, in bytes.
    pub(super) unpacked: usize,
}

/// Reads a push.
pub(super) fn read(bytes: &[u8], names: &Names) -> Result<Push, WireError> {
    let (head, body) = bytes.split_at_checked(MARK.len() + 1).ok_or(WireError::Length)?;
    let unpacked = match head[MARK.len()] {
        PLAIN if body.len() > MAX_PUSH => return Err(WireError::TooLong),
        PLAIN => body.to_vec(),
        PACKED => zstd::bulk::Decompressor::with_dictionary(PUSH_DICTIONARY)
            .and_then(|mut decompressor| decompressor.decompress(body, MAX_PUSH))
            .map_err(|_| WireError::Malformed("push"))?,
        _ => return Err(WireError::Malformed("form of a push")),
    };
    // The incarnation of the next values; `Some(None)` if it is unknown here.
    let (mut current, mut unknown) = (None, false);
    let operations = Reader(&unpacked).all(|reader| {
        let [tag] = reader.array()?;
        if tag != INCARNATION {
            let incarnation = current.ok_or(WireError::Malformed("order of versions"))?;
            return reader.pushed(tag, names.cluster, incarnation);
        }
        let incarnation = names.incarnation(&reader.array()?);
        let from = reader.version()?;
        unknown |= incarnation.is_none();
        current = Some(incarnation);
        Ok(incarnation.map(|incarnation| Operation::Incarnation { incarnation, from }))
    })?;
    Ok(Push { delta: operations.into_iter().flatten().collect(), unknown, unpacked: unpacked.len() })
}

impl<'a> Reader<'a> {
    /// A value of the incarnation; `None` if that is unknown.
    fn pushed(
        &mut self,
        tag: u8,
        cluster: ClusterId,
        incarnation: Option<Incarnation>,
    ) -> Result<Option<Operation>, WireError> {
        if tag == HEARTBEAT {
            let (version, heartbeat) = (self.version()?, self.heartbeat()?);
            let Some(Incarnation { node, .. }) = incarnation else { return Ok(None) };
            let record = heartbeat.record(cluster, node).ok_or(WireError::Malformed("heartbeat"))?;
            let (key, value) = (RecordKind::Heartbeat.key(), BASE64.encode(&record));
            return Ok(Some(Operation::Value { key, value, version, status: 0 }));
        }
        let key = self.bytes(MAX_KEY)?;
        let bytes = self.bytes(MAX_VALUE)?;
        let value = match tag {
            RECORD => BASE64.encode(bytes),
            TEXT => text(bytes)?,
            _ => return Err(WireError::Malformed("operation")),
        };
        if value.len() > MAX_VALUE {
            return Err(WireError::TooLong);
        }
        let (key, version) = (text(key)?, self.version()?);
        let value = Operation::Value { key, value, version, status: self.array::<1>()?[0] };
        Ok(incarnation.map(|_| value))
    }

    fn heartbeat(&mut self) -> Result<ShortHeartbeat, WireError> {
        let [boot, count] = [self.number_up_to(u32::MAX.into())?, self.number_up_to(u32::MAX.into())?];
        let hears = u16::try_from(self.number()?).map_err(|_| WireError::Malformed("heartbeat"))?;
        let unix = self.number()?;
        let [phase] = self.array()?;
        Ok(ShortHeartbeat {
            seq: boot << 32 | count,
            hears,
            unix,
            phase: *PHASES.get(usize::from(phase)).ok_or(WireError::Malformed("heartbeat"))?,
            instance: u64::from_le_bytes(self.array()?),
            signature: self.array()?,
        })
    }

    /// A number in groups of seven bits (LEB128).
    fn number(&mut self) -> Result<u64, WireError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(WireError::Malformed("number"))
    }

    fn number_up_to(&mut self, most: u64) -> Result<u64, WireError> {
        let number = self.number()?;
        if number > most { Err(WireError::Malformed("number")) } else { Ok(number) }
    }

    fn version(&mut self) -> Result<u64, WireError> {
        let version = self.number()?;
        if version > MAX_COUNT { Err(WireError::Count(version)) } else { Ok(version) }
    }

    fn bytes(&mut self, most: usize) -> Result<&'a [u8], WireError> {
        let length = self.number()?;
        if length > most as u64 {
            return Err(WireError::TooLong);
        }
        self.take(length as usize)
    }
}

fn text(bytes: &[u8]) -> Result<String, WireError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| WireError::Malformed("text"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustbalance_gossip::record::Role;
    use rustbalance_gossip::signed::Verified;
    use rustbalance_gossip::sim::{Founder, Identity};

    use super::*;
    use crate::wire::Message;

    fn value(key: &str, value: &str) -> Operation {
        Operation::Value { key: key.into(), value: value.into(), version: 9, status: 0 }
    }

    fn identity(i: u32) -> Identity {
        Founder::new(1).node(i, Role::Publisher)
    }

    fn incarnation(i: u32) -> Incarnation {
        Incarnation { node: identity(i).node(), generation: 7 }
    }

    /// The heartbeat of node `i`.
    fn heartbeat(i: u32) -> Operation {
        let own = identity(i);
        let record = Verified::sign(own.beat(5 << 32 | 77, Phase::Active), &own.key).unwrap().to_bytes().unwrap();
        Operation::Value { key: "beat".into(), value: BASE64.encode(&record), version: 300, status: 0 }
    }

    fn body(of: &[(u32, Vec<Operation>)]) -> Vec<u8> {
        let mut body = Vec::new();
        of.iter().for_each(|(i, values)| write(&mut body, identity(0).cluster(), &incarnation(*i), 4, values));
        body
    }

    /// Knows nodes 0 to 2.
    fn names() -> Names {
        let mut names = Names::new(identity(0).cluster());
        (0..3).for_each(|i| names.learn(incarnation(i)));
        names
    }

    fn plain(body: &[u8]) -> Vec<u8> {
        [&MARK[..], &[PLAIN], body].concat()
    }

    #[test]
    fn what_is_packed_is_read_as_it_was() {
        let values = ["", "QUJD", "QUJ", "not base64 of anything", "QUJDRA=="];
        for value in values.map(|text| value("lease", text)).into_iter().chain([heartbeat(1), heartbeat(2)]) {
            let bytes = pack(&body(&[(1, vec![value.clone()]), (2, vec![value.clone()])]));
            assert!(is_push(&bytes));
            let message = Message::read(&bytes, &mut names()).unwrap();
            let incarnation = |i| Operation::Incarnation { incarnation: incarnation(i), from: 4 };
            assert_eq!(message.delta, [incarnation(1), value.clone(), incarnation(2), value]);
            assert!(message.for_chitchat().is_ok() && !message.names_unknown());
        }
    }

    #[test]
    fn a_heartbeat_takes_a_hundred_bytes() {
        let all: Vec<_> = (0..3).map(|i| (i, vec![heartbeat(i)])).collect();
        let sizes: Vec<_> = [&all[..1], &all].map(|some| pack(&body(some)).len()).into();
        assert!(sizes[0] <= 103 && sizes[1] <= 300, "{sizes:?}");
    }

    #[test]
    fn values_of_unknown_incarnations_are_left_out() {
        let all = [(3, vec![heartbeat(3), value("lease", "QUJD")]), (1, vec![heartbeat(1)])];
        let message = Message::read(&pack(&body(&all)), &mut names()).unwrap();
        assert!(message.names_unknown());
        assert_eq!(message.delta, [Operation::Incarnation { incarnation: incarnation(1), from: 4 }, heartbeat(1)]);
    }

    /// Otherwise a peer could have this node unpack without end what it leaves out.
    #[test]
    fn what_is_left_out_counts_with_its_unpacked_size() {
        // A push has the bytes of which `xxxx` is the base64, and a hyphen as it is.
        for (text, unpacked) in [("x", 15_000), ("-", 20_000)] {
            let bytes = pack(&body(&[(3, vec![value("lease", &text.repeat(20_000))])]));
            let message = Message::read(&bytes, &mut names()).unwrap();
            assert!(bytes.len() < 200 && message.delta.is_empty());
            assert!((unpacked..unpacked + 50).contains(&message.delta_bytes()), "{}", message.delta_bytes());
        }
    }

    #[test]
    fn subscriptions_are_read_as_they_were_written_and_bounded() {
        let wanted = [incarnation(1), incarnation(3), incarnation(2)];
        let bytes = subscribe(&wanted);
        assert_eq!(bytes.len(), 3 + wanted.len() * SHORT);
        let (read, names) = (subscriptions(&bytes).unwrap().unwrap(), names());
        let known: Vec<_> = read.iter().filter_map(|name| names.incarnation(name)).collect();
        assert_eq!(known, [incarnation(1), incarnation(2)]);
        assert_eq!(subscriptions(&subscribe(&[])), Some(Ok(Vec::new())));
        assert_eq!(subscriptions(&bytes[..bytes.len() - 1]), Some(Err(WireError::Length)));
        let many = [&bytes[..3], &[0; (MAX_SUBSCRIPTIONS + 1) * SHORT]].concat();
        assert_eq!(subscriptions(&many), Some(Err(WireError::TooLong)));
        assert_eq!(subscriptions(&pack(&body(&[(1, vec![heartbeat(1)])]))), None);
    }

    #[test]
    fn each_forgery_is_refused_for_its_reason() {
        let good = body(&[(1, vec![value("lease", "QUJD")])]);
        let read = |bytes: &[u8]| Message::read(bytes, &mut names()).err();
        assert_eq!(read(&plain(&good)), None);
        assert_eq!(read(b"rb"), Some(WireError::Length));
        assert_eq!(read(&[&b"rb\x03"[..], &good].concat()), Some(WireError::Malformed("form of a push")));
        assert_eq!(read(&plain(&good[..good.len() - 1])), Some(WireError::Length));
        assert_eq!(read(&plain(&good[10..])), Some(WireError::Malformed("order of versions")));
        let twice = body(&[(1, vec![value("lease", "QUJD")]), (1, vec![value("lease", "QUJD")])]);
        assert_eq!(read(&plain(&twice)), Some(WireError::Malformed("order of versions")));
        let packed = |body: &[u8]| pack(body);
        assert_eq!(read(&packed(&[0; MAX_PUSH + 1])), Some(WireError::Malformed("push")));
        assert_eq!(read(&plain(&[0; MAX_PUSH + 1])), Some(WireError::TooLong));
        let number = |bytes: &[u8]| Reader(bytes).number();
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Ok(u64::MAX));
        assert_eq!(number(&[0xff; 10]), Err(WireError::Malformed("number")));
        assert_eq!(number(&[0xff; 3]), Err(WireError::Length));
    }

    proptest! {
        #[test]
        fn any_number_is_read_as_it_was_written(number in any::<u64>()) {
            let mut bytes = Vec::new();
            write_number(&mut bytes, number);
            prop_assert_eq!(Reader(&bytes).number(), Ok(number));
        }

        #[test]
        fn any_change_of_a_push_is_survived(at in 0usize..400, to in any::<u8>(), compressed in any::<bool>()) {
            let body = body(&[(1, vec![heartbeat(1), value("x", "QUJD")]), (3, vec![value("lease", "x")])]);
            let mut bytes = if compressed { pack(&[body, vec![0; 90]].concat()) } else { plain(&body) };
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = Message::read(&bytes, &mut names()).and_then(|message| message.for_chitchat());
        }

        #[test]
        fn any_body_is_survived(body in proptest::collection::vec(0u8..5, 0..300)) {
            let _ = Message::read(&plain(&body), &mut names()).and_then(|message| message.for_chitchat());
        }
    }
}
