//! The format of a state file, and how it is written.
//!
//! A line of text, then the payload:
//!
//! ```text
//! rustbalance <kind> v<format> <owner>.onion <payload bytes> <SHA3-256 in hexadecimal>\n
//! ```
//!
//! Each kind has its own format numbers (see [`Kind`]); the owner is the cluster or the service.
//! The checksum covers the line up to itself and the payload, so that a change of any byte is
//! detected.
//!
//! To replace a file, a new one is written beside it, synced, and renamed over the old one; then
//! the directory is synced. After a crash at any moment, either the old or the new content is
//! there. Key files are never replaced.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use rustbalance_gossip::hash::{Label, labelled};
use rustbalance_gossip::id::OnionAddress;
use zeroize::Zeroizing;

use super::access;
use super::error::{Damage, StoreError};
use super::kind::Kind;
use crate::new_file::{self, Existing, UNFINISHED};

/// The beginning of every file.
const MAGIC: &str = "rustbalance";
/// Longest first line, in bytes, with its line end. This build writes at most 180.
const MAX_HEADER: usize = 256;

/// The content of a file. It may be a key, so it is wiped from memory after use.
pub(super) type Payload = Zeroizing<Vec<u8>>;

/// The first line up to the checksum.
fn header(name: &str, format: u32, owner: OnionAddress, payload: usize) -> String {
    format!("{MAGIC} {name} v{format} {owner} {payload} ")
}

fn checksum(header: &str, payload: &[u8]) -> String {
    HEXLOWER.encode(&labelled(Label::StateFile, &[header.as_bytes(), b"\0", payload]))
}

/// A complete file in the current format of its kind.
pub(super) fn encode(kind: Kind, owner: OnionAddress, payload: &[u8]) -> Zeroizing<Vec<u8>> {
    encode_as(kind.name(), kind.row().format, owner, payload)
}

/// A complete file of any kind and format.
pub(super) fn encode_as(name: &str, format: u32, owner: OnionAddress, payload: &[u8]) -> Zeroizing<Vec<u8>> {
    let header = header(name, format, owner, payload.len());
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_HEADER + payload.len()));
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(checksum(&header, payload).as_bytes());
    bytes.push(b'\n');
    bytes.extend_from_slice(payload);
    bytes
}

/// The largest size of a file of this kind, in bytes, header included.
pub(super) fn max_size(kind: Kind) -> usize {
    MAX_HEADER + kind.max_payload()
}

/// True if the content begins like a state file, even if it is incomplete.
pub(super) fn is_ours(bytes: &[u8]) -> bool {
    bytes.strip_prefix(MAGIC.as_bytes()).is_some_and(|rest| rest.starts_with(b" "))
}

/// The name of the kind and the format number in a first line, which are in the same place in every
/// format. Nothing is verified.
pub(super) fn label(bytes: &[u8]) -> Result<(&str, u32), Damage> {
    let mut fields = bytes.get(..bytes.len().min(MAX_HEADER)).unwrap_or_default().splitn(4, |byte| *byte == b' ');
    let mut next = || fields.next().and_then(|field| std::str::from_utf8(field).ok()).ok_or(Damage::Header);
    if next()? != MAGIC {
        return Err(Damage::Header);
    }
    let (name, format) = (next()?, next()?);
    let format = format.strip_prefix('v').and_then(|digits| digits.parse().ok()).ok_or(Damage::Header)?;
    Ok((name, format))
}

/// A file whose checksum matches.
pub(super) struct Whole<'a> {
    /// The name of its kind.
    pub(super) name: &'a str,
    /// Its format number.
    pub(super) format: u32,
    /// The address of the cluster or service that it belongs to.
    pub(super) owner: OnionAddress,
    /// Everything after the first line.
    pub(super) payload: &'a [u8],
}

impl<'a> Whole<'a> {
    /// Parses a file of any kind and format, and verifies its checksum.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Damage> {
        if bytes.is_empty() {
            return Err(Damage::Empty);
        }
        let (name, format) = label(bytes)?;
        let line_end = bytes.iter().take(MAX_HEADER).position(|&byte| byte == b'\n').ok_or(Damage::Header)?;
        let (line, payload) = (&bytes[..line_end], &bytes[line_end + 1..]);
        let line = std::str::from_utf8(line).map_err(|_| Damage::Header)?;
        let mut fields = line.split(' ').skip(3);
        let mut next = || fields.next().ok_or(Damage::Header);
        let owner: OnionAddress = next()?.parse().map_err(|_| Damage::Header)?;
        let want: usize = next()?.parse().map_err(|_| Damage::Header)?;
        let sum = next()?;
        if payload.len() != want {
            let have = payload.len();
            return Err(if have < want { Damage::Short { have, want } } else { Damage::Long { have, want } });
        }
        // The line is rebuilt and compared, so that only one spelling is accepted.
        let header = header(name, format, owner, want);
        if line.strip_prefix(&header) != Some(sum) || sum != checksum(&header, payload) {
            return Err(Damage::Checksum);
        }
        Ok(Self { name, format, owner, payload })
    }
}

