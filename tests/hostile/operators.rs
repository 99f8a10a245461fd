//! Operator commands across restarts of whole daemons, without a hostile peer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustbalance::config::Config;
use rustbalance::control::{Request, Response, WireguardSwitch};
use rustbalance::stream::BoxStream;
use rustbalance::tor::Engine;
use rustbalance_gossip::view::Condition;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::test_cluster::{Daemon, TestCluster, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_drains_on_after_a_restart_until_it_is_resumed() {
    let mut test_cluster = TestCluster::start("").await;
    let beta = test_cluster.named("beta").id.to_string();
    let drained = async |test_cluster: &TestCluster| {
        until("beta drains and has no clients", async || {
            let status = test_cluster.named("beta").status().await?;
            ensure!(status.phase == Condition::Draining, "beta is {}", status.phase);
            let alpha = test_cluster.named("alpha").status().await?;
            let known = alpha.members.iter().find(|member| member.node == beta);
            ensure!(known.is_some_and(|member| member.alive && member.phase == Some(Condition::Draining)), "{known:?}");
            ensure!(known.is_some_and(|member| member.published == 0), "{known:?}");
            ensure!(alpha.publisher.is_some_and(|publisher| publisher.node != beta), "beta publishes");
            Ok(())
        })
        .await;
    };
    // A client of beta that has its stream open.
    let (_client, mut held) = loop {
        let client = test_cluster.net.engine();
        let before = test_cluster.named("beta").status().await.unwrap().traffic.streams_open;
        let Ok(stream) = client.dial(test_cluster.address(), 80, Duration::from_secs(10)).await else { continue };
        if test_cluster.named("beta").status().await.unwrap().traffic.streams_open > before {
            break (client, stream);
        }
    };
    let (left, printed) = drain_and_wait(test_cluster.named("beta"), "2s").await;
    assert!(left != Some(0) && printed.contains("also after a restart"), "{printed}");
    assert!(printed.contains("not drained within 2s: 1 stream left"), "{printed}");
    held.write_all(b"name\n").await.unwrap();
    held.read_to_end(&mut Vec::new()).await.unwrap();
    drop(held);
    let (code, printed) = drain_and_wait(test_cluster.named("beta"), "2m").await;
    assert!(code == Some(0) && printed.contains("drained: the node can be stopped"), "{code:?}: {printed}");
    drained(&test_cluster).await;

    let net = test_cluster.net.clone();
    let node = test_cluster.named_mut("beta");
    node.kill().await;
    node.run(&net);
    until("beta answers", async || test_cluster.named("beta").status().await).await;
    drained(&test_cluster).await;
    let shown = test_cluster.named("beta").shown();
    assert!(shown.contains("this node drains") && shown.contains("`rustbalance resume`"), "{shown}");

    let resumed = test_cluster.named("beta").call(Request::Resume {}).await.unwrap();
    assert!(matches!(resumed, Response::Done { .. }), "{resumed:?}");
    test_cluster.healthy().await;
    let node = test_cluster.named_mut("beta");
    node.kill().await;
    node.run(&net);
    test_cluster.healthy().await;
}

/// Runs `rustbalance drain --wait` with this time limit. Returns its exit code and all it printed.
async fn drain_and_wait(daemon: &Daemon, limit: &str) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rustbalance"));
    command.arg("--dir").arg(daemon.dir()).args(["drain", "--wait", "--timeout", limit]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_under_a_running_daemon() {
    let test_cluster = TestCluster::start("[limits]\nstreams_per_circuit = 1\n").await;
    let (client, address) = (test_cluster.net.engine(), test_cluster.address());
    // All streams use one circuit, so they reach one daemon.
    let open = async || client.dial(address, 80, Duration::from_secs(10)).await;
    let change = |change: fn(&mut Config)| {
        for daemon in test_cluster.running() {
            assert_eq!(daemon.reconfigure(change).after_restart, [], "{}", daemon.name);
        }
    };
    let mut first = open().await.unwrap();
    assert!(open().await.is_err(), "a second stream was accepted on a circuit that may have one");
    change(|config| config.service.streams_per_circuit = 4);
    let second = open().await.unwrap();
    change(|config| {
        config.service.streams_per_circuit = 4;
        config.proxy.streams = 1;
    });
    assert!(open().await.is_err(), "a further stream was accepted by a daemon that may have one");
    drop(second);
    first.write_all(b"name\n").await.unwrap();
    let mut name = String::new();
    first.read_to_string(&mut name).await.unwrap();
    assert!(!name.is_empty(), "the change has broken an open stream");
}

/// The answer to a request to read the configuration again.
async fn reload(daemon: &Daemon) -> Result<(Vec<String>, Vec<String>), String> {
    match daemon.call(Request::Reload {}).await.unwrap() {
        Response::Reloaded { applied, after_restart } => Ok((applied, after_restart)),
        Response::Refused { message } => Err(message),
        other => panic!("{other:?}"),
    }
}

/// A target that sends `name`, and then what it reads.
async fn echo(name: &'static str) -> SocketAddr {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_moves_new_streams_and_keeps_the_open_ones() {
    let mut test_cluster = TestCluster::start("").await;
    // All clients come to alpha.
    for name in ["beta", "gamma"] {
        test_cluster.named_mut(name).stop().await;
    }
    let until_healthy =
        async |cluster: &TestCluster| until("a healthy alpha", async || cluster.is_healthy().await).await;
    until_healthy(&test_cluster).await;
    let alpha = test_cluster.named("alpha");
    let path = alpha.dir().join("rustbalance.toml");
    let rest = "[health]\ninterval = \"500ms\"\n[cluster]\nheartbeat = \"300ms\"\nlease_ttl = \"3s\"\n";
    let config = |port: u16, target: SocketAddr, more: &str| {
        std::fs::write(&path, format!("[[port]]\nvirtual = {port}\ntarget = \"{target}\"\n{rest}{more}")).unwrap();
    };
    let (net, address) = (test_cluster.net.clone(), test_cluster.address());
    let open = async |port: u16, name: &str| {
        let client = net.engine();
        let mut stream = client.dial(address, port, Duration::from_secs(20)).await?;
        let mut heard = vec![0; name.len()];
        stream.read_exact(&mut heard).await?;
        assert_eq!(heard, name.as_bytes());
        // The client must exist as long as its stream.
        anyhow::Ok((stream, client))
    };
    let is_open = async |stream: &mut BoxStream| {
        stream.write_all(b"still there?").await.unwrap();
        let mut heard = [0; 12];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"still there?");
    };
    let (first, second, third) = (echo("first").await, echo("second").await, echo("third").await);

    config(80, first, "");
    let (applied, after_restart) = reload(alpha).await.unwrap();
    assert_eq!((applied.len(), after_restart.len()), (1, 0), "{applied:?} {after_restart:?}");
    assert!(applied[0].starts_with("[[port]] 80 changed from target = "), "{applied:?}");
    let (mut oldest, _client) = open(80, "first").await.unwrap();

    config(80, second, "[node]\nweight = 7\n[limits]\nstreams = 100\n");
    let (applied, after_restart) = reload(alpha).await.unwrap();
    assert_eq!((applied.len(), after_restart.len()), (3, 0), "{applied:?} {after_restart:?}");
    let (mut newer, _other_client) = open(80, "second").await.unwrap();
    is_open(&mut oldest).await;

    // The whole file is refused: the target in it, too.
    config(80, third, "[node]\nwieght = 7\n");
    let refused = reload(alpha).await.unwrap_err();
    assert!(refused.contains("rustbalance.toml: line 10, column 1: ") && refused.contains("\"weight\""), "{refused}");
    open(80, "second").await.unwrap();
    is_open(&mut newer).await;

    // What needs a restart is named, and the rest is applied: the port moves, and the other nodes
    // are to know it.
    config(81, third, "[node]\nweight = 7\n[limits]\nstreams = 100\n");
    let text = std::fs::read_to_string(&path).unwrap().replace("300ms", "250ms");
    std::fs::write(&path, text).unwrap();
    let (applied, after_restart) = reload(alpha).await.unwrap();
    assert_eq!(after_restart, ["[cluster] heartbeat changed from \"300ms\" to \"250ms\""]);
    assert_eq!(applied.len(), 2, "{applied:?}");
    open(81, "third").await.unwrap();
    assert!(open(80, "second").await.is_err(), "a port that is no longer configured is served");
    until("alpha announces its port", async || {
        let status = alpha.status().await?;
        let own = status.members.iter().find(|member| member.node == status.node);
        ensure!(own.is_some_and(|own| own.ports == Some(vec![81])), "{own:?}");
        Ok(())
    })
    .await;
    is_open(&mut oldest).await;
    is_open(&mut newer).await;
    until_healthy(&test_cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_reaches_introduction_points_and_wireguard() {
    let mut test_cluster = TestCluster::start("").await;
    for name in ["beta", "gamma"] {
        test_cluster.named_mut(name).stop().await;
    }
    let alpha = test_cluster.named("alpha");
    let published = async |points: usize| {
        until(&format!("{points} points are published"), async || {
            let status = alpha.status().await?;
            let own = status.members.iter().find(|member| member.node == status.node).context("not a member")?;
            ensure!(own.published == points, "{} are published", own.published);
            Ok(())
        })
        .await;
    };
    published(3).await;
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    alpha.reconfigure(|config| {
        config.cluster.intro_points = 5;
        config.wireguard.listen = Some(vec![free]);
        config.wireguard.enabled = Some(true);
    });
    published(5).await;
    let wireguard = async |wanted: WireguardSwitch, listens: usize| {
        until("WireGuard follows", async || {
            let now = alpha.status().await?.wireguard;
            ensure!(now.state == wanted && now.listens.len() == listens, "{now:?}");
            Ok(())
        })
        .await;
    };
    wireguard(WireguardSwitch::On, 1).await;
    alpha.reconfigure(|config| config.cluster.intro_points = 2);
    published(2).await;
    wireguard(WireguardSwitch::Off, 0).await;
}
