//! What to upload where: a reconciler between what should be published and what each directory holds.
//!
//! Enter with [`Plan::handle`], once for each thing that happened; it answers with all that is to be done now, and
//! [`Plan::next_timeout`] says when to come again if nothing happens. The algorithm looks at the whole state each time:
//!
//! 1. Not the publisher, no intro points known, or no directory known: nothing. (The last descriptor stays: an error
//!    page beats a dead address.)
//! 2. A period without an edition, or whose edition names other intro points than desired, or too old, or outdone by a
//!    higher revision on a directory, gets a new **edition** (one built descriptor with one revision): soon if a point
//!    left, after a short pause to batch if points only came, never within [`MIN_GAP`] of the one before.
//! 3. Every responsible directory that has not confirmed the current edition gets it, with back-off after failures.
//! 4. A confirmed directory is read back now and then; what differs is uploaded again. A directory
//!    that does not answer twice in a row is not counted as confirmed any more.
//!
//! A descriptor that took the place of one of ours, names no point of this cluster and has no
//! revision that a member names is another publisher's ([`Action::Stranger`]). What stood there
//! before our first upload is none: it may be left over from a service that has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::record::{IntroPoint, PeriodId, PublishedPeriod};
use rustbalance_gossip::time::Now;
use rustbalance_gossip::view::MAX_FENCE;

use crate::backoff::Backoff;
use crate::drive::Machine;
use crate::tor::{Directory, Period};

/// Between two editions of one period: an equal revision is refused, and revisions of the clock step once a second.
pub const MIN_GAP: Duration = Duration::from_secs(2);
/// How long points that only came are gathered before a new edition.
pub const BATCH_PAUSE: Duration = Duration::from_secs(2);
/// How long the set of a publisher that has just been elected settles before its first edition.
pub const SETTLE: Duration = Duration::from_millis(500);
/// Between two looks at what a directory holds.
pub const READ_BACK: Duration = Duration::from_secs(600);
/// How soon after its upload a descriptor is first read back.
pub const FIRST_READ_BACK: Duration = Duration::from_secs(20);
/// Pauses between two tries at one directory.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// For how long a descriptor may name a point that was desired last before it: as long as
/// directories keep it.
const NAMED_FOR: Duration = Duration::from_secs(3 * 3600);
/// Most of such points that are remembered: 20 desired at once, in three hours of changes.
const MAX_KNOWN: usize = 4096;
/// Uploads and read-backs under way at once.
const MAX_IN_FLIGHT: usize = 16;

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time passed.
    Tick,
    /// This node became the publisher, or stopped being it (`None`).
    Lead(Option<u64>),
    /// What should be published: at most 20, ordered, one per relay.
    Desired(Vec<IntroPoint>),
    /// The current periods and their directories.
    Periods(Vec<Period>),
    /// A revision known to be in use for a period, from gossip or from disk.
    Floor(PeriodId, u64),
    /// The highest revision for a period that another member tells of.
    OfOthers(PeriodId, u64),
    /// An edition is built and its revision is on disk; or it could not be built.
    Built(PeriodId, Result<u64, String>),
    /// A directory accepted an edition, or did not.
    Uploaded {
        /// For which period.
        period: PeriodId,
        /// Where.
        directory: Directory,
        /// Which edition.
        revision: u64,
        /// Whether it was accepted.
        outcome: Outcome,
    },
    /// What a directory holds, `None` for nothing; `Err` if it did not say.
    Held {
        /// For which period.
        period: PeriodId,
        /// Where.
        directory: Directory,
        /// Its revision and whether the text is the one this node uploaded.
        reading: Result<Option<Reading>, String>,
    },
}

/// What a directory holds.
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
    /// The directory has it.
    Accepted,
    /// The directory said no: most likely it holds an equal or higher revision.
    Refused,
    /// It could not be reached.
    Failed,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Build an edition with a revision above `floor`, store the revision, answer with [`Event::Built`].
    Build {
        /// For which period.
        period: PeriodId,
        /// What it names.
        points: Vec<IntroPoint>,
        /// The revision must be higher.
        floor: u64,
    },
    /// Upload the current edition of the period.
    Upload {
        /// For which period.
        period: PeriodId,
        /// Where.
        directory: Directory,
        /// Which edition.
        revision: u64,
    },
    /// Ask a directory what it holds.
    ReadBack {
        /// For which period.
        period: PeriodId,
        /// Where.
        directory: Directory,
    },
    /// Tell the cluster what stands where.
    Report(Vec<PublishedPeriod>),
    /// Tell the operator that a publisher that is no member publishes this address.
    Stranger(Stranger),
}

