//! Checks what the daemon will need: `init` and `join` run it before they make anything or spend a
//! token, `run` before it checks certificates. Each problem found here persists until the operator
//! fixes it.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use crate::clock::{self, date, unix_now};
use crate::control::{self, ControlError};
use crate::store::arti_dirs;
use crate::tor::TorError;
use crate::tor::arti::{ArtiConfig, check};

/// Minimum number of file descriptors for a node: Tor's circuits and cache, the links, a few
/// clients.
const FEWEST_DESCRIPTORS: u64 = 256;
/// Prefix of the probe's directory; random characters follow. Short, because the socket's path is
/// limited.
const PROBE: &str = ".try-";
/// Number of random characters: the path of the probe's socket is no longer than that of the
/// control socket.
const PROBE_RANDOM: usize = 4;

/// Why a node cannot run on this machine. The text includes the way out.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The clock is not plausible.
    #[error(
        "this machine's clock says {} (Unix time {unix}), which is {}: set it, because certificates are checked and made with it",
        shown(*unix), if *unix < clock::RELEASED { "before this version was made" } else { "absurdly late" }
    )]
    Clock {
        /// The clock's time, in seconds since the Unix epoch.
        unix: u64,
    },
    /// The limit on file descriptors is too low.
    #[error(
        "this process may open {most} files, and a node needs at least {FEWEST_DESCRIPTORS}: raise the hard limit \
         (`ulimit -Hn`, or LimitNOFILE= of the systemd unit)"
    )]
    Descriptors {
        /// The hard limit.
        most: u64,
    },
    /// The control socket's path is too long.
    #[error(transparent)]
    Socket(#[from] ControlError),
    /// The file system has no Unix sockets.
    #[error(
        "the file system of {} has no Unix sockets, which the control socket needs ({source}): choose with --dir a \
         directory on a local file system such as ext4, XFS or Btrfs", dir.display()
    )]
    NoSockets {
        /// The directory that was tried.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file system has no locks.
    #[error(
        "the file system of {} has no file locks, which keep a second daemon out ({source}): over NFS, mount it \
         with version 4 or with `nolock`, or choose with --dir a directory on a local file system", dir.display()
    )]
    NoLocks {
        /// The directory that was tried.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Arti's configuration is not valid, or its directories cannot be used.
    #[error(transparent)]
    Tor(#[from] TorError),
}

/// Checks that a node in the state directory `dir`, which need not exist yet, can run with Arti
/// configured by `arti`. Everything made for the check is removed.
///
/// # Errors
/// The first problem found.
pub fn preflight(dir: &Path, arti: &str) -> Result<(), PreflightError> {
    check_clock(unix_now())?;
    // Without a limit, nothing can be too low.
    check_descriptors(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX))?;
    control::socket_path(dir)?;
    probe(dir, bind, lock)?;
    Ok(check_arti(dir, arti)?)
}

/// Checks Arti's configuration and its directories below `dir`; see [`check`].
pub(super) fn check_arti(dir: &Path, arti: &str) -> Result<(), TorError> {
    let (state_dir, cache_dir) = arti_dirs(dir);
    check(&ArtiConfig { toml: arti.to_owned(), state_dir, cache_dir })
}

pub(super) fn check_clock(unix: u64) -> Result<(), PreflightError> {
    if clock::PLAUSIBLE.contains(&unix) { Ok(()) } else { Err(PreflightError::Clock { unix }) }
}

pub(super) fn check_descriptors(most: u64) -> Result<(), PreflightError> {
    if most < FEWEST_DESCRIPTORS { Err(PreflightError::Descriptors { most }) } else { Ok(()) }
}

/// A time for the operator: a date, or the seconds if no calendar has them.
fn shown(unix: u64) -> String {
    date(unix).unwrap_or_else(|| unix.to_string())
}

/// Makes a socket and takes a lock in the state directory, or in the nearest directory above it
/// that exists.
fn probe(
    dir: &Path,
    bind: impl Fn(&Path) -> io::Result<()>,
    lock: impl Fn(&Path) -> io::Result<()>,
) -> Result<(), PreflightError> {
    let Some(nearest) = dir.ancestors().find(|ancestor| ancestor.is_dir()) else { return Ok(()) };
    // The code that writes there reports a directory that is not writable.
    let Ok(place) = tempfile::Builder::new().prefix(PROBE).rand_bytes(PROBE_RANDOM).tempdir_in(nearest) else {
        return Ok(());
    };
    let nearest = || nearest.to_owned();
    match bind(&place.path().join("s")) {
        Err(source) if is_unsupported(&source) => return Err(PreflightError::NoSockets { dir: nearest(), source }),
        _ => {}
    }
    match lock(&place.path().join("l")) {
        Err(source) if is_unsupported(&source) => Err(PreflightError::NoLocks { dir: nearest(), source }),
        _ => Ok(()),
    }
}

