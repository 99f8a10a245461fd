//! A master key that is there already: the `hs_ed25519_secret_key` of C tor's `HiddenServiceDir`, or a copy of our own
//! `master.key`, which is all that is needed to have the address again.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustbalance_gossip::id::MasterId;
use zeroize::Zeroizing;

use super::error::Damage;
use super::file::{self, Kind};
use crate::keys::{KeyError, MasterSecret};

/// What C tor's secret key file begins with.
const SECRET_HEADER: &[u8; 32] = b"== ed25519v1-secret: type0 ==\0\0\0";
/// What the public key file beside it begins with.
const PUBLIC_HEADER: &[u8; 32] = b"== ed25519v1-public: type0 ==\0\0\0";
/// The secret key file's name.
const SECRET_NAME: &str = "hs_ed25519_secret_key";

/// Why a key file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It is not what C tor writes.
    #[error(
        "{} is no v3 onion service key of C tor (it has {size} bytes{}): give the file hs_ed25519_secret_key of the \
         service's HiddenServiceDir, or the master.key of a publisher", path.display(), if *header { "" } else { ", and another header" }
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// True if its header is right.
        header: bool,
    },
    /// It is a file of ours, and not the whole master key.
    #[error("{} {damage}: give another copy of the master.key of a publisher", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        damage: Damage,
    },
    /// The public key file was given.
    #[error("{} is the public key: give the file hs_ed25519_secret_key beside it", .0.display())]
    Public(PathBuf),
    /// Its bytes are no key.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: KeyError,
    },
    /// It does not belong to what stands beside it, or in it.
    #[error("{} names another address than the secret key, which is that of {key}: they do not belong together", path.display())]
    Mismatch {
        /// What names the address.
        path: PathBuf,
        /// The address of the secret key.
        key: MasterId,
    },
}

/// Reads the key from C tor's `hs_ed25519_secret_key`, or from the directory that holds it, and compares it with the
/// public key and the `hostname` beside it, where there are any; or from a publisher's `master.key`.
pub fn import_master_key(path: &Path) -> Result<MasterSecret, ImportError> {
    let path = if path.is_dir() { path.join(SECRET_NAME) } else { path.to_owned() };
    let bytes = read(&path, file::max_size(Kind::MasterKey))?;
    if file::is_ours(&bytes) {
        return own_key(path, &bytes);
    }
    if bytes.starts_with(PUBLIC_HEADER) {
        return Err(ImportError::Public(path));
    }
    let key = bytes.strip_prefix(SECRET_HEADER).and_then(|key| key.try_into().ok());
    let Some(key) = key else {
        let size = fs::metadata(&path).map_or(bytes.len() as u64, |metadata| metadata.len());
        return Err(ImportError::Format { path, size, header: bytes.starts_with(SECRET_HEADER) });
    };
    let secret = secret(&path, key)?;
    let address = secret.master_id();

    let public = [&PUBLIC_HEADER[..], address.public_key()].concat();
    compare(path.with_file_name("hs_ed25519_public_key"), address, |bytes| *bytes == public)?;
    compare(path.with_file_name("hostname"), address, |bytes| {
        std::str::from_utf8(bytes).is_ok_and(|text| text.parse() == Ok(address))
    })?;
    Ok(secret)
}

/// The key in a `master.key`.
fn own_key(path: PathBuf, bytes: &[u8]) -> Result<MasterSecret, ImportError> {
    let (cluster, key) = match file::decode(Kind::MasterKey, bytes) {
        Ok(whole) => whole,
        Err(damage) => return Err(ImportError::Damaged { path, damage }),
    };
    let Ok(expanded) = key.try_into() else {
        let damage = Damage::Short { have: key.len(), want: 64 };
        return Err(ImportError::Damaged { path, damage });
    };
    let secret = secret(&path, expanded)?;
    if secret.master_id() == cluster {
        Ok(secret)
    } else {
        Err(ImportError::Mismatch { path, key: secret.master_id() })
    }
}

fn secret(path: &Path, expanded: &[u8; 64]) -> Result<MasterSecret, ImportError> {
    MasterSecret::from_expanded(&Zeroizing::new(*expanded))
        .map_err(|source| ImportError::Key { path: path.to_owned(), source })
}

/// Longest file beside the key, in bytes.
const LONGEST_COMPARED: usize = 128;

