//! What this node says of itself: each word signed, with a sequence number above all before it.

use crate::id::NodeId;
use crate::signed::{Sign, Statement, Verified};

/// The node's voice.
pub(super) struct Voice {
    key: Box<dyn Sign + Send + Sync>,
    node: NodeId,
    next: u64,
}

/// Highest sequence number of our own that is believed when it comes back from elsewhere.
const MAX_SEQ: u64 = 1 << 62;

impl Voice {
    /// Speaks with the sequence numbers of the `boot`th start.
    pub(super) fn new(key: Box<dyn Sign + Send + Sync>, boot: u64) -> Self {
        let node = NodeId::from_public_key(key.public_key());
        Self { key, node, next: boot.min(MAX_SEQ >> 32) << 32 | 1 }
    }

    /// Signs what `word` makes of a new sequence number. `None` only if it cannot be encoded, which no word of ours
    /// within its bounds is.
    pub(super) fn say<T: Statement>(&mut self, word: impl FnOnce(u64) -> T) -> Option<(Verified<T>, Vec<u8>)> {
        let seq = self.next;
        self.next += 1;
        let signed = Verified::sign(word(seq), &*self.key).and_then(|word| Ok((word.to_bytes()?, word)));
        match signed {
            Ok((bytes, word)) => Some((word, bytes)),
            Err(error) => {
                tracing::error!(node = %self.node, %error, "cannot encode a record of our own");
                None
            }
        }
    }

    /// A word of ours with this sequence number is out there. True if it was not said by this process: then the disk
    /// is older than what we said before, or another node has our key. All is said anew above it.
    pub(super) fn heard(&mut self, seq: u64) -> bool {
        let ahead = seq >= self.next && seq < MAX_SEQ;
        if ahead {
            self.next = seq + 1;
        }
        ahead
    }
}
