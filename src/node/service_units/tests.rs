//! Units on an in-memory network: a service comes and goes while another is served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::rng;
use rustbalance_gossip::record::IntroPoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::super::cluster::tests::{IdleCluster, Running, alone, founder_with};
use super::*;
use crate::balance;
use crate::config::FurtherPorts;
use crate::counters::Counters;
use crate::health::HealthSettings;
use crate::keys::IdentitySecret;
use crate::proxy::{Connector, Proxy, ProxyLimits, Target};
use crate::stream::BoxStream;
use crate::tor::descriptor::{self, DescriptorContent, DescriptorParameters, PeriodCredentials};
use crate::tor::fake::FakeNet;
use crate::tor::fake::tests::limits;
use crate::tor::{Engine, TorError};

const LIMIT: Duration = Duration::from_secs(20);

/// A target that sends its name, and then echoes what it reads.
async fn site(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(name.as_bytes()).await?;
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await
            });
        }
    });
    address
}

/// A service with the introduction points of one unit, published once.
struct Site {
    secret: IdentitySecret,
    name: &'static str,
}

impl Site {
    fn id(&self) -> ServiceId {
        self.secret.service_id()
    }

    async fn publish(&self, engine: &dyn Engine, points: &[IntroPoint]) {
        for period in engine.publication(self.id()).await.unwrap() {
            let credentials = PeriodCredentials::derive(&self.secret, period.id, SystemTime::now()).unwrap();
            let parameters = DescriptorParameters::default();
            let content = DescriptorContent { revision: 1, points: points.to_vec(), ..Default::default() };
            let text = descriptor::build(&credentials, &content, parameters, SystemTime::now()).unwrap();
            for directory in &period.directories {
                engine.upload(directory, period.id, &text, LIMIT).await.unwrap();
            }
        }
    }

    /// Waits until visits succeed, or until they fail.
    async fn until_visits(&self, net: &FakeNet, succeed: bool) {
        let visits = async {
            while self.visit(net).await.is_ok() != succeed {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(LIMIT, visits).await.unwrap();
    }

    /// The stream of a new client, after the target has sent its name.
    async fn visit(&self, net: &FakeNet) -> Result<BoxStream, TorError> {
        let client = net.engine();
        let mut stream = client.dial(self.id().address(), 80, LIMIT).await?;
        assert_eq!(read_text(&mut stream, self.name.len()).await, self.name);
        // The client must exist as long as the test.
        std::mem::forget(client);
        Ok(stream)
    }
}

async fn read_text(stream: &mut BoxStream, length: usize) -> String {
    let mut heard = vec![0; length];
    timeout(LIMIT, stream.read_exact(&mut heard)).await.unwrap().unwrap();
    String::from_utf8(heard).unwrap()
}

async fn is_open(stream: &mut BoxStream) {
    stream.write_all(b"still there?").await.unwrap();
    assert_eq!(read_text(stream, 12).await, "still there?");
}

/// Waits until the service has its introduction points; returns them.
async fn points(views: &mut watch::Receiver<ServiceViews>, service: ServiceId) -> Vec<IntroPoint> {
    let views = timeout(LIMIT, views.wait_for(|views| views.contains_key(&service))).await.unwrap().unwrap();
    let mut points = views[&service].points.clone();
    drop(views);
    let points = timeout(LIMIT, points.wait_for(|points| points.len() == 2)).await.unwrap().unwrap();
    points.iter().map(|status| status.point.clone()).collect()
}

fn wanted() -> ServiceDecisions {
    let balance = balance::task::WantedPoints { others_points_known: true, ..Default::default() };
    ServiceDecisions { balance, ..ServiceDecisions::default() }
}

#[tokio::test]
async fn a_service_comes_and_goes_while_another_is_served() {
    let (net, second) = (FakeNet::new(7, 20), IdentitySecret::generate(&mut rng()));
    let (_folder, store) = founder_with(std::slice::from_ref(&second));
    let first = store.cluster().first_service();
    let first = Site { secret: store.identity_secret(first).unwrap().unwrap(), name: "the first" };
    let second = Site { secret: second, name: "the second" };
    let IdleCluster { cluster, starting, disk, _others } = alone(&store, Vec::new()).await;
    let actor = Running::start(&store, starting, disk);
    let engine = net.engine();
    let context = ServiceContext {
        engine: Arc::clone(&engine) as Arc<dyn Engine>,
        store: Arc::clone(&store),
        cluster,
        join_port: None,
        limits: limits(),
        proxy: Proxy::new(watch::channel(ProxyLimits::default()).1, usize::MAX, Counters::default()),
        points: watch::channel(2).1,
        health: watch::channel(HealthSettings::default()).1,
        keeping: Arc::default(),
        asked_to_stop: CancellationToken::new(),
        connector: Connector::without_tor(),
    };
    let at = |site: std::net::SocketAddr| vec![PortTarget::new(80, Target::Tcp(site))];
    let of_first = at(site(first.name).await);
    let further: FurtherPorts = [(second.id(), at(site(second.name).await))].into();
    let (change, targets) = watch::channel(Targets { first: of_first, further: further.clone() });
    let services = watch::Sender::new(DecisionsByService::from([(first.id(), wanted())]));
    let (failed, mut failures) = mpsc::channel(1);
    let units = ServiceUnits::start(context, targets, services.subscribe(), failed).unwrap();
    let mut views = units.views();
    let stop = CancellationToken::new();
    let running = tokio::spawn(units.run(stop.clone()));

    first.publish(&*engine, &points(&mut views, first.id()).await).await;
    let mut before = first.visit(&net).await.unwrap();
    services.send_modify(|services| drop(services.insert(second.id(), wanted())));
    second.publish(&*engine, &points(&mut views, second.id()).await).await;
    let mut visit = second.visit(&net).await.unwrap();
    is_open(&mut before).await;

    services.send_modify(|services| drop(services.remove(&second.id())));
    timeout(LIMIT, views.wait_for(|views| views.len() == 1)).await.unwrap().unwrap();
    assert!(second.visit(&net).await.is_err(), "a service that has gone is served");
    let mut rest = Vec::new();
    timeout(LIMIT, visit.read_to_end(&mut rest)).await.expect("its clients stay").ok();
    is_open(&mut before).await;
    first.visit(&net).await.unwrap();

    // The service comes back at the same introduction points, while the first continues.
    services.send_modify(|services| drop(services.insert(second.id(), wanted())));
    points(&mut views, second.id()).await;
    second.visit(&net).await.unwrap();
    is_open(&mut before).await;

    // A reload takes its targets away and gives them back.
    let mut kept = second.visit(&net).await.unwrap();
    change.send_modify(|targets| targets.further.clear());
    second.until_visits(&net, false).await;
    is_open(&mut kept).await;
    change.send_modify(|targets| targets.further.clone_from(&further));
    second.until_visits(&net, true).await;
    is_open(&mut kept).await;

    // A unit that has started without targets gets some.
    change.send_modify(|targets| targets.further.clear());
    services.send_modify(|services| drop(services.remove(&second.id())));
    timeout(LIMIT, views.wait_for(|views| views.len() == 1)).await.unwrap().unwrap();
    services.send_modify(|services| drop(services.insert(second.id(), wanted())));
    timeout(LIMIT, views.wait_for(|views| views.len() == 2)).await.unwrap().unwrap();
    second.until_visits(&net, false).await;
    change.send_modify(|targets| targets.further = further);
    second.until_visits(&net, true).await;
    is_open(&mut before).await;

    drop(before);
    stop.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    assert!(failures.try_recv().is_err(), "a unit has failed");
    actor.stop().await;
}