/// A descriptor of this address that another publisher, no member of the cluster, has put in the
/// place of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranger {
    /// In which period.
    pub period: PeriodId,
    /// With which revision.
    pub revision: u64,
    /// False if only clients that it has authorized can read it.
    pub readable: bool,
}

/// One built descriptor.
#[derive(Debug, Clone)]
struct Edition {
    revision: u64,
    points: Vec<IntroPoint>,
    made: Duration,
}

/// What is known of one directory, for one period.
#[derive(Debug, Clone, Default)]
struct Held {
    confirmed: Option<u64>,
    /// The highest revision of ours that it has taken in this process's life.
    accepted: Option<u64>,
    busy: bool,
    failures: u32,
    not_before: Duration,
    read_back_at: Option<Duration>,
    /// Whether the next thing to do is to ask rather than to upload: after a refusal, or an answer
    /// that did not come.
    ask: bool,
}

/// One period.
#[derive(Debug, Clone, Default)]
struct Target {
    directories: BTreeMap<Directory, Held>,
    edition: Option<Edition>,
    building: Option<Vec<IntroPoint>>,
    floor: u64,
    /// A new edition is wanted although its points are unchanged.
    renew: bool,
    not_before: Duration,
}

/// The reconciler. Owns no clock and no socket.
#[derive(Debug)]
pub struct Plan {
    term: Option<u64>,
    desired: Vec<IntroPoint>,
    targets: BTreeMap<PeriodId, Target>,
    floors: BTreeMap<PeriodId, u64>,
    /// The highest revisions that other members tell of.
    of_others: BTreeMap<PeriodId, u64>,
    /// The session keys of all points that were desired, and until when a descriptor may name them.
    known: BTreeMap<FixedBytes<32>, Duration>,
    /// The last stranger's descriptor seen: it stands on several directories, and is reported once.
    stranger: Option<Stranger>,
    /// When the desired set last began to differ from what is published.
    changed_at: Option<Duration>,
    led_since: Duration,
    refresh: Duration,
    reported: Vec<PublishedPeriod>,
}

impl Plan {
    /// `refresh`: after how long an unchanged descriptor is published anew (a random 60 to 120 minutes, drawn by the
    /// caller).
    pub fn new(refresh: Duration) -> Self {
        Self {
            term: None,
            desired: Vec::new(),
            targets: BTreeMap::new(),
            floors: BTreeMap::new(),
            of_others: BTreeMap::new(),
            known: BTreeMap::new(),
            stranger: None,
            changed_at: None,
            led_since: Duration::ZERO,
            refresh,
            reported: Vec::new(),
        }
    }
}

impl Machine for Plan {
    type Event = Event;
    type Action = Action;

    fn tick() -> Event {
        Event::Tick
    }

    fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let (now, mut actions) = (now.mono, Vec::new());
        match event {
            Event::Tick => {}
            Event::Lead(term) => self.lead(term, now),
            Event::Desired(points) => self.desire(points, now),
            Event::Periods(periods) => self.periods(periods),
            Event::Floor(period, revision) => self.raise_floor(period, revision),
            Event::OfOthers(period, revision) => {
                let highest = self.of_others.entry(period).or_default();
                *highest = revision.max(*highest);
            }
            Event::Built(period, result) => self.built(period, result, now),
            Event::Uploaded { period, directory, revision, outcome } => {
                self.uploaded(period, &directory, revision, outcome, now);
            }
            Event::Held { period, directory, reading } => {
                actions.extend(self.held(period, &directory, reading, now).map(Action::Stranger));
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
        // Never a busy loop: what is due already waits for an answer or for a place among those in flight.
        at.into_iter().min().map(|at| at.max(now.mono + Duration::from_millis(100)))
    }
}

impl Plan {
    fn lead(&mut self, term: Option<u64>, now: Duration) {
        if term.is_some() && term != self.term {
            self.led_since = now;
            for target in self.targets.values_mut() {
                target.edition = None;
            }
        }
        self.term = term;
    }

    fn desire(&mut self, points: Vec<IntroPoint>, now: Duration) {
        let until = now + NAMED_FOR;
        self.known.extend(points.iter().map(|point| (point.session_key, until)));
        self.known.retain(|_, until| *until > now);
        while self.known.len() > MAX_KNOWN
            && let Some(oldest) = self.known.iter().min_by_key(|(_, until)| **until).map(|(point, _)| *point)
        {
            self.known.remove(&oldest);
        }
        if points != self.desired {
            self.desired = points;
            self.changed_at.get_or_insert(now);
        }
    }

