//! What a run expects and what it finds, and how a descriptor is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::id::{NodeId, ServiceId};
use rustbalance_gossip::record::{PeriodId, RelayId};

use crate::tor::descriptor::DescriptorContent;
use crate::tor::{Directory, VisitStage};

/// The session key of an introduction point, which names it.
pub type PointKey = FixedBytes<32>;

/// What this node knows of a service when a run begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expectation {
    /// The revision that the publisher has announced for each period, if every directory has
    /// confirmed it. While the publisher is still uploading, no directory can be called late.
    pub settled: BTreeMap<PeriodId, u64>,
    /// The points that this node, as the publisher, wants in the descriptor; `None` while another
    /// node publishes.
    pub wanted: Option<BTreeSet<PointKey>>,
    /// The node of each point that a member offers.
    pub owners: BTreeMap<PointKey, NodeId>,
    /// The points of this node.
    pub own: BTreeSet<PointKey>,
    /// A virtual port that each node serves.
    pub ports: BTreeMap<NodeId, u16>,
}

/// The findings of one run at one service.
#[derive(Debug, Clone, PartialEq)]
pub struct Findings {
    /// The service.
    pub service: ServiceId,
    /// The directories that were asked, in this order.
    pub directories: Vec<DirectoryFinding>,
    /// The points of the descriptor that the run was to visit.
    pub points: Vec<PointFinding>,
    /// All points of this node when the run began.
    pub own: BTreeSet<PointKey>,
    /// Why the run could not be made; `None` if it could.
    pub problem: Option<String>,
    /// Whether the run only tried again what had failed before.
    pub repeated: bool,
    /// Whether this node had no room for more clients during the run, so that its own points may
    /// not have answered for that reason.
    pub busy: bool,
}

/// What a directory gave.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectoryFinding {
    /// The period of the descriptor.
    pub period: PeriodId,
    /// The directory.
    pub directory: Directory,
    /// What it holds.
    pub held: Held,
    /// How long it took.
    pub took: Duration,
}

/// The descriptor of a directory, judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// One that clients can use, not older than announced.
    Current(u64),
    /// It holds no descriptor.
    Missing,
    /// One that is older than a revision which this directory has confirmed.
    Old {
        /// Its revision.
        revision: u64,
        /// The announced revision.
        announced: u64,
    },
    /// One that has the announced revision and names other points than wanted, or that names no
    /// point of a member.
    Differs(u64),
    /// One that cannot be read, and why.
    Unreadable(String),
    /// Unknown: the directory did not answer, and why.
    NoAnswer(String),
}

/// What came of one point.
#[derive(Debug, Clone, PartialEq)]
pub struct PointFinding {
    /// The point.
    pub key: PointKey,
    /// Its relay.
    pub relay: RelayId,
    /// The node that serves there; `None` if no member offers this point.
    pub owner: Option<NodeId>,
    /// Whether it is this node's.
    pub own: bool,
    /// The outcome of the visit.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// The outcome of a visit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The stream was connected.
    Reached,
    /// The step that failed, and why.
    Failed(VisitStage, String),
    /// There was no time left for it.
    NotTried,
}

impl Findings {
    /// The findings of a run that could not be made.
    pub fn none(service: ServiceId, problem: impl Into<String>) -> Self {
        let (directories, points, own) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { service, directories, points, own, problem: Some(problem.into()), repeated: false, busy: false }
    }

    /// Whether a client would have found nothing to complain about.
    pub fn all_well(&self) -> bool {
        self.problem.is_none()
            && self.directories.iter().all(|it| matches!(it.held, Held::Current(_)))
            && self.points.iter().all(|it| it.outcome == Outcome::Reached)
    }

    /// The directories and the points at which something failed.
    pub fn faulty(&self) -> (BTreeSet<Directory>, BTreeSet<PointKey>) {
        let directories = self.directories.iter().filter(|it| !matches!(it.held, Held::Current(_)));
        let points = self.points.iter().filter(|it| it.outcome != Outcome::Reached);
        (directories.map(|it| it.directory.clone()).collect(), points.map(|it| it.key).collect())
    }

    /// What went well of these findings, with those of a later run that tried the rest again.
    pub fn updated(mut self, later: Self) -> Self {
        let (directories, points) = self.faulty();
        let again = |it: &DirectoryFinding| later.directories.iter().any(|new| new.directory == it.directory);
        self.directories.retain(|it| !directories.contains(&it.directory) && !again(it));
        self.points.retain(|it| !points.contains(&it.key) && !later.points.iter().any(|new| new.key == it.key));
        self.directories.extend(later.directories);
        self.points.extend(later.points);
        Self { own: later.own, problem: later.problem, busy: later.busy, ..self }
    }

