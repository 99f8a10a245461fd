//! Runs the conformance suite over the fake, and tests its faults.

use std::time::{Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

use super::*;
use crate::keys::{IdentitySecret, NodeSecret, PointSeed};
use crate::tor::conformance::{self, Stage, Visitor};
use crate::tor::descriptor::{self, DescriptorContent, PeriodCredentials};
use crate::tor::{IntroPointKeys, RelayChoice, ReplayLog, ServiceGuard, ServiceLimits};

const LIMIT: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(500);

#[async_trait]
impl Stage for FakeNet {
    async fn engine(&self) -> Arc<dyn Engine> {
        FakeNet::engine(self)
    }

    async fn guest(&self, to: OnionAddress, port: u16, limit: Duration) -> Result<Visitor, TorError> {
        let engine = FakeNet::engine(self);
        let stream = engine.dial(to, port, limit).await?;
        Ok(Visitor { stream, life: Box::new(engine) })
    }

    async fn kill_relay(&self, relay: RelayId) -> bool {
        FakeNet::kill_relay(self, relay);
        true
    }

    fn patience(&self) -> Duration {
        LIMIT
    }

    fn short(&self) -> Duration {
        SHORT
    }
}

/// A test for each behaviour of the suite.
macro_rules! conforms {
    ($($behaviour:ident),* $(,)?) => {
        $(#[tokio::test]
        async fn $behaviour() {
            conformance::$behaviour(&FakeNet::new(1, 12)).await;
        })*
    };
}

conforms!(
    becomes_ready,
    directories_keep_the_highest_revision,
    own_service_is_restricted,
    clients_are_served_at_an_intro_point,
    a_visit_goes_through_the_point_that_it_names,
    points_keep_clear_of_excluded_relays,
    a_dropped_point_serves_again_with_its_keys,
    a_point_passes_to_the_node_that_opened_it_last,
    streams_on_one_circuit_are_bounded,
    rendezvous_are_bounded,
    circuits_are_shown_and_closed,
    a_point_is_lost_with_its_relay,
);

#[tokio::test]
async fn the_conformance_suite_passes_on_a_slow_network() {
    let net = FakeNet::new(2, 30);
    net.latency(Duration::from_millis(2));
    conformance::all(&net).await;
}

/// Limits that no test reaches.
pub(crate) fn limits() -> Arc<ServiceGuard> {
    Arc::new(ServiceGuard::fixed(ServiceLimits {
        pending_rendezvous: 8,
        open_rendezvous: 8,
        streams_per_circuit: 8,
        refusals_per_circuit: None,
        introduction_queue: 8,
        introductions_per_second: None,
    }))
}

/// Random keys of a new point, with a replay log in memory.
pub(crate) fn new_keys() -> IntroPointKeys {
    let secrets = PointSeed::from_bytes(&Zeroizing::new(rand::random())).draw(&mut rand::rng());
    IntroPointKeys { secrets, replays: Arc::new(ReplayLog::ephemeral()) }
}

/// A node with an introduction point for the service of `master`; it echoes all streams.
async fn node(net: &FakeNet, master: &IdentitySecret) -> (Arc<FakeEngine>, Box<dyn OpenIntroPoint>) {
    let engine = net.engine();
    let (streams, mut incoming) = mpsc::channel::<Incoming>(8);
    tokio::spawn(async move {
        while let Some(Incoming { request, .. }) = incoming.recv().await {
            let (mut reader, mut writer) = tokio::io::split(request.accept().await.unwrap());
            tokio::spawn(async move { tokio::io::copy(&mut reader, &mut writer).await });
        }
    });
    let relay = RelayChoice::AnyBut(Default::default());
    let request = IntroRequest { service: master.service_id(), keys: new_keys(), relay, limits: limits() };
    let point = engine.open_intro_point(request, streams).await.unwrap();
    (engine, point)
}

async fn publish(engine: &FakeEngine, master: &IdentitySecret, points: &[&dyn OpenIntroPoint], revision: u64) {
    let points: Vec<_> = points.iter().map(|point| point.describe()).collect();
    for period in engine.publication(master.service_id()).await.unwrap() {
        let credentials = PeriodCredentials::derive(master, period.id, SystemTime::now()).unwrap();
        let content = DescriptorContent { revision, points: points.clone(), ..Default::default() };
        let text = descriptor::build(&credentials, &content, period.parameters, SystemTime::now()).unwrap();
        for directory in &period.directories {
            engine.upload(directory, period.id, &text, LIMIT).await.unwrap();
        }
    }
}

async fn echo(stream: &mut BoxStream, limit: Duration) -> bool {
    let mut byte = [0];
    let echo = async { stream.write_all(b"x").await.is_ok() && stream.read_exact(&mut byte).await.is_ok() };
    timeout(limit, echo).await.unwrap_or(false)
}

fn master() -> IdentitySecret {
    let mut bytes = Zeroizing::new([9; 64]);
    (bytes[0], bytes[31]) = (8, 72);
    IdentitySecret::from_expanded(&bytes).unwrap()
}

#[tokio::test]
async fn a_killed_node_breaks_its_streams_and_serves_no_client() {
    let (net, master) = (FakeNet::new(3, 12), master());
    let (host, point) = node(&net, &master).await;
    publish(&host, &master, &[&*point], 1).await;
    let address = master.service_id().address();
    let client = net.engine();
    let mut stream = client.dial(address, 80, LIMIT).await.unwrap();
    assert!(echo(&mut stream, LIMIT).await);
    host.kill();
    assert_eq!(timeout(LIMIT, stream.read(&mut [0])).await.unwrap().unwrap(), 0);
    timeout(LIMIT, point.lost()).await.unwrap();
    assert!(matches!(client.dial(address, 80, LIMIT).await, Err(TorError::Unreachable { .. })));
    let dead = host.publication(master.service_id()).await;
    assert!(matches!(dead, Err(TorError::Stopped(_))));
}

#[tokio::test]
async fn a_frozen_node_answers_nothing_and_thaws() {
    let (net, master) = (FakeNet::new(4, 12), master());
    let (host, point) = node(&net, &master).await;
    publish(&host, &master, &[&*point], 1).await;
    let address = master.service_id().address();
    let client = net.engine();
    let mut stream = client.dial(address, 80, LIMIT).await.unwrap();
    host.freeze(true);
    assert!(!echo(&mut stream, SHORT).await);
    assert!(matches!(net.engine().dial(address, 80, SHORT).await, Err(TorError::Timeout { .. })));
    let period = net.periods()[0];
    let upload = host.upload(&net.directories(master.service_id(), period)[0], period, "", SHORT).await;
    assert!(matches!(upload, Err(TorError::Timeout { .. })));
    assert!(timeout(SHORT, point.lost()).await.is_err(), "a frozen node's circuit was closed");
    host.freeze(false);
    let mut byte = [0];
    timeout(LIMIT, stream.read_exact(&mut byte)).await.unwrap().unwrap();
    assert_eq!(&byte, b"x");
}

#[tokio::test]
async fn severed_nodes_reach_all_others_but_not_each_other() {
    let net = FakeNet::new(5, 12);
    let key = DiscoverySecret::generate(&mut rand::rng());
    let [one, other, third] = [0; 3].map(|_| net.engine());
    let identity = NodeSecret::generate(&mut rand::rng());
    let node = identity.node_id();
    let (streams, mut incoming) = mpsc::channel::<Incoming>(8);
    tokio::spawn(async move {
        while let Some(Incoming { request, .. }) = incoming.recv().await {
            drop(request.accept().await);
        }
    });
    let service = OwnService { identity, discovery: vec![key.public()], ports: vec![1], refused: Arc::default() };
    let _listening = one.listen(service, streams).await.unwrap();
    for engine in [&other, &third] {
        engine.trust_discovery(node, &[&key]).unwrap();
    }
    net.sever(&one, &other);
    assert!(matches!(other.dial(node.address(), 1, SHORT).await, Err(TorError::Timeout { .. })));
    assert!(third.dial(node.address(), 1, LIMIT).await.is_ok());
    net.heal();
    assert!(other.dial(node.address(), 1, LIMIT).await.is_ok());
}

#[tokio::test]
async fn a_client_takes_another_point_if_the_first_is_dead() {
    let (net, master) = (FakeNet::new(6, 12), master());
    let (one, one_point) = node(&net, &master).await;
    let (two, two_point) = node(&net, &master).await;
    publish(&one, &master, &[&*one_point, &*two_point], 1).await;
    one.kill();
    for _ in 0..8 {
        net.engine().dial(master.service_id().address(), 80, LIMIT).await.unwrap();
    }
    assert_eq!(two_point.introductions(), 8);
    drop(two);
}

#[tokio::test]
async fn clients_move_on_with_the_time_period() {
    let (net, master) = (FakeNet::new(7, 12), master());
    let (host, point) = node(&net, &master).await;
    publish(&host, &master, &[&*point], 1).await;
    let (address, changes) = (master.service_id().address(), host.network_changes());
    net.next_period();
    assert!(changes.has_changed().unwrap());
    net.engine().dial(address, 80, LIMIT).await.unwrap();
    net.next_period();
    assert!(net.engine().dial(address, 80, LIMIT).await.is_err(), "no descriptor was published for this period");
    publish(&host, &master, &[&*point], 2).await;
    net.engine().dial(address, 80, LIMIT).await.unwrap();
}

#[tokio::test]
async fn latency_delays_streams() {
    let (net, master) = (FakeNet::new(8, 12), master());
    let (host, point) = node(&net, &master).await;
    publish(&host, &master, &[&*point], 1).await;
    let client = net.engine();
    let mut stream = client.dial(master.service_id().address(), 80, LIMIT).await.unwrap();
    net.latency(Duration::from_millis(50));
    let started = Instant::now();
    assert!(echo(&mut stream, LIMIT).await);
    assert!(started.elapsed() >= Duration::from_millis(100));
}
