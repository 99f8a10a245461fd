//! Brings a state directory of an earlier release to the version of this build.
//!
//! `vN` turns a directory of version N into one of version N + 1. It is frozen once a release has
//! shipped version N + 1: it names files, formats and types of its time, and nothing that changes
//! later. Each migration is a list of [`Step`]s, made from what the directory holds. A step happens
//! whole or not at all, and after any of them the directory opens again: what was done is not in
//! the next list, and the last step alone makes the version rise. Every file is read before the
//! first step, so that a damaged directory is left as it is.

use std::path::{Path, PathBuf};

use rustbalance_gossip::id::ClusterId;
use tracing::info;

use super::error::StoreError;
use super::file::{self, Payload, Whole};
use super::kind::{Kind, VERSION};
use super::version;

mod v1;

/// One change of a directory, whole or not at all.
pub(super) enum Step {
    /// Makes a folder, 0700. It may be there.
    Folder(PathBuf),
    /// Replaces the file at `path`, or makes it.
    Replace {
        /// The file.
        path: PathBuf,
        /// All of its new content.
        bytes: Payload,
    },
    /// Makes a key file at `path`, and fails if another key is there.
    Create {
        /// The file.
        path: PathBuf,
        /// All of its content.
        bytes: Payload,
    },
    /// Moves a file or a folder to a place where nothing is.
    Move {
        /// Where it is.
        from: PathBuf,
        /// Where it will be.
        to: PathBuf,
    },
    /// Removes a file that another has replaced.
    Remove(PathBuf),
}

impl Step {
    /// Makes the change, which is on disk when this returns.
    pub(super) fn take(&self) -> Result<(), StoreError> {
        match self {
            Self::Folder(path) => file::make_dir(path).map(|_| ()),
            Self::Replace { path, bytes } => file::replace(path, bytes),
            Self::Create { path, bytes } => file::create(path, bytes),
            Self::Move { from, to } => file::rename(from, to),
            Self::Remove(path) => file::remove(path),
        }
    }
}

/// Migrates the directory, if it is of an earlier version. The caller holds the lock.
pub(super) fn run(dir: &Path) -> Result<(), StoreError> {
    let from = version::of(dir)?;
    for version in from..VERSION {
        for step in steps(dir, version)? {
            step.take()?;
        }
    }
    if from < VERSION {
        info!(from, to = VERSION, dir = %dir.display(), "the state directory was migrated to the version of this release");
    }
    Ok(())
}

/// What is left to do to bring a directory of this version to the next.
pub(super) fn steps(dir: &Path, version: u32) -> Result<Vec<Step>, StoreError> {
    let Some(cluster) = cluster_of(dir)? else { return Ok(Vec::new()) };
    let mut steps = match version {
        1 => v1::steps(dir, cluster)?,
        _ => Vec::new(),
    };
    let path = dir.join(Kind::Version.name());
    steps.push(Step::Replace { path, bytes: version::encode(version + 1, cluster) });
    Ok(steps)
}

/// The cluster that a directory belongs to, whole or in the making; `None` if the files that tell
/// are not there.
fn cluster_of(dir: &Path) -> Result<Option<ClusterId>, StoreError> {
    for kind in [Kind::MasterPub, Kind::Pending] {
        let path = dir.join(kind.name());
        if let Some(bytes) = file::read_bytes(&path, kind)? {
            let whole = Whole::read(&bytes).map_err(|damage| StoreError::Damaged { path, kind, damage })?;
            return Ok(Some(whole.owner.into()));
        }
    }
    Ok(None)
}