    fn periods(&mut self, periods: Vec<Period>) {
        let current: BTreeSet<PeriodId> = periods.iter().map(|period| period.id).collect();
        self.targets.retain(|id, _| current.contains(id));
        // One that begins soon is told of before the network names it.
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
            // Another publisher's, that could not hear of this one: its descriptor stands in place of ours.
            target.renew |= target.edition.as_ref().is_some_and(|edition| revision > edition.revision);
        }
    }

    fn built(&mut self, period: PeriodId, result: Result<u64, String>, now: Duration) {
        let Some(target) = self.targets.get_mut(&period) else { return };
        let Some(points) = target.building.take() else { return };
        target.not_before = now + MIN_GAP;
        if let Ok(revision) = result {
            target.floor = target.floor.max(revision);
            target.renew = false;
            target.edition = Some(Edition { revision, points, made: now });
            for held in target.directories.values_mut() {
                held.failures = 0;
                held.not_before = now;
                held.ask = false;
            }
        }
        if self
            .targets
            .values()
            .all(|target| target.edition.as_ref().is_some_and(|edition| edition.points == self.desired))
        {
            self.changed_at = None;
        }
    }

    fn uploaded(&mut self, period: PeriodId, directory: &Directory, revision: u64, outcome: Outcome, now: Duration) {
        let Some(held) = self.held_mut(period, directory) else { return };
        held.busy = false;
        match outcome {
            Outcome::Accepted => {
                held.confirmed = Some(revision);
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

    /// Takes note of what a directory holds; gives what it says of another publisher, if that is
    /// new.
    fn held(
        &mut self,
        period: PeriodId,
        directory: &Directory,
        reading: Result<Option<Reading>, String>,
        now: Duration,
    ) -> Option<Stranger> {
        let held = self.held_mut(period, directory)?;
        held.busy = false;
        held.read_back_at = Some(now + READ_BACK);
        let Ok(reading) = reading else {
            // By turns asked and given what it should hold: either may work where the other does
            // not.
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
        }
        let reading = reading.filter(|reading| !reading.ours)?;
        let replaces_ours = held.accepted.is_some_and(|ours| reading.revision > ours);
        let target = self.targets.get_mut(&period)?;
        // Another publisher's, or our own from before a clock was set back: the next one must go above it.
        if reading.revision >= target.edition.as_ref().map_or(0, |edition| edition.revision) {
            target.renew |= reading.revision <= MAX_FENCE;
            self.raise_floor(period, reading.revision);
        }
        (replaces_ours && self.term.is_some()).then(|| self.stranger(period, &reading)).flatten()
    }

    /// The stranger that this descriptor is of, unless a member has published it, or it was seen
    /// before.
    fn stranger(&mut self, period: PeriodId, reading: &Reading) -> Option<Stranger> {
        let by_member = self.of_others.get(&period).is_some_and(|highest| *highest >= reading.revision);
        let members = |points: &Vec<_>| by_member || points.iter().any(|point| self.known.contains_key(point));
        if reading.points.as_ref().is_some_and(members) {
            return None;
        }
        let stranger = Stranger { period, revision: reading.revision, readable: reading.points.is_some() };
        (self.stranger.replace(stranger) != Some(stranger)).then_some(stranger)
    }

    fn held_mut(&mut self, period: PeriodId, directory: &Directory) -> Option<&mut Held> {
        self.targets.get_mut(&period)?.directories.get_mut(directory)
    }

    /// When a new edition of this target is due, if ever.
    fn edition_due(&self, target: &Target) -> Option<Duration> {
        if self.desired.is_empty() || target.directories.is_empty() {
            return None;
        }
        let settled = self.led_since + SETTLE;
        let Some(edition) = &target.edition else { return Some(settled.max(target.not_before)) };
        let refresh = edition.made + self.refresh;
        let due = if edition.points != self.desired {
            let left = edition.points.iter().any(|point| !self.desired.contains(point));
            let changed = self.changed_at.unwrap_or(edition.made);
            if left { changed } else { changed + BATCH_PAUSE }
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
                actions.push(Action::Build { period, points: self.desired.clone(), floor: target.floor });
            }
        }
    }

    fn start_transfers(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let busy =
            self.targets.values().flat_map(|target| target.directories.values()).filter(|held| held.busy).count();
        let mut room = MAX_IN_FLIGHT.saturating_sub(busy);
        for (&period, target) in &mut self.targets {
            // While a newer edition is in the making, the old one is not worth a circuit.
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

impl Held {
    /// Waits longer after each failure, with a share that differs from directory to directory so that they spread.
    fn back_off(&mut self, now: Duration, directory: &Directory) {
        let base = BACKOFF.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        let share = u32::from(directory.relay.rsa.0[0]);
        self.not_before = now + base + base * share / 512;
    }
}

#[cfg(test)]
mod tests;
