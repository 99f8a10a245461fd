//! The coordinator of one node, from its start to its goodbye.

use super::*;
use crate::record::{Fitness, Heartbeat, IntroPoints, Lease, NodeCard, PeriodId, Publication, PublishedPeriod, Role};
use crate::signed::{Statement, Unverified, Verified};
use crate::sim::{FOUNDED, Founder, Identity, point, served, sign};

mod outages;
mod reports;

/// A coordinator under test, its clock, and its last announced record of each kind.
struct Scene {
    founder: Founder,
    own: Identity,
    node: Coordinator,
    now: Now,
    announced: BTreeMap<RecordKind, Vec<u8>>,
}

fn settings() -> Settings {
    Settings::new(1, 1, 0)
}

/// The service of every scene.
fn service() -> ServiceId {
    Founder::new(1).service(0)
}

fn waits_at(point: IntroPoint) -> Event {
    Event::IntroPoints { service: service(), points: vec![served(point)] }
}

fn ready(ready: bool) -> Event {
    Event::Ready { service: service(), ready }
}

fn published(periods: Vec<PublishedPeriod>) -> Event {
    Event::Published { service: service(), periods }
}

fn cannot_publish() -> Event {
    Event::CannotPublish { service: service() }
}

impl Scene {
    fn with(settings: Settings, role: Role) -> Self {
        let founder = Founder::new(1);
        let own = founder.node(0, role);
        let node = Coordinator::new(settings, Box::new(own.key.clone()), own.member.clone());
        let now = Now { mono: Duration::from_secs(100), unix: FOUNDED };
        Self { founder, own, node, now, announced: BTreeMap::new() }
    }

    fn new() -> Self {
        Self::with(settings(), Role::Publisher)
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        let actions = self.node.handle(event, self.now);
        for action in &actions {
            match action {
                Action::Gossip { kind, bytes } => drop(self.announced.insert(*kind, bytes.clone())),
                Action::Retract(kind) => drop(self.announced.remove(kind)),
                _ => {}
            }
        }
        actions
    }

    /// Lets time pass, ticking when asked to and storing terms at once.
    fn pass(&mut self, seconds: u64) -> Vec<Action> {
        let end = self.now.mono + Duration::from_secs(seconds);
        let mut all = Vec::new();
        while let Some(at) = self.node.next_timeout().filter(|at| *at <= end) {
            let mono = at.max(self.now.mono);
            self.now = Now { mono, unix: FOUNDED + mono.as_secs() - 100 };
            let actions = self.event(Event::Tick);
            all.extend(self.store(actions));
        }
        self.now = Now { mono: end, unix: FOUNDED + end.as_secs() - 100 };
        all
    }

    fn store(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let mut all = Vec::new();
        for action in actions {
            if let Action::StoreTerm(term) = action {
                let more = self.event(Event::TermStored(term));
                all.extend(more);
            }
            all.push(action);
        }
        all
    }

    fn receive<T: Statement>(&mut self, who: &Identity, kind: RecordKind, record: T) -> Vec<Action> {
        let bytes = sign(record, &who.key).to_bytes().unwrap();
        self.event(Event::Record { origin: who.node(), kind, bytes })
    }

    /// Delivers the card of another publisher or worker.
    fn meet(&mut self, number: u32, role: Role) -> Identity {
        let who = self.founder.node(number, role);
        self.receive(&who, RecordKind::Card, who.card(1, 100));
        who
    }

    /// Lets time pass while a heartbeat of `who` arrives every two seconds.
    fn pass_with(&mut self, seconds: u64, who: &Identity, phase: Phase) -> Vec<Action> {
        let mut all = Vec::new();
        for _ in 0..seconds / 2 {
            let seq = self.now.mono.as_secs() + 10;
            all.extend(self.receive(who, RecordKind::Heartbeat, who.beat(seq, phase)));
            all.extend(self.pass(2));
        }
        all
    }

