//! The wall clock, in the unit of everything that is signed, sent or stored.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since the Unix epoch; 0 where the clock is before it, which others tell as a wrong clock.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
