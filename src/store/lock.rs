//! One process a state directory: an advisory lock on the file `lock`, which the system drops with the process. The
//! file's text (a process id) is for people and never trusted.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::StoreError;
use super::{access, file};

/// The lock file's name.
pub(super) const NAME: &str = "lock";

/// Takes the lock, which is held until the file is closed.
pub(super) fn take(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(NAME);
    let failed = |error| StoreError::io("lock", &path, error);
    loop {
        let mut file = file::open_lock(&path).map_err(failed)?;
        let opened = file.metadata().map_err(failed)?;
        access::check_one(&path, &opened, false)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { dir: dir.to_owned(), process: process(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Whoever held it may have removed it meanwhile (a refused `join` leaves nothing): then it locks nothing.
        if fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (opened.dev(), opened.ino())) {
            // Only a help for people, so a full disk is no reason to stop.
            let _ =
                file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
            return Ok(file);
        }
    }
}

/// The process id in the lock file.
fn process(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
