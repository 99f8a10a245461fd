//! The checks as a whole, on real sockets of this host.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use rustbalance_gossip::id::OnionAddress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::*;
use crate::proxy::{CheckKind, OnionDialer, PortCheck};
use crate::stream::BoxStream;

fn fast() -> HealthSettings {
    HealthSettings { interval: Duration::from_millis(20), ..HealthSettings::default() }
}

fn start(ports: Vec<PortTarget>, settings: HealthSettings) -> Health {
    Health::start(watch::channel(ports).1, watch::channel(settings).1, Connector::without_tor())
}

async fn listen() -> (TcpListener, Target) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    (listener, target)
}

#[tokio::test]
async fn a_node_is_ready_while_all_its_targets_answer() {
    let (first, target) = listen().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let health = start(vec![PortTarget::new(80, target), PortTarget::new(81, Target::Unix(path.clone()))], fast());
    assert_eq!(health.ports().len(), 2, "all ports are shown at once");
    let mut ready = health.ready();
    assert!(!*ready.borrow());
    // The second target is not there yet.
    while !health.ports()[0].healthy || health.ports()[1].error.is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!*ready.borrow());
    let second = tokio::net::UnixListener::bind(&path).unwrap();
    ready.wait_for(|ready| *ready).await.unwrap();
    drop((first, second));
    ready.wait_for(|ready| !*ready).await.unwrap();
    assert!(health.ports().iter().any(|port| !port.healthy && port.error.is_some()));
}

#[tokio::test]
async fn reloaded_targets_are_checked_at_once() {
    let ((_first, one), (_second, other)) = (listen().await, listen().await);
    let (change, targets) = watch::channel(vec![PortTarget::new(80, one.clone())]);
    // No check follows by time alone.
    let rare = HealthSettings { interval: Duration::from_secs(600), ..fast() };
    let health = Health::start(targets, watch::channel(rare).1, Connector::without_tor());
    let mut ready = health.ready();
    ready.wait_for(|ready| *ready).await.unwrap();
    change.send_replace(vec![PortTarget::new(80, one), PortTarget::new(81, other.clone())]);
    while health.ports().len() < 2 || !health.ports()[1].healthy {
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!ready.has_changed().unwrap(), "a target that has not been asked yet changes nothing");
    let third = PortTarget::new(82, Target::Unix("/run/none/app.sock".into()));
    change.send_replace(vec![PortTarget::new(81, other), third]);
    ready.wait_for(|ready| !*ready).await.unwrap();
}

#[tokio::test]
async fn failed_streams_of_clients_have_a_target_checked_before_its_time() {
    let (listener, target) = listen().await;
    let rare = HealthSettings { interval: Duration::from_secs(600), failures: 1, ..fast() };
    let health = start(vec![PortTarget::new(80, target)], rare);
    let mut ready = health.ready();
    ready.wait_for(|ready| *ready).await.unwrap();
    drop(listener);
    for _ in 0..3 {
        health.failed_streams().send(80).await.unwrap();
    }
    timeout(Duration::from_secs(30), ready.wait_for(|ready| !*ready)).await.expect("not before ten minutes").unwrap();
}

#[tokio::test]
async fn health_checks_stop_when_dropped() {
    let (_target, target) = listen().await;
    let health = start(vec![PortTarget::new(80, target)], fast());
    let mut ready = health.ready();
    ready.wait_for(|ready| *ready).await.unwrap();
    drop(health);
    assert!(ready.changed().await.is_err());
}

#[test]
fn a_port_sets_its_own_times_and_an_onion_service_has_longer_ones() {
    let settings = HealthSettings::default();
    let seconds = |port: &PortTarget| {
        let timing = settings.of(port);
        [timing.interval, timing.healthy_interval, timing.timeout].map(|time| time.as_secs())
    };
    assert_eq!(seconds(&PortTarget::new(80, Target::Localhost(80))), [5, 10, 2]);
    let mut onion = PortTarget::new(80, Target::Onion(OnionAddress::from_public_key([1; 32]), 80));
    assert_eq!(seconds(&onion), [30, 60, 30]);
    onion.check.interval = Some(Duration::from_secs(1));
    onion.check.timeout = Some(Duration::from_secs(9));
    assert_eq!(seconds(&onion), [1, 2, 9]);
}

/// Reaches any onion service at one end of a pipe, while it is up.
struct Pipe(Arc<AtomicBool>);

#[async_trait]
impl OnionDialer for Pipe {
    async fn dial(&self, _to: OnionAddress, _port: u16, _limit: Duration) -> std::io::Result<BoxStream> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let status = if self.0.load(Ordering::Relaxed) { "200 OK" } else { "500 Internal Server Error" };
        tokio::spawn(async move {
            let _ = theirs.read(&mut [0; 1024]).await;
            theirs.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await
        });
        Ok(Box::new(ours))
    }
}

#[tokio::test]
async fn an_http_check_of_an_onion_service_is_made_over_tor() {
    let up = Arc::new(AtomicBool::new(true));
    let check =
        PortCheck { kind: Some(CheckKind::Http), interval: Some(Duration::from_millis(20)), ..PortCheck::default() };
    let target = Target::Onion(OnionAddress::from_public_key([1; 32]), 80);
    let ports = vec![PortTarget { check, ..PortTarget::new(80, target) }];
    let connector = Connector::with_tor(Pipe(Arc::clone(&up)));
    let health = Health::start(watch::channel(ports).1, watch::channel(fast()).1, connector);
    let mut ready = health.ready();
    ready.wait_for(|ready| *ready).await.unwrap();
    up.store(false, Ordering::Relaxed);
    ready.wait_for(|ready| !*ready).await.unwrap();
    let error = health.ports()[0].error.clone().unwrap();
    assert!(error.starts_with("HTTP GET /: ") && error.contains("500"), "{error}");
}
