//! Detects that Arti's task that updates the network's directory has ended: the directory is then
//! out of date for long.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Least time for which an expired directory is tolerated.
const LATE: Duration = Duration::from_secs(120);

/// How long an expired directory is tolerated, in lifetimes of the directory (3 hours on the public
/// network). The first value applies if the disk has refused writes; else each client draws its
/// own from the range. If the authorities publish no directory, Arti can use the old one for three
/// days, so the nodes of a cluster must not give up soon, and not all at once.
pub(super) const LATE_LIFETIMES: (f64, Range<f64>) = (0.25, 1.0..3.0);

/// With less free space than this, in bytes, a disk may be too full for a directory.
const ROOM: u64 = 16 << 20;

/// Bytes written to test whether a disk accepts writes.
const PROBE: usize = 4096;

/// True if the disk of this folder is full or nearly full, or refuses a small write for any reason
/// (it was remounted read-only, a quota is used up, the device fails).
pub(super) fn refuses_writes(folder: &Path) -> bool {
    let full = rustix::fs::statvfs(folder).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM);
    let probe = || {
        let mut file = tempfile::tempfile_in(folder)?;
        file.write_all(&[0; PROBE])?;
        file.sync_data()
    };
    full || probe().is_err()
}

/// Tracks for how long the network's directory has been expired.
#[derive(Debug)]
pub(super) struct Lateness {
    /// End of validity of the directory in use.
    until: Option<SystemTime>,
    /// When this directory was first seen expired.
    since: Option<Instant>,
    /// Whether the disk refused writes while this directory was in use: if so, Arti's updates have
    /// most likely ended.
    disk_refused: bool,
    /// Tolerance in lifetimes of the directory, if the disk did not refuse writes.
    lifetimes: f64,
}

impl Lateness {
    pub(super) fn new(lifetimes: f64) -> Self {
        Self { until: None, since: None, disk_refused: false, lifetimes }
    }

    /// Takes the validity of the directory in use and whether the disk `refuses` writes. True if
    /// the directory has been expired for too long by the monotonic clock `mono`; a jump of the
    /// system clock alone does not make it so.
    pub(super) fn is_too_much(
        &mut self,
        valid: (SystemTime, SystemTime),
        refuses: bool,
        now: SystemTime,
        mono: Instant,
    ) -> bool {
        let (from, until) = valid;
        if self.until.replace(until) != Some(until) {
            (self.since, self.disk_refused) = (None, false);
        }
        self.disk_refused |= refuses;
        if now <= until {
            self.since = None;
            return false;
        }
        let lifetimes = if self.disk_refused { LATE_LIFETIMES.0 } else { self.lifetimes };
        let patience = until.duration_since(from).unwrap_or_default().mul_f64(lifetimes);
        mono.duration_since(*self.since.get_or_insert(mono)) >= LATE.max(patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_accepts_no_writes_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!refuses_writes(folder.path()) && refuses_writes(&folder.path().join("gone")));
        // A folder with free space in which the kernel lets no user create a file.
        assert!(refuses_writes(Path::new("/proc/self/fdinfo")));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_may_be_late_for_a_while_but_not_for_ever() {
        let (from, start) = (SystemTime::UNIX_EPOCH, Instant::now());
        let until = from + Duration::from_secs(3 * 3600);
        let mut lateness = Lateness::new(2.0);
        let mut look = |now: u64, until: SystemTime, full: bool| {
            let now = Duration::from_secs(now);
            lateness.is_too_much((from, until), full, from + now, start + now)
        };
        assert!(!look(3 * 3600, until, false));
        assert!(!look(3 * 3600 + 1, until, false));
        assert!(!look(9 * 3600, until, false));
        assert!(look(9 * 3600 + 1, until, false));
        // A new directory arrives and expires in turn; meanwhile the disk has refused writes.
        let until = until + Duration::from_secs(9 * 3600);
        assert!(!look(9 * 3600 + 2, until, true));
        assert!(!look(12 * 3600 + 1, until, false));
        assert!(!look(15 * 3600, until, false));
        assert!(look(15 * 3600 + 1, until, false));
        // The refused writes do not count for the next directory.
        let until = until + Duration::from_secs(6 * 3600);
        assert!(!look(18 * 3600 + 1, until, false));
        assert!(!look(50 * 3600, until, false));
    }
}
