//! Clients of the address that ask for much: streams that they never read, and a thousand introductions a second.

use std::time::Duration;

use anyhow::ensure;
use rustbalance::tor::Engine;
use rustbalance::tor::fake::FakeNet;
use rustbalance_gossip::id::OnionAddress;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::town::{Town, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_never_read_are_cut_off() {
    let limits = "[limits]\nstreams = 200\nstreams_per_circuit = 8\nstall_timeout = \"3s\"\n";
    let town = Town::start(limits).await;
    let visitors = town.visitors();
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let engine = town.net.engine();
        let address = town.address();
        clients.spawn(async move {
            let mut deaf = Vec::new();
            for _ in 0..12 {
                // All on one circuit, as a real client's.
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
    town.counts("streams_stalled", 20).await;
    town.counts("circuit_streams_over_limit", 20).await;
    until("nothing of it is left open", async || {
        for daemon in town.running() {
            let open = daemon.status().await?.traffic.streams_open;
            ensure!(open < 5, "{} has {open} streams", daemon.name);
        }
        Ok(())
    })
    .await;
    town.healthy().await;
    visitors.all_served().await;
}

/// Bounds that few clients reach, of each node.
const NARROW: &str = "[limits]\nstreams = 64\npending_rendezvous = 16\n";
/// How long each attack goes on.
const ATTACK: Duration = Duration::from_secs(12);
/// A client that no node has answered tries the next introduction point after 15 s, so one that
/// waited for less was never refused.
const REFUSED_ONCE: Duration = Duration::from_secs(15);

/// Runs an attack while clients come one after the other: all are served, and none is refused on
/// the way.
async fn attacked(town: &Town, what: &str, attack: impl Future<Output = ()> + Send + 'static) {
    let attack = tokio::spawn(attack);
    // It has taken what it can before the first client comes.
    sleep(Duration::from_secs(6)).await;
    let visitors = town.visitors();
    sleep(ATTACK).await;
    attack.abort();
    let seen = visitors.end().await;
    eprintln!("{what}: {seen:?}");
    let visits: usize = seen.by.values().sum();
    assert!(seen.failures.is_empty() && visits > 5 && seen.slowest < REFUSED_ONCE, "{what}: {seen:?}");
}

/// Forty clients that open streams on a circuit each for as long as they last, and send a byte on
/// each from time to time.
async fn streams_that_say_nothing(net: FakeNet, to: OnionAddress, byte_every: Option<Duration>) {
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
async fn streams_that_say_nothing_or_little_lock_no_client_out() {
    let town = Town::start(NARROW).await;
    let (net, to) = (town.net.clone(), town.address());
    attacked(&town, "idle streams", streams_that_say_nothing(net.clone(), to, None)).await;
    assert!(town.refused("streams_evicted").await > 20, "the attack has not filled anything");
    attacked(&town, "a byte now and then", streams_that_say_nothing(net, to, Some(Duration::from_secs(7)))).await;
    assert!(town.refused("streams_evicted").await > 200, "the attack has not filled anything");
    town.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circuits_that_ask_for_nothing_lock_no_client_out() {
    // Each circuit has five seconds to ask for something, so these bounds stand up to nine new
    // circuits a second.
    let town = Town::start("[limits]\nopen_rendezvous = 16\n").await;
    let (net, to) = (town.net.clone(), town.address());
    attacked(&town, "circuits that ask for nothing", async move {
        let mut held = Vec::new();
        loop {
            let engine = net.engine();
            // A port that is not there: no stream is accepted, and the circuit stays.
            drop(engine.dial(to, 81, Duration::from_secs(2)).await);
            held.push(engine);
            sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    assert!(town.refused("circuits_evicted").await > 5, "the attack has not filled anything");
    town.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rendezvous_points_that_never_answer_lock_no_client_out() {
    let town = Town::start(NARROW).await;
    let (engine, to) = (town.net.engine(), town.address());
    attacked(&town, "rendezvous points that never answer", async move {
        for relay in (0..3).cycle() {
            engine.introduce_in_vain(to, relay).await.ok();
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(town.refused("introductions_given_up").await > 20, "the attack has not filled anything");
    town.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_introductions_a_second_are_bounded() {
    let town = Town::start("[limits]\npending_rendezvous = 8\nintroduction_queue = 4\n").await;
    // A rendezvous takes as long as it does on a slow day of Tor, so that many are in the making at once, also where the
    // machine is slow: the places of all nodes suffice for 48 clients a second.
    town.net.latency(Duration::from_millis(250));
    let visitors = town.visitors();
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for count in 0..1500_u32 {
        let (engine, address) = (town.net.engine(), town.address());
        clients.spawn(async move {
            // Each is somebody new, who goes away again.
            drop(engine.dial(address, 80, Duration::from_secs(10)).await);
        });
        if count % 100 == 99 {
            tokio::time::sleep_until(start + Duration::from_millis(u64::from(count))).await;
        }
    }
    while clients.join_next().await.is_some() {}
    town.counts("introductions_over_limit", 100).await;
    town.net.latency(Duration::ZERO);
    town.healthy().await;
    let seen = visitors.end().await;
    // A client that meets a full queue tries the next introduction point; all were served in the end.
    assert!(seen.failures.is_empty() && !seen.by.is_empty(), "{seen:?}");
}
