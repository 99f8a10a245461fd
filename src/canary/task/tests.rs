//! The canary against services on the network in memory.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::record::IntroPoint;
use tokio::time::timeout;

use super::*;
use crate::canary::plan::CLIENT_TRIAL;
use crate::keys::IdentitySecret;
use crate::tor::descriptor::{self, DescriptorContent, PeriodCredentials};
use crate::tor::fake::tests::{limits, new_keys};
use crate::tor::fake::{FakeEngine, FakeNet};
use crate::tor::{Incoming, IntroRequest, OpenIntroPoint, RelayChoice, VisitStage};

const LIMIT: Duration = Duration::from_secs(120);
const REVISION: u64 = 1000;

/// A node that knows one service, and remembers the repairs.
struct Host {
    service: ServiceId,
    expected: Expectation,
    repairs: Mutex<Vec<Repair>>,
}

impl CanaryHost for Host {
    fn services(&self) -> Vec<ServiceId> {
        vec![self.service]
    }

    fn publishes(&self) -> bool {
        true
    }

    fn expectation(&self, service: ServiceId) -> Option<Expectation> {
        (service == self.service).then(|| self.expected.clone())
    }

    fn busy(&self) -> bool {
        false
    }

    fn repair(&self, repair: &Repair) {
        self.repairs.lock().push(repair.clone());
    }
}

/// A published service with two points, the first of which is the canary's own.
struct World {
    net: FakeNet,
    secret: IdentitySecret,
    service: ServiceId,
    /// The canary's Tor client.
    engine: Arc<FakeEngine>,
    /// The Tor client that serves the points.
    server: Arc<FakeEngine>,
    points: Vec<IntroPoint>,
    host: Arc<Host>,
    askers: mpsc::Sender<Asker>,
    summary: watch::Receiver<Summary>,
    settings: watch::Sender<CanarySettings>,
    running: tokio::task::JoinHandle<Result<Option<End>, JobPanicked>>,
    _open: Vec<Box<dyn OpenIntroPoint>>,
}

impl World {
    async fn start() -> Self {
        Self::with_client(false).await
    }

    /// The Tor client has taken the place of another one, or not.
    async fn with_client(renewed: bool) -> Self {
        let (net, secret) = (FakeNet::new(3, 20), IdentitySecret::generate(&mut rand::rng()));
        let (engine, server, service) = (net.engine(), net.engine(), secret.service_id());
        let (streams, incoming) = mpsc::channel(8);
        tokio::spawn(accept(incoming));
        let (mut open, mut taken) = (Vec::new(), BTreeSet::new());
        for _ in 0..2 {
            let relay = RelayChoice::AnyBut(taken.clone());
            let request = IntroRequest { service, keys: new_keys(), relay, limits: limits() };
            let point = server.open_intro_point(request, streams.clone()).await.unwrap();
            taken.insert(point.describe().relay);
            open.push(point);
        }
        let points: Vec<_> = open.iter().map(|point| point.describe()).collect();
        let node = NodeId::from_public_key([7; 32]);
        let keys = || points.iter().map(|point| point.session_key);
        let expected = Expectation {
            settled: net.periods().into_iter().map(|period| (period, REVISION)).collect(),
            wanted: Some(keys().collect()),
            owners: keys().map(|key| (key, node)).collect(),
            own: keys().take(1).collect(),
            ports: [(node, 80)].into(),
        };
        let host = Arc::new(Host { service, expected, repairs: Mutex::default() });
        let (settings, settings_watch) = watch::channel(CanarySettings::default());
        let (askers, waiting) = mpsc::channel(2);
        let (summary, summary_watch) = watch::channel(Summary::default());
        let canary = Canary {
            engine: Arc::clone(&engine) as Arc<dyn Engine>,
            host: Arc::clone(&host) as Arc<dyn CanaryHost>,
            renewed,
            settings: settings_watch,
            askers: waiting,
            summary,
        };
        let running = tokio::spawn(canary.run(CancellationToken::new()));
        let summary = summary_watch;
        let world = Self {
            net,
            secret,
            service,
            engine,
            server,
            points,
            host,
            askers,
            summary,
            settings,
            running,
            _open: open,
        };
        world.publish(REVISION).await;
        world
    }

    async fn publish(&self, revision: u64) {
        for period in self.server.publication(self.service).await.unwrap() {
            let now = self.net.now();
            let credentials = PeriodCredentials::derive(&self.secret, period.id, now).unwrap();
            let content = DescriptorContent { revision, points: self.points.clone(), ..Default::default() };
            let text = descriptor::build(&credentials, &content, period.parameters, now).unwrap();
            for directory in &period.directories {
                self.server.upload(directory, period.id, &text, LIMIT).await.unwrap();
            }
        }
    }

