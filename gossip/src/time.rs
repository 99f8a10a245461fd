//! The time, as it is passed in: this crate reads no clock.

use std::time::Duration;

/// The year 10000, in seconds since the Unix epoch: dates are written with four digits for the year, and no date from
/// here on is believed.
pub const CALENDAR_END: u64 = 253_402_300_800;

/// One moment on the two clocks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Time since any fixed origin on a clock that never goes back: everything that is measured (silence, the age of a
    /// lease) is measured with it. A clock that goes on while the machine sleeps is best.
    pub mono: Duration,
    /// Seconds since the Unix epoch, as far as this machine knows: only to compare with dates in certificates and
    /// invitations. May jump.
    pub unix: u64,
}

impl Now {
    /// The moment `later` after this one.
    pub fn plus(self, later: Duration) -> Self {
        Self { mono: self.mono + later, unix: self.unix + later.as_secs() }
    }
}
