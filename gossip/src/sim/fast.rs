//! Faster routes in a run: links over them and over Tor, their probes, and what a node concludes
//! from both ([`crate::contact`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::faults::{Scenario, Weights};
use super::takeover::{Death, until_settled};
use super::world::{ProcessEvent, World};
use crate::contact::{Contacts, Sign};
use crate::coordinator::Event;
use crate::id::NodeId;

/// Time between two probes, and the time limit for the answer.
const PROBE: Duration = Duration::from_secs(1);
/// Answers in a row that prove a route again after a failure.
const ANSWERS_TO_RETURN: u32 = 5;
/// Shortest round trip over Tor.
const SHORTEST_ROUND_TRIP: Duration = Duration::from_millis(400);

/// The condition of the faster routes.
#[derive(Debug, Clone, Default)]
pub(super) struct UdpState {
    /// The machines whose packets are all lost.
    pub(super) blocked: BTreeSet<usize>,
    /// Share of the other packets that is lost, 0 to 1.
    pub(super) loss: f64,
}

/// The links of a process that has faster routes with all other machines.
#[derive(Debug, Default)]
pub(super) struct FastLinks {
    contacts: Contacts,
    peers: BTreeMap<usize, PeerLinks>,
    probed: Duration,
    unreachable: BTreeSet<NodeId>,
}

/// The links with one machine.
#[derive(Debug, Default)]
struct PeerLinks {
    /// The process with which a link over Tor is open.
    base: Option<u64>,
    /// Answers in a row over the faster route, and how many prove it.
    answered: u32,
    required: u32,
}

impl World {
    /// True if both machines have faster routes.
    pub(super) fn has_fast_route(&self, one: usize, other: usize) -> bool {
        let fast = self.scenario.fast.min(self.hosts.len());
        one != other && one < fast && other < fast
    }

    /// Whether a packet passes over the faster route.
    pub(super) fn passes_fast(&mut self, from: usize, to: usize) -> bool {
        let blocked = self.udp.blocked.contains(&from) || self.udp.blocked.contains(&to) || self.is_walled(from, to);
        !blocked && (self.udp.loss == 0.0 || !self.rng.chance(self.udp.loss))
    }

    /// Whether a machine gets an answer from another one over Tor.
    fn gets_answers(&self, host: usize, peer: usize) -> bool {
        self.hosts[peer].runs() && !self.is_walled(host, peer) && !self.is_walled(peer, host)
    }

    /// One probe of each peer, and the answers to those of a second ago.
    pub(super) fn probe_fast(&mut self, host: usize) {
        self.due(host, PROBE, ProcessEvent::Probes);
        let now = self.now;
        let Some(process) = &mut self.hosts[host].process else { return };
        if now > process.fast.probed + PROBE * 2 {
            process.fast.contacts.start_again();
        }
        process.fast.probed = now;
        for peer in (0..self.hosts.len()).filter(|peer| *peer != host) {
            self.follow_base(host, peer);
            if self.has_fast_route(host, peer) {
                self.follow_fast(host, peer);
            }
        }
        self.judge(host);
    }

    fn links(&mut self, host: usize, peer: usize) -> Option<&mut PeerLinks> {
        Some(self.hosts[host].process.as_mut()?.fast.peers.entry(peer).or_default())
    }

    fn follow_base(&mut self, host: usize, peer: usize) {
        let (answers, number) = (self.gets_answers(host, peer), self.hosts[peer].process_number);
        let runs = self.hosts[peer].process.is_some();
        let (opens, asks) = (answers && self.rng.chance(0.3), self.rng.chance(0.2));
        let Some(links) = self.links(host, peer) else { return };
        match links.base {
            Some(known) if known != number || !runs => {
                links.base = None;
                self.observe(host, peer, Sign::Ended { base: true });
            }
            None if opens => {
                links.base = Some(number);
                self.observe(host, peer, Sign::Opened { base: true });
                self.ask(host, peer);
            }
            Some(_) if asks => self.ask(host, peer),
            _ => {}
        }
    }

    fn follow_fast(&mut self, host: usize, peer: usize) {
        let passes = self.hosts[peer].runs() && self.passes_fast(host, peer) && self.passes_fast(peer, host);
        let Some(links) = self.links(host, peer) else { return };
        if passes {
            links.answered += 1;
            let proven = links.answered >= links.required;
            self.observe(host, peer, Sign::Probed { proven });
        } else {
            (links.answered, links.required) = (0, ANSWERS_TO_RETURN);
            self.observe(host, peer, Sign::Missed);
        }
    }

    fn observe(&mut self, host: usize, peer: usize, sign: Sign) {
        let (id, now) = (self.hosts[peer].id(), self.now);
        let asks = self.hosts[host].process.as_mut().is_some_and(|process| process.fast.contacts.on(id, sign, now));
        if asks {
            self.ask(host, peer);
        }
    }

    /// Asks over Tor. If the peer does not answer now, it never does.
    fn ask(&mut self, host: usize, peer: usize) {
        let round_trip = self.rng.between(SHORTEST_ROUND_TRIP, SHORTEST_ROUND_TRIP + self.delay.mul_f64(0.4));
        if self.gets_answers(host, peer) {
            let of = (peer, self.hosts[peer].process_number);
            self.due(host, round_trip, ProcessEvent::Answer { of, round_trip });
        }
    }

    pub(super) fn answered(&mut self, host: usize, (peer, number): (usize, u64), round_trip: Duration) {
        if self.hosts[peer].process_number == number && self.gets_answers(host, peer) {
            self.observe(host, peer, Sign::Answered { round_trip });
            self.judge(host);
        }
    }

