//! Which introduction points this node keeps: a reconciler between how many it wants and those it has.
//!
//! Enter with [`Plan::handle`]; [`Plan::next_timeout`] says when to come again. Each time it looks at the whole state:
//!
//! 1. A **slot** is one set of keys. A slot that should serve and has no circuit is opened, at its own relay if it has
//!    one (after a restart or a loss: clients with an old descriptor are still served), else at any relay that neither
//!    this node nor another member uses: stock clients can use only one of two points at the same relay.
//! 2. A slot whose relay failed three times in a row gives the relay and its keys up, and a new slot takes its place.
//! 3. A slot retires when it is old (a random 18 to 24 hours), worn (16,384 to 32,768 introductions; both as C tor
//!    does), or at a relay that a member with a lower node id also uses. A retiring slot is no longer advertised, but
//!    serves on for [`LINGER`] so that clients with the old descriptor still get through. Where two nodes have chosen one
//!    relay at the same moment, no client has come yet, and the slot is closed at once.
//! 4. Fewer serving slots than wanted: a new one, once it is known where the others are. More: the youngest retires.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustbalance_gossip::record::{IntroPoint, RelayId};
use rustbalance_gossip::time::Now;

use crate::tor::RelayChoice;

/// How long a retired point serves on: longer than clients keep a descriptor that was just replaced.
pub const LINGER: Duration = Duration::from_secs(3 * 3600);
/// Most retired points that serve on at once; beyond, the oldest is closed.
pub const MAX_LINGERING: usize = 8;
/// A point younger than this, in seconds, to which no client has come is in hardly any client's descriptor.
const UNKNOWN: u64 = 60;
/// How long a lost point is advertised on while its circuit is made again.
pub const GRACE: Duration = Duration::from_secs(8);
/// Failures in a row after which a relay is given up.
const MAX_FAILURES: u32 = 3;
/// Longest pause between two tries.
const MAX_BACK_OFF: Duration = Duration::from_secs(20);

/// Names a slot for as long as the daemon runs.
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
    Restored(Vec<(Stored, Lifetime)>),
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
    /// A slot is open, and this is what the publisher must know of it.
    Opened(SlotId, IntroPoint, Lifetime),
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
    /// Close a slot and forget its keys.
    Close(SlotId),
    /// Advertise these, in this order.
    Advertise(Vec<IntroPoint>),
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
enum Circuit {
    /// None; tried again at this time.
    Down {
        not_before: Duration,
    },
    Opening,
    Up,
}

