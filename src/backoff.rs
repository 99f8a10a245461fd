//! Pauses between attempts: the first, then twice as long after each failure, up to the longest.

use std::time::Duration;

/// How long to pause. The number of failures is counted by the caller, so that a machine without a
/// clock or randomness can use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Backoff {
    /// Pauses from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// The pause after a failure that followed `earlier` other failures.
    pub fn pause(self, earlier: u32) -> Duration {
        let factor = 1u32.checked_shl(earlier).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// Between half of [`Self::pause`] (`jitter` 0) and all of it (`jitter` 1). The caller draws
    /// `jitter` at random, so that nodes that lost each other at the same moment do not all retry
    /// at once.
    pub fn jittered(self, earlier: u32, jitter: f64) -> Duration {
        self.pause(earlier).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses = Backoff::new(SECOND, 60 * SECOND);
        let seconds: Vec<_> = (0..8).map(|earlier| pauses.pause(earlier).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses.pause(u32::MAX), 60 * SECOND);
        let endless = Backoff::new(Duration::MAX, Duration::MAX);
        assert_eq!(endless.pause(40), Duration::MAX);
    }

    #[test]
    fn half_of_a_pause_is_random() {
        let pauses = Backoff::new(2 * SECOND, 60 * SECOND);
        let drawn = [0.0, 0.5, 1.0, 7.0].map(|jitter| pauses.jittered(0, jitter).as_millis());
        assert_eq!(drawn, [1000, 1500, 2000, 2000]);
    }
}
