//! When the canary runs, and which repairs follow from what it finds.
//!
//! Enter with [`CanaryPlan::handle`]; [`CanaryPlan::next_timeout`] says when to call it again.
//!
//! 1. Each service in turn gets a run per interval: the publisher's interval as configured, that of
//!    other nodes eight times as long, because the publisher sees all points. A run visits this
//!    node's points first, then those of others that were visited longest ago.
//! 2. If something was at fault, up to [`MOST_REPEATS`] short runs follow, a minute apart, at these
//!    directories and points alone. Until all is well, this node keeps the publisher's interval.
//! 3. A directory without the current descriptor is doubted, by the publisher alone: its task reads
//!    the directory back and uploads.
//! 4. A point of this node at which [`FAILED`] of the last [`JUDGED`] visits failed is replaced. If
//!    that holds for all points of this node, their relays are not the cause, so repairs rise step
//!    by step, each only after the same number of further failures: all circuits are rebuilt, all
//!    points are replaced, the node starts again with a new Tor client, and if that client has the
//!    same fault from its start, the daemon ends, so that systemd starts it. One point that is
//!    reached begins the steps again.
//! 5. Every repair has a back-off and a budget per hour ([`Budget`]), and the first client of a
//!    process is not replaced within [`CLIENT_TRIAL`]. A run in which nothing in the network has
//!    answered ([`Findings::network_answers`]) repairs nothing: this node's own network is down.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::PeriodId;
use rustbalance_gossip::time::Now;

use super::findings::{Findings, Held, Outcome, PointFinding, PointKey};
use crate::backoff::Backoff;
use crate::drive::Machine;
use crate::tor::{Directory, VisitStage};

/// The interval of nodes that do not publish, in intervals of the publisher.
const OF_OTHERS: u32 = 8;
/// From the start of the daemon to the first run, before jitter.
const FIRST: Duration = Duration::from_secs(300);
/// Time between two runs after a fault, before jitter.
const REPEAT: Duration = Duration::from_secs(60);
/// Most such runs in a row.
pub const MOST_REPEATS: u32 = 3;
/// Failed visits of the last [`JUDGED`] ones after which a point counts as broken.
pub const FAILED: usize = 3;
/// Visits by which a point is judged: one success among them may be luck, and two failures, too.
pub const JUDGED: usize = 4;
/// Most points that one run visits, and most of them that are this node's. By hand all are visited.
pub const MOST_VISITS: (usize, usize) = (6, 4);
/// Pauses between two equal repairs.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(120), Duration::from_secs(3600));
/// How long a repair is remembered for its back-off.
const REMEMBERED: Duration = Duration::from_secs(6 * 3600);
/// How long a Tor client has run, at least, when another one takes its place in the same process.
/// If neither that nor a new process helps, the node starts again eight times a day at most.
pub const CLIENT_TRIAL: Duration = Duration::from_secs(6 * 3600);
const HOUR: Duration = Duration::from_secs(3600);
/// Most points whose last visit is remembered: those of several services, over some changes.
const MAX_TRIED: usize = 512;

/// `[canary]`: whether and how often this node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanarySettings {
    /// False: no run but by hand.
    pub enabled: bool,
    /// Time between two runs on the publisher.
    pub interval: Duration,
}

impl Default for CanarySettings {
    fn default() -> Self {
        Self { enabled: true, interval: Duration::from_secs(15 * 60) }
    }
}

/// An event that the plan handles.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The settings, at the start and after a reload.
    Settings(CanarySettings),
    /// The services that this node knows, and whether it publishes them.
    Services {
        /// All services.
        all: Vec<ServiceId>,
        /// Whether this node is the publisher.
        publishes: bool,
    },
    /// A run has ended.
    Finished {
        /// What it found.
        findings: Findings,
        /// True if the operator has asked for it.
        by_hand: bool,
        /// A random number from 0 to 1.
        jitter: f64,
    },
}

