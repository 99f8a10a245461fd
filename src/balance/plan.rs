//! Which introduction points this node keeps: a reconciler between how many it wants and those it has.
//!
//! Enter with [`Plan::handle`]; [`Plan::next_timeout`] says when to come again. Each time it looks at the whole state:
//!
//! 1. A **slot** is one set of keys. A slot that should serve and has no circuit is opened, at its own relay if it has
//!    one (after a restart or a loss: clients with an old descriptor are still served), else at any relay that neither
//!    this node nor another member uses: stock clients can use only one of two points at the same relay.
//! 2. A slot retires when it is old (a random 18 to 24 hours), worn (16,384 to 32,768 introductions; both as C tor
//!    does), at a relay that a member with a lower node id also uses, or when its relay failed three times in a row. A
//!    retired slot is no longer advertised, but kept open (and retried, more and more rarely) for [`LINGER`], over
//!    restarts too, so that clients with the old descriptor still get through. Where two nodes have chosen one relay at
//!    the same moment, no client has come yet, and the slot is closed at once.
//! 3. Fewer serving slots than wanted: a new one, once it is known where the others are. More: the youngest retires.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustbalance_gossip::record::{RelayId, ServedPoint};
use rustbalance_gossip::time::Now;

use super::circuit::Circuit;
use crate::tor::RelayChoice;

/// How long a retired point serves on: longer than clients keep a descriptor that was just replaced.
pub const LINGER: Duration = Duration::from_secs(3 * 3600);
/// Most retired points that serve on at once; beyond, the oldest is closed.
pub const MAX_LINGERING: usize = 8;
/// A point younger than this, in seconds, to which no client has come is in hardly any client's descriptor.
const UNKNOWN: u64 = 60;
/// How long a lost point is advertised on while its circuit is made again.
pub const GRACE: Duration = Duration::from_secs(8);
/// Failures in a row after which a slot retires.
const MAX_FAILURES: u32 = 3;
/// Longest pause between two tries of a slot that serves, and of a retired one.
const MAX_BACK_OFF: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(300));
/// Longest time until a slot's age is looked at again.
const DAY: u64 = 24 * 3600;

/// Names a slot for as long as the daemon runs; of two, the one made first has the lower number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u64);

/// A point from before a restart, as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Which.
    pub slot: SlotId,
    /// At which relay.
    pub relay: RelayId,
    /// When it was made, in seconds since the Unix epoch.
    pub created: u64,
    /// Introductions so far.
    pub introductions: u64,
    /// How long it serves.
    pub lifetime: Lifetime,
    /// When it retired, in seconds since the Unix epoch, if it has.
    pub retired: Option<u64>,
}

/// How long a new slot lives, drawn by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Seconds after it was made.
    pub seconds: u64,
    /// Introductions.
    pub introductions: u64,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The points from before a restart.
    Restored(Vec<Stored>),
    /// How many points to keep; 0 while leaving.
    Want(usize),
    /// Whether new relays may be chosen: not before it is known where the others are. True unless told otherwise.
    MayChoose(bool),
    /// Relays of other members: those of members with a lower node id win a conflict, the rest lose it.
    Others {
        /// Relays that this node must leave.
        stronger: BTreeSet<RelayId>,
        /// Relays that this node must not choose, but may stay at.
        weaker: BTreeSet<RelayId>,
    },
    /// A slot is open, and this is what the others must know of it.
    Opened(SlotId, ServedPoint, Lifetime),
    /// A slot could not be opened.
    OpenFailed(SlotId),
    /// The circuit of a slot ended.
    Lost(SlotId),
    /// How many introductions a slot has seen in all.
    Introductions(SlotId, u64),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a slot, with its keys if it has any. Answer with `Opened` or `OpenFailed`.
    Open {
        /// Which.
        slot: SlotId,
        /// Where.
        relay: Choice,
    },
    /// Note that a slot has retired: a restart must not advertise it again.
    Retire(SlotId),
    /// Close a slot and forget its keys.
    Close(SlotId),
    /// Advertise these, in this order.
    Advertise(Vec<ServedPoint>),
}

/// As [`RelayChoice`], comparable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Any suitable relay but these.
    AnyBut(BTreeSet<RelayId>),
    /// This one.
    Exactly(RelayId),
}

impl From<Choice> for RelayChoice {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::AnyBut(relays) => Self::AnyBut(relays),
            Choice::Exactly(relay) => Self::Exactly(relay),
        }
    }
}

#[derive(Debug)]
struct Slot {
    circuit: Circuit,
    /// Known once it was open.
    point: Option<ServedPoint>,
    relay: Option<RelayId>,
    created: u64,
    introductions: u64,
    lifetime: Lifetime,
    failures: u32,
    down_since: Option<Duration>,
    /// Set once it has retired.
    lingers_until: Option<Duration>,
}

