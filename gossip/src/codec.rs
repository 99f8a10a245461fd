//! The encoding of everything that is sent on a link or signed: a version byte, then CBOR, of a
//! bounded size.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version this build writes, and the only one it reads.
pub const VERSION: u8 = 1;

/// Maximum nesting depth of a value. Every type of this crate needs far less.
const MAX_DEPTH: usize = 16;

/// Why bytes could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message is longer than the reader allows for this kind.
    #[error("message of {size} bytes, at most {max} are allowed")]
    TooLong {
        /// Size of the message in bytes.
        size: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// The message has no bytes.
    #[error("empty message")]
    Empty,
    /// The message has a version that this build does not read.
    #[error("message of version {0}, this build reads version {VERSION}: update the older node")]
    Version(u8),
    /// The message is not CBOR of the expected shape.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Bytes follow the end of the value; their number.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
}

/// Encodes a value.
///
/// # Errors
/// The error of the type's serializer. The types of this crate always encode.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, DecodeError> {
    let mut bytes = vec![VERSION];
    ciborium::into_writer(value, &mut bytes).map_err(|error| DecodeError::Malformed(error.to_string()))?;
    Ok(bytes)
}

/// Decodes a value from at most `max` bytes, all of which must belong to it.
///
/// # Errors
/// The bytes are too many, of another version, malformed, or followed by others.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLong { size: bytes.len(), max });
    }
    let (&version, mut rest) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH)
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::Trailing(rest.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_encoded_value_decodes_to_itself() {
        let value = (7u64, "seven".to_string(), vec![Some(1u8), None]);
        assert_eq!(decode(&encode(&value).unwrap(), 100), Ok(value));
    }

    #[test]
    fn bounds_version_and_trailing_bytes_are_checked() {
        let mut bytes = encode(&7u64).unwrap();
        assert_eq!(decode::<u64>(&bytes, 1), Err(DecodeError::TooLong { size: 2, max: 1 }));
        bytes.push(0);
        assert_eq!(decode::<u64>(&bytes, 9), Err(DecodeError::Trailing(1)));
        bytes[0] = 9;
        assert_eq!(decode::<u64>(&bytes, 9), Err(DecodeError::Version(9)));
        assert_eq!(decode::<u64>(&[], 9), Err(DecodeError::Empty));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Vec<crate::bytes::VarBytes>>(&bytes, 256);
        }
    }
}
