//! A two-way byte stream, whatever carries it: Tor, TCP, a channel in memory.

use tokio::io::{AsyncRead, AsyncWrite};

/// What every stream here can do.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// An owned [`ByteStream`].
pub type BoxStream = Box<dyn ByteStream>;
