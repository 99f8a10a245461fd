//! Which introduction points this node keeps: a reconciler between the number it wants and those it
//! has.
//!
//! Enter with [`BalancePlan::handle`]; [`BalancePlan::next_timeout`] says when to call it again.
//! Each call looks at the whole state:
//!
//! 1. A **slot** is one set of keys. A slot that should serve and has no circuit is opened: at its
//!    own relay if it has one (after a restart or a loss, so that clients with an old descriptor
//!    are still served), else at any relay that neither this node nor another member uses, because
//!    stock clients can use only one of two points at the same relay.
//! 2. A slot retires when it is old (a random 18 to 24 hours) or worn (16,384 to 32,768
//!    introductions; both as in C tor). It also retires at a relay that it must leave to another
//!    member (`must_leave`); such moves are rationed, so that a member that follows the others from
//!    relay to relay cannot keep them moving for ever. And it retires when its relay failed three
//!    times in a row, or repeatedly closed its circuit soon, or when the canary gets no client
//!    through there.
//! 3. A retired slot is no longer advertised, but stays open (and is retried with growing pauses)
//!    for [`LINGER`], across restarts too, so that clients with the old descriptor still get
//!    through. A slot that must leave its relay before clients know it (two nodes chose one relay
//!    at the same moment) is closed at once instead.
//! 4. If fewer slots serve than wanted, a new one is opened once the relays of the others are
//!    known. If more serve, the youngest retires.
//! 5. When the node stops, other nodes take the points over ([`Event::HandOver`]). Then no slot is
//!    opened again: its relay has closed the circuit in favour of another node's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::record::{RelayId, ServedPoint};
use rustbalance_gossip::time::Now;

use super::circuit::Circuit;
use crate::backoff::Backoff;
use crate::drive::Machine;
use crate::tor::RelayChoice;

/// How long a retired point goes on serving: longer than clients keep a descriptor that was just
/// replaced.
pub const LINGER: Duration = Duration::from_secs(3 * 3600);
/// Most retired points that go on serving at once; beyond that, the oldest is closed.
pub const MAX_LINGERING: usize = 8;
/// A point that is younger than this (in seconds) and has had no introduction counts as unknown to
/// clients: hardly any has fetched a descriptor that names it.
const UNKNOWN_TO_CLIENTS_SECONDS: u64 = 60;
/// How long a lost point stays advertised while its circuit is made again.
pub const GRACE: Duration = Duration::from_secs(8);
/// Failures in a row after which a slot retires.
const MAX_FAILURES: u32 = 3;
/// A circuit that ends sooner than this did not last: it counts as one of [`MAX_LOSSES`].
const LASTING: Duration = Duration::from_secs(60);
/// Bounds on the circuits of a slot that did not last, counted in a row. Above the first bound the
/// slot is not advertised until a circuit lasts; at the second it retires.
const MAX_LOSSES: (u32, u32) = (1, 6);
/// Rate limit of moves, in which a slot leaves its relay to another member: the burst, and the time
/// after which one more move is allowed.
const MOVES: (u32, Duration) = (6, Duration::from_secs(1800));
/// Pauses between two attempts to open a slot that serves: at most 20 s, because clients wait for
/// it.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(20));
/// Pauses between two attempts to open a retired slot, which few clients still use.
const RETIRED_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
/// Longest time until a slot's age is looked at again, in seconds.
const DAY: u64 = 24 * 3600;

/// Identifies a slot, across restarts too. Of two slots, the one made first has the lower number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u64);

/// A point as it is kept across restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The slot.
    pub slot: SlotId,
    /// The relay of the point.
    pub relay: RelayId,
    /// When it was made, in seconds since the Unix epoch.
    pub created: u64,
    /// Introductions so far.
    pub introductions: u64,
    /// When it retires.
    pub lifetime: Lifetime,
    /// When it retired, in seconds since the Unix epoch, if it has.
    pub retired: Option<u64>,
}

/// When a new slot retires: at this age or after this number of introductions, whichever comes
/// first. Drawn at random by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Its age, in seconds.
    pub seconds: u64,
    /// The number of introductions.
    pub introductions: u64,
}

/// An event that the plan handles.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The points from before a restart.
    Restored(Vec<Stored>),
    /// This number of points is to be kept from now on.
    Want(usize),
    /// Whether new relays may be chosen: not before the relays of the others are known. True until
    /// this event says otherwise.
    MayChoose(bool),
    /// Relays of other members.
    RelaysOfOthers {
        /// Relays of this node that another member uses too, with precedence: to be left.
        must_leave: BTreeSet<RelayId>,
        /// Relays of all other members: not to be chosen, but this node may stay at one it uses.
        avoid: BTreeSet<RelayId>,
    },
    /// A slot is open. The point is what the others must know of it; the lifetime counts if the
    /// slot is new.
    Opened(SlotId, ServedPoint, Lifetime),
    /// A slot could not be opened.
    OpenFailed(SlotId),
    /// The circuit of a slot ended.
    Lost(SlotId),
    /// How many introductions a slot has seen in all.
    Introductions(SlotId, u64),
    /// No client gets through at the point with this session key, although its circuit is open.
    Deaf(FixedBytes<32>),
    /// Other nodes take the points over from now on.
    HandOver,
}

