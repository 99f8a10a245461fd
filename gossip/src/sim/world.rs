//! The event loop of a run: machines, the network between them, the directories, and time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::faults::{Bug, Scenario};
use super::gossip::{Message, Store, Value};
use super::host::{Fate, Host, Process};
use super::memo::{Gullible, Memo};
use super::monitor::{Claims, Invariant, Violation, Witness};
use super::rng::Rng;
use super::{Founder, Identity, point};
use crate::coordinator::{Action, Coordinator, Event, Leadership, Settings};
use crate::id::NodeId;
use crate::record::{IntroPoint, Lease, PeriodId, PublishedPeriod, RecordKind, Role};
use crate::signed::Unverified;

/// Relays in the simulated network.
const RELAYS: usize = 400;
/// Nodes that each node compares itself with, a round.
const FANOUT: usize = 2;
/// Time between two rounds of gossip.
const ROUND: Duration = Duration::from_secs(1);

/// What is due at some time.
#[derive(Debug)]
pub(super) enum Due {
    Tick,
    Round,
    Message(Box<Message>),
    Record { origin: NodeId, kind: RecordKind, bytes: Vec<u8> },
    TermOnDisk(u64),
    Points,
    Publish,
    Target,
    Reached,
    End,
}

/// For whom: a machine, and the life it was meant for; none for what arrives whoever lives there.
#[derive(Debug)]
pub(super) enum Happening {
    At { host: usize, life: Option<u64>, due: Due },
    Thaw { host: usize, asleep_since: Option<Duration> },
    Fault,
    Probe,
}

/// What the directories hold for one period.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory {
    pub(super) revision: u64,
    pub(super) points: Vec<(NodeId, IntroPoint)>,
}

/// A run.
pub struct World {
    pub(super) scenario: Scenario,
    pub(super) rng: Rng,
    pub(super) founder: Founder,
    pub(super) now: Duration,
    queue: BTreeMap<(Duration, u64), Happening>,
    count: u64,
    pub(super) hosts: Vec<Host>,
    pub(super) index: BTreeMap<NodeId, usize>,
    /// Pairs (from, to) between which nothing passes.
    pub(super) cut: BTreeSet<(usize, usize)>,
    pub(super) loss: f64,
    pub(super) delay: Duration,
    pub(super) calm: bool,
    held: BTreeMap<usize, Vec<Due>>,
    pub(super) directories: BTreeMap<PeriodId, Directory>,
    pub(super) claims: Claims,
    pub(super) tokens: u32,
    pub(super) memo: Memo,
    /// Broken invariants, in order.
    pub violations: Vec<Violation>,
    /// Messages delivered, and records handed to coordinators.
    pub traffic: (u64, u64),
    refused: BTreeSet<(usize, PeriodId)>,
}

impl World {
    /// A cluster of `scenario.nodes`, all known to each other and switched on at about the same time.
    pub fn new(scenario: Scenario) -> Self {
        let mut world = Self {
            scenario,
            rng: Rng::new(scenario.seed),
            founder: Founder::new(scenario.seed as u32),
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            count: 0,
            hosts: Vec::new(),
            index: BTreeMap::new(),
            cut: BTreeSet::new(),
            loss: 0.0,
            delay: Duration::from_secs(2),
            calm: false,
            held: BTreeMap::new(),
            directories: BTreeMap::new(),
            claims: Claims::default(),
            tokens: 0,
            memo: Memo::default(),
            violations: Vec::new(),
            traffic: (0, 0),
            refused: BTreeSet::new(),
        };
        for number in 0..scenario.nodes {
            // Every third is a worker.
            let role = if number % 3 == 2 { Role::Worker } else { Role::Publisher };
            let identity = world.founder.node(number as u32, role);
            let host = world.add(identity);
            world.hosts[host].skew = world.rng.below(1201) as i64 - 600;
        }
        let chains: Vec<_> = world.hosts.iter().map(|host| host.identity.member.chain()).collect();
        for host in 0..scenario.nodes {
            world.hosts[host].disk.chains = chains.clone();
            world.start(host);
        }
        world.at(Duration::from_secs(1), Happening::Probe);
        world
    }

    pub(super) fn add(&mut self, identity: Identity) -> usize {
        let host = self.hosts.len();
        self.index.insert(identity.node(), host);
        self.hosts.push(Host::new(identity));
        host
    }

    pub(super) fn at(&mut self, after: Duration, what: Happening) {
        self.count += 1;
        self.queue.insert((self.now + after, self.count), what);
    }

    /// Something due for the process that runs on `host` now.
    pub(super) fn due(&mut self, host: usize, after: Duration, due: Due) {
        let life = Some(self.hosts[host].life);
        self.at(after, Happening::At { host, life, due });
    }

