//! A small deterministic random number generator (SplitMix64): the same seed gives the same run.

use std::time::Duration;

/// The source of random numbers in a run.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x5eed_5eed_5eed_5eed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`; 0 if the bound is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound.max(1) as u64) as usize
    }

    /// True with this probability, 0 to 1.
    pub fn chance(&mut self, probability: f64) -> bool {
        ((self.bits() >> 11) as f64 / (1u64 << 53) as f64) < probability
    }

    /// A time between two, distributed evenly in the logarithm: short times are more frequent.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let share = (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        let (least, most) = (least.as_secs_f64().max(1e-6), most.as_secs_f64().max(1e-6));
        Duration::from_secs_f64(least * (most / least).powf(share))
    }

    /// A random element; `None` of an empty slice.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }
}
