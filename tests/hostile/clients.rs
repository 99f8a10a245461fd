//! Clients of the address that ask for much: streams that they never read, and a thousand introductions a second.

use std::time::Duration;

use anyhow::ensure;
use rustbalance::tor::Engine;
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
        let address = town.master.address();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_introductions_a_second_are_bounded() {
    let town = Town::start("[limits]\npending_rendezvous = 4\nintroduction_queue = 4\n").await;
    // A rendezvous takes as long as it does on a slow day of Tor, so that many are in the making at once, also where the
    // machine is slow: the places of all nodes suffice for 48 clients a second.
    town.net.latency(Duration::from_millis(250));
    let visitors = town.visitors();
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for count in 0..1500_u32 {
        let (engine, address) = (town.net.engine(), town.master.address());
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
