//! The part that runs the canary: what it may know of this node, how its repairs are passed on, and
//! what it found, for `status` and the `canary` command.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::coordinator::{Coordinator, Leadership};
use rustbalance_gossip::id::{NodeId, ServiceId};
use rustbalance_gossip::record::PeriodId;
use rustbalance_gossip::time::Now;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error};

use super::NodeError;
use super::cluster::Cluster;
use super::service_units::ServiceViews;
use super::supervisor::Supervisor;
use crate::balance::task::PointRepair;
use crate::canary::findings::{DirectoryFinding, Expectation, Findings, Held, Outcome, PointFinding, PointKey};
use crate::canary::plan::{CanarySettings, Repair, RepairKind, Summary};
use crate::canary::task::{Asker, Canary, CanaryHost, End};
use crate::clock::unix_now;
use crate::config::Targets;
use crate::control::{
    CanaryDirectoryState, CanaryDirectoryStatus, CanaryPointState, CanaryPointStatus, CanaryRepairStatus,
    CanaryRunStatus, CanaryStatus, Response,
};
use crate::tor::{Directory, Engine, ServiceGuard, VisitStage};

/// Time limit for the part to stop: it drops its circuits.
const STOPS: Duration = Duration::from_secs(5);
/// Operators who may wait for a run at once.
const ASKERS: usize = 2;
/// Repairs that may wait for a part.
const REPAIRS: usize = 32;

/// The canary's way to the parts of one service.
#[derive(Clone)]
pub(super) struct ServiceRepairs {
    pub(super) points: mpsc::Sender<PointRepair>,
    pub(super) doubts: mpsc::Sender<(PeriodId, Directory)>,
}

impl ServiceRepairs {
    /// The senders, and what the parts receive.
    pub(super) fn new() -> (Self, mpsc::Receiver<PointRepair>, mpsc::Receiver<(PeriodId, Directory)>) {
        let (points, of_points) = mpsc::channel(REPAIRS);
        let (doubts, of_directories) = mpsc::channel(REPAIRS);
        (Self { points, doubts }, of_points, of_directories)
    }
}

/// What the canary needs.
pub(super) struct CanaryInputs {
    pub(super) engine: Arc<dyn Engine>,
    /// Whether this client has taken the place of another one in this process.
    pub(super) renewed: bool,
    pub(super) cluster: Cluster,
    pub(super) services: watch::Receiver<ServiceViews>,
    pub(super) targets: watch::Receiver<Targets>,
    pub(super) limits: Arc<ServiceGuard>,
    pub(super) settings: watch::Receiver<CanarySettings>,
}

/// The running canary, for requests.
pub(super) struct CanaryHandle {
    askers: mpsc::Sender<Asker>,
    summary: watch::Receiver<Summary>,
    settings: watch::Receiver<CanarySettings>,
}

impl CanaryHandle {
    /// Starts the canary.
    pub(super) fn start(inputs: CanaryInputs, parts: &mut Supervisor) -> Self {
        let (askers, waiting) = mpsc::channel(ASKERS);
        let (summary, summary_watch) = watch::channel(Summary::default());
        let settings = inputs.settings.clone();
        let canary = Canary {
            engine: Arc::clone(&inputs.engine),
            renewed: inputs.renewed,
            settings: settings.clone(),
            host: Arc::new(inputs),
            askers: waiting,
            summary,
        };
        parts.start("canary", STOPS, |stop| async move {
            match canary.run(stop).await {
                Ok(None) => Ok(()),
                Ok(Some(End::Renew(why))) => Err(NodeError::Unreachable(why)),
                Ok(Some(End::Exit(why))) => Err(NodeError::StillUnreachable(why)),
                Err(error) => {
                    error!(name: "canary_failed", %error, "the canary has failed");
                    Ok(())
                }
            }
        });
        Self { askers, summary: summary_watch, settings }
    }

