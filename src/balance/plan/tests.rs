//! The plan against a simulated network that opens every point it is asked for.

use super::*;
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::record::{IntroPoint, PointNonce};

const LIFETIME: Lifetime = Lifetime { seconds: 70_000, introductions: 20_000 };

fn relay(n: u8) -> RelayId {
    RelayId { rsa: FixedBytes([n; 20]), ed25519: FixedBytes([n; 32]) }
}

fn point(relay: RelayId, keys: u8) -> ServedPoint {
    let point = IntroPoint {
        relay,
        link_specifiers: Vec::new(),
        onion_key: FixedBytes([keys; 32]),
        session_key: FixedBytes([keys; 32]),
        encryption_key: FixedBytes([keys; 32]),
    };
    ServedPoint { point, nonce: PointNonce(FixedBytes([keys; 16])) }
}

/// Opens every point it is asked for, at one of the relays 1..=`relays`, unless the relay is dead.
struct World {
    plan: BalancePlan,
    now: Now,
    relays: u8,
    dead: BTreeSet<RelayId>,
    advertised: Vec<ServedPoint>,
    open: BTreeMap<SlotId, RelayId>,
    retired: BTreeSet<SlotId>,
}

impl World {
    fn new(want: usize) -> Self {
        let now = Now { mono: Duration::from_secs(100), unix: 1_800_000_000 };
        let plan = BalancePlan::new(want);
        let (dead, retired) = (BTreeSet::new(), BTreeSet::new());
        Self { plan, now, relays: 9, dead, advertised: Vec::new(), open: BTreeMap::new(), retired }
    }