    /// Notes that a message of a machine has arrived.
    pub(super) fn heard(&mut self, host: usize, from: usize) {
        let (id, now) = (self.hosts[from].id(), self.now);
        if let Some(process) = self.hosts[host].process.as_mut().filter(|_| self.scenario.fast > 0) {
            process.fast.contacts.heard(id, now);
        }
    }

    /// Reports the peers that do not answer to the coordinator, if they have changed.
    pub(super) fn judge(&mut self, host: usize) {
        let now = self.now;
        let Some(FastLinks { contacts, unreachable, .. }) =
            self.hosts[host].process.as_mut().map(|process| &mut process.fast)
        else {
            return;
        };
        let (found, next) = (contacts.unreachable(now), contacts.next_deadline(now));
        let changed = found != *unreachable;
        unreachable.clone_from(&found);
        if let Some(next) = next {
            self.due(host, next - now, ProcessEvent::Judge);
        }
        if changed {
            self.handle(host, Event::Unreachable(found));
        }
    }

    /// The machines whose process runs, or not, and that a node takes for dead.
    fn taken_for_dead(&self, host: usize) -> BTreeSet<usize> {
        let process = self.hosts[host].process.as_ref().filter(|_| !self.hosts[host].frozen);
        let dead = process.into_iter().flat_map(|process| process.coordinator.view().members());
        dead.filter(|node| !node.alive).filter_map(|node| self.index.get(&node.node()).copied()).collect()
    }
}

/// A calm cluster that has settled a minute ago.
fn settled(seed: u64, nodes: usize, fast: usize) -> Option<World> {
    let mut world = World::new(Scenario { fast, weights: Weights::NONE, ..Scenario::new(seed, nodes) });
    world.calm = true;
    until_settled(&mut world)?;
    world.run_until(world.now + Duration::from_secs(60));
    Some(world)
}

/// Ends the last node with a faster route, or the last one if none has; for each other node, by
/// number, the time until it takes it for dead. `None` if the cluster does not settle, or one does
/// not notice within a minute.
pub fn death_noticed(seed: u64, nodes: usize, fast: usize, death: Death) -> Option<Vec<Duration>> {
    let mut world = settled(seed, nodes, fast)?;
    // Anywhere between two probes and between two heartbeats.
    let wait = world.rng.between(Duration::ZERO, Duration::from_secs(2));
    world.run_until(world.now + wait);
    let victim = if fast > 0 { fast - 1 } else { nodes - 1 };
    let since = world.now;
    match death {
        Death::Killed => world.kill(victim),
        Death::Frozen => world.freeze_host(victim),
        Death::Goodbye => world.say_goodbye(victim),
    }
    let others = || (0..nodes).filter(|host| *host != victim);
    let mut noticed = BTreeMap::new();
    while noticed.len() < nodes - 1 && world.now < since + Duration::from_secs(60) {
        world.run_until(world.now + Duration::from_millis(50));
        for host in others().filter(|host| world.taken_for_dead(*host).contains(&victim)) {
            noticed.entry(host).or_insert(world.now - since);
        }
    }
    others().map(|host| noticed.get(&host).copied()).collect()
}

/// What befalls a cluster in which no node dies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trouble {
    /// The packets of all faster routes are lost.
    BlockedForAll,
    /// The packets of one node are lost.
    BlockedForOne,
    /// This share of all packets is lost.
    Lossy(f64),
    /// One node is cut off from all others, over all routes.
    CutOff,
    /// A process is stopped for this time.
    Frozen(Duration),
    /// A process is killed, and started again after this time.
    Restarted(Duration),
}

/// The pairs of a node and another one that it takes for dead at any time in the minute after this
/// trouble has struck node 0; and those that are left half a minute after it ended. `None` if the
/// cluster does not settle.
pub fn false_deaths(seed: u64, nodes: usize, fast: usize, trouble: Trouble) -> Option<[BTreeSet<(usize, usize)>; 2]> {
    let mut world = settled(seed, nodes, fast)?;
    let mut taken = BTreeSet::new();
    let dead = |world: &World| -> BTreeSet<(usize, usize)> {
        (0..nodes).flat_map(|host| world.taken_for_dead(host).into_iter().map(move |dead| (host, dead))).collect()
    };
    let mut watch = |world: &mut World, time: Duration| {
        let end = world.now + time;
        while world.now < end {
            world.run_until(end.min(world.now + Duration::from_millis(100)));
            taken.extend(dead(world));
        }
    };
    match trouble {
        Trouble::BlockedForAll => world.udp.blocked = (0..fast).collect(),
        Trouble::BlockedForOne => world.udp.blocked = BTreeSet::from([0]),
        Trouble::Lossy(share) => world.udp.loss = share,
        Trouble::CutOff => {
            let inside = (0..nodes).map(|host| host == 0).collect();
            world.walls.push(super::net::Wall { inside, out: true, into: true });
        }
        Trouble::Frozen(time) => {
            world.freeze_host(0);
            watch(&mut world, time);
            world.thaw(0, None);
        }
        Trouble::Restarted(time) => {
            world.kill(0);
            watch(&mut world, time);
            world.start(0);
        }
    }
    watch(&mut world, Duration::from_secs(60));
    world.udp = UdpState::default();
    world.walls.clear();
    world.run_until(world.now + Duration::from_secs(30));
    Some([taken, dead(&world)])
}
