//! Whether the task that updates the network's directory has ended: then the directory is long out of date.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// How much longer than it is valid the network's directory may stay without a new one, at least.
const LATE: Duration = Duration::from_secs(120);

/// The same, in lifetimes of the directory (3 hours on the public network): after the disk refused
/// writes, and otherwise, of which each client draws its own. If the authorities make no directory,
/// Arti goes on with the old one for three days, and the nodes of a cluster must not give up soon,
/// nor all at once.
pub(super) const LATE_LIFETIMES: (f64, Range<f64>) = (0.25, 1.0..3.0);

/// A disk with less room than this, in bytes, may have been too full for a directory.
const ROOM: u64 = 16 << 20;

/// What is written to see whether a disk takes anything, in bytes.
const PROBE: usize = 4096;

/// Whether the disk of this folder takes nothing: it is full, or nearly, or refuses a small write
/// for whatever reason (it was remounted read-only, a quota is used up, the device fails).
pub(super) fn refuses_writes(folder: &Path) -> bool {
    let full = rustix::fs::statvfs(folder).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM);
    let probe = || {
        let mut file = tempfile::tempfile_in(folder)?;
        file.write_all(&[0; PROBE])?;
        file.sync_data()
    };
    full || probe().is_err()
}

/// For how long the network's directory has been out of date.
#[derive(Debug)]
pub(super) struct Lateness {
    /// Until when the one in use is valid.
    until: Option<SystemTime>,
    since: Option<Instant>,
    /// Whether the disk refused writes while it was in use: then Arti has most likely ended its
    /// updates.
    disk_refused: bool,
    /// How many of its lifetimes are too long, if it was not.
    lifetimes: f64,
}

impl Lateness {
    pub(super) fn new(lifetimes: f64) -> Self {
        Self { until: None, since: None, disk_refused: false, lifetimes }
    }

    /// Looks at the directory in use and the disk; whether it has been out of date for too long. That is measured by the
    /// monotonic clock: one that was set is no reason to give up.
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
    fn a_disk_that_takes_nothing_is_told_from_one_that_does() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!refuses_writes(folder.path()) && refuses_writes(&folder.path().join("gone")));
        // The kernel lets no user make a file there, and leaves plenty of room.
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
        // A new one came, and gets late in turn; meanwhile the disk refused writes.
        let until = until + Duration::from_secs(9 * 3600);
        assert!(!look(9 * 3600 + 2, until, true));
        assert!(!look(12 * 3600 + 1, until, false));
        assert!(!look(15 * 3600, until, false));
        assert!(look(15 * 3600 + 1, until, false));
        // The next one is not to blame for it.
        let until = until + Duration::from_secs(6 * 3600);
        assert!(!look(18 * 3600 + 1, until, false));
        assert!(!look(50 * 3600, until, false));
    }
}
