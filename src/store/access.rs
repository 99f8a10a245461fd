//! Whom the files of a state directory are open to. All of them are looked at before any is read,
//! Arti's too, so that one message names all that has to be mended and one command mends it.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::kind::{Kind, Place};
use super::{intro, lock, service};
use crate::shell;

/// Files named in a message; of the others it says how many.
const SHOWN: usize = 3;
/// Arti's directory, and what in it Arti wants for its user alone. Deeper down it refuses only what
/// others may write.
const ARTI: &str = "arti";
const ARTI_PRIVATE: [&str; 3] = ["arti", "arti/state", "arti/cache"];
/// How the names of Arti's lock files end. Arti makes them with the permissions that the umask
/// leaves, and they are empty: Arti itself judges a group that may write them, because it knows
/// which group is the user's own.
const ARTI_LOCK: &str = "lock";
/// Directories below the state directory that are walked; Arti's are the deepest.
const DEEPEST: usize = 8;
/// The bit of a directory that gives its group to the files made in it.
const SET_GROUP_ID: u32 = 0o2000;

/// Files that others own, may read or may write, although they must not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    /// What the commands that mend it are to be given.
    pub(super) root: PathBuf,
    /// The user that this process runs as.
    pub(super) me: u32,
    /// Those of other users, with their user ids.
    pub(super) foreign: Vec<(PathBuf, u32)>,
    /// Those open to other users, with their permission bits.
    pub(super) open: Vec<(PathBuf, u32)>,
    /// A directory among the latter hands its group down, as Kubernetes' `fsGroup` has it at each
    /// mount.
    pub(super) hands_group_down: bool,
}

impl Exposed {
    fn none(root: &Path) -> Self {
        let root = root.to_owned();
        Self { root, me: pwd_grp::geteuid(), foreign: Vec::new(), open: Vec::new(), hands_group_down: false }
    }

    /// Looks at one file or directory, which must not have any of the `forbidden` permission bits.
    fn look(&mut self, path: &Path, metadata: &Metadata, forbidden: u32, owners: &[u32]) {
        if !owners.contains(&metadata.uid()) {
            self.foreign.push((path.to_owned(), metadata.uid()));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & forbidden != 0 {
            self.hands_group_down |= metadata.is_dir() && mode & SET_GROUP_ID != 0;
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
                "rustbalance runs as user {me}, and other users own {list}: run it as their user, or mend all with \
                 `chown -R {me} {root}`"
            )?;
        }
        if !self.open.is_empty() {
            let and = if self.foreign.is_empty() { "" } else { "; " };
            let list = listed(&self.open, |(path, mode)| format!("{} (mode {mode:04o})", path.display()));
            write!(f, "{and}open to other users: {list}: mend all with `chmod -R go= {root}`")?;
        }
        if self.hands_group_down {
            f.write_str(
                ". A directory hands its group down, as Kubernetes' `fsGroup` sets it at each mount: leave `fsGroup` out \
                 of the pod's security context, and give the volume to the pod's user once",
            )?;
        }
        Ok(())
    }
}

/// The first of them, and how many there are.
fn listed<T>(all: &[T], show: impl Fn(&T) -> String) -> String {
    let shown = all.iter().take(SHOWN).map(show).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Looks at all files of the node in `dir`, if it is there: those that this build keeps, and
/// Arti's. The operator's own (the configuration) may be as the operator likes.
pub(super) fn check_all(dir: &Path) -> Result<(), StoreError> {
    let mut exposed = Exposed::none(dir);
    // The last two are those of version 1, in which they lay here.
    let names = Kind::at(Place::Directory).map(Kind::name);
    let names = names.chain([lock::NAME, service::FOLDER, ARTI, intro::FOLDER, "master.key"]);
    for path in std::iter::once(dir.to_owned()).chain(names.map(|name| dir.join(name))) {
        walk(&mut exposed, &path, path == dir, 0)?;
    }
    exposed.verdict()
}

/// Looks at a file, or at a directory and, unless it is `alone`, what is in it.
fn walk(exposed: &mut Exposed, path: &Path, alone: bool, depth: usize) -> Result<(), StoreError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::io("read", path, error)),
    };
    // What is neither is refused where it is read; Arti refuses it itself.
    if !metadata.is_dir() && !metadata.is_file() {
        return Ok(());
    }
    let below = path.strip_prefix(&exposed.root).unwrap_or(path);
    let of_arti = below.starts_with(ARTI) && !ARTI_PRIVATE.iter().any(|private| below == Path::new(private));
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
        // Another user's, which the message names already.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && metadata.uid() != me => return Ok(()),
        Err(error) => return Err(StoreError::io("read", path, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| StoreError::io("read", path, error))?;
        walk(exposed, &entry.path(), false, depth + 1)?;
    }
    Ok(())
}

/// Refuses a file or directory that others own, may read or may write, and what is no plain file
/// (or directory).
pub(super) fn check_one(path: &Path, metadata: &Metadata, directory: bool) -> Result<(), StoreError> {
    if directory && !metadata.is_dir() {
        return Err(StoreError::NotPlain { path: path.to_owned(), want: "directory" });
    }
    if !directory && !metadata.is_file() {
        return Err(StoreError::NotPlain { path: path.to_owned(), want: "file" });
    }
    let mut exposed = Exposed::none(path);
    exposed.look(path, metadata, 0o077, &[exposed.me]);
    exposed.verdict()
}
