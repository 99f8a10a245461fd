//! Tests of the circuit plan: single cases, and properties that hold for any sequence of events.

use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn listed(relay: u8) -> RendezvousPoint {
    RendezvousPoint { relay: [relay; 20], listed: true }
}

fn made_up(relay: u64) -> RendezvousPoint {
    let mut bytes = [0xee; 20];
    bytes[..8].copy_from_slice(&relay.to_be_bytes());
    RendezvousPoint { relay: bytes, listed: false }
}

/// Introduces a client; returns its circuit, and the one that it replaced.
fn introduce(
    plan: &mut CircuitPlan,
    from: RendezvousPoint,
    (making, open): (usize, usize),
    now: Duration,
) -> Option<(CircuitId, Option<CircuitId>)> {
    let bounds = CircuitBounds { making, open, refusals: None };
    match *plan.handle(Event::Introduced { at: from, bounds }, now).as_slice() {
        [Action::Make(id)] => Some((id, None)),
        [Action::GiveUp(victim), Action::Make(id)] => Some((id, Some(victim))),
        [Action::Refuse] => None,
        ref other => panic!("not an answer: {other:?}"),
    }
}

/// Introduces and meets a client; returns its circuit, and the open one that it replaced.
fn meet(plan: &mut CircuitPlan, most: usize, now: Duration) -> Option<(CircuitId, Option<CircuitId>)> {
    let (id, _) = introduce(plan, listed(1), (999, most), now)?;
    match *plan.handle(Event::Met { id, most }, now).as_slice() {
        [] => Some((id, None)),
        [Action::Close(victim)] => Some((id, Some(victim))),
        ref other => panic!("not an answer: {other:?}"),
    }
}

#[test]
fn a_circuit_whose_streams_are_refused_again_and_again_is_closed() {
    let mut plan = CircuitPlan::default();
    let [(hog, _), (other, _)] = [0, 0].map(|now| meet(&mut plan, 9, at(now)).unwrap());
    let exceeded = |plan: &mut CircuitPlan, id, now| plan.handle(Event::Exceeded { id, most: 3 }, at(now));
    // Two in each minute are too few.
    for now in [1, 2, 61, 62, 121, 122] {
        assert_eq!(exceeded(&mut plan, hog, now), [], "{now}");
    }
    assert_eq!(exceeded(&mut plan, other, 122), []);
    assert_eq!(exceeded(&mut plan, hog, 123), [Action::CloseForRefusals(hog)]);
    assert_eq!(exceeded(&mut plan, hog, 123), [], "it is closed");
    assert_eq!(plan.open().collect::<Vec<_>>(), [(other, at(0), 0)]);
}

#[test]
fn a_rendezvous_point_that_never_answers_gives_its_places_to_others() {
    let mut plan = CircuitPlan::default();
    let dead: Vec<_> = (0..8).map(|n| introduce(&mut plan, listed(9), (8, 99), at(n)).unwrap().0).collect();
    for (number, expected) in dead.iter().take(6).enumerate() {
        let (honest, victim) = introduce(&mut plan, listed(number as u8), (8, 99), at(8)).unwrap();
        assert_eq!(victim, Some(*expected));
        plan.handle(Event::Ended(honest), at(8));
        introduce(&mut plan, listed(9), (8, 99), at(8)).unwrap();
    }
}

#[test]
fn a_node_that_stops_closes_only_circuits_on_which_no_client_waits() {
    let mut plan = CircuitPlan::default();
    let mut circuit = || meet(&mut plan, 99, at(0)).unwrap().0;
    let (unused, asked, used, streaming) = (circuit(), circuit(), circuit(), circuit());
    plan.handle(Event::Asked(asked), at(1));
    for id in [used, streaming] {
        plan.handle(Event::Asked(id), at(1));
        plan.handle(Event::Accepted(id), at(2));
        plan.handle(Event::Answered(id), at(2));
    }
    plan.handle(Event::Released(used), at(4));
    let idle = at(5);
    assert_eq!(plan.close_idle(idle, at(4)), []);
    assert_eq!(plan.close_idle(idle, at(5)), [unused]);
    assert_eq!(plan.close_idle(idle, at(9)), [used]);
    // Its request is refused: the client may ask for another port.
    plan.handle(Event::Answered(asked), at(20));
    assert_eq!(plan.close_idle(idle, at(24)), []);
    assert_eq!(plan.close_idle(idle, at(25)), [asked]);
    assert_eq!(plan.close_idle(idle, at(9999)), [], "a stream keeps its circuit");
    assert_eq!(plan.counts().open, 1);
}

