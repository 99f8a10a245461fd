//! A two-way byte stream over any transport: Tor, TCP, a channel in memory.

use tokio::io::{AsyncRead, AsyncWrite};

/// A two-way byte stream that can move between threads.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// An owned [`ByteStream`].
pub type BoxStream = Box<dyn ByteStream>;