/// The owner and the payload of a complete file in the current format of its kind.
pub(super) fn decode(kind: Kind, bytes: &[u8]) -> Result<(OnionAddress, &[u8]), Damage> {
    if bytes.is_empty() {
        return Err(Damage::Empty);
    }
    let (name, format) = label(bytes)?;
    let found = Kind::from_name(name).ok_or(Damage::Header)?;
    // The format is checked first, because everything else may differ in another format.
    found.check_format(format)?;
    let Whole { owner, payload, .. } = Whole::read(bytes)?;
    if found == kind { Ok((owner, payload)) } else { Err(Damage::Kind(name.to_owned())) }
}

/// The owner and payload of the file at `path`, in its current format; `None` if it does not exist.
pub(super) fn read(path: &Path, kind: Kind) -> Result<Option<(OnionAddress, Payload)>, StoreError> {
    let Some(bytes) = read_bytes(path, kind)? else { return Ok(None) };
    let (owner, payload) = decode_at(path, kind, &bytes)?;
    Ok(Some((owner, Zeroizing::new(payload.to_vec()))))
}

/// [`decode`] of the bytes of the file at `path`.
pub(super) fn decode_at<'a>(path: &Path, kind: Kind, bytes: &'a [u8]) -> Result<(OnionAddress, &'a [u8]), StoreError> {
    decode(kind, bytes).map_err(|damage| StoreError::Damaged { path: path.to_owned(), kind, damage })
}

/// The whole file at `path`, in any format; `None` if there is no such file. Fails if other users
/// may read it, or if it is larger than its kind allows.
pub(super) fn read_bytes(path: &Path, kind: Kind) -> Result<Option<Payload>, StoreError> {
    read_bytes_of(path, kind, pwd_grp::geteuid())
}

/// [`read_bytes`] of a file that must belong to the user `owner`.
pub(super) fn read_bytes_of(path: &Path, kind: Kind, owner: u32) -> Result<Option<Payload>, StoreError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path, error)),
    };
    access::check_one_of(path, &metadata, false, owner)?;
    let max = max_size(kind);
    let size = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    if size > max {
        let damage = Damage::Long { have: size, want: max };
        return Err(StoreError::Damaged { path: path.to_owned(), kind, damage });
    }
    // The buffer never grows, so that no freed memory holds a copy of a key.
    let mut bytes = Zeroizing::new(Vec::with_capacity(max.min(size + 1)));
    File::open(path)
        .and_then(|file| file.take(size as u64).read_to_end(&mut bytes))
        .map_err(|error| StoreError::io("read", path, error))?;
    Ok(Some(bytes))
}

/// The first [`MAX_HEADER`] bytes of a file, or all of it if it is shorter.
pub(super) fn read_beginning(path: &Path) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::with_capacity(MAX_HEADER);
    File::open(path)
        .and_then(|file| file.take(MAX_HEADER as u64).read_to_end(&mut bytes))
        .map_err(|error| StoreError::io("read", path, error))?;
    Ok(bytes)
}

/// Creates a directory (0700), or checks the permissions of an existing one. True if it was
/// created.
pub(super) fn make_dir(path: &Path) -> Result<bool, StoreError> {
    let made = match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(StoreError::io("make", path, error)),
    };
    if made {
        sync_dir(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    }
    let metadata = fs::metadata(path).map_err(|error| StoreError::io("read", path, error))?;
    access::check_one(path, &metadata, true)?;
    Ok(made)
}

/// Creates a folder (0700) that [`sweep`] removes unless it is renamed.
pub(super) fn unfinished_dir(dir: &Path) -> Result<PathBuf, StoreError> {
    let made = tempfile::Builder::new().prefix(UNFINISHED).permissions(Permissions::from_mode(0o700)).tempdir_in(dir);
    Ok(made.map_err(|error| StoreError::io("make", dir, error))?.keep())
}

/// Writes the file at `path`, replacing an existing one.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    put(path, Existing::Replace, |file| file.write_all(bytes))
}

/// Creates the key file at `path`. Fails if a file with a different content exists.
pub(super) fn create(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    match put(path, Existing::Keep, |file| file.write_all(bytes)) {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            let mut there = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
            File::open(path)
                .and_then(|file| file.take(bytes.len() as u64 + 1).read_to_end(&mut there))
                .map_err(|error| StoreError::io("read", path, error))?;
            if **there == *bytes { Ok(()) } else { Err(StoreError::KeyExists(path.to_owned())) }
        }
        other => other,
    }
}

