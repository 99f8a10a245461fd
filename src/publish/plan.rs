//! Decides what to upload where: a reconciler between what should be published and what each
//! directory holds.
//!
//! Enter with [`PublishPlan::handle`], once per event: it returns everything that is to be done
//! now. [`PublishPlan::next_timeout`] says when to call it again if nothing happens. Each call
//! looks at the whole state:
//!
//! 1. If this node is not the publisher, or there are no introduction points or no directories,
//!    nothing is done. The last descriptor stays in place: an error page is better than a dead
//!    address.
//! 2. A period gets a new **edition** (one built descriptor with one revision) if it has none, if
//!    the edition has another content than desired or is too old, or if a directory holds a higher
//!    revision. The edition is built at once if a point or a subprotocol left, after a short pause
//!    for batching if they were only added, and never within [`MIN_GAP`] of the one before.
//! 3. Every responsible directory that has not confirmed the current edition gets it, with back-off
//!    after failures.
//! 4. A confirmed directory is read back at intervals. If it holds something else, the edition is
//!    uploaded again. If it does not answer twice in a row, it no longer counts as confirmed.
//!
//! A descriptor that has replaced one of ours is another publisher's ([`Action::OtherPublisher`])
//! if only authorized clients can read it, or if it names no point of this cluster and no member
//! has announced so high a revision. A descriptor that was there before our first upload is not: it
//! may be left over from a service that has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::record::{IntroPoint, PeriodId, PublishedPeriod, Subprotocol};
use rustbalance_gossip::time::Now;
use rustbalance_gossip::view::MAX_FENCE;

use crate::backoff::Backoff;
use crate::drive::Machine;
use crate::tor::{Directory, Period};
use directory::DirectoryState;

pub use directory::DirectoryReport;

mod directory;

/// Minimum time between two editions of one period: directories refuse an equal revision, and the
/// revision clock advances once a second.
pub const MIN_GAP: Duration = Duration::from_secs(2);
/// How long added points are collected before a new edition.
pub const BATCH_PAUSE: Duration = Duration::from_secs(2);
/// How long a publisher that has just been elected waits for its desired set to settle before its
/// first edition.
pub const SETTLE: Duration = Duration::from_millis(500);
/// Interval at which a directory is read back.
pub const READ_BACK: Duration = Duration::from_secs(600);
/// How soon after its upload a descriptor is first read back.
pub const FIRST_READ_BACK: Duration = Duration::from_secs(20);
/// Pauses between two attempts at one directory.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// How long a point may appear in a member's descriptor after it was last desired: as long as
/// directories keep a descriptor.
const NAMED_FOR: Duration = Duration::from_secs(3 * 3600);
/// Most such points that are remembered: 20 desired at once, over three hours of changes.
const MAX_KNOWN: usize = 4096;
/// Most uploads and read-backs under way at once.
const MAX_IN_FLIGHT: usize = 16;

/// What a descriptor tells clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredContent {
    /// The introduction points: at most 20, ordered, one per relay.
    pub points: Vec<IntroPoint>,
    /// The subprotocols that clients may request at each of these points.
    pub subprotocols: BTreeSet<Subprotocol>,
}

impl DesiredContent {
    /// Whether it lacks a point or a subprotocol of `other`, with which clients would fail.
    fn withdraws_from(&self, other: &Self) -> bool {
        other.points.iter().any(|point| !self.points.contains(point))
            || !self.subprotocols.is_superset(&other.subprotocols)
    }
}

