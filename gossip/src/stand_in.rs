//! Selects the publishers that stand in for silent nodes at the introduction points that published
//! descriptors name.
//!
//! A new descriptor omits a silent node, but clients keep the old one for hours, and until a relay
//! notices that the machine is dead it forwards clients to it. So a living publisher establishes
//! the same points again, with the same keys at the same relays: a relay replaces the old circuit
//! by the new one. When the node returns, it does the same. A node that says goodbye serves until
//! its points are taken in this way, so that no client meets a closed one.
//!
//! [`share`] is a pure function of the view. A hash assigns each point to one publisher, so that
//! publishers with the same view agree and the load is spread. If their views differ, two may serve
//! the same point, one after the other.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::hash::{Label, labelled};
use crate::id::{NodeId, ServiceId};
use crate::record::{Fitness, IntroPoint, Phase, ServedPoint};
use crate::view::{MemberView, Standing, View};

/// Time after a node's last heartbeat during which publishers stand in for it: directories and
/// clients keep a descriptor that long.
pub const STAND_IN_TIME: Duration = Duration::from_secs(3 * 3600);
/// Maximum number of unattended points at which one node serves: the size of one descriptor.
pub const MAX_SHARE: usize = crate::record::MAX_INTRO_POINTS;
/// Maximum number of unattended points over all publishers. They are taken in turns, one per node
/// and service, starting with the nodes heard last.
const MAX_UNATTENDED: usize = 64;

/// An unattended point: an introduction point whose node does not answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnattendedPoint {
    /// The silent node.
    pub node: NodeId,
    /// The service whose clients use the point.
    pub service: ServiceId,
    /// The point as its node announced it last.
    pub served: ServedPoint,
}

/// The points at which this node must stand in, at most [`MAX_SHARE`] over all services. Empty if
/// it may not publish; a service's points are included only if this node serves that service
/// itself.
pub fn share(view: &View, mono: Duration) -> Vec<UnattendedPoint> {
    if !view.may_publish() {
        return Vec::new();
    }
    let mut able: BTreeMap<ServiceId, Vec<NodeId>> = BTreeMap::new();
    let falls_to_me = |unattended: &UnattendedPoint| {
        let publishers = able.entry(unattended.service).or_insert_with(|| able_publishers(view, &unattended.service));
        publisher_for(&unattended.served.point, publishers) == Some(view.me())
    };
    unattended_points(view, mono).into_iter().filter(falls_to_me).take(MAX_SHARE).collect()
}

/// The unattended points that a healthy publisher serves within its share of [`MAX_SHARE`].
pub(crate) fn points_stood_in_for(view: &View, mono: Duration) -> Vec<UnattendedPoint> {
    let mut healthy: BTreeMap<ServiceId, Vec<NodeId>> = BTreeMap::new();
    let mut shares: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut points_stood_in_for = unattended_points(view, mono);
    points_stood_in_for.retain(|unattended| {
        let service = &unattended.service;
        let healthy = healthy.entry(*service).or_insert_with(|| publishers_that_are(view, service, Fitness::Healthy));
        let Some(publisher) = publisher_for(&unattended.served.point, healthy) else { return false };
        let share = shares.entry(publisher).or_default();
        *share += 1;
        *share <= MAX_SHARE
    });
    points_stood_in_for
}

/// The publisher among these to which a point is assigned; `None` if there are none.
pub fn publisher_for(point: &IntroPoint, publishers: &[NodeId]) -> Option<NodeId> {
    publishers.iter().copied().min_by_key(|publisher| lot(point, publisher))
}

/// The publishers that can serve clients of this service: the healthy ones, or if there are none
/// those whose target fails now.
fn able_publishers(view: &View, service: &ServiceId) -> Vec<NodeId> {
    let healthy = publishers_that_are(view, service, Fitness::Healthy);
    if healthy.is_empty() { publishers_that_are(view, service, Fitness::Degraded) } else { healthy }
}

fn publishers_that_are(view: &View, service: &ServiceId, fitness: Fitness) -> Vec<NodeId> {
    let active = view.members().filter(|node| node.is_eligible() && node.phase() == Phase::Active);
    active.filter(|node| node.fitness(service) == fitness).map(MemberView::node).collect()
}