    fn handle(&mut self, event: Event) {
        let mut actions = self.plan.handle(event, self.now);
        while let Some(action) = actions.pop() {
            let event = match action {
                Action::Advertise(points) => {
                    self.advertised = points;
                    continue;
                }
                Action::Retire(slot) => {
                    self.retired.insert(slot);
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
            // The last `Advertise` must win: follow-up actions are handled after those that are
            // pending.
            let later = self.plan.handle(event, self.now);
            actions.splice(0..0, later.into_iter().rev());
        }
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now.mono += Duration::from_secs(1);
            self.now.unix += 1;
            self.handle(Event::Tick);
        }
    }

    fn relays_advertised(&self) -> BTreeSet<RelayId> {
        self.advertised.iter().map(|served| served.point.relay).collect()
    }
}

#[test]
fn a_node_keeps_the_wanted_number_of_points_each_at_its_own_relay() {
    let mut world = World::new(3);
    world.handle(Event::RelaysOfOthers { must_leave: BTreeSet::from([relay(1)]), avoid: BTreeSet::from([relay(2)]) });
    world.run(5);
    assert_eq!(world.relays_advertised(), BTreeSet::from([relay(3), relay(4), relay(5)]));
}

#[test]
fn a_lost_point_comes_back_with_its_keys_and_a_dead_relay_is_replaced() {
    let mut world = World::new(2);
    world.run(3);
    let before = world.advertised.clone();
    let slot = *world.open.keys().next().unwrap();
    world.handle(Event::Lost(slot));
    world.run(2);
    assert_eq!(world.advertised, before);
    let dead = world.open[&slot];
    world.dead.insert(dead);
    world.handle(Event::Lost(slot));
    world.run(60);
    assert_eq!(world.advertised.len(), 2);
    assert!(!world.relays_advertised().contains(&dead));
}

#[test]
fn a_dead_relay_that_comes_back_serves_clients_that_know_the_old_point() {
    let mut world = World::new(2);
    world.run(3);
    let (slot, dead) = world.open.pop_first().unwrap();
    world.dead.insert(dead);
    world.handle(Event::Lost(slot));
    world.run(60);
    assert!(world.retired.contains(&slot) && !world.open.contains_key(&slot));
    world.dead.clear();
    world.run(RETIRED_BACKOFF.longest.as_secs());
    assert_eq!(world.open.get(&slot), Some(&dead));
    assert!(!world.relays_advertised().contains(&dead));
}

fn stored(world: &World, n: u8) -> Stored {
    let (slot, relay, created) = (SlotId(n.into()), relay(n), world.now.unix - 60);
    Stored { slot, relay, created, introductions: 5, lifetime: LIFETIME, retired: None }
}

#[test]
fn a_restart_serves_where_it_served() {
    let mut world = World::new(2);
    let restored = vec![stored(&world, 7), stored(&world, 8)];
    world.handle(Event::Restored(restored));
    world.run(2);
    assert_eq!(world.relays_advertised(), BTreeSet::from([relay(7), relay(8)]));
    assert_eq!(world.open.keys().copied().collect::<Vec<_>>(), [SlotId(7), SlotId(8)]);
}

#[test]
fn a_restart_after_a_rotation_advertises_the_new_points_and_keeps_the_old_open() {
    let mut world = World::new(2);
    let old = |n: u8, ago: Duration| Stored {
        retired: Some(world.now.unix - ago.as_secs()),
        created: world.now.unix - LIFETIME.seconds,
        ..stored(&world, n)
    };
    let lingering = old(1, LINGER - Duration::from_secs(30));
    let over = old(2, LINGER);
    let restored = vec![lingering, over, stored(&world, 3), stored(&world, 4)];
    world.handle(Event::Restored(restored));
    world.run(2);
    assert_eq!(world.relays_advertised(), BTreeSet::from([relay(3), relay(4)]));
    assert_eq!(world.open.keys().copied().collect::<Vec<_>>(), [SlotId(1), SlotId(3), SlotId(4)]);
    assert!(world.retired.is_empty(), "none of them retires again");
    world.run(30);
    assert_eq!(world.open.keys().copied().collect::<Vec<_>>(), [SlotId(3), SlotId(4)]);
}

#[test]
fn the_weaker_of_two_nodes_that_chose_one_relay_at_once_closes_its_point() {
    let mut world = World::new(2);
    world.run(3);
    world.handle(Event::RelaysOfOthers { must_leave: BTreeSet::from([relay(1)]), avoid: BTreeSet::new() });
    world.run(3);
    assert_eq!(world.relays_advertised(), BTreeSet::from([relay(2), relay(3)]));
    assert_eq!(world.open.len(), 2, "no client knows the old point");
}

#[test]
fn a_node_opens_only_its_earlier_points_before_it_knows_the_others() {
    let mut world = World::new(2);
    world.plan.handle(Event::MayChoose(false), world.now);
    let restored = vec![stored(&world, 4)];
    world.handle(Event::Restored(restored));
    world.run(3);
    assert_eq!(world.relays_advertised(), BTreeSet::from([relay(4)]));
    world.handle(Event::RelaysOfOthers { must_leave: BTreeSet::new(), avoid: BTreeSet::from([relay(1)]) });
    world.handle(Event::MayChoose(true));
    world.run(3);
    assert_eq!(world.relays_advertised(), BTreeSet::from([relay(4), relay(2)]));
}

#[test]
fn the_weaker_node_leaves_a_shared_relay_and_still_serves_there_for_a_while() {
    let mut world = World::new(2);
    world.run(UNKNOWN_TO_CLIENTS_SECONDS + 3);
    world.handle(Event::RelaysOfOthers { must_leave: BTreeSet::from([relay(1)]), avoid: BTreeSet::from([relay(2)]) });
    world.run(3);
    assert_eq!(world.relays_advertised(), BTreeSet::from([relay(2), relay(3)]));
    assert_eq!(world.open.len(), 3, "the old point still serves");
    world.run(LINGER.as_secs());
    assert_eq!(world.open.len(), 2);
}

#[test]
fn points_rotate_by_age_and_by_wear() {
    let mut world = World::new(1);
    world.run(2);
    let first = world.relays_advertised();
    let slot = *world.open.keys().next().unwrap();
    world.handle(Event::Introductions(slot, 20_000));
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
fn a_member_that_follows_this_node_to_its_relays_makes_it_move_only_a_few_times() {
    let mut world = World::new(2);
    world.relays = 100;
    world.run(2);
    let mut opened = 0;
    for _ in 0..1800 {
        let before: BTreeSet<SlotId> = world.open.keys().copied().collect();
        world.run(1);
        let must_leave = world.relays_advertised();
        world.handle(Event::RelaysOfOthers { must_leave, avoid: BTreeSet::new() });
        opened += world.open.keys().filter(|slot| !before.contains(slot)).count();
        assert_eq!(world.advertised.len(), 2);
    }
    assert_eq!(opened, MOVES.0 as usize);
    let relays = world.relays_advertised();
    world.run(MOVES.1.as_secs());
    assert_eq!(world.relays_advertised().intersection(&relays).count(), 1, "one more may move");
}

#[test]
fn a_relay_that_closes_circuits_at_once_is_left() {
    let mut world = World::new(1);
    world.run(2 + LASTING.as_secs());
    let (slot, bad) = world.open.pop_first().unwrap();
    let mut shown = 0;
    for lost in 1.. {
        world.handle(Event::Lost(slot));
        world.run(2);
        if world.retired.contains(&slot) {
            assert_eq!(lost, 1 + MAX_LOSSES.1);
            break;
        }
        // It is retried with growing pauses.
        while world.plan.slots[&slot].circuit.is_due(Duration::MAX) {
            world.run(1);
        }
        shown += usize::from(world.relays_advertised().contains(&bad));
    }
    assert!(shown <= 4, "advertised after {shown} losses");
    world.run(3);
    assert_eq!(world.advertised.len(), 1);
    assert!(!world.relays_advertised().contains(&bad));
}

#[test]
fn a_lasting_circuit_makes_up_for_earlier_short_ones() {
    let mut world = World::new(1);
    world.run(2);
    let slot = *world.open.keys().next().unwrap();
    for _ in 0..20 {
        world.handle(Event::Lost(slot));
        world.run(LASTING.as_secs() + 40);
        assert_eq!(world.advertised.len(), 1);
    }
    assert!(world.retired.is_empty());
}

#[test]
fn a_node_without_a_free_relay_waits_and_takes_the_first_free_one() {
    let mut world = World::new(2);
    world.relays = 1;
    world.run(30);
    assert_eq!(world.advertised.len(), 1);
    world.relays = 2;
    world.run(60);
    assert_eq!(world.advertised.len(), 2);
}

#[test]
fn a_deaf_point_is_replaced_at_another_relay_and_lingers() {
    let mut world = World::new(2);
    world.handle(Event::Tick);
    let deaf = world.advertised[0].clone();
    world.handle(Event::Deaf(deaf.point.session_key));
    assert_eq!(world.advertised.len(), 2);
    assert!(world.advertised.iter().all(|point| point.point.relay != deaf.point.relay), "{:?}", world.advertised);
    assert!(world.open.values().any(|relay| *relay == deaf.point.relay), "clients with an old descriptor may be lucky");
    let advertised = world.advertised.clone();
    world.handle(Event::Deaf(deaf.point.session_key));
    world.handle(Event::Deaf(FixedBytes([0xee; 32])));
    assert_eq!(world.advertised, advertised);
}

#[test]
fn points_that_are_handed_over_are_not_opened_again_and_stay_advertised() {
    let mut world = World::new(3);
    world.handle(Event::Tick);
    let advertised = world.advertised.clone();
    assert_eq!((advertised.len(), world.open.len()), (3, 3));
    world.handle(Event::HandOver);
    for slot in world.open.keys().copied().collect::<Vec<_>>() {
        world.open.remove(&slot);
        world.handle(Event::Lost(slot));
    }
    world.run(60);
    assert!(world.open.is_empty() && world.retired.is_empty());
    assert_eq!(world.advertised, advertised, "others find the points in the node's last record");
}