/// An action that the task carries out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a slot, with its keys if it has any. Answer with `Opened` or `OpenFailed`.
    Open {
        /// The slot.
        slot: SlotId,
        /// At which relay.
        relay: Choice,
    },
    /// Record on disk that a slot has retired: it must not be advertised again after a restart.
    Retire(SlotId),
    /// Close a slot and forget its keys.
    Close(SlotId),
    /// Advertise these, in this order.
    Advertise(Vec<ServedPoint>),
}

/// A [`RelayChoice`] that can be compared.
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
    /// Known once the slot has been open.
    point: Option<ServedPoint>,
    relay: Option<RelayId>,
    created: u64,
    introductions: u64,
    lifetime: Lifetime,
    failures: u32,
    /// Circuits in a row that did not last.
    losses: u32,
    /// When its current circuit has lasted [`LASTING`].
    lasts_at: Duration,
    down_since: Option<Duration>,
    /// Set once it has retired.
    lingers_until: Option<Duration>,
}

/// The reconciler. It has no clock, no randomness and no circuits.
#[derive(Debug)]
pub struct BalancePlan {
    want: usize,
    may_choose: bool,
    handing_over: bool,
    slots: BTreeMap<SlotId, Slot>,
    next: u64,
    must_leave: BTreeSet<RelayId>,
    avoid: BTreeSet<RelayId>,
    /// How many slots may leave their relay to another member now, and when that number last rose
    /// (see [`MOVES`]).
    moves: (u32, Duration),
    /// Relays that failed, and when: not chosen for [`AVOID`].
    failed: BTreeMap<RelayId, Duration>,
    advertised: Vec<ServedPoint>,
}

/// How long a relay that failed is avoided.
const AVOID: Duration = Duration::from_secs(600);

impl Machine for BalancePlan {
    type Event = Event;
    type Action = Action;

    fn tick() -> Event {
        Event::Tick
    }

    fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::Restored(stored) => self.restore(stored, now),
            Event::Want(want) => self.want = want,
            Event::MayChoose(may) => self.may_choose = may,
            Event::RelaysOfOthers { must_leave, avoid } => {
                self.must_leave = must_leave;
                self.avoid = avoid;
            }
            Event::Opened(id, point, lifetime) => self.opened(id, point, lifetime, now, &mut actions),
            Event::OpenFailed(id) => self.failed(id, now),
            Event::Lost(id) => self.lost(id, now),
            Event::Introductions(id, count) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.introductions = slot.introductions.max(count);
                }
            }
            // Other nodes take the points over, with the keys of its last record.
            Event::Deaf(_) if self.handing_over => {}
            Event::Deaf(point) => self.replace(point, now, &mut actions),
            Event::HandOver => self.handing_over = true,
        }
        if !self.handing_over {
            self.reconcile(now, &mut actions);
        }
        actions
    }

    fn next_timeout(&self, now: Now) -> Option<Duration> {
        if self.handing_over {
            return None;
        }
        self.slots.values().map(|slot| slot.next_timeout(now)).min()
    }
}

impl BalancePlan {
    /// A plan that keeps `want` points.
    pub fn new(want: usize) -> Self {
        Self {
            want,
            may_choose: true,
            handing_over: false,
            slots: BTreeMap::new(),
            next: 1,
            must_leave: BTreeSet::new(),
            avoid: BTreeSet::new(),
            moves: (MOVES.0, Duration::ZERO),
            failed: BTreeMap::new(),
            advertised: Vec::new(),
        }
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
            // The slot was given up while it was being opened.
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
        slot.lasts_at = now.mono + LASTING;
        if slot.losses <= MAX_LOSSES.0 {
            slot.down_since = None;
        }
    }

