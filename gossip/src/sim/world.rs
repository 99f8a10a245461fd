//! The event loop of a run: machines, directories and time.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use super::fast::{FastLinks, UdpState};
use super::faults::{Bug, Scenario};
use super::gossip::{Message, Store};
use super::host::{Fate, Host, Pace, Process};
use super::memo::{AcceptsAll, Memo};
use super::monitor::{Claims, Invariant, Violation, Witness};
use super::net::{ROUND, Wall};
use super::rng::Rng;
use super::script::{Fault, Planned};
use super::shell::POINTS;
use super::{Founder, Identity, served};
use crate::coordinator::{Coordinator, Event, Settings};
use crate::id::{NodeId, ServiceId};
use crate::record::{IntroPoint, PeriodId, RecordKind, Role};
use crate::source::Source;

/// Fewest relays in the simulated network. Large clusters have eight relays for each introduction
/// point.
const RELAYS: usize = 400;

/// An event for the process on a machine.
#[derive(Debug)]
pub(super) enum ProcessEvent {
    Tick,
    Round,
    Message(Message),
    Record {
        origin: NodeId,
        kind: RecordKind,
        bytes: Vec<u8>,
    },
    TermOnDisk(u64),
    ListOnDisk,
    Points,
    Publish(ServiceId),
    Target,
    Reached,
    End,
    /// Probes over the faster routes are due.
    Probes,
    /// The process of this number on machine `of` has answered a question over the base route.
    Answer {
        of: (usize, u64),
        round_trip: Duration,
    },
    /// The silence of a peer is to be judged.
    Judge,
}

/// A scheduled event. `process_number` is the `Host::process_number` that it is meant for; `None`
/// if any process on the machine takes it.
#[derive(Debug)]
pub(super) enum SimEvent {
    At { host: usize, process_number: Option<u64>, due: ProcessEvent },
    Thaw { host: usize, asleep_since: Option<Duration> },
    Fault(Planned),
    Probe,
}

/// An entry of the event queue. The earliest is the greatest, because `BinaryHeap` pops the
/// greatest.
#[derive(Debug)]
struct Scheduled {
    at: Duration,
    number: u64,
    what: SimEvent,
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scheduled {}

/// The descriptor that the directories hold of one service for one period.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory {
    pub(super) revision: u64,
    pub(super) points: Vec<(Source, IntroPoint)>,
}

/// The state of a run.
pub struct World {
    pub(super) scenario: Scenario,
    /// Random numbers for the network and the shells.
    pub(super) rng: Rng,
    /// Random numbers for the fault that strikes now.
    pub(super) dice: Rng,
    pub(super) founder: Founder,
    /// The services of the cluster.
    pub(super) services: Vec<ServiceId>,
    pub(super) now: Duration,
    queue: BinaryHeap<Scheduled>,
    count: u64,
    pub(super) hosts: Vec<Host>,
    pub(super) index: BTreeMap<NodeId, usize>,
    pub(super) walls: Vec<Wall>,
    pub(super) loss: f64,
    pub(super) delay: Duration,
    pub(super) udp: UdpState,
    pub(super) calm: bool,
    pub(super) relays: usize,
    held: BTreeMap<usize, Vec<ProcessEvent>>,
    pub(super) directories: BTreeMap<(ServiceId, PeriodId), Directory>,
    pub(super) claims: Claims,
    pub(super) tokens: u32,
    pub(super) memo: Memo,
    /// Broken invariants, in order.
    pub violations: Vec<Violation>,
    /// The faults that struck, in order, with the nodes that they struck.
    pub(super) log: Vec<String>,
    pub(super) struck: BTreeMap<Fault, u64>,
    /// Processes that were killed while a term was on its way to disk.
    pub(super) killed_while_storing: u64,
    /// Messages delivered, and records handed to coordinators.
    pub traffic: (u64, u64),
    pub(super) refused: BTreeSet<(usize, ServiceId, PeriodId)>,
}