/// An action that the task carries out.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Run once at this service; answer with [`Event::Finished`].
    Run {
        /// The service.
        service: ServiceId,
        /// What to try.
        scope: Scope,
    },
    /// Have this repaired.
    Repair {
        /// The repair.
        repair: Repair,
        /// The reason, for the log.
        why: String,
    },
}

/// What a run tries.
#[derive(Debug, Clone, PartialEq)]
pub enum Scope {
    /// All directories that clients ask, and all points.
    All,
    /// Directories until one answers, and the points that [`choose`] selects.
    Turn {
        /// When points were visited last, on the monotonic clock.
        tried: BTreeMap<PointKey, Duration>,
    },
    /// These directories, or as clients choose if there is none, and these points.
    Again {
        /// The directories.
        directories: BTreeSet<Directory>,
        /// The points.
        points: BTreeSet<PointKey>,
    },
}

/// A repair.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repair {
    /// Read the descriptor back from a directory, and upload it if it is not the current one.
    Republish {
        /// The service.
        service: ServiceId,
        /// The period.
        period: PeriodId,
        /// The directory.
        directory: Directory,
    },
    /// Replace a point of this node.
    ReplacePoint {
        /// The service.
        service: ServiceId,
        /// The point.
        point: PointKey,
    },
    /// Make the circuits of all points of this node again, and those in reserve.
    RebuildCircuits,
    /// Start the node again in this process, with a new Tor client.
    RenewTor,
    /// End the daemon, to be started again.
    Exit,
}

/// The kinds of repairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, strum::IntoStaticStr, strum::EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum RepairKind {
    /// A directory is read back, and uploaded to if it lacks the current descriptor.
    Republish,
    /// A point of this node moves to another relay.
    ReplacePoint,
    /// The circuits of all points of this node are made again.
    RebuildCircuits,
    /// The node starts again in this process, with a new Tor client.
    RenewTor,
    /// The daemon ends, to be started again.
    Exit,
}

impl Repair {
    /// Its kind.
    pub fn kind(&self) -> RepairKind {
        match self {
            Self::Republish { .. } => RepairKind::Republish,
            Self::ReplacePoint { .. } => RepairKind::ReplacePoint,
            Self::RebuildCircuits => RepairKind::RebuildCircuits,
            Self::RenewTor => RepairKind::RenewTor,
            Self::Exit => RepairKind::Exit,
        }
    }
}

impl RepairKind {
    /// Its name in `status` and metrics.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Most repairs of this kind in an hour.
    pub fn per_hour(self) -> usize {
        match self {
            // Two periods have 16 directories.
            Self::Republish => 16,
            Self::ReplacePoint => 4,
            Self::RebuildCircuits | Self::RenewTor | Self::Exit => 1,
        }
    }
}

/// What has been found and repaired, for `status`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// The last findings of each service, and when they were made, in seconds since the Unix epoch.
    pub last: BTreeMap<ServiceId, (u64, Findings)>,
    /// Runs since the start.
    pub runs: u64,
    /// Of these, those that found a fault.
    pub failures: u64,
    /// When a run last found no fault, in seconds since the Unix epoch.
    pub last_success: Option<u64>,
    /// Repairs since the start.
    pub repairs: BTreeMap<RepairKind, u64>,
    /// The reason of the last repair, and when it was, in seconds since the Unix epoch.
    pub last_repair: Option<(u64, RepairKind, String)>,
}

/// The last repairs of one kind: at most [`RepairKind::per_hour`] in any hour.
#[derive(Debug, Default)]
struct Budget(VecDeque<Duration>);

impl Budget {
    fn take(&mut self, most: usize, now: Duration) -> bool {
        while self.0.front().is_some_and(|at| *at + HOUR <= now) {
            self.0.pop_front();
        }
        let some_left = self.0.len() < most;
        if some_left {
            self.0.push_back(now);
        }
        some_left
    }
}

