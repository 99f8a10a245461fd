//! A node's name and its problems, as it announces them and as others take them.

use super::*;
use crate::record::NodeReport;

#[test]
fn a_report_is_announced_when_it_changes_and_not_while_there_is_nothing_to_say() {
    let mut scene = Scene::new();
    scene.pass(700);
    scene.event(Event::Problems(BTreeSet::new()));
    assert!(!scene.announced.contains_key(&RecordKind::Report));
    let problems = BTreeSet::from(["target_down", "disk_full"].map(|code| code.parse().unwrap()));
    scene.event(Event::Problems(problems.clone()));
    let report = scene.last::<NodeReport>(RecordKind::Report);
    assert_eq!((&report.name, &report.problems), (&None, &Vec::from_iter(problems.clone())));
    assert!(scene.event(Event::Problems(problems)).is_empty(), "nothing has changed");
    let name = Some("web-1".parse().unwrap());
    scene.event(Event::Preferences(Preferences { name: name.clone(), ..Preferences::default() }));
    scene.event(Event::Problems(BTreeSet::new()));
    let report = scene.last::<NodeReport>(RecordKind::Report);
    assert_eq!((report.name.clone(), report.problems.len()), (name, 0));
    assert_eq!(scene.node.view().members().next().unwrap().report().unwrap().name, report.name);
    scene.pass(310);
    assert!(scene.last::<NodeReport>(RecordKind::Report).seq > report.seq, "repeated like all slow records");
}

#[test]
fn the_problems_of_a_node_end_with_its_process() {
    let mut scene = Scene::new();
    let other = scene.meet(1, Role::Worker);
    let kind = RecordKind::Report;
    scene.receive(&other, kind, other.report(9, Some("web"), vec!["disk_full".parse().unwrap()]));
    scene.receive(&other, RecordKind::Heartbeat, other.beat(10, Phase::Active));
    let report = |scene: &Scene| scene.node.view().member(&other.node()).unwrap().report().map(|it| it.problems.len());
    assert_eq!(report(&scene), Some(1));
    scene.receive(&other, RecordKind::Heartbeat, other.beat(1 << 32, Phase::Active));
    assert_eq!(report(&scene), None);
}
