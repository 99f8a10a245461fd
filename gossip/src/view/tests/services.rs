//! Records of several services are kept apart.

use super::*;
use crate::id::ServiceId;
use crate::record::{Fitness, IntroPoints, MAX_SERVICES};
use crate::source::Source;

const DAY: PeriodId = PeriodId { number: 20_000, length_minutes: 1440, offset_seconds: 0 };

impl Scene {
    fn announce(
        &mut self,
        who: &Identity,
        (service, fitness, seq): (ServiceId, Fitness, u64),
        points: Vec<IntroPoint>,
    ) -> Result<Changes, RecordRejection> {
        let record = IntroPoints { service, fitness, ..who.points(seq, points) };
        self.receive(who, RecordKind::IntroPoints(service), record, at(3))
    }

    fn publish(
        &mut self,
        who: &Identity,
        service: ServiceId,
        seq: u64,
        revision: u64,
    ) -> Result<Changes, RecordRejection> {
        let periods = vec![PublishedPeriod { period: DAY, revision, confirmed: 1, directories: 1 }];
        let record = Publication { cluster: who.cluster(), node: who.node(), seq, service, term: 1, periods };
        self.receive(who, RecordKind::Publication(service), record, at(3))
    }
}

#[test]
fn each_service_has_candidates_relays_and_revisions_of_its_own() {
    let mut scene = Scene::new();
    let who = scene.meet(1, at(0));
    let [one, two] = [0, 1].map(|number| scene.founder.service(number));
    scene.announce(&who, (one, Fitness::Healthy, seq(1, 4)), vec![point(1, 1)]).unwrap();
    scene.announce(&who, (two, Fitness::Degraded, seq(1, 5)), vec![point(1, 2), point(3, 3)]).unwrap();
    scene.publish(&who, one, seq(1, 6), 70).unwrap();
    scene.publish(&who, two, seq(1, 7), 7).unwrap();
    let candidates = |service: &ServiceId| -> Vec<_> {
        let candidates = scene.view.candidates(service);
        candidates.map(|offer| (offer.source, offer.fitness, offer.points.len())).collect()
    };
    assert_eq!(candidates(&one), [(Source::Node(who.node()), Fitness::Healthy, 1)]);
    assert_eq!(candidates(&two), [(Source::Node(who.node()), Fitness::Degraded, 2)]);
    assert_eq!(scene.view.relays_of_others(&one).len(), 1);
    assert_eq!(scene.view.relays_of_others(&two).len(), 2);
    assert_eq!([one, two].map(|service| scene.view.highest_revision(&service, &DAY)), [Some(70), Some(7)]);
    assert_eq!(scene.view.member(&who.node()).unwrap().condition(), Condition::Unhealthy, "the worst fitness counts");
}

#[test]
fn a_record_under_the_key_of_another_service_is_refused() {
    let mut scene = Scene::new();
    let who = scene.meet(1, at(0));
    let other = RecordKind::IntroPoints(scene.founder.service(1));
    let record = who.points(seq(1, 9), vec![point(1, 1)]);
    assert_eq!(scene.receive(&who, other, record, at(3)), Err(RecordRejection::Origin));
    let other = RecordKind::Publication(scene.founder.service(1));
    let (cluster, node, service) = (who.cluster(), who.node(), who.service());
    let record = Publication { cluster, node, seq: seq(1, 9), service, term: 1, periods: Vec::new() };
    assert_eq!(scene.receive(&who, other, record, at(3)), Err(RecordRejection::Origin));
}

#[test]
fn a_record_from_before_the_last_restart_proves_no_fitness() {
    let mut scene = Scene::new();
    let who = scene.meet(1, at(0));
    let service = who.service();
    let fitness = |scene: &Scene| scene.view.member(&who.node()).unwrap().fitness(&service);
    scene.announce(&who, (service, Fitness::Healthy, seq(1, 9)), vec![point(1, 1)]).unwrap();
    assert_eq!(fitness(&scene), Fitness::Healthy);
    let restarted = scene.receive(&who, RecordKind::Heartbeat, who.beat(seq(2, 1), Phase::Active), at(4)).unwrap();
    assert!(restarted.points);
    assert_eq!(fitness(&scene), Fitness::Down);
    assert_eq!(scene.view.member(&who.node()).unwrap().condition(), Condition::Initializing);
    assert_eq!(scene.view.candidates(&service).count(), 1, "its points stay candidates of last resort");
    let back = scene.announce(&who, (service, Fitness::Healthy, seq(2, 2)), vec![point(1, 1)]).unwrap();
    assert!(back.points);
    assert_eq!(fitness(&scene), Fitness::Healthy);
}

#[test]
fn a_node_keeps_max_services_and_the_oldest_makes_way() {
    let mut scene = Scene::new();
    let who = scene.meet(1, at(0));
    let service = |number: usize| ServiceId::from_public_key([number as u8; 32]);
    let announce = |scene: &mut Scene, number: usize, n: usize| {
        scene.announce(&who, (service(number), Fitness::Healthy, seq(1, n as u64)), vec![point(1, 1)])
    };
    for number in 0..MAX_SERVICES {
        announce(&mut scene, number, 100 + number).unwrap();
    }
    assert_eq!(announce(&mut scene, 99, 50), Err(RecordRejection::TooMany("services")));
    // The first is announced again, so the second is the oldest.
    announce(&mut scene, 0, 200).unwrap();
    announce(&mut scene, 99, 201).unwrap();
    let known = scene.view.member(&who.node()).unwrap();
    assert_eq!(known.all_intro_points().count(), MAX_SERVICES);
    assert!(known.intro_points(&service(0)).is_some() && known.intro_points(&service(1)).is_none());
}
