//! The plan against findings made up here.

use strum::IntoEnumIterator;

use super::*;
use crate::canary::findings::DirectoryFinding;
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::record::RelayId;

const PERIOD: PeriodId = PeriodId { number: 7, length_minutes: 1440, offset_seconds: 0 };
const MINUTE: Duration = Duration::from_secs(60);

fn service(n: u8) -> ServiceId {
    ServiceId::from_public_key([n; 32])
}

fn relay(n: u8) -> RelayId {
    RelayId { rsa: FixedBytes([n; 20]), ed25519: FixedBytes([n; 32]) }
}

fn key(n: u8) -> PointKey {
    FixedBytes([n; 32])
}

fn directory(n: u8, held: Held) -> DirectoryFinding {
    DirectoryFinding { period: PERIOD, directory: Directory { relay: relay(n) }, held, took: Duration::ZERO }
}

fn failed(stage: VisitStage) -> Outcome {
    Outcome::Failed(stage, "in vain".into())
}

/// A run at service 1 whose directory is current. The points below 10 are this node's.
fn found<const N: usize>(points: [(u8, Outcome); N]) -> Findings {
    let finding = |(n, outcome)| PointFinding {
        key: key(n),
        relay: relay(n),
        owner: None,
        own: n < 10,
        outcome,
        took: Duration::ZERO,
    };
    Findings {
        own: points.iter().map(|(n, _)| key(*n)).filter(|it| it.0[0] < 10).collect(),
        points: points.map(finding).into(),
        directories: vec![directory(1, Held::Current(5))],
        problem: None,
        ..Findings::none(service(1), "")
    }
}

fn held(held: Held) -> Findings {
    Findings { directories: vec![directory(1, held)], ..found([]) }
}

struct World {
    plan: CanaryPlan,
    now: Duration,
}

impl World {
    fn new(publishes: bool) -> Self {
        Self::with_client(publishes, false)
    }

    fn with_client(publishes: bool, renewed: bool) -> Self {
        let mut world = Self { plan: CanaryPlan::new(CanarySettings::default(), renewed, 0.5), now: Duration::ZERO };
        assert_eq!(world.handle(Event::Services { all: vec![service(1)], publishes }), []);
        world
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.plan.handle(event, Now { mono: self.now, unix: self.now.as_secs() })
    }

    /// Lets time pass until the next run is due; returns its start and its scope.
    fn next_run(&mut self) -> (Duration, ServiceId, Scope) {
        let now = Now { mono: self.now, unix: 0 };
        self.now = self.now.max(self.plan.next_timeout(now).expect("no run is due"));
        match self.handle(Event::Tick).as_slice() {
            [Action::Run { service, scope }] => (self.now, *service, scope.clone()),
            other => panic!("{other:?}"),
        }
    }

    /// Ends a run of the plan; returns the repairs.
    fn finish(&mut self, findings: Findings) -> Vec<Repair> {
        self.end(findings, false)
    }

    /// Ends a run by hand; returns the repairs.
    fn by_hand(&mut self, findings: Findings) -> Vec<Repair> {
        self.end(findings, true)
    }

    fn end(&mut self, findings: Findings, by_hand: bool) -> Vec<Repair> {
        let actions = self.handle(Event::Finished { findings, by_hand, jitter: 0.5 });
        let repair = |action| match action {
            Action::Repair { repair, why } => {
                assert!(!why.is_empty());
                Some(repair)
            }
            Action::Run { .. } => None,
        };
        actions.into_iter().filter_map(repair).collect()
    }

    /// The repairs that follow from `times` such runs by hand, a minute apart.
    fn repairs(&mut self, times: usize, findings: &Findings) -> Vec<Repair> {
        let mut all = Vec::new();
        for _ in 0..times {
            self.now += MINUTE;
            all.extend(self.by_hand(findings.clone()));
        }
        all
    }
}

fn republish(n: u8) -> Repair {
    Repair::Republish { service: service(1), period: PERIOD, directory: Directory { relay: relay(n) } }
}

fn replace(n: u8) -> Repair {
    Repair::ReplacePoint { service: service(1), point: key(n) }
}