/// An event that the plan handles.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time passed.
    Tick,
    /// This node became the publisher in this term, or stopped being it (`None`).
    Lead(Option<u64>),
    /// The content that should be published.
    Desired(DesiredContent),
    /// The current periods and their directories.
    Periods(Vec<Period>),
    /// A revision that is already used for a period, known from gossip or from disk.
    Floor(PeriodId, u64),
    /// The highest revision for a period that another member has announced.
    OfOthers(PeriodId, u64),
    /// An edition is built and its revision is on disk; or it could not be built.
    Built(PeriodId, Result<u64, String>),
    /// A directory accepted an edition, or did not.
    Uploaded {
        /// The period.
        period: PeriodId,
        /// The directory.
        directory: Directory,
        /// The revision of the edition.
        revision: u64,
        /// Whether it was accepted.
        outcome: Outcome,
    },
    /// A directory was read back.
    ReadBackAnswered {
        /// The period.
        period: PeriodId,
        /// The directory.
        directory: Directory,
        /// The descriptor that it holds, `None` for none; `Err` if it did not answer or the answer
        /// is unreadable.
        reading: Result<Option<Reading>, String>,
    },
    /// A client did not get the current descriptor of this period from this directory.
    Doubted(PeriodId, Directory),
}

/// A descriptor that was read back from a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Its revision.
    pub revision: u64,
    /// Whether it is, byte for byte, this node's current edition.
    pub ours: bool,
    /// The session keys of its introduction points; `None` if only authorized clients can read
    /// them.
    pub points: Option<Vec<FixedBytes<32>>>,
}

/// How an upload ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The directory has stored it.
    Accepted,
    /// The directory refused it: most likely it holds an equal or higher revision.
    Refused,
    /// The upload did not get through.
    Failed,
}

/// An action that the task carries out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Build an edition with a revision above `floor`, store the revision, and answer with
    /// [`Event::Built`].
    Build {
        /// The period.
        period: PeriodId,
        /// What it tells clients.
        content: DesiredContent,
        /// Its revision must be higher than this.
        floor: u64,
    },
    /// Upload the current edition of the period.
    Upload {
        /// The period.
        period: PeriodId,
        /// The directory.
        directory: Directory,
        /// The revision of the edition.
        revision: u64,
    },
    /// Read the descriptor of a directory back; answer with [`Event::ReadBackAnswered`].
    ReadBack {
        /// The period.
        period: PeriodId,
        /// The directory.
        directory: Directory,
    },
    /// Tell the cluster which revisions are published, and on how many directories.
    Report(Vec<PublishedPeriod>),
    /// Tell the operator that a publisher outside the cluster publishes this address.
    OtherPublisher(OtherPublisher),
}

/// A descriptor of this address with which a publisher outside the cluster has replaced ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherPublisher {
    /// Its period.
    pub period: PeriodId,
    /// Its revision.
    pub revision: u64,
    /// False if only authorized clients can read it.
    pub readable: bool,
}

/// A descriptor that was built for one period.
#[derive(Debug, Clone)]
struct Edition {
    revision: u64,
    content: DesiredContent,
    made: Duration,
}

/// A period to publish in.
#[derive(Debug, Clone, Default)]
struct PeriodTarget {
    directories: BTreeMap<Directory, DirectoryState>,
    edition: Option<Edition>,
    building: Option<DesiredContent>,
    floor: u64,
    /// A new edition is due although its content is unchanged.
    renew: bool,
    not_before: Duration,
}

/// The reconciler. It has no clock and no sockets.
#[derive(Debug)]
pub struct PublishPlan {
    term: Option<u64>,
    desired: DesiredContent,
    targets: BTreeMap<PeriodId, PeriodTarget>,
    floors: BTreeMap<PeriodId, u64>,
    /// The highest revisions that other members have announced.
    of_others: BTreeMap<PeriodId, u64>,
    /// The session keys of all points that were desired, and until when a descriptor may still name
    /// them.
    known: BTreeMap<FixedBytes<32>, Duration>,
    /// The last descriptor seen of a publisher outside the cluster. It is on several directories,
    /// but is reported once.
    other_publisher: Option<OtherPublisher>,
    /// When the desired set last began to differ from what is published.
    changed_at: Option<Duration>,
    led_since: Duration,
    refresh: Duration,
    reported: Vec<PublishedPeriod>,
}

impl PublishPlan {
    /// `refresh` is the age at which an unchanged descriptor is published again (a random 60 to 120
    /// minutes, drawn by the caller).
    pub fn new(refresh: Duration) -> Self {
        Self {
            term: None,
            desired: DesiredContent::default(),
            targets: BTreeMap::new(),
            floors: BTreeMap::new(),
            of_others: BTreeMap::new(),
            known: BTreeMap::new(),
            other_publisher: None,
            changed_at: None,
            led_since: Duration::ZERO,
            refresh,
            reported: Vec::new(),
        }
    }

