//! The replay log of an introduction point.
//!
//! A relay (or an attacker who observes it) can send the same INTRODUCE2 cell again and make us
//! build a circuit for it each time. Each point therefore remembers a hash of every cell it has
//! decrypted, in memory and in a file that is kept as long as the point's keys, so that a restart
//! forgets nothing. The log is bounded: when it is full, the older half is dropped, so a flood
//! makes the point forget old cells but never makes it refuse new clients.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::hash::{Label, labelled};

use crate::keys::IntroPointSecrets;

/// Bytes of hash kept per introduction. A collision would only lose one client's first attempt.
const ENTRY: usize = 16;
/// Most introductions remembered per point: twice the number after which a point is replaced. This
/// bounds the memory and disk space that a hostile relay can make us use.
const MAX_ENTRIES: usize = 1 << 16;
/// Number of entries that are dropped together.
const HALF: usize = MAX_ENTRIES / 2;

/// The introductions received at one introduction point, as hashes.
pub struct ReplayLog {
    inner: Mutex<Seen>,
}

type Entry = [u8; ENTRY];

struct Seen {
    /// Empty at first, then [`HALF`] entries, all older than those of `newer`.
    older: HashSet<Entry>,
    /// Fewer than [`HALF`] entries.
    newer: HashSet<Entry>,
    /// `None` if the log is in memory only.
    file: Option<(PathBuf, File)>,
}

impl Seen {
    fn contains(&self, entry: &Entry) -> bool {
        self.newer.contains(entry) || self.older.contains(entry)
    }

    /// Adds an entry that is not in the log yet.
    fn add(&mut self, entry: Entry) -> io::Result<()> {
        self.newer.insert(entry);
        let written = match &mut self.file {
            Some((_, file)) => file.write_all(&entry),
            None => Ok(()),
        };
        if self.newer.len() < HALF {
            return written;
        }
        self.older = std::mem::take(&mut self.newer);
        if let Some((path, file)) = &mut self.file {
            *file = rewritten(path, &self.older)?;
        }
        Ok(())
    }
}

/// Replaces the file by one with only these entries, atomically.
fn rewritten(path: &Path, entries: &HashSet<Entry>) -> io::Result<File> {
    let bytes: Vec<u8> = entries.iter().flatten().copied().collect();
    // If a crash leaves a file with this prefix, the store removes it at the next start.
    let mut new = tempfile::Builder::new().prefix(".new-").tempfile_in(path.parent().unwrap_or(Path::new(".")))?;
    new.write_all(&bytes)?;
    new.persist(path)?;
    open(path)
}

/// Opens the file for reading and appending; creates it (mode 0600) if it is missing.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

impl ReplayLog {
    /// A log in memory only.
    pub fn ephemeral() -> Self {
        Self { inner: Mutex::new(Seen { older: HashSet::new(), newer: HashSet::new(), file: None }) }
    }

    /// Reads the log in this file, and creates the file (mode 0600) if it is missing. An entry that
    /// a crash has truncated is dropped. If the file cannot be written, new entries are kept in
    /// memory only: clients are served all the same.
    ///
    /// # Errors
    /// If the file exists and cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (mut source, file) = match open(path) {
            Ok(file) => (file.try_clone()?, Some(file)),
            Err(error) => {
                tracing::warn!(
                    name: "replay_log_open_failed",
                    %error, file = %path.display(),
                    "cannot write to the replay log of an introduction point"
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
        let entries = bytes[..whole].as_chunks::<ENTRY>().0;
        // The last full half is `older`; the rest after it is `newer`.
        let (halves, newer) = entries.as_chunks::<HALF>();
        let older = halves.last().map(|half| half.iter().copied().collect()).unwrap_or_default();
        let newer = newer.iter().copied().collect();
        Ok(Self { inner: Mutex::new(Seen { older, newer, file: file.map(|file| (path.to_owned(), file)) }) })
    }

    /// True if this encrypted body of an INTRODUCE2 cell is in the log.
    pub fn has_seen(&self, body: &[u8]) -> bool {
        self.seen().contains(&entry(body))
    }

    /// Adds the encrypted body of an INTRODUCE2 cell; `Ok(false)` if it is in the log already.
    ///
    /// # Errors
    /// If it cannot be written to disk. It is then in memory all the same.
    pub fn is_new(&self, body: &[u8]) -> io::Result<bool> {
        let entry = entry(body);
        let mut seen = self.seen();
        if seen.contains(&entry) {
            return Ok(false);
        }
        seen.add(entry).map(|()| true)
    }

    /// Number of introductions in the log.
    pub fn len(&self) -> usize {
        let seen = self.seen();
        seen.older.len() + seen.newer.len()
    }

    /// True if the log has no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.inner.lock()
    }
}

/// The hash that is kept of one cell.
fn entry(body: &[u8]) -> Entry {
    let digest = labelled(Label::Introduction, &[body]);
    let mut entry = [0; ENTRY];
    entry.copy_from_slice(&digest[..ENTRY]);
    entry
}

/// The state of an introduction point that must survive a restart, apart from the choice of its
/// relay.
pub struct IntroPointKeys {
    /// The session key and the encryption key.
    pub secrets: IntroPointSecrets,
    /// The introductions received with these keys.
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
    fn a_flood_makes_the_log_forget_the_oldest_and_never_refuse_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replay");
        let log = ReplayLog::open(&path).unwrap();
        let all = MAX_ENTRIES as u64 + 100;
        assert!((0..all).all(|n| log.is_new(&n.to_be_bytes()).unwrap()));
        let remembers = |log: &ReplayLog| {
            assert!((HALF as u64..all).all(|n| log.has_seen(&n.to_be_bytes())), "the newer half is remembered");
            assert!((0..HALF as u64).all(|n| !log.has_seen(&n.to_be_bytes())), "the oldest are forgotten");
            assert_eq!(log.len(), HALF + 100);
        };
        remembers(&log);
        drop(log);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), ((HALF + 100) * ENTRY) as u64);
        remembers(&ReplayLog::open(&path).unwrap());
    }
}