    fn last<T: Statement>(&self, kind: RecordKind) -> Verified<T> {
        let bytes = self.announced.get(&kind).unwrap();
        Unverified::from_bytes(bytes).unwrap().verify(self.own.node().public_key()).unwrap()
    }

    fn lease(&self) -> Verified<Lease> {
        self.last(RecordKind::Lease)
    }

    /// A cluster of one node, which publishes and has one introduction point.
    fn publishing() -> Self {
        let mut scene = Self::new();
        scene.pass(1);
        scene.event(waits_at(point(1, 1)));
        scene.event(ready(true));
        scene
    }
}

fn leads(actions: &[Action]) -> Vec<Leadership> {
    actions.iter().filter_map(|it| if let Action::Leadership(it) = it { Some(*it) } else { None }).collect()
}

#[test]
fn a_cluster_of_one_publishes_at_once_but_not_before_the_disk() {
    let mut scene = Scene::new();
    let actions = scene.event(Event::Tick);
    assert!(actions.contains(&Action::StoreTerm(1)) && leads(&actions).is_empty());
    assert_eq!((scene.lease().term, scene.lease().ttl_ms), (0, 0));
    let actions = scene.event(Event::TermStored(1));
    assert_eq!(leads(&actions), vec![Leadership::Publisher { term: 1 }]);
    assert_eq!((scene.lease().term, scene.lease().ttl_ms), (1, 30_000));
    assert_eq!(scene.node.view().holder(scene.now), Some((scene.own.node(), 1)));
}

#[test]
fn a_worker_never_publishes() {
    let mut scene = Scene::with(settings(), Role::Worker);
    assert_eq!(leads(&scene.pass(300)), vec![]);
    assert!(!scene.announced.contains_key(&RecordKind::Lease));
    assert!(scene.announced.contains_key(&RecordKind::Heartbeat));
}

/// The fitness that the node announced last.
fn fitness(scene: &Scene) -> Fitness {
    scene.last::<IntroPoints>(RecordKind::IntroPoints(service())).fitness
}

#[test]
fn a_node_goes_through_all_its_phases() {
    let mut scene = Scene::new();
    let other = scene.founder.node(1, Role::Worker);
    scene.event(Event::KnownMembers(vec![other.member.chain()]));
    assert_eq!(scene.node.phase(), Phase::Joining);
    scene.event(Event::MeshReached);
    assert_eq!(scene.node.condition(), Condition::Initializing);
    scene.event(ready(true));
    assert_eq!(scene.node.condition(), Condition::Initializing);
    scene.event(waits_at(point(1, 1)));
    assert_eq!(scene.node.condition(), Condition::Healthy);
    assert_eq!(scene.last::<Heartbeat>(RecordKind::Heartbeat).phase, Phase::Active);
    assert_eq!(fitness(&scene), Fitness::Healthy);
    scene.pass(2);
    assert_eq!(scene.node.desired_points(&service()).len(), 1, "chosen with the next heartbeat");
    scene.event(ready(false));
    assert_eq!(scene.node.condition(), Condition::Unhealthy);
    assert_eq!(fitness(&scene), Fitness::Degraded);
    scene.pass(2);
    assert_eq!(scene.node.desired_points(&service()).len(), 1);
    scene.event(Event::Drain);
    assert_eq!((scene.node.phase(), scene.node.condition()), (Phase::Draining, Condition::Draining));
    assert_eq!(fitness(&scene), Fitness::Draining);
    scene.event(Event::Resume);
    assert_eq!(scene.node.condition(), Condition::Unhealthy);
    scene.event(Event::Leave);
    assert_eq!(scene.last::<Heartbeat>(RecordKind::Heartbeat).phase, Phase::Gone);
    assert_eq!((scene.node.next_timeout(), scene.event(Event::Tick)), (None, vec![]));
}

