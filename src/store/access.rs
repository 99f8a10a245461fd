//! Checks that only this user owns, reads and writes the files of a state directory. All files,
//! Arti's too, are checked before any is read, so that one error lists everything that is wrong and
//! one command fixes it.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::kind::{Kind, Place};
use super::{client_files, intro, lock, service};
use crate::shell;

/// Most paths that an error message lists; it counts the others.
const SHOWN: usize = 3;
/// Arti's directory, and the directories that Arti requires to be private to its user. Deeper down,
/// Arti refuses only what other users may write.
const ARTI: &str = client_files::FOLDER;
/// File name extension of Arti's lock files. Arti creates them empty, with the permissions that the
/// umask leaves. Arti itself decides whether a group may write them, because it knows which group
/// is the user's own.
const ARTI_LOCK: &str = "lock";
/// Deepest level below the state directory that is checked; Arti's directories are the deepest.
const DEEPEST: usize = 8;
/// The set-group-ID bit: new files in such a directory get the directory's group.
const SET_GROUP_ID: u32 = 0o2000;

/// Files that other users own, may read or may write, although they must be private.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    /// The path to give to the commands that fix the permissions.
    pub(super) root: PathBuf,
    /// The effective user ID of this process.
    pub(super) me: u32,
    /// Paths that other users own, with the owner's user ID.
    pub(super) foreign: Vec<(PathBuf, u32)>,
    /// Paths that other users may access, with their permission bits.
    pub(super) open: Vec<(PathBuf, u32)>,
    /// True if a directory in `open` has the set-group-ID bit, which Kubernetes' `fsGroup` sets at
    /// each mount.
    pub(super) has_set_group_id: bool,
}

impl Exposed {
    fn none(root: &Path) -> Self {
        let root = root.to_owned();
        Self { root, me: pwd_grp::geteuid(), foreign: Vec::new(), open: Vec::new(), has_set_group_id: false }
    }

    /// Checks one file or directory: its owner must be one of `owners`, and it must have none of
    /// the `forbidden` permission bits.
    fn look(&mut self, path: &Path, metadata: &Metadata, forbidden: u32, owners: &[u32]) {
        if !owners.contains(&metadata.uid()) {
            self.foreign.push((path.to_owned(), metadata.uid()));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & forbidden != 0 {
            self.has_set_group_id |= metadata.is_dir() && mode & SET_GROUP_ID != 0;
            self.open.push((path.to_owned(), mode));
        }
    }

    fn verdict(self) -> Result<(), StoreError> {
        if self.foreign.is_empty() && self.open.is_empty() { Ok(()) } else { Err(StoreError::Exposed(Box::new(self))) }
    }
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = shell::path(&self.root);
        if !self.foreign.is_empty() {
            let owner = |(path, owner): &(PathBuf, u32)| format!("{} of user {owner}", path.display());
            let (me, list) = (self.me, listed(&self.foreign, owner));
            write!(
                f,
                "rustbalance runs as user {me}, but other users own {list}: run it as that user, or fix all with \
                 `chown -R {me} {root}`"
            )?;
        }
        if !self.open.is_empty() {
            let and = if self.foreign.is_empty() { "" } else { "; " };
            let list = listed(&self.open, |(path, mode)| format!("{} (mode {mode:04o})", path.display()));
            write!(f, "{and}accessible to other users: {list}: fix all with `chmod -R go= {root}`")?;
        }
        if self.has_set_group_id {
            f.write_str(
                ". New files in a directory get its group, as Kubernetes' `fsGroup` sets it up at each mount: remove \
                 `fsGroup` from the pod's security context, and change the volume's owner to the pod's user once",
            )?;
        }
        Ok(())
    }
}

/// The first [`SHOWN`] entries as text, and the number of the others.
fn listed<T>(all: &[T], show: impl Fn(&T) -> String) -> String {
    let shown = all.iter().take(SHOWN).map(show).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Checks owner and permissions of all files of the node in `dir`, if that exists: those that this
/// build writes, and Arti's. The operator's own files (such as the configuration) may have any
/// owner and permissions.
pub(super) fn check_all(dir: &Path) -> Result<(), StoreError> {
    let mut exposed = Exposed::none(dir);
    // In a version 1 directory the last two are directly in the state directory.
    let names = Kind::at(Place::Directory).map(Kind::name);
    let names = names.chain([lock::NAME, service::FOLDER, ARTI, intro::FOLDER, "master.key"]);
    for path in std::iter::once(dir.to_owned()).chain(names.map(|name| dir.join(name))) {
        walk(&mut exposed, &path, path == dir, 0)?;
    }
    exposed.verdict()
}

/// Whether this is Arti's directory, or one of those that Arti requires to be private: of the first
/// client (`arti/state`), or of a later one (`arti/1`, `arti/1/state`).
fn is_private(below: &Path) -> bool {
    let parts: Vec<_> = below.iter().skip(1).filter_map(|part| part.to_str()).collect();
    let of_client = |name: &str| client_files::OF_CLIENT.contains(&name);
    let is_number = |name: &str| name.parse::<u32>().is_ok();
    match parts[..] {
        [] => true,
        [name] => of_client(name) || is_number(name),
        [number, name] => is_number(number) && of_client(name),
        _ => false,
    }
}

/// Checks a file, or a directory and, unless `alone`, everything in it.
fn walk(exposed: &mut Exposed, path: &Path, alone: bool, depth: usize) -> Result<(), StoreError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::io("read", path, error)),
    };
    // Anything else, such as a link, is refused when it is read, by the store or by Arti.
    if !metadata.is_dir() && !metadata.is_file() {
        return Ok(());
    }
    let below = path.strip_prefix(&exposed.root).unwrap_or(path);
    let of_arti = below.starts_with(ARTI) && !is_private(below);
    let me = exposed.me;
    let empty_lock =
        metadata.is_file() && metadata.len() == 0 && path.extension().is_some_and(|ending| ending == ARTI_LOCK);
    match of_arti {
        true => exposed.look(path, &metadata, if empty_lock { 0 } else { 0o022 }, &[me, 0]),
        false => exposed.look(path, &metadata, 0o077, &[me]),
    }
    if !metadata.is_dir() || alone || depth >= DEEPEST {
        return Ok(());
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        // The directory of another user, which the error lists already.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && metadata.uid() != me => return Ok(()),
        Err(error) => return Err(StoreError::io("read", path, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| StoreError::io("read", path, error))?;
        walk(exposed, &entry.path(), false, depth + 1)?;
    }
    Ok(())
}

/// Refuses a path that is not a regular file (or a directory), and one that other users own, may
/// read or may write.
pub(super) fn check_one(path: &Path, metadata: &Metadata, directory: bool) -> Result<(), StoreError> {
    check_one_of(path, metadata, directory, pwd_grp::geteuid())
}

/// [`check_one`] where the only owner must be the user `owner`.
pub(super) fn check_one_of(path: &Path, metadata: &Metadata, directory: bool, owner: u32) -> Result<(), StoreError> {
    if directory && !metadata.is_dir() {
        return Err(StoreError::NotPlain { path: path.to_owned(), want: "directory" });
    }
    if !directory && !metadata.is_file() {
        return Err(StoreError::NotPlain { path: path.to_owned(), want: "file" });
    }
    let mut exposed = Exposed { me: owner, ..Exposed::none(path) };
    exposed.look(path, metadata, 0o077, &[owner]);
    exposed.verdict()
}
