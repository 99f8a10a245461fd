//! `hide_outages`: which points of a silent node stay in the descriptor, and for how long.

use super::*;
use crate::outage::{HIDDEN_TIME, OutageSecret};

/// A publisher with one introduction point and another node with two, all published and healthy.
fn pair(hides: bool, role: Role) -> (Scene, Identity) {
    let hide_outages = hides.then(|| OutageSecret::from_bytes([5; 32]));
    let mut scene = Scene::with(
        Settings { preferences: Preferences { hide_outages, ..Preferences::default() }, ..settings() },
        Role::Publisher,
    );
    scene.pass(1);
    scene.event(waits_at(point(1, 1)));
    scene.event(ready(true));
    let other = scene.meet(1, role);
    scene.receive(&other, RecordKind::IntroPoints(service()), other.points(2, vec![point(2, 2), point(3, 3)]));
    scene.pass_with(60, &other, Phase::Active);
    assert_eq!(listed(&scene, &other), 2);
    (scene, other)
}

/// Number of points of a node that the descriptor should list.
fn listed(scene: &Scene, who: &Identity) -> usize {
    scene.node.desired_points(&service()).iter().filter(|(source, _)| *source == who.node().into()).count()
}

/// Number of seconds from now until the descriptor lists no point of this node.
fn leaves_after(scene: &mut Scene, who: &Identity) -> u64 {
    for seconds in 1..4000 {
        scene.pass(1);
        if listed(scene, who) == 0 {
            return seconds;
        }
    }
    panic!("they stay")
}

#[test]
fn a_silent_nodes_points_leave_at_once_or_after_a_hidden_time() {
    let (mut open, other) = pair(false, Role::Worker);
    assert!(leaves_after(&mut open, &other) < 60);
    for role in [Role::Worker, Role::Publisher] {
        let (mut scene, other) = pair(true, role);
        let version = scene.node.desired_version(&service());
        scene.pass(60);
        assert_eq!(scene.node.stand_ins(scene.now).len(), 2, "this node serves at them");
        assert_eq!((listed(&scene, &other), scene.node.desired_version(&service())), (2, version));
        let left = 60 + leaves_after(&mut scene, &other);
        assert!((HIDDEN_TIME.0.as_secs() - 3..HIDDEN_TIME.1.as_secs()).contains(&left), "{left} s");
        assert_eq!(scene.node.desired_version(&service()), version + 1, "both in one edition");
        // The time is drawn from what all publishers know, so another publisher draws the same one.
        let (mut again, other) = pair(true, role);
        assert_eq!(leaves_after(&mut again, &other), left);
    }
}

#[test]
fn an_outage_within_the_hidden_time_changes_nothing_in_the_descriptor() {
    let (mut scene, other) = pair(true, Role::Worker);
    let version = scene.node.desired_version(&service());
    scene.pass(300);
    scene.pass_with(60, &other, Phase::Active);
    assert_eq!((listed(&scene, &other), scene.node.desired_version(&service())), (2, version));
    assert!(scene.node.stand_ins(scene.now).is_empty());
}

#[test]
fn a_node_that_is_evicted_or_says_goodbye_leaves_at_once() {
    let (mut scene, other) = pair(true, Role::Worker);
    scene.pass_with(2, &other, Phase::Gone);
    assert_eq!(listed(&scene, &other), 0, "a leaving node closes its points");

    let (mut scene, other) = pair(true, Role::Worker);
    scene.pass(60);
    let revocation = scene.founder.revoke(other.node());
    scene.event(Event::Fact(revocation.into()));
    assert_eq!(listed(&scene, &other), 0, "an evicted node is not hidden any longer");
}

#[test]
fn points_at_which_no_healthy_publisher_stands_in_leave_at_once() {
    let (mut scene, other) = pair(true, Role::Worker);
    scene.event(ready(false));
    assert!(leaves_after(&mut scene, &other) < 60, "the publisher's own target is down");

    let (mut scene, other) = pair(true, Role::Worker);
    scene.pass(60);
    scene.event(ready(false));
    assert!(leaves_after(&mut scene, &other) < 5);
}

#[test]
fn unpublished_points_of_a_silent_node_are_not_added() {
    let (mut scene, other) = pair(true, Role::Worker);
    scene.pass(60);
    scene.receive(&other, RecordKind::IntroPoints(service()), other.points(1000, vec![point(2, 2), point(4, 4)]));
    scene.pass(5);
    assert_eq!(listed(&scene, &other), 1, "only the point in its last record that was chosen before");
}
