//! The plan against simulated directories, which answer at once.

use super::*;
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::record::RelayId;

use crate::tor::descriptor::DescriptorParameters;

const NOON: Duration = Duration::from_secs(43_200);

fn at(mono: Duration) -> Now {
    Now { mono, unix: mono.as_secs() }
}

fn relay(n: u8) -> RelayId {
    RelayId { rsa: FixedBytes([n; 20]), ed25519: FixedBytes([n; 32]) }
}

fn point(n: u8) -> IntroPoint {
    IntroPoint {
        relay: relay(n),
        link_specifiers: Vec::new(),
        onion_key: FixedBytes([n; 32]),
        session_key: FixedBytes([n; 32]),
        encryption_key: FixedBytes([n; 32]),
    }
}

fn content<const N: usize>(points: [u8; N]) -> DesiredContent {
    DesiredContent { points: points.map(point).into(), ..DesiredContent::default() }
}

fn desired<const N: usize>(points: [u8; N]) -> Event {
    Event::Desired(content(points))
}

fn period(number: u64, directories: std::ops::Range<u8>) -> Period {
    Period {
        id: PeriodId { number, length_minutes: 1440, offset_seconds: 43_200 },
        directories: directories.map(|n| Directory { relay: relay(n) }).collect(),
        revision_clock: Duration::ZERO,
        parameters: DescriptorParameters::default(),
    }
}

/// Simulates the network: answers every action at once; directories accept every revision above the
/// one they hold.
struct World {
    plan: PublishPlan,
    now: Duration,
    held: BTreeMap<(PeriodId, Directory), (u64, DesiredContent)>,
    editions: BTreeMap<(PeriodId, u64), DesiredContent>,
    uploads: usize,
    editions_made: Vec<Duration>,
    /// Directories that accept uploads and do not answer read-backs.
    mute: BTreeSet<Directory>,
    report: Vec<PublishedPeriod>,
    other_publishers: Vec<OtherPublisher>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            plan: PublishPlan::new(Duration::from_secs(5000)),
            now: NOON,
            held: BTreeMap::new(),
            editions: BTreeMap::new(),
            uploads: 0,
            editions_made: Vec::new(),
            mute: BTreeSet::new(),
            report: Vec::new(),
            other_publishers: Vec::new(),
        };
        world.handle(Event::Periods(vec![period(1, 0..8), period(2, 4..12)]));
        world
    }

    fn handle(&mut self, event: Event) {
        let mut actions = self.plan.handle(event, at(self.now));
        while !actions.is_empty() {
            let mut next = Vec::new();
            for action in actions {
                if let Some(event) = self.carry_out(action) {
                    next.extend(self.plan.handle(event, at(self.now)));
                }
            }
            actions = next;
        }
    }

    fn carry_out(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Build { period, content, floor } => {
                let revision = (self.now.as_secs()).max(floor + 1);
                assert!(!self.editions.contains_key(&(period, revision)), "a revision is used once");
                self.editions.insert((period, revision), content);
                self.editions_made.push(self.now);
                Some(Event::Built(period, Ok(revision)))
            }
            Action::Upload { period, directory, revision } => {
                self.uploads += 1;
                let content = self.editions[&(period, revision)].clone();
                let held = self.held.entry((period, directory.clone())).or_default();
                let outcome = if revision > held.0 { Outcome::Accepted } else { Outcome::Refused };
                if outcome == Outcome::Accepted {
                    *held = (revision, content);
                }
                Some(Event::Uploaded { period, directory, revision, outcome })
            }
            Action::ReadBack { period, directory } => {
                let reading = self.held.get(&(period, directory.clone())).map(|(revision, held)| Reading {
                    revision: *revision,
                    ours: self.editions.get(&(period, *revision)) == Some(held),
                    // Without points it is a descriptor that only authorized clients can read.
                    points: (!held.points.is_empty())
                        .then(|| held.points.iter().map(|point| point.session_key).collect()),
                });
                let reading = if self.mute.contains(&directory) { Err("no answer".into()) } else { Ok(reading) };
                Some(Event::ReadBackAnswered { period, directory, reading })
            }
            Action::Report(periods) => {
                self.report = periods;
                None
            }
            Action::OtherPublisher(other_publisher) => {
                self.other_publishers.push(other_publisher);
                None
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.plan.next_timeout(at(self.now)).filter(|at| *at <= end) {
            self.now = at;
            self.handle(Event::Tick);
        }
        self.now = end;
    }

    fn everywhere(&self, points: &[IntroPoint]) -> bool {
        self.held.len() == 16 && self.held.values().all(|(_, held)| held.points == points)
    }
}