#[test]
fn a_node_that_starts_drained_joins_first_and_drains_then() {
    let mut scene = Scene::new();
    let other = scene.founder.node(1, Role::Publisher);
    scene.event(Event::KnownMembers(vec![other.member.chain()]));
    scene.event(Event::Drain);
    assert_eq!(scene.node.phase(), Phase::Joining, "no draining before it has joined");
    scene.event(Event::MeshReached);
    assert_eq!(scene.node.phase(), Phase::Draining);
    scene.event(ready(true));
    scene.event(waits_at(point(1, 1)));
    assert_eq!(scene.last::<Heartbeat>(RecordKind::Heartbeat).phase, Phase::Draining);
    scene.event(Event::Resume);
    assert_eq!(scene.node.condition(), Condition::Healthy);
}

#[test]
fn heartbeats_are_sent_every_two_seconds_with_numbers_above_those_of_the_last_start() {
    let mut scene = Scene::with(Settings::new(7, 1, 0), Role::Worker);
    let beats = |actions: Vec<Action>| {
        actions.iter().filter(|it| matches!(it, Action::Gossip { kind: RecordKind::Heartbeat, .. })).count()
    };
    assert_eq!(beats(scene.pass(20)), 11);
    let seq = scene.last::<Heartbeat>(RecordKind::Heartbeat).seq;
    assert_eq!(seq >> 32, 7);
    scene.pass(2);
    assert!(scene.last::<Heartbeat>(RecordKind::Heartbeat).seq > seq);
}

#[test]
fn a_restarted_node_does_not_take_the_lease_back() {
    let mut scene = Scene::with(Settings::new(2, 1, 5), Role::Publisher);
    let other = scene.founder.node(1, Role::Publisher);
    scene.event(Event::KnownMembers(vec![other.member.chain()]));
    scene.event(Event::MeshReached);
    scene.receive(&other, RecordKind::Card, other.card(1, 255));
    for round in 0..20 {
        scene.receive(&other, RecordKind::Lease, other.lease(50 + round, 6, Duration::from_secs(30)));
        assert_eq!(leads(&scene.pass_with(10, &other, Phase::Active)), vec![]);
    }
    assert_eq!(scene.node.view().holder(scene.now), Some((other.node(), 6)));
}

#[test]
fn a_node_whose_peers_are_all_dead_publishes_without_them() {
    let mut scene = Scene::new();
    let other = scene.founder.node(1, Role::Publisher);
    scene.event(Event::KnownMembers(vec![other.member.chain()]));
    assert_eq!(leads(&scene.pass(50)), vec![]);
    assert_eq!(leads(&scene.pass(20)), vec![Leadership::Publisher { term: 1 }]);
}

#[test]
fn an_isolated_node_does_not_take_the_others_for_dead() {
    let mut scene = Scene::new();
    let other = scene.founder.node(1, Role::Publisher);
    scene.event(Event::KnownMembers(vec![other.member.chain()]));
    scene.event(Event::ShutOut(true));
    assert_eq!(leads(&scene.pass(600)), vec![]);
    assert_eq!(scene.node.phase(), Phase::Joining);
    // By now the others have died, or the descriptor that this node could not open has expired.
    scene.event(Event::ShutOut(false));
    assert_eq!(leads(&scene.pass(60)), vec![Leadership::Publisher { term: 1 }]);
    let stops = scene.event(Event::ShutOut(true));
    assert_eq!(leads(&stops), vec![Leadership::Follower]);
}

#[test]
fn a_worker_that_shuts_a_publisher_out_does_not_stop_it() {
    let mut scene = Scene::new();
    let worker = scene.founder.node(1, Role::Worker);
    scene.event(Event::KnownMembers(vec![worker.member.chain()]));
    scene.event(Event::ShutOut(true));
    assert_eq!(leads(&scene.pass(70)), vec![Leadership::Publisher { term: 1 }]);
    assert_eq!(leads(&scene.event(Event::ShutOut(true))), vec![]);
}

