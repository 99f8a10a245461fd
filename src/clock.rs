//! The wall clock, in the unit of everything that is signed, sent or stored.

use std::time::{SystemTime, UNIX_EPOCH};

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