    fn failed(&mut self, id: SlotId, now: Now) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.failures = slot.failures.saturating_add(1);
            slot.pause(slot.failures, now);
        }
        self.avoid_failed(id, now);
    }

    /// Makes the circuit again at once, unless the circuit before did not last either.
    fn lost(&mut self, id: SlotId, now: Now) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.losses = if now.mono < slot.lasts_at { slot.losses.saturating_add(1) } else { 0 };
            slot.pause(slot.losses.saturating_sub(1), now);
            slot.down_since.get_or_insert(now.mono);
        }
        self.avoid_failed(id, now);
    }

    /// Avoids the relay of a slot that has failed, for [`AVOID`].
    fn avoid_failed(&mut self, id: SlotId, now: Now) {
        let failed = self.slots.get(&id).filter(|slot| slot.has_failed());
        self.failed.extend(failed.and_then(|slot| slot.relay).map(|relay| (relay, now.mono)));
    }

    fn close(&mut self, id: SlotId, actions: &mut Vec<Action>) {
        if self.slots.remove(&id).is_some() {
            actions.push(Action::Close(id));
        }
    }

    fn reconcile(&mut self, now: Now, actions: &mut Vec<Action>) {
        for slot in self.slots.values_mut().filter(|slot| slot.lasts(now)) {
            slot.losses = 0;
            slot.down_since = None;
        }
        self.leave(now, actions);
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

    /// Leaves the relays that the last [`Event::RelaysOfOthers`] named as `must_leave`. A point
    /// that no client knows yet is closed at once.
    fn leave(&mut self, now: Now, actions: &mut Vec<Action>) {
        while self.moves.0 < MOVES.0 && now.mono >= self.moves.1 + MOVES.1 {
            self.moves = (self.moves.0 + 1, self.moves.1 + MOVES.1);
        }
        let clashes = |slot: &Slot| slot.relay.is_some_and(|relay| self.must_leave.contains(&relay));
        for id in self.ids(|slot| !slot.is_retired() && clashes(slot)) {
            let (Some(slot), 1..) = (self.slots.get(&id), self.moves.0) else { return };
            let full = self.moves.0 == MOVES.0;
            self.moves = (self.moves.0 - 1, if full { now.mono } else { self.moves.1 });
            if slot.introductions == 0 && now.unix < slot.created.saturating_add(UNKNOWN_TO_CLIENTS_SECONDS) {
                self.close(id, actions);
            } else {
                self.retire_one(id, now, actions);
            }
        }
    }

    fn retire_one(&mut self, id: SlotId, now: Now, actions: &mut Vec<Action>) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.lingers_until = Some(now.mono + LINGER);
            actions.push(Action::Retire(id));
        }
    }

    /// Retires the slot with this session key, and avoids its relay for [`AVOID`].
    fn replace(&mut self, point: FixedBytes<32>, now: Now, actions: &mut Vec<Action>) {
        let is_it = |slot: &Slot| slot.point.as_ref().is_some_and(|served| served.point.session_key == point);
        for id in self.ids(|slot| !slot.is_retired() && is_it(slot)) {
            self.failed.extend(self.slots.get(&id).and_then(|slot| slot.relay).map(|relay| (relay, now.mono)));
            self.retire_one(id, now, actions);
        }
    }

    /// Retires slots that are at their end ([`Slot::is_over`]) or surplus, and closes retired ones
    /// after [`LINGER`].
    fn retire(&mut self, now: Now, actions: &mut Vec<Action>) {
        let over = self.ids(|slot| !slot.is_retired() && slot.is_over(now));
        let serving = self.ids(|slot| !slot.is_retired());
        let surplus = serving.into_iter().filter(|id| !over.contains(id)).skip(self.want);
        for id in over.iter().copied().chain(surplus) {
            self.retire_one(id, now, actions);
        }
        // Closes at once a retired slot that never had a relay, because no descriptor names it, and
        // the oldest ones if there are too many.
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

    /// Opens slots that are down and due, and adds new ones if some are missing.
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
                .chain(self.must_leave.iter().copied())
                .chain(self.avoid.iter().copied())
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
            losses: 0,
            lasts_at: Duration::ZERO,
            down_since: None,
            lingers_until: None,
        }
    }

    fn is_retired(&self) -> bool {
        self.lingers_until.is_some()
    }

    fn has_failed(&self) -> bool {
        self.relay.is_some() && (self.failures >= MAX_FAILURES || self.losses >= MAX_LOSSES.1)
    }

    fn lasts(&self, now: Now) -> bool {
        matches!(self.circuit, Circuit::Up) && now.mono >= self.lasts_at
    }

    /// Has its circuit made again after a pause that grows with the number of `setbacks`; at once
    /// if there was none.
    fn pause(&mut self, setbacks: u32, now: Now) {
        let pauses = if self.is_retired() { RETIRED_BACKOFF } else { BACKOFF };
        let pause = setbacks.checked_sub(1).map_or(Duration::ZERO, |earlier| pauses.pause(earlier));
        self.circuit = Circuit::Down { not_before: now.mono + pause };
    }

    /// Whether it must retire: old, worn, or at a relay that does not answer or keeps closing its
    /// circuit.
    fn is_over(&self, now: Now) -> bool {
        let old = now.unix >= self.created.saturating_add(self.lifetime.seconds);
        let worn = self.introductions >= self.lifetime.introductions;
        self.relay.is_some() && (old || worn || self.has_failed())
    }

    fn next_timeout(&self, now: Now) -> Duration {
        let circuit = match self.circuit {
            Circuit::Down { not_before } => Some(not_before.max(now.mono + Duration::from_millis(100))),
            Circuit::Opening => None,
            Circuit::Up => Some(self.lasts_at),
        };
        let withdrawn = self.down_since.map(|since| since + GRACE);
        let changes = [circuit, withdrawn].into_iter().flatten().filter(|at| *at > now.mono);
        let left = self.created.saturating_add(self.lifetime.seconds).saturating_sub(now.unix);
        let end = self.lingers_until.unwrap_or(now.mono + Duration::from_secs(left.clamp(1, DAY)));
        changes.min().map_or(end, |change| change.min(end))
    }
}

#[cfg(test)]
mod tests;