fn put(path: &Path, existing: Existing, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), StoreError> {
    new_file::write(path, existing, write).map_err(|error| StoreError::io("write", path, error))
}

/// Moves a file or folder to a path where nothing exists. On disk when this returns.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(|error| StoreError::io("move", from, error))?;
    for path in [to, from] {
        sync_dir(path.parent().unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Removes a file, if it exists. On disk when this returns.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(path.parent().unwrap_or(Path::new("."))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::io("remove", path, error)),
    }
}

/// Removes a folder, if it exists and is empty.
pub(super) fn remove_if_empty(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir(path) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(StoreError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Removes the unfinished files and folders that a crash has left. The caller holds the lock.
pub(super) fn sweep(dir: &Path) -> Result<(), StoreError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::io("read", dir, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| StoreError::io("read", dir, error))?;
        if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            continue;
        }
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            fs::remove_dir_all(&path).map_err(|error| StoreError::io("remove", &path, error))?;
        } else {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Makes renames and removals in `dir` survive a power failure.
fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| StoreError::io("sync", dir, error))
}

/// Opens the lock file, and creates it (0600) if it is missing.
pub(super) fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use proptest::prelude::*;

    fn cluster() -> OnionAddress {
        OnionAddress::from_public_key([7; 32])
    }

    #[test]
    fn a_file_reads_as_it_was_written() {
        let bytes = encode(Kind::Term, cluster(), b"payload");
        assert_eq!(decode(Kind::Term, &bytes), Ok((cluster(), &b"payload"[..])));
        assert!(bytes.starts_with(b"rustbalance term v1 "));
        assert_eq!(decode(Kind::Boot, &bytes), Err(Damage::Kind("term".into())));
    }

    #[test]
    fn every_truncation_and_every_changed_bit_is_noticed() {
        let bytes = encode(Kind::NodeKey, cluster(), &[0xa5; 32]);
        for length in 0..bytes.len() {
            assert!(decode(Kind::NodeKey, &bytes[..length]).is_err(), "cut to {length}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.to_vec();
                changed[at] ^= 1 << bit;
                assert!(decode(Kind::NodeKey, &changed).is_err(), "bit {bit} of byte {at}");
            }
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(decode(Kind::NodeKey, &longer), Err(Damage::Long { have: 33, want: 32 }));
    }

    #[test]
    fn a_newer_format_is_distinguished_from_damage() {
        let text = b"rustbalance term v9 something else entirely\n";
        assert_eq!(decode(Kind::Term, text), Err(Damage::Newer { format: 9, newest: 1 }));
    }

    #[test]
    fn an_older_format_is_distinguished_from_damage_unless_it_is_older_than_its_kind() {
        let of = |kind: Kind, format| encode_as(kind.name(), format, cluster(), b"payload");
        let older = Err(Damage::Older { format: 1, newest: 2 });
        assert_eq!(decode(Kind::MasterPub, &of(Kind::MasterPub, 1)), older);
        assert_eq!(decode(Kind::Version, &of(Kind::Version, 1)), Err(Damage::Header));
    }

    #[test]
    fn a_write_that_fails_half_way_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("term");
        replace(&path, b"old").unwrap();
        let full = put(&path, Existing::Replace, |file| {
            file.write_all(b"ne")?;
            Err(io::Error::from_raw_os_error(28))
        });
        assert!(matches!(full, Err(StoreError::Full(at)) if at == path));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        create(&path, b"one").unwrap();
        create(&path, b"one").unwrap();
        assert!(matches!(create(&path, b"two"), Err(StoreError::KeyExists(_))));
        assert!(matches!(create(&path, b"one and more"), Err(StoreError::KeyExists(_))));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_file_that_others_could_read_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        create(&path, &encode(Kind::NodeKey, cluster(), &[1; 32])).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = read(&path, Kind::NodeKey).unwrap_err().to_string();
        assert!(error.contains("mode 0640") && error.contains(&format!("chmod -R go= {}", path.display())), "{error}");
        std::os::unix::fs::symlink(&path, folder.path().join("boot")).unwrap();
        assert!(matches!(read(&folder.path().join("boot"), Kind::Boot), Err(StoreError::NotPlain { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(Kind::Term, &bytes).is_err());
        }

        #[test]
        fn a_header_of_any_text_is_survived(line in "rustbalance (term|boot|x) v[0-9]{1,3} [ -~]{0,90} [0-9]{1,30} [0-9a-f]{0,70}\n") {
            prop_assert!(decode(Kind::Term, line.as_bytes()).is_err());
        }
    }
}
