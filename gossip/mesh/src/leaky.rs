//! A leaky bucket: use adds to an amount, which drains at a steady rate.

use tokio::time::Instant;

/// The amount used. The callers compare it with their limits.
#[derive(Debug)]
pub(super) struct LeakyBucket {
    amount: f64,
    at: Instant,
}

impl LeakyBucket {
    /// An empty bucket.
    pub(super) fn new(now: Instant) -> Self {
        Self { amount: 0.0, at: now }
    }

    /// The amount in use now, if `per_second` of it drains per second.
    pub(super) fn now(&mut self, now: Instant, per_second: usize) -> f64 {
        let back = now.saturating_duration_since(self.at).as_secs_f64() * per_second as f64;
        self.amount = (self.amount - back).max(0.0);
        self.at = now;
        self.amount
    }

    /// Adds a further use.
    pub(super) fn add(&mut self, amount: usize) {
        self.amount += amount as f64;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_bucket_drains_at_the_rate_and_never_below_empty() {
        let start = Instant::now();
        let mut bucket = LeakyBucket::new(start);
        bucket.add(100);
        assert_eq!(bucket.now(start + Duration::from_secs(1), 40), 60.0);
        bucket.add(5);
        assert_eq!(bucket.now(start + Duration::from_secs(1), 40), 65.0);
        assert_eq!(bucket.now(start + Duration::from_secs(9000), 40), 0.0);
        assert_eq!(bucket.now(start, 40), 0.0);
    }
}
