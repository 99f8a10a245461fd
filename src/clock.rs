//! The wall clock, in the unit of all times that are signed, sent or stored (seconds since the Unix
//! epoch), and a monotonic clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustbalance_gossip::time::{CALENDAR_END, Now};
use tokio::time::Instant;

pub use judge::{ClockVerdict, ClockWatch, MemberTime, Witness, Witnesses, judge};

mod judge;

/// The time source of a machine: monotonic time since [`Clock::start`], and the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// A clock whose monotonic time begins now.
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// The time on both clocks.
    pub fn now(self) -> Now {
        Now { mono: self.started.elapsed(), unix: unix_now() }
    }

    /// The instant at which the monotonic clock shows `mono`; `None` if [`Instant`] cannot hold it.
    pub fn instant(self, mono: Duration) -> Option<Instant> {
        self.started.checked_add(mono)
    }
}

/// Seconds since the Unix epoch; 0 if the clock is set to a time before it, which is outside
/// [`PLAUSIBLE`].
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Start of the year in which this version was released (2026-01-01), in seconds since the Unix
/// epoch: no correct clock shows less. Raised with each release.
pub const RELEASED: u64 = 1_767_225_600;

/// Times that a clock may show: up to twelve years after the release. Memberships of the first
/// versions last ten.
pub const PLAUSIBLE: std::ops::RangeInclusive<u64> = RELEASED..=RELEASED + 12 * 365 * 24 * 3600;

/// A time in seconds since the Unix epoch as text, such as `2026-01-01T00:00:00Z`; `None` from
/// [`CALENDAR_END`] on.
pub fn date(unix: u64) -> Option<String> {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(unix)).filter(|_| unix < CALENDAR_END)?;
    Some(humantime::format_rfc3339_seconds(time).to_string())
}