#[test]
fn a_node_that_lacks_revocations_which_its_key_counts_does_not_publish() {
    let mut scene = Scene::new();
    let (other, evicted) = (scene.founder.node(1, Role::Publisher), scene.founder.node(2, Role::Worker));
    scene.event(Event::KnownMembers(vec![other.member.chain(), evicted.member.chain()]));
    scene.event(Event::DiscoveryKey { counted: 1 });
    assert_eq!(leads(&scene.pass(170)), vec![]);
    assert_eq!(scene.node.isolation(scene.now), Some(Isolated::LacksRevocations { known: 0, counted: 1 }));
    scene.event(Event::Fact(scene.founder.revoke(evicted.node()).into()));
    assert_eq!(leads(&scene.pass(60)), vec![Leadership::Publisher { term: 1 }]);
    let stops = scene.event(Event::DiscoveryKey { counted: 2 });
    assert_eq!(leads(&stops), vec![], "the revocation may be on its way");
    assert_eq!(leads(&scene.pass(6)), vec![Leadership::Follower]);
}

#[test]
fn gossip_restarts_if_a_living_node_turns_out_to_have_been_evicted_long_ago() {
    for (late, restarts) in [(40, false), (1000, true)] {
        let mut scene = Scene::new();
        scene.event(Event::Tick);
        let evicted = scene.meet(1, Role::Worker);
        scene.pass_with(late, &evicted, Phase::Active);
        let revocation = scene.founder.revoke(evicted.node());
        let actions = scene.event(Event::Fact(revocation.into()));
        assert_eq!(actions.contains(&Action::RestartGossip), restarts, "{actions:?}");
    }
}

#[test]
fn a_node_stops_if_a_second_process_runs_with_its_key() {
    let mut scene = Scene::publishing();
    let own = scene.own.clone();
    let beat = |scene: &Scene, n| Heartbeat { instance: 2, unix: scene.now.unix, ..own.beat(n, Phase::Active) };
    scene.pass(10);
    // The other process may use numbers below or above its own.
    let first = beat(&scene, 1);
    assert_eq!(leads(&scene.receive(&own, RecordKind::Heartbeat, first)), vec![Leadership::Follower]);
    scene.pass(9);
    let second = beat(&scene, 1 << 40);
    scene.receive(&own, RecordKind::Heartbeat, second);
    let ended = scene.pass(20);
    assert!(matches!(ended.last(), Some(Action::Excluded(why)) if why.contains("second process")), "{ended:?}");
}

#[test]
fn a_dead_publisher_is_replaced_and_its_points_leave_the_descriptor() {
    let mut scene = Scene::new();
    let other = scene.meet(1, Role::Publisher);
    scene.event(waits_at(point(1, 1)));
    scene.event(ready(true));
    scene.receive(&other, RecordKind::IntroPoints(service()), other.points(2, vec![point(2, 2)]));
    scene.receive(&other, RecordKind::Lease, other.lease(3, 4, Duration::from_secs(30)));
    assert_eq!(leads(&scene.pass_with(20, &other, Phase::Active)), vec![]);
    assert_eq!(scene.node.desired_points(&service()).len(), 2);
    let version = scene.node.desired_version(&service());
    let actions = scene.pass(12);
    assert_eq!(leads(&actions), vec![Leadership::Publisher { term: 5 }]);
    assert!(scene.node.desired_version(&service()) > version && actions.contains(&Action::MembersChanged));
    assert_eq!(scene.node.desired_points(&service()), [(scene.own.node().into(), point(1, 1))]);
}