/// The reconciler. Owns no clock, no randomness, no circuit.
#[derive(Debug)]
pub struct Plan {
    want: usize,
    may_choose: bool,
    slots: BTreeMap<SlotId, Slot>,
    next: u64,
    stronger: BTreeSet<RelayId>,
    weaker: BTreeSet<RelayId>,
    /// Relays given up lately, not chosen again while others are left.
    failed: BTreeMap<RelayId, Duration>,
    advertised: Vec<ServedPoint>,
}

/// How long a relay that failed is avoided.
const AVOID: Duration = Duration::from_secs(600);

impl Plan {
    /// Keeps `want` points.
    pub fn new(want: usize) -> Self {
        Self {
            want,
            may_choose: true,
            slots: BTreeMap::new(),
            next: 1,
            stronger: BTreeSet::new(),
            weaker: BTreeSet::new(),
            failed: BTreeMap::new(),
            advertised: Vec::new(),
        }
    }

    /// Takes note of what happened and says what to do.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::Restored(stored) => self.restore(stored, now),
            Event::Want(want) => self.want = want,
            Event::MayChoose(may) => self.may_choose = may,
            Event::Others { stronger, weaker } => {
                self.stronger = stronger;
                self.weaker = weaker;
            }
            Event::Opened(id, point, lifetime) => self.opened(id, point, lifetime, now, &mut actions),
            Event::OpenFailed(id) => self.failed(id, now),
            Event::Lost(id) => self.lost(id, now),
            Event::Introductions(id, count) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.introductions = slot.introductions.max(count);
                }
            }
        }
        self.reconcile(now, &mut actions);
        actions
    }

    /// When to call again with [`Event::Tick`] if nothing else happens.
    pub fn next_timeout(&self, now: Now) -> Option<Duration> {
        self.slots.values().map(|slot| slot.next_timeout(now)).min()
    }

    fn restore(&mut self, stored: Vec<Stored>, now: Now) {
        for stored in stored {
            self.next = self.next.max(stored.slot.0 + 1);
            let lingered = |retired| Duration::from_secs(now.unix.saturating_sub(retired));
            let slot = Slot {
                relay: Some(stored.relay),
                created: stored.created,
                introductions: stored.introductions,
                lifetime: stored.lifetime,
                down_since: Some(now.mono),
                lingers_until: stored.retired.map(|retired| now.mono + LINGER.saturating_sub(lingered(retired))),
                ..Slot::new(now)
            };
            self.slots.insert(stored.slot, slot);
        }
    }

    fn opened(&mut self, id: SlotId, point: ServedPoint, lifetime: Lifetime, now: Now, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else {
            // Given up while it was being opened.
            actions.push(Action::Close(id));
            return;
        };
        if slot.relay.is_none() {
            slot.created = now.unix;
            slot.lifetime = lifetime;
        }
        slot.relay = Some(point.point.relay);
        slot.point = Some(point);
        slot.circuit = Circuit::Up;
        slot.failures = 0;
        slot.down_since = None;
    }

    fn failed(&mut self, id: SlotId, now: Now) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.failures = slot.failures.saturating_add(1);
        let most = if slot.is_retired() { MAX_BACK_OFF.1 } else { MAX_BACK_OFF.0 };
        let pause = Duration::from_millis(500 << slot.failures.min(10)).min(most);
        slot.circuit = Circuit::Down { not_before: now.mono + pause };
        if slot.has_failed()
            && let Some(relay) = slot.relay
        {
            self.failed.insert(relay, now.mono);
        }
    }

    fn lost(&mut self, id: SlotId, now: Now) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.circuit = Circuit::Down { not_before: now.mono };
            slot.down_since.get_or_insert(now.mono);
        }
    }

    fn close(&mut self, id: SlotId, actions: &mut Vec<Action>) {
        if self.slots.remove(&id).is_some() {
            actions.push(Action::Close(id));
        }
    }

    fn reconcile(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.retire(now, actions);
        self.open(now, actions);
        let advertise: Vec<ServedPoint> = self
            .slots
            .values()
            .filter(|slot| !slot.is_retired())
            .filter(|slot| slot.down_since.is_none_or(|since| now.mono < since + GRACE))
            .filter_map(|slot| slot.point.clone())
            .take(self.want)
            .collect();
        if advertise != self.advertised {
            self.advertised.clone_from(&advertise);
            actions.push(Action::Advertise(advertise));
        }
    }

    /// Marks what must go, and closes what has lingered long enough.
    fn retire(&mut self, now: Now, actions: &mut Vec<Action>) {
        let clashing = self.ids(|slot| {
            let unknown = slot.introductions == 0 && now.unix < slot.created.saturating_add(UNKNOWN);
            unknown && slot.relay.is_some_and(|relay| self.stronger.contains(&relay))
        });
        for id in clashing {
            self.close(id, actions);
        }
        let over = self.ids(|slot| !slot.is_retired() && slot.is_over(&self.stronger, now));
        let serving = self.ids(|slot| !slot.is_retired());
        let surplus = serving.into_iter().filter(|id| !over.contains(id)).skip(self.want);
        for id in over.iter().copied().chain(surplus) {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.lingers_until = Some(now.mono + LINGER);
                actions.push(Action::Retire(id));
            }
        }
        // One that never had a relay is known to nobody. Oldest first where there are too many.
        let lingering = self.ids(Slot::is_retired);
        let surplus = lingering.len().saturating_sub(MAX_LINGERING);
        for (position, id) in lingering.into_iter().enumerate() {
            let Some(slot) = self.slots.get(&id) else { continue };
            let over = slot.lingers_until.is_some_and(|until| now.mono >= until);
            if over || position < surplus || slot.relay.is_none() {
                self.close(id, actions);
            }
        }
    }

    /// Opens what is down and due, and new slots where some are missing.
    fn open(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.failed.retain(|_, at| now.mono < *at + AVOID);
        let serving = self.slots.values().filter(|slot| !slot.is_retired()).count();
        let missing = if self.may_choose { serving..self.want } else { 0..0 };
        for _ in missing {
            self.slots.insert(SlotId(self.next), Slot::new(now));
            self.next += 1;
        }
        let due = self.ids(|slot| slot.circuit.is_due(now.mono));
        // One new relay at a time: each choice must know of the one before.
        let mut choosing =
            self.slots.values().any(|slot| slot.relay.is_none() && matches!(slot.circuit, Circuit::Opening));
        for id in due {
            let taken: BTreeSet<RelayId> = self
                .slots
                .values()
                .filter(|slot| !slot.is_retired() || !matches!(slot.circuit, Circuit::Down { .. }))
                .filter_map(|slot| slot.relay)
                .chain(self.stronger.iter().copied())
                .chain(self.weaker.iter().copied())
                .chain(self.failed.keys().copied())
                .collect();
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            let relay = match slot.relay {
                Some(relay) => Choice::Exactly(relay),
                None if choosing => continue,
                None => {
                    choosing = true;
                    Choice::AnyBut(taken)
                }
            };
            slot.circuit = Circuit::Opening;
            actions.push(Action::Open { slot: id, relay });
        }
    }

    fn ids(&self, which: impl Fn(&Slot) -> bool) -> Vec<SlotId> {
        self.slots.iter().filter(|(_, slot)| which(slot)).map(|(id, _)| *id).collect()
    }
}