impl World {
    /// A cluster of `scenario.nodes` nodes that all know each other and start at the same time.
    pub fn new(scenario: Scenario) -> Self {
        let founder = Founder::new(scenario.seed as u32);
        let mut world = Self {
            scenario,
            rng: Rng::new(scenario.seed),
            dice: Rng::new(0),
            services: (0..scenario.services).map(|number| founder.service(number)).collect(),
            founder,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            count: 0,
            hosts: Vec::new(),
            index: BTreeMap::new(),
            walls: Vec::new(),
            loss: 0.0,
            delay: Duration::from_secs(2),
            udp: UdpState::default(),
            calm: false,
            relays: RELAYS.max(scenario.nodes * POINTS * 8),
            held: BTreeMap::new(),
            directories: BTreeMap::new(),
            claims: Claims::default(),
            tokens: 0,
            memo: Memo::default(),
            violations: Vec::new(),
            log: Vec::new(),
            struck: BTreeMap::new(),
            killed_while_storing: 0,
            traffic: (0, 0),
            refused: BTreeSet::new(),
        };
        for number in 0..scenario.nodes {
            // Every third node is a worker.
            let role = if number % 3 == 2 { Role::Worker } else { Role::Publisher };
            let identity = world.founder.node(number as u32, role);
            world.add(identity);
        }
        for host in 0..scenario.nodes {
            world.hosts[host].disk.members = (0..scenario.nodes).collect();
            world.hosts[host].disk.facts =
                (0..scenario.services).map(|number| world.founder.serve(number).into()).collect();
            world.start(host);
        }
        world.at(Duration::from_secs(1), SimEvent::Probe);
        world
    }

    /// Adds a machine whose wall clock is up to ten minutes off. Returns its number.
    pub(super) fn add(&mut self, identity: Identity) -> usize {
        let host = self.hosts.len();
        self.index.insert(identity.node(), host);
        let mut machine = Host::new(identity);
        machine.skew = self.rng.below(1201) as i64 - 600;
        self.hosts.push(machine);
        host
    }

    pub(super) fn at(&mut self, after: Duration, what: SimEvent) {
        self.count += 1;
        self.queue.push(Scheduled { at: self.now + after, number: self.count, what });
    }

    /// Schedules an event for the process that runs on `host` now.
    pub(super) fn due(&mut self, host: usize, after: Duration, due: ProcessEvent) {
        let process_number = Some(self.hosts[host].process_number);
        self.at(after, SimEvent::At { host, process_number, due });
    }

    /// Runs all events up to `end`, a time since the start of the run.
    pub fn run_until(&mut self, end: Duration) {
        while self.queue.peek().is_some_and(|next| next.at <= end)
            && let Some(next) = self.queue.pop()
        {
            self.now = next.at;
            self.happen(next.what);
        }
        self.now = end;
    }

    fn happen(&mut self, what: SimEvent) {
        match what {
            SimEvent::At { host, process_number, due } => {
                if process_number.is_some_and(|process_number| process_number != self.hosts[host].process_number)
                    || self.hosts[host].process.is_none()
                {
                    return;
                }
                if self.hosts[host].frozen {
                    self.held.entry(host).or_default().push(due);
                } else {
                    self.run_due(host, due);
                }
            }
            SimEvent::Thaw { host, asleep_since } => self.thaw(host, asleep_since),
            SimEvent::Fault(planned) => self.strike(planned),
            SimEvent::Probe => {
                self.probe();
                self.at(Duration::from_secs(1), SimEvent::Probe);
            }
        }
    }

    pub(super) fn thaw(&mut self, host: usize, asleep_since: Option<Duration>) {
        if !self.hosts[host].frozen {
            return;
        }
        let it = &mut self.hosts[host];
        it.frozen = false;
        it.silent_since = None;
        it.slept += asleep_since.map_or(Duration::ZERO, |since| self.now - since);
        if let Some(process) = &mut it.process {
            process.witness.woken = self.now;
            process.tick_at = None;
        }
        let process_number = it.process_number;
        for due in self.held.remove(&host).unwrap_or_default() {
            if self.hosts[host].process_number == process_number {
                self.run_due(host, due);
            }
        }
        if self.hosts[host].process_number == process_number {
            self.handle(host, Event::Tick);
        }
    }

