//! Frames: a length of four bytes (big endian), then as many bytes of payload. A payload is `codec`'s version byte and
//! CBOR. The length is checked before anything is allocated.

use rustbalance_gossip::codec::{self, DecodeError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest payload on a link, in bytes.
pub const MAX_FRAME: usize = 128 * 1024;
/// Largest payload before the peer has proved itself, in bytes.
pub const MAX_HANDSHAKE_FRAME: usize = 4 * 1024;

/// Bytes of the length.
const HEADER: usize = 4;

/// Why no frame came or went. The stream is of no use after it.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced more than is allowed.
    #[error("frame of {size} bytes, at most {max} are allowed")]
    TooLong {
        /// As announced, in bytes.
        size: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// The stream failed or ended, perhaps in the middle of a frame.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// The payload is nothing that belongs here.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Reads the payload of one frame, at most `max` bytes. Not cancel-safe. Reads nothing beyond the frame.
pub async fn read_frame<R: AsyncRead + Unpin>(stream: &mut R, max: usize) -> Result<Vec<u8>, FrameError> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    let size = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if size > max {
        return Err(FrameError::TooLong { size, max });
    }
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}

/// Writes one frame and flushes it. Not cancel-safe.
pub async fn write_frame<W: AsyncWrite + Unpin>(stream: &mut W, payload: &[u8], max: usize) -> Result<(), FrameError> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= max);
    let length = length.ok_or(FrameError::TooLong { size: payload.len(), max })?;
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend(length.to_be_bytes());
    frame.extend(payload);
    stream.write_all(&frame).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads one value.
pub async fn read_message<T: DeserializeOwned, R: AsyncRead + Unpin>(
    stream: &mut R,
    max: usize,
) -> Result<T, FrameError> {
    let payload = read_frame(stream, max).await?;
    Ok(codec::decode(&payload, max)?)
}

/// Writes one value.
pub async fn write_message<T: Serialize, W: AsyncWrite + Unpin>(
    stream: &mut W,
    value: &T,
    max: usize,
) -> Result<(), FrameError> {
    write_frame(stream, &codec::encode(value)?, max).await
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
            write_message(&mut bytes, &VarBytes(vec![7; 300]), 400).await.unwrap();
            bytes.extend(b"rest");
            let mut stream = &bytes[..];
            let read: VarBytes = read_message(&mut stream, 400).await.unwrap();
            assert_eq!(read.0, vec![7; 300]);
            assert_eq!(stream, b"rest");
        });
    }

    #[test]
    fn too_long_is_refused_in_both_directions_and_before_it_is_read() {
        block_on(async {
            let mut announced = &[0xff, 0xff, 0xff, 0xff, 1, 2, 3][..];
            let error = read_frame(&mut announced, MAX_FRAME).await.unwrap_err();
            assert!(matches!(error, FrameError::TooLong { size: 0xffff_ffff, max: MAX_FRAME }));
            assert_eq!(announced.len(), 3);
            let mut out = Vec::new();
            assert!(matches!(
                write_frame(&mut out, &[0; 11], 10).await,
                Err(FrameError::TooLong { size: 11, max: 10 })
            ));
            assert!(out.is_empty());
        });
    }

    #[test]
    fn a_frame_cut_short_is_an_error() {
        block_on(async {
            let mut bytes = Vec::new();
            write_frame(&mut bytes, b"payload", 100).await.unwrap();
            for end in 0..bytes.len() {
                assert!(matches!(read_frame(&mut &bytes[..end], 100).await, Err(FrameError::Io(_))));
            }
        });
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0u32..220) {
            block_on(async {
                let _ = read_message::<VarBytes, _>(&mut &bytes[..], 128).await;
                let framed = [&length.to_be_bytes()[..], &bytes].concat();
                match read_frame(&mut &framed[..], 128).await {
                    Ok(payload) => assert_eq!(payload, &bytes[..length as usize]),
                    Err(FrameError::TooLong { size, .. }) => assert!(size == length as usize && size > 128),
                    Err(_) => assert!(bytes.len() < length as usize),
                }
            });
        }
    }
}
