//! Errors of the state directory, each with a way out. An operation that fails with one of them has
//! not changed an existing file, and no error contains a byte of a file's payload.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustbalance_gossip::id::{ClusterId, OnionAddress};

use super::access::Exposed;
use super::kind::{Kind, VERSION};

/// Why the state directory could not be used. Nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory holds no node.
    #[error("{} holds no node yet: make one with `rustbalance init` or `rustbalance join <master.onion>`", .0.display())]
    NotFound(PathBuf),
    /// A later release has migrated the directory.
    #[error(
        "{} says that the state directory is of version {found}, and this build knows none above {VERSION}; nothing \
         was changed. Install {}, or put back a copy of the directory from before the upgrade",
        path.display(), release_or_newer(release.as_deref())
    )]
    Newer {
        /// The file that shows the later version.
        path: PathBuf,
        /// The version of the directory.
        found: u32,
        /// The release that migrated the directory to this version; `None` if unknown.
        release: Option<String>,
    },
    /// A new node was to be created in a directory that holds one.
    #[error(
        "{} already holds a node of {cluster}, and existing keys are never overwritten: \
         start it with `rustbalance run`, or choose another directory with --dir",
        dir.display()
    )]
    Exists {
        /// The state directory.
        dir: PathBuf,
        /// The cluster of the node in it.
        cluster: ClusterId,
    },
    /// An `init` or `join` was interrupted.
    #[error("{}: {doing} was interrupted: finish it with `rustbalance {command}`", dir.display())]
    Unfinished {
        /// The state directory.
        dir: PathBuf,
        /// The interrupted command, for the message: `an init` or `a join`.
        doing: &'static str,
        /// The arguments of `rustbalance` that finish it.
        command: String,
    },
    /// An interrupted `init` or `join` of another cluster left a key of a service.
    #[error(
        "{} holds a secret key of {cluster} from {doing} that was interrupted, and keys are never removed: \
         finish it with `rustbalance {command}`, or choose another directory with --dir",
        dir.display()
    )]
    KeyInTheWay {
        /// The state directory.
        dir: PathBuf,
        /// The cluster that the key belongs to.
        cluster: ClusterId,
        /// The interrupted command, for the message: `an init` or `a join`.
        doing: &'static str,
        /// The arguments of `rustbalance` that finish it.
        command: String,
    },
    /// A node was to be restored to a directory that is not empty.
    #[error(
        "{} holds {found:?} already, and a node is restored to an empty directory only: move that directory away, or \
         choose another one with --dir",
        dir.display()
    )]
    NotEmpty {
        /// The state directory.
        dir: PathBuf,
        /// The name of something in it.
        found: OsString,
    },
    /// Another process has locked the directory.
    #[error(
        "{} is in use by a running rustbalance{}: ask it with `rustbalance --dir {0} status`, or stop it first",
        dir.display(), process.map(|id| format!(" (process {id})")).unwrap_or_default()
    )]
    Locked {
        /// The state directory.
        dir: PathBuf,
        /// The other process's ID; `None` if unknown.
        process: Option<u32>,
    },
    /// Other users own, may read or may write files that must be private.
    #[error("{0}")]
    Exposed(Box<Exposed>),
    /// A path is not a regular file, or not a directory; it may be a symbolic link.
    #[error("{} is not a {want}: move it away", path.display())]
    NotPlain {
        /// The path that must be moved away.
        path: PathBuf,
        /// The expected type: `file` or `directory`.
        want: &'static str,
    },
    /// A file is not what its kind requires.
    #[error("{}: {damage}; nothing was overwritten. {}", path.display(), advice(*kind, damage))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The expected kind of file.
        kind: Kind,
        /// The damage.
        damage: Damage,
    },
    /// A required file is missing.
    #[error("{} is missing; nothing was overwritten. {}", path.display(), kind.row().advice)]
    Missing {
        /// The file.
        path: PathBuf,
        /// Its kind.
        kind: Kind,
    },
    /// A worker's directory holds this file, which only publishers may hold.
    #[error("{} is here although this node is a worker, which must not hold it: move it to a safe place", .0.display())]
    NotForWorkers(PathBuf),
    /// A key was to be written to a file that holds a different one.
    #[error("{} holds another key, and existing keys are never overwritten: choose another directory with --dir", .0.display())]
    KeyExists(PathBuf),
    /// A key was to be written to a new folder, and something of that name exists.
    #[error("{} exists already, and keys are never overwritten: move it away, or choose another directory with --out", .0.display())]
    Taken(PathBuf),
    /// The file system is full.
    #[error("no space left to write {}: free some and try again; what was there before is intact", .0.display())]
    Full(PathBuf),
    /// The operating system reported an error.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// The failed operation, as a verb for the message.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The caller tried to lower a number that may only rise, which is a bug.
    #[error("{what} would fall from {stored} to {given}")]
    Falls {
        /// The number's name, for the message.
        what: &'static str,
        /// The stored value.
        stored: u64,
        /// The value given.
        given: u64,
    },
    /// A file would exceed its bound.
    #[error("{what}: {given} bytes, at most {max} are kept")]
    TooLarge {
        /// The name of the file's kind.
        what: &'static str,
        /// The number of bytes given.
        given: usize,
        /// The most that are allowed.
        max: usize,
    },
    /// A list would exceed its bound.
    #[error("{what}: {given} entries, at most {max} are kept")]
    TooMany {
        /// The name of the list, for the message.
        what: &'static str,
        /// The number of entries given.
        given: usize,
        /// The most that are allowed.
        max: usize,
    },
    /// No introduction point with this nonce is stored.
    #[error("no introduction point with nonce {0} is stored")]
    NoIntroPoint(String),
    /// A value cannot be encoded, which is a bug in the caller.
    #[error("cannot store {what}: {why}")]
    Invalid {
        /// The value's name, for the message.
        what: &'static str,
        /// The reason.
        why: String,
    },
}