#[test]
fn a_publisher_fills_every_directory_of_every_period() {
    let mut world = World::new();
    world.handle(desired([1, 2]));
    world.run(Duration::from_secs(60));
    assert_eq!(world.uploads, 0, "a follower uploads nothing");
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(1));
    assert!(world.everywhere(&[point(1), point(2)]));
    world.run(Duration::from_secs(600));
    assert_eq!(world.uploads, 16, "what is confirmed is not uploaded again");
}

#[test]
fn each_directory_is_listed_with_what_it_has_confirmed_and_when() {
    let mut world = World::new();
    world.handle(desired([1, 2]));
    assert_eq!(world.plan.directories(), [], "a follower knows no directory");
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(60));
    let all = world.plan.directories();
    let newest = |it: &DirectoryReport| world.held[&(it.period, it.directory.clone())].0;
    assert_eq!(all.len(), world.held.len());
    for it in &all {
        let (revision, at) = it.confirmed.unwrap();
        assert!(it.is_current && revision == newest(it) && at <= world.now.as_secs(), "{it:?}");
    }

    // One has lost its descriptor, and holds the newest again once that is noticed.
    let DirectoryReport { period, directory, .. } = all[3].clone();
    let lost = Event::ReadBackAnswered { period, directory: directory.clone(), reading: Ok(None) };
    let now = world.now + Duration::from_secs(5);
    world.plan.handle(lost, at(now));
    let without: Vec<_> = world.plan.directories().into_iter().filter(|it| !it.is_current).collect();
    assert_eq!(without.len(), 1);
    assert!(without[0].directory == directory && without[0].confirmed.is_none(), "{without:?}");
    let revision = all[3].confirmed.unwrap().0;
    let back = Event::Uploaded { period, directory, revision, outcome: Outcome::Accepted };
    world.plan.handle(back, at(now));
    assert_eq!(world.plan.directories()[3].confirmed, Some((revision, now.as_secs())));
    world.handle(Event::Lead(None));
    assert_eq!(world.plan.directories(), []);
}

#[test]
fn a_removed_point_is_published_at_once_and_an_added_one_after_a_pause() {
    let mut world = World::new();
    world.handle(desired([1, 2]));
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(60));
    world.handle(desired([1]));
    assert!(world.everywhere(&[point(1)]));
    world.run(Duration::from_secs(60));
    world.handle(desired([1, 3]));
    assert!(world.everywhere(&[point(1)]));
    world.run(BATCH_PAUSE);
    assert!(world.everywhere(&[point(1), point(3)]));
}

#[test]
fn a_withdrawn_subprotocol_is_published_at_once_and_a_new_one_after_a_pause() {
    let mut world = World::new();
    let offering = |granted: &[u8]| DesiredContent {
        subprotocols: granted.iter().map(|version| Subprotocol(2, *version)).collect(),
        ..content([1, 2])
    };
    let everywhere = |world: &World, granted| world.held.values().all(|(_, held)| *held == offering(granted));
    world.handle(Event::Desired(offering(&[])));
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(60));
    world.handle(Event::Desired(offering(&[6])));
    assert!(everywhere(&world, &[]));
    world.run(BATCH_PAUSE);
    assert!(everywhere(&world, &[6]));
    world.run(Duration::from_secs(60));
    world.handle(Event::Desired(offering(&[9])));
    assert!(everywhere(&world, &[9]), "clients must not request what a node does not grant");
}

#[test]
fn changes_never_outrun_the_revision_clock() {
    let mut world = World::new();
    world.handle(Event::Lead(Some(1)));
    for n in 0..40 {
        world.handle(desired([n % 7]));
        world.run(Duration::from_millis(100));
    }
    world.run(Duration::from_secs(10));
    assert!(world.everywhere(&[point(39 % 7)]));
    for pair in world.editions_made.chunks(2).collect::<Vec<_>>().windows(2) {
        assert!(pair[1][0] - pair[0][0] >= MIN_GAP);
    }
}

#[test]
fn an_empty_set_leaves_the_last_descriptor_in_place() {
    let mut world = World::new();
    world.handle(desired([1]));
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(9));
    world.handle(desired([]));
    world.run(Duration::from_secs(9000));
    assert!(world.everywhere(&[point(1)]));
}

