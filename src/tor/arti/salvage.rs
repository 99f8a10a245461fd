//! Sets damaged files of Arti aside. All that Arti keeps on disk can be fetched or made again, so
//! the start continues without them.
//!
//! Only wrong content counts as damage, not a file that cannot be read, because new guards cost
//! anonymity. Each state file, and the cache as a whole, is set aside once per process: if the
//! damage comes back, the disk is at fault, and the node ends.
//!
//! Damage must be expected: Arti writes its state without fsync, so a power cut can leave an empty
//! file. And Arti does not open a damaged database.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use arti_client::{ErrorKind, HasKind};
use data_encoding::HEXLOWER;
use serde::de::IgnoredAny;
use sha3::{Digest, Sha3_256};
use tracing::warn;

use crate::causes::with_causes;
use crate::shell;
use crate::tor::TorError;

/// Folder for damaged files, beside Arti's state and cache. It keeps the last file of each name.
const ASIDE: &str = "damaged";
/// Largest state file that is checked, in bytes. Arti's file of guards has some ten thousand.
const MAX_STATE_FILE: u64 = 16 << 20;
/// Largest consensus that is checked, in bytes. That of the public network has three million.
const MAX_CONSENSUS: u64 = 64 << 20;
/// Precedes the digest in the file name of a consensus in Arti's cache.
const DIGEST: &str = "_sha3-256-";
/// One of these is in the text of every error of the database in Arti's cache.
const SQLITE: [&str; 2] = ["Error from sqlite database", "sqlite detected bug"];

/// How to react to an error of Arti.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Start again at once with a new client: the damaged file was set aside, or the cause may have
    /// passed.
    Again,
    /// Try again later: no file is damaged, or a damaged one could not be set aside yet.
    Wait,
    /// Give up: only the operator can mend the cause.
    Hopeless(TorError),
}

/// Arti's directories, and the files in them that this process has set aside.
#[derive(Debug)]
pub(super) struct Salvage {
    state_dir: PathBuf,
    cache_dir: PathBuf,
    /// The state files that were set aside because Arti could not use them.
    state_done: BTreeSet<PathBuf>,
    /// Whether the cache was set aside.
    cache_done: bool,
    /// Whether creating a client has failed before without a damaged file as the cause.
    unexplained: bool,
}

impl Salvage {
    pub(super) fn new(state_dir: &Path, cache_dir: &Path) -> Self {
        let (state_dir, cache_dir) = (state_dir.to_owned(), cache_dir.to_owned());
        Self { state_dir, cache_dir, state_done: BTreeSet::new(), cache_done: false, unexplained: false }
    }

    /// Called before Arti starts. Sets aside each state file that is not a JSON object, and each
    /// consensus whose content does not match the digest in its name. Arti never replaces a state
    /// file that it cannot read, and repeats in vain the request for the difference between a
    /// damaged consensus and the next one.
    pub(super) fn set_aside_damaged(&self) {
        let state = self.state_files().into_iter().map(|path| (read_json(&path), path));
        let blobs = list(&self.cache_dir.join("dir_blobs")).into_iter().map(|path| (check_digest(&path), path));
        for (checked, path) in state.chain(blobs) {
            let damage = match checked {
                Ok(None) => continue,
                Ok(Some(damage)) => damage,
                Err(error) => {
                    warn!(
                        name: "tor_file_check_failed",
                        file = %path.display(), %error,
                        "cannot check a file of Tor's, which stays as it is"
                    );
                    continue;
                }
            };
            match self.set_aside(&path) {
                Ok(aside) => log_set_aside(&path, &aside, &damage),
                Err(error) => warn!(
                    name: "tor_file_aside_failed",
                    file = %path.display(), %damage, %error,
                    "cannot set a damaged file aside"
                ),
            }
        }
    }

    /// Decides how to react to this error, and sets a damaged file aside. `creating` is true if
    /// Arti could not make the client, false if the client could not connect.
    pub(super) fn judge(&mut self, error: &arti_client::Error, creating: bool) -> Verdict {
        match error.kind() {
            ErrorKind::PersistentStateCorrupted => self.mend_state(&with_causes(error)),
            ErrorKind::CacheCorrupted => self.mend_cache(&with_causes(error)),
            ErrorKind::InvalidConfig | ErrorKind::Internal if creating => self.at_creation(&with_causes(error)),
            ErrorKind::FsPermissions => Verdict::Hopeless(TorError::Files(format!(
                "{}; mend it with `chmod -R go= {}`",
                with_causes(error),
                shell::path(self.arti_dir())
            ))),
            _ => Verdict::Wait,
        }
    }