#[test]
fn a_descriptor_offers_a_subprotocol_once_every_node_grants_it() {
    let cgo = Subprotocol(2, 6);
    let mut scene = Scene::with(Settings { subprotocols: [cgo].into(), ..settings() }, Role::Publisher);
    let offered = |scene: &Scene| scene.node.desired_subprotocols(&service()).into_iter().collect::<Vec<_>>();
    scene.pass(1);
    scene.event(waits_at(point(1, 1)));
    scene.event(ready(true));
    assert_eq!(scene.last::<IntroPoints>(RecordKind::IntroPoints(service())).subprotocols, [cgo]);
    assert_eq!(offered(&scene), [cgo]);
    // A node of an earlier version, which is upgraded later. Its points stay the same.
    let other = scene.meet(1, Role::Worker);
    let points = other.points(2, vec![point(2, 2)]);
    scene.receive(&other, RecordKind::IntroPoints(service()), points.clone());
    scene.pass_with(4, &other, Phase::Active);
    assert_eq!((scene.node.desired_points(&service()).len(), offered(&scene).len()), (2, 0));
    let version = scene.node.desired_version(&service());
    let upgraded = IntroPoints { seq: 1 << 30, subprotocols: vec![cgo], ..points };
    scene.receive(&other, RecordKind::IntroPoints(service()), upgraded);
    assert_eq!((scene.node.desired_points(&service()).len(), offered(&scene)), (2, vec![cgo]));
    assert_eq!(scene.node.desired_version(&service()), version + 1);
}

#[test]
fn changed_preferences_are_announced_at_once_and_only_if_they_differ() {
    let mut scene = Scene::new();
    scene.pass(60);
    scene.event(waits_at(point(1, 1)));
    scene.event(ready(true));
    assert_eq!(scene.node.leadership(), Leadership::Publisher { term: 1 });
    let preferences = Preferences { priority: 7, weight: 9, ports: [22, 80].into(), ..Preferences::default() };
    let announces = |actions: &[Action], wanted: RecordKind| {
        actions.iter().any(|action| matches!(action, Action::Gossip { kind, .. } if *kind == wanted))
    };
    let actions = scene.event(Event::Preferences(preferences.clone()));
    assert!(announces(&actions, RecordKind::Card) && actions.contains(&Action::MembersChanged), "{actions:?}");
    let (card, lease) = (scene.last::<NodeCard>(RecordKind::Card), scene.last::<Lease>(RecordKind::Lease));
    assert_eq!((card.priority, card.weight, card.ports.as_slice()), (7, 9, &[22, 80][..]));
    assert_eq!((lease.priority, lease.term), (7, 1), "the lease goes on");
    let actions = scene.event(Event::Preferences(preferences));
    assert!(!announces(&actions, RecordKind::Card), "{actions:?}");
    assert_eq!(scene.node.leadership(), Leadership::Publisher { term: 1 });
}

#[test]
fn a_publisher_that_says_goodbye_is_replaced_at_once() {
    let mut scene = Scene::new();
    let other = scene.meet(1, Role::Publisher);
    scene.receive(&other, RecordKind::Lease, other.lease(3, 4, Duration::from_secs(30)));
    scene.pass_with(20, &other, Phase::Active);
    scene.receive(&other, RecordKind::Heartbeat, other.beat(9999, Phase::Gone));
    assert_eq!(leads(&scene.pass(2)), vec![Leadership::Publisher { term: 5 }]);
}

#[test]
fn a_frozen_publisher_resumes_as_a_follower_and_declares_no_node_dead() {
    let mut scene = Scene::publishing();
    let other = scene.meet(1, Role::Worker);
    scene.pass_with(10, &other, Phase::Active);
    assert_eq!(scene.node.leadership(), Leadership::Publisher { term: 1 });
    scene.now = scene.now.plus(Duration::from_secs(600));
    let actions = scene.event(ready(true));
    assert_eq!(leads(&actions), vec![Leadership::Follower]);
    assert_eq!((scene.lease().term, scene.lease().ttl_ms), (1, 0));
    assert_eq!(scene.node.view().hears(), 1);
    assert_eq!(leads(&scene.pass_with(8, &other, Phase::Active)), vec![Leadership::Publisher { term: 2 }]);
}

