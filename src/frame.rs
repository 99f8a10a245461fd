//! Frames over any byte stream: a length (4 bytes, big-endian), then that many bytes.
//!
//! The reader bounds the length and allocates nothing before it has checked it. Callers put a
//! timeout around every call.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// The longest frame from a peer that is not authenticated yet, in bytes.
pub const MAX_UNPROVEN: usize = 4 << 10;
/// The longest frame, in bytes.
pub const MAX: usize = 128 << 10;
/// Size of the length in front of a frame, in bytes.
pub const HEADER: usize = 4;

/// Why a frame could not be read or written. The stream cannot be used any further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed.
    #[error("frame of {size} bytes, at most {max} are allowed")]
    TooLong {
        /// The size of the frame, in bytes.
        size: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// The other side has closed the stream, in a frame or before it.
    #[error("the other side has closed the connection")]
    Closed,
    /// The stream has failed.
    #[error("the connection has failed: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Io(error) }
    }
}

/// Reads one frame of at most `max` bytes.
pub async fn read(stream: &mut (impl AsyncRead + Unpin), max: usize) -> Result<Vec<u8>, FrameError> {
    let size = stream.read_u32().await?;
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > max {
        return Err(FrameError::TooLong { size, max });
    }
    // Zeroized if the rest does not arrive: it may be half a secret.
    let mut frame = Zeroizing::new(vec![0; size]);
    stream.read_exact(&mut frame).await?;
    Ok(std::mem::take(&mut *frame))
}

/// Writes one frame of at most [`MAX`] bytes and flushes.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<(), FrameError> {
    let too_long = || FrameError::TooLong { size: frame.len(), max: MAX };
    let size = u32::try_from(frame.len()).ok().filter(|_| frame.len() <= MAX).ok_or_else(too_long)?;
    // Written in one piece, so that a short frame takes one relay cell and not two.
    let mut bytes = Zeroizing::new(Vec::with_capacity(HEADER + frame.len()));
    bytes.extend_from_slice(&size.to_be_bytes());
    bytes.extend_from_slice(frame);
    stream.write_all(&bytes).await?;
    Ok(stream.flush().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_arrive_whole_and_bounded() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let writer = tokio::spawn(async move {
            write(&mut near, b"").await.unwrap();
            write(&mut near, &[7; 300]).await.unwrap();
            write(&mut near, &[7; 301]).await.unwrap_err();
        });
        assert_eq!(read(&mut far, 300).await.unwrap(), b"");
        assert_eq!(read(&mut far, 300).await.unwrap(), [7; 300]);
        assert!(matches!(read(&mut far, 300).await, Err(FrameError::TooLong { size: 301, max: 300 })));
        drop(far);
        writer.await.unwrap();
        assert!(matches!(read(&mut &[0u8, 0, 0, 5, 1][..], 300).await, Err(FrameError::Closed)));
        assert!(matches!(write(&mut Vec::new(), &vec![0; MAX + 1]).await, Err(FrameError::TooLong { .. })));
    }
}
