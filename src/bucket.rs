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

/// The tokens of a bucket, for plans: their time is a `Duration` since a fixed origin. The rate is
/// passed in, so that it may change; [`TokenBucket`] has one rate and Tokio's time.
#[derive(Debug)]
pub struct BucketLevel {
    tokens: f64,
    filled: Duration,
}

impl BucketLevel {
    /// That of a full bucket.
    pub fn full(rate: Rate, now: Duration) -> Self {
        Self { tokens: rate.burst, filled: now }
    }

    /// Takes `tokens` and returns true if there are that many; else takes none.
    pub fn take(&mut self, rate: Rate, tokens: u64, now: Duration) -> bool {
        self.fill(rate, now);
        let enough = tokens as f64 <= self.tokens;
        if enough {
            self.tokens -= tokens as f64;
        }
        enough
    }

    /// Takes `tokens` even if there are fewer. Returns how long it takes until the debt is made up.
    pub fn overdraw(&mut self, rate: Rate, tokens: u64, now: Duration) -> Duration {
        self.fill(rate, now);
        self.tokens -= tokens as f64;
        Duration::try_from_secs_f64(-self.tokens.min(0.0) / rate.per_second).unwrap_or(Duration::MAX)
    }

    /// True if a bucket that is full, as a new one is, would do the same from now on.
    pub fn is_full(&mut self, rate: Rate, now: Duration) -> bool {
        self.fill(rate, now);
        self.tokens >= rate.burst
    }

    fn fill(&mut self, rate: Rate, now: Duration) {
        let come = now.saturating_sub(self.filled).as_secs_f64() * rate.per_second;
        self.tokens = (self.tokens + come).min(rate.burst);
        self.filled = now;
    }
}

/// Fills at its [`Rate`]; full when new.
#[derive(Debug)]
pub struct TokenBucket {
    rate: Rate,
    origin: Instant,
    level: BucketLevel,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, origin: now, level: BucketLevel::full(rate, Duration::ZERO) }
    }

    /// Takes `tokens` and returns true if the bucket holds that many; else takes none.
    pub fn take(&mut self, tokens: u64, now: Instant) -> bool {
        self.take_at(self.rate, tokens, now)
    }

    /// [`Self::take`] at a rate that replaces the one the bucket was made with.
    pub fn take_at(&mut self, rate: Rate, tokens: u64, now: Instant) -> bool {
        self.level.take(rate, tokens, now.saturating_duration_since(self.origin))
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
    fn an_overdrawn_bucket_says_when_it_has_made_up_for_it() {
        let (rate, at) = (Rate::per_second(10, 20), Duration::from_millis);
        let mut level = BucketLevel::full(rate, at(0));
        assert_eq!(level.overdraw(rate, 20, at(0)), at(0));
        assert_eq!(level.overdraw(rate, 5, at(0)), at(500));
        assert_eq!(level.overdraw(rate, 5, at(500)), at(500));
        assert!(!level.take(rate, 1, at(1000)) && !level.is_full(rate, at(2900)));
        assert!(level.is_full(rate, at(3000)));
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