    /// The directories of all periods, sorted; empty if this node does not publish.
    pub fn directories(&self) -> Vec<DirectoryReport> {
        let mut reports = Vec::new();
        for (period, target) in self.targets.iter().filter(|_| self.term.is_some()) {
            let newest = target.edition.as_ref().map(|edition| edition.revision);
            reports.extend(target.directories.iter().map(|(directory, held)| held.report(*period, directory, newest)));
        }
        reports
    }
}

impl Machine for PublishPlan {
    type Event = Event;
    type Action = Action;

    fn tick() -> Event {
        Event::Tick
    }

    fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let (at, now, mut actions) = (now, now.mono, Vec::new());
        match event {
            Event::Tick => {}
            Event::Lead(term) => self.lead(term, now),
            Event::Desired(content) => self.desire(content, now),
            Event::Periods(periods) => self.periods(periods),
            Event::Floor(period, revision) => self.raise_floor(period, revision),
            Event::OfOthers(period, revision) => {
                let highest = self.of_others.entry(period).or_default();
                *highest = revision.max(*highest);
            }
            Event::Built(period, result) => self.built(period, result, now),
            Event::Uploaded { period, directory, revision, outcome } => {
                self.uploaded(period, &directory, revision, outcome, at);
            }
            Event::Doubted(period, directory) => self.doubt(period, &directory, now),
            Event::ReadBackAnswered { period, directory, reading } => {
                actions.extend(self.held(period, &directory, reading, at).map(Action::OtherPublisher));
            }
        }
        self.reconcile(now, &mut actions);
        actions
    }

    fn next_timeout(&self, now: Now) -> Option<Duration> {
        self.term?;
        let mut at: Vec<Duration> = Vec::new();
        for target in self.targets.values() {
            if target.building.is_none()
                && let Some(due) = self.edition_due(target)
            {
                at.push(due);
            }
            let current = target.edition.as_ref().map(|edition| edition.revision);
            for held in target.directories.values().filter(|held| !held.busy) {
                if held.ask || held.confirmed != current {
                    at.push(held.not_before);
                } else if let Some(read_back) = held.read_back_at {
                    at.push(read_back.max(held.not_before));
                }
            }
        }
        // A pause keeps this from being a busy loop: work that is already due waits for an answer,
        // or for another transfer to end.
        at.into_iter().min().map(|at| at.max(now.mono + Duration::from_millis(100)))
    }
}

impl PublishPlan {
    fn lead(&mut self, term: Option<u64>, now: Duration) {
        if term.is_some() && term != self.term {
            self.led_since = now;
            for target in self.targets.values_mut() {
                target.edition = None;
            }
        }
        self.term = term;
    }

    fn desire(&mut self, content: DesiredContent, now: Duration) {
        let until = now + NAMED_FOR;
        self.known.extend(content.points.iter().map(|point| (point.session_key, until)));
        self.known.retain(|_, until| *until > now);
        while self.known.len() > MAX_KNOWN
            && let Some(oldest) = self.known.iter().min_by_key(|(_, until)| **until).map(|(point, _)| *point)
        {
            self.known.remove(&oldest);
        }
        if content != self.desired {
            self.desired = content;
            self.changed_at.get_or_insert(now);
        }
    }

    fn periods(&mut self, periods: Vec<Period>) {
        let current: BTreeSet<PeriodId> = periods.iter().map(|period| period.id).collect();
        self.targets.retain(|id, _| current.contains(id));
        // Keeps what gossip announced for neighbouring periods: other members may publish in the
        // next period before this node's directory names it.
        let soon = |id: &PeriodId| current.iter().any(|it| it.number.abs_diff(id.number) <= 2);
        self.floors.retain(|id, _| soon(id));
        self.of_others.retain(|id, _| soon(id));
        for period in periods {
            let floor = self.floors.get(&period.id).copied().unwrap_or(0);
            let target = self.targets.entry(period.id).or_default();
            target.floor = target.floor.max(floor);
            let responsible: BTreeSet<Directory> = period.directories.into_iter().collect();
            target.directories.retain(|directory, _| responsible.contains(directory));
            for directory in responsible {
                target.directories.entry(directory).or_default();
            }
        }
    }

