//! A token bucket: so much in a while, so much at once.

use std::time::Duration;

use tokio::time::Instant;

/// Fills at a rate up to a bound.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: u64,
    burst: u64,
    /// In millionths of a token.
    level: u128,
    filled: Instant,
}

const MICRO: u128 = 1_000_000;

impl Bucket {
    pub(super) fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        Self { per_second, burst, level: u128::from(burst) * MICRO, filled: now }
    }

    /// Takes `tokens` if there are as many; else none.
    pub(super) fn take(&mut self, tokens: u64, now: Instant) -> bool {
        let gone = now.saturating_duration_since(self.filled).min(Duration::from_secs(3600));
        self.filled = now;
        let full = u128::from(self.burst) * MICRO;
        self.level = full.min(self.level + u128::from(self.per_second) * gone.as_micros());
        let wanted = u128::from(tokens) * MICRO;
        let enough = wanted <= self.level;
        if enough {
            self.level -= wanted;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 20, start);
        assert!(bucket.take(20, start) && !bucket.take(1, start));
        assert!(!bucket.take(6, start + Duration::from_millis(500)));
        assert!(bucket.take(5, start + Duration::from_millis(500)));
        assert!(!bucket.take(21, start + Duration::from_secs(9000)));
        assert!(bucket.take(20, start + Duration::from_secs(9000)));
    }
}
