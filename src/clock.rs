//! The clocks: the wall clock, in the unit of everything that is signed, sent or stored, and a monotonic one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustbalance_gossip::time::{CALENDAR_END, Now};
use tokio::time::Instant;

/// What gives a machine the time: the monotonic time since [`Clock::start`], and the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// One that begins now.
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// The time on both clocks.
    pub fn now(self) -> Now {
        Now { mono: self.started.elapsed(), unix: unix_now() }
    }

    /// When the monotonic clock shows `mono`; `None` if that is beyond what the system can count.
    pub fn instant(self, mono: Duration) -> Option<Instant> {
        self.started.checked_add(mono)
    }
}

/// Seconds since the Unix epoch; 0 where the clock is before it, which others tell as a wrong
/// clock.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The beginning of the year in which this version was made, in seconds since the Unix epoch
/// (2026-01-01): no clock that is right says less. Raised with each release.
pub const RELEASED: u64 = 1_767_225_600;

/// What a clock may say: until twelve years after the release, for memberships last ten.
pub const PLAUSIBLE: std::ops::RangeInclusive<u64> = RELEASED..=RELEASED + 12 * 365 * 24 * 3600;

/// A moment in seconds since the Unix epoch, as in `2026-01-01T00:00:00Z`; `None` from [`CALENDAR_END`] on.
pub fn date(unix: u64) -> Option<String> {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(unix)).filter(|_| unix < CALENDAR_END)?;
    Some(humantime::format_rfc3339_seconds(time).to_string())
}
