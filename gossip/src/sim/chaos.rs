//! One fault after the other, drawn by weight; then their end.

use std::time::Duration;

use super::host::Fate;
use super::world::{Due, Happening, World};
use super::{FOUNDED, sign};
use crate::coordinator::Event;
use crate::record::{Phase, RecordKind, Role};

/// Something that goes wrong.
type Fault = fn(&mut World);

impl World {
    fn draw(&mut self, of: impl Fn(&Self, usize) -> bool) -> Option<usize> {
        let fit: Vec<usize> = (0..self.hosts.len()).filter(|host| of(self, *host)).collect();
        self.rng.pick(&fit).copied()
    }

    fn running(&mut self) -> Option<usize> {
        self.draw(|world, host| world.hosts[host].runs())
    }

    /// Starts the chaos.
    pub(super) fn begin_chaos(&mut self) {
        self.loss = self.scenario.loss;
        self.delay = self.scenario.delay;
        self.at(self.scenario.every, Happening::Fault);
    }

    /// One fault, and the next is due.
    pub(super) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let weights = self.scenario.weights;
        let faults: [(usize, Fault); 16] = [
            (weights.crash, Self::crash),
            (weights.restart, Self::restart),
            (weights.freeze, Self::freeze),
            (weights.sleep, Self::sleep),
            (weights.partition, Self::partition),
            (weights.one_way, Self::one_way),
            (weights.heal, Self::heal),
            (weights.clock, Self::clock_jump),
            (weights.join, Self::join),
            (weights.race, Self::race),
            (weights.leave, Self::leave),
            (weights.evict, Self::evict),
            (weights.drain, Self::drain),
            (weights.target, Self::target),
            (weights.point, Self::lose_point),
            (weights.forge, Self::forge),
        ];
        let total = faults.iter().map(|(weight, _)| weight).sum();
        let mut lot = self.rng.below(total);
        for (weight, fault) in faults {
            if lot < weight {
                fault(self);
                break;
            }
            lot -= weight;
        }
        // The weather changes, too.
        self.loss = self.scenario.loss * (self.rng.below(5) as f64 / 4.0);
        let every = self.scenario.every;
        let next = self.rng.between(every / 4, every * 4);
        self.at(next, Happening::Fault);
    }

    /// Ends all faults. Whoever has not left comes back.
    pub(super) fn end_chaos(&mut self) {
        self.calm = true;
        self.cut.clear();
        self.loss = 0.0;
        self.delay = Duration::from_secs(2);
        for host in 0..self.hosts.len() {
            self.thaw(host, None);
            self.hosts[host].target_up = true;
            self.hosts[host].draining = false;
            if self.hosts[host].process.is_some() {
                self.handle(host, Event::Resume);
                self.handle(host, Event::Ready(true));
            }
            self.start(host);
        }
    }

    fn crash(&mut self) {
        if let Some(host) = self.running() {
            self.kill(host);
        }
    }

    fn restart(&mut self) {
        if let Some(host) = self.draw(|world, host| world.is_here(host) && world.hosts[host].process.is_none()) {
            self.start(host);
        }
    }

    /// Stops a process until it is thawed.
    pub(super) fn freeze_host(&mut self, host: usize) {
        self.hosts[host].frozen = true;
        self.hosts[host].silent_since = Some(self.now);
    }

    /// Has a process say goodbye; it ends when that is gossiped.
    pub(super) fn say_goodbye(&mut self, host: usize) {
        self.hosts[host].silent_since = Some(self.now);
        self.handle(host, Event::Leave);
    }

    fn stop(&mut self, most: u64, asleep: bool) {
        let Some(host) = self.running() else { return };
        self.freeze_host(host);
        let after = self.rng.between(Duration::from_secs(1), Duration::from_secs(most));
        self.at(after, Happening::Thaw { host, asleep_since: asleep.then_some(self.now) });
    }

    fn freeze(&mut self) {
        self.stop(120, false);
    }

    fn sleep(&mut self) {
        self.stop(300, true);
    }

    fn partition(&mut self) {
        let side: Vec<bool> = self.hosts.iter().map(|_| false).collect();
        let side: Vec<bool> = side.into_iter().map(|_| self.rng.chance(0.5)).collect();
        for a in 0..side.len() {
            for b in 0..side.len() {
                if side[a] != side[b] {
                    self.cut.insert((a, b));
                }
            }
        }
    }

    fn one_way(&mut self) {
        if let Some(mute) = self.running() {
            self.cut.extend((0..self.hosts.len()).map(|other| (mute, other)));
        }
    }

    fn heal(&mut self) {
        self.cut.clear();
    }

    fn clock_jump(&mut self) {
        if let Some(host) = self.running() {
            self.hosts[host].skew = self.rng.below(1201) as i64 - 600;
            // Taken for a sleep by the node, who then judges nobody by the silence meanwhile.
            if let Some(process) = &mut self.hosts[host].process {
                process.witness.woken = self.now;
            }
        }
    }

    fn newcomer(&mut self, by: usize, token: Option<crate::id::InvitationId>) -> Option<usize> {
        if self.hosts.len() >= self.scenario.nodes * 2 {
            return None;
        }
        let chains = self.hosts[by].process.as_ref()?.coordinator.chains();
        let number = self.hosts.len() as u32;
        let role = if token.is_some() || number.is_multiple_of(3) { Role::Worker } else { Role::Publisher };
        let issued = FOUNDED + 1000 + self.now.as_secs();
        let identity = self.founder.admit(number, role, issued, token);
        let host = self.add(identity);
        self.hosts[host].disk.chains = chains;
        self.start(host);
        Some(host)
    }

    fn publisher(&mut self) -> Option<usize> {
        self.draw(|world, host| world.hosts[host].runs() && world.hosts[host].identity.member.role() == Role::Publisher)
    }

    fn join(&mut self) {
        if let Some(by) = self.publisher() {
            self.newcomer(by, None);
        }
    }

    /// Two publishers, each unaware of the other, let a node in with the same token.
    fn race(&mut self) {
        let (Some(one), Some(two)) = (self.publisher(), self.publisher()) else { return };
        self.tokens += 1;
        let token = self.founder.invitation(self.tokens, 1, &[]).token;
        for by in [one, two] {
            if let Some(host) = self.newcomer(by, Some(token)) {
                let redeemed = [self.hosts[host].id()];
                let version = self.founder.invitation(self.tokens, 1, &redeemed);
                self.handle(by, Event::Invitation(version));
            }
        }
    }

    fn leave(&mut self) {
        let here = (0..self.hosts.len()).filter(|host| self.is_here(*host)).count();
        if let Some(host) = self.running().filter(|_| here > 2) {
            self.hosts[host].fate = Fate::Left;
            self.say_goodbye(host);
        }
    }

    fn evict(&mut self) {
        let publishers = |world: &Self, host: usize| {
            world.is_here(host) && world.hosts[host].identity.member.role() == Role::Publisher
        };
        let left = (0..self.hosts.len()).filter(|host| publishers(self, *host)).count();
        let (Some(by), Some(victim)) = (self.publisher(), self.draw(|world, host| world.is_here(host))) else { return };
        if by != victim && left > 2 {
            let revocation = self.founder.revoke(self.hosts[victim].id());
            self.handle(by, Event::Revocation(revocation));
        }
    }

    fn drain(&mut self) {
        if let Some(host) = self.running() {
            self.hosts[host].draining ^= true;
            let event = if self.hosts[host].draining { Event::Drain } else { Event::Resume };
            self.handle(host, event);
        }
    }

    fn target(&mut self) {
        if let Some(host) = self.running() {
            self.hosts[host].target_up ^= true;
            self.due(host, Duration::ZERO, Due::Target);
        }
    }

    fn lose_point(&mut self) {
        if let Some(host) = self.running().filter(|host| !self.hosts[*host].disk.points.is_empty()) {
            let lost = self.rng.below(self.hosts[host].disk.points.len());
            self.hosts[host].disk.points.remove(lost);
            let points = self.hosts[host].disk.points.clone();
            self.handle(host, Event::IntroPoints(points));
        }
    }

    /// A member sends another words that a third never said: signed by itself, or with a signature made up.
    fn forge(&mut self) {
        let (Some(liar), Some(to), Some(victim)) = (self.running(), self.running(), self.running()) else { return };
        if victim == liar || to == victim {
            return;
        }
        let who = self.hosts[victim].identity.clone();
        let seq = (self.hosts[victim].disk.boot + 1) << 32 | self.rng.below(1000) as u64;
        let ttl = Duration::from_secs(30);
        let term = self.hosts.iter().filter_map(|host| host.led.last().copied()).max().unwrap_or_default() + 5;
        let key = &self.hosts[liar].identity.key;
        let mut forged = match self.rng.below(3) {
            0 => (RecordKind::Lease, sign(who.lease(seq, term, ttl), key).to_bytes()),
            1 => (RecordKind::Heartbeat, sign(who.beat(seq, Phase::Gone), key).to_bytes()),
            _ => (RecordKind::IntroPoints, sign(who.points(seq, vec![]), key).to_bytes()),
        };
        if self.rng.chance(0.7)
            && let Ok(bytes) = &mut forged.1
        {
            // Under the victim's name, with the liar's signature.
            let (own, theirs) = (*key.verifying_key().as_bytes(), *who.node().public_key());
            if let Some(at) = bytes.windows(32).position(|window| window == own) {
                bytes[at..at + 32].copy_from_slice(&theirs);
            }
        }
        let (kind, bytes) = (forged.0, forged.1.unwrap_or_default());
        let due = Due::Record { origin: who.node(), kind, bytes };
        self.at(Duration::from_millis(500), Happening::At { host: to, life: None, due });
    }
}
