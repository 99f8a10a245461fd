//! Pushes in a form of their own: less than half of what chitchat's form takes. Names are keys,
//! records are bytes in place of base64, and the compressor knows what a heartbeat looks like.
//!
//! A push is read into the same [`Message`](super::Message) as chitchat's ACK, and passes the same
//! checks.

use data_encoding::BASE64;
use rustbalance_gossip::id::NodeId;

use super::{Incarnation, MAX_KEY, MAX_VALUE, Operation, Reader, WireError, write_text};

/// Begins a push: a mark that chitchat's messages do not begin with, and the version.
const HEAD: [u8; 3] = [b'r', b'b', 0];
/// Most bytes of a push, uncompressed.
pub(super) const MAX_PUSH: usize = 32_768;
/// Pieces that occur in each push of a heartbeat. Part of the protocol: both sides must have the
/// same.
pub const PUSH_DICTIONARY: &[u8] =
    b"\0\0\0\0\0\0\0\0\0\x01\x04\0beat\x13\x01\x01\xa3fsignerX istatementX\x90\x01\xa7gclusterX \
dnodeX cseq\x1b\0\0\0ephasefactiveehears\x02dunix\x1ahinstance\x1bisignatureX@";

const INCARNATION: u8 = 0;
/// A value that is the base64 of the bytes sent.
const RECORD: u8 = 1;
/// A value as it is.
const TEXT: u8 = 2;

/// Whether a message is a push, and not one of chitchat's.
pub fn is_push(bytes: &[u8]) -> bool {
    bytes.starts_with(&HEAD[..2])
}

/// Adds an operation to the body of a push.
pub(super) fn write(body: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Incarnation { incarnation, from } => {
            body.push(INCARNATION);
            body.extend(incarnation.node.public_key());
            body.extend(incarnation.generation.to_le_bytes());
            body.extend(from.to_le_bytes());
        }
        Operation::Value { key, value, version, status } => {
            let record = BASE64.decode(value.as_bytes()).ok().filter(|record| BASE64.encode(record) == *value);
            body.push(if record.is_some() { RECORD } else { TEXT });
            write_text(body, key);
            let bytes = record.as_deref().unwrap_or(value.as_bytes());
            // Values are at most `MAX_VALUE` long.
            body.extend((bytes.len() as u16).to_le_bytes());
            body.extend(bytes);
            body.extend(version.to_le_bytes());
            body.push(*status);
        }
    }
}

/// The push with this body of at most [`MAX_PUSH`] bytes; `None` if it cannot be compressed.
pub(super) fn pack(body: &[u8]) -> Option<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::with_dictionary(0, PUSH_DICTIONARY).ok()?;
    Some([&HEAD[..], &compressor.compress(body).ok()?].concat())
}

/// Reads a push.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Operation>, WireError> {
    let (head, packed) = bytes.split_at_checked(HEAD.len()).ok_or(WireError::Length)?;
    if head != HEAD {
        return Err(WireError::Malformed("version of a push"));
    }
    let unpacked = zstd::bulk::Decompressor::with_dictionary(PUSH_DICTIONARY)
        .and_then(|mut decompressor| decompressor.decompress(packed, MAX_PUSH))
        .map_err(|_| WireError::Malformed("push"))?;
    Reader(&unpacked).all(operation)
}

fn operation(reader: &mut Reader<'_>) -> Result<Operation, WireError> {
    let [tag] = reader.array()?;
    if tag == INCARNATION {
        let node = NodeId::from_public_key(reader.array()?);
        let incarnation = Incarnation { node, generation: reader.u64()? };
        return Ok(Operation::Incarnation { incarnation, from: reader.count()? });
    }
    let key = reader.text(MAX_KEY)?.to_owned();
    let length = usize::from(reader.u16()?);
    let bytes = reader.take(length)?;
    let value = match tag {
        RECORD => BASE64.encode(bytes),
        TEXT => String::from_utf8(bytes.to_vec()).map_err(|_| WireError::Malformed("text"))?,
        _ => return Err(WireError::Malformed("operation")),
    };
    if value.len() > MAX_VALUE {
        return Err(WireError::TooLong);
    }
    Ok(Operation::Value { key, value, version: reader.count()?, status: reader.array::<1>()?[0] })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{Message, Names};

    fn value(value: &str) -> Operation {
        Operation::Value { key: "beat".into(), value: value.into(), version: 9, status: 0 }
    }

    fn incarnation(i: u8) -> Operation {
        let incarnation = Incarnation { node: NodeId::from_public_key([i; 32]), generation: 7 };
        Operation::Incarnation { incarnation, from: 4 }
    }

    fn packed(operations: &[Operation]) -> Vec<u8> {
        let mut body = Vec::new();
        operations.iter().for_each(|operation| write(&mut body, operation));
        pack(&body).unwrap()
    }

    #[test]
    fn what_is_packed_is_read_as_it_was() {
        let values = ["", "QUJD", "QUJ", "not base64 of anything", "QUJDRA=="];
        for value in values.map(value) {
            let operations = vec![incarnation(1), value.clone(), incarnation(2), value];
            let bytes = packed(&operations);
            assert!(is_push(&bytes));
            let message = Message::read(&bytes, &mut Names::default()).unwrap();
            assert_eq!(message.delta, operations);
            assert!(message.for_chitchat().is_ok());
        }
    }

    #[test]
    fn each_forgery_is_refused_for_its_reason() {
        let good = packed(&[incarnation(1), value("QUJD")]);
        let mut later = good.clone();
        later[2] = 1;
        let read = |bytes: &[u8]| Message::read(bytes, &mut Names::default()).err();
        assert_eq!(read(&good), None);
        assert_eq!(read(&later), Some(WireError::Malformed("version of a push")));
        assert_eq!(read(&good[..good.len() - 1]), Some(WireError::Malformed("push")));
        assert_eq!(read(&packed(&[value("QUJD")])), Some(WireError::Malformed("order of versions")));
        let twice = [incarnation(1), value("QUJD"), incarnation(1), value("QUJD")];
        assert_eq!(read(&packed(&twice)), Some(WireError::Malformed("order of versions")));
        assert_eq!(read(&pack(&[0; MAX_PUSH + 1]).unwrap()), Some(WireError::Malformed("push")));
    }

    proptest! {
        #[test]
        fn any_change_of_a_push_is_survived(at in 0usize..400, to in any::<u8>()) {
            let mut bytes = packed(&[incarnation(1), value("QUJD"), incarnation(2), value("x")]);
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = Message::read(&bytes, &mut Names::default()).and_then(|message| message.for_chitchat());
        }

        #[test]
        fn any_body_is_survived(body in proptest::collection::vec(0u8..5, 0..300)) {
            let bytes = pack(&body).unwrap();
            let _ = Message::read(&bytes, &mut Names::default()).and_then(|message| message.for_chitchat());
        }
    }
}
