//! Files that appear complete, or not at all.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The beginning of the names of files and folders that are not complete yet. After a crash one may
/// be left.
pub(crate) const UNFINISHED: &str = ".new-";

/// What becomes of an existing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It stays, and writing fails with [`io::ErrorKind::AlreadyExists`].
    Keep,
    /// It is replaced.
    Replace,
}

/// Writes a file of its owner alone (0600) beside `path`, and moves it to `path` once it is on
/// disk. The move is on disk when this returns.
pub(crate) fn write(
    path: &Path,
    existing: Existing,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let dir = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new =
        tempfile::Builder::new().prefix(UNFINISHED).permissions(Permissions::from_mode(0o600)).tempfile_in(dir)?;
    write(new.as_file_mut())?;
    new.as_file().sync_all()?;
    match existing {
        Existing::Keep => new.persist_noclobber(path),
        Existing::Replace => new.persist(path),
    }
    .map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}