#[derive(Debug)]
struct Slot {
    circuit: Circuit,
    /// Known once it was open.
    point: Option<IntroPoint>,
    relay: Option<RelayId>,
    created: u64,
    introductions: u64,
    lifetime: Lifetime,
    failures: u32,
    down_since: Option<Duration>,
    retired_at: Option<Duration>,
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
    advertised: Vec<IntroPoint>,
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
            Event::OpenFailed(id) => self.failed(id, now, &mut actions),
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
        let slots = self.slots.values().filter_map(|slot| match (&slot.circuit, slot.retired_at) {
            (Circuit::Down { not_before }, None) => Some((*not_before).max(now.mono + Duration::from_millis(100))),
            (_, Some(retired)) => Some(retired + LINGER),
            (Circuit::Up, None) => {
                let left = (slot.created + slot.lifetime.seconds).saturating_sub(now.unix);
                Some(now.mono + Duration::from_secs(left.max(1)))
            }
            (Circuit::Opening, None) => slot.down_since.map(|since| since + GRACE).filter(|at| *at > now.mono),
        });
        slots.min()
    }

    fn restore(&mut self, stored: Vec<(Stored, Lifetime)>, now: Now) {
        for (stored, lifetime) in stored {
            self.next = self.next.max(stored.slot.0 + 1);
            let slot = Slot {
                circuit: Circuit::Down { not_before: now.mono },
                point: None,
                relay: Some(stored.relay),
                created: stored.created,
                introductions: stored.introductions,
                lifetime,
                failures: 0,
                down_since: Some(now.mono),
                retired_at: None,
            };
            self.slots.insert(stored.slot, slot);
        }
    }

    fn opened(&mut self, id: SlotId, point: IntroPoint, lifetime: Lifetime, now: Now, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else {
            // Given up while it was being opened.
            actions.push(Action::Close(id));
            return;
        };
        if slot.relay.is_none() {
            slot.created = now.unix;
            slot.lifetime = lifetime;
        }
        slot.relay = Some(point.relay);
        slot.point = Some(point);
        slot.circuit = Circuit::Up;
        slot.failures = 0;
        slot.down_since = None;
    }

    fn failed(&mut self, id: SlotId, now: Now, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.failures += 1;
        let pause = Duration::from_millis(500 << slot.failures.min(7)).min(MAX_BACK_OFF);
        slot.circuit = Circuit::Down { not_before: now.mono + pause };
        // Without a relay there is nothing to give up: the network itself is not there yet.
        if slot.failures >= MAX_FAILURES
            && let Some(relay) = slot.relay
        {
            self.failed.insert(relay, now.mono);
            self.close(id, actions);
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
        let advertise: Vec<IntroPoint> = self
            .slots
            .values()
            .filter(|slot| slot.retired_at.is_none())
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
        for slot in self.slots.values_mut().filter(|slot| slot.retired_at.is_none()) {
            let old = slot.relay.is_some() && now.unix >= slot.created + slot.lifetime.seconds;
            let worn = slot.relay.is_some() && slot.introductions >= slot.lifetime.introductions;
            let conflict = slot.relay.is_some_and(|relay| self.stronger.contains(&relay));
            if old || worn || conflict {
                slot.retired_at = Some(now.mono);
            }
        }
        let serving: Vec<SlotId> = self.ids(|slot| slot.retired_at.is_none());
        for id in serving.into_iter().skip(self.want) {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.retired_at = Some(now.mono);
            }
        }
        // A retired point without a circuit serves nobody: its keys go. Oldest first where there are too many.
        let lingering = self.ids(|slot| slot.retired_at.is_some());
        let surplus = lingering.len().saturating_sub(MAX_LINGERING);
        for (position, id) in lingering.into_iter().enumerate() {
            let Some(slot) = self.slots.get(&id) else { continue };
            let over = slot.retired_at.is_some_and(|at| now.mono >= at + LINGER);
            if over || position < surplus || matches!(slot.circuit, Circuit::Down { .. }) {
                self.close(id, actions);
            }
        }
    }

    /// Opens what is down and due, and new slots where some are missing.
    fn open(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.failed.retain(|_, at| now.mono < *at + AVOID);
        let serving = self.slots.values().filter(|slot| slot.retired_at.is_none()).count();
        let missing = if self.may_choose { serving..self.want } else { 0..0 };
        for _ in missing {
            self.slots.insert(SlotId(self.next), Slot::new(now));
            self.next += 1;
        }
        let due = self.ids(|slot| {
            slot.retired_at.is_none() && matches!(slot.circuit, Circuit::Down { not_before } if not_before <= now.mono)
        });
        // One new relay at a time: each choice must know of the one before.
        let mut choosing =
            self.slots.values().any(|slot| slot.relay.is_none() && matches!(slot.circuit, Circuit::Opening));
        for id in due {
            let taken: BTreeSet<RelayId> = self
                .slots
                .values()
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
            retired_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustbalance_gossip::bytes::FixedBytes;

    const LIFETIME: Lifetime = Lifetime { seconds: 70_000, introductions: 20_000 };

    fn relay(n: u8) -> RelayId {
        RelayId { rsa: FixedBytes([n; 20]), ed25519: FixedBytes([n; 32]) }
    }

    fn point(relay: RelayId, keys: u8) -> IntroPoint {
        IntroPoint {
            relay,
            link_specifiers: Vec::new(),
            onion_key: FixedBytes([keys; 32]),
            session_key: FixedBytes([keys; 32]),
            encryption_key: FixedBytes([keys; 32]),
        }
    }

    /// Opens whatever is asked for, at relays 1..=relays, unless a relay is dead.
    struct World {
        plan: Plan,
        now: Now,
        relays: u8,
        dead: BTreeSet<RelayId>,
        advertised: Vec<IntroPoint>,
        open: BTreeMap<SlotId, RelayId>,
    }

    impl World {
        fn new(want: usize) -> Self {
            let now = Now { mono: Duration::from_secs(100), unix: 1_800_000_000 };
            let plan = Plan::new(want);
            Self { plan, now, relays: 9, dead: BTreeSet::new(), advertised: Vec::new(), open: BTreeMap::new() }
        }

        fn tell(&mut self, event: Event) {
            let mut actions = self.plan.handle(event, self.now);
            while let Some(action) = actions.pop() {
                let event = match action {
                    Action::Advertise(points) => {
                        self.advertised = points;
                        continue;
                    }
                    Action::Close(slot) => {
                        self.open.remove(&slot);
                        continue;
                    }
                    Action::Open { slot, relay: choice } => {
                        let relay = match choice {
                            Choice::Exactly(relay) => Some(relay).filter(|relay| !self.dead.contains(relay)),
                            Choice::AnyBut(taken) => (1..=self.relays)
                                .map(relay)
                                .find(|relay| !taken.contains(relay) && !self.dead.contains(relay)),
                        };
                        match relay {
                            Some(relay) => {
                                self.open.insert(slot, relay);
                                Event::Opened(slot, point(relay, slot.0 as u8), LIFETIME)
                            }
                            None => Event::OpenFailed(slot),
                        }
                    }
                };
                // The latest word on what is advertised must win: what follows is handled after what is pending.
                let later = self.plan.handle(event, self.now);
                actions.splice(0..0, later.into_iter().rev());
            }
        }

        fn run(&mut self, seconds: u64) {
            for _ in 0..seconds {
                self.now.mono += Duration::from_secs(1);
                self.now.unix += 1;
                self.tell(Event::Tick);
            }
        }

        fn relays_advertised(&self) -> BTreeSet<RelayId> {
            self.advertised.iter().map(|point| point.relay).collect()
        }
    }

    #[test]
    fn it_keeps_as_many_points_as_wanted_each_at_its_own_relay() {
        let mut world = World::new(3);
        world.tell(Event::Others { stronger: BTreeSet::from([relay(1)]), weaker: BTreeSet::from([relay(2)]) });
        world.run(5);
        assert_eq!(world.relays_advertised(), BTreeSet::from([relay(3), relay(4), relay(5)]));
    }

    #[test]
    fn a_lost_point_comes_back_with_its_keys_and_a_dead_relay_is_replaced() {
        let mut world = World::new(2);
        world.run(3);
        let before = world.advertised.clone();
        let slot = *world.open.keys().next().unwrap();
        world.tell(Event::Lost(slot));
        world.run(2);
        assert_eq!(world.advertised, before);
        let dead = world.open[&slot];
        world.dead.insert(dead);
        world.tell(Event::Lost(slot));
        world.run(60);
        assert_eq!(world.advertised.len(), 2);
        assert!(!world.relays_advertised().contains(&dead));
    }

    #[test]
    fn a_restart_serves_where_it_served() {
        let mut world = World::new(2);
        let stored =
            |n: u8| Stored { slot: SlotId(n.into()), relay: relay(n), created: world.now.unix - 60, introductions: 5 };
        world.tell(Event::Restored(vec![(stored(7), LIFETIME), (stored(8), LIFETIME)]));
        world.run(2);
        assert_eq!(world.relays_advertised(), BTreeSet::from([relay(7), relay(8)]));
        assert_eq!(world.open.keys().copied().collect::<Vec<_>>(), [SlotId(7), SlotId(8)]);
    }

    #[test]
    fn of_two_that_chose_one_relay_at_once_the_weaker_closes_its_point() {
        let mut world = World::new(2);
        world.run(3);
        world.tell(Event::Others { stronger: BTreeSet::from([relay(1)]), weaker: BTreeSet::new() });
        world.run(3);
        assert_eq!(world.relays_advertised(), BTreeSet::from([relay(2), relay(3)]));
        assert_eq!(world.open.len(), 2, "nobody knows the old one");
    }

    #[test]
    fn before_it_knows_the_others_it_opens_only_what_it_had() {
        let mut world = World::new(2);
        world.plan.handle(Event::MayChoose(false), world.now);
        let stored = Stored { slot: SlotId(1), relay: relay(4), created: world.now.unix - 5, introductions: 0 };
        world.tell(Event::Restored(vec![(stored, LIFETIME)]));
        world.run(3);
        assert_eq!(world.relays_advertised(), BTreeSet::from([relay(4)]));
        world.tell(Event::Others { stronger: BTreeSet::new(), weaker: BTreeSet::from([relay(1)]) });
        world.tell(Event::MayChoose(true));
        world.run(3);
        assert_eq!(world.relays_advertised(), BTreeSet::from([relay(4), relay(2)]));
    }

    #[test]
    fn the_weaker_node_leaves_a_shared_relay_and_lingers_there() {
        let mut world = World::new(2);
        world.run(UNKNOWN + 3);
        world.tell(Event::Others { stronger: BTreeSet::from([relay(1)]), weaker: BTreeSet::from([relay(2)]) });
        world.run(3);
        assert_eq!(world.relays_advertised(), BTreeSet::from([relay(2), relay(3)]));
        assert_eq!(world.open.len(), 3, "the old one still serves");
        world.run(LINGER.as_secs());
        assert_eq!(world.open.len(), 2);
    }

    #[test]
    fn points_rotate_by_age_and_by_wear() {
        let mut world = World::new(1);
        world.run(2);
        let first = world.relays_advertised();
        let slot = *world.open.keys().next().unwrap();
        world.tell(Event::Introductions(slot, 20_000));
        world.run(2);
        let second = world.relays_advertised();
        assert_ne!(first, second);
        world.now.unix += 70_001;
        world.now.mono += Duration::from_secs(70_001);
        world.run(3);
        assert_eq!(world.relays_advertised().len(), 1);
        assert_ne!(world.relays_advertised(), second);
    }

    #[test]
    fn leaving_withdraws_everything_and_serves_on() {
        let mut world = World::new(2);
        world.run(3);
        world.tell(Event::Want(0));
        assert!(world.advertised.is_empty());
        assert_eq!(world.open.len(), 2);
    }

    #[test]
    fn without_a_free_relay_it_waits_and_takes_the_first_that_frees() {
        let mut world = World::new(2);
        world.relays = 1;
        world.run(30);
        assert_eq!(world.advertised.len(), 1);
        world.relays = 2;
        world.run(60);
        assert_eq!(world.advertised.len(), 2);
    }
}
