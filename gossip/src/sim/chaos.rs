//! Strikes each kind of fault, and ends all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::fast::UdpState;
use super::host::{Fate, Host, Pace};
use super::net::Wall;
use super::rng::Rng;
use super::script::{Fault, Planned, script};
use super::world::{ProcessEvent, SimEvent, World};
use super::{FOUNDED, sign};
use crate::coordinator::Event;
use crate::id::InvitationId;
use crate::record::{Phase, RecordKind, Role};

/// Which nodes a fault struck and how, for the log; `None` if there was nothing to strike.
type Struck = Option<String>;

/// Most machines that ever join after the start of a run. A view holds 1,024 nodes, and the nodes
/// that have left are among them.
const MOST_NEWCOMERS: usize = 400;

impl World {
    fn draw(&mut self, of: impl Fn(&Self, usize) -> bool) -> Option<usize> {
        let fit: Vec<usize> = (0..self.hosts.len()).filter(|host| of(self, *host)).collect();
        self.dice.pick(&fit).copied()
    }

    fn running(&mut self) -> Option<usize> {
        self.draw(|world, host| world.hosts[host].runs())
    }

    /// Starts the chaos with these faults of the scenario's script; with all of them if `None`.
    pub(super) fn begin_chaos(&mut self, only: Option<&[usize]>) {
        self.loss = self.scenario.loss;
        self.delay = self.scenario.delay;
        for planned in script(&self.scenario) {
            if only.is_none_or(|only| only.contains(&planned.number)) {
                self.at(planned.at, SimEvent::Fault(planned));
            }
        }
    }

    /// Strikes one fault, unless the chaos has ended.
    pub(super) fn strike(&mut self, planned: Planned) {
        if self.calm {
            return;
        }
        self.dice = Rng::new(planned.dice);
        let struck = match planned.fault {
            Fault::Crash => self.crash(),
            Fault::Restart => self.restart(),
            Fault::Freeze => self.stop(120, false),
            Fault::Sleep => self.stop(300, true),
            Fault::Partition => self.partition(),
            Fault::OneWay => self.one_way(),
            Fault::Heal => self.heal(),
            Fault::Clock => self.clock_jump(),
            Fault::SlowDisk => self.disk(Pace::Slow),
            Fault::FullDisk => self.disk(Pace::Full),
            Fault::Join => self.join(),
            Fault::Race => self.race(),
            Fault::Leave => self.leave(),
            Fault::Evict => self.evict(),
            Fault::Drain => self.drain(),
            Fault::Target => self.target(),
            Fault::Point => self.lose_point(),
            Fault::Forge => self.forge(),
            Fault::Udp => self.strike_fast_routes(),
        };
        if let Some(whom) = struck {
            *self.struck.entry(planned.fault).or_default() += 1;
            let at = self.now.as_secs_f64();
            self.log.push(format!("{at:.1} s, fault {}: {:?}: {whom}", planned.number, planned.fault));
        }
        // The loss of messages changes with every fault.
        self.loss = planned.loss;
    }

    /// Ends all faults. All nodes that have not left start again.
    pub(super) fn end_chaos(&mut self) {
        self.calm = true;
        self.walls.clear();
        self.udp = UdpState::default();
        self.loss = 0.0;
        self.delay = Duration::from_secs(2);
        for host in 0..self.hosts.len() {
            self.hosts[host].mended = self.now;
            self.thaw(host, None);
            self.hosts[host].target_up = true;
            self.hosts[host].draining = false;
            if self.hosts[host].process.is_some() {
                self.handle(host, Event::Resume);
                self.look_at_target(host);
            }
            self.start(host);
        }
    }

    fn crash(&mut self) -> Struck {
        // Half of the time, a process that is storing a term.
        let writing =
            |world: &Self, host: usize| world.hosts[host].process.as_ref().is_some_and(|process| process.storing > 0);
        let killed_while_storing = if self.dice.chance(0.5) { self.draw(writing) } else { None };
        let host = killed_while_storing.or_else(|| self.running())?;
        self.kill(host);
        Some(format!("node {host}{}", if killed_while_storing.is_some() { ", while it stored a term" } else { "" }))
    }

    fn restart(&mut self) -> Struck {
        let host = self.draw(|world, host| world.is_here(host) && world.hosts[host].process.is_none())?;
        self.start(host);
        Some(format!("node {host}"))
    }

    /// Stops a process until it is thawed.
    pub(super) fn freeze_host(&mut self, host: usize) {
        self.hosts[host].frozen = true;
        self.hosts[host].silent_since = Some(self.now);
    }

    /// Has a process announce that it stops; it ends once that has been gossiped.
    pub(super) fn say_goodbye(&mut self, host: usize) {
        self.hosts[host].silent_since = Some(self.now);
        self.handle(host, Event::Leave);
    }

