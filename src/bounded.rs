//! Reads of bounded size.

use std::io::{self, Read};

use zeroize::Zeroizing;

/// All bytes of `from`, which may be a secret; `None` if there are more than `max`. The buffer
/// never grows, so no freed memory holds a copy.
pub(crate) fn read(from: impl Read, max: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(max + 1));
    from.take(max as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= max).then_some(bytes))
}