    async fn by_hand(&self) -> Findings {
        let (asker, answer) = oneshot::channel();
        self.askers.send(asker).await.unwrap();
        timeout(LIMIT, answer).await.unwrap().unwrap().remove(0)
    }
}

/// Accepts every stream.
async fn accept(mut incoming: mpsc::Receiver<Incoming>) {
    while let Some(stream) = incoming.recv().await {
        tokio::spawn(async move { stream.request.accept().await.map(drop) });
    }
}

#[tokio::test(start_paused = true)]
async fn by_hand_all_directories_are_asked_and_all_points_visited() {
    let world = World::start().await;
    let findings = world.by_hand().await;
    assert!(findings.all_well(), "{findings:?}");
    assert_eq!((findings.directories.len(), findings.points.len()), (6, 2));
    assert_eq!(findings.points.iter().filter(|point| point.own).count(), 1);
    assert!(world.host.repairs.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn by_itself_one_directory_is_asked() {
    let mut world = World::start().await;
    timeout(Duration::from_secs(600), world.summary.wait_for(|summary| summary.runs == 1)).await.unwrap().unwrap();
    let (_, findings) = world.summary.borrow().last[&world.service].clone();
    assert!(findings.all_well(), "{findings:?}");
    assert_eq!((findings.directories.len(), findings.points.len()), (1, 2));
    world.settings.send_replace(CanarySettings { enabled: false, ..CanarySettings::default() });
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.summary.borrow().runs, 1);
    assert!(world.by_hand().await.all_well(), "by hand it runs all the same");
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_lost_the_descriptor_is_found_and_doubted() {
    let world = World::start().await;
    let period = world.net.periods()[0];
    let lost = world.net.directories(world.service, period).swap_remove(0);
    world.net.lose_descriptor(&lost, world.service, period);
    let findings = world.by_hand().await;
    let missing: Vec<_> = findings.directories.iter().filter(|it| it.held == Held::Missing).collect();
    assert!(missing.len() == 1 && missing[0].directory == lost, "{findings:?}");
    world.by_hand().await;
    let expected = [Repair::Republish { service: world.service, period, directory: lost }];
    assert_eq!(*world.host.repairs.lock(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_dead_point_of_this_node_is_replaced_and_another_only_shown() {
    let world = World::start().await;
    for point in &world.points {
        world.net.deafen(point);
    }
    for _ in 0..3 {
        let findings = world.by_hand().await;
        let stages: Vec<_> = findings.points.iter().map(|point| point.outcome.clone()).collect();
        assert!(stages.iter().all(|it| matches!(it, Outcome::Failed(VisitStage::Introduction, _))));
    }
    // The only point of this node: first its circuit is made again.
    assert_eq!(*world.host.repairs.lock(), [Repair::RebuildCircuits]);
    for _ in 0..3 {
        world.by_hand().await;
    }
    let replaced = Repair::ReplacePoint { service: world.service, point: world.points[0].session_key };
    assert_eq!(*world.host.repairs.lock(), [Repair::RebuildCircuits, replaced]);
}

#[tokio::test(start_paused = true)]
async fn where_nothing_else_has_helped_the_canary_asks_for_another_client_then_for_another_process() {
    for renewed in [false, true] {
        let world = World::with_client(renewed).await;
        world.points.iter().for_each(|point| world.net.deafen(point));
        world.settings.send_replace(CanarySettings { enabled: false, ..CanarySettings::default() });
        if !renewed {
            tokio::time::sleep(CLIENT_TRIAL).await;
            world.publish(2 * REVISION).await;
        }
        for _ in 0..9 {
            world.by_hand().await;
        }
        let ended = timeout(LIMIT, world.running).await.expect("it goes on");
        let why = match ended.unwrap().unwrap().expect("no reason is given") {
            End::Renew(why) if !renewed => why,
            End::Exit(why) if renewed => why,
            other => panic!("{other:?}"),
        };
        assert!(why.contains("no client gets through"), "{why}");
        assert_eq!(world.host.repairs.lock().len(), 2, "{:?}", world.host.repairs.lock());
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_network_repairs_nothing() {
    let mut world = World::start().await;
    world.engine.freeze(true);
    let day = Duration::from_secs(24 * 3600);
    let failed = timeout(day, world.summary.wait_for(|summary| summary.failures >= 12)).await.unwrap().unwrap().clone();
    assert_eq!((failed.repairs.len(), world.host.repairs.lock().len()), (0, 0));
    world.engine.freeze(false);
    world.publish(2 * REVISION).await;
    assert!(world.by_hand().await.all_well());
}
