//! What the daemon will need, looked at beforehand: by `init` and `join` before anything is made or
//! a token is spent, and by `run` before it judges certificates. Everything that is wrong here
//! stays so until the operator has mended it.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use crate::clock::{self, date, unix_now};
use crate::control::{self, ControlError};
use crate::tor::TorError;
use crate::tor::arti::{ArtiConfig, check};

/// Fewest file descriptors with which a node can run at all: Tor's circuits and its cache, the
/// links, a few clients.
const FEWEST_DESCRIPTORS: u64 = 256;
/// What a probe's directory is called, with some random characters behind; short, for the sake of
/// the socket's path.
const PROBE: &str = ".try-";
/// Random characters of its name: a probe's path is no longer than that of the control socket.
const PROBE_RANDOM: usize = 4;

/// What a node could not run with on this machine, and the way out.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The clock cannot be right.
    #[error(
        "this machine's clock says {} (Unix time {unix}), which is {}: set it, for certificates are judged and made by it",
        shown(*unix), if *unix < clock::RELEASED { "before this version was made" } else { "absurdly late" }
    )]
    Clock {
        /// What it says, in seconds since the Unix epoch.
        unix: u64,
    },
    /// Too few file descriptors.
    #[error(
        "this process may have {most} files open, a node needs {FEWEST_DESCRIPTORS} at least: raise the hard limit \
         (`ulimit -Hn`, or LimitNOFILE= of the systemd unit)"
    )]
    Descriptors {
        /// The hard limit.
        most: u64,
    },
    /// The control socket's path.
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
        /// What the system says.
        source: io::Error,
    },
    /// The file system has no locks.
    #[error(
        "the file system of {} has no file locks, with which a second daemon is kept out ({source}): over NFS, mount it \
         with version 4 or with `nolock`, or choose with --dir a directory on a local file system", dir.display()
    )]
    NoLocks {
        /// The directory that was tried.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Arti's configuration, or the directories around Arti's.
    #[error(transparent)]
    Tor(#[from] TorError),
}

/// Checks that a node in the state directory `dir`, which need not be there yet, can run with Arti
/// configured by `arti`. Nothing stays of what is made to try it.
///
/// # Errors
/// The first thing that is wrong, each with its way out.
pub fn preflight(dir: &Path, arti: &str) -> Result<(), PreflightError> {
    check_clock(unix_now())?;
    // Without a limit there is none to be too low.
    check_descriptors(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX))?;
    control::socket_path(dir)?;
    probe(dir, bind, lock)?;
    let config =
        ArtiConfig { toml: arti.to_owned(), state_dir: dir.join("arti/state"), cache_dir: dir.join("arti/cache") };
    Ok(check(&config)?)
}

fn check_clock(unix: u64) -> Result<(), PreflightError> {
    if clock::PLAUSIBLE.contains(&unix) { Ok(()) } else { Err(PreflightError::Clock { unix }) }
}

fn check_descriptors(most: u64) -> Result<(), PreflightError> {
    if most < FEWEST_DESCRIPTORS { Err(PreflightError::Descriptors { most }) } else { Ok(()) }
}

/// A time for a person; seconds that no calendar holds as they are.
fn shown(unix: u64) -> String {
    date(unix).unwrap_or_else(|| unix.to_string())
}

/// Makes a socket and takes a lock where the state directory is or will be: in it, or in the
/// nearest directory above.
fn probe(
    dir: &Path,
    bind: impl Fn(&Path) -> io::Result<()>,
    lock: impl Fn(&Path) -> io::Result<()>,
) -> Result<(), PreflightError> {
    let Some(nearest) = dir.ancestors().find(|ancestor| ancestor.is_dir()) else { return Ok(()) };
    // A directory that cannot be written to is reported by the code that writes there.
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

/// Whether the file system cannot do it at all: what a full or failing disk says passes.
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
    fn a_file_system_without_sockets_or_locks_is_refused_and_nothing_stays_of_the_trial() {
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
        // A disk that is full, read-only or failing may do tomorrow.
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
            // With the sticky bit, as /tmp has it, no user can replace what another has made.
            fs::set_permissions(&parent, fs::Permissions::from_mode(0o1777)).unwrap();
            preflight(&parent.join("node"), "").unwrap();
            assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        }
    }

    #[test]
    fn artis_configuration_is_judged_as_the_daemon_will() {
        let folder = tempfile::tempdir().unwrap();
        let error =
            preflight(&folder.path().join("node"), "[logging]\nx = 1\n[proxy]\ny = 1\n").unwrap_err().to_string();
        assert!(error.contains("\"logging") && error.contains("\"proxy"), "{error}");
    }
}
