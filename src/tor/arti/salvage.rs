//! What Arti keeps on disk can all be fetched or made again, so what is damaged there is set aside,
//! logged, and the start goes on. Each half (state, cache) is set aside as a whole once a process:
//! damage that comes back is the disk's, and ends the node.
//!
//! Arti writes its state without fsync, so a power cut can leave an empty file; and it opens no
//! database that is damaged.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use arti_client::{ErrorKind, HasKind};
use data_encoding::HEXLOWER;
use serde::de::IgnoredAny;
use sha3::{Digest, Sha3_256};
use tracing::warn;

use super::chain;
use crate::shell;
use crate::tor::TorError;

/// Where damaged files go: beside Arti's state and cache. Only the last of each name is kept.
const ASIDE: &str = "damaged";
/// Largest state file that is looked at, in bytes; Arti's guards take some ten thousand.
const MAX_STATE_FILE: u64 = 16 << 20;
/// Largest consensus that is looked at, in bytes; the public network's has three million.
const MAX_CONSENSUS: u64 = 64 << 20;
/// What stands before the digest in the name of a consensus in Arti's cache.
const DIGEST: &str = "_sha3-256-";

/// What to do about an error of Arti's.
#[derive(Debug)]
pub(super) enum Verdict {
    /// What was damaged is out of the way: start again, with a new client.
    Mended,
    /// Not a matter of damaged files, or one that may pass.
    Wait,
    /// It stays so until the operator has mended it.
    Hopeless(TorError),
}

/// Arti's directories, and what was set aside of them by this process.
#[derive(Debug)]
pub(super) struct Salvage {
    state_dir: PathBuf,
    cache_dir: PathBuf,
    state_done: bool,
    cache_done: bool,
}

impl Salvage {
    pub(super) fn new(state_dir: &Path, cache_dir: &Path) -> Self {
        let (state_dir, cache_dir) = (state_dir.to_owned(), cache_dir.to_owned());
        Self { state_dir, cache_dir, state_done: false, cache_done: false }
    }

    /// Before Arti starts: sets aside each state file that is not a JSON object, and each consensus
    /// whose content is not what its name says. Arti replaces no state that it cannot read, and of
    /// a damaged consensus it asks for the difference to the next one, in vain, again and again.
    pub(super) fn sift(&self) {
        let state = self.state_files().into_iter().map(|path| (read_json(&path), path));
        let blobs = list(&self.cache_dir.join("dir_blobs")).into_iter().map(|path| (check_digest(&path), path));
        for (checked, path) in state.chain(blobs) {
            let Err(error) = checked else { continue };
            match self.set_aside(&path) {
                Ok(aside) => log_set_aside(&path, &aside, &error),
                Err(refused) => warn!(file = %path.display(), %error, %refused, "cannot set a damaged file aside"),
            }
        }
    }

    /// Judges why no client could be made, or why it could not connect.
    pub(super) fn judge(&mut self, error: &arti_client::Error, creating: bool) -> Verdict {
        match error.kind() {
            ErrorKind::PersistentStateCorrupted => self.mend_state(error),
            ErrorKind::CacheCorrupted => self.mend_cache(error),
            // SQLite's errors for a file that is no database, and for tables that are not as they
            // should be.
            ErrorKind::InvalidConfig | ErrorKind::Internal if creating && !self.cache_done => self.mend_cache(error),
            ErrorKind::FsPermissions => Verdict::Hopeless(TorError::Files(format!(
                "{}; mend it with `chmod -R go= {}`",
                chain(error),
                shell::path(self.arti_dir())
            ))),
            _ => Verdict::Wait,
        }
    }

    /// JSON that Arti cannot use.
    fn mend_state(&mut self, error: &arti_client::Error) -> Verdict {
        if self.state_done {
            return self.hopeless(error, &self.state_dir);
        }
        for path in self.state_files() {
            match self.set_aside(&path) {
                Ok(aside) => log_set_aside(&path, &aside, &chain(error)),
                Err(refused) => return cannot(&path, &refused),
            }
        }
        self.state_done = true;
        Verdict::Mended
    }

    fn mend_cache(&mut self, error: &arti_client::Error) -> Verdict {
        if self.cache_done {
            return self.hopeless(error, &self.cache_dir);
        }
        match self.set_aside(&self.cache_dir).and_then(|aside| {
            fs::DirBuilder::new().mode(0o700).create(&self.cache_dir)?;
            Ok(aside)
        }) {
            Ok(aside) => log_set_aside(&self.cache_dir, &aside, &chain(error)),
            Err(refused) => return cannot(&self.cache_dir, &refused),
        }
        self.cache_done = true;
        Verdict::Mended
    }

