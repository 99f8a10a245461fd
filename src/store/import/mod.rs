//! Imports the identity key of an existing service, as C tor, Arti, mkp224o or onionbalance-config
//! write it, or from a copy of a publisher's `identity.key`, which is enough to restore the
//! address.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustbalance_gossip::id::ServiceId;
use zeroize::Zeroizing;

use super::error::Damage;
use super::file::{self, Whole};
use crate::keys::IdentitySecret;
use crate::typed;
use forms::ImportedKey;
pub use forms::KeyFormatError;
pub(super) use forms::{PUBLIC_HEADER, SECRET_HEADER};

mod folder;
mod forms;
#[cfg(test)]
mod tests;

/// Names of the files in C tor's folder of a service.
pub(super) const C_TOR_SECRET: &str = folder::NAMES[0];
pub(super) const C_TOR_PUBLIC: &str = "hs_ed25519_public_key";
pub(super) const C_TOR_HOSTNAME: &str = "hostname";
/// Largest key file, in bytes: room for PEM with a preamble, or for mkp224o's YAML.
const LONGEST: usize = 16 << 10;

/// Why a key could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file holds no usable key.
    #[error("{} {source}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: KeyFormatError,
    },
    /// The folder holds no file with a known name.
    #[error(
        "{} holds no key file with a known name ({}, or one that ends in .key): give the file itself",
        .0.display(), folder::NAMES.join(", ")
    )]
    NotFound(PathBuf),
    /// The folder holds several key files.
    #[error("{} holds several keys: give one of them, such as {}", folder.display(), one.display())]
    Several {
        /// The folder.
        folder: PathBuf,
        /// One of the keys.
        one: PathBuf,
    },
    /// A RustBalance state file that is not an intact identity key.
    #[error("{} {damage}: give another copy of the identity.key of a publisher", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        damage: Damage,
    },
    /// The key has another address than its file, its file's name or a file beside it says.
    #[error("{} names another address, but the secret key belongs to {key}: find out which of the two is wrong", path.display())]
    Mismatch {
        /// The file that names the other address.
        path: PathBuf,
        /// The address of the secret key.
        key: ServiceId,
    },
}

/// Reads the identity key from a file, or from the only key file in a folder. The message of
/// [`KeyFormatError::Unknown`] lists the accepted formats. The key must match every address that is
/// named with it: in the file, in the file's name, and in the public key and `hostname` beside C
/// tor's file.
pub fn import_identity_key(path: &Path) -> Result<IdentitySecret, ImportError> {
    let path = if path.is_dir() { folder::find(path)? } else { path.to_owned() };
    let bytes = read(&path, LONGEST)?;
    if file::is_ours(&bytes) {
        return own_key(path, &bytes);
    }
    let size = fs::metadata(&path).map_or(bytes.len() as u64, |metadata| metadata.len());
    let form = |source| ImportError::Form { path: path.clone(), source };
    if bytes.len() > LONGEST {
        return Err(form(KeyFormatError::Unknown(size)));
    }
    let ImportedKey { secret, hostname, of_c_tor } = forms::read(&bytes, size).map_err(form)?;
    let address = secret.service_id();

    if hostname.is_some_and(|name| typed::address(&name) != Ok(address)) || names_another(&path, address) {
        return Err(ImportError::Mismatch { path, key: address });
    }
    if of_c_tor {
        let public = [&PUBLIC_HEADER[..], address.public_key()].concat();
        compare(path.with_file_name(C_TOR_PUBLIC), address, |bytes| *bytes == public)?;
        compare(path.with_file_name(C_TOR_HOSTNAME), address, |bytes| {
            std::str::from_utf8(bytes).is_ok_and(|text| typed::address(text) == Ok(address))
        })?;
    }
    Ok(secret)
}

/// True if the file has the name of another address; onionbalance-config names its key files so.
fn names_another(path: &Path, address: ServiceId) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    typed::address::<ServiceId>(stem).is_ok_and(|named| named != address)
}

/// The key in a publisher's `identity.key`, or in the `master.key` of version 1.
fn own_key(path: PathBuf, bytes: &[u8]) -> Result<IdentitySecret, ImportError> {
    let whole = match Whole::read(bytes) {
        Ok(whole) => whole,
        Err(damage) => return Err(ImportError::Damaged { path, damage }),
    };
    if !matches!((whole.name, whole.format), ("master.key", 1) | ("identity.key", 2)) {
        let damage = Damage::Kind(whole.name.to_owned());
        return Err(ImportError::Damaged { path, damage });
    }
    let Ok(expanded) = <&[u8; 64]>::try_from(whole.payload) else {
        let damage = Damage::Short { have: whole.payload.len(), want: 64 };
        return Err(ImportError::Damaged { path, damage });
    };
    let secret = IdentitySecret::from_expanded(&Zeroizing::new(*expanded))
        .map_err(|error| ImportError::Form { path: path.clone(), source: error.into() })?;
    if secret.service_id().address() == whole.owner {
        Ok(secret)
    } else {
        Err(ImportError::Mismatch { path, key: secret.service_id() })
    }
}

/// Largest file beside the key that is compared, in bytes.
const LONGEST_COMPARED: usize = 128;

/// Compares a file beside the key, if there is one.
fn compare(path: PathBuf, key: ServiceId, same: impl Fn(&[u8]) -> bool) -> Result<(), ImportError> {
    match read(&path, LONGEST_COMPARED) {
        Err(ImportError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        // A longer file does not match: the part that was not read may be anything.
        Ok(bytes) if bytes.len() <= LONGEST_COMPARED && same(&bytes) => Ok(()),
        Ok(_) => Err(ImportError::Mismatch { path, key }),
    }
}

/// At most `expected + 1` bytes of a file, so that a longer one is detected.
fn read(path: &Path, expected: usize) -> Result<Zeroizing<Vec<u8>>, ImportError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + 64));
    File::open(path)
        .and_then(|file| file.take(expected as u64 + 1).read_to_end(&mut bytes))
        .map_err(|source| ImportError::Io { path: path.to_owned(), source })?;
    Ok(bytes)
}