    fn stop(&mut self, most: u64, asleep: bool) -> Struck {
        let host = self.running()?;
        self.freeze_host(host);
        let after = self.dice.between(Duration::from_secs(1), Duration::from_secs(most));
        self.at(after, SimEvent::Thaw { host, asleep_since: asleep.then_some(self.now) });
        Some(format!("node {host} for {:.0} s", after.as_secs_f64()))
    }

    fn halves(&mut self) -> Vec<bool> {
        (0..self.hosts.len()).map(|_| self.dice.chance(0.5)).collect()
    }

    fn partition(&mut self) -> Struck {
        let inside = self.halves();
        let side: Vec<usize> = (0..inside.len()).filter(|host| inside[*host]).collect();
        self.walls.push(Wall { inside, out: true, into: true });
        Some(format!("{side:?} from the others"))
    }

    fn one_way(&mut self) -> Struck {
        let kind = self.dice.below(3);
        if kind == 2 {
            let inside = self.halves();
            let side: Vec<usize> = (0..inside.len()).filter(|host| inside[*host]).collect();
            self.walls.push(Wall { inside, out: true, into: false });
            return Some(format!("the others do not hear {side:?}"));
        }
        let host = self.running()?;
        let inside = (0..self.hosts.len()).map(|other| other == host).collect();
        self.walls.push(Wall { inside, out: kind == 0, into: kind == 1 });
        Some(format!("node {host} {}", if kind == 0 { "is not heard" } else { "hears no other node" }))
    }

    fn strike_fast_routes(&mut self) -> Struck {
        let host = self.dice.below(self.scenario.fast.max(1));
        let all: BTreeSet<usize> = (0..self.scenario.fast).collect();
        let (blocked, loss, whom) = match self.dice.below(4) {
            0 => (BTreeSet::new(), 0.0, "work again".to_owned()),
            1 => (all, 0.0, "fail".to_owned()),
            2 => (BTreeSet::new(), 0.5, "lose half of the packets".to_owned()),
            _ => (BTreeSet::from([host]), 0.0, format!("of node {host} fail")),
        };
        self.udp = UdpState { blocked, loss };
        (self.scenario.fast > 1).then_some(format!("the faster routes {whom}"))
    }

    fn heal(&mut self) -> Struck {
        let walls = self.walls.len();
        self.walls.clear();
        (walls > 0).then(|| format!("{walls} walls removed"))
    }

    fn clock_jump(&mut self) -> Struck {
        let host = self.running()?;
        let skew = self.dice.below(1201) as i64 - 600;
        self.hosts[host].skew = skew;
        // The node takes a jump for a sleep, after which the silence of others before it does not
        // count.
        if let Some(process) = &mut self.hosts[host].process {
            process.witness.woken = self.now;
        }
        Some(format!("node {host} is {skew} s off"))
    }

    fn disk(&mut self, pace: Pace) -> Struck {
        let host = self.draw(|world, host| world.is_here(host))?;
        let lasts = self.dice.between(Duration::from_secs(10), Duration::from_secs(120));
        self.hosts[host].pace = pace;
        self.hosts[host].mended = self.now + lasts;
        Some(format!("node {host} for {:.0} s", lasts.as_secs_f64()))
    }

    fn newcomer(&mut self, by: usize, token: Option<InvitationId>) -> Option<usize> {
        let here = (0..self.hosts.len()).filter(|host| self.is_here(*host)).count();
        if here >= self.scenario.nodes * 2 || self.hosts.len() >= self.scenario.nodes + MOST_NEWCOMERS {
            return None;
        }
        let view = self.hosts[by].process.as_ref()?.coordinator.view();
        let members = view.members().filter_map(|node| self.index.get(&node.node()).copied()).collect();
        let number = self.hosts.len() as u32;
        let role = if token.is_some() || number.is_multiple_of(3) { Role::Worker } else { Role::Publisher };
        let issued = FOUNDED + 1000 + self.now.as_secs();
        let identity = self.founder.admit(number, role, issued, token);
        let host = self.add(identity);
        self.hosts[host].disk.members = members;
        self.start(host);
        Some(host)
    }

    fn publisher(&mut self) -> Option<usize> {
        self.draw(|world, host| world.hosts[host].runs() && world.hosts[host].identity.member.role() == Role::Publisher)
    }

    fn join(&mut self) -> Struck {
        let by = self.publisher()?;
        let host = self.newcomer(by, None)?;
        Some(format!("node {host}, let in by {by}"))
    }

