//! One simulated machine: its disk, its clocks, and the process on it with the thin shell that a daemon puts around a
//! coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::gossip::Store;
use super::monitor::Witness;
use super::{FOUNDED, Identity};
use crate::coordinator::{Coordinator, Now};
use crate::id::{NodeId, ServiceId};
use crate::record::{AnyFact, IntroPoint, PeriodId};

/// Unix time at the start of every run: some time after the founding, so that clocks may go back.
const START: u64 = FOUNDED + 100_000;

/// What survives a crash.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) boot: u64,
    pub(super) term: u64,
    pub(super) revisions: BTreeMap<(ServiceId, PeriodId), u64>,
    /// Whose certificates it has, by machine.
    pub(super) members: Vec<usize>,
    pub(super) facts: Vec<AnyFact>,
    pub(super) points: BTreeMap<ServiceId, Vec<IntroPoint>>,
}

/// How a disk does its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Within half a second.
    Normal,
    /// Within 40 seconds.
    Slow,
    /// Not at all.
    Full,
}

/// Whether a machine takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It does, running or crashed.
    Here,
    /// It said goodbye for good.
    Left,
    /// It was told that it is no member.
    Excluded,
}

/// A running process.
pub(super) struct Process {
    pub(super) coordinator: Coordinator,
    pub(super) store: Store,
    pub(super) started: Duration,
    pub(super) tick_at: Option<Duration>,
    pub(super) leading: Option<u64>,
    /// What it wants published, as far as its shell has acted on it: for each service the version of the points, and the
    /// revision above its own that another publisher has used.
    pub(super) wanted: BTreeMap<ServiceId, (u64, Option<u64>)>,
    pub(super) witness: Witness,
    /// Terms that are on their way to disk.
    pub(super) storing: usize,
    /// The list of members is on its way to disk.
    pub(super) listing: bool,
    /// Goodbye is said; it ends then.
    pub(super) ends: bool,
}

/// A machine.
pub(super) struct Host {
    pub(super) identity: Identity,
    pub(super) disk: Disk,
    pub(super) pace: Pace,
    /// When the disk works as it should again.
    pub(super) mended: Duration,
    pub(super) fate: Fate,
    /// Somebody has evicted it; it may not know yet.
    pub(super) evicted: bool,
    pub(super) process: Option<Process>,
    /// Rises with every start and every end of a process: what was meant for an earlier one is dropped.
    pub(super) life: u64,
    pub(super) frozen: bool,
    /// How much the monotonic clock lost while the machine slept.
    pub(super) slept: Duration,
    /// How far the wall clock is off, in seconds.
    pub(super) skew: i64,
    pub(super) target_up: bool,
    pub(super) draining: bool,
    /// Since when nothing runs here, or it is frozen.
    pub(super) silent_since: Option<Duration>,
    /// Terms that a process here has published in, over all restarts.
    pub(super) led: BTreeSet<u64>,
    /// The highest revision ever used here, by service and period; the disk should know as much.
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
            life: 0,
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

    /// What the clocks here say at this moment of the simulation.
    pub(super) fn clock(&self, at: Duration) -> Now {
        // Each process has an origin of its own.
        let origin = self.process.as_ref().map_or(Duration::ZERO, |process| process.started);
        let unix = (START + at.as_secs()).saturating_add_signed(self.skew);
        Now { mono: at.saturating_sub(origin).saturating_sub(self.slept), unix }
    }

    /// When, in the simulation's time, the monotonic clock here will show `mono`.
    pub(super) fn when(&self, mono: Duration) -> Duration {
        let origin = self.process.as_ref().map_or(Duration::ZERO, |process| process.started);
        origin + self.slept + mono
    }

    /// How the disk works at this moment of the simulation.
    pub(super) fn pace(&self, at: Duration) -> Pace {
        if at < self.mended { self.pace } else { Pace::Normal }
    }

    /// True if a process runs here and is not stopped.
    pub(super) fn runs(&self) -> bool {
        self.process.is_some() && !self.frozen
    }
}