/// The points of nodes that have said goodbye, are dead or evicted, and were heard recently, the
/// most recently heard first.
fn unattended_points(view: &View, mono: Duration) -> Vec<UnattendedPoint> {
    let silence = |node: &MemberView| node.last_heard.map(|heard| mono.saturating_sub(heard));
    let lost = |node: &MemberView| {
        let answers = node.alive && node.standing == Standing::Member;
        // A node that says goodbye keeps its points open until others have taken them. For all
        // others, the shortest silence that means death: one heard only once since our start may be
        // alive.
        let leaves = node.phase() == Phase::Gone && node.standing == Standing::Member;
        let least = if leaves { Duration::ZERO } else { view.patience().least };
        !answers && silence(node).is_some_and(|silence| (least..STAND_IN_TIME).contains(&silence))
    };
    let mut lost: Vec<&MemberView> = view.nodes().filter(|node| node.node() != view.me() && lost(node)).collect();
    lost.sort_by_key(|node| (silence(node), node.node()));
    let records = lost.into_iter().flat_map(MemberView::all_intro_points);
    let points = records.flat_map(|record| {
        let unattended = |served| UnattendedPoint { node: record.node, service: record.service, served };
        record.served().enumerate().map(move |(turn, served)| (turn, unattended(served)))
    });
    // One point of each record in turn: a record with many points, perhaps at relays that do not
    // exist, must leave places for the others.
    let mut points: Vec<(usize, UnattendedPoint)> = points.collect();
    points.sort_by_key(|(turn, _)| *turn);
    points.into_iter().map(|(_, unattended)| unattended).take(MAX_UNATTENDED).collect()
}

