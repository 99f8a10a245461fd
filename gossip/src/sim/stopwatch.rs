//! Measures real time for sweeps and searches. The simulation itself never reads it.

#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "measures work, decides nothing in a run")]

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
