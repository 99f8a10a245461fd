//! The plan against a network in which a point can be taken back.

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::id::{NodeId, ServiceId};
use rustbalance_gossip::record::{IntroPoint, PointNonce, RelayId, ServedPoint};

use super::*;

fn unattended(n: u8) -> UnattendedPoint {
    let point = IntroPoint {
        relay: RelayId { rsa: FixedBytes([n; 20]), ed25519: FixedBytes([n; 32]) },
        link_specifiers: Vec::new(),
        onion_key: FixedBytes([n; 32]),
        session_key: FixedBytes([n; 32]),
        encryption_key: FixedBytes([n; 32]),
    };
    let served = ServedPoint { point, nonce: PointNonce(FixedBytes([n; 16])) };
    let service = ServiceId::from_public_key([0xff; 32]);
    UnattendedPoint { node: NodeId::from_public_key([n; 32]), service, served }
}

fn at(mono: Duration) -> Now {
    Now { mono, unix: 0 }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn wanted(which: &[u8]) -> Event {
    Event::Wanted(which.iter().copied().map(unattended).collect())
}

/// A plan that serves at these points.
fn serving(which: &[u8]) -> StandInPlan {
    let mut plan = StandInPlan::default();
    let opened = plan.handle(wanted(which), at(seconds(0)));
    assert_eq!(opened, which.iter().copied().map(|n| Action::Open(unattended(n))).collect::<Vec<_>>());
    for n in which {
        assert_eq!(plan.handle(Event::Opened(unattended(*n)), at(seconds(1))), []);
    }
    plan
}

#[test]
fn each_point_assigned_to_this_node_is_opened_once() {
    let mut plan = serving(&[1, 2]);
    assert_eq!(plan.handle(wanted(&[1, 2]), at(seconds(2))), []);
    assert_eq!(plan.next_timeout(Now::default()), None);
    assert_eq!(plan.handle(wanted(&[1, 2, 3]), at(seconds(3))), [Action::Open(unattended(3))]);
}

#[test]
fn a_point_is_held_until_the_returned_node_has_taken_it() {
    let mut plan = serving(&[1, 2]);
    assert_eq!(plan.handle(wanted(&[]), at(seconds(10))), []);
    assert_eq!(plan.handle(Event::Lost(unattended(1)), at(seconds(12))), [Action::Forget(unattended(1))]);
    assert_eq!(plan.next_timeout(Now::default()), Some(seconds(10) + HOLD));
    assert_eq!(plan.handle(Event::Tick, at(seconds(9) + HOLD)), []);
    assert_eq!(plan.handle(Event::Tick, at(seconds(10) + HOLD)), [Action::Forget(unattended(2))]);
    assert_eq!(plan.next_timeout(Now::default()), None);
}

#[test]
fn points_of_a_node_that_falls_silent_again_are_opened_at_once() {
    let mut plan = serving(&[1, 2]);
    plan.handle(wanted(&[]), at(seconds(10)));
    plan.handle(Event::Lost(unattended(1)), at(seconds(12)));
    assert_eq!(plan.handle(wanted(&[1, 2]), at(seconds(20))), [Action::Open(unattended(1))]);
    plan.handle(Event::Opened(unattended(1)), at(seconds(21)));
    assert_eq!(plan.handle(Event::Tick, at(seconds(30) + HOLD)), [], "the other point is kept without a break");
}

#[test]
fn a_lost_point_is_opened_again_only_after_growing_pauses() {
    let mut plan = serving(&[1]);
    let (mut now, mut taken) = (seconds(1), Vec::new());
    while now < seconds(3600) {
        assert_eq!(plan.handle(Event::Lost(unattended(1)), at(now)), []);
        let next = plan.next_timeout(Now::default()).unwrap();
        taken.push((next - now).as_secs());
        now = next;
        assert_eq!(plan.handle(Event::Tick, at(now)), [Action::Open(unattended(1))]);
        plan.handle(Event::Opened(unattended(1)), at(now));
    }
    assert_eq!(taken[..8], [5, 10, 20, 40, 80, 160, 320, 600]);
    assert!(taken[8..].iter().all(|pause| *pause == 600));
}

#[test]
fn a_point_that_cannot_be_opened_is_tried_again_while_it_is_assigned_to_this_node() {
    let mut plan = StandInPlan::default();
    plan.handle(wanted(&[1]), at(seconds(0)));
    assert_eq!(plan.handle(Event::OpenFailed(unattended(1)), at(seconds(2))), []);
    assert_eq!(plan.next_timeout(Now::default()), Some(seconds(7)));
    assert_eq!(plan.handle(Event::Tick, at(seconds(7))), [Action::Open(unattended(1))]);
    assert_eq!(plan.handle(wanted(&[]), at(seconds(8))), [], "it is being opened");
    assert_eq!(plan.handle(Event::OpenFailed(unattended(1)), at(seconds(9))), [Action::Forget(unattended(1))]);
    assert_eq!(plan.handle(Event::Opened(unattended(1)), at(seconds(10))), [Action::Forget(unattended(1))]);
}
