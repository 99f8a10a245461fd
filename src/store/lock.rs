//! One process per state directory: an advisory lock on the file `lock`, which the system releases
//! when the process ends. The file's text (a process ID) is for people and never trusted.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::error::StoreError;
use super::{access, file};

/// The lock file's name.
pub(super) const NAME: &str = "lock";
/// How long to wait for a lock that this very process has just released: a program that it is
/// starting meanwhile holds a copy of the file until its `exec`.
const RELEASING: Duration = Duration::from_secs(2);
/// Pause between two attempts meanwhile.
const PAUSE: Duration = Duration::from_millis(10);

/// Takes the lock, which is held until the returned file is closed.
pub(super) fn take(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(NAME);
    let failed = |error| StoreError::io("lock", &path, error);
    let begun = Instant::now();
    loop {
        let mut file = file::open_lock(&path).map_err(failed)?;
        let opened = file.metadata().map_err(failed)?;
        access::check_one(&path, &opened, false)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let process = process(&mut file);
                if process == Some(std::process::id()) && begun.elapsed() < RELEASING {
                    thread::sleep(PAUSE);
                    continue;
                }
                return Err(StoreError::Locked { dir: dir.to_owned(), process });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // A refused `join` removes the file. If it did so before this process got the lock, the
        // lock protects nothing: try again with a new file.
        if fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (opened.dev(), opened.ino())) {
            // The process ID only helps people, so an error (such as a full disk) is ignored.
            let _ =
                file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
            return Ok(file);
        }
    }
}

/// The process ID in the lock file; `None` if it cannot be read.
fn process(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