    /// Whether anything in the network has answered: if not, this node's own way into the network
    /// is the fault, and nothing is known of the others.
    pub fn network_answers(&self) -> bool {
        let beyond = |it: &PointFinding| match &it.outcome {
            Outcome::Reached => true,
            Outcome::Failed(stage, _) => *stage > VisitStage::Network,
            Outcome::NotTried => false,
        };
        self.directories.iter().any(|it| !matches!(it.held, Held::NoAnswer(_))) || self.points.iter().any(beyond)
    }
}

/// Judges the descriptor that a directory holds for a period.
pub fn judge(expected: &Expectation, period: PeriodId, content: &DescriptorContent) -> Held {
    let revision = content.revision;
    let named: BTreeSet<_> = content.points.iter().map(|point| point.session_key).collect();
    match (expected.settled.get(&period), &expected.wanted) {
        (Some(announced), _) if revision < *announced => Held::Old { revision, announced: *announced },
        (Some(announced), Some(wanted)) if revision == *announced && named != *wanted => Held::Differs(revision),
        (Some(announced), _)
            if revision > *announced
                && !expected.owners.is_empty()
                && named.iter().all(|point| !expected.owners.contains_key(point)) =>
        {
            Held::Differs(revision)
        }
        _ => Held::Current(revision),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rustbalance_gossip::record::IntroPoint;

    use super::*;

    const PERIOD: PeriodId = PeriodId { number: 7, length_minutes: 1440, offset_seconds: 0 };

    fn point(n: u8) -> IntroPoint {
        IntroPoint {
            relay: RelayId { rsa: FixedBytes([n; 20]), ed25519: FixedBytes([n; 32]) },
            link_specifiers: Vec::new(),
            onion_key: FixedBytes([n; 32]),
            session_key: FixedBytes([n; 32]),
            encryption_key: FixedBytes([n; 32]),
        }
    }

    fn content(revision: u64, points: &[u8]) -> DescriptorContent {
        DescriptorContent {
            revision,
            points: points.iter().map(|n| point(*n)).collect(),
            subprotocols: BTreeSet::new(),
        }
    }

    fn expected(settled: Option<u64>, wanted: Option<&[u8]>) -> Expectation {
        let node = NodeId::from_public_key([9; 32]);
        Expectation {
            settled: settled.map(|revision| (PERIOD, revision)).into_iter().collect(),
            wanted: wanted.map(|keys| keys.iter().map(|n| FixedBytes([*n; 32])).collect()),
            owners: [1, 2, 3].map(|n| (FixedBytes([n; 32]), node)).into(),
            ..Expectation::default()
        }
    }

    #[test]
    fn a_descriptor_is_old_only_below_a_revision_that_every_directory_had() {
        let held = |settled, revision| judge(&expected(settled, None), PERIOD, &content(revision, &[1, 2]));
        assert_eq!(held(Some(10), 9), Held::Old { revision: 9, announced: 10 });
        assert_eq!(held(Some(10), 10), Held::Current(10));
        assert_eq!(held(Some(10), 11), Held::Current(11), "the announcement may come later than the descriptor");
        assert_eq!(held(None, 9), Held::Current(9), "the publisher is still uploading");
    }

    #[test]
    fn only_the_publisher_knows_which_points_a_revision_names() {
        let held =
            |wanted, revision, points: &[u8]| judge(&expected(Some(10), wanted), PERIOD, &content(revision, points));
        assert_eq!(held(Some(&[1, 2][..]), 10, &[1, 2]), Held::Current(10));
        assert_eq!(held(Some(&[1, 2][..]), 10, &[1, 3]), Held::Differs(10));
        assert_eq!(held(None, 10, &[1, 3]), Held::Current(10));
        // A newer one is of another publisher if it names nothing of ours.
        assert_eq!(held(None, 11, &[3, 8]), Held::Current(11));
        assert_eq!(held(None, 11, &[7, 8]), Held::Differs(11));
    }

    #[test]
    fn a_run_without_any_answer_says_nothing_about_the_service() {
        let mut findings = Findings::none(ServiceId::from_public_key([1; 32]), "");
        findings.problem = None;
        assert!(!findings.network_answers());
        let mut visit = |outcome| {
            let point = point(1);
            findings.points = vec![PointFinding {
                key: point.session_key,
                relay: point.relay,
                owner: None,
                own: false,
                outcome,
                took: Duration::ZERO,
            }];
            (findings.network_answers(), findings.all_well())
        };
        assert_eq!(visit(Outcome::Failed(VisitStage::Network, String::new())), (false, false));
        assert_eq!(visit(Outcome::NotTried), (false, false));
        assert_eq!(visit(Outcome::Failed(VisitStage::Introduction, String::new())), (true, false));
        assert_eq!(visit(Outcome::Reached), (true, true));
    }
}