    /// Starts a process on a machine, unless one runs, the machine has left the cluster, or its
    /// disk is full.
    pub(super) fn start(&mut self, host: usize) {
        let (bug, now) = (self.scenario.bug, self.now);
        let it = &mut self.hosts[host];
        if it.process.is_some() || it.fate != Fate::Here || it.pace(now) == Pace::Full {
            return;
        }
        it.process_number += 1;
        it.disk.boot += 1;
        if bug == Some(Bug::ForgetsTerm) {
            it.disk.term = 0;
        }
        it.slept = Duration::ZERO;
        it.frozen = false;
        it.silent_since = None;
        let settings = Settings::new(it.disk.boot, it.disk.boot, it.disk.term);
        let mut coordinator = Coordinator::new(settings, Box::new(it.identity.key.clone()), it.identity.member.clone());
        coordinator = match bug {
            Some(Bug::TrustsUnverified) => coordinator.with_check(Box::new(AcceptsAll)),
            _ => coordinator.with_check(Box::new(self.memo.clone())),
        };
        let witness = Witness { initial_term: it.disk.term, woken: now, ..Witness::default() };
        it.process = Some(Process {
            coordinator,
            store: Store::default(),
            started: now,
            tick_at: None,
            leading: None,
            wanted: BTreeMap::new(),
            witness,
            storing: 0,
            listing: false,
            ends: false,
            fast: FastLinks::default(),
        });
        let (points, draining) = (it.disk.points.clone(), it.draining);
        let facts = it.disk.facts.clone();
        let members = &self.hosts[host].disk.members;
        let chains = members.iter().map(|known| self.hosts[*known].identity.member.chain()).collect();
        self.handle(host, Event::KnownMembers(chains));
        for fact in facts {
            self.handle(host, Event::Fact(fact));
        }
        for service in self.services.clone() {
            let periods = self.published_periods(host, service);
            self.handle(host, Event::Published { service, periods });
        }
        for service in self.services_of(host) {
            let points = points.get(&service).cloned().unwrap_or_default();
            self.handle(host, Event::IntroPoints { service, points: points.into_iter().map(served).collect() });
        }
        if draining {
            self.handle(host, Event::Drain);
        }
        let second = Duration::from_secs(1);
        self.due(host, ROUND, ProcessEvent::Round);
        self.due(host, second * 2, ProcessEvent::Target);
        let wait = self.rng.between(second, second * 6);
        self.due(host, wait, ProcessEvent::Points);
        let wait = self.rng.between(second * 3, second * 20);
        self.due(host, wait, ProcessEvent::Reached);
        if host < self.scenario.fast {
            self.due(host, second, ProcessEvent::Probes);
        }
    }

    /// Ends the process on a machine, as kill -9 does.
    pub(super) fn kill(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        if let Some(process) = it.process.take() {
            it.process_number += 1;
            it.frozen = false;
            it.silent_since = it.silent_since.or(Some(self.now));
            self.held.remove(&host);
            self.killed_while_storing += u64::from(process.storing > 0);
        }
    }

    fn run_due(&mut self, host: usize, due: ProcessEvent) {
        match due {
            ProcessEvent::Tick => {
                // A tick is dropped if an earlier one has replaced it since it was scheduled.
                if let Some(process) = &mut self.hosts[host].process
                    && process.tick_at.is_some_and(|at| at <= self.now)
                {
                    process.tick_at = None;
                    self.handle(host, Event::Tick);
                }
            }
            ProcessEvent::Round => self.round(host),
            ProcessEvent::Message(message) => self.receive(host, message),
            ProcessEvent::Record { origin, kind, bytes } => self.handle(host, Event::Record { origin, kind, bytes }),
            ProcessEvent::TermOnDisk(term) => self.term_on_disk(host, term),
            ProcessEvent::ListOnDisk => self.list_on_disk(host),
            ProcessEvent::Points => self.keep_points(host),
            ProcessEvent::Publish(service) => self.publish(host, service),
            ProcessEvent::Target => self.look_at_target(host),
            ProcessEvent::Reached => self.handle(host, Event::MeshReached),
            ProcessEvent::End => self.kill(host),
            ProcessEvent::Probes => self.probe_fast(host),
            ProcessEvent::Answer { of, round_trip } => self.answered(host, of, round_trip),
            ProcessEvent::Judge => self.judge(host),
        }
    }

    /// Hands an event to the coordinator, carries out its actions, and checks the invariants.
    pub(super) fn handle(&mut self, host: usize, event: Event) {
        let clock = self.hosts[host].clock(self.now);
        let Some(process) = &mut self.hosts[host].process else { return };
        let actions = process.coordinator.handle(event, clock);
        for action in actions {
            self.act(host, action);
        }
        self.want(host);
        self.check(host);
        let Some(process) = &self.hosts[host].process else { return };
        if let Some(at) = process.coordinator.next_timeout() {
            let at = self.hosts[host].when(at).max(self.now);
            let scheduled = process.tick_at;
            if scheduled.is_none_or(|scheduled| at < scheduled) {
                if let Some(process) = &mut self.hosts[host].process {
                    process.tick_at = Some(at);
                }
                self.due(host, at - self.now, ProcessEvent::Tick);
            }
        } else if !process.ends {
            if let Some(process) = &mut self.hosts[host].process {
                process.ends = true;
            }
            // The process ends three seconds later, so that its last records are gossiped.
            self.due(host, Duration::from_secs(3), ProcessEvent::End);
        }
    }

    pub(super) fn broken(&mut self, invariant: Invariant, host: usize, what: String) {
        if self.violations.len() < 100 {
            let what = format!("node {host} ({}): {what}", self.hosts[host].id().short());
            self.violations.push(Violation { invariant, at: self.now, what });
        }
    }
}