/// The state of one service.
#[derive(Debug, Default)]
struct ServiceState {
    /// The last visits to each point of this node: whether it was reached.
    points: BTreeMap<PointKey, VecDeque<bool>>,
    /// The steps that were taken since a point of this node was last reached.
    steps: u32,
    /// Runs in a row that repeated a faulty one.
    repeats: u32,
}

impl ServiceState {
    fn broken(&self) -> Vec<PointKey> {
        let broken = |visits: &VecDeque<bool>| visits.iter().filter(|reached| !**reached).count() >= FAILED;
        self.points.iter().filter(|(_, visits)| broken(visits)).map(|(key, _)| *key).collect()
    }
}

/// The machine. It has no clock, no randomness and no circuits.
#[derive(Debug)]
pub struct CanaryPlan {
    settings: CanarySettings,
    renewed: bool,
    publishes: bool,
    services: Vec<ServiceId>,
    /// The service of the last run in turn.
    last: Option<ServiceId>,
    /// When the next run in turn is due.
    due: Duration,
    /// The next run after a fault.
    repeat: Option<(Duration, ServiceId, Scope)>,
    /// Whether a run of this plan is under way.
    running: bool,
    states: BTreeMap<ServiceId, ServiceState>,
    tried: BTreeMap<PointKey, Duration>,
    budgets: BTreeMap<RepairKind, Budget>,
    /// For each repair how often it was made in a row, and when it may be made again.
    pauses: BTreeMap<Repair, (u32, Duration)>,
    summary: Summary,
}

impl CanaryPlan {
    /// A plan whose clock shows zero at the start of the Tor client. `renewed`: that client has
    /// taken the place of another one in this process. `jitter` is a random number from 0 to 1.
    pub fn new(settings: CanarySettings, renewed: bool, jitter: f64) -> Self {
        Self {
            due: jittered(FIRST.min(settings.interval), jitter),
            settings,
            renewed,
            publishes: false,
            services: Vec::new(),
            last: None,
            repeat: None,
            running: false,
            states: BTreeMap::new(),
            tried: BTreeMap::new(),
            budgets: BTreeMap::new(),
            pauses: BTreeMap::new(),
            summary: Summary::default(),
        }
    }

    /// What has been found and repaired.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }
}

/// Three quarters to five quarters of a time, so that nodes do not run at the same moment, and
/// no member can wait for the next run.
fn jittered(time: Duration, jitter: f64) -> Duration {
    time.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0)
}

impl Machine for CanaryPlan {
    type Event = Event;
    type Action = Action;

    fn tick() -> Event {
        Event::Tick
    }

    fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::Settings(settings) => {
                self.settings = settings;
                self.due = self.due.min(now.mono + self.interval());
            }
            Event::Services { all, publishes } => {
                self.states.retain(|service, _| all.contains(service));
                self.summary.last.retain(|service, _| all.contains(service));
                self.services = all;
                if publishes != self.publishes {
                    self.publishes = publishes;
                    self.due = self.due.min(now.mono + self.interval());
                }
            }
            Event::Finished { findings, by_hand, jitter } => {
                self.finished(findings, by_hand, jitter, now, &mut actions)
            }
        }
        self.run(now.mono, &mut actions);
        actions
    }

    fn next_timeout(&self, _: Now) -> Option<Duration> {
        if self.running || !self.settings.enabled || self.services.is_empty() {
            return None;
        }
        Some(self.repeat.as_ref().map_or(self.due, |(at, ..)| self.due.min(*at)))
    }
}

impl CanaryPlan {
    /// The time between two runs: short for the publisher, and until all is well.
    fn interval(&self) -> Duration {
        let well = self.summary.last.values().all(|(_, findings)| findings.all_well());
        self.settings.interval * if self.publishes || !well { 1 } else { OF_OTHERS }
    }

