//! Writes a node from its backup into a state directory, and remembers that it was restored.
//!
//! The directory must be empty. As with `init` and `join` (see [`super::draft`]), `pending` is
//! written first and `membership` last. Then everything is read and checked. If anything fails, all
//! that was written is removed again. After a crash, only another `restore` continues.
//!
//! The machine that the backup was made on may still run, and two machines with one key must not.
//! So the directory is marked: the daemon first looks for that machine ([`crate::node`]), and
//! refuses to start if it finds it.

use std::fs;
use std::io;
use std::os::unix::fs::lchown;
use std::path::Path;

use rustbalance_gossip::codec;
use serde::{Deserialize, Serialize};

use super::draft::{Draft, SetupCommand, read_pending};
use super::error::StoreError;
use super::kind::Kind;
use super::snapshot::{StateFile, membership, owner_of, place_of, read_one};
use super::{OwnedFolder, Store, file, invalid, lock, read_payload, service, write};

/// A node that was restored and has not run for long since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredMark {
    /// When the backup was made, in seconds since the Unix epoch.
    pub made: u64,
    /// The operator has said that the machine that the backup was made on is off for good: the node
    /// does not look for it.
    pub forced: bool,
}

/// The content of a backup, as [`restore`] writes it.
#[derive(Debug)]
pub struct RestoredContents<'a> {
    /// The files of the node.
    pub state: &'a [StateFile],
    /// Other files, for the state directory itself: the configuration. Their names must be plain.
    pub others: &'a [StateFile],
    /// Remembered until the node has run for a while.
    pub mark: RestoredMark,
}

/// Makes the node of a backup in `dir`, which must be empty or missing. Returns its open store.
///
/// # Errors
/// [`StoreError::NotEmpty`]; a file is missing, damaged, or of another node; or the directory
/// cannot be written. Nothing stays behind, unless that cannot be removed either.
pub fn restore(dir: &Path, contents: &RestoredContents<'_>) -> Result<Store, StoreError> {
    refuse_occupied(dir)?;
    let (cluster, _) = membership(dir, contents.state)?;
    let mut draft = Draft::open(dir)?;
    draft.begin(SetupCommand::Restore, cluster)?;
    let written = fill(dir, &OwnedFolder::of_cluster(dir, cluster), contents).and_then(|()| draft.check_restored());
    match written {
        Ok(()) => draft.open_restored(),
        Err(error) => {
            let others = contents.others.iter().try_for_each(|other| file::remove(&dir.join(&other.path)));
            let cleared = others.and_then(|()| draft.clear_restored()).and_then(|()| draft.discard());
            if let Err(left) = cleared {
                tracing::warn!(
                    name: "restore_leftover_remove_failed",
                    error = %left, dir = %dir.display(),
                    "cannot remove what an unfinished restore has written"
                );
            }
            Err(error)
        }
    }
}

/// Refuses a directory that holds anything but an interrupted restore.
fn refuse_occupied(dir: &Path) -> Result<(), StoreError> {
    let failed = |error| StoreError::io("read", dir, error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if let Some(pending) = read_pending(dir)? {
        return if pending.is_restore() { Ok(()) } else { Err(pending.unfinished(dir)) };
    }
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        if name != lock::NAME {
            return Err(StoreError::NotEmpty { dir: dir.to_owned(), found: name });
        }
    }
    Ok(())
}

/// Writes all files, the membership last.
fn fill(dir: &Path, home: &OwnedFolder, contents: &RestoredContents<'_>) -> Result<(), StoreError> {
    let mut last = None;
    for StateFile { path, bytes } in contents.state {
        let placed = place_of(path);
        let (kind, service) = placed.ok_or_else(|| invalid("a backup", format!("it contains a file {path:?}")))?;
        if let Some(service) = service {
            service::make(dir, service)?;
        }
        match kind {
            Kind::Membership => last = Some(bytes),
            _ => file::replace(&dir.join(path), bytes)?,
        }
    }
    for StateFile { path, bytes } in contents.others {
        file::replace(&dir.join(path), bytes)?;
    }
    write(home, Kind::Restored, &encode(contents.mark)?)?;
    last.map_or(Ok(()), |bytes| file::replace(&dir.join(Kind::Membership.name()), bytes))
}

fn encode(mark: RestoredMark) -> Result<Vec<u8>, StoreError> {
    codec::encode(&mark).map_err(|error| invalid(Kind::Restored.name(), error))
}

impl Store {
    /// What is remembered of a restore; `None` if there was none, or if the node has run for a
    /// while since.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn restored(&self) -> Result<Option<RestoredMark>, StoreError> {
        let Some(payload) = read_payload(&self.home(), Kind::Restored)? else { return Ok(None) };
        let mark = codec::decode(&payload, Kind::Restored.max_payload());
        mark.map(Some).map_err(|error| self.content(Kind::Restored, error))
    }

    /// Forgets the restore: the node has run for a while.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget_restored(&self) -> Result<(), StoreError> {
        file::remove(&self.path(Kind::Restored))
    }
}

/// Remembers that the machine that the backup was made on is off for good: the node in `dir` starts
/// without looking for it. False if the node is not marked as restored. The daemon must not run, or
/// it has passed that point. Root may call this for the node of another user.
///
/// # Errors
/// The file is damaged, or cannot be read or written.
pub fn force_restored(dir: &Path) -> Result<bool, StoreError> {
    let (kind, path) = (Kind::Restored, dir.join(Kind::Restored.name()));
    let owner = owner_of(dir)?;
    let Some(file) = read_one(dir, &path, kind, owner)? else { return Ok(false) };
    let (cluster, payload) = file::decode_at(&path, kind, &file.bytes)?;
    let mark: RestoredMark =
        codec::decode(payload, kind.max_payload()).map_err(|error| StoreError::content(&path, kind, error))?;
    file::replace(&path, &file::encode(kind, cluster, &encode(RestoredMark { forced: true, ..mark })?))?;
    if owner != pwd_grp::geteuid() {
        // Not through a link: the owner of the directory may have put one there meanwhile.
        lchown(&path, Some(owner), None).map_err(|error| StoreError::io("change the owner of", &path, error))?;
    }
    Ok(true)
}