#[test]
fn unlisted_rendezvous_points_are_given_up_first_and_displace_no_listed_one() {
    let mut plan = CircuitPlan::default();
    let (honest, _) = introduce(&mut plan, listed(1), (4, 99), at(0)).unwrap();
    let fake: Vec<_> = (0..3).map(|n| introduce(&mut plan, made_up(n), (4, 99), at(n)).unwrap().0).collect();
    assert_eq!(introduce(&mut plan, made_up(7), (4, 99), at(3)), None, "none is old enough to be replaced");
    assert_eq!(introduce(&mut plan, made_up(8), (4, 99), at(20)).unwrap().1, Some(fake[0]));
    assert_eq!(introduce(&mut plan, listed(2), (4, 99), at(20)).unwrap().1, Some(fake[1]));
    assert!(plan.making.contains_key(&honest));
}

#[test]
fn new_clients_are_not_given_up_for_further_new_clients() {
    let mut plan = CircuitPlan::default();
    for relay in 0..8 {
        introduce(&mut plan, listed(relay), (8, 99), at(0)).unwrap();
    }
    assert_eq!(introduce(&mut plan, listed(50), (8, 99), at(4)), None);
    assert!(introduce(&mut plan, listed(50), (8, 99), at(5)).is_some());
}

#[test]
fn a_slow_failure_is_tried_again_less_than_a_quick_one() {
    let mut plan = CircuitPlan::default();
    let tries = |plan: &mut CircuitPlan, took, most| {
        let (id, _) = introduce(plan, listed(1), (most, 99), at(0)).unwrap();
        let tries = 1 + (0..20).take_while(|_| plan.failed(id, took, most, at(1)).is_some()).count();
        plan.handle(Event::Ended(id), at(1));
        tries
    };
    assert_eq!(tries(&mut plan, Duration::from_millis(300), 9), 6);
    assert_eq!(tries(&mut plan, at(9), 9), 3);
    assert_eq!(tries(&mut plan, at(9), 1), 1, "more than half of the places are taken");
    let (id, _) = introduce(&mut plan, listed(1), (9, 99), at(0)).unwrap();
    assert_eq!(plan.failed(id, at(1), 9, at(30)), None, "the time limit has passed");
}

#[test]
fn only_accepted_streams_keep_a_circuit_open() {
    let mut plan = CircuitPlan::default();
    let (id, _) = meet(&mut plan, 9, at(100)).unwrap();
    assert_eq!(plan.left(id, at(110)), at(20));
    assert_eq!(plan.left(id, at(131)), at(0));
    plan.handle(Event::Accepted(id), at(120));
    assert!(plan.left(id, at(9999)) > at(0), "as long as the stream is open");
    plan.handle(Event::Released(id), at(10_000));
    assert_eq!(plan.left(id, at(10_060)), at(14 * 60));
    plan.handle(Event::Ended(id), at(10_060));
    assert_eq!(plan.left(id, at(10_060)), at(0));
}

