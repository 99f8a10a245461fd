//! Values in frames: what links say to each other, each `codec`'s version byte and CBOR in a frame of its own. Some carry
//! a secret, so every buffer is wiped.

use rustbalance_gossip::codec::{self, DecodeError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

use crate::frame;

/// Why no value came or went. The stream is of no use after it.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The stream failed, ended, or announced a frame longer than allowed.
    #[error(transparent)]
    Frame(#[from] frame::FrameError),
    /// The frame holds nothing that belongs here.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Reads one value of at most `max` bytes, and how many bytes it took. Not cancel-safe.
pub(super) async fn read_message<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> Result<(T, usize), MessageError> {
    let payload = Zeroizing::new(frame::read(stream, max).await?);
    Ok((codec::decode(&payload, max)?, frame::HEADER + payload.len()))
}

/// Writes one value, and says how many bytes that took. Not cancel-safe.
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
    fn what_was_written_is_read_and_nothing_more() {
        block_on(async {
            let mut bytes = Vec::new();
            let written = write_message(&mut bytes, &VarBytes(vec![7; 30_000])).await.unwrap();
            assert_eq!(written, bytes.len());
            bytes.extend(b"rest");
            let mut stream = &bytes[..];
            let read: (VarBytes, usize) = read_message(&mut stream, 40_000).await.unwrap();
            assert_eq!(read, (VarBytes(vec![7; 30_000]), written));
            assert_eq!(stream, b"rest");
        });
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0u32..220) {
            block_on(async {
                let _ = read_message::<VarBytes>(&mut &bytes[..], 128).await;
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