#[test]
fn the_publisher_runs_every_quarter_of_an_hour_and_others_eight_times_less_often() {
    for (publishes, minutes) in [(true, 15), (false, 120)] {
        let mut world = World::new(publishes);
        let (first, ..) = world.next_run();
        assert_eq!(first, 5 * MINUTE);
        world.finish(found([(1, Outcome::Reached)]));
        let (second, ..) = world.next_run();
        assert_eq!(second - first, minutes * MINUTE);
        assert_eq!(world.handle(Event::Tick), [], "one run at a time");
    }
}

#[test]
fn an_interval_is_jittered_by_a_quarter() {
    assert_eq!(
        [0.0, 0.5, 1.0, 9.0].map(|jitter| jittered(4 * MINUTE, jitter) / 60),
        [3, 4, 5, 5].map(Duration::from_secs)
    );
}

#[test]
fn services_take_turns() {
    let mut world = World::new(true);
    world.handle(Event::Services { all: vec![service(3), service(1), service(2)], publishes: true });
    let mut turns = Vec::new();
    for _ in 0..4 {
        let (_, next, _) = world.next_run();
        turns.push(next);
        world.finish(Findings { service: next, ..found([(1, Outcome::Reached)]) });
    }
    assert_eq!(turns, [1, 2, 3, 1].map(service));
}

#[test]
fn settings_and_the_lease_take_effect_at_once() {
    let mut world = World::new(false);
    world.next_run();
    world.finish(found([(1, Outcome::Reached)]));
    let start = world.now;
    world.handle(Event::Services { all: vec![service(1)], publishes: true });
    assert_eq!(world.plan.next_timeout(Now { mono: start, unix: 0 }), Some(start + 15 * MINUTE));
    world.handle(Event::Settings(CanarySettings { enabled: true, interval: MINUTE }));
    assert_eq!(world.next_run().0, start + MINUTE);
    world.finish(found([(1, Outcome::Reached)]));
    world.handle(Event::Settings(CanarySettings { enabled: false, interval: MINUTE }));
    assert_eq!(world.plan.next_timeout(Now { mono: world.now, unix: 0 }), None);
    world.now += 60 * MINUTE;
    assert_eq!(world.handle(Event::Tick), []);
}

#[test]
fn a_fault_is_tried_again_three_times_and_then_in_turn() {
    let mut world = World::new(false);
    world.next_run();
    let faulty = || {
        let mut findings = found([(1, Outcome::Reached), (20, failed(VisitStage::Introduction))]);
        findings.directories.push(directory(2, Held::Missing));
        findings
    };
    let start = world.now;
    assert_eq!(world.finish(faulty()), [], "others repair what is theirs");
    for minute in 1..=MOST_REPEATS {
        let (at, _, scope) = world.next_run();
        assert_eq!(at, start + minute * MINUTE);
        let directories = [Directory { relay: relay(2) }].into();
        assert_eq!(scope, Scope::Again { directories, points: [key(20)].into() });
        world.finish(Findings { repeated: true, ..faulty() });
    }
    // Until all is well, in the publisher's interval.
    let (at, _, scope) = world.next_run();
    assert_eq!(at, start + 15 * MINUTE);
    assert!(matches!(scope, Scope::Turn { .. }));
    world.finish(found([(1, Outcome::Reached)]));
    assert_eq!(world.next_run().0, at + 120 * MINUTE);
}

#[test]
fn what_succeeds_again_is_well() {
    let mut world = World::new(true);
    world.next_run();
    world.finish(found([(1, Outcome::Reached), (20, failed(VisitStage::Rendezvous))]));
    assert_eq!((world.plan.summary().failures, world.plan.summary().last_success), (1, None));
    world.next_run();
    world.finish(Findings { repeated: true, directories: Vec::new(), ..found([(20, Outcome::Reached)]) });
    let (_, last) = &world.plan.summary().last[&service(1)];
    assert!(last.all_well() && last.points.len() == 2 && last.directories.len() == 1, "{last:?}");
    assert_eq!(world.plan.summary().last_success, Some(world.now.as_secs()));
    // A point that the descriptor no longer names is forgotten.
    world.by_hand(found([(1, Outcome::Reached), (20, failed(VisitStage::Introduction))]));
    world.next_run();
    world.finish(Findings { repeated: true, ..found([]) });
    assert!(world.plan.summary().last[&service(1)].1.all_well());
}

