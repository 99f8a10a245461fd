//! One simulated machine: its disk, its clocks, and the process on it, a coordinator in a thin
//! shell like the daemon's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::fast::FastLinks;
use super::gossip::Store;
use super::monitor::Witness;
use super::{FOUNDED, Identity};
use crate::coordinator::{Coordinator, Now};
use crate::id::{NodeId, ServiceId};
use crate::record::{AnyFact, IntroPoint, PeriodId};

/// Unix time at the start of every run, in seconds. Long enough after the founding that clocks may
/// be set back.
const START: u64 = FOUNDED + 100_000;

/// The state that survives a crash.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) boot: u64,
    pub(super) term: u64,
    pub(super) revisions: BTreeMap<(ServiceId, PeriodId), u64>,
    /// The machines whose certificates it has.
    pub(super) members: Vec<usize>,
    pub(super) facts: Vec<AnyFact>,
    pub(super) points: BTreeMap<ServiceId, Vec<IntroPoint>>,
}

/// How fast a disk writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// A write takes up to half a second.
    Normal,
    /// A write takes 1 to 40 seconds.
    Slow,
    /// Writes are lost.
    Full,
}

/// Whether a machine takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It takes part, running or crashed.
    Here,
    /// It left for good, with a goodbye.
    Left,
    /// It learnt that it is not a member, and stopped.
    Excluded,
}

/// A running process.
pub(super) struct Process {
    pub(super) coordinator: Coordinator,
    pub(super) store: Store,
    pub(super) started: Duration,
    pub(super) tick_at: Option<Duration>,
    pub(super) leading: Option<u64>,
    /// The state that its shell has acted on, by service: the version of the wanted points, and the
    /// revision above its own that another publisher has used.
    pub(super) wanted: BTreeMap<ServiceId, (u64, Option<u64>)>,
    pub(super) witness: Witness,
    /// Number of terms that are being written to disk.
    pub(super) storing: usize,
    /// True while the list of members is being written to disk.
    pub(super) listing: bool,
    /// True once it has announced that it stops; it ends soon after.
    pub(super) ends: bool,
    pub(super) fast: FastLinks,
}

/// A machine.
pub(super) struct Host {
    pub(super) identity: Identity,
    pub(super) disk: Disk,
    pub(super) pace: Pace,
    /// When the disk works normally again.
    pub(super) mended: Duration,
    pub(super) fate: Fate,
    /// True once it has been evicted, even if it does not know yet.
    pub(super) evicted: bool,
    pub(super) process: Option<Process>,
    /// Number of starts and ends of processes here: events for an earlier process are dropped.
    pub(super) process_number: u64,
    pub(super) frozen: bool,
    /// Time for which the monotonic clock stood still while the machine slept.
    pub(super) slept: Duration,
    /// Error of the wall clock, in seconds.
    pub(super) skew: i64,
    pub(super) target_up: bool,
    pub(super) draining: bool,
    /// Since when no process runs here, or the process is frozen or stopping; `None` otherwise.
    pub(super) silent_since: Option<Duration>,
    /// Terms in which a process here was the publisher, over all restarts.
    pub(super) led: BTreeSet<u64>,
    /// The highest revision ever used here, by service and period. The disk should hold the same.
    pub(super) used: BTreeMap<(ServiceId, PeriodId), u64>,
    pub(super) rotation: u32,
}

impl Host {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            disk: Disk::default(),
            pace: Pace::Normal,
            mended: Duration::ZERO,
            fate: Fate::Here,
            evicted: false,
            process: None,
            process_number: 0,
            frozen: false,
            slept: Duration::ZERO,
            skew: 0,
            target_up: true,
            draining: false,
            silent_since: Some(Duration::ZERO),
            led: BTreeSet::new(),
            used: BTreeMap::new(),
            rotation: 0,
        }
    }

    pub(super) fn id(&self) -> NodeId {
        self.identity.node()
    }

    /// The clocks of this machine at a time of the simulation.
    pub(super) fn clock(&self, at: Duration) -> Now {
        // The monotonic clock of each process begins at 0.
        let origin = self.process.as_ref().map_or(Duration::ZERO, |process| process.started);
        let unix = (START + at.as_secs()).saturating_add_signed(self.skew);
        Now { mono: at.saturating_sub(origin).saturating_sub(self.slept), unix }
    }

    /// The time of the simulation at which the monotonic clock here shows `mono`.
    pub(super) fn when(&self, mono: Duration) -> Duration {
        let origin = self.process.as_ref().map_or(Duration::ZERO, |process| process.started);
        origin + self.slept + mono
    }

    /// The speed of the disk at a time of the simulation.
    pub(super) fn pace(&self, at: Duration) -> Pace {
        if at < self.mended { self.pace } else { Pace::Normal }
    }

    /// True if a process runs here and is not frozen.
    pub(super) fn runs(&self) -> bool {
        self.process.is_some() && !self.frozen
    }
}