    fn raise_floor(&mut self, period: PeriodId, revision: u64) {
        if revision > MAX_FENCE {
            return;
        }
        let floor = self.floors.entry(period).or_default();
        *floor = (*floor).max(revision);
        if let Some(target) = self.targets.get_mut(&period) {
            target.floor = target.floor.max(revision);
            // Another publisher, which did not hear this one, has used a higher revision: its
            // descriptor may have replaced ours.
            target.renew |= target.edition.as_ref().is_some_and(|edition| revision > edition.revision);
        }
    }

    fn built(&mut self, period: PeriodId, result: Result<u64, String>, now: Duration) {
        let Some(target) = self.targets.get_mut(&period) else { return };
        let Some(content) = target.building.take() else { return };
        target.not_before = now + MIN_GAP;
        if let Ok(revision) = result {
            target.floor = target.floor.max(revision);
            target.renew = false;
            target.edition = Some(Edition { revision, content, made: now });
            for held in target.directories.values_mut() {
                held.failures = 0;
                held.not_before = now;
                held.ask = false;
            }
        }
        if self
            .targets
            .values()
            .all(|target| target.edition.as_ref().is_some_and(|edition| edition.content == self.desired))
        {
            self.changed_at = None;
        }
    }

    fn uploaded(&mut self, period: PeriodId, directory: &Directory, revision: u64, outcome: Outcome, at: Now) {
        let now = at.mono;
        let Some(held) = self.held_mut(period, directory) else { return };
        held.busy = false;
        match outcome {
            Outcome::Accepted => {
                held.confirmed = Some(revision);
                held.confirmed_at = at.unix;
                held.accepted = held.accepted.max(Some(revision));
                held.failures = 0;
                held.read_back_at = Some(now + FIRST_READ_BACK);
            }
            Outcome::Refused => {
                held.ask = true;
                held.back_off(now, directory);
            }
            Outcome::Failed => held.back_off(now, directory),
        }
    }

    /// Applies the answer to a read-back. Returns the publisher outside the cluster that it
    /// reveals, if that was not reported before.
    fn held(
        &mut self,
        period: PeriodId,
        directory: &Directory,
        reading: Result<Option<Reading>, String>,
        at: Now,
    ) -> Option<OtherPublisher> {
        let now = at.mono;
        let held = self.held_mut(period, directory)?;
        held.busy = false;
        held.read_back_at = Some(now + READ_BACK);
        let Ok(reading) = reading else {
            // Read-backs and uploads take turns: either may work where the other does not.
            if held.ask {
                held.confirmed = None;
            }
            held.ask = !held.ask;
            held.back_off(now, directory);
            return None;
        };
        held.ask = false;
        held.confirmed = reading.as_ref().filter(|reading| reading.ours).map(|reading| reading.revision);
        if held.confirmed.is_some() {
            held.failures = 0;
            held.confirmed_at = at.unix;
        }
        let reading = reading.filter(|reading| !reading.ours)?;
        let replaces_ours = held.accepted.is_some_and(|ours| reading.revision > ours);
        let target = self.targets.get_mut(&period)?;
        // Another publisher's descriptor, or our own from before the clock was set back: the next
        // edition must have a higher revision.
        if reading.revision >= target.edition.as_ref().map_or(0, |edition| edition.revision) {
            target.renew |= reading.revision <= MAX_FENCE;
            self.raise_floor(period, reading.revision);
        }
        (replaces_ours && self.term.is_some()).then(|| self.other_publisher(period, &reading)).flatten()
    }

