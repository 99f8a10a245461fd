//! A real HAProxy and a real nginx, with the examples of `scripts/examples`, see on which circuit a
//! request comes; and the operator bounds and closes circuits. There is no attacker but a client
//! that opens too many streams.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use rustbalance::stream::BoxStream;
use rustbalance::tor::Engine;
use rustbalance::tor::fake::FakeEngine;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::monitor::connect;
use crate::test_cluster::{Daemon, PATIENCE, TestCluster, until};

/// Time limit of one request.
const VISIT: Duration = Duration::from_secs(20);
/// The virtual ports whose targets expect a header, each with its target and version.
const PORTS: [(u16, &str, &str); 4] =
    [(81, "haproxy", "v1"), (82, "haproxy", "v2"), (83, "nginx", "v1"), (84, "nginx", "v2")];

/// Starts an application that answers each request with the value of its header `X-Circuit`, and
/// one for `/wait` not at all.
async fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut stream, mut circuit, mut waits) = (BufReader::new(stream), String::new(), false);
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).await?;
                    match line.trim_end().split_once(": ") {
                        Some((name, value)) if name.eq_ignore_ascii_case("x-circuit") => circuit = value.to_owned(),
                        None if line.trim_end().is_empty() => break,
                        None => waits |= line.starts_with("GET /wait "),
                        _ => {}
                    }
                }
                if waits {
                    stream.read_to_end(&mut Vec::new()).await?;
                }
                let length = circuit.len();
                let answer =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{circuit}");
                stream.write_all(answer.as_bytes()).await
            });
        }
    });
    address
}

/// A program in front of the application; killed when dropped.
struct Front {
    address: SocketAddr,
    log: PathBuf,
    child: Child,
    _folder: TempDir,
}

impl Front {
    /// Runs Debian's program with this configuration: the example, and what Debian configures.
    fn start(
        number: u8,
        application: SocketAddr,
        program: &str,
        example: &str,
        frame: impl Fn(&Path) -> String,
    ) -> Self {
        let [.., high, low] = std::process::id().to_be_bytes();
        // An own loopback address, so that no port is taken.
        let address = SocketAddr::from(([127, 110 + number, high, low], 8080));
        let folder = tempfile::tempdir().unwrap();
        let (log, access) = (folder.path().join("log"), folder.path().join("access.log"));
        let example = example
            .replace("127.0.0.1:8080", &address.to_string())
            .replace("127.0.0.1:8000", &application.to_string())
            .replace("/var/log/nginx/circuits.log", access.to_str().unwrap());
        let [frame_file, example_file] = ["frame", "example"].map(|name| folder.path().join(name));
        fs::write(&frame_file, frame(folder.path())).unwrap();
        fs::write(&example_file, example).unwrap();
        let mut command = Command::new(Path::new("/usr/sbin").join(program));
        match program {
            "haproxy" => command.arg("-db").arg("-f").arg(&frame_file).arg("-f").arg(&example_file),
            _ => command.arg("-p").arg(folder.path()).arg("-e").arg(&log).arg("-c").arg(&frame_file),
        };
        let output = || File::options().create(true).append(true).open(&log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(output()).stderr(output()).spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("no {program} ({error}): `./scripts/install.sh tests` installs it");
        });
        Self { address, log, child, _folder: folder }
    }

    fn haproxy(application: SocketAddr) -> Self {
        let example = include_str!("../../scripts/examples/haproxy-circuits.cfg");
        let frame = |_: &Path| "global\n    log stdout format raw local0\n".to_owned();
        Self::start(0, application, "haproxy", example, frame)
    }

    fn nginx(application: SocketAddr) -> Self {
        let example = include_str!("../../scripts/examples/nginx-circuits.conf");
        let frame = |folder: &Path| {
            let folder = folder.display();
            let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
            let places: String = kinds.map(|kind| format!("{kind}_temp_path {folder}/{kind};\n")).concat();
            format!(
                "daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/log info;\nevents {{}}\n\
                 http {{\n{places}include {folder}/example;\n}}\n"
            )
        };
        Self::start(1, application, "nginx", example, frame)
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks the application over a new stream; returns the status and the body of the answer.
async fn ask(client: &FakeEngine, cluster: &TestCluster, port: u16) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = client.dial(cluster.address(), port, VISIT).await?;
        stream.write_all(b"GET / HTTP/1.0\r\nHost: onion\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("not HTTP: {answer:?}"))?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        anyhow::Ok((status, body.to_owned()))
    };
    timeout(VISIT, exchange).await.context("no answer within the time limit")?
}