    /// Has the canary run at all services, and waits for the findings.
    pub(super) async fn run(&self) -> Response {
        let (asker, answer) = oneshot::channel();
        if self.askers.try_send(asker).is_err() {
            return Response::refused("the canary has been asked to run several times: try again in a minute");
        }
        match answer.await {
            Ok(all) => Response::Canary { services: all.iter().map(|it| run_status(it, unix_now())).collect() },
            Err(_) => Response::refused("the daemon is stopping"),
        }
    }

    /// The part of `status`.
    pub(super) fn status(&self) -> CanaryStatus {
        let summary = self.summary.borrow();
        let repairs = summary.repairs.iter().map(|(kind, count)| (kind.name().to_owned(), *count)).collect();
        let last_repair = |(at, kind, why): &(u64, RepairKind, String)| CanaryRepairStatus {
            at: *at,
            kind: kind.name().into(),
            why: why.clone(),
        };
        CanaryStatus {
            enabled: self.settings.borrow().enabled,
            runs: summary.runs,
            failures: summary.failures,
            last_success: summary.last_success,
            repairs,
            last_repair: summary.last_repair.as_ref().map(last_repair),
            services: summary.last.values().map(|(at, findings)| run_status(findings, *at)).collect(),
        }
    }
}

impl CanaryHost for CanaryInputs {
    fn services(&self) -> Vec<ServiceId> {
        let known: Vec<_> = self.services.borrow().keys().copied().collect();
        // Clients cannot use a service without points, and `status` says so.
        let has_points =
            |coordinator: &Coordinator, service: &ServiceId| !coordinator.desired_points(service).is_empty();
        self.cluster.look(|coordinator, _| known.into_iter().filter(|it| has_points(coordinator, it)).collect())
    }

    fn publishes(&self) -> bool {
        self.cluster.look(|coordinator, _| matches!(coordinator.leadership(), Leadership::Publisher { .. }))
    }

    fn expectation(&self, service: ServiceId) -> Option<Expectation> {
        let own = {
            let services = self.services.borrow();
            let points = services.get(&service)?.points.borrow();
            points.iter().map(|point| point.point.session_key).collect()
        };
        let expected = self.cluster.look(|coordinator, now| expectation(coordinator, now, service));
        let first = self.cluster.look(|coordinator, _| coordinator.view().cluster().first_service());
        let targets = self.targets.borrow().by_service(first);
        let port = targets.get(&service).and_then(|targets| targets.first()).map(|target| target.port);
        let ports = ports(&expected.owners, expected.ports, port);
        Some(Expectation { own, ports, ..expected })
    }

    fn busy(&self) -> bool {
        let (now, bounds) = (self.engine.client_circuits(), self.limits.circuits());
        let is_full = |used: usize, most: usize| used.saturating_mul(10) >= most.saturating_mul(9);
        is_full(now.open, bounds.open) || is_full(now.making, bounds.making)
    }

    fn repair(&self, repair: &Repair) {
        let services = self.services.borrow();
        let repairs = |service| services.get(service).map(|service| &service.repairs);
        let passed_on = match repair {
            Repair::Republish { service, period, directory } => {
                repairs(service).is_some_and(|it| it.doubts.try_send((*period, directory.clone())).is_ok())
            }
            Repair::ReplacePoint { service, point } => {
                repairs(service).is_some_and(|it| it.points.try_send(PointRepair::Replace(*point)).is_ok())
            }
            Repair::RebuildCircuits => {
                self.engine.renew_circuits();
                let reopen = |points: &mpsc::Sender<PointRepair>| points.try_send(PointRepair::Reopen).is_ok();
                // Each is asked, whether the others take it or not.
                services.values().filter(|service| !reopen(&service.repairs.points)).count() == 0
            }
            Repair::RenewTor | Repair::Exit => true,
        };
        if !passed_on {
            debug!(?repair, "a repair was not passed on: its service has stopped, or others wait");
        }
    }
}