    /// Arti reports a damaged database with the same two error kinds as a wrong configuration or an
    /// internal fault; only the text tells them apart.
    fn at_creation(&mut self, error: &str) -> Verdict {
        if SQLITE.iter().any(|saying| error.contains(saying)) {
            return self.mend_cache(error);
        }
        if self.unexplained {
            return Verdict::Hopeless(TorError::Config(format!("{error}; a second attempt failed, too"), None));
        }
        self.unexplained = true;
        Verdict::Again
    }

    /// Handles a state file that is valid JSON, but that Arti cannot use. Only the file that the
    /// error names is set aside.
    fn mend_state(&mut self, error: &str) -> Verdict {
        let named = |path: &PathBuf| {
            path.file_name().is_some_and(|name| error.contains(&format!(" state/{} in ", name.to_string_lossy())))
        };
        let Some(path) = self.state_files().into_iter().find(named) else {
            return Verdict::Hopeless(TorError::Files(format!(
                "it cannot use a file in {}: {error}; move that file away",
                self.state_dir.display()
            )));
        };
        if self.state_done.contains(&path) {
            return hopeless(error, &path);
        }
        match self.set_aside(&path) {
            Ok(aside) => log_set_aside(&path, &aside, &error),
            Err(refused) => return cannot(&path, &refused),
        }
        self.state_done.insert(path);
        Verdict::Again
    }

    fn mend_cache(&mut self, error: &str) -> Verdict {
        if self.cache_done {
            return hopeless(error, &self.cache_dir);
        }
        match self.set_aside(&self.cache_dir).and_then(|aside| {
            fs::DirBuilder::new().mode(0o700).create(&self.cache_dir)?;
            Ok(aside)
        }) {
            Ok(aside) => log_set_aside(&self.cache_dir, &aside, &error),
            Err(refused) => return cannot(&self.cache_dir, &refused),
        }
        self.cache_done = true;
        Verdict::Again
    }

    /// Arti's state files; empty if they cannot be listed.
    fn state_files(&self) -> Vec<PathBuf> {
        let mut files = list(&self.state_dir.join("state"));
        files.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
        files
    }

    fn arti_dir(&self) -> &Path {
        self.state_dir.parent().unwrap_or(&self.state_dir)
    }

    /// Moves a file or directory to the folder [`ASIDE`]; returns its new path.
    fn set_aside(&self, path: &Path) -> io::Result<PathBuf> {
        let folder = self.arti_dir().join(ASIDE);
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder)?;
        let aside = folder.join(path.file_name().unwrap_or(path.as_os_str()));
        // Remove an earlier one of this name: a rename onto a directory that is not empty would
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
        name: "tor_file_set_aside",
        file = %path.display(), aside = %aside.display(), %error,
        "a damaged file of Tor's is set aside: what was in it is fetched again"
    );
}

fn hopeless(error: &str, path: &Path) -> Verdict {
    Verdict::Hopeless(TorError::Files(format!(
        "{} was set aside as damaged and is damaged again: {error}; check the disk, then remove it",
        path.display()
    )))
}

fn cannot(path: &Path, error: &io::Error) -> Verdict {
    warn!(
        name: "tor_file_aside_retried",
        file = %path.display(), %error,
        "cannot set a damaged file aside, will try again"
    );
    Verdict::Wait
}

/// The entries of a directory, as far as they can be listed.
fn list(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// How a file is damaged whose name ends with a digest. `None` if it is whole, or has no digest in
/// its name and so is not a consensus of Arti.
fn check_digest(path: &Path) -> io::Result<Option<String>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some((_, wanted)) = name.split_once(DIGEST) else { return Ok(None) };
    Ok(match read(path, MAX_CONSENSUS)? {
        Content::Bytes(bytes) if HEXLOWER.encode(&Sha3_256::digest(&bytes)) == wanted => None,
        Content::Bytes(_) => Some("its content does not match the digest in its name".into()),
        Content::Directory => Some("it is a directory".into()),
    })
}

