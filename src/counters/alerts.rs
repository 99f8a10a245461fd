//! Counts of the alerts that this node sent, by state and outcome.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use strum::{EnumCount, EnumIter, IntoStaticStr};

use super::add_one;

/// What an alert says about its problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, EnumCount, EnumIter, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AlertState {
    /// The problem is there.
    Firing,
    /// The problem is over.
    Resolved,
    /// Something has happened that does not last, such as a change of the publisher.
    Notice,
}

/// What became of an alert on one of its ways out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, EnumCount, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum AlertOutcome {
    /// The command ended with 0, or the webhook answered with 2xx.
    Delivered,
    /// All attempts have failed.
    Failed,
    /// Too many alerts were waiting.
    Dropped,
}

/// How many alerts had which outcome.
#[derive(Debug)]
pub struct AlertCounts([[AtomicU64; AlertOutcome::COUNT]; AlertState::COUNT]);

impl Default for AlertCounts {
    fn default() -> Self {
        Self([const { [const { AtomicU64::new(0) }; AlertOutcome::COUNT] }; AlertState::COUNT])
    }
}

impl AlertCounts {
    fn cell(&self, state: AlertState, outcome: AlertOutcome) -> &AtomicU64 {
        // The arrays have one element per variant.
        &self.0[state as usize][outcome as usize]
    }

    /// Adds one.
    pub fn count(&self, state: AlertState, outcome: AlertOutcome) {
        add_one(self.cell(state, outcome));
    }

    /// The current value.
    pub fn get(&self, state: AlertState, outcome: AlertOutcome) -> u64 {
        self.cell(state, outcome).load(Ordering::Relaxed)
    }
}