#[test]
fn a_higher_revision_on_a_directory_is_exceeded() {
    let mut world = World::new();
    let other_publisher =
        (PeriodId { number: 1, length_minutes: 1440, offset_seconds: 43_200 }, Directory { relay: relay(3) });
    world.held.insert(other_publisher.clone(), (99_999, content([9])));
    world.handle(desired([1]));
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(30));
    assert!(world.everywhere(&[point(1)]));
    assert_eq!(world.held[&other_publisher].0, 100_000);
}

#[test]
fn the_highest_possible_revision_is_left_in_place() {
    let mut world = World::new();
    let id = PeriodId { number: 1, length_minutes: 1440, offset_seconds: 43_200 };
    let other_publisher = (id, Directory { relay: relay(3) });
    world.held.insert(other_publisher.clone(), (u64::MAX, content([9])));
    world.handle(Event::Floor(id, u64::MAX));
    world.handle(Event::Floor(PeriodId { number: u64::MAX, ..id }, 7));
    world.handle(Event::Periods(vec![period(1, 0..8), period(2, 4..12)]));
    world.handle(desired([1]));
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(600));
    assert_eq!(world.held.values().filter(|held| held.1 == content([1])).count(), 15);
    assert!(world.editions_made.len() <= 4, "{} editions", world.editions_made.len());
    assert!(world.uploads < 60, "{} uploads", world.uploads);
}

#[test]
fn an_edition_of_an_earlier_term_is_not_uploaded() {
    let mut world = World::new();
    world.handle(desired([1]));
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(30));
    world.handle(Event::Lead(None));
    world.handle(desired([2]));
    world.handle(Event::Periods(vec![period(1, 1..9), period(2, 4..12)]));
    world.run(Duration::from_secs(30));
    let uploads = world.uploads;
    world.handle(Event::Lead(Some(3)));
    assert_eq!(world.uploads, uploads, "nothing before the new edition");
    world.run(Duration::from_secs(30));
    assert_eq!(world.held.values().filter(|held| held.1 == content([2])).count(), 16);
}

#[test]
fn a_directory_that_lost_the_descriptor_gets_it_again() {
    let mut world = World::new();
    world.handle(desired([1]));
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(120));
    let key = world.held.keys().next().unwrap().clone();
    world.held.remove(&key);
    world.run(READ_BACK + Duration::from_secs(30));
    assert!(world.everywhere(&[point(1)]));
}

#[test]
fn an_old_descriptor_is_renewed_above_the_known_revision() {
    let mut world = World::new();
    let first = PeriodId { number: 1, length_minutes: 1440, offset_seconds: 43_200 };
    world.handle(Event::Floor(first, 1_000_000));
    world.handle(desired([1]));
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(5100));
    let made: BTreeSet<u64> = world.editions.keys().filter(|(period, _)| *period == first).map(|key| key.1).collect();
    assert_eq!(made, BTreeSet::from([1_000_001, 1_000_002]));
}

#[test]
fn an_unreachable_directory_is_retried_with_back_off() {
    let mut plan = PublishPlan::new(Duration::from_secs(5000));
    let id = period(1, 0..1).id;
    plan.handle(Event::Periods(vec![period(1, 0..1)]), at(NOON));
    plan.handle(desired([1]), at(NOON));
    plan.handle(Event::Lead(Some(1)), at(NOON));
    let mut now = NOON + SETTLE;
    plan.handle(Event::Tick, at(now));
    let mut actions = plan.handle(Event::Built(id, Ok(5)), at(now));
    let mut tries = 0;
    while now < NOON + Duration::from_secs(600) {
        for action in std::mem::take(&mut actions) {
            if let Action::Upload { period, directory, revision } = action {
                tries += 1;
                actions.extend(
                    plan.handle(Event::Uploaded { period, directory, revision, outcome: Outcome::Failed }, at(now)),
                );
            }
        }
        now = plan.next_timeout(at(now)).unwrap();
        actions.extend(plan.handle(Event::Tick, at(now)));
    }
    assert!((8..25).contains(&tries), "{tries} tries in ten minutes");
}

#[test]
fn a_higher_revision_announced_by_another_publisher_is_exceeded() {
    let mut world = World::new();
    world.handle(desired([1]));
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(9));
    let first = period(1, 0..0).id;
    world.held.iter_mut().filter(|(key, _)| key.0 == first).for_each(|(_, held)| *held = (70_000, content([9])));
    world.handle(Event::Floor(first, 70_000));
    world.run(Duration::from_secs(9));
    assert!(world.everywhere(&[point(1)]));
}

