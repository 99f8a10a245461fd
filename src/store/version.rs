//! Determines the version of a state directory.
//!
//! The file `version` holds the version, and the release that created or migrated the directory: `2
//! 0.1.0`. Version 1 had no such file. No later release may change the format of this file, because
//! earlier releases read it to tell the operator which release to install. A file in the format of
//! another version counts too: it was restored from a backup, or a crash ended a migration.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustbalance_gossip::id::ClusterId;

use super::error::{Damage, StoreError};
use super::file::{self, Payload, Whole};
use super::kind::{Kind, VERSION};

/// Files that only directories of earlier versions have. One that is restored from a backup is
/// migrated again.
const FORMER: [&str; 1] = ["master.key"];
/// Longest release name that is shown, in bytes.
const MAX_RELEASE: usize = 32;

/// The version from which the directory has to be migrated: the oldest that any of its files shows.
///
/// # Errors
/// [`StoreError::Newer`] if any file shows a version that this build does not know. Nothing is
/// written or locked.
pub(super) fn of(dir: &Path) -> Result<u32, StoreError> {
    let stored = read(dir)?;
    let release = stored.as_ref().and_then(|(_, release)| release.clone());
    let newer = |path, found| StoreError::Newer { path, found, release: release.clone() };
    let mut version = stored.map_or(1, |(version, _)| version);
    if version > VERSION {
        return Err(newer(dir.join(Kind::Version.name()), version));
    }
    for (path, format) in formats(dir)? {
        if format > VERSION {
            return Err(newer(path, format));
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_older = match Kind::from_name(name) {
            Some(kind) => (kind.row().since..kind.row().format).contains(&format),
            None => FORMER.contains(&name),
        };
        if is_older {
            version = version.min(format);
        }
    }
    Ok(version)
}

/// The payload of `version` in a directory that this build has created or migrated.
pub(super) fn payload(version: u32) -> String {
    format!("{version} {}\n", env!("CARGO_PKG_VERSION"))
}

/// The file `version` as this build writes it.
pub(super) fn encode(version: u32, cluster: ClusterId) -> Payload {
    file::encode(Kind::Version, cluster.first_service().address(), payload(version).as_bytes())
}

/// The version and the release in the file `version`; `None` if there is no such file. The release
/// is `None` if it is missing or not a plain name.
fn read(dir: &Path) -> Result<Option<(u32, Option<String>)>, StoreError> {
    let (path, kind) = (dir.join(Kind::Version.name()), Kind::Version);
    let Some(bytes) = file::read_bytes(&path, kind)? else { return Ok(None) };
    let damaged = |damage| StoreError::Damaged { path: path.clone(), kind, damage };
    let whole = Whole::read(&bytes).map_err(damaged)?;
    if whole.name != kind.name() {
        return Err(damaged(Damage::Kind(whole.name.to_owned())));
    }
    let text = std::str::from_utf8(whole.payload).unwrap_or_default();
    let mut fields = text.split_ascii_whitespace();
    let version = fields.next().and_then(|digits| digits.parse().ok()).filter(|version| *version > 0);
    let version = version.ok_or_else(|| StoreError::content(&path, kind, "it does not name a version"))?;
    let is_plain = |release: &&str| {
        release.len() <= MAX_RELEASE
            && release.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte))
    };
    Ok(Some((version, fields.next().filter(is_plain).map(str::to_owned))))
}

/// The state files directly in the directory that have the name of their kind, and their format
/// numbers. A file without a valid first line is skipped here, and checked when it is read.
fn formats(dir: &Path) -> Result<Vec<(PathBuf, u32)>, StoreError> {
    let failed = |error| StoreError::io("read", dir, error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        // The operator's own files may be here too, and may be unreadable: skip them.
        let Ok(beginning) = file::read_beginning(&path) else { continue };
        if let Ok((name, format)) = file::label(&beginning)
            && entry.file_name().to_str() == Some(name)
        {
            found.push((path, format));
        }
    }
    Ok(found)
}
