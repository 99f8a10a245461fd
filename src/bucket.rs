//! A token bucket: a sustained rate with a bounded burst.

use std::time::Duration;

use tokio::time::Instant;

/// The bounds of a [`TokenBucket`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Tokens added per second.
    pub per_second: f64,
    /// Most tokens that the bucket holds.
    pub burst: f64,
}

impl Rate {
    /// `tokens` per second, with bursts of up to `burst`.
    pub fn per_second(tokens: u64, burst: u64) -> Self {
        Self { per_second: tokens as f64, burst: burst as f64 }
    }

    /// One token per `pause`, with bursts of up to `burst`.
    pub fn every(pause: Duration, burst: f64) -> Self {
        Self { per_second: pause.as_secs_f64().max(f64::EPSILON).recip(), burst }
    }
}

/// Fills at its [`Rate`]; full when new.
#[derive(Debug)]
pub struct TokenBucket {
    rate: Rate,
    level: f64,
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, level: rate.burst, filled: now }
    }

    /// Takes `tokens` and returns true if the bucket holds that many; else takes none.
    pub fn take(&mut self, tokens: u64, now: Instant) -> bool {
        self.take_at(self.rate, tokens, now)
    }

    /// [`Self::take`] at a rate that replaces the one the bucket was made with.
    pub fn take_at(&mut self, rate: Rate, tokens: u64, now: Instant) -> bool {
        let come = now.saturating_duration_since(self.filled).as_secs_f64() * rate.per_second;
        self.level = (self.level + come).min(rate.burst);
        self.filled = now;
        let enough = tokens as f64 <= self.level;
        if enough {
            self.level -= tokens as f64;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(Rate::per_second(10, 20), start);
        assert!(bucket.take(20, start) && !bucket.take(1, start));
        assert!(!bucket.take(6, start + Duration::from_millis(500)));
        assert!(bucket.take(5, start + Duration::from_millis(500)));
        assert!(!bucket.take(21, start + Duration::from_secs(9000)));
        assert!(bucket.take(20, start + Duration::from_secs(9000)));
    }

    #[test]
    fn a_smaller_rate_holds_less() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(Rate::every(Duration::from_millis(500), 32.0), start);
        let small = Rate::every(Duration::from_secs(1), 1.0);
        assert!(bucket.take_at(small, 1, start) && !bucket.take_at(small, 1, start));
        assert!(!bucket.take_at(small, 1, start + Duration::from_millis(900)));
        assert!(bucket.take_at(small, 1, start + Duration::from_millis(1000)));
    }
}
