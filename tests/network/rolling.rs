//! A rolling restart: each node in turn is stopped with SIGTERM and started again, as an upgrade
//! does, while stock clients make ten requests a second. Each request must get its whole answer.
//!
//! *Regulars* keep one Tor client with all that it remembers (the descriptor, introduction points
//! that failed), and make a few requests on the circuits of each visit. *Newcomers* start a Tor
//! client that knows no descriptor. Tor clients try other introduction points by themselves, and
//! only what reaches their users counts.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use rustbalance_testnet::cluster::Cluster;
use rustbalance_testnet::{Client, Warmth};

use crate::support::{Nodes, Progress, network, scenario};

/// Tor clients of regulars, the visits that each makes at the same time, the requests of a visit,
/// and the interval from visit to visit: together nine requests a second.
const REGULARS: usize = 3;
const VISITS: usize = 2;
const REQUESTS: usize = 3;
const INTERVAL: Duration = Duration::from_secs(2);
/// Pause between two requests of a visit.
const PAUSE: Duration = Duration::from_millis(200);
/// Interval between two newcomers; with [`REQUESTS`] of each, one more request a second.
const NEWCOMERS: Duration = Duration::from_secs(3);
/// Time limit of a request: half of what C tor gives a stream (SocksTimeout).
const PATIENCE: Duration = Duration::from_secs(60);
/// Time limit for a daemon to end after SIGTERM, and TimeoutStopSec= of the unit.
const END_LIMIT: Duration = Duration::from_secs(90);
/// A download takes a second or more, so that some are in progress at each SIGTERM.
const DOWNLOAD: usize = 2_000_000;
/// Least average rate of requests, for a machine that other tests slow down.
const LEAST_RATE: f64 = 5.0;

#[test]
fn a_rolling_restart_loses_no_request() {
    scenario("rolling", &["alpha", "beta", "gamma"], |progress, cluster, nodes| {
        let load = Load::new(cluster.onion()?, nodes);
        let clients = (0..REGULARS).map(|_| network().client("regular", Warmth::Warm)).collect::<Result<Vec<_>>>()?;
        let downloader = network().client("downloader", Warmth::Warm)?;
        let restarted = std::thread::scope(|scope| {
            let _end = EndOnDrop(&load);
            for client in &clients {
                for _ in 0..VISITS {
                    let load = &load;
                    scope.spawn(move || load.regular(client));
                }
            }
            scope.spawn(|| load.newcomers());
            scope.spawn(|| load.downloads(&downloader));
            restart_all(progress, cluster, nodes, &load)
        });
        let report = load.report();
        progress.report(format_args!("{report}"));
        restarted?;
        load.check()
    });
}

/// Restarts one node after the other, each once the one before is published again.
fn restart_all(progress: &mut Progress, cluster: &Cluster<'_>, nodes: &Nodes, load: &Load) -> Result<()> {
    cluster.wait_until("the load has begun", PATIENCE, || {
        ensure!(load.requests() >= 20, "{} requests so far", load.requests());
        Ok(())
    })?;
    for node in &nodes.0 {
        let begun = Instant::now();
        node.term()?;
        let code = node.await_exit(END_LIMIT)?;
        ensure!(code == Some(0), "{} ended with {code:?} after SIGTERM", node.name());
        let ended = begun.elapsed();
        ensure!(
            node.log().contains("other nodes have taken the introduction points over"),
            "the introduction points of {} were not taken over\n{}",
            node.name(),
            cluster.diagnosis()
        );
        node.run()?;
        cluster.await_served(&nodes.0)?;
        progress.report(format_args!(
            "{} has ended after {:.1} s and was published again {:.1} s later, {} requests lost so far",
            node.name(),
            ended.as_secs_f64(),
            (begun.elapsed() - ended).as_secs_f64(),
            load.lost.lock().len()
        ));
    }
    Ok(())
}

/// All clients, and what they got.
struct Load {
    url: String,
    names: Vec<String>,
    started: Instant,
    ended: AtomicBool,
    visits: AtomicUsize,
    waits: Mutex<Vec<Duration>>,
    lost: Mutex<Vec<String>>,
}

