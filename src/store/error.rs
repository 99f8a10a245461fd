//! What can be wrong with a state directory, each with its way out. No error here has changed an existing file, and
//! none carries a byte of a file's payload.

use std::io;
use std::path::{Path, PathBuf};

use rustbalance_gossip::id::{ClusterId, OnionAddress};

use super::access::Exposed;
use super::kind::{Kind, VERSION};

/// Why the state directory could not be used. Nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is nothing in the directory.
    #[error("{} holds no node yet: make one with `rustbalance init` or `rustbalance join <master.onion>`", .0.display())]
    NotFound(PathBuf),
    /// A later release has migrated the directory.
    #[error(
        "{} says that the state directory is of version {found}, and this build knows none above {VERSION}; nothing \
         was changed. Install {}, or put back a copy of the directory from before the upgrade",
        path.display(), release_or_newer(release.as_deref())
    )]
    Newer {
        /// The file that says so.
        path: PathBuf,
        /// The version of the directory.
        found: u32,
        /// The release that brought the directory to this version, as far as it is known.
        release: Option<String>,
    },
    /// There is a node in the directory and a new one was to be made.
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
        /// What was interrupted.
        doing: &'static str,
        /// The command line that goes on with it.
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
        /// Whose key it is.
        cluster: ClusterId,
        /// What was interrupted.
        doing: &'static str,
        /// The command line that goes on with it.
        command: String,
    },
    /// Another process has it.
    #[error(
        "{} is in use by a running rustbalance{}: ask it with `rustbalance --dir {0} status`, or stop it first",
        dir.display(), process.map(|id| format!(" (process {id})")).unwrap_or_default()
    )]
    Locked {
        /// The state directory.
        dir: PathBuf,
        /// Its process id, as far as it is known.
        process: Option<u32>,
    },
    /// Other users own, may read or may write what they must not.
    #[error("{0}")]
    Exposed(Box<Exposed>),
    /// A directory where a file should be, a link, or the other way round.
    #[error("{} is no {want}: move it away", path.display())]
    NotPlain {
        /// What is in the way.
        path: PathBuf,
        /// "file" or "directory".
        want: &'static str,
    },
    /// It cannot be read for what it should be.
    #[error("{}: {damage}; nothing was overwritten. {}", path.display(), way_out(*kind, damage))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should be.
        kind: Kind,
        /// What is wrong.
        damage: Damage,
    },
    /// It must be there and is not.
    #[error("{} is missing; nothing was overwritten. {}", path.display(), kind.row().way_out)]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it should be.
        kind: Kind,
    },
    /// A worker's directory holds what only publishers may hold.
    #[error("{} is here although this node is a worker, which must not hold it: move it to a safe place", .0.display())]
    NotForWorkers(PathBuf),
    /// A key was to be written where another one is.
    #[error("{} holds another key, and existing keys are never overwritten: choose another directory with --dir", .0.display())]
    KeyExists(PathBuf),
    /// The file system is full.
    #[error("no space left to write {}: free some and try again; what was there before is intact", .0.display())]
    Full(PathBuf),
    /// The operating system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A number that only rises was to be lowered: a fault of the caller.
    #[error("{what} would fall from {stored} to {given}")]
    Falls {
        /// Which.
        what: &'static str,
        /// What is stored.
        stored: u64,
        /// What was given.
        given: u64,
    },
    /// A list would become longer than its bound.
    #[error("{what}: {given} entries, at most {max} are kept")]
    TooMany {
        /// Which.
        what: &'static str,
        /// How many were given.
        given: usize,
        /// The bound.
        max: usize,
    },
    /// There is no such intro point.
    #[error("no introduction point with nonce {0} is stored")]
    NoIntroPoint(String),
    /// A value that cannot be encoded or that does not verify: a fault of the caller.
    #[error("cannot store {what}: {why}")]
    Invalid {
        /// What.
        what: &'static str,
        /// In words.
        why: String,
    },
}

impl StoreError {
    /// True if it stays so until somebody mends it: what is on disk is wrong, not the disk or the moment.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Full(_) | Self::Locked { .. } => false,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            _ => true,
        }
    }
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// Its first line is not ours.
    #[error("is not a file of rustbalance, or its first line is damaged")]
    Header,
    /// A file of ours, of another kind.
    #[error("is a {0} file, not the one expected under this name")]
    Kind(String),
    /// Written by a later release.
    #[error("is in format {format}, and this build reads none above {newest}")]
    Newer {
        /// The format, by the version of the directory that brought it.
        format: u32,
        /// The newest format of its kind that this build reads.
        newest: u32,
    },
    /// Written by an earlier release, after the directory was migrated.
    #[error("is in format {format}, and this build reads format {newest}")]
    Older {
        /// The format, by the version of the directory that brought it.
        format: u32,
        /// The format that this build reads.
        newest: u32,
    },
    /// Shorter than its header says.
    #[error("is cut short ({have} of {want} bytes)")]
    Short {
        /// Bytes of payload there.
        have: usize,
        /// Bytes of payload its header announces.
        want: usize,
    },
    /// Longer than its header says, or than the bound.
    #[error("is too long ({have} bytes, {want} expected)")]
    Long {
        /// Bytes there.
        have: usize,
        /// Bytes expected.
        want: usize,
    },
    /// Its content is not what was written.
    #[error("is damaged: its checksum does not match")]
    Checksum,
    /// Another cluster's, or another service's.
    #[error("belongs to another address, {0}")]
    Owner(OnionAddress),
    /// It fits its checksum and says what cannot be.
    #[error("cannot be used: {0}")]
    Content(String),
}

impl StoreError {
    /// Of the operating system's error while doing `action` to `path`.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(path.to_owned()),
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// Of a file whose content fits its checksum and cannot be.
    pub(super) fn content(path: &Path, kind: Kind, why: impl ToString) -> Self {
        Self::Damaged { path: path.to_owned(), kind, damage: Damage::Content(why.to_string()) }
    }
}

/// What to install for a directory that a later release has migrated.
fn release_or_newer(release: Option<&str>) -> String {
    match release {
        Some(release) => format!("rustbalance {release} or newer"),
        None => "the release of rustbalance that wrote it, or a newer one".into(),
    }
}

/// What to do about an error of the operating system, where there is something.
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

/// What to do about a damaged file.
fn way_out(kind: Kind, damage: &Damage) -> &'static str {
    match damage {
        Damage::Newer { .. } => "Use the rustbalance that wrote it, or a newer one.",
        Damage::Older { .. } => "Stop the node: `rustbalance run` migrates the file when it starts.",
        Damage::Owner(_) | Damage::Kind(_) => "Put the right file back from a backup of this directory.",
        _ => kind.row().way_out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart() {
        let error = StoreError::io("write", Path::new("/x/term"), io::Error::from_raw_os_error(28));
        assert_eq!(
            error.to_string(),
            "no space left to write /x/term: free some and try again; what was there before is intact"
        );
    }
}
