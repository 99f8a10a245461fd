//! Reads the files of a node for a backup, whether its daemon runs or not.
//!
//! The daemon replaces each file as a whole, so a file is never read half-written. All files are
//! read until two readings in a row are equal: then they show the node at one moment. Nothing is
//! locked, written or migrated.
//!
//! Root may read the files of another user: then all of them must belong to the owner of the
//! directory. So a backup can be made by root while the daemon runs as a user of its own.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustbalance_gossip::codec;
use rustbalance_gossip::id::{ClusterId, NodeId, ServiceId};
use rustbalance_gossip::record::{Chain, Role};
use zeroize::Zeroizing;

use super::error::StoreError;
use super::kind::{Kind, Place};
use super::{OwnedFolder, file, holds_state, service};

/// Most readings before a snapshot is given up. A reading takes milliseconds, and a quiet node
/// writes a file every few minutes.
const READINGS: usize = 20;
/// The largest state file, in bytes.
pub const MAX_STATE_FILE: usize = 9 << 20;

/// A file of a node.
#[derive(Clone, PartialEq, Eq)]
pub struct StateFile {
    /// Its path in the state directory, with `/` between folders.
    pub path: String,
    /// Its whole content, which may be a key.
    pub bytes: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateFile").field("path", &self.path).field("size", &self.bytes.len()).finish()
    }
}

/// The files of a node at one moment, and which node it is.
#[derive(Debug)]
pub struct Snapshot {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// The files, in the order in which a restore writes them.
    pub files: Vec<StateFile>,
}

/// Reads the files of the node in `dir` that a backup contains.
///
/// # Errors
/// There is no complete node, a file is missing, damaged, of an earlier release or readable by
/// other users, or the files change all the time.
pub fn snapshot(dir: &Path) -> Result<Snapshot, StoreError> {
    if !holds_state(dir) {
        return Err(StoreError::NotFound(dir.to_owned()));
    }
    let mut files = read(dir)?;
    for _ in 0..READINGS {
        let again = read(dir)?;
        if files == again {
            return identify(dir, files);
        }
        files = again;
    }
    Err(StoreError::Invalid { what: "a backup", why: "the files change all the time: try again".into() })
}

/// True if a backup may contain a file of this path, relative to the state directory.
pub fn is_state_path(path: &str) -> bool {
    place_of(path).is_some()
}

/// The kind of a file that a backup may contain, and the service whose folder it is in.
pub(super) fn place_of(path: &str) -> Option<(Kind, Option<ServiceId>)> {
    let kind_at = |place, name: &str| Kind::at(place).find(|kind| kind.is_backed_up() && kind.name() == name);
    match *path.split('/').collect::<Vec<_>>() {
        [name] => Some((kind_at(Place::Directory, name)?, None)),
        [service::FOLDER, label, name] => {
            let service: ServiceId = format!("{label}.onion").parse().ok()?;
            // Only the spelling that the daemon uses.
            let is_canonical = service.to_string().strip_suffix(".onion") == Some(label);
            kind_at(Place::Service, name).filter(|_| is_canonical).map(|kind| (kind, Some(service)))
        }
        _ => None,
    }
}

/// The user whom all files of a node must belong to: the owner of the directory for root, else the
/// user of this process.
pub(super) fn owner_of(dir: &Path) -> Result<u32, StoreError> {
    let me = pwd_grp::geteuid();
    let metadata = fs::symlink_metadata(dir).map_err(|error| StoreError::io("read", dir, error))?;
    Ok(if me == 0 { metadata.uid() } else { me })
}

/// Every file that a backup contains, read once.
fn read(dir: &Path) -> Result<Vec<StateFile>, StoreError> {
    let owner = owner_of(dir)?;
    let mut files = Vec::new();
    for service in service::listed(dir)? {
        let folder = OwnedFolder::of_service(dir, service);
        for kind in Kind::at(Place::Service).filter(|kind| kind.is_backed_up()) {
            files.extend(read_one(dir, &folder.path(kind), kind, owner)?);
        }
    }
    for kind in Kind::at(Place::Directory).filter(|kind| kind.is_backed_up()) {
        files.extend(read_one(dir, &dir.join(kind.name()), kind, owner)?);
    }
    Ok(files)
}

/// A file of this kind, whose checksum matches and which belongs to `owner` alone; `None` if it
/// does not exist.
pub(super) fn read_one(dir: &Path, path: &Path, kind: Kind, owner: u32) -> Result<Option<StateFile>, StoreError> {
    let Some(bytes) = file::read_bytes_of(path, kind, owner)? else { return Ok(None) };
    file::decode_at(path, kind, &bytes)?;
    let below = path.strip_prefix(dir).unwrap_or(path);
    Ok(Some(StateFile { path: below.to_string_lossy().into_owned(), bytes }))
}

/// Finds out which node the files belong to.
fn identify(dir: &Path, files: Vec<StateFile>) -> Result<Snapshot, StoreError> {
    let (cluster, chain) = membership(dir, &files)?;
    let member = chain
        .verify(cluster, 0)
        .map_err(|error| StoreError::content(&dir.join(Kind::Membership.name()), Kind::Membership, error))?;
    Ok(Snapshot { cluster, node: member.node(), role: member.role(), files })
}

/// The cluster and the node's certificates, as the files have them.
pub(super) fn membership(dir: &Path, files: &[StateFile]) -> Result<(ClusterId, Chain), StoreError> {
    let kind = Kind::Membership;
    let path: PathBuf = dir.join(kind.name());
    let file = files.iter().find(|file| file.path == kind.name());
    let file = file.ok_or_else(|| StoreError::Missing { path: path.clone(), kind })?;
    let (owner, payload) = file::decode_at(&path, kind, &file.bytes)?;
    let chain = codec::decode(payload, kind.max_payload()).map_err(|error| StoreError::content(&path, kind, error))?;
    Ok((owner.into(), chain))
}
