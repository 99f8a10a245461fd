//! The server on real sockets of this host.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use rustbalance_gossip::view::Condition;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::counters::Counters;
use crate::metrics::{Reading, tests::status};

/// A node that counts how often it was read.
#[derive(Default)]
struct Node {
    reads: AtomicUsize,
    stuck: AtomicBool,
    draining: AtomicBool,
}

#[async_trait]
impl Source for Node {
    fn read(&self) -> Reading {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let mut status = status();
        if self.draining.load(Ordering::Relaxed) {
            status.phase = Condition::Draining;
        }
        Reading { status, counters: Counters::default() }
    }

    async fn answers(&self) {
        if self.stuck.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }
}

/// A server on a loopback address and one on a Unix socket, of the same node.
struct Servers {
    address: SocketAddr,
    folder: tempfile::TempDir,
    stop: CancellationToken,
    running: Vec<tokio::task::JoinHandle<()>>,
}

impl Servers {
    async fn start() -> Self {
        let (folder, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let exporter = Arc::new(Exporter::new(Arc::new(Node::default())));
        let loopback = MetricsListener::loopback("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let MetricsListener::Loopback(listener) = &loopback else { unreachable!() };
        let address = listener.local_addr().unwrap();
        let unix = MetricsListener::Unix(UnixListener::bind(folder.path().join("m")).unwrap());
        let running =
            [loopback, unix].map(|listener| tokio::spawn(serve(listener, Arc::clone(&exporter), stop.clone()))).into();
        Self { address, folder, stop, running }
    }

    /// Sends these bytes to the loopback address; returns the whole answer.
    async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // The server may reset the connection after its answer, if it has not read everything.
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    async fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address)).await
    }
}

#[tokio::test]
async fn each_path_and_method_has_its_answer_on_both_sockets() {
    let servers = Servers::start().await;
    let metrics = servers.get("/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200 ") && metrics.contains("version=0.0.4"), "{metrics}");
    assert!(metrics.contains("\nrustbalance_ready 1"), "{metrics}");
    let accepted =
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;version=1.0.0;q=0.5\r\n\r\n";
    let accepted = accepted.replace("Host: x", "Host: localhost:1");
    let open_metrics = servers.ask(&accepted).await;
    assert!(open_metrics.contains("application/openmetrics-text; version=1.0.0") && open_metrics.ends_with("# EOF\n"));
    let head = servers.ask("HEAD /metrics HTTP/1.1\r\nHost: [::1]\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(servers.get("/health").await.starts_with("HTTP/1.1 200 "));
    assert!(servers.get("/ready").await.starts_with("HTTP/1.1 200 "));
    assert!(servers.get("/other").await.starts_with("HTTP/1.1 404 "));
    let posted = servers.ask("POST /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\n\r\nabc").await;
    assert!(posted.starts_with("HTTP/1.1 405 ") && posted.contains("GET, HEAD"), "{posted}");

    let path = servers.folder.path().join("m");
    let mut unix = UnixStream::connect(&path).await.unwrap();
    unix.write_all(b"GET /metrics HTTP/1.1\r\nHost: any.name\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    unix.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("\nrustbalance_ready 1"), "{answer}");

    servers.stop.cancel();
    for running in servers.running {
        running.await.unwrap();
    }
    assert!(!path.exists());
}

#[tokio::test]
async fn a_web_page_with_a_name_that_leads_here_reads_nothing() {
    let servers = Servers::start().await;
    for host in ["rebound.example", "rebound.example:9441", "127.0.0.1.example", "10.0.0.1:9441", ""] {
        let answer = servers.ask(&format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert!(!answer.contains("rustbalance_ready") && !answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    for host in ["127.0.0.1:9441", "127.0.0.1", "[::1]:9441", "[::1]", "localhost", "LocalHost:9441"] {
        let answer = servers.ask(&format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_task_is_stuck_is_not_alive_and_one_that_drains_is_not_ready() {
    let node = Arc::new(Node::default());
    let exporter = Exporter::new(Arc::clone(&node) as Arc<dyn Source>);
    let ask = async |path| exporter.respond(&Method::GET, path, &HeaderMap::new()).await.status();
    assert_eq!((ask("/health").await, ask("/ready").await), (StatusCode::OK, StatusCode::OK));
    node.stuck.store(true, Ordering::Relaxed);
    node.draining.store(true, Ordering::Relaxed);
    assert_eq!(ask("/health").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ask("/ready").await, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn many_requests_read_the_node_once_a_second() {
    let node = Arc::new(Node::default());
    let exporter = Exporter::new(Arc::clone(&node) as Arc<dyn Source>);
    for _ in 0..20 {
        exporter.respond(&Method::GET, "/metrics", &HeaderMap::new()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(node.reads.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn garbage_and_an_endless_header_are_cut_off() {
    let servers = Servers::start().await;
    let garbage = servers.ask("\u{1}\u{2}\u{3}\r\n\r\n").await;
    assert!(garbage.starts_with("HTTP/1.1 400 "), "{garbage}");
    let endless = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(3 * HEADERS));
    let answer = servers.ask(&endless).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(servers.get("/ready").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn clients_that_say_nothing_make_room_within_the_limit() {
    let servers = Servers::start().await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(TcpStream::connect(servers.address).await.unwrap());
    }
    // The next one waits until the headers of the silent ones are overdue.
    let answer = timeout(2 * CONNECTION_LIMIT, servers.get("/ready")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let ended = timeout(CONNECTION_LIMIT, silent.remove(0).read_to_end(&mut Vec::new())).await.unwrap();
    drop((ended, silent));
}

#[tokio::test]
async fn an_address_that_others_can_reach_is_refused() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:127.0.0.1]:0"] {
        let error = MetricsListener::loopback(address.parse().unwrap()).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{address}");
    }
}
