//! Writes keys for other programs: the folder that C tor reads, and mkp224o also writes.
//!
//! A folder appears under its name when all of its files are on disk, or not at all. After a crash
//! in between, a folder whose name begins with `.new-` is left.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::StoreError;
use super::file;
use super::import::{C_TOR_HOSTNAME, C_TOR_PUBLIC, C_TOR_SECRET, PUBLIC_HEADER, SECRET_HEADER};
use crate::keys::IdentitySecret;
use crate::vanity::Distance;

/// Creates the directory for exported keys (0700) with its parents, if it does not exist.
///
/// # Errors
/// The operating system refuses.
pub fn make_export_dir(dir: &Path) -> Result<(), StoreError> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| StoreError::io("make", dir, error))
}

/// Writes a key to a new folder in `dir` that is named after its address. Returns the folder.
///
/// # Errors
/// [`StoreError::Taken`] if something of that name exists, or the operating system refuses.
pub fn export_key(dir: &Path, secret: &IdentitySecret) -> Result<PathBuf, StoreError> {
    let address = secret.service_id();
    let folder = dir.join(address.to_string());
    if folder.symlink_metadata().is_ok() {
        return Err(StoreError::Taken(folder));
    }
    let new = file::unfinished_dir(dir)?;
    let mut key = Zeroizing::new(Vec::with_capacity(SECRET_HEADER.len() + secret.expanded().len()));
    key.extend_from_slice(SECRET_HEADER);
    key.extend_from_slice(secret.expanded());
    let written = file::replace(&new.join(C_TOR_SECRET), &key)
        .and_then(|()| file::replace(&new.join(C_TOR_PUBLIC), &[&PUBLIC_HEADER[..], address.public_key()].concat()))
        .and_then(|()| file::replace(&new.join(C_TOR_HOSTNAME), format!("{address}\n").as_bytes()))
        .and_then(|()| file::rename(&new, &folder));
    if written.is_err() {
        // What remains of a failed attempt is not a key of any use; the first error is reported.
        let _ = fs::remove_dir_all(&new);
    }
    written.map(|()| folder)
}

/// Writes a distance to a new file in `dir` that is named after the found address. Returns the
/// file.
///
/// # Errors
/// [`StoreError::KeyExists`] if another file of that name exists, or the operating system refuses.
pub fn export_distance(dir: &Path, distance: &Distance) -> Result<PathBuf, StoreError> {
    let path = dir.join(format!("{}.offset", distance.address));
    file::create(&path, distance.to_string().as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::keys::KeyOffset;
    use crate::store::import_identity_key;

    #[test]
    fn an_exported_key_is_private_complete_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let secret = IdentitySecret::generate(&mut rand::rng());
        let folder = export_key(dir.path(), &secret).unwrap();
        assert_eq!(import_identity_key(&folder).unwrap().expanded(), secret.expanded());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|path| mode(path) == 0o600));

        let other = Zeroizing::new([&secret.expanded()[..32], &[9; 32]].concat().try_into().unwrap());
        let related = IdentitySecret::from_expanded(&other).unwrap();
        assert!(matches!(export_key(dir.path(), &related), Err(StoreError::Taken(taken)) if taken == folder));
        assert_eq!(import_identity_key(&folder).unwrap().expanded(), secret.expanded());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no unfinished folder is left");
    }

    #[test]
    fn an_exported_distance_reads_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let origin = IdentitySecret::generate(&mut rand::rng()).service_id();
        let offset = KeyOffset::random(&mut rand::rng());
        let distance = Distance { origin, offset, address: offset.from_public(origin).unwrap() };
        let path = export_distance(dir.path(), &distance).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().parse(), Ok(distance));
        fs::write(&path, "something else").unwrap();
        assert!(matches!(export_distance(dir.path(), &distance), Err(StoreError::KeyExists(_))));
    }
}
