//! Backups of a node: one file with its keys, cluster state and configuration, encrypted with a
//! passphrase.
//!
//! The file is a tar archive in the age format (<https://age-encryption.org/v1>), so that other
//! tools can open it, too: `age -d FILE | tar x`. `archive` builds and reads the archive, `sealing`
//! encrypts and decrypts. The archive begins with `backup.json`, which says what it is
//! ([`Summary`]); then come the files of the state directory under their own names.
//!
//! A backup has no file of Arti: a restored node chooses guards again, and makes new introduction
//! points with new keys. DECISIONS, "A node that goes back in time", says why that is safe.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustbalance_gossip::id::{ClusterId, NodeId};
use rustbalance_gossip::record::Role;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::bounded;
use crate::config::{ARTI_FILE_NAME, FILE_NAME};
use crate::new_file::{self, Existing};
use crate::store::{self, RestoredContents, RestoredMark, StateFile, Store, StoreError};

pub use passphrase::{Passphrase, WeakPassphrase};
pub use sealing::{DEFAULT_WORK, WORK};

mod archive;
mod passphrase;
mod sealing;
#[cfg(test)]
mod tests;

/// The largest backup, in bytes, before and after it is encrypted. The state files of one node are
/// smaller together than this.
pub const MAX_BACKUP: usize = 32 << 20;
/// The largest configuration file, in bytes.
const MAX_CONFIG: usize = 1 << 20;
/// The version of the archive's layout.
const LAYOUT: u32 = 1;

/// Why a backup could not be made, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The state directory cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The backup cannot be written.
    #[error("cannot write {}{}: {source}", path.display(), never_overwritten(source))]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file is too large to be a backup, or part of one.
    #[error("{} has more than {max} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that are allowed.
        max: usize,
    },
    /// The file is not in the age format, or damaged before its content begins.
    #[error("the file is not a backup, or it is damaged: it does not begin like a file of age")]
    NotAge,
    /// The file is encrypted for a key instead of a passphrase.
    #[error("the file is encrypted for a key, and a backup for a passphrase: decrypt it with age")]
    NotPassphrase,
    /// The passphrase is wrong.
    #[error("wrong passphrase, or the beginning of the file is damaged")]
    WrongPassphrase,
    /// Decrypting would take too much time and memory.
    #[error(
        "decrypting the file would take 2^{required} steps, and at most 2^{} are accepted: it was not made by \
         `rustbalance backup`; decrypt it with age if you trust it",
        WORK.end()
    )]
    TooMuchWork {
        /// The work factor in the file, as a power of two.
        required: u8,
    },
    /// The encrypted content is cut short or was changed.
    #[error("the file is damaged: it is cut short, or bytes in it were changed")]
    Damaged,
    /// The file decrypts, and its content is not a backup.
    #[error("the file decrypts, but its content is not a backup of a node: {0}")]
    Content(String),
    /// A later release has made the backup.
    #[error(
        "rustbalance {release} has made the backup, in a layout that this version does not know: restore with that one"
    )]
    Newer {
        /// The release that made it.
        release: String,
    },
    /// A crate failed to encrypt, which is a bug.
    #[error("cannot encrypt the backup: {0}")]
    Encrypt(String),
}

fn never_overwritten(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AlreadyExists => ", because a backup never replaces a file",
        _ => "",
    }
}

/// What a backup is, without secrets: the first file in its archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The version of the archive's layout.
    pub layout: u32,
    /// The release that made the backup.
    pub version: String,
    /// The moment that the backup shows, in seconds since the Unix epoch.
    pub made: u64,
    /// The address of the cluster's first service.
    #[serde(with = "as_text")]
    pub cluster: ClusterId,
    /// The node.
    #[serde(with = "as_text")]
    pub node: NodeId,
    /// Its role: a publisher's backup holds the key of the address.
    pub role: Role,
}

/// A decrypted backup.
#[derive(Debug, PartialEq, Eq)]
pub struct Backup {
    /// What it is.
    pub summary: Summary,
    /// The files of the state directory.
    pub state: Vec<StateFile>,
    /// The configuration, and Arti's if it is beside it.
    pub config: Vec<StateFile>,
}