    /// Starts the run that is due.
    fn run(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.running || !self.settings.enabled {
            return;
        }
        let repeat = self.repeat.take_if(|(at, ..)| *at <= now).filter(|(_, it, _)| self.services.contains(it));
        if let Some((_, service, scope)) = repeat {
            self.running = true;
            actions.push(Action::Run { service, scope });
        } else if self.due <= now
            && let Some(service) = self.next_service()
        {
            self.running = true;
            self.last = Some(service);
            self.states.entry(service).or_default().repeats = 0;
            actions.push(Action::Run { service, scope: Scope::Turn { tried: self.tried.clone() } });
        }
    }

    /// The service after the last one.
    fn next_service(&self) -> Option<ServiceId> {
        let after = self.services.iter().filter(|service| self.last.is_none_or(|last| **service > last)).min();
        after.or(self.services.iter().min()).copied()
    }

    fn finished(&mut self, findings: Findings, by_hand: bool, jitter: f64, now: Now, actions: &mut Vec<Action>) {
        self.remember_visits(&findings, now.mono);
        if findings.network_answers() {
            self.judge_directories(&findings, now, actions);
            self.judge_points(&findings, now, actions);
        }
        let service = findings.service;
        let state = self.states.entry(service).or_default();
        if findings.all_well() {
            self.repeat.take_if(|(_, repeated, _)| *repeated == service);
        } else if state.repeats < MOST_REPEATS {
            state.repeats += 1;
            let (directories, points) = findings.faulty();
            let scope = Scope::Again { directories, points };
            self.repeat = Some((now.mono + jittered(REPEAT, jitter), service, scope));
        }
        self.note(findings, now.unix);
        let next = now.mono + jittered(self.interval(), jitter);
        self.running &= by_hand;
        self.due = if self.due <= now.mono && !by_hand { next } else { self.due.min(next) };
    }

    fn remember_visits(&mut self, findings: &Findings, now: Duration) {
        let tried = findings.points.iter().filter(|point| point.outcome != Outcome::NotTried);
        self.tried.extend(tried.map(|point| (point.key, now)));
        while self.tried.len() > MAX_TRIED
            && let Some(oldest) = self.tried.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
        {
            self.tried.remove(&oldest);
        }
    }

    /// Doubts the directories at fault, if this node publishes.
    fn judge_directories(&mut self, findings: &Findings, now: Now, actions: &mut Vec<Action>) {
        let service = findings.service;
        for it in &findings.directories {
            let (period, directory) = (it.period, it.directory.clone());
            let repair = Repair::Republish { service, period, directory };
            let fault = match &it.held {
                Held::Current(_) => {
                    self.pauses.remove(&repair);
                    continue;
                }
                // Uploads to it fail, too, and are tried again by themselves.
                Held::NoAnswer(_) => continue,
                Held::Missing => "it has no descriptor".to_owned(),
                Held::Old { revision, announced } => {
                    format!("it holds revision {revision}, and {announced} was announced")
                }
                Held::Differs(revision) => format!("its descriptor, with revision {revision}, names other points"),
                Held::Unreadable(why) => format!("its descriptor cannot be read: {why}"),
            };
            if self.publishes {
                self.repair(repair, format!("directory {}: {fault}", it.directory.relay), now, actions);
            }
        }
    }

    fn judge_points(&mut self, findings: &Findings, now: Now, actions: &mut Vec<Action>) {
        let service = findings.service;
        let state = self.states.entry(service).or_default();
        state.points.retain(|key, _| findings.own.contains(key));
        for point in findings.points.iter().filter(|point| point.own) {
            let Some(reached) = works(point, findings.busy) else { continue };
            let visits = state.points.entry(point.key).or_default();
            visits.push_back(reached);
            if visits.len() > JUDGED {
                visits.pop_front();
            }
            if reached {
                state.steps = 0;
            }
        }
        let (broken, steps) = (state.broken(), state.steps);
        if broken.is_empty() {
            return;
        }
        let all = broken.len() == state.points.len();
        match (all, steps) {
            (true, 0) => {
                let why = format!("no client gets through at any of this node's {} points", broken.len());
                if self.repair(Repair::RebuildCircuits, why, now, actions) {
                    self.next_step(service);
                }
            }
            (true, 2..) => {
                let why = "no client gets through at any of this node's points, which have been replaced".to_owned();
                // A client that has replaced another recently has the same fault.
                let last = if self.renewed && now.mono < CLIENT_TRIAL { Repair::Exit } else { Repair::RenewTor };
                self.repair(last, why, now, actions);
            }
            _ => self.replace(service, broken, all, now, actions),
        }
    }