/// Checks a file beside the key, if there is one.
fn compare(path: PathBuf, key: MasterId, same: impl Fn(&[u8]) -> bool) -> Result<(), ImportError> {
    match read(&path, LONGEST_COMPARED) {
        Err(ImportError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        // What was cut off may be anything.
        Ok(bytes) if bytes.len() <= LONGEST_COMPARED && same(&bytes) => Ok(()),
        Ok(_) => Err(ImportError::Mismatch { path, key }),
    }
}

/// At most `expected + 1` bytes of a file, so that a longer one is noticed.
fn read(path: &Path, expected: usize) -> Result<Zeroizing<Vec<u8>>, ImportError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + 64));
    File::open(path)
        .and_then(|file| file.take(expected as u64 + 1).read_to_end(&mut bytes))
        .map_err(|source| ImportError::Io { path: path.to_owned(), source })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> (tempfile::TempDir, MasterSecret) {
        let folder = tempfile::tempdir().unwrap();
        let secret = MasterSecret::generate(&mut rand::rng());
        fs::write(folder.path().join(SECRET_NAME), [&SECRET_HEADER[..], secret.expanded()].concat()).unwrap();
        (folder, secret)
    }

    #[test]
    fn the_key_of_a_hidden_service_dir_is_taken() {
        let (folder, secret) = service();
        let file = folder.path().join(SECRET_NAME);
        assert_eq!(import_master_key(&file).unwrap().expanded(), secret.expanded());
        let address = secret.master_id();
        fs::write(folder.path().join("hostname"), format!("{address}\n")).unwrap();
        let public = [&PUBLIC_HEADER[..], address.public_key()].concat();
        fs::write(folder.path().join("hs_ed25519_public_key"), public).unwrap();
        assert_eq!(import_master_key(folder.path()).unwrap().master_id(), address);
    }

    #[test]
    fn a_copy_of_our_own_master_key_is_taken_whole_or_not_at_all() {
        let (folder, secret) = service();
        let (path, address) = (folder.path().join("copy"), secret.master_id());
        let whole = file::encode(Kind::MasterKey, address, secret.expanded());
        fs::write(&path, &*whole).unwrap();
        assert_eq!(import_master_key(&path).unwrap().expanded(), secret.expanded());
        for cut in [whole.len() - 1, whole.len() - 64, 20] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(import_master_key(&path), Err(ImportError::Damaged { .. })), "cut to {cut}");
        }
        let other = MasterSecret::generate(&mut rand::rng()).master_id();
        fs::write(&path, &*file::encode(Kind::MasterKey, other, secret.expanded())).unwrap();
        assert!(matches!(import_master_key(&path), Err(ImportError::Mismatch { key, .. }) if key == address));
        fs::write(&path, &*file::encode(Kind::AuthorityKey, address, &secret.expanded()[..32])).unwrap();
        assert!(matches!(import_master_key(&path), Err(ImportError::Damaged { damage: Damage::Kind(_), .. })));
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let (folder, _) = service();
        let other = MasterSecret::generate(&mut rand::rng()).master_id();
        let hostname = folder.path().join("hostname");
        fs::write(&hostname, format!("{other}\n")).unwrap();
        assert!(
            matches!(import_master_key(folder.path()), Err(ImportError::Mismatch { path, .. }) if path == hostname)
        );
    }

    #[test]
    fn a_hostname_is_read_to_its_end() {
        let (folder, secret) = service();
        let hostname = folder.path().join("hostname");
        fs::write(&hostname, format!("{}\n{}and more", secret.master_id(), " ".repeat(100))).unwrap();
        assert!(
            matches!(import_master_key(folder.path()), Err(ImportError::Mismatch { path, .. }) if path == hostname)
        );
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let (folder, secret) = service();
        let file = folder.path().join(SECRET_NAME);
        let whole = fs::read(&file).unwrap();
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).unwrap();
            assert!(matches!(import_master_key(&file), Err(ImportError::Format { .. })), "cut to {length}");
        }
        fs::write(&file, [&whole[..], b"x"].concat()).unwrap();
        assert!(matches!(import_master_key(&file), Err(ImportError::Format { size: 97, header: true, .. })));
        fs::write(&file, [&PUBLIC_HEADER[..], secret.master_id().public_key()].concat()).unwrap();
        assert!(matches!(import_master_key(&file), Err(ImportError::Public(_))));
        fs::write(&file, [&SECRET_HEADER[..], &[0xff; 64]].concat()).unwrap();
        assert!(matches!(import_master_key(&file), Err(ImportError::Key { .. })));
        assert!(matches!(import_master_key(Path::new("/nonexistent")), Err(ImportError::Io { .. })));
    }
}
