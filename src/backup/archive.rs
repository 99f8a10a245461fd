//! The tar archive inside a backup.
//!
//! Everything in it is bounded and checked before it is used, because the file may come from
//! anywhere: an entry must be a regular file of a name that a backup has, once, and not larger than
//! such a file can be. Links, folders and other paths are refused.

use std::collections::BTreeSet;
use std::io::Read;

use tar::{Archive, Builder, EntryType, Header};
use zeroize::Zeroizing;

use super::{Backup, BackupError, LAYOUT, MAX_BACKUP, MAX_CONFIG, Summary, is_config};
use crate::store::{MAX_STATE_FILE, StateFile, is_state_path};

/// The first file of the archive.
const SUMMARY: &str = "backup.json";
/// Its largest size, in bytes.
const MAX_SUMMARY: usize = 4096;
/// Most files in an archive. A node with the most services has fewer.
const MAX_FILES: usize = 256;
/// Bytes that tar adds to a file at most: its header, and zeros up to the next block.
const OVERHEAD: usize = 1024;

/// Builds the archive.
pub(super) fn build(backup: &Backup) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let failed = |error: &dyn std::fmt::Display| BackupError::Encrypt(error.to_string());
    let summary = serde_json::to_vec_pretty(&backup.summary).map_err(|error| failed(&error))?;
    let summary = StateFile { path: SUMMARY.into(), bytes: Zeroizing::new(summary) };
    let files = || std::iter::once(&summary).chain(&backup.state).chain(&backup.config);
    let size: usize = files().map(|file| file.bytes.len() + OVERHEAD).sum();
    if size + OVERHEAD > MAX_BACKUP {
        return Err(BackupError::TooLarge { path: "the backup".into(), max: MAX_BACKUP });
    }
    // Never grows, so that no freed memory holds a copy of a key.
    let mut archive = Zeroizing::new(Vec::with_capacity(size + OVERHEAD));
    let mut builder = Builder::new(&mut *archive);
    for StateFile { path, bytes } in files() {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(backup.summary.made);
        builder.append_data(&mut header, path, bytes.as_slice()).map_err(|error| failed(&error))?;
    }
    builder.finish().map_err(|error| failed(&error))?;
    drop(builder);
    Ok(archive)
}

/// Reads an archive.
pub(super) fn read(archive: &[u8]) -> Result<Backup, BackupError> {
    let unreadable = |error: std::io::Error| BackupError::Content(error.to_string());
    let mut archive = Archive::new(archive);
    let (mut summary, mut names) = (None, BTreeSet::new());
    let (mut state, mut config) = (Vec::new(), Vec::new());
    // Raw entries: extensions of tar, such as long names, are refused like other types.
    for (count, entry) in archive.entries().map_err(unreadable)?.raw(true).enumerate() {
        let mut entry = entry.map_err(unreadable)?;
        let path = String::from_utf8(entry.path_bytes().into_owned())
            .map_err(|_| BackupError::Content("the name of a file is not text".into()))?;
        let refuse = |why: &str| BackupError::Content(format!("{path:?} {why}"));
        if count >= MAX_FILES {
            return Err(refuse("is one file too many"));
        }
        if entry.header().entry_type() != EntryType::Regular {
            return Err(refuse("is not a plain file"));
        }
        let max = match path.as_str() {
            SUMMARY if count == 0 => MAX_SUMMARY,
            name if is_config(name) => MAX_CONFIG,
            name if is_state_path(name) => MAX_STATE_FILE,
            _ => return Err(refuse("does not belong there")),
        };
        if !names.insert(path.clone()) {
            return Err(refuse("is there twice"));
        }
        let size = usize::try_from(entry.header().entry_size().map_err(unreadable)?).unwrap_or(usize::MAX);
        if size > max {
            return Err(refuse("is too large"));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(size));
        entry.read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() != size {
            return Err(refuse("is cut short"));
        }
        match path.as_str() {
            SUMMARY => summary = Some(parse(&bytes)?),
            name if is_config(name) => config.push(StateFile { path, bytes }),
            _ => state.push(StateFile { path, bytes }),
        }
    }
    let summary = summary.ok_or_else(|| BackupError::Content(format!("it does not begin with {SUMMARY}")))?;
    Ok(Backup { summary, state, config })
}

/// Reads the summary. Only the layout and the release are read of one in a later layout.
fn parse(bytes: &[u8]) -> Result<Summary, BackupError> {
    #[derive(serde::Deserialize)]
    struct Layout {
        layout: u32,
        version: String,
    }
    let wrong = |error: serde_json::Error| BackupError::Content(format!("{SUMMARY}: {error}"));
    let Layout { layout, version } = serde_json::from_slice(bytes).map_err(wrong)?;
    if layout != LAYOUT {
        let release: String = version.chars().filter(char::is_ascii_graphic).take(32).collect();
        return Err(BackupError::Newer { release });
    }
    serde_json::from_slice(bytes).map_err(wrong)
}