#[test]
fn circuits_without_a_byte_go_first_then_those_without_a_stream_then_the_idle() {
    let mut plan = CircuitPlan::default();
    let all: Vec<_> = (0..4).map(|_| meet(&mut plan, 4, at(0)).unwrap().0).collect();
    for used in &all[..3] {
        plan.handle(Event::Accepted(*used), at(0));
        plan.handle(Event::Moved(*used), at(0));
    }
    // Opening streams on which no byte moves does not protect a circuit.
    plan.handle(Event::Accepted(all[3]), at(49));
    plan.handle(Event::Released(all[1]), at(40));
    plan.handle(Event::Moved(all[2]), at(50));
    assert_eq!(meet(&mut plan, 4, at(50)).unwrap().1, Some(all[3]), "no byte has moved");
    assert_eq!(meet(&mut plan, 4, at(50)).unwrap().1, Some(all[1]), "it has no stream");
    assert_eq!(meet(&mut plan, 4, at(50)).unwrap().1, Some(all[0]), "it is the longest idle");
    assert_eq!(meet(&mut plan, 4, at(54)), None, "each was opened or moved bytes a moment ago");
    assert_eq!(meet(&mut plan, 4, at(56)).unwrap().0, CircuitId(plan.next));
}

#[derive(Debug, Clone)]
enum Step {
    Introduce(u8),
    MadeUp(u64),
    Meet(u64),
    Fail(u64, u64),
    Accept(u64),
    Release(u64),
    End(u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..6_u8).prop_map(Step::Introduce),
        1 => (0..99_u64).prop_map(Step::MadeUp),
        3 => (1..150_u64).prop_map(Step::Meet),
        1 => (1..150_u64, 0..12_u64).prop_map(|(id, took)| Step::Fail(id, took)),
        1 => (1..150_u64).prop_map(Step::Accept),
        1 => (1..150_u64).prop_map(Step::Release),
        1 => (1..150_u64).prop_map(Step::End),
        1 => (0..9_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn the_bounds_hold(steps in prop::collection::vec(step(), 0..400), making in 1..12_usize, open in 1..12_usize) {
        let mut plan = CircuitPlan::default();
        let mut now = Duration::ZERO;
        for step in steps {
            let (before_making, before_open) = (plan.making.len(), plan.open.len());
            let bounds = CircuitBounds { making, open, refusals: None };
            let event = match step {
                Step::Introduce(relay) => Event::Introduced { at: listed(relay), bounds },
                Step::MadeUp(relay) => Event::Introduced { at: made_up(relay), bounds },
                Step::Meet(id) => Event::Met { id: CircuitId(id), most: open },
                Step::Accept(id) => Event::Accepted(CircuitId(id)),
                Step::Release(id) => Event::Released(CircuitId(id)),
                Step::End(id) => Event::Ended(CircuitId(id)),
                Step::Fail(id, took) => {
                    plan.failed(CircuitId(id), at(took), making, now);
                    continue;
                }
                Step::Wait(seconds) => {
                    now += at(seconds);
                    continue;
                }
            };
            let actions = plan.handle(event, now);
            if matches!(event, Event::Introduced { .. }) && actions == [Action::Refuse] {
                prop_assert!(before_making >= making || before_open >= open, "refused although there is room");
            }
            prop_assert!(plan.making.len() <= making && plan.open.len() <= open);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any number of clients wait at a few rendezvous points that never answer, or at invented
    /// ones. A client with its own rendezvous point still gets a place at once, and keeps it for
    /// the two seconds that it needs.
    #[test]
    fn an_honest_client_gets_a_rendezvous_whatever_others_ask(
        dead in prop::collection::vec(0..3_u8, 0..60), fake in prop::collection::vec(0..1000_u64, 0..60), making in 8..40_usize,
    ) {
        let mut plan = CircuitPlan::default();
        for second in 0..20 {
            let flood = |plan: &mut CircuitPlan, now| {
                for relay in &dead {
                    introduce(plan, listed(*relay), (making, 99), now);
                }
                for relay in &fake {
                    introduce(plan, made_up(*relay), (making, 99), now);
                }
            };
            flood(&mut plan, at(2 * second));
            let Some((id, _)) = introduce(&mut plan, listed(200), (making, 99), at(2 * second)) else {
                panic!("refused in second {}", 2 * second);
            };
            flood(&mut plan, at(2 * second + 1));
            flood(&mut plan, at(2 * second + 2));
            prop_assert!(plan.making.contains_key(&id), "given up");
            plan.handle(Event::Ended(id), at(2 * second + 2));
        }
    }
}