    /// Lets the run go on until then.
    pub fn run_until(&mut self, end: Duration) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), what) = entry.remove_entry();
            self.now = at;
            self.happen(what);
        }
        self.now = end;
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::At { host, life, due } => {
                if life.is_some_and(|life| life != self.hosts[host].life) || self.hosts[host].process.is_none() {
                    return;
                }
                if self.hosts[host].frozen {
                    self.held.entry(host).or_default().push(due);
                } else {
                    self.run_due(host, due);
                }
            }
            Happening::Thaw { host, asleep_since } => self.thaw(host, asleep_since),
            Happening::Fault => self.fault(),
            Happening::Probe => {
                self.probe();
                self.at(Duration::from_secs(1), Happening::Probe);
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
        }
        let life = it.life;
        for due in self.held.remove(&host).unwrap_or_default() {
            if self.hosts[host].life == life {
                self.run_due(host, due);
            }
        }
    }

    /// Starts a process on a machine that has none.
    pub(super) fn start(&mut self, host: usize) {
        let bug = self.scenario.bug;
        let it = &mut self.hosts[host];
        if it.process.is_some() || it.fate != Fate::Here {
            return;
        }
        it.life += 1;
        it.disk.boot += 1;
        if bug == Some(Bug::ForgetsTerm) {
            it.disk.term = 0;
        }
        it.slept = Duration::ZERO;
        it.frozen = false;
        it.silent_since = None;
        let settings = Settings { priority: 100, ..Settings::new(it.disk.boot, it.disk.term) };
        let mut coordinator = Coordinator::new(settings, Box::new(it.identity.key.clone()), it.identity.member.clone());
        coordinator = match bug {
            Some(Bug::TrustsUnverified) => coordinator.with_check(Box::new(Gullible)),
            _ => coordinator.with_check(Box::new(self.memo.clone())),
        };
        let witness = Witness { floor: it.disk.term, woken: self.now, ..Witness::default() };
        it.process = Some(Process {
            coordinator,
            store: Store::default(),
            started: self.now,
            tick_at: None,
            leading: None,
            witness,
            ends: false,
        });
        let (chains, points) = (it.disk.chains.clone(), it.disk.points.clone());
        let draining = it.draining;
        let periods: Vec<_> =
            it.disk.revisions.iter().map(|(period, revision)| published(*period, *revision)).collect();
        let (me, facts) = (it.identity.node(), it.disk.facts.clone());
        self.handle(host, Event::KnownMembers(chains));
        for (kind, bytes) in facts {
            self.handle(host, Event::Record { origin: me, kind, bytes });
        }
        self.handle(host, Event::Published(periods));
        self.handle(host, Event::IntroPoints(points));
        if draining {
            self.handle(host, Event::Drain);
        }
        let second = Duration::from_secs(1);
        self.due(host, second, Due::Round);
        self.due(host, second * 2, Due::Target);
        let wait = self.rng.between(second, second * 6);
        self.due(host, wait, Due::Points);
        let wait = self.rng.between(second * 3, second * 20);
        self.due(host, wait, Due::Reached);
    }

    /// Ends the process on a machine, as kill -9 does.
    pub(super) fn kill(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        if it.process.take().is_some() {
            it.life += 1;
            it.frozen = false;
            it.silent_since = it.silent_since.or(Some(self.now));
            self.held.remove(&host);
        }
    }

    fn run_due(&mut self, host: usize, due: Due) {
        match due {
            Due::Tick => {
                if let Some(process) = &mut self.hosts[host].process {
                    process.tick_at = None;
                }
                self.handle(host, Event::Tick);
            }
            Due::Round => self.round(host),
            Due::Message(message) => self.hear(host, *message),
            Due::Record { origin, kind, bytes } => self.handle(host, Event::Record { origin, kind, bytes }),
            Due::TermOnDisk(term) => {
                let disk = &mut self.hosts[host].disk;
                disk.term = disk.term.max(term);
                self.handle(host, Event::TermStored(term));
            }
            Due::Points => self.keep_points(host),
            Due::Publish => self.publish(host),
            Due::Target => self.handle(host, Event::Ready(self.hosts[host].target_up)),
            Due::Reached => self.handle(host, Event::MeshReached),
            Due::End => self.kill(host),
        }
    }

    /// Hands an event to the coordinator, does what it says, checks that nothing broke.
    pub(super) fn handle(&mut self, host: usize, event: Event) {
        let clock = self.hosts[host].clock(self.now);
        self.note_told(host, &event);
        let Some(process) = &mut self.hosts[host].process else { return };
        let actions = process.coordinator.handle(event, clock);
        for action in actions {
            self.act(host, action);
        }
        self.check(host);
        let Some(process) = &self.hosts[host].process else { return };
        if let Some(at) = process.coordinator.next_timeout() {
            let at = self.hosts[host].when(at).max(self.now);
            let scheduled = process.tick_at;
            if scheduled.is_none_or(|scheduled| at < scheduled) {
                if let Some(process) = &mut self.hosts[host].process {
                    process.tick_at = Some(at);
                }
                self.due(host, at - self.now, Due::Tick);
            }
        } else if !process.ends {
            if let Some(process) = &mut self.hosts[host].process {
                process.ends = true;
            }
            // The last words are gossiped for a moment, then the process ends.
            self.due(host, Duration::from_secs(3), Due::End);
        }
    }

    fn act(&mut self, host: usize, action: Action) {
        let (me, boot) = (self.hosts[host].id(), self.hosts[host].disk.boot);
        let loser_renews = self.scenario.bug == Some(Bug::LoserRenews);
        let Some(process) = &mut self.hosts[host].process else { return };
        match action {
            Action::StoreTerm(term) => {
                let slow = self.rng.chance(0.05);
                let most = if slow && !self.calm { 40.0 } else { 0.5 };
                let wait = self.rng.between(Duration::from_millis(5), Duration::from_secs_f64(most));
                self.due(host, wait, Due::TermOnDisk(term));
            }
            Action::Gossip { kind: RecordKind::Lease, bytes } => {
                let lease = Unverified::<Lease>::from_bytes(&bytes).unwrap().verify(me.public_key()).unwrap();
                if loser_renews && lease.ttl_ms == 0 && lease.term > 0 {
                    return;
                }
                process.store.say(me, boot, RecordKind::Lease, Some(bytes));
                process.witness.lease(&lease);
                self.claims.note(&lease);
                if lease.ttl_ms > 0 && lease.term > self.hosts[host].disk.term {
                    self.broken(Invariant::Terms, host, format!("claims term {} before it is on disk", lease.term));
                }
            }
            Action::Gossip { kind, bytes } => process.store.say(me, boot, kind, Some(bytes)),
            Action::Retract(kind) => process.store.say(me, boot, kind, None),
            Action::Leadership(Leadership::Publisher { term }) => {
                let raised = process.leading.is_some_and(|before| before < term);
                process.leading = Some(term);
                if self.hosts[host].led.last().is_some_and(|last| *last >= term) {
                    self.broken(Invariant::Terms, host, format!("publishes in term {term} a second time"));
                }
                self.hosts[host].led.insert(term);
                if !raised {
                    self.due(host, Duration::from_millis(500), Due::Publish);
                }
            }
            Action::Leadership(Leadership::Follower) => {
                if !loser_renews {
                    process.leading = None;
                }
            }
            Action::DesiredChanged | Action::Overwritten => {
                let wait = self.rng.between(Duration::from_millis(200), Duration::from_secs(2));
                self.due(host, wait, Due::Publish);
            }
            Action::MembersChanged => {
                let (chains, facts) = (process.coordinator.chains(), process.coordinator.facts());
                let disk = &mut self.hosts[host].disk;
                (disk.chains, disk.facts) = (chains, facts);
                self.revoke_overdrawn(host);
            }
            Action::InvitationsChanged => {
                let facts = process.coordinator.facts();
                self.hosts[host].disk.facts = facts;
                self.sign_mergers(host);
            }
            Action::Excluded(_) => {
                self.hosts[host].fate = Fate::Excluded;
                self.kill(host);
            }
        }
    }

    /// A publisher holds the authority key, and signs what was merged as a whole.
    fn sign_mergers(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        if self.hosts[host].identity.member.role() == Role::Publisher {
            let merged: Vec<_> = process.coordinator.view().invitations().unsigned().cloned().collect();
            for invitation in merged {
                let signed = self.founder.sign_invitation(invitation);
                self.handle(host, Event::Invitation(signed));
            }
        }
    }

    /// It makes final, too, that a token's last redeemers lost.
    fn revoke_overdrawn(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        if self.hosts[host].identity.member.role() == Role::Publisher {
            let overdrawn: Vec<NodeId> = process.coordinator.view().overdrawn().collect();
            for node in overdrawn {
                let revocation = self.founder.revoke(node);
                self.handle(host, Event::Revocation(revocation));
            }
        }
    }

    fn round(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        let (id, digest) = (self.hosts[host].id(), process.store.digest());
        // Now and then its own words go along unasked: the only ones that pass where answers do not come back.
        let own = if self.rng.chance(0.3) { process.store.of(&id) } else { Vec::new() };
        let others: Vec<usize> = (0..self.hosts.len()).filter(|other| *other != host).collect();
        for _ in 0..FANOUT.min(others.len()) {
            if let Some(to) = self.rng.pick(&others).copied() {
                let from = (host, self.hosts[host].life);
                let message = Message::Syn { from, digest: digest.clone(), own: own.clone() };
                self.send(host, (to, None), message);
            }
        }
        self.due(host, ROUND, Due::Round);
    }

    fn send(&mut self, from: usize, (to, life): (usize, Option<u64>), message: Message) {
        if self.cut.contains(&(from, to)) || self.rng.chance(self.loss) {
            return;
        }
        let copies = if !self.calm && self.rng.chance(0.03) { 2 } else { 1 };
        for _ in 0..copies {
            let after = self.rng.between(Duration::from_millis(200), self.delay);
            self.at(after, Happening::At { host: to, life, due: Due::Message(Box::new(message.clone())) });
        }
    }

    fn hear(&mut self, host: usize, message: Message) {
        self.traffic.0 += 1;
        let own = (host, self.hosts[host].life);
        let Some(process) = &mut self.hosts[host].process else { return };
        match message {
            Message::Syn { from: (from, life), digest, own: theirs } => {
                self.take(host, theirs);
                let Some(process) = &self.hosts[host].process else { return };
                let (values, mine) = (process.store.lacking(&digest), process.store.digest());
                self.send(host, (from, Some(life)), Message::Ack { from: own, digest: mine, values });
            }
            Message::Ack { from: (from, life), digest, values } => {
                let lacking = process.store.lacking(&digest);
                if !lacking.is_empty() {
                    self.send(host, (from, Some(life)), Message::Delta { values: lacking });
                }
                self.take(host, values);
            }
            Message::Delta { values } => self.take(host, values),
        }
    }

    fn take(&mut self, host: usize, values: Vec<Value>) {
        let Some(process) = &mut self.hosts[host].process else { return };
        for value in process.store.merge(values) {
            if let Some(bytes) = value.bytes {
                self.traffic.1 += 1;
                self.handle(host, Event::Record { origin: value.origin, kind: value.kind, bytes: bytes.to_vec() });
            }
        }
    }

    /// Has four points, none at a relay that another node has.
    fn keep_points(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        let view = process.coordinator.view();
        let (others, leave) = (view.relays_of_others(), view.relays_to_leave());
        let mut points = self.hosts[host].disk.points.clone();
        points.retain(|point| !leave.contains(&point.relay));
        for _ in 0..50 {
            if points.len() >= 4 {
                break;
            }
            self.hosts[host].rotation += 1;
            let number = (host as u32) << 20 | self.hosts[host].rotation;
            let new = point(self.rng.below(RELAYS) as u32, number);
            if !others.contains(&new.relay) && points.iter().all(|point| point.relay != new.relay) {
                points.push(new);
            }
        }
        if points != self.hosts[host].disk.points {
            self.hosts[host].disk.points = points.clone();
            self.handle(host, Event::IntroPoints(points));
        }
        self.due(host, Duration::from_secs(3), Due::Points);
    }

    /// The publisher's shell: one upload for the current period, and again in a while.
    fn publish(&mut self, host: usize) {
        let clock = self.hosts[host].clock(self.now);
        let Some(process) = &self.hosts[host].process else { return };
        if process.leading.is_none() {
            return;
        }
        let points = self.wanted(host);
        let period = PeriodId { number: clock.unix / 28_800, length_minutes: 480, offset_seconds: 0 };
        let directory = self.directories.entry(period).or_default();
        if points.is_empty() || (directory.points == points && self.calm) {
            return;
        }
        let clocks = clock.unix << 16;
        let known = process.coordinator.highest_revision(&period).unwrap_or_default();
        let used = self.hosts[host].disk.revisions.get(&period).copied().unwrap_or_default();
        let asked = if self.refused.remove(&(host, period)) { directory.revision } else { 0 };
        let fenced = clocks.max(known + 1).max(used + 1).max(asked + 1);
        let revision = if self.scenario.bug == Some(Bug::ClockRevision) { clocks } else { fenced };
        let before = self.hosts[host].used.get(&period).copied().unwrap_or_default();
        if revision <= known.max(before) {
            let what = format!("offers revision {revision}, knows of {known}, has used {before}");
            self.broken(Invariant::Revisions, host, what);
        }
        self.hosts[host].disk.revisions.insert(period, revision);
        self.hosts[host].used.insert(period, revision.max(before));
        let directory = self.directories.entry(period).or_default();
        if revision <= directory.revision {
            self.refused.insert((host, period));
            self.due(host, Duration::from_secs(2), Due::Publish);
            return;
        }
        *directory = Directory { revision, points };
        let periods = self.hosts[host].disk.revisions.iter().rev().take(8);
        let periods = periods.map(|(period, revision)| published(*period, *revision)).collect();
        self.handle(host, Event::Published(periods));
    }
}

fn published(period: PeriodId, revision: u64) -> PublishedPeriod {
    PublishedPeriod { period, revision, confirmed: 8, directories: 8 }
}