#[test]
fn a_suspended_machine_is_noticed_by_the_wall_clock() {
    let mut scene = Scene::publishing();
    assert_eq!(scene.node.leadership(), Leadership::Publisher { term: 1 });
    scene.now.unix += 3600;
    assert_eq!(leads(&scene.event(Event::Tick))[..1], [Leadership::Follower]);
}

#[test]
fn a_draining_publisher_hands_over_only_if_another_is_heard() {
    let mut scene = Scene::publishing();
    let other = scene.meet(1, Role::Publisher);
    assert_eq!(leads(&scene.event(Event::Drain)), vec![]);
    scene.event(Event::Resume);
    let unheard = scene.pass(2);
    assert_eq!(leads(&unheard), vec![]);
    scene.pass_with(6, &other, Phase::Active);
    let actions = scene.event(Event::Drain);
    assert_eq!((leads(&actions), scene.lease().ttl_ms), (vec![Leadership::Follower], 0));
    assert_eq!(leads(&scene.pass_with(4, &other, Phase::Active)), vec![]);
    // The other node does not take the lease: a draining publisher is better than none.
    assert_eq!(leads(&scene.pass_with(4, &other, Phase::Active)), vec![Leadership::Publisher { term: 2 }]);
}

#[test]
fn a_node_that_cannot_publish_hands_over_as_soon_as_another_publisher_is_heard() {
    let mut scene = Scene::publishing();
    assert_eq!(leads(&scene.event(cannot_publish())), vec![]);
    let other = scene.meet(1, Role::Publisher);
    let actions = scene.pass_with(6, &other, Phase::Active);
    assert_eq!((leads(&actions), scene.lease().ttl_ms), (vec![Leadership::Follower], 0));
    // If no other node takes the lease, it tries again, and keeps it once it can publish.
    assert_eq!(leads(&scene.pass_with(8, &other, Phase::Active)), vec![Leadership::Publisher { term: 2 }]);
    scene.event(published(vec![]));
    assert_eq!(leads(&scene.pass_with(8, &other, Phase::Active)), vec![]);
    // A failure is not remembered for a later lease.
    scene.event(Event::Leave);
    assert_eq!(leads(&scene.event(cannot_publish())), vec![]);
}

#[test]
fn a_leaving_node_gives_up_the_lease() {
    let mut scene = Scene::publishing();
    let actions = scene.event(Event::Leave);
    assert_eq!((leads(&actions), scene.lease().ttl_ms), (vec![Leadership::Follower], 0));
}

#[test]
fn an_evicted_node_stops_and_reports_why() {
    let mut scene = Scene::publishing();
    let revocation = scene.founder.revoke(scene.own.node());
    let kind = RecordKind::Revocation(scene.own.node());
    let origin = scene.founder.node(1, Role::Publisher).node();
    let actions = scene.event(Event::Record { origin, kind, bytes: revocation.to_bytes().unwrap() });
    assert_eq!(leads(&actions), vec![Leadership::Follower]);
    assert!(matches!(&actions[1], Action::Excluded(reason) if reason.contains("evicted")));
    assert_eq!((scene.node.phase(), scene.node.leadership()), (Phase::Gone, Leadership::Follower));
    assert_eq!((scene.event(Event::Tick), scene.node.next_timeout()), (vec![], None));
}

#[test]
fn the_later_of_two_nodes_with_one_token_excludes_itself() {
    let mut scene = Scene::new();
    let token = scene.founder.invitation(1, 1, &[]).token;
    scene.own = scene.founder.admit(0, Role::Worker, FOUNDED + 9, Some(token));
    scene.node = Coordinator::new(settings(), Box::new(scene.own.key.clone()), scene.own.member.clone());
    let first = scene.founder.admit(1, Role::Worker, FOUNDED + 8, Some(token));
    scene.receive(&first, RecordKind::Card, first.card(1, 1));
    let whole = scene.founder.invitation(1, 1, &[scene.own.node(), first.node()]);
    let actions = scene.event(Event::Fact(whole.into()));
    assert!(actions.iter().any(|it| matches!(it, Action::Excluded(reason) if reason.contains("invitation"))));
}

