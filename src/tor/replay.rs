//! Introductions seen before.
//!
//! A relay (or whoever watches it) can send the same INTRODUCE2 cell again and make us build a
//! circuit for it each time. Each point therefore remembers a hash of every cell it has answered,
//! in memory and in a file that lives as long as the point's keys do, so that a restart forgets
//! nothing. What is remembered is bounded: full, the older half goes, so that a flood makes a point
//! forget, and never deaf.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::hash::{Label, labelled};

use crate::keys::IntroPointSecrets;

/// Bytes of hash kept per introduction: a collision would only lose one client's first try.
const ENTRY: usize = 16;
/// Most introductions remembered at one point: twice as many as a point sees before another takes its place. What a
/// hostile relay makes us keep, in memory and on disk, ends there.
const MAX_ENTRIES: usize = 1 << 16;
/// What is forgotten at once.
const HALF: usize = MAX_ENTRIES / 2;

/// What was seen at one introduction point.
pub struct ReplayLog {
    inner: Mutex<Seen>,
}

type Entry = [u8; ENTRY];

struct Seen {
    /// At most half of all: the older one of two, whole, or nothing yet.
    older: HashSet<Entry>,
    /// The newer one, in which there is always room for one more.
    newer: HashSet<Entry>,
    file: Option<(PathBuf, File)>,
}

impl Seen {
    fn contains(&self, entry: &Entry) -> bool {
        self.newer.contains(entry) || self.older.contains(entry)
    }

    /// Adds one that is not there.
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

/// Replaces the file by one with these alone, whole or not at all.
fn rewritten(path: &Path, entries: &HashSet<Entry>) -> io::Result<File> {
    let bytes: Vec<u8> = entries.iter().flatten().copied().collect();
    // What a crash leaves under this prefix, the store removes.
    let mut new = tempfile::Builder::new().prefix(".new-").tempfile_in(path.parent().unwrap_or(Path::new(".")))?;
    new.write_all(&bytes)?;
    new.persist(path)?;
    open(path)
}

/// Opens the file to read all and to add to its end; made (0600) if missing.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

impl ReplayLog {
    /// One that lives in memory alone.
    pub fn ephemeral() -> Self {
        Self { inner: Mutex::new(Seen { older: HashSet::new(), newer: HashSet::new(), file: None }) }
    }

    /// The one in this file, made (0600) if missing. An entry cut short by a crash is dropped.
    /// Where the disk refuses writes, what is seen from now on is remembered in memory alone: that
    /// is no reason to turn clients away.
    ///
    /// # Errors
    /// If what is there cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (mut source, file) = match open(path) {
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
        let entries = bytes[..whole].as_chunks::<ENTRY>().0;
        // Whole halves first: the last of them is the older one, what follows is the newer one.
        let (halves, newer) = entries.as_chunks::<HALF>();
        let older = halves.last().map(|half| half.iter().copied().collect()).unwrap_or_default();
        let newer = newer.iter().copied().collect();
        Ok(Self { inner: Mutex::new(Seen { older, newer, file: file.map(|file| (path.to_owned(), file)) }) })
    }

    /// Whether this encrypted body of an INTRODUCE2 cell is remembered.
    pub fn has_seen(&self, body: &[u8]) -> bool {
        self.seen().contains(&entry(body))
    }

    /// Notes the encrypted body of an INTRODUCE2 cell; `Ok(false)` if it is remembered already.
    ///
    /// # Errors
    /// If it could not be written down. It is remembered in memory all the same.
    pub fn is_new(&self, body: &[u8]) -> io::Result<bool> {
        let entry = entry(body);
        let mut seen = self.seen();
        if seen.contains(&entry) {
            return Ok(false);
        }
        seen.add(entry).map(|()| true)
    }

    /// How many introductions it remembers.
    pub fn len(&self) -> usize {
        let seen = self.seen();
        seen.older.len() + seen.newer.len()
    }

    /// True if it remembers none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.inner.lock()
    }
}

/// What is kept of one cell.
fn entry(body: &[u8]) -> Entry {
    let digest = labelled(Label::Introduction, &[body]);
    let mut entry = [0; ENTRY];
    entry.copy_from_slice(&digest[..ENTRY]);
    entry
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
    fn a_flood_makes_it_forget_the_oldest_and_never_deaf() {
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