    /// Replaces broken points, as many as the budget allows.
    fn replace(&mut self, service: ServiceId, broken: Vec<PointKey>, all: bool, now: Now, actions: &mut Vec<Action>) {
        for point in broken {
            let why = format!("{FAILED} of the last {JUDGED} clients did not get through at this point");
            if !self.repair(Repair::ReplacePoint { service, point }, why, now, actions) {
                return;
            }
            self.states.entry(service).or_default().points.remove(&point);
        }
        if all {
            self.next_step(service);
        }
    }

    /// Waits for further failures before the next step.
    fn next_step(&mut self, service: ServiceId) {
        let state = self.states.entry(service).or_default();
        state.steps += 1;
        state.points.clear();
    }

    /// Asks for a repair; false if it has to wait.
    fn repair(&mut self, repair: Repair, why: String, now: Now, actions: &mut Vec<Action>) -> bool {
        let kind = repair.kind();
        self.pauses.retain(|_, (_, until)| now.mono < *until + REMEMBERED);
        let (earlier, not_before) = self.pauses.get(&repair).copied().unwrap_or_default();
        let too_young = kind == RepairKind::RenewTor && now.mono < CLIENT_TRIAL;
        if too_young || now.mono < not_before || !self.budgets.entry(kind).or_default().take(kind.per_hour(), now.mono)
        {
            return false;
        }
        self.pauses.insert(repair.clone(), (earlier.saturating_add(1), now.mono + PAUSES.pause(earlier)));
        *self.summary.repairs.entry(kind).or_default() += 1;
        self.summary.last_repair = Some((now.unix, kind, why.clone()));
        actions.push(Action::Repair { repair, why });
        true
    }

    /// Keeps the findings for `status`. Those of a repeated run replace only what it tried.
    fn note(&mut self, findings: Findings, unix: u64) {
        self.summary.runs += 1;
        match findings.all_well() {
            true => self.summary.last_success = Some(unix),
            false => self.summary.failures += 1,
        }
        let service = findings.service;
        let last = self.summary.last.remove(&service).filter(|_| findings.repeated);
        let shown = match last {
            Some((_, last)) => last.updated(findings),
            None => findings,
        };
        self.summary.last.insert(service, (unix, shown));
    }
}

/// Whether a point of this node works; `None` if the visit does not say.
fn works(point: &PointFinding, busy: bool) -> Option<bool> {
    match &point.outcome {
        Outcome::Reached | Outcome::Failed(VisitStage::Port, _) => Some(true),
        Outcome::Failed(VisitStage::Introduction, _) => Some(false),
        Outcome::Failed(VisitStage::Rendezvous, _) => (!busy).then_some(false),
        Outcome::Failed(VisitStage::Network, _) | Outcome::NotTried => None,
    }
}

/// The points to visit in a run in turn: own ones first, in each group those that were visited
/// longest ago. `points`: the points of the descriptor, and whether they are this node's.
pub fn choose(points: &[(PointKey, bool)], tried: &BTreeMap<PointKey, Duration>) -> Vec<PointKey> {
    let of = |own: bool| {
        let mut keys: Vec<_> = points.iter().filter(|point| point.1 == own).map(|point| point.0).collect();
        keys.sort_by_key(|key| (tried.get(key).copied(), *key));
        keys
    };
    let (most, most_own) = MOST_VISITS;
    of(true).into_iter().take(most_own).chain(of(false)).take(most).collect()
}

#[cfg(test)]
mod tests;