/// A world in which this node has published for a minute.
fn published() -> World {
    let mut world = World::new();
    world.handle(desired([1, 2]));
    world.handle(Event::Lead(Some(1)));
    world.run(Duration::from_secs(60));
    assert!(world.everywhere(&[point(1), point(2)]));
    world
}

impl World {
    /// Another publisher uploads to every directory of the first period. Without points, only
    /// authorized clients can read its descriptor.
    fn overwrite(&mut self, points: &[IntroPoint]) -> u64 {
        let first = period(1, 0..0).id;
        let revision = self.held.values().map(|held| held.0).max().unwrap() + 1000;
        self.held
            .iter_mut()
            .filter(|(key, _)| key.0 == first)
            .for_each(|(_, held)| *held = (revision, DesiredContent { points: points.to_vec(), ..content([]) }));
        revision
    }

    fn confirmed(&self) -> u16 {
        self.report.iter().map(|period| period.confirmed).sum()
    }
}

#[test]
fn a_publisher_outside_the_cluster_is_reported_once_per_descriptor_and_exceeded() {
    let first = period(1, 0..0).id;
    for (points, readable) in [(&[point(9)][..], true), (&[], false)] {
        let mut world = published();
        let mut seen = Vec::new();
        for _ in 0..2 {
            let revision = world.overwrite(points);
            seen.push(OtherPublisher { period: first, revision, readable });
            world.run(READ_BACK + Duration::from_secs(10));
            assert_eq!(world.other_publishers, seen, "on eight directories, reported once");
            assert!(world.everywhere(&[point(1), point(2)]));
            assert_eq!(world.confirmed(), 16);
        }
    }
}

#[test]
fn a_descriptor_that_a_stranger_has_replaced_is_not_counted_as_ours() {
    let mut world = published();
    world.mute = world.plan.targets.values().flat_map(|target| target.directories.keys().cloned()).collect();
    assert_eq!(world.confirmed(), 16);
    world.run(READ_BACK + Duration::from_secs(2));
    // Two read-backs in a row got no answer, and the upload of the same edition was refused.
    assert_eq!(world.confirmed(), 0);
    assert!(world.other_publishers.is_empty());
    world.mute.clear();
    world.run(BACKOFF.longest * 3);
    assert_eq!(world.confirmed(), 16);
}

#[test]
fn a_directory_that_answers_no_read_back_gets_the_descriptor_again() {
    let mut world = published();
    let key = world.held.keys().next().unwrap().clone();
    world.held.remove(&key);
    world.mute.insert(key.1.clone());
    world.run(READ_BACK + Duration::from_secs(60));
    assert!(world.everywhere(&[point(1), point(2)]), "uploaded after two unanswered read-backs");
}

#[test]
fn no_member_is_taken_for_a_stranger() {
    let first = period(1, 0..0).id;
    // The previous publisher does not know yet that it was replaced: some of its points are desired
    // here, too.
    let mut world = published();
    world.overwrite(&[point(8), point(2)]);
    world.run(READ_BACK * 2);
    assert!(world.other_publishers.is_empty());
    // The previous publisher names points that have left meanwhile.
    world.handle(desired([3]));
    world.run(Duration::from_secs(60));
    world.overwrite(&[point(1)]);
    world.run(READ_BACK * 2);
    assert!(world.other_publishers.is_empty());
    // A member that this node could not hear names other points; then its revision is announced.
    let revision = world.overwrite(&[point(9)]);
    world.handle(Event::OfOthers(first, revision));
    world.handle(Event::Floor(first, revision));
    world.run(READ_BACK * 2);
    assert!(world.other_publishers.is_empty());
    assert!(world.everywhere(&[point(3)]));
}

#[test]
fn a_descriptor_from_before_the_first_upload_is_not_taken_for_a_stranger() {
    let mut world = World::new();
    let first = period(1, 0..0).id;
    for n in 0..8 {
        world.held.insert((first, Directory { relay: relay(n) }), (99_999, content([9])));
    }
    world.handle(desired([1]));
    world.handle(Event::Lead(Some(1)));
    world.run(READ_BACK * 2);
    assert!(world.everywhere(&[point(1)]));
    assert!(world.other_publishers.is_empty(), "it may be left over from a service that has ended");
}
