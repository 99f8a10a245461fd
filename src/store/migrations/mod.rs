//! Migrates a state directory of an earlier release to the version of this build.
//!
//! `vN` migrates a directory from version N to version N + 1. Once a release has shipped version
//! N + 1, `vN` is frozen: it names files, formats and types of its time, and nothing that changes
//! later.
//!
//! A migration is a list of atomic [`Step`]s, computed from the files in the directory. After a
//! crash between two steps the next start continues: the steps already done are not in the new
//! list, and only the last step raises the version. All files are read before the first step, so
//! that a damaged directory stays as it is.

use std::path::{Path, PathBuf};

use rustbalance_gossip::id::ClusterId;
use tracing::info;

use super::error::StoreError;
use super::file::{self, Payload, Whole};
use super::kind::{Kind, VERSION};
use super::version;

mod v1;

/// One atomic change of a directory.
pub(super) enum Step {
    /// Creates a folder, 0700, unless it exists.
    Folder(PathBuf),
    /// Writes the file at `path`, replacing an existing one.
    Replace {
        /// The file.
        path: PathBuf,
        /// Its whole new content.
        bytes: Payload,
    },
    /// Creates a key file at `path`; fails if another key is there.
    Create {
        /// The file.
        path: PathBuf,
        /// Its whole content.
        bytes: Payload,
    },
    /// Moves a file or a folder to a path where nothing exists.
    Move {
        /// The old path.
        from: PathBuf,
        /// The new path.
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
        info!(
            name: "state_migrated",
            from, to = VERSION, dir = %dir.display(),
            "the state directory was migrated to the version of this release"
        );
    }
    Ok(())
}

/// The steps that remain to migrate a directory of this version to the next.
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

/// The cluster that a directory belongs to, complete or not; `None` if neither of the files that
/// name it exists.
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