impl StoreError {
    /// True if the error lasts until the operator fixes the directory or its permissions. A full
    /// disk, a lock of another process and most errors of the operating system may pass.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Full(_) | Self::Locked { .. } => false,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            _ => true,
        }
    }
}

/// The damage to a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file is empty.
    #[error("is empty")]
    Empty,
    /// The first line is not a valid header.
    #[error("is not a file of rustbalance, or its first line is damaged")]
    Header,
    /// A state file of another kind, which has this name.
    #[error("is a {0} file, not the one expected under this name")]
    Kind(String),
    /// The file was written by a later release.
    #[error("is in format {format}, and this build reads none above {newest}")]
    Newer {
        /// The format number: the version of the directory that introduced the format.
        format: u32,
        /// The newest format of its kind that this build reads.
        newest: u32,
    },
    /// The file has an old format although the directory has been migrated.
    #[error("is in format {format}, and this build reads format {newest}")]
    Older {
        /// The format number: the version of the directory that introduced the format.
        format: u32,
        /// The format that this build reads.
        newest: u32,
    },
    /// The file is shorter than its header says.
    #[error("is cut short ({have} of {want} bytes)")]
    Short {
        /// Payload bytes present.
        have: usize,
        /// Payload bytes that the header announces.
        want: usize,
    },
    /// The file is longer than its header says, or than its kind allows.
    #[error("is too long ({have} bytes, {want} expected)")]
    Long {
        /// Bytes present.
        have: usize,
        /// Bytes expected, or the most that are allowed.
        want: usize,
    },
    /// The checksum does not match the content.
    #[error("is damaged: its checksum does not match")]
    Checksum,
    /// The file belongs to this other cluster or service.
    #[error("belongs to another address, {0}")]
    Owner(OnionAddress),
    /// The checksum matches, but the content is not valid, for this reason.
    #[error("cannot be used: {0}")]
    Content(String),
}

impl StoreError {
    /// An error of the operating system while doing `action` to `path`.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(path.to_owned()),
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// A file whose checksum matches and whose content is not valid.
    pub(super) fn content(path: &Path, kind: Kind, why: impl ToString) -> Self {
        Self::Damaged { path: path.to_owned(), kind, damage: Damage::Content(why.to_string()) }
    }
}

/// The release to install for a directory that a later release has migrated.
fn release_or_newer(release: Option<&str>) -> String {
    match release {
        Some(release) => format!("rustbalance {release} or newer"),
        None => "the release of rustbalance that wrote it, or a newer one".into(),
    }
}

/// Advice on an error of the operating system; empty if there is none.
fn hint(source: &io::Error) -> &'static str {
    use rustix::io::Errno;
    match Errno::from_io_error(source) {
        Some(Errno::ROFS) => {
            "; the disk was mounted read-only, perhaps after an error: look at `dmesg`, and remount it"
        }
        Some(Errno::IO) => "; the disk is failing: look at `dmesg`",
        Some(Errno::ACCESS | Errno::PERM) => "; the user that rustbalance runs as must be able to write there",
        _ => "",
    }
}

/// Advice on a damaged file.
fn advice(kind: Kind, damage: &Damage) -> &'static str {
    match damage {
        Damage::Newer { .. } => "Use the rustbalance that wrote it, or a newer one.",
        Damage::Older { .. } => "Stop the node: `rustbalance run` migrates the file when it starts.",
        Damage::Owner(_) | Damage::Kind(_) => "Put the right file back from a backup of this directory.",
        _ => kind.row().advice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_its_own_error() {
        let error = StoreError::io("write", Path::new("/x/term"), io::Error::from_raw_os_error(28));
        assert_eq!(
            error.to_string(),
            "no space left to write /x/term: free some and try again; what was there before is intact"
        );
    }
}