#[test]
fn the_publisher_doubts_directories_without_the_current_descriptor() {
    let faults =
        [Held::Missing, Held::Old { revision: 4, announced: 5 }, Held::Differs(5), Held::Unreadable("noise".into())];
    for fault in faults {
        assert_eq!(World::new(true).by_hand(held(fault.clone())), [republish(1)]);
        assert_eq!(World::new(false).by_hand(held(fault)), []);
    }
    assert_eq!(World::new(true).by_hand(held(Held::Current(5))), []);
    assert_eq!(World::new(true).by_hand(held(Held::NoAnswer("late".into()))), []);
}

#[test]
fn a_directory_is_doubted_less_and_less_often_until_it_is_current() {
    let mut world = World::new(true);
    let mut doubted = Vec::new();
    for minute in 0..40 {
        if world.by_hand(held(Held::Missing)) == [republish(1)] {
            doubted.push(minute);
        }
        world.now += MINUTE;
    }
    assert_eq!(doubted, [0, 2, 6, 14, 30]);
    world.by_hand(held(Held::Current(5)));
    assert_eq!(world.by_hand(held(Held::Missing)), [republish(1)]);
}

#[test]
fn all_directories_together_have_a_budget() {
    let mut world = World::new(true);
    let all = || Findings { directories: (0..40).map(|n| directory(n, Held::Missing)).collect(), ..found([]) };
    assert_eq!(world.by_hand(all()).len(), 16);
    assert_eq!(world.by_hand(all()).len(), 0);
    world.now += HOUR;
    assert_eq!(world.by_hand(all()).len(), 16);
}

#[test]
fn a_point_is_replaced_after_three_failures_of_four() {
    let mut world = World::new(false);
    let findings = |outcome| found([(1, Outcome::Reached), (2, outcome)]);
    let (fails, works) = (findings(failed(VisitStage::Introduction)), findings(Outcome::Reached));
    assert_eq!(world.repairs(2, &fails), []);
    assert_eq!(world.repairs(1, &works), []);
    assert_eq!(world.repairs(1, &fails), [replace(2)]);
    // Its history begins again.
    assert_eq!(world.repairs(2, &fails), []);
    // Half of the visits is not enough.
    let mut world = World::new(false);
    for _ in 0..10 {
        assert_eq!(world.repairs(1, &fails), []);
        assert_eq!(world.repairs(1, &works), []);
    }
}

#[test]
fn points_of_others_and_refused_ports_are_not_repaired() {
    let mut world = World::new(true);
    let theirs = found([(1, Outcome::Reached), (20, failed(VisitStage::Introduction))]);
    assert_eq!(world.repairs(10, &theirs), []);
    let ports = found([(1, failed(VisitStage::Port)), (2, failed(VisitStage::Port))]);
    assert_eq!(world.repairs(10, &ports), []);
}

#[test]
fn a_node_without_room_for_clients_does_not_blame_its_points() {
    let mut world = World::new(true);
    let busy = |stage| Findings { busy: true, ..found([(1, failed(stage)), (2, Outcome::Reached)]) };
    assert_eq!(world.repairs(10, &busy(VisitStage::Rendezvous)), []);
    assert_eq!(world.repairs(3, &busy(VisitStage::Introduction)), [replace(1)]);
}

#[test]
fn replaced_points_have_a_budget() {
    let mut world = World::new(false);
    let fault = || failed(VisitStage::Rendezvous);
    let all = found([(1, fault()), (2, fault()), (3, fault()), (4, fault()), (5, fault()), (6, Outcome::Reached)]);
    let replaced = world.repairs(10, &all);
    assert_eq!(replaced.len(), 4, "{replaced:?}");
    assert_eq!(world.repairs(49, &all).len(), 0);
    assert!(!world.repairs(4, &all).is_empty(), "an hour later");
}

#[test]
fn a_node_whose_own_network_is_down_repairs_nothing() {
    let mut world = World::new(true);
    let down = Findings {
        directories: vec![directory(1, Held::NoAnswer("no circuit".into()))],
        ..found([(1, failed(VisitStage::Network)), (2, Outcome::NotTried)])
    };
    assert_eq!(world.repairs(600, &down), []);
    assert_eq!(world.repairs(600, &Findings::none(service(1), "Tor is not ready")), []);
    // Nothing is held against the points afterwards.
    assert_eq!(world.repairs(2, &found([(1, failed(VisitStage::Introduction)), (2, Outcome::Reached)])), []);
    assert_eq!(world.plan.summary().failures, 1202);
}