fn lot(point: &IntroPoint, publisher: &NodeId) -> [u8; 32] {
    labelled(Label::StandIn, &[&point.session_key.0, publisher.public_key()])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::liveness::Patience;
    use crate::record::{Heartbeat, IntroPoints, RecordKind, Role};
    use crate::signed::Verified;
    use crate::sim::{FOUNDED, Founder, Identity, point, sign};
    use crate::time::Now;

    fn at(seconds: u64) -> Now {
        Now { mono: Duration::from_secs(seconds), unix: FOUNDED + seconds }
    }

    /// Points `10 n` to `10 n + 3`.
    fn points(n: u32) -> Vec<IntroPoint> {
        (0..4).map(|i| point(10 * n + i, 10 * n + i)).collect()
    }

    /// Nodes 0 to 3 are publishers, node 4 is a worker. Node `n` has the points of `points(n)`.
    struct Cluster {
        founder: Founder,
        nodes: Vec<Identity>,
        views: Vec<View>,
    }

    impl Cluster {
        fn new() -> Self {
            let founder = Founder::new(1);
            let role = |n| if n < 4 { Role::Publisher } else { Role::Worker };
            let nodes: Vec<Identity> = (0..5).map(|n| founder.node(n, role(n))).collect();
            let view = |identity: &Identity| View::new(identity.member.clone(), Patience::default(), 0);
            let views = nodes.iter().map(view).collect();
            let mut cluster = Self { founder, nodes, views };
            for n in 0..5 {
                let node = &cluster.nodes[n as usize];
                let card = sign(node.card(1, 100), &node.key).to_bytes().unwrap();
                cluster.deliver(n as usize, RecordKind::Card, &card, 0);
                let points = cluster.nodes[n as usize].points(1, points(n));
                cluster.announce(n as usize, points, 0);
            }
            cluster
        }

        /// Delivers a node's intro points record to all nodes.
        fn announce(&mut self, of: usize, points: IntroPoints, seconds: u64) {
            let kind = RecordKind::IntroPoints(points.service);
            let record = sign(points, &self.nodes[of].key);
            self.deliver(of, kind, &record.to_bytes().unwrap(), seconds);
            self.views[of].fold_points(record, at(seconds)).unwrap();
        }

        fn deliver(&mut self, of: usize, kind: RecordKind, bytes: &[u8], seconds: u64) {
            let origin = self.nodes[of].node();
            for (n, view) in self.views.iter_mut().enumerate() {
                if n != of {
                    view.ingest(origin, kind, bytes, at(seconds)).unwrap();
                }
            }
        }

        /// Delivers a heartbeat of these nodes, in this phase, every two seconds of this span.
        fn beat(&mut self, who: &[usize], phase: Phase, span: std::ops::Range<u64>) {
            for seconds in span.step_by(2) {
                for of in who {
                    let node = &self.nodes[*of];
                    let beat: Verified<_> =
                        sign(Heartbeat { unix: at(seconds).unix, ..node.beat(seconds + 1, phase) }, &node.key);
                    self.deliver(*of, RecordKind::Heartbeat, &beat.to_bytes().unwrap(), seconds);
                    self.views[*of].fold_heartbeat(beat, at(seconds)).unwrap();
                }
                for view in &mut self.views {
                    view.refresh(at(seconds));
                }
            }
        }

        fn share(&self, of: usize, seconds: u64) -> Vec<UnattendedPoint> {
            share(&self.views[of], at(seconds).mono)
        }

        /// Pairs of silent node and publisher, one for each point at which a publisher stands in.
        /// Fails if two publishers stand in at one point.
        fn shared(&self, among: &[usize], seconds: u64) -> Vec<(usize, usize)> {
            let mut seen = BTreeSet::new();
            let mut shared = Vec::new();
            for publisher in among {
                for unattended in self.share(*publisher, seconds) {
                    assert!(seen.insert(unattended.served.point.session_key), "two stand in at one point");
                    let whose = self.nodes.iter().position(|node| node.node() == unattended.node).unwrap();
                    shared.push((whose, *publisher));
                }
            }
            shared
        }
    }

    #[test]
    fn living_publishers_share_the_points_of_dead_nodes_and_of_no_others() {
        let mut cluster = Cluster::new();
        cluster.beat(&[0, 1, 2, 3, 4], Phase::Active, 0..30);
        assert_eq!(cluster.shared(&[0, 1, 2, 3, 4], 30), []);
        cluster.beat(&[0, 1, 4], Phase::Active, 30..60);
        let shared = cluster.shared(&[0, 1, 4], 60);
        let whose: Vec<usize> = shared.iter().map(|(whose, _)| *whose).collect();
        assert_eq!((whose.iter().filter(|it| **it == 2).count(), whose.iter().filter(|it| **it == 3).count()), (4, 4));
        assert_eq!(whose.len(), 8);
        let by: BTreeSet<usize> = shared.iter().map(|(_, by)| *by).collect();
        assert_eq!(by, BTreeSet::from([0, 1]), "a worker lacks the keys, and no publisher does all the work");
        cluster.beat(&[0, 1, 2, 3, 4], Phase::Active, 60..70);
        assert_eq!(cluster.shared(&[0, 1, 2, 3, 4], 70), [], "nodes that returned serve their own points");
    }

    #[test]
    fn no_publisher_stands_in_after_a_short_silence_or_if_no_client_knows_the_points() {
        let mut cluster = Cluster::new();
        cluster.beat(&[0, 1, 2, 3, 4], Phase::Active, 0..30);
        assert_eq!(cluster.shared(&[0, 1, 2], 36), [], "a node that is silent for 8 s may be alive");
        cluster.beat(&[0, 1, 2, 4], Phase::Active, 30..50);
        assert_eq!(cluster.shared(&[0, 1, 2], 50).len(), 4);
        let later = 30 + STAND_IN_TIME.as_secs();
        cluster.beat(&[0, 1, 2, 4], Phase::Active, later - 20..later + 10);
        assert_eq!(cluster.shared(&[0, 1, 2], later + 10), []);
    }

    #[test]
    fn publishers_stand_in_at_once_for_a_node_that_says_goodbye_until_it_is_back() {
        let mut cluster = Cluster::new();
        cluster.beat(&[0, 1, 2, 3, 4], Phase::Active, 0..30);
        cluster.beat(&[3], Phase::Gone, 30..31);
        assert_eq!(cluster.shared(&[0, 1, 2], 30).len(), 4);
        cluster.beat(&[0, 1, 2, 4], Phase::Active, 32..36);
        assert_eq!(cluster.shared(&[0, 1, 2], 36).len(), 4);
        cluster.beat(&[0, 1, 2, 4], Phase::Active, 36..37);
        cluster.beat(&[3], Phase::Joining, 36..37);
        assert_eq!(cluster.shared(&[0, 1, 2], 36), [], "its new process opens them itself");
    }

    #[test]
    fn a_silent_node_with_many_points_leaves_room_for_those_of_others() {
        let mut cluster = Cluster::new();
        let many = (0..20).map(|i| point(100 + i, 100 + i)).collect();
        let many = cluster.nodes[3].points(2, many);
        cluster.announce(3, many, 0);
        cluster.beat(&[0, 1, 2, 3, 4], Phase::Active, 0..30);
        cluster.beat(&[0, 3], Phase::Active, 30..40);
        cluster.beat(&[0], Phase::Active, 40..60);
        // The node that fell silent last is the one with many points.
        let shared = cluster.shared(&[0], 60);
        let of = |whose| shared.iter().filter(|(node, _)| *node == whose).count();
        assert_eq!((of(1), of(2), of(4), of(3)), (4, 4, 4, 8));
    }

    #[test]
    fn only_publishers_that_serve_a_service_themselves_stand_in_for_it() {
        let mut cluster = Cluster::new();
        let service = cluster.founder.service(1);
        for of in [1, 2, 4] {
            let points = (0..2).map(|i| point(100 * of + i, 100 * of + i)).collect();
            let points = IntroPoints { service, ..cluster.nodes[of as usize].points(2, points) };
            cluster.announce(of as usize, points, 0);
        }
        cluster.beat(&[0, 1, 2, 3, 4], Phase::Active, 0..30);
        cluster.beat(&[0, 1, 2, 3], Phase::Active, 30..50);
        let taken = |of: usize| {
            let taken = cluster.share(of, 50).into_iter();
            taken.filter(|unattended| unattended.service == service).count()
        };
        assert_eq!((taken(0), taken(1) + taken(2), taken(3)), (0, 2, 0));
        assert_eq!(cluster.shared(&[0, 1, 2, 3], 50).len(), 6, "and all of them for the first service");
    }

    #[test]
    fn publishers_stand_in_for_an_evicted_node_that_may_still_run() {
        let mut cluster = Cluster::new();
        cluster.beat(&[0, 1, 2, 3, 4], Phase::Active, 0..30);
        let revocation = cluster.founder.revoke(cluster.nodes[4].node());
        for view in &mut cluster.views {
            view.fold_fact(revocation.clone(), at(0)).unwrap();
        }
        cluster.beat(&[0, 1, 2, 3], Phase::Active, 30..44);
        assert_eq!(cluster.shared(&[0, 1, 2, 3], 44).len(), 4);
    }

    #[test]
    fn a_draining_or_unhealthy_publisher_leaves_standing_in_to_the_others() {
        let mut cluster = Cluster::new();
        cluster.beat(&[0, 1, 2, 3, 4], Phase::Active, 0..30);
        let unhealthy = IntroPoints { fitness: Fitness::Degraded, ..cluster.nodes[1].points(2, points(1)) };
        cluster.announce(1, unhealthy, 30);
        for seconds in (30..60).step_by(2) {
            cluster.beat(&[0], Phase::Draining, seconds..seconds + 1);
            cluster.beat(&[1, 2], Phase::Active, seconds..seconds + 1);
        }
        assert_eq!((cluster.share(0, 60).len(), cluster.share(1, 60).len(), cluster.share(2, 60).len()), (0, 0, 8));
        for seconds in (60..80).step_by(2) {
            cluster.beat(&[0], Phase::Draining, seconds..seconds + 1);
            cluster.beat(&[1], Phase::Active, seconds..seconds + 1);
        }
        assert_eq!((cluster.share(0, 80).len(), cluster.share(1, 80).len()), (0, 12), "an error, not silence");
    }
}