fn bind(path: &Path) -> io::Result<()> {
    UnixListener::bind(path).map(|_| ())
}

fn lock(path: &Path) -> io::Result<()> {
    match File::create(path)?.try_lock() {
        Err(TryLockError::Error(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Whether the file system does not support the operation. Errors of a full or failing disk may
/// pass and do not count.
fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let unsupported = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOTSUP, Errno::NOSYS, Errno::INVAL, Errno::NOLCK];
    error.raw_os_error().is_some_and(|code| unsupported.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn works(_: &Path) -> io::Result<()> {
        Ok(())
    }

    #[test]
    fn a_clock_of_other_decades_is_refused() {
        let year = |year: u64| (year - 1970) * 31_556_952 + 86_400;
        for wrong in [0, 1000, year(2000), year(2015), year(2024), year(2040), year(9000), u64::MAX] {
            let error = check_clock(wrong).unwrap_err().to_string();
            assert!(error.contains(&wrong.to_string()) && error.contains("set it"), "{error}");
        }
        for right in [clock::RELEASED, year(2027), year(2035)] {
            check_clock(right).unwrap();
        }
        check_clock(unix_now()).unwrap();
        assert!(check_clock(0).unwrap_err().to_string().contains("1970-01-01T00:00:00Z"));
    }

    #[test]
    fn too_few_descriptors_are_refused_with_the_number() {
        let error = check_descriptors(40).unwrap_err().to_string();
        assert!(error.contains("40") && error.contains("LimitNOFILE"), "{error}");
        check_descriptors(1024).unwrap();
    }

    #[test]
    fn a_file_system_without_sockets_or_locks_is_refused_and_the_test_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("deep/er");
        let refuse = |errno: i32| move |_: &Path| Err(io::Error::from_raw_os_error(errno));
        for errno in [1, 95, 22] {
            let error = probe(&dir, refuse(errno), works).unwrap_err();
            assert!(matches!(&error, PreflightError::NoSockets { dir, .. } if dir == folder.path()), "{error}");
            assert!(error.to_string().contains("--dir"), "{error}");
        }
        for errno in [37, 95, 38] {
            let error = probe(&dir, works, refuse(errno)).unwrap_err();
            assert!(matches!(error, PreflightError::NoLocks { .. }) && error.to_string().contains("NFS"), "{error}");
        }
        // Errors that may pass: the disk is full, read-only or failing.
        for errno in [28, 30, 5, 13, 122] {
            probe(&dir, refuse(errno), refuse(errno)).unwrap();
        }
        probe(&dir, bind, lock).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_and_the_longest_that_fits_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let longest = crate::proxy::MAX_UNIX_PATH - "/control.sock".len();
        let fill = longest - folder.path().as_os_str().len() - 1;
        let fits = folder.path().join("x".repeat(fill));
        preflight(&fits, "").unwrap();
        fs::create_dir(&fits).unwrap();
        let refuse_long = |path: &Path| {
            assert!(path.as_os_str().len() <= crate::proxy::MAX_UNIX_PATH, "{}", path.display());
            bind(path)
        };
        probe(&fits, refuse_long, lock).unwrap();
        let error = preflight(&folder.path().join("x".repeat(fill + 1)), "").unwrap_err();
        assert!(matches!(error, PreflightError::Socket(ControlError::PathTooLong(_))), "{error}");
    }

    #[test]
    fn a_parent_that_others_may_write_is_refused_with_the_command_that_mends_it() {
        for mode in [0o775, 0o777, 0o757] {
            let folder = tempfile::tempdir().unwrap();
            let parent = folder.path().join("a parent");
            fs::create_dir(&parent).unwrap();
            fs::set_permissions(&parent, fs::Permissions::from_mode(mode)).unwrap();
            let error = preflight(&parent.join("node"), "").unwrap_err().to_string();
            assert!(error.contains(&format!("`chmod go-w '{}'`", parent.display())), "{error}");
            assert!(error.contains(&format!("mode {mode:04o}")), "{error}");
            fs::set_permissions(&parent, fs::Permissions::from_mode(0o755)).unwrap();
            preflight(&parent.join("node"), "").unwrap();
            // With the sticky bit, as on /tmp, no user can replace another user's files.
            fs::set_permissions(&parent, fs::Permissions::from_mode(0o1777)).unwrap();
            preflight(&parent.join("node"), "").unwrap();
            assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        }
    }

    #[test]
    fn artis_configuration_is_checked_as_the_daemon_checks_it() {
        let folder = tempfile::tempdir().unwrap();
        let error =
            preflight(&folder.path().join("node"), "[logging]\nx = 1\n[proxy]\ny = 1\n").unwrap_err().to_string();
        assert!(error.contains("\"logging") && error.contains("\"proxy"), "{error}");
    }
}
