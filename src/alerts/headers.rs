//! The file with headers for the webhook, such as `Authorization: Bearer ...`.
//!
//! It is read for each request, so a new secret takes effect at once. No error shows a line of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};

use crate::bounded;

/// Largest file, in bytes.
const MOST_BYTES: usize = 8192;
/// Headers that the request itself has.
const TAKEN: [HeaderName; 5] = [HOST, CONTENT_LENGTH, CONTENT_TYPE, CONNECTION, TRANSFER_ENCODING];

/// Why the headers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeadersError {
    /// The file cannot be read.
    #[error("cannot read the webhook's headers in {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Other users may read the file.
    #[error("other users may read the webhook's headers in {} (mode {mode:03o}): `chmod 600` it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is larger than a few headers are.
    #[error("{} is larger than {MOST_BYTES} bytes: it should have a few headers, one on each line", .0.display())]
    TooLarge(PathBuf),
    /// A line is not a header.
    #[error("line {line} of {} is not a header that may be set: write `Name: value`", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
    },
}

/// Reads the headers of a file. Empty lines and lines that begin with `#` are skipped.
pub(super) fn read(path: &Path) -> Result<HeaderMap, HeadersError> {
    let failed = |source| HeadersError::Io { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(HeadersError::Exposed { path: path.into(), mode });
    }
    let bytes = bounded::read(file, MOST_BYTES).map_err(failed)?;
    let bytes = bytes.ok_or_else(|| HeadersError::TooLarge(path.into()))?;
    let mut headers = HeaderMap::new();
    for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let header = parse(line).ok_or(HeadersError::Line { path: path.into(), line: at + 1 })?;
        headers.append(header.0, header.1);
    }
    Ok(headers)
}

fn parse(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at(colon);
    let name = HeaderName::from_bytes(name).ok().filter(|name| !TAKEN.contains(name))?;
    let mut value = HeaderValue::from_bytes(value.get(1..)?.trim_ascii()).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("headers");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn headers_are_read_and_never_shown() {
        let (_folder, path) = file("# the pager\n\nAuthorization: Bearer s3cret\r\nX-Team:ops\n", 0o600);
        let headers = read(&path).unwrap();
        assert_eq!((headers.len(), headers["authorization"].as_bytes()), (2, &b"Bearer s3cret"[..]));
        assert!(!format!("{headers:?}").contains("s3cret"), "{headers:?}");
    }

    #[test]
    fn a_file_that_others_may_read_or_that_has_other_lines_is_refused_without_its_content() {
        for (text, mode, why) in [
            ("A: s3cret\n", 0o640, "(mode 640): `chmod 600` it"),
            ("A: b\ns3cret\n", 0o600, "line 2 of "),
            ("Host: s3cret\n", 0o600, "line 1 of "),
            ("A: s3cret\u{1}\n", 0o600, "line 1 of "),
        ] {
            let (_folder, path) = file(text, mode);
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("s3cret"), "{error}");
        }
        let (_folder, path) = file(&"# x\n".repeat(4000), 0o600);
        assert!(matches!(read(&path), Err(HeadersError::TooLarge(_))));
        assert!(matches!(read(Path::new("/none")), Err(HeadersError::Io { .. })));
    }
}
