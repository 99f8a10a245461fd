//! Where the Tor client keeps its files: `arti/state` and `arti/cache`.
//!
//! A client holds locks on its files for an hour or more after it has ended ([`crate::tor::arti`]).
//! So a further client of the same process has folders of its own, `arti/1/state` and
//! `arti/1/cache`, then `arti/2/...`. The next process takes over the newest ones.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::file;
use super::{Store, StoreError};

/// The folder of all files of Tor clients, in the state directory.
pub(super) const FOLDER: &str = "arti";
/// The folders of one client.
pub(super) const OF_CLIENT: [&str; 2] = ["state", "cache"];

/// The folders of the present client.
#[derive(Debug)]
pub(super) struct ClientFiles {
    dir: PathBuf,
    /// Clients that this process had before.
    earlier: AtomicU32,
}

impl ClientFiles {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join(FOLDER), earlier: AtomicU32::new(0) }
    }

    /// Makes the folders of the first client, after those of the last client of an earlier process
    /// were moved there. The caller holds the lock of the state directory.
    pub(super) fn adopt(&self) -> Result<(), StoreError> {
        file::make_dir(&self.dir)?;
        file::sweep(&self.dir)?;
        let mut further = self.further()?;
        if let Some(newest) = further.pop() {
            further.into_iter().try_for_each(|older| remove(&self.home(older)))?;
            self.move_up(&self.home(newest))?;
        }
        self.all().iter().try_for_each(|dir| file::make_dir(dir).map(drop))
    }

    /// Moves all folders of a client to the place of the first one's: state, cache, and files that
    /// were set aside as damaged. A crash between two steps leaves the rest to the next start.
    fn move_up(&self, home: &Path) -> Result<(), StoreError> {
        let failed = |error| StoreError::io("read", home, error);
        for entry in fs::read_dir(home).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let to = self.dir.join(entry.file_name());
            if entry.file_type().map_err(failed)?.is_dir() {
                remove(&to)?;
                file::rename(&entry.path(), &to)?;
            }
        }
        remove(home)
    }

    /// Makes folders for a further client. `carry` copies into the new state folder what is to
    /// outlive the present client, from the old one.
    fn renew(&self, carry: impl FnOnce(&Path, &Path) -> io::Result<()>) -> Result<(), StoreError> {
        let present = self.earlier.load(Ordering::Relaxed);
        // The client before the present one may still have its files open.
        self.further()?.into_iter().filter(|it| *it < present).try_for_each(|older| remove(&self.home(older)))?;
        let made = file::unfinished_dir(&self.dir)?;
        OF_CLIENT.iter().try_for_each(|name| file::make_dir(&made.join(name)).map(drop))?;
        let state = made.join(OF_CLIENT[0]);
        carry(&self.state_dir(), &state).map_err(|error| StoreError::io("fill", &state, error))?;
        let next = present.saturating_add(1);
        file::rename(&made, &self.home(next))?;
        self.earlier.store(next, Ordering::Relaxed);
        Ok(())
    }

    /// The folder of all clients, and those of the present one.
    pub(super) fn all(&self) -> [PathBuf; 3] {
        [self.dir.clone(), self.state_dir(), self.cache_dir()]
    }

    /// The state folder of the present client.
    pub(super) fn state_dir(&self) -> PathBuf {
        self.folder(OF_CLIENT[0])
    }

    /// The cache folder of the present client.
    pub(super) fn cache_dir(&self) -> PathBuf {
        self.folder(OF_CLIENT[1])
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.home(self.earlier.load(Ordering::Relaxed)).join(name)
    }

    /// The parent folder of a client's folders.
    fn home(&self, client: u32) -> PathBuf {
        if client == 0 { self.dir.clone() } else { self.dir.join(client.to_string()) }
    }

    /// The numbers of clients after the first that have folders, ascending.
    fn further(&self) -> Result<Vec<u32>, StoreError> {
        let entries = fs::read_dir(&self.dir).map_err(|error| StoreError::io("read", &self.dir, error))?;
        let number = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        let mut numbers: Vec<u32> = entries.filter_map(number).filter(|number| *number > 0).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

impl Store {
    /// The directory for Arti's state (guards and the like). Exists, mode 0700.
    pub fn arti_state_dir(&self) -> PathBuf {
        self.client_files.state_dir()
    }

    /// The directory for Arti's cache of the network directory. Exists, mode 0700.
    pub fn arti_cache_dir(&self) -> PathBuf {
        self.client_files.cache_dir()
    }

    /// Makes new directories for a further Tor client of this process. From now on
    /// [`Store::arti_state_dir`] and [`Store::arti_cache_dir`] name these. `carry` copies from the
    /// old state directory into the new one.
    ///
    /// # Errors
    /// If they cannot be made or filled; the old ones then stay in use.
    pub fn renew_arti(&self, carry: impl FnOnce(&Path, &Path) -> io::Result<()>) -> Result<(), StoreError> {
        self.client_files.renew(carry)
    }
}

/// The directories for Arti's state and cache below a state directory that no process uses. They
/// need not exist.
pub fn arti_dirs(dir: &Path) -> (PathBuf, PathBuf) {
    let first = ClientFiles::new(dir);
    (first.state_dir(), first.cache_dir())
}

/// Removes a folder with what is in it, if it exists.
fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path, error)),
        _ => Ok(()),
    }
}
