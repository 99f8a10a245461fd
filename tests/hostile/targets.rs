//! Targets that fail their checks, and targets elsewhere.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustbalance::clock::unix_now;
use rustbalance::control::PortStatus;
use rustbalance::join::found;
use rustbalance::proxy::{CheckKind, PortCheck, PortTarget, Target};
use rustbalance::store::Store;
use rustbalance::tor::Engine;
use rustbalance::tor::fake::FakeNet;
use rustbalance_gossip::view::Condition;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::test_cluster::{PATIENCE, TestCluster, until};

/// An application that answers every HTTP request with the status that is set.
struct Application {
    address: SocketAddr,
    status: Arc<AtomicU16>,
}

impl Application {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, status) = (listener.local_addr().unwrap(), Arc::new(AtomicU16::new(200)));
        let answered = Arc::clone(&status);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let status = answered.load(Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        request.push(stream.read_u8().await?);
                    }
                    stream.write_all(format!("HTTP/1.1 {status} -\r\nContent-Length: 0\r\n\r\n").as_bytes()).await?;
                    stream.shutdown().await
                });
            }
        });
        Self { address, status }
    }

    fn answers(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

/// The names of the nodes whose points the descriptor names, as alpha knows it.
async fn published(test_cluster: &TestCluster) -> Result<BTreeSet<String>> {
    let status = test_cluster.named("alpha").status().await?;
    let points = status.publication.context("no publication is known")?.intro_points;
    let name = |node: &String| test_cluster.daemons.iter().find(|it| it.id.to_string() == *node).unwrap().name.clone();
    Ok(points.iter().map(|point| name(&point.node)).collect())
}

async fn until_published(test_cluster: &TestCluster, nodes: &[&str]) {
    let wanted: BTreeSet<String> = nodes.iter().map(ToString::to_string).collect();
    until(&format!("{nodes:?} are published"), async || {
        let published = published(test_cluster).await?;
        ensure!(published == wanted, "{published:?} are");
        Ok(())
    })
    .await;
}

async fn port(test_cluster: &TestCluster, node: &str, port: u16) -> Result<PortStatus> {
    let status = test_cluster.named(node).status().await?;
    status.ports.into_iter().find(|it| it.port == port).context("the port is not known yet")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_application_answers_500_leaves_and_returns_and_if_all_do_the_last_healthy_ones_stay() {
    let names = ["alpha", "beta", "gamma"];
    let applications = [Application::start().await, Application::start().await, Application::start().await];
    let addresses = applications.each_ref().map(|application| application.address);
    let test_cluster = TestCluster::start_each(move |name| {
        let at = names.iter().position(|candidate| *candidate == name).unwrap();
        format!(
            "[[port]]\nvirtual = 81\ntarget = \"{}\"\n[port.health]\ncheck = \"http\"\npath = \"/health\"\ninterval = \
             \"400ms\"\nfailures = 2\n",
            addresses[at]
        )
    })
    .await;
    until_published(&test_cluster, &names).await;

    applications[2].answers(500);
    until_published(&test_cluster, &["alpha", "beta"]).await;
    let failing = port(&test_cluster, "gamma", 81).await.unwrap();
    assert_eq!((failing.check.as_str(), failing.healthy), ("HTTP GET /health", false));
    assert!(failing.error.as_ref().is_some_and(|error| error.contains("status 500")), "{failing:?}");
    assert!(test_cluster.named("gamma").shown().contains("HTTP GET /health: the answer has status 500"));
    test_cluster.visit().await.unwrap();

    applications[..2].iter().for_each(|application| application.answers(500));
    until("alpha knows that all nodes are unhealthy", async || {
        let members = test_cluster.named("alpha").status().await?.members;
        let all = members.iter().all(|member| member.phase == Some(Condition::Unhealthy));
        ensure!(all, "{:?}", members.iter().map(|member| member.phase).collect::<Vec<_>>());
        Ok(())
    })
    .await;
    let last = published(&test_cluster).await.unwrap();
    assert!(!last.is_empty() && !last.contains("gamma"), "{last:?} were not the last healthy ones");
    test_cluster.visit().await.expect("an error page is better than an address that is gone");

    applications[2].answers(200);
    until_published(&test_cluster, &["gamma"]).await;
    applications[..2].iter().for_each(|application| application.answers(204));
    test_cluster.healthy().await;
}

/// A cluster of one node.
async fn lone(name: &str, net: Option<FakeNet>) -> TestCluster {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join(name);
    let store = found(Store::create(&dir).unwrap(), None, unix_now(), &mut rand::rng()).unwrap();
    let (cluster, id) = (store.cluster(), store.node_id());
    drop(store);
    let mut test_cluster = TestCluster::without_nodes(cluster, folder);
    if let Some(net) = net {
        test_cluster.net = net;
    }
    test_cluster.add(name, id, dir).await;
    until(&format!("{name} is served"), async || test_cluster.visit().await).await;
    test_cluster
}

/// The beginning of what the service answers to a request at port 81.
async fn fetch(test_cluster: &TestCluster) -> Result<String> {
    let client = test_cluster.net.engine();
    let mut stream = client.dial(test_cluster.address(), 81, PATIENCE).await?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_onion_service_is_a_target_with_http_checks_over_tor_unless_it_is_the_address_itself() {
    let application = Application::start().await;
    let origin = lone("origin", None).await;
    let reloaded =
        origin.named("origin").reconfigure(|it| it.ports.push(PortTarget::new(81, Target::Tcp(application.address))));
    assert_eq!(reloaded.applied.len(), 1);
    let front = lone("front", Some(origin.net.clone())).await;
    let interval = Some(Duration::from_millis(300));
    let check = PortCheck { kind: Some(CheckKind::Http), interval, failures: Some(2), ..PortCheck::default() };
    let over_tor = PortTarget { check, ..PortTarget::new(81, Target::Onion(origin.address(), 81)) };
    let only = |extra: Vec<PortTarget>| front.named("front").reconfigure(|it| it.ports.extend(extra));
    only(vec![over_tor.clone()]);
    until("the application answers through both services", async || {
        let answer = fetch(&front).await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let port = port(&front, "front", 81).await?;
        ensure!(port.healthy, "{port:?}");
        Ok(())
    })
    .await;

    application.answers(500);
    until("the front sees over Tor that the application fails", async || {
        let status = front.named("front").status().await?;
        let port = port(&front, "front", 81).await?;
        ensure!(status.phase == Condition::Unhealthy && !port.healthy, "{} with {port:?}", status.phase);
        ensure!(port.error.is_some_and(|error| error.contains("500")), "another reason");
        Ok(())
    })
    .await;

    only(vec![over_tor, PortTarget::new(82, Target::Onion(front.address(), 80))]);
    until("a loop is refused", async || {
        let port = port(&front, "front", 82).await?;
        let error = port.error.context("not asked yet")?;
        ensure!(error.contains("loop"), "{error}");
        Ok(())
    })
    .await;
}
