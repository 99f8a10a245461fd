//! The messages of links: each is one CBOR value behind `codec`'s version byte, in a frame of its
//! own. Some carry a secret, so every buffer is zeroed after use.

use ciborium::Value;
use rustbalance_gossip::codec::{self, DecodeError};
use serde::de::{DeserializeOwned, Error, Visitor};
use serde::{Deserializer, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

use crate::frame;

/// Why a message could not be read or written. The stream is unusable after it.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The stream failed, ended, or announced a frame longer than allowed.
    #[error(transparent)]
    Frame(#[from] frame::FrameError),
    /// The frame does not hold a valid message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Reads one value of an enum, of at most `max` bytes, and returns it with its size on the wire.
/// The value is `None` for a variant that this version does not have. Not cancel-safe.
pub(super) async fn read_message<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<(Option<T>, usize), MessageError> {
    let payload = Zeroizing::new(frame::read(stream, max).await?);
    let value = match codec::decode(&payload, max) {
        Ok(value) => Some(value),
        Err(_) if is_of_later_version::<T>(&payload) => None,
        Err(error) => return Err(error.into()),
    };
    Ok((value, frame::HEADER + payload.len()))
}

/// Whether a payload is a variant whose name `T` does not have.
fn is_of_later_version<T: DeserializeOwned>(payload: &[u8]) -> bool {
    let name = match codec::decode(payload, payload.len()) {
        Ok(Value::Text(name)) => name,
        Ok(Value::Map(entries)) => match <[_; 1]>::try_from(entries) {
            Ok([(Value::Text(name), _)]) => name,
            _ => return false,
        },
        _ => return false,
    };
    !variants::<T>().contains(&name.as_str())
}

/// The names of an enum's variants, taken from what `T` passes to its deserializer.
fn variants<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Names<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
            Err(Error::custom("not an enum"))
        }

        fn deserialize_enum<V: Visitor<'de>>(
            self,
            _name: &'static str,
            variants: &'static [&'static str],
            _visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = variants;
            Err(Error::custom("only the names are asked for"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map struct identifier ignored_any
        }
    }

    let mut names: &[&str] = &[];
    // Always ends with an error; the names are recorded before.
    let _ = T::deserialize(Names(&mut names));
    names
}

/// Writes one value, and returns its size on the wire. Not cancel-safe.
pub(super) async fn write_message<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &T,
) -> Result<usize, MessageError> {
    let payload = Zeroizing::new(codec::encode(value)?);
    frame::write(stream, &payload).await?;
    Ok(frame::HEADER + payload.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustbalance_gossip::bytes::VarBytes;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_message_is_read_as_written_and_no_byte_more() {
        block_on(async {
            let mut bytes = Vec::new();
            let long = || Known::Bytes(VarBytes(vec![7; 30_000]));
            let written = write_message(&mut bytes, &long()).await.unwrap();
            assert_eq!(written, bytes.len());
            bytes.extend(b"rest");
            let mut stream = &bytes[..];
            assert_eq!(read_message(&mut stream, 40_000).await.unwrap(), (Some(long()), written));
            assert_eq!(stream, b"rest");
        });
    }

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    enum Known {
        Plain,
        Number(u64),
        Bytes(VarBytes),
    }

    #[test]
    fn a_variant_of_a_later_version_is_distinguished_from_nonsense() {
        #[derive(Serialize)]
        enum Later {
            Plain,
            Number(String),
            Unit,
            Record { field: u8 },
        }
        let read = |bytes: Vec<u8>| {
            let framed = [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat();
            block_on(async { read_message::<Known>(&mut &framed[..], 128).await.map(|(value, _)| value) })
        };
        let encode = |value: Later| codec::encode(&value).unwrap();
        assert_eq!(variants::<Known>(), ["Plain", "Number", "Bytes"]);
        assert_eq!(read(codec::encode(&Known::Number(7)).unwrap()).unwrap(), Some(Known::Number(7)));
        assert_eq!(read(encode(Later::Plain)).unwrap(), Some(Known::Plain));
        assert_eq!(read(encode(Later::Unit)).unwrap(), None);
        assert_eq!(read(encode(Later::Record { field: 1 })).unwrap(), None);
        // A variant with a known name must have the content that this version expects.
        assert!(read(encode(Later::Number("seven".into()))).is_err());
        for nonsense in [codec::encode(&7u8), codec::encode(&("Unit", 1)), codec::encode(&vec![("Unit", 1)])] {
            assert!(read(nonsense.unwrap()).is_err());
        }
        assert!(read(vec![9, 0]).is_err(), "another version of the encoding");
        assert!(read([encode(Later::Unit), vec![0]].concat()).is_err(), "bytes after the end");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0u32..220) {
            block_on(async {
                let _ = read_message::<Known>(&mut &bytes[..], 128).await;
                let framed = [&length.to_be_bytes()[..], &bytes].concat();
                match frame::read(&mut &framed[..], 128).await {
                    Ok(payload) => assert_eq!(payload, &bytes[..length as usize]),
                    Err(frame::FrameError::TooLong { size, .. }) => assert!(size == length as usize && size > 128),
                    Err(_) => assert!(bytes.len() < length as usize),
                }
            });
        }
    }
}