/// What the coordinator knows: everything but this node's own points, and only the ports that
/// members have announced.
fn expectation(coordinator: &Coordinator, now: Now, service: ServiceId) -> Expectation {
    let view = coordinator.view();
    let desired = coordinator.desired_points(&service);
    let publishes = matches!(coordinator.leadership(), Leadership::Publisher { .. });
    let holder = if publishes { Some(view.me()) } else { view.holder(now).map(|(node, _)| node) };
    let publication = holder.and_then(|node| view.member(&node)?.publication(&service));
    let complete = publication.into_iter().flat_map(|it| &it.periods);
    let complete = complete.filter(|period| period.directories > 0 && period.confirmed == period.directories);
    let mut owners: BTreeMap<PointKey, NodeId> = BTreeMap::new();
    let mut ports = BTreeMap::new();
    for member in view.members() {
        let points = member.intro_points(&service).into_iter().flat_map(|record| &record.points);
        owners.extend(points.map(|point| (point.session_key, member.node())));
        if service == view.cluster().first_service() {
            ports.extend(member.card().and_then(|card| card.ports.first()).map(|port| (member.node(), *port)));
        }
    }
    owners.extend(desired.iter().filter_map(|(source, point)| Some((point.session_key, source.node()?))));
    Expectation {
        settled: complete.map(|period| (period.period, period.revision)).collect(),
        wanted: publishes.then(|| desired.iter().map(|(_, point)| point.session_key).collect::<BTreeSet<_>>()),
        owners,
        own: BTreeSet::new(),
        ports,
    }
}

/// A port for each node that has points: the one it has announced, else this node's.
fn ports(
    owners: &BTreeMap<PointKey, NodeId>,
    mut announced: BTreeMap<NodeId, u16>,
    own: Option<u16>,
) -> BTreeMap<NodeId, u16> {
    if let Some(own) = own {
        for node in owners.values() {
            announced.entry(*node).or_insert(own);
        }
    }
    announced
}

fn run_status(findings: &Findings, at: u64) -> CanaryRunStatus {
    CanaryRunStatus {
        service: findings.service.to_string(),
        at,
        well: findings.all_well(),
        problem: findings.problem.clone(),
        directories: findings.directories.iter().map(directory_status).collect(),
        points: findings.points.iter().map(point_status).collect(),
    }
}

fn directory_status(finding: &DirectoryFinding) -> CanaryDirectoryStatus {
    let (state, revision, why) = match &finding.held {
        Held::Current(revision) => (CanaryDirectoryState::Current, Some(*revision), None),
        Held::Missing => (CanaryDirectoryState::Missing, None, None),
        Held::Old { revision, announced } => {
            (CanaryDirectoryState::Old, Some(*revision), Some(format!("revision {announced} was announced")))
        }
        Held::Differs(revision) => (CanaryDirectoryState::Differs, Some(*revision), None),
        Held::Unreadable(why) => (CanaryDirectoryState::Unreadable, None, Some(why.clone())),
        Held::NoAnswer(why) => (CanaryDirectoryState::NoAnswer, None, Some(why.clone())),
    };
    CanaryDirectoryStatus {
        relay: finding.directory.relay.to_string(),
        period: finding.period.number,
        state,
        revision,
        why,
        seconds: finding.took.as_secs_f64(),
    }
}

fn point_status(finding: &PointFinding) -> CanaryPointStatus {
    let (state, why) = match &finding.outcome {
        Outcome::Reached => (CanaryPointState::Reached, None),
        Outcome::NotTried => (CanaryPointState::NotTried, None),
        Outcome::Failed(stage, why) => {
            let state = match stage {
                VisitStage::Network => CanaryPointState::Network,
                VisitStage::Introduction => CanaryPointState::Introduction,
                VisitStage::Rendezvous => CanaryPointState::Rendezvous,
                VisitStage::Port => CanaryPointState::Port,
            };
            (state, Some(why.clone()))
        }
    };
    CanaryPointStatus {
        node: finding.owner.map(|node| node.to_string()),
        me: finding.own,
        relay: finding.relay.to_string(),
        session_key: data_encoding::HEXLOWER.encode(&finding.key.0),
        state,
        why,
        seconds: finding.took.as_secs_f64(),
    }
}
