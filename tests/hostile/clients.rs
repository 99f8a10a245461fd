//! Clients that use many resources: streams that they never read, idle circuits, and a thousand
//! introductions a second.

use std::time::Duration;

use anyhow::ensure;
use rustbalance::tor::Engine;
use rustbalance::tor::fake::FakeNet;
use rustbalance_gossip::id::OnionAddress;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::test_cluster::{TestCluster, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_never_read_are_cut_off() {
    let limits = "[limits]\nstreams = 200\nstreams_per_circuit = 8\nstall_timeout = \"3s\"\n";
    let test_cluster = TestCluster::start(limits).await;
    let visitors = test_cluster.visitors();
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let engine = test_cluster.net.engine();
        let address = test_cluster.address();
        clients.spawn(async move {
            let mut deaf = Vec::new();
            for _ in 0..12 {
                // All streams use one circuit, as those of a real client do.
                if let Ok(mut stream) = engine.dial(address, 80, Duration::from_secs(10)).await {
                    stream.write_all(b"flood\n").await.ok();
                    deaf.push(stream);
                }
            }
            sleep(Duration::from_secs(6)).await;
            deaf.len()
        });
    }
    let mut opened = 0;
    while let Some(deaf) = clients.join_next().await {
        let deaf = deaf.unwrap();
        assert!(deaf <= 8, "{deaf} streams on one circuit");
        opened += deaf;
    }
    assert!(opened > 50, "{opened} streams were opened");
    test_cluster.counts("streams_stalled", 20).await;
    test_cluster.counts("circuit_streams_over_limit", 20).await;
    until("the streams of the attack are closed", async || {
        for daemon in test_cluster.running() {
            let open = daemon.status().await?.traffic.streams_open;
            ensure!(open < 5, "{} has {open} open streams", daemon.name);
        }
        Ok(())
    })
    .await;
    test_cluster.healthy().await;
    visitors.all_served().await;
}

/// Limits of each node that a few clients can reach.
const NARROW: &str = "[limits]\nstreams = 64\npending_rendezvous = 16\n";
/// How long honest clients visit during each attack, at least.
const ATTACK: Duration = Duration::from_secs(12);
/// How long they visit at most, on a machine so slow that the attack takes longer to reach a limit.
const SLOW_ATTACK: Duration = Duration::from_secs(90);
/// A client without an answer tries the next introduction point after 15 s. A client that waited
/// for less was never refused.
const REFUSED_ONCE: Duration = Duration::from_secs(15);

/// Runs an attack while clients visit one after the other, until more than `limit.1` refusals named
/// `limit.0` are counted. All visitors must be served without one refusal.
async fn attacked(
    test_cluster: &TestCluster,
    what: &str,
    limit: (&str, u64),
    attack: impl Future<Output = ()> + Send + 'static,
) {
    let attack = tokio::spawn(attack);
    // The attack reaches its full size before the first client visits.
    sleep(Duration::from_secs(6)).await;
    let visitors = test_cluster.visitors();
    let start = Instant::now();
    sleep(ATTACK).await;
    while test_cluster.refused(limit.0).await <= limit.1 {
        assert!(start.elapsed() < SLOW_ATTACK, "{what}: the attack has not reached a limit");
        sleep(Duration::from_secs(1)).await;
    }
    attack.abort();
    let seen = visitors.end().await;
    eprintln!("{what}: {seen:?}");
    let visits: usize = seen.by.values().sum();
    assert!(seen.failures.is_empty() && visits > 5 && seen.slowest < REFUSED_ONCE, "{what}: {seen:?}");
}