/// The address that the application sees of this client, which must be the same on every port.
async fn seen(client: &FakeEngine, cluster: &TestCluster) -> String {
    let mut seen = Vec::new();
    for (port, ..) in PORTS {
        let (status, address) = ask(client, cluster, port).await.unwrap();
        assert_eq!(status, 200, "port {port}: {address}");
        seen.push(address);
    }
    assert!(seen.iter().all(|address| *address == seen[0]), "{seen:?}");
    assert!(seen[0].starts_with("fc00:dead:beef:4dad::"), "{seen:?}");
    seen.swap_remove(0)
}

fn circuit(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rustbalance"));
    command.arg("--dir").arg(daemon.dir()).arg("circuit").args(arguments).output().unwrap()
}

/// The addresses that `circuit list --json` shows, and the streams of each.
fn listed(daemon: &Daemon) -> Vec<(String, u64)> {
    let output = circuit(daemon, &["list", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = list["circuits"].as_array().unwrap().iter();
    let found: Vec<_> = all
        .map(|circuit| {
            assert!(circuit["bytes"].as_u64().is_some() && circuit["age_seconds"].as_u64().is_some(), "{circuit}");
            (circuit["address"].as_str().unwrap().to_owned(), circuit["streams_open"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(list["open"], found.len());
    found
}

/// Waits until a stream has ended. It may have been answered before.
async fn ended(stream: &mut BoxStream) {
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the stream stays open");
}

/// A stream on which the client has sent the beginning of a request, so that it stays open.
async fn half_asked(client: &FakeEngine, cluster: &TestCluster, port: u16) -> BoxStream {
    let mut stream = client.dial(cluster.address(), port, VISIT).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n").await.unwrap();
    stream
}

/// nginx serves a circuit at 20 connections at once, which end with it.
async fn connections_are_limited(cluster: &TestCluster, daemon: &Daemon) {
    let [greedy, other] = [cluster.net.engine(), cluster.net.engine()];
    let address = seen(&greedy, cluster).await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut stream = greedy.dial(cluster.address(), 84, VISIT).await.unwrap();
        stream.write_all(b"GET /wait HTTP/1.0\r\nHost: onion\r\n\r\n").await.unwrap();
        waiting.push(stream);
    }
    until("one more is refused", async || {
        let (status, _) = ask(&greedy, cluster, 84).await?;
        ensure!(status == 429, "{status}");
        Ok(())
    })
    .await;
    assert_eq!(ask(&other, cluster, 84).await.unwrap().0, 200);
    assert!(circuit(daemon, &["kill", &address]).status.success());
    for stream in &mut waiting {
        ended(stream).await;
    }
}

/// Asks until the program refuses the circuit; another circuit is still served.
async fn limited(cluster: &TestCluster, port: u16) {
    let [hasty, other] = [cluster.net.engine(), cluster.net.engine()];
    let mut refused = 0;
    // On a machine so slow that it took one request after the other, the rate would not be reached.
    // The first request is alone, so that all are on one circuit.
    for at_once in [1].into_iter().chain([10; 7]) {
        let answers = join_all((0..at_once).map(|_| ask(&hasty, cluster, port))).await;
        for answer in answers {
            let (status, body) = answer.unwrap();
            assert!(matches!(status, 200 | 429), "{status}: {body}");
            refused += usize::from(status == 429);
        }
        if refused > 2 {
            break;
        }
    }
    assert!(refused > 2, "port {port}: not refused");
    assert_eq!(ask(&other, cluster, port).await.unwrap().0, 200, "port {port}");
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_and_nginx_see_circuits_which_the_operator_can_bound_and_close() {
    let application = application().await;
    let (haproxy, nginx) = (Front::haproxy(application), Front::nginx(application));
    let port = |(port, program, version): (u16, &str, &str)| {
        let target = if program == "haproxy" { haproxy.address } else { nginx.address };
        format!("[[port]]\nvirtual = {port}\ntarget = \"{target}\"\nproxy_protocol = \"{version}\"\n")
    };
    let cluster = TestCluster::start_alone(PORTS.map(port).concat()).await;
    let alpha = cluster.named("alpha");
    // No check of the targets, one every half second, was an error to them.
    for front in [&haproxy, &nginx] {
        assert!(!complains(&front.log()), "{}", front.log());
    }

    let [first, second] = [cluster.net.engine(), cluster.net.engine()];
    let (of_first, of_second) = (seen(&first, &cluster).await, seen(&second, &cluster).await);
    assert_ne!(of_first, of_second);
    limited(&cluster, 82).await;
    limited(&cluster, 83).await;
    connections_are_limited(&cluster, alpha).await;

    let mut held = Vec::new();
    for (port, ..) in PORTS {
        held.push(half_asked(&first, &cluster, port).await);
    }
    let mut untouched = half_asked(&second, &cluster, 84).await;
    until("the streams are listed", async || {
        let streams = |address| listed(alpha).into_iter().find(|(of, _)| of == address).map(|(_, streams)| streams);
        let streams = (streams(&of_first), streams(&of_second));
        ensure!(streams == (Some(4), Some(1)), "{streams:?}");
        Ok(())
    })
    .await;
    let killed = circuit(alpha, &["kill", &of_first]);
    assert!(killed.status.success(), "{}", String::from_utf8_lossy(&killed.stderr));
    for stream in &mut held {
        ended(stream).await;
    }
    let left = listed(alpha);
    assert!(left.iter().all(|(address, _)| *address != of_first), "{left:?}");
    let again = circuit(alpha, &["kill", &of_first]);
    let error = String::from_utf8(again.stderr).unwrap();
    assert!(again.status.code() == Some(1) && error.contains("no circuit"), "{error}");
    assert_eq!(alpha.refused("circuits_killed").await, 2);
    untouched.write_all(b"Host: onion\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    untouched.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(&of_second), "{answer}");
    // A client that comes back has another address.
    assert_ne!(seen(&first, &cluster).await, of_first);

    // Our test of the logs above works: here is a connection without a header.
    for front in [&haproxy, &nginx] {
        connect(front.address).unwrap();
        connect(front.address).map(|mut stream| std::io::Write::write_all(&mut stream, b"x\r\n")).unwrap().unwrap();
        until("the program complains", async || {
            ensure!(complains(&front.log()), "{}", front.log());
            Ok(())
        })
        .await;
    }
}

/// Whether a log has a complaint about the header of a connection.
fn complains(log: &str) -> bool {
    log.contains("PROXY")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circuit_that_opens_too_many_streams_is_refused_and_then_closed() {
    let cluster = TestCluster::start_alone(String::new()).await;
    let alpha = cluster.named("alpha");
    let reloaded = alpha.reconfigure(|config| {
        config.proxy.circuit_streams_per_second = Some((1, 3));
        config.service.refusals_per_circuit = Some(4);
    });
    assert_eq!((reloaded.applied.len(), reloaded.after_restart.len()), (3, 0), "{reloaded:?}");
    let [hasty, other]: [Arc<FakeEngine>; 2] = [cluster.net.engine(), cluster.net.engine()];
    let mut patient = other.dial(cluster.address(), 80, VISIT).await.unwrap();
    let mut held = Vec::new();
    while held.len() < 3 {
        held.push(hasty.dial(cluster.address(), 80, VISIT).await.unwrap());
    }
    until("the circuit is closed", async || {
        // Streams that come in time are accepted.
        held.extend(hasty.dial(cluster.address(), 80, VISIT).await.ok());
        let closed = alpha.refused("circuits_over_limit").await;
        ensure!(closed == 1, "{closed} are closed");
        Ok(())
    })
    .await;
    assert!(alpha.refused("circuit_streams_over_rate").await >= 4);
    ended(&mut held[0]).await;
    patient.write_all(b"name\n").await.unwrap();
    let mut name = String::new();
    patient.read_to_string(&mut name).await.unwrap();
    assert_eq!(name, "alpha");
}