    /// Two publishers, each unaware of the other, admit one node each with the same token.
    fn race(&mut self) -> Struck {
        let (one, two) = (self.publisher()?, self.publisher()?);
        self.tokens += 1;
        let token = self.founder.invitation(self.tokens, 1, &[]).token;
        let mut joined = Vec::new();
        for by in [one, two] {
            if let Some(host) = self.newcomer(by, Some(token)) {
                let redeemed = [self.hosts[host].id()];
                let version = self.founder.invitation(self.tokens, 1, &redeemed);
                self.handle(by, Event::Fact(version.into()));
                joined.push(host);
            }
        }
        (!joined.is_empty()).then(|| format!("nodes {joined:?}, let in by {one} and {two}"))
    }

    /// Number of publishers that have neither left nor been evicted.
    fn publishers_left(&self) -> usize {
        let stays = |host: &&Host| host.fate == Fate::Here && !host.evicted;
        self.hosts.iter().filter(stays).filter(|host| host.identity.member.role() == Role::Publisher).count()
    }

    /// A node leaves. The last two publishers stay, because workers alone cannot publish.
    fn leave(&mut self) -> Struck {
        let host = self.running()?;
        let publishes = self.hosts[host].identity.member.role() == Role::Publisher;
        if self.hosts[host].evicted || (publishes && self.publishers_left() <= 2) {
            return None;
        }
        self.hosts[host].fate = Fate::Left;
        self.say_goodbye(host);
        Some(format!("node {host}"))
    }

    fn evict(&mut self) -> Struck {
        let by = self.publisher()?;
        let victim = self.draw(|world, host| world.is_here(host)).filter(|victim| *victim != by)?;
        if self.publishers_left() <= 2 {
            return None;
        }
        self.hosts[victim].evicted = true;
        let revocation = self.founder.revoke(self.hosts[victim].id());
        self.handle(by, Event::Fact(revocation.into()));
        Some(format!("node {victim} by {by}"))
    }

    fn drain(&mut self) -> Struck {
        let host = self.running()?;
        self.hosts[host].draining ^= true;
        let drains = self.hosts[host].draining;
        self.handle(host, if drains { Event::Drain } else { Event::Resume });
        Some(format!("node {host} {}", if drains { "drains" } else { "is back" }))
    }

    fn target(&mut self) -> Struck {
        let host = self.running()?;
        self.hosts[host].target_up ^= true;
        self.due(host, Duration::ZERO, ProcessEvent::Target);
        Some(format!("of node {host} is {}", if self.hosts[host].target_up { "up" } else { "down" }))
    }

    fn lose_point(&mut self) -> Struck {
        let host = self.running()?;
        let service = self.dice.pick(&self.services).copied()?;
        let mut points = self.hosts[host].disk.points.get(&service).filter(|points| !points.is_empty())?.clone();
        points.remove(self.dice.below(points.len()));
        self.set_points(host, service, points);
        Some(format!("of node {host} for {}", service.short()))
    }

    /// A member sends another node a record of a third that the third never signed. The signature
    /// is the member's own; in 70 % of the cases the envelope names the third node as its signer.
    fn forge(&mut self) -> Struck {
        let (liar, to, victim) = (self.running()?, self.running()?, self.running()?);
        if victim == liar || to == victim {
            return None;
        }
        let who = self.hosts[victim].identity.clone();
        let seq = (self.hosts[victim].disk.boot + 1) << 32 | self.dice.below(1000) as u64;
        let ttl = Duration::from_secs(30);
        let term = self.hosts.iter().filter_map(|host| host.led.last().copied()).max().unwrap_or_default() + 5;
        let key = &self.hosts[liar].identity.key;
        let mut forged = match self.dice.below(3) {
            0 => (RecordKind::Lease, sign(who.lease(seq, term, ttl), key).to_bytes()),
            1 => (RecordKind::Heartbeat, sign(who.beat(seq, Phase::Gone), key).to_bytes()),
            _ => (RecordKind::IntroPoints(who.service()), sign(who.points(seq, vec![]), key).to_bytes()),
        };
        if self.dice.chance(0.7)
            && let Ok(bytes) = &mut forged.1
        {
            // The victim's name over the liar's signature.
            let (own, theirs) = (*key.verifying_key().as_bytes(), *who.node().public_key());
            if let Some(at) = bytes.windows(32).position(|window| window == own) {
                bytes[at..at + 32].copy_from_slice(&theirs);
            }
        }
        let (kind, bytes) = (forged.0, forged.1.unwrap_or_default());
        let due = ProcessEvent::Record { origin: who.node(), kind, bytes };
        self.at(Duration::from_millis(500), SimEvent::At { host: to, process_number: None, due });
        Some(format!("{kind:?} of node {victim} by {liar} to {to}"))
    }
}