/// Ends the load however the test ends.
struct EndOnDrop<'a>(&'a Load);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}

impl Load {
    fn new(onion: String, nodes: &Nodes) -> Self {
        Self {
            url: format!("http://{onion}/"),
            names: nodes.0.iter().map(|node| node.name().to_owned()).collect(),
            started: Instant::now(),
            ended: AtomicBool::new(false),
            visits: AtomicUsize::new(0),
            waits: Mutex::default(),
            lost: Mutex::default(),
        }
    }

    /// Calls `turn` at this interval until the load ends. A turn that takes longer delays the next
    /// one only.
    fn every(&self, interval: Duration, mut turn: impl FnMut(usize)) {
        for number in 0.. {
            let begun = Instant::now();
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            turn(number);
            std::thread::sleep(interval.saturating_sub(begun.elapsed()));
        }
    }

    fn regular(&self, client: &Client) {
        self.every(INTERVAL, |_| self.visit(client, "a regular"));
    }

    /// Every fifth one lacks even the network's directory documents.
    fn newcomers(&self) {
        self.every(NEWCOMERS, |number| {
            let warmth = if number % 5 == 4 { Warmth::Fresh } else { Warmth::Warm };
            match network().client("newcomer", warmth) {
                Ok(client) => self.visit(&client, "a newcomer"),
                Err(error) => self.lost.lock().push(format!("a newcomer's Tor does not start: {error:#}")),
            }
        });
    }

    fn downloads(&self, client: &Client) {
        self.every(INTERVAL, |number| {
            let url = format!("{}bytes/{DOWNLOAD}", self.url);
            self.request(client, "a download", &format!("download{number}"), &url, |body| body.len() == DOWNLOAD);
        });
    }

    /// Some requests on circuits that no other visit uses.
    fn visit(&self, client: &Client, who: &str) {
        let circuits = format!("visit{}", self.visits.fetch_add(1, Ordering::Relaxed));
        for _ in 0..REQUESTS {
            let is_name = |body: &[u8]| self.names.iter().any(|name| name.as_bytes() == body);
            self.request(client, who, &circuits, &self.url, is_name);
            std::thread::sleep(PAUSE);
        }
    }

    fn request(&self, client: &Client, who: &str, circuits: &str, url: &str, is_whole: impl Fn(&[u8]) -> bool) {
        let (begun, started) = (self.started.elapsed(), Instant::now());
        let lost = match client.get_isolated(circuits, url, PATIENCE) {
            Ok(answer) if answer.status == 200 && is_whole(&answer.body) => None,
            Ok(answer) => Some(format!("status {} and {} bytes", answer.status, answer.body.len())),
            Err(error) => Some(format!("{error:#}")),
        };
        self.waits.lock().push(started.elapsed());
        if let Some(why) = lost {
            let at = begun.as_secs_f64();
            self.lost.lock().push(format!("{who} ({circuits}), begun at {at:.1} s: {why}"));
        }
    }

    fn requests(&self) -> usize {
        self.waits.lock().len()
    }

    fn rate(&self) -> f64 {
        self.requests() as f64 / self.started.elapsed().as_secs_f64()
    }

    fn report(&self) -> String {
        let mut waits = self.waits.lock().clone();
        waits.sort_unstable();
        let at = |part: usize| waits.get(waits.len() * part / 100).copied().unwrap_or_default().as_secs_f64();
        format!(
            "{} requests, {:.1} a second; median {:.1} s, 99 of 100 within {:.1} s, the longest {:.1} s; {} lost",
            waits.len(),
            self.rate(),
            at(50),
            at(99),
            waits.last().copied().unwrap_or_default().as_secs_f64(),
            self.lost.lock().len()
        )
    }

    fn check(&self) -> Result<()> {
        let lost = self.lost.lock();
        ensure!(lost.is_empty(), "{}; lost:\n{}", self.report(), lost.join("\n"));
        ensure!(self.rate() >= LEAST_RATE, "the machine is too slow for this test: {}", self.report());
        Ok(())
    }
}
