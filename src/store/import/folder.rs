//! Finds the key file in a folder.

use std::fs;
use std::path::{Path, PathBuf};

use super::ImportError;

/// Names of files that hold an identity key: of C tor and mkp224o, of Arti, of this program, and of
/// version 1 of its state directory. In a folder, the first that exists is taken.
pub(super) const NAMES: [&str; 4] =
    ["hs_ed25519_secret_key", "ks_hs_id.ed25519_expanded_private", "identity.key", "master.key"];
/// Depth of the search below the folder, for Arti's `keystore/hss/NICKNAME`.
const DEPTH: u32 = 3;
/// Most entries of a folder that are searched.
const MOST_ENTRIES: usize = 4096;

/// The only key file in `folder`, or in the folders below it.
pub(super) fn find(folder: &Path) -> Result<PathBuf, ImportError> {
    let mut found = Vec::new();
    search(folder, DEPTH, &mut found)?;
    found.sort();
    match found.as_slice() {
        [] => Err(ImportError::NotFound(folder.to_owned())),
        [one] => Ok(one.clone()),
        [one, ..] => Err(ImportError::Several { folder: folder.to_owned(), one: one.clone() }),
    }
}

fn search(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) -> Result<(), ImportError> {
    if let Some(known) = NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
        found.push(known);
        return Ok(());
    }
    // A RustBalance state directory: its other keys are not keys of services.
    if folder.join("node.key").is_file() && folder.join("services").is_dir() {
        return search(&folder.join("services"), depth, found);
    }
    let io = |source| ImportError::Io { path: folder.to_owned(), source };
    let (mut keys, mut folders) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(io)?.take(MOST_ENTRIES) {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        if path.extension().is_some_and(|ending| ending == "key") && path.is_file() {
            keys.push(path);
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders.push(path);
        }
    }
    let here = !keys.is_empty();
    found.append(&mut keys);
    if !here && depth > 0 {
        for folder in folders {
            search(&folder, depth - 1, found)?;
        }
    }
    Ok(())
}