impl Slot {
    fn new(now: Now) -> Self {
        Self {
            circuit: Circuit::Down { not_before: now.mono },
            point: None,
            relay: None,
            created: now.unix,
            introductions: 0,
            lifetime: Lifetime { seconds: u64::MAX / 2, introductions: u64::MAX },
            failures: 0,
            down_since: None,
            lingers_until: None,
        }
    }

    fn is_retired(&self) -> bool {
        self.lingers_until.is_some()
    }

    fn has_failed(&self) -> bool {
        self.relay.is_some() && self.failures >= MAX_FAILURES
    }

    /// Whether it must retire: old, worn, at a relay that a stronger member uses, or at one that does not answer.
    fn is_over(&self, stronger: &BTreeSet<RelayId>, now: Now) -> bool {
        let Some(relay) = self.relay else { return false };
        let old = now.unix >= self.created.saturating_add(self.lifetime.seconds);
        let worn = self.introductions >= self.lifetime.introductions;
        old || worn || stronger.contains(&relay) || self.has_failed()
    }

    fn next_timeout(&self, now: Now) -> Duration {
        let circuit = match self.circuit {
            Circuit::Down { not_before } => Some(not_before.max(now.mono + Duration::from_millis(100))),
            Circuit::Opening => self.down_since.map(|since| since + GRACE).filter(|at| *at > now.mono),
            Circuit::Up => None,
        };
        let left = self.created.saturating_add(self.lifetime.seconds).saturating_sub(now.unix);
        let end = self.lingers_until.unwrap_or(now.mono + Duration::from_secs(left.clamp(1, DAY)));
        circuit.map_or(end, |circuit| circuit.min(end))
    }
}

#[cfg(test)]
mod tests;