#[test]
fn own_records_that_return_raise_the_numbers_and_change_nothing_else() {
    let mut scene = Scene::publishing();
    let own = scene.own.clone();
    let high = 9u64 << 32;
    let other = scene.founder.node(1, Role::Publisher);
    scene.receive(&own, RecordKind::Heartbeat, own.beat(1, Phase::Gone));
    assert_eq!(scene.last::<Heartbeat>(RecordKind::Heartbeat).seq >> 32, 1);
    let forged = sign(own.beat(high, Phase::Gone), &other.key).to_bytes().unwrap();
    scene.event(Event::Record { origin: own.node(), kind: RecordKind::Heartbeat, bytes: forged });
    assert_eq!(scene.node.view().refused().of("own"), 0);
    scene.receive(&own, RecordKind::Heartbeat, own.beat(high, Phase::Gone));
    assert_eq!(scene.node.condition(), Condition::Healthy);
    assert!(scene.last::<NodeCard>(RecordKind::Card).seq > high);
    assert!(scene.last::<IntroPoints>(RecordKind::IntroPoints(service())).seq > high);
    assert!(scene.last::<Heartbeat>(RecordKind::Heartbeat).seq > high);
    // A second record comes back with a higher number: the sequence numbers rise at once, but the
    // full re-announcement waits for its minimum interval.
    scene.receive(&own, RecordKind::Card, own.card(2 * high, 100));
    assert!(scene.last::<NodeCard>(RecordKind::Card).seq < 2 * high);
    scene.pass(2);
    assert!(scene.last::<Heartbeat>(RecordKind::Heartbeat).seq > 2 * high);
    scene.pass(10);
    assert!(scene.last::<NodeCard>(RecordKind::Card).seq > 2 * high);
    let actions = scene.receive(&own, RecordKind::Lease, own.lease(3, 40, Duration::from_secs(30)));
    assert!(scene.store(actions).contains(&Action::Leadership(Leadership::Publisher { term: 41 })));
    assert_eq!(scene.node.view().refused().of("own"), 2);
}

#[test]
fn a_merged_invitation_that_a_publisher_has_signed_is_forwarded() {
    let mut scene = Scene::new();
    let (one, two) = (scene.meet(1, Role::Publisher), scene.meet(2, Role::Publisher));
    let version = |redeemed: &[NodeId]| scene.founder.invitation(1, 3, redeemed);
    let versions = [version(&[one.node()]), version(&[two.node()]), version(&[one.node(), two.node()])];
    let kind = RecordKind::Invitation(versions[0].token);
    for version in &versions {
        let bytes = version.to_bytes().unwrap();
        let actions = scene.event(Event::Record { origin: one.node(), kind, bytes });
        assert!(actions.contains(&Action::InvitationsChanged));
    }
    assert_eq!(scene.announced[&kind], versions[2].to_bytes().unwrap());
}