/// Why a file is not a JSON object, as all state files of Arti are; `None` if it is one. The fields
/// are not checked.
fn read_json(path: &Path) -> io::Result<Option<String>> {
    Ok(match read(path, MAX_STATE_FILE)? {
        Content::Bytes(bytes) => {
            let parsed = serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(&bytes);
            parsed.err().map(|error| error.to_string())
        }
        Content::Directory => Some("it is a directory".into()),
    })
}

/// The content of a file, or a directory found in its place.
enum Content {
    Bytes(Vec<u8>),
    Directory,
}

/// Reads a file of at most `most` bytes.
fn read(path: &Path, most: u64) -> io::Result<Content> {
    let mut bytes = Vec::new();
    match fs::File::open(path)?.take(most + 1).read_to_end(&mut bytes) {
        Ok(length) if length as u64 > most => Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) => Ok(Content::Bytes(bytes)),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => Ok(Content::Directory),
        Err(error) => Err(error),
    }
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
    fn state_files_that_are_not_json_are_set_aside_and_others_stay() {
        let (folder, salvage) = arti();
        let state = folder.path().join("state/state");
        for round in 0..2 {
            for (name, content) in [("guards.json", ""), ("cut.json", "{\"a\": [1,"), ("list.json", "[1]")] {
                fs::write(state.join(name), content).unwrap();
            }
            fs::write(state.join("good.json"), "{}").unwrap();
            fs::write(state.join("state.lock"), "").unwrap();
            fs::create_dir_all(state.join("odd.json")).unwrap();
            salvage.set_aside_damaged();
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
        salvage.set_aside_damaged();
        assert!(blobs.join(&good).exists() && blobs.join("another").exists() && !blobs.join(&cut).exists());
        assert!(folder.path().join("damaged").join(&cut).exists());
    }

    /// Setting the guards aside costs anonymity, and a file that cannot be read now may be whole.
    #[test]
    fn unreadable_and_too_long_files_stay() {
        let (folder, salvage) = arti();
        let state = folder.path().join("state/state");
        let long = fs::File::create(state.join("guards.json")).unwrap();
        long.set_len(MAX_STATE_FILE + 1).unwrap();
        std::os::unix::fs::symlink("loop.json", state.join("loop.json")).unwrap();
        salvage.set_aside_damaged();
        assert_eq!(fs::read_dir(&state).unwrap().count(), 2);
        assert!(!folder.path().join("damaged").exists());
    }

    #[test]
    fn only_the_state_file_that_the_error_names_is_set_aside_and_only_once() {
        let (folder, mut salvage) = arti();
        let state = folder.path().join("state/state");
        for name in ["guards.json", "vanguards.json", "other.json"] {
            fs::write(state.join(name), "{}").unwrap();
        }
        let error = |name: &str| format!("JSON error while loading persistent data on state/{name} in /arti/state: x");
        assert!(matches!(salvage.mend_state(&error("vanguards.json")), Verdict::Again));
        assert!(!state.join("vanguards.json").exists() && state.join("guards.json").exists());
        assert!(matches!(salvage.mend_state(&error("guards.json")), Verdict::Again));
        assert!(!state.join("guards.json").exists() && state.join("other.json").exists());
        fs::write(state.join("guards.json"), "{}").unwrap();
        assert!(matches!(salvage.mend_state(&error("guards.json")), Verdict::Hopeless(_)));
        assert!(matches!(salvage.mend_state("JSON error"), Verdict::Hopeless(_)));
        assert!(state.join("guards.json").exists() && state.join("other.json").exists());
    }

    #[test]
    fn an_error_outside_the_database_keeps_the_cache_and_is_final_the_second_time() {
        let (folder, mut salvage) = arti();
        let cache = folder.path().join("cache/dir_blobs");
        assert!(matches!(salvage.at_creation("tor: internal error"), Verdict::Again));
        assert!(matches!(salvage.at_creation("tor: internal error"), Verdict::Hopeless(TorError::Config(..))));
        assert!(cache.exists());
        assert!(matches!(salvage.at_creation("tor: Error from sqlite database: x"), Verdict::Again));
        assert!(!cache.exists() && folder.path().join("damaged/cache/dir_blobs").exists());
        assert!(matches!(salvage.at_creation("tor: sqlite detected bug"), Verdict::Hopeless(TorError::Files(_))));
    }

    #[test]
    fn a_missing_state_is_not_damage() {
        let (folder, salvage) = arti();
        fs::remove_dir_all(folder.path().join("state")).unwrap();
        salvage.set_aside_damaged();
        assert!(!folder.path().join("damaged").exists());
    }
}