/// Forty clients that open streams without end, each on its own circuit, and send a byte on each
/// stream every `byte_every`, or nothing if that is `None`.
async fn streams_that_send_little(net: FakeNet, to: OnionAddress, byte_every: Option<Duration>) {
    let mut clients = JoinSet::new();
    for _ in 0..40 {
        let engine = net.engine();
        clients.spawn(async move {
            let (mut held, mut last) = (Vec::new(), Instant::now());
            loop {
                if let Ok(stream) = engine.dial(to, 80, Duration::from_secs(20)).await {
                    held.push(stream);
                }
                if byte_every.is_some_and(|pause| last.elapsed() >= pause) {
                    last = Instant::now();
                    for stream in &mut held {
                        stream.write_all(b"x").await.ok();
                    }
                }
                sleep(Duration::from_millis(100)).await;
            }
        });
    }
    while clients.join_next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_send_little_or_nothing_lock_no_client_out() {
    let test_cluster = TestCluster::start(NARROW).await;
    let (net, to) = (test_cluster.net.clone(), test_cluster.address());
    let idle = streams_that_send_little(net.clone(), to, None);
    attacked(&test_cluster, "idle streams", ("streams_evicted", 20), idle).await;
    let slow = streams_that_send_little(net, to, Some(Duration::from_secs(7)));
    attacked(&test_cluster, "a byte now and then", ("streams_evicted", 200), slow).await;
    for daemon in test_cluster.running() {
        let status = daemon.status().await.unwrap();
        let usage = status.usage;
        assert_eq!((usage.streams_allowed, usage.circuits_making_allowed), (64, 16));
        assert!(status.traffic.streams_open <= 64 && usage.circuits_open <= usage.circuits_allowed, "{usage:?}");
        assert!(usage.memory_bytes.is_some_and(|resident| resident > 0), "{usage:?}");
    }
    test_cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circuits_that_ask_for_nothing_lock_no_client_out() {
    // Each circuit has five seconds to open a stream, so these limits withstand nine new circuits a
    // second.
    let test_cluster = TestCluster::start("[limits]\nopen_rendezvous = 16\n").await;
    let (net, to) = (test_cluster.net.clone(), test_cluster.address());
    attacked(&test_cluster, "circuits that ask for nothing", ("circuits_evicted", 5), async move {
        let mut held = Vec::new();
        loop {
            let engine = net.engine();
            // The port is not configured: no stream is accepted, and the circuit stays open.
            drop(engine.dial(to, 81, Duration::from_secs(2)).await);
            held.push(engine);
            sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    test_cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rendezvous_points_that_never_answer_lock_no_client_out() {
    let test_cluster = TestCluster::start(NARROW).await;
    let (engine, to) = (test_cluster.net.engine(), test_cluster.address());
    attacked(&test_cluster, "rendezvous points that never answer", ("introductions_given_up", 20), async move {
        for relay in (0..3).cycle() {
            engine.introduce_in_vain(to, relay).await.ok();
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    test_cluster.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_introductions_a_second_are_bounded() {
    let test_cluster = TestCluster::start("[limits]\npending_rendezvous = 2\nintroduction_queue = 1\n").await;
    // With this latency the capacity of all nodes is 9 clients a second, far less than even a slow
    // machine can attempt.
    test_cluster.net.latency(Duration::from_secs(1));
    let visitors = test_cluster.visitors();
    let start = Instant::now();
    let mut clients = JoinSet::new();
    // Not more than needed: on a slow machine, those that still wait delay the visitors.
    while clients.len() < 500
        || (test_cluster.refused("introductions_over_limit").await < 100 && start.elapsed() < SLOW_ATTACK)
    {
        for _ in 0..100 {
            let (engine, address) = (test_cluster.net.engine(), test_cluster.address());
            clients.spawn(async move {
                // Each visit is by a new client, which leaves at once.
                drop(engine.dial(address, 80, Duration::from_secs(10)).await);
            });
        }
        sleep(Duration::from_millis(100)).await;
    }
    while clients.join_next().await.is_some() {}
    test_cluster.counts("introductions_over_limit", 100).await;
    test_cluster.net.latency(Duration::ZERO);
    test_cluster.healthy().await;
    let seen = visitors.end().await;
    // A client that reaches a full queue tries the next introduction point, so all are served in
    // the end.
    assert!(seen.failures.is_empty() && !seen.by.is_empty(), "{seen:?}");
}