    /// The publisher outside the cluster whose descriptor this is; `None` if a member has published
    /// it, or if it was reported before.
    fn other_publisher(&mut self, period: PeriodId, reading: &Reading) -> Option<OtherPublisher> {
        let by_member = self.of_others.get(&period).is_some_and(|highest| *highest >= reading.revision);
        let members = |points: &Vec<_>| by_member || points.iter().any(|point| self.known.contains_key(point));
        if reading.points.as_ref().is_some_and(members) {
            return None;
        }
        let other_publisher = OtherPublisher { period, revision: reading.revision, readable: reading.points.is_some() };
        (self.other_publisher.replace(other_publisher) != Some(other_publisher)).then_some(other_publisher)
    }

    /// Has a confirmed directory read back at once. Others are tried already, with their pauses.
    fn doubt(&mut self, period: PeriodId, directory: &Directory, now: Duration) {
        if let Some(held) = self.held_mut(period, directory).filter(|held| held.confirmed.is_some()) {
            held.read_back_at = Some(now);
        }
    }

    fn held_mut(&mut self, period: PeriodId, directory: &Directory) -> Option<&mut DirectoryState> {
        self.targets.get_mut(&period)?.directories.get_mut(directory)
    }

    /// When a new edition of this target is due, if ever.
    fn edition_due(&self, target: &PeriodTarget) -> Option<Duration> {
        if self.desired.points.is_empty() || target.directories.is_empty() {
            return None;
        }
        let settled = self.led_since + SETTLE;
        let Some(edition) = &target.edition else { return Some(settled.max(target.not_before)) };
        let refresh = edition.made + self.refresh;
        let due = if edition.content != self.desired {
            let changed = self.changed_at.unwrap_or(edition.made);
            if self.desired.withdraws_from(&edition.content) { changed } else { changed + BATCH_PAUSE }
        } else if target.renew {
            settled
        } else {
            refresh
        };
        Some(due.max(settled).max(target.not_before).min(refresh.max(target.not_before)))
    }

    fn reconcile(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.term.is_some() {
            self.start_editions(now, actions);
            self.start_transfers(now, actions);
        }
        let report = self.report();
        if self.term.is_some() && report != self.reported {
            self.reported.clone_from(&report);
            actions.push(Action::Report(report));
        }
    }

    fn start_editions(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let due: Vec<PeriodId> = self
            .targets
            .iter()
            .filter(|(_, target)| target.building.is_none())
            .filter(|(_, target)| self.edition_due(target).is_some_and(|due| due <= now))
            .map(|(id, _)| *id)
            .collect();
        for period in due {
            if let Some(target) = self.targets.get_mut(&period) {
                target.building = Some(self.desired.clone());
                actions.push(Action::Build { period, content: self.desired.clone(), floor: target.floor });
            }
        }
    }

    fn start_transfers(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let busy =
            self.targets.values().flat_map(|target| target.directories.values()).filter(|held| held.busy).count();
        let mut room = MAX_IN_FLIGHT.saturating_sub(busy);
        for (&period, target) in &mut self.targets {
            // While a newer edition is being built, the old one is not worth a circuit.
            let Some(edition) = target.edition.as_ref().filter(|_| target.building.is_none()) else { continue };
            for (directory, held) in &mut target.directories {
                if room == 0 || held.busy || held.not_before > now {
                    continue;
                }
                let directory = directory.clone();
                if held.ask
                    || (held.confirmed == Some(edition.revision) && held.read_back_at.is_some_and(|at| at <= now))
                {
                    actions.push(Action::ReadBack { period, directory });
                } else if held.confirmed != Some(edition.revision) {
                    actions.push(Action::Upload { period, directory, revision: edition.revision });
                } else {
                    continue;
                }
                held.busy = true;
                room -= 1;
            }
        }
    }

    fn report(&self) -> Vec<PublishedPeriod> {
        self.targets
            .iter()
            .filter_map(|(&period, target)| {
                let revision = target.edition.as_ref()?.revision;
                let confirmed = target.directories.values().filter(|held| held.confirmed == Some(revision)).count();
                let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
                Some(PublishedPeriod {
                    period,
                    revision,
                    confirmed: count(confirmed),
                    directories: count(target.directories.len()),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
