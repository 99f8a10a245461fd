//! What each circuit of a client may do in a second.
//!
//! Streams and bytes have a token bucket for each circuit. A stream that finds no token is refused.
//! Bytes are taken from the bucket after they have moved, so it may be overdrawn: then the streams
//! of the circuit pause until it has made up for that.
//!
//! A circuit has buckets from its first stream until they are full again: a new one would do the
//! same. So nothing is kept of circuits that are gone.

use std::collections::HashMap;
use std::time::Duration;

use crate::bucket::{BucketLevel, Rate};
use crate::tor::CircuitId;

/// Buckets are dropped, where they are full, whenever there are at least this many and twice as
/// many as were left the last time: so that costs little for each stream.
const FEW: usize = 256;
/// Most circuits with buckets. Beyond, all circuits begin with full ones: to get there takes more
/// circuits than the node serves at once, all within their rates.
const MOST: usize = 65_536;

/// The bounds of each circuit; `None`: no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::proxy) struct RateBounds {
    /// New streams.
    pub(in crate::proxy) streams: Option<Rate>,
    /// Bytes of all streams, both ways together.
    pub(in crate::proxy) bytes: Option<Rate>,
}

/// The buckets of the circuits.
#[derive(Debug, Default)]
pub(super) struct CircuitRates {
    bounds: RateBounds,
    buckets: HashMap<CircuitId, Buckets>,
    /// How many were left when full ones were dropped last.
    left: usize,
}

/// `None`: nothing was taken since the bound was set.
#[derive(Debug, Default)]
struct Buckets {
    streams: Option<BucketLevel>,
    bytes: Option<BucketLevel>,
}

impl CircuitRates {
    pub(super) fn bound(&mut self, bounds: RateBounds) {
        self.bounds = bounds;
    }

    /// Counts a new stream; false if its circuit opens streams too fast.
    pub(super) fn ask(&mut self, circuit: CircuitId, now: Duration) -> bool {
        let Some(rate) = self.bounds.streams else { return true };
        let streams = &mut self.buckets(circuit, now).streams;
        streams.get_or_insert_with(|| BucketLevel::full(rate, now)).take(rate, 1, now)
    }

    /// Counts bytes that a stream has carried. Returns how long it pauses, if it must.
    pub(super) fn carry(&mut self, circuit: CircuitId, count: u64, now: Duration) -> Option<Duration> {
        let rate = self.bounds.bytes?;
        let bytes = &mut self.buckets(circuit, now).bytes;
        let debt = bytes.get_or_insert_with(|| BucketLevel::full(rate, now)).overdraw(rate, count, now);
        Some(debt).filter(|debt| !debt.is_zero())
    }

    fn buckets(&mut self, circuit: CircuitId, now: Duration) -> &mut Buckets {
        if self.buckets.len() >= FEW.max(2 * self.left) {
            let RateBounds { streams, bytes } = self.bounds;
            self.buckets.retain(|_, buckets| {
                is_taken(&mut buckets.streams, streams, now) || is_taken(&mut buckets.bytes, bytes, now)
            });
            if self.buckets.len() >= MOST / 2 {
                self.buckets.clear();
            }
            self.left = self.buckets.len();
        }
        self.buckets.entry(circuit).or_default()
    }
}

/// Whether something was taken from a bucket that still counts.
fn is_taken(level: &mut Option<BucketLevel>, rate: Option<Rate>, now: Duration) -> bool {
    level.as_mut().zip(rate).is_some_and(|(level, rate)| !level.is_full(rate, now))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rates(streams: Option<(u64, u64)>, bytes: Option<u64>) -> CircuitRates {
        let streams = streams.map(|(rate, burst)| Rate::per_second(rate, burst));
        let mut rates = CircuitRates::default();
        rates.bound(RateBounds { streams, bytes: bytes.map(|bytes| Rate::per_second(bytes, bytes)) });
        rates
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_circuit_opens_a_burst_and_then_streams_at_its_rate_whatever_others_do() {
        let mut rates = rates(Some((2, 3)), None);
        assert_eq!([(); 5].map(|()| rates.ask(CircuitId(1), at(0))), [true, true, true, false, false]);
        assert!(rates.ask(CircuitId(2), at(0)));
        assert!(!rates.ask(CircuitId(1), at(499)) && rates.ask(CircuitId(1), at(500)));
        assert_eq!(rates.carry(CircuitId(1), 1 << 40, at(0)), None, "bytes are not bounded");
    }

    #[test]
    fn the_streams_of_a_circuit_pause_until_their_bytes_keep_to_the_rate() {
        let mut rates = rates(None, Some(1000));
        assert_eq!(rates.carry(CircuitId(1), 1000, at(0)), None);
        assert_eq!(rates.carry(CircuitId(1), 500, at(0)), Some(at(500)));
        assert_eq!(rates.carry(CircuitId(1), 500, at(500)), Some(at(500)));
        assert_eq!(rates.carry(CircuitId(2), 1000, at(500)), None);
        assert!((0..99).all(|_| rates.ask(CircuitId(1), at(500))), "streams are not bounded");
    }

    #[test]
    fn a_new_bound_counts_at_once_and_none_forgets_the_debts() {
        let mut rates = rates(Some((1, 1)), Some(1000));
        assert!(rates.ask(CircuitId(1), at(0)) && !rates.ask(CircuitId(1), at(0)));
        rates.bound(RateBounds::default());
        assert!(rates.ask(CircuitId(1), at(0)));
        assert_eq!(rates.carry(CircuitId(1), 1 << 40, at(0)), None);
    }

    #[test]
    fn circuits_that_are_gone_leave_nothing() {
        let mut rates = rates(Some((1, 4)), Some(1000));
        for number in 0..100_000_u64 {
            assert!(rates.ask(CircuitId(number), at(10 * number)));
            rates.carry(CircuitId(number), 100, at(10 * number));
        }
        // Each is full again after a second, in which 100 others come.
        assert!(rates.buckets.len() <= 2 * FEW, "{}", rates.buckets.len());
    }

    proptest! {
        #[test]
        fn no_pattern_of_requests_exceeds_the_rate(
            steps in prop::collection::vec((0..3_u64, 0..400_u64), 1..300), rate in 1..9_u64, burst in 1..20_u64,
        ) {
            let mut rates = rates(Some((rate, burst)), None);
            let (mut now, mut opened) = (0, [0_u64; 3]);
            for (circuit, wait) in steps {
                now += wait;
                opened[circuit as usize] += u64::from(rates.ask(CircuitId(circuit), at(now)));
            }
            let most = burst + now * rate / 1000 + 1;
            prop_assert!(opened.iter().all(|opened| *opened <= most), "{:?} of {}", opened, most);
        }

        #[test]
        fn many_streams_of_a_circuit_together_keep_to_the_bytes(streams in 1..9_usize, rate in 500..5000_u64) {
            let mut rates = rates(None, Some(rate));
            // Each stream carries a chunk, and then pauses for as long as it must.
            let (mut free, mut carried) = (vec![Duration::ZERO; streams], 0_u64);
            let end = Duration::from_secs(60);
            while let Some((next, now)) = free.iter().copied().enumerate().min_by_key(|(_, free)| *free).filter(|(_, free)| *free < end) {
                carried += 400;
                free[next] = now + rates.carry(CircuitId(7), 400, now).unwrap_or(Duration::from_millis(1));
            }
            let most = rate * 61 + 400 * streams as u64;
            prop_assert!(carried <= most && carried * 10 >= rate * 60 * 9, "{} of {}", carried, most);
        }
    }
}
