//! Introductions seen before.
//!
//! A relay (or whoever watches it) can send the same INTRODUCE2 cell again and make us build a circuit for it each
//! time. Each point therefore remembers a hash of every cell it has answered, in memory and in a file that lives as
//! long as the point's keys do, so that a restart forgets nothing.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use sha3::{Digest, Sha3_256};

use crate::keys::IntroPointSecrets;

/// Bytes of hash kept per introduction: a collision would only lose one client's first try.
const ENTRY: usize = 16;
/// Most introductions remembered at one point: twice as many as a point sees before another takes its place. What a
/// hostile relay makes us keep, in memory and on disk, ends there.
const MAX_ENTRIES: usize = 1 << 16;

/// What was seen at one introduction point.
pub struct ReplayLog {
    inner: Mutex<Seen>,
}

struct Seen {
    hashes: HashSet<[u8; ENTRY]>,
    file: Option<File>,
}

impl ReplayLog {
    /// One that lives in memory alone.
    pub fn ephemeral() -> Self {
        Self { inner: Mutex::new(Seen { hashes: HashSet::new(), file: None }) }
    }

    /// The one in this file, made (0600) if missing. An entry cut short by a crash is dropped. Where the disk refuses
    /// writes, what is seen from now on is remembered in memory alone: that is no reason to turn clients away.
    ///
    /// # Errors
    /// If what is there cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let writable = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
        let (mut source, file) = match writable {
            Ok(file) => (file.try_clone()?, Some(file)),
            Err(error) => {
                tracing::warn!(
                    %error, file = %path.display(), "cannot write to the replay log of an introduction point"
                );
                match File::open(path) {
                    Ok(file) => (file, None),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::ephemeral()),
                    Err(error) => return Err(error),
                }
            }
        };
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes)?;
        let whole = bytes.len() - bytes.len() % ENTRY;
        if let Some(file) = &file
            && whole != bytes.len()
        {
            file.set_len(whole as u64)?;
        }
        let hashes = bytes[..whole].as_chunks::<ENTRY>().0.iter().copied().collect();
        Ok(Self { inner: Mutex::new(Seen { hashes, file }) })
    }

    /// Notes the encrypted body of an INTRODUCE2 cell; `Ok(false)` if it was seen before, or if the log is full: then
    /// nothing is new. An error means that it could not be written down: it is remembered in memory all the same.
    pub fn is_new(&self, body: &[u8]) -> io::Result<bool> {
        let digest = Sha3_256::new().chain_update(b"rustbalance introduction v1\0").chain_update(body).finalize();
        let mut entry = [0; ENTRY];
        entry.copy_from_slice(&digest[..ENTRY]);
        let mut seen = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if seen.hashes.len() >= MAX_ENTRIES || !seen.hashes.insert(entry) {
            return Ok(false);
        }
        match &mut seen.file {
            Some(file) => file.write_all(&entry).map(|()| true),
            None => Ok(true),
        }
    }

    /// How many introductions it remembers.
    pub fn len(&self) -> usize {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).hashes.len()
    }

    /// True if it remembers none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All that a point is besides its relay: its secrets and what it has seen.
pub struct IntroPointKeys {
    /// The two secrets.
    pub secrets: IntroPointSecrets,
    /// What was seen with them.
    pub replays: std::sync::Arc<ReplayLog>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_is_seen_over_restarts_and_torn_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replay");
        let log = ReplayLog::open(&path).unwrap();
        assert!(log.is_new(b"one").unwrap());
        assert!(!log.is_new(b"one").unwrap());
        drop(log);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&[1, 2, 3]).unwrap();
        let log = ReplayLog::open(&path).unwrap();
        assert!(!log.is_new(b"one").unwrap());
        assert!(log.is_new(b"two").unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 32);
    }

    #[test]
    fn a_flood_fills_it_and_no_more() {
        let log = ReplayLog::ephemeral();
        let answered = (0..MAX_ENTRIES as u64 + 100).filter(|n| log.is_new(&n.to_be_bytes()).unwrap()).count();
        assert_eq!((answered, log.len()), (MAX_ENTRIES, MAX_ENTRIES));
    }
}
