//! The network of a run and the gossip on it: partitions, loss, delay, duplicates.

use std::rc::Rc;
use std::time::Duration;

use super::gossip::{Message, Value};
use super::host::Fate;
use super::world::{ProcessEvent, SimEvent, World};
use crate::coordinator::Event;
use crate::record::RecordKind;

/// Number of nodes with which a node compares itself in each round.
const FANOUT: usize = 2;
/// Time between two rounds of gossip.
pub(super) const ROUND: Duration = Duration::from_secs(1);
/// The shortest delay of a message.
const SOONEST: Duration = Duration::from_millis(200);
/// The shortest delay of a message over a faster route.
const FASTEST: Duration = Duration::from_millis(20);
/// Share of messages that arrive twice during the chaos, 0 to 1.
const TWICE: f64 = 0.03;

/// Blocks messages between the machines inside and those outside.
#[derive(Debug, Clone)]
pub(super) struct Wall {
    /// Whether each machine is inside; machines that join later are outside.
    pub(super) inside: Vec<bool>,
    /// Blocks messages from the inside to the outside.
    pub(super) out: bool,
    /// Blocks messages from the outside to the inside.
    pub(super) into: bool,
}

impl Wall {
    fn stops(&self, from: usize, to: usize) -> bool {
        let inside = |host: usize| self.inside.get(host).copied().unwrap_or_default();
        match (inside(from), inside(to)) {
            (true, false) => self.out,
            (false, true) => self.into,
            _ => false,
        }
    }
}

impl World {
    /// A round of gossip of one node.
    pub(super) fn round(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        let digest = process.store.digest();
        // Now and then a node sends its own values unasked: where answers do not come back, only
        // those arrive.
        let own = if self.rng.chance(0.3) { process.store.of(host) } else { Vec::new() };
        // Over faster routes, a node has a link with each other one.
        let fast = (0..self.scenario.fast).filter(|other| self.has_fast_route(host, *other)).map(Some);
        for linked in fast.chain([None; FANOUT]).collect::<Vec<_>>() {
            if let Some(to) = linked.or_else(|| self.peer(host)) {
                let from = (host, self.hosts[host].process_number);
                let message = Message::Syn { from, digest: Rc::clone(&digest), own: own.clone() };
                self.send(host, (to, None), message);
            }
        }
        self.due(host, ROUND, ProcessEvent::Round);
    }

    /// A random other machine that takes part, running or not; `None` if none was drawn.
    fn peer(&mut self, host: usize) -> Option<usize> {
        let drawn = |_| self.rng.below(self.hosts.len());
        (0..20).map(drawn).find(|other| *other != host && self.hosts[*other].fate == Fate::Here)
    }

    /// True if no message passes from one machine to another.
    pub(super) fn is_walled(&self, from: usize, to: usize) -> bool {
        self.walls.iter().any(|wall| wall.stops(from, to))
    }

    fn send(&mut self, from: usize, (to, process_number): (usize, Option<u64>), message: Message) {
        if self.has_fast_route(from, to) && self.passes_fast(from, to) {
            let after = self.rng.between(FASTEST, FASTEST * 4);
            self.at(after, SimEvent::At { host: to, process_number, due: ProcessEvent::Message(message) });
            return;
        }
        if self.is_walled(from, to) || self.rng.chance(self.loss) {
            return;
        }
        if !self.calm && self.rng.chance(TWICE) {
            self.deliver(to, process_number, message.clone());
        }
        self.deliver(to, process_number, message);
    }

    fn deliver(&mut self, host: usize, process_number: Option<u64>, message: Message) {
        let after = self.rng.between(SOONEST, self.delay);
        self.at(after, SimEvent::At { host, process_number, due: ProcessEvent::Message(message) });
    }

    pub(super) fn receive(&mut self, host: usize, message: Message) {
        self.traffic.0 += 1;
        if let Message::Syn { from: (from, _), .. } | Message::Ack { from: (from, _), .. } = &message {
            self.heard(host, *from);
        }
        let own = (host, self.hosts[host].process_number);
        let Some(process) = &mut self.hosts[host].process else { return };
        match message {
            Message::Syn { from: (from, process_number), digest, own: theirs } => {
                self.take(host, theirs);
                let Some(process) = &self.hosts[host].process else { return };
                let (values, mine) = (process.store.lacking(&digest), process.store.digest());
                self.send(host, (from, Some(process_number)), Message::Ack { from: own, digest: mine, values });
            }
            Message::Ack { from: (from, process_number), digest, values } => {
                let lacking = process.store.lacking(&digest);
                if !lacking.is_empty() {
                    self.send(host, (from, Some(process_number)), Message::Delta { values: lacking });
                }
                self.take(host, values);
            }
            Message::Delta { values } => self.take(host, values),
        }
    }

    fn take(&mut self, host: usize, values: Vec<Value>) {
        let Some(process) = &mut self.hosts[host].process else { return };
        for Value { origin, announced, .. } in process.store.merge(values) {
            let Some(bytes) = &announced.bytes else { continue };
            self.traffic.1 += 1;
            let node = self.hosts[origin].id();
            let Some(process) = &mut self.hosts[host].process else { return };
            match announced.kind {
                RecordKind::Heartbeat => process.witness.beat(origin, self.now),
                RecordKind::Lease if process.coordinator.view().is_member(&node) => {
                    process.witness.lease(node, announced.claim);
                }
                _ => {}
            }
            self.handle(host, Event::Record { origin: node, kind: announced.kind, bytes: bytes.clone() });
            if matches!(announced.kind, RecordKind::Publication(_)) {
                self.check_revisions(host);
            }
        }
    }
}
