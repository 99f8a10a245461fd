//! One directory: what it holds of ours, and when it is asked next.

use std::time::Duration;

use rustbalance_gossip::record::PeriodId;

use super::BACKOFF;
use crate::tor::Directory;

/// What the publisher knows of one directory, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryReport {
    /// The period for which it is responsible.
    pub period: PeriodId,
    /// The directory.
    pub directory: Directory,
    /// The revision that it has confirmed last, by accepting it or by returning it, and when, in
    /// seconds since the Unix epoch. `None` if it has confirmed none since this node began to
    /// publish, or has returned something else.
    pub confirmed: Option<(u64, u64)>,
    /// Whether that is the newest revision.
    pub is_current: bool,
    /// Attempts that have failed in a row.
    pub failures: u32,
}

/// The state of one directory for one period.
#[derive(Debug, Clone, Default)]
pub(super) struct DirectoryState {
    pub(super) confirmed: Option<u64>,
    /// When it last confirmed that, in seconds since the Unix epoch.
    pub(super) confirmed_at: u64,
    /// The highest revision of ours that it has accepted since this process started.
    pub(super) accepted: Option<u64>,
    pub(super) busy: bool,
    pub(super) failures: u32,
    pub(super) not_before: Duration,
    pub(super) read_back_at: Option<Duration>,
    /// Whether the next step is to read back rather than to upload: after a refusal, and by turns
    /// with uploads while read-backs get no answer.
    pub(super) ask: bool,
}

impl DirectoryState {
    /// Backs off after a failure. Up to half of the pause is added, depending on the directory, so
    /// that the retries spread.
    pub(super) fn back_off(&mut self, now: Duration, directory: &Directory) {
        let base = BACKOFF.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        let share = u32::from(directory.relay.rsa.0[0]);
        self.not_before = now + base + base * share / 512;
    }

    /// For `status`. `newest`: the revision of the current edition.
    pub(super) fn report(&self, period: PeriodId, directory: &Directory, newest: Option<u64>) -> DirectoryReport {
        DirectoryReport {
            period,
            directory: directory.clone(),
            confirmed: self.confirmed.map(|revision| (revision, self.confirmed_at)),
            is_current: self.confirmed.is_some() && self.confirmed == newest,
            failures: self.failures,
        }
    }
}