    fn hopeless(&self, error: &arti_client::Error, dir: &Path) -> Verdict {
        Verdict::Hopeless(TorError::Files(format!(
            "what it keeps in {} was set aside as damaged and is damaged again: {}; check the disk, then remove that \
             directory",
            dir.display(),
            chain(error)
        )))
    }

    /// Arti's state files, as far as they can be listed.
    fn state_files(&self) -> Vec<PathBuf> {
        let mut files = list(&self.state_dir.join("state"));
        files.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
        files
    }

    fn arti_dir(&self) -> &Path {
        self.state_dir.parent().unwrap_or(&self.state_dir)
    }

    /// Moves a file or a directory away; where to.
    fn set_aside(&self, path: &Path) -> io::Result<PathBuf> {
        let folder = self.arti_dir().join(ASIDE);
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder)?;
        let aside = folder.join(path.file_name().unwrap_or(path.as_os_str()));
        // What was set aside before makes room; a rename over a directory that is not empty would
        // fail.
        match fs::symlink_metadata(&aside) {
            Ok(there) if there.is_dir() => fs::remove_dir_all(&aside)?,
            Ok(_) => fs::remove_file(&aside)?,
            Err(_) => {}
        }
        fs::rename(path, &aside)?;
        Ok(aside)
    }
}

fn log_set_aside(path: &Path, aside: &Path, error: &dyn std::fmt::Display) {
    warn!(
        file = %path.display(), aside = %aside.display(), %error,
        "a damaged file of Tor's is set aside: what was in it is fetched again"
    );
}

fn cannot(path: &Path, error: &io::Error) -> Verdict {
    warn!(file = %path.display(), %error, "cannot set a damaged file aside, will try again");
    Verdict::Wait
}

/// What is in a directory, as far as it can be listed.
fn list(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Whether a file has the digest that its name ends with. A file without one has no name of Arti's.
fn check_digest(path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some((_, wanted)) = name.split_once(DIGEST) else { return Ok(()) };
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_CONSENSUS).read_to_end(&mut bytes)?;
    match HEXLOWER.encode(&Sha3_256::digest(&bytes)) == wanted {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "its content is not that of its digest")),
    }
}

/// Whether a file is a JSON object, as all of Arti's are, whatever its fields are.
fn read_json(path: &Path) -> io::Result<()> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_STATE_FILE).read_to_end(&mut bytes)?;
    serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(&bytes).map(|_| ()).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arti() -> (tempfile::TempDir, Salvage) {
        let folder = tempfile::tempdir().unwrap();
        let (state, cache) = (folder.path().join("state"), folder.path().join("cache"));
        fs::create_dir_all(state.join("state")).unwrap();
        fs::create_dir_all(cache.join("dir_blobs")).unwrap();
        let salvage = Salvage::new(&state, &cache);
        (folder, salvage)
    }

    #[test]
    fn what_is_not_json_is_set_aside_and_what_is_stays() {
        let (folder, salvage) = arti();
        let state = folder.path().join("state/state");
        for round in 0..2 {
            for (name, content) in [("guards.json", ""), ("cut.json", "{\"a\": [1,"), ("list.json", "[1]")] {
                fs::write(state.join(name), content).unwrap();
            }
            fs::write(state.join("good.json"), "{}").unwrap();
            fs::write(state.join("state.lock"), "").unwrap();
            fs::create_dir_all(state.join("odd.json")).unwrap();
            salvage.sift();
            let mut left: Vec<_> =
                fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            left.sort();
            assert_eq!(left, ["good.json", "state.lock"], "round {round}");
        }
        assert_eq!(fs::read_dir(folder.path().join("damaged")).unwrap().count(), 4, "only the last of each is kept");
        assert_eq!(fs::read_to_string(folder.path().join("damaged/cut.json")).unwrap(), "{\"a\": [1,");
    }

    #[test]
    fn a_consensus_that_is_not_what_its_name_says_is_set_aside() {
        let (folder, salvage) = arti();
        let blobs = folder.path().join("cache/dir_blobs");
        let name = |content: &[u8]| format!("con_microdesc_sha3-256-{}", HEXLOWER.encode(&Sha3_256::digest(content)));
        let (good, cut) = (name(b"network-status-version 3"), name(b"network-status-version 4"));
        fs::write(blobs.join(&good), "network-status-version 3").unwrap();
        fs::write(blobs.join(&cut), "network-status-ver").unwrap();
        fs::write(blobs.join("another"), "").unwrap();
        salvage.sift();
        assert!(blobs.join(&good).exists() && blobs.join("another").exists() && !blobs.join(&cut).exists());
        assert!(folder.path().join("damaged").join(&cut).exists());
    }

    #[test]
    fn nothing_there_is_nothing_damaged() {
        let (folder, salvage) = arti();
        fs::remove_dir_all(folder.path().join("state")).unwrap();
        salvage.sift();
        assert!(!folder.path().join("damaged").exists());
    }
}
