//! Time as the caller passes it in: this crate reads no clock.

use std::time::Duration;

/// The start of the year 10000, in seconds since the Unix epoch. Dates are written with four digits
/// for the year, so dates from here on are rejected.
pub const CALENDAR_END: u64 = 253_402_300_800;

/// One moment on the two clocks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Time since any fixed origin on a monotonic clock. All durations (silence, the age of a
    /// lease) are measured with it. A clock that keeps running while the machine sleeps is best.
    pub mono: Duration,
    /// Seconds since the Unix epoch on this machine's clock, which may jump. Used only where nodes
    /// must agree on a date: certificates, invitations, heartbeats, terms, the rotation epoch.
    pub unix: u64,
}

impl Now {
    /// The moment that is `later` after this one.
    pub fn plus(self, later: Duration) -> Self {
        Self { mono: self.mono + later, unix: self.unix + later.as_secs() }
    }
}