#[test]
fn steps_rise_while_no_point_of_this_node_is_reached() {
    let mut world = World::new(true);
    let all =
        found([(1, failed(VisitStage::Rendezvous)), (2, failed(VisitStage::Introduction)), (20, Outcome::Reached)]);
    assert_eq!(world.repairs(2, &all), []);
    assert_eq!(world.repairs(1, &all), [Repair::RebuildCircuits]);
    assert_eq!(world.repairs(2, &all), []);
    assert_eq!(world.repairs(1, &all), [replace(1), replace(2)]);
    assert_eq!(world.repairs(30, &all), [], "the daemon has just started");
    world.now += CLIENT_TRIAL;
    assert_eq!(world.repairs(1, &all), [Repair::RenewTor]);
    assert_eq!(world.plan.summary().repairs.values().sum::<u64>(), 4);
}

#[test]
fn the_daemon_ends_where_a_second_client_has_the_same_fault_from_its_start() {
    let all = found([(1, failed(VisitStage::Rendezvous))]);
    let smaller = [Repair::RebuildCircuits, replace(1)];
    let mut world = World::with_client(true, true);
    assert_eq!(world.repairs(6, &all), smaller);
    assert_eq!(world.repairs(3, &all), [Repair::Exit]);
    // A client that has worked for long is replaced in the process again.
    let mut world = World::with_client(true, true);
    world.now += CLIENT_TRIAL;
    assert_eq!(world.repairs(6, &all), smaller);
    assert_eq!(world.repairs(3, &all), [Repair::RenewTor]);
}

#[test]
fn one_reached_point_begins_the_steps_anew() {
    let mut world = World::new(true);
    let all = found([(1, failed(VisitStage::Rendezvous)), (2, failed(VisitStage::Rendezvous))]);
    assert_eq!(world.repairs(3, &all), [Repair::RebuildCircuits]);
    assert_eq!(world.repairs(1, &found([(1, Outcome::Reached), (2, failed(VisitStage::Rendezvous))])), []);
    world.now += CLIENT_TRIAL;
    assert_eq!(world.repairs(2, &all), [replace(2)]);
}

#[test]
fn circuits_are_rebuilt_once_an_hour() {
    let mut world = World::new(true);
    let all = found([(1, failed(VisitStage::Rendezvous))]);
    assert_eq!(world.repairs(3, &all), [Repair::RebuildCircuits]);
    world.repairs(4, &found([(1, Outcome::Reached)]));
    assert_eq!(world.repairs(20, &all), []);
    world.now += HOUR;
    assert_eq!(world.repairs(1, &all), [Repair::RebuildCircuits]);
}

#[test]
fn own_points_are_visited_first_and_then_those_of_the_longest_ago() {
    let points: Vec<_> = (1..=6).chain(20..=26).map(|n| (key(n), n < 10)).collect();
    let none = BTreeMap::new();
    assert_eq!(choose(&points, &none), [1, 2, 3, 4, 20, 21].map(key));
    let tried: BTreeMap<_, _> =
        [1, 2, 3, 4, 20, 21].into_iter().map(|n| (key(n), Duration::from_secs(n.into()))).collect();
    assert_eq!(choose(&points, &tried), [5, 6, 1, 2, 22, 23].map(key));
    assert_eq!(choose(&points[6..], &tried), [22, 23, 24, 25, 26, 20].map(key));
}

#[test]
fn all_points_are_visited_in_turn() {
    let mut world = World::new(true);
    let points: Vec<_> = (1..=3).chain(20..=36).map(|n| (key(n), n < 10)).collect();
    let mut visited = BTreeSet::new();
    for _ in 0..6 {
        let (_, _, Scope::Turn { tried }) = world.next_run() else { panic!("a repeated run") };
        let chosen = choose(&points, &tried);
        let mut findings = found([]);
        for key in &chosen {
            findings.points.push(PointFinding {
                key: *key,
                relay: relay(1),
                owner: None,
                own: false,
                outcome: Outcome::Reached,
                took: Duration::ZERO,
            });
        }
        visited.extend(chosen);
        world.finish(findings);
    }
    assert_eq!(visited.len(), 20);
}

#[test]
fn every_kind_of_repair_has_a_name_and_a_budget() {
    let names: BTreeSet<_> = RepairKind::iter().map(RepairKind::name).collect();
    assert_eq!(names, ["exit", "rebuild_circuits", "renew_tor", "replace_point", "republish"].into());
    assert!(RepairKind::iter().all(|kind| kind.per_hour() > 0));
}