impl Backup {
    /// Reads the node in `dir` at the moment `unix`, in seconds since the Unix epoch. The daemon
    /// may run meanwhile.
    ///
    /// # Errors
    /// The node is incomplete, or a file is damaged or cannot be read.
    pub fn of(dir: &Path, unix: u64) -> Result<Self, BackupError> {
        let snapshot = store::snapshot(dir)?;
        let summary = Summary {
            layout: LAYOUT,
            version: env!("CARGO_PKG_VERSION").into(),
            made: unix,
            cluster: snapshot.cluster,
            node: snapshot.node,
            role: snapshot.role,
        };
        let config = [FILE_NAME, ARTI_FILE_NAME].into_iter().filter_map(|name| read_config(dir, name).transpose());
        Ok(Self { summary, state: snapshot.files, config: config.collect::<Result<_, _>>()? })
    }

    /// Encrypts the backup, with 2^`work` steps of scrypt.
    ///
    /// # Errors
    /// It is larger than [`MAX_BACKUP`].
    pub fn seal(&self, passphrase: &Passphrase, work: u8) -> Result<Vec<u8>, BackupError> {
        sealing::seal(&self.to_archive()?, passphrase, work)
    }

    /// Decrypts and reads a backup.
    ///
    /// # Errors
    /// The passphrase is wrong, or the file is damaged or not a backup.
    pub fn open(sealed: &[u8], passphrase: &Passphrase) -> Result<Self, BackupError> {
        Self::from_archive(&sealing::open(sealed, passphrase)?)
    }

    /// The archive inside the encrypted file.
    ///
    /// # Errors
    /// It is larger than [`MAX_BACKUP`].
    pub fn to_archive(&self) -> Result<Zeroizing<Vec<u8>>, BackupError> {
        archive::build(self)
    }

    /// Reads [`Backup::to_archive`].
    ///
    /// # Errors
    /// It is not the archive of a backup.
    pub fn from_archive(archive: &[u8]) -> Result<Self, BackupError> {
        archive::read(archive)
    }

    /// Makes the node in the empty directory `dir`. `forced`: the operator has said that the
    /// machine that the backup was made on is off for good.
    ///
    /// # Errors
    /// The directory is not empty or cannot be written, or a file in the backup cannot be used.
    pub fn restore(&self, dir: &Path, forced: bool) -> Result<Store, BackupError> {
        let mark = RestoredMark { made: self.summary.made, forced };
        let contents = RestoredContents { state: &self.state, others: &self.config, mark };
        let store = store::restore(dir, &contents)?;
        Ok(store)
    }

    /// The names and sizes of all files in the backup.
    pub fn files(&self) -> impl Iterator<Item = (&str, usize)> {
        self.state.iter().chain(&self.config).map(|file| (file.path.as_str(), file.bytes.len()))
    }
}

/// Addresses in `backup.json`, as people write them.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(id: &impl Display, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(from: D) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Writes a backup to a new file, 0600, which appears complete or not at all.
///
/// # Errors
/// A file of that name exists, or the operating system refuses.
pub fn write_new(path: &Path, sealed: &[u8]) -> Result<(), BackupError> {
    let written = new_file::write(path, Existing::Keep, |file| file.write_all(sealed));
    written.map_err(|source| BackupError::Unwritable { path: path.to_owned(), source })
}

/// True if `name` is a configuration file that a backup contains.
fn is_config(name: &str) -> bool {
    [FILE_NAME, ARTI_FILE_NAME].contains(&name)
}

/// A configuration file; `None` if it does not exist.
fn read_config(dir: &Path, name: &str) -> Result<Option<StateFile>, BackupError> {
    let path = dir.join(name);
    match File::open(&path) {
        Ok(file) => Ok(Some(StateFile { path: name.into(), bytes: read_bounded(file, &path, MAX_CONFIG)? })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BackupError::Unreadable { path, source }),
    }
}

/// All bytes of `from`, which has the name `path` in errors.
///
/// # Errors
/// It cannot be read, or has more than `max` bytes.
pub fn read_bounded(from: impl Read, path: &Path, max: usize) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let bytes = bounded::read(from, max).map_err(|source| BackupError::Unreadable { path: path.to_owned(), source })?;
    bytes.ok_or_else(|| BackupError::TooLarge { path: path.to_owned(), max })
}