#[test]
fn slow_records_are_announced_again_and_change_nothing() {
    let mut scene = Scene::publishing();
    let period = PeriodId { number: 1, length_minutes: 1440, offset_seconds: 0 };
    scene.event(published(vec![PublishedPeriod { period, revision: 5, confirmed: 8, directories: 8 }]));
    let kinds = [RecordKind::Card, RecordKind::IntroPoints(service()), RecordKind::Publication(service())];
    let before = scene.announced.clone();
    let mut reader = View::new(scene.founder.node(1, Role::Publisher).member, Default::default(), 0);
    let mut ingest = |scene: &Scene, kind| {
        reader
            .ingest(scene.own.node(), kind, &scene.announced[&kind], scene.now)
            .map(|it| it.members || it.points || it.publications)
    };
    assert_eq!(kinds.map(|kind| ingest(&scene, kind)), [Ok(true), Ok(true), Ok(true)]);
    scene.pass(290);
    assert!(kinds.iter().all(|kind| scene.announced[kind] == before[kind]));
    let actions = scene.pass(20);
    assert!(kinds.iter().all(|kind| scene.announced[kind] != before[kind]));
    assert!(actions.iter().all(|it| matches!(it, Action::Gossip { .. })), "{actions:?}");
    // A node that has already received them sees no change.
    assert_eq!(kinds.map(|kind| ingest(&scene, kind)), [Ok(false), Ok(false), Ok(false)]);
}

#[test]
fn all_nodes_forward_revocations_and_only_publishers_forward_invitations() {
    for role in [Role::Publisher, Role::Worker] {
        let mut scene = Scene::with(settings(), role);
        let other = scene.meet(1, Role::Publisher);
        let invitation = scene.founder.invitation(1, 1, &[]);
        let (kind, bytes) = (RecordKind::Invitation(invitation.token), invitation.to_bytes().unwrap());
        let actions = scene.event(Event::Record { origin: other.node(), kind, bytes: bytes.clone() });
        assert!(actions.contains(&Action::InvitationsChanged));
        let revocation = scene.founder.revoke(other.node());
        let evicted = RecordKind::Revocation(other.node());
        let actions =
            scene.event(Event::Record { origin: other.node(), kind: evicted, bytes: revocation.to_bytes().unwrap() });
        assert!(actions.contains(&Action::MembersChanged));
        assert_eq!(scene.announced.get(&kind) == Some(&bytes), role == Role::Publisher);
        assert!(scene.announced.contains_key(&evicted));
    }
}

#[test]
fn a_publisher_that_has_served_for_long_announces_the_newest_periods() {
    let mut scene = Scene::publishing();
    let period = |number| PeriodId { number, length_minutes: 1440, offset_seconds: 0 };
    let used = |number| PublishedPeriod { period: period(number), revision: 7, confirmed: 0, directories: 0 };
    scene.event(published((100..116).map(used).collect()));
    let announced = scene.last::<Publication>(RecordKind::Publication(service()));
    assert_eq!(announced.periods, (108..116).map(used).collect::<Vec<_>>());
    let mut reader = View::new(scene.founder.node(1, Role::Publisher).member, Default::default(), 0);
    for kind in [RecordKind::Card, RecordKind::Publication(service())] {
        reader.ingest(scene.own.node(), kind, &scene.announced[&kind], scene.now).unwrap();
    }
    assert_eq!(reader.highest_revision(&service(), &period(115)), Some(7));
}

#[test]
fn a_publisher_that_was_overwritten_sees_the_higher_revision() {
    let mut scene = Scene::publishing();
    let other = scene.meet(1, Role::Publisher);
    let period = PeriodId { number: 1, length_minutes: 1440, offset_seconds: 0 };
    let used = |revision| vec![PublishedPeriod { period, revision, confirmed: 8, directories: 8 }];
    let fence = |scene: &Scene| scene.node.view().revisions(&service()).get(&period).copied();
    scene.event(published(used(5)));
    for (seq, revision, known) in [(2, 4, 5), (3, 6, 6)] {
        let (cluster, node) = (scene.founder.cluster(), other.node());
        let record = Publication { cluster, node, seq, service: service(), term: 1, periods: used(revision) };
        scene.receive(&other, RecordKind::Publication(service()), record);
        assert_eq!(fence(&scene), Some(known));
    }
    scene.event(published(used(7)));
    assert_eq!(fence(&scene), Some(7));
    assert_eq!(scene.node.view().revisions_of_others(&service()).get(&period), Some(&6));
}
