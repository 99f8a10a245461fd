//! Four stock clients with two hundred circuits use all the streams and circuits that a node
//! permits them; other clients must still be served.
//!
//! The test is a short form with low limits. `./scripts/bench.sh lockout --minutes 10` runs each
//! attack for ten minutes on a node with the default limits, and prints the cost for both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::IntroPoint;
use rustbalance_testnet::cluster::{Cluster, Node};
use rustbalance_testnet::{Client, Warmth};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::hostile::bound;
use crate::introducer::Introducer;
use crate::support::{Progress, look, network, scenario};

/// Environment variable: length of each attack in minutes, for the benchmark.
const MINUTES: &str = "RUSTBALANCE_LOCKOUT_MINUTES";
/// Limits that an attack from this machine reaches within seconds. `open_rendezvous` is above the
/// number of circuits in use, so that the attack does not reach it.
const NARROW: [(&str, &str); 1] = [("[limits]\n", "streams = 512\nopen_rendezvous = 250\npending_rendezvous = 32\n")];
/// Requests in the short form, one after the other, after the head start of the attack.
const VISITS: usize = 20;
/// After this time the short form ends early if [`FEWEST`] requests were served.
const SHORT: Duration = Duration::from_secs(8);
const FEWEST: usize = 5;
/// After this time the short form ends, however few requests were served.
const SHORT_LIMIT: Duration = Duration::from_secs(45);
/// How long each attack runs before the honest client begins.
const HEAD_START: Duration = Duration::from_secs(8);
/// Pause between two requests in the benchmark.
const PACE: Duration = Duration::from_millis(700);
/// Pause between two requests in the short form.
const SHORT_PACE: Duration = Duration::from_millis(100);
/// Share of the served requests that must not be slow. The rest may be, because the attacker's
/// clients load the same processor.
const SHARE: f64 = 0.9;
/// Time limit of one request.
const VISIT: Duration = Duration::from_secs(30);
/// Stock clients of the attacker.
const CLIENTS: usize = 4;
/// Circuits of each client of the attacker.
const CIRCUITS: usize = 50;
/// Streams that the attacker tries to hold on each circuit.
const STREAMS: usize = 100;

/// The forms of attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Streams on which the client sends nothing.
    Idle,
    /// Streams on which the client sends a byte every few seconds.
    Trickle,
    /// Circuits that never get a stream, because the client asks for a port that is not configured.
    Unused,
    /// Ten introductions a second to rendezvous points that never answer.
    Unanswered,
}

impl Form {
    const ALL: [Self; 4] = [Self::Idle, Self::Trickle, Self::Unused, Self::Unanswered];

    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle streams",
            Self::Trickle => "a byte now and then",
            Self::Unused => "circuits that never ask",
            Self::Unanswered => "dead rendezvous points",
        }
    }
}

#[test]
fn clients_that_hold_what_they_do_not_use_lock_no_client_out() {
    let minutes: Option<u64> = std::env::var(MINUTES).ok().and_then(|text| text.parse().ok());
    scenario("lockout", &["alpha"], |progress, cluster, nodes| {
        let alpha = nodes.named("alpha")?;
        if minutes.is_none() {
            alpha.kill9()?;
            bound(alpha, &NARROW)?;
            alpha.run()?;
            cluster.await_served(&nodes.0)?;
        }
        rustbalance::open_files::raise()?;
        let time = minutes.map(|minutes| Duration::from_secs(60 * minutes));
        let honest = network().client("honest", Warmth::Warm)?;
        let clients = (0..CLIENTS).map(|_| network().client("attacker", Warmth::Warm)).collect::<Result<Vec<_>>>()?;
        let calm = visits(&honest, "calm", cluster, None)?;
        progress.report(format_args!("without an attack: {calm}"));
        let mut rows = vec![row("none", &calm, None, 0)];
        for form in Form::ALL {
            let attack = Attack { form, clients: &clients, honest: &honest, time };
            rows.push(attack.is_withstood(progress, cluster, alpha, &calm)?);
        }
        if minutes.is_some() {
            print(&rows);
        }
        Ok(())
    });
}

/// An attack, and an honest client that must be served during it.
struct Attack<'a> {
    form: Form,
    clients: &'a [Client],
    honest: &'a Client,
    /// Length of the attack in the benchmark; `None` for the short form.
    time: Option<Duration>,
}

impl Attack<'_> {
    /// Runs the attack, and fails unless the honest client is served. Returns the row of the table.
    fn is_withstood(
        &self,
        progress: &mut Progress,
        cluster: &Cluster<'_>,
        node: &Node,
        calm: &Visits,
    ) -> Result<String> {
        let name = self.form.name();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let made = Arc::new(AtomicU64::new(0));
        self.start(&runtime, cluster, &made)?;
        std::thread::sleep(HEAD_START);
        let before = Cost::of(node, self.clients)?;
        let begun = Instant::now();
        let seen = visits(self.honest, name, cluster, self.time)?;
        let time = begun.elapsed();
        let cost = Cost::of(node, self.clients)?.since(&before);
        let made = made.load(Ordering::Relaxed);
        runtime.shutdown_timeout(Duration::from_secs(2));
        let counted = node.status()?.refused;
        let count = |name: &str| counted.get(name).copied().unwrap_or(0);
        progress.report(format_args!(
            "{name} ({made} made): {seen}; {} streams, {} circuits closed, {} introductions given up, {} refused",
            count("streams_evicted"),
            count("circuits_evicted"),
            count("introductions_given_up"),
            count("introductions_over_limit"),
        ));
        ensure!(seen.served.len() >= FEWEST && seen.failed <= 1.max(seen.asked() / 20), "{name}: {seen}");
        // The bound scales with the latency without an attack, which depends on the machine.
        let most = Duration::from_secs(3).max(calm.p95() * 3);
        ensure!(seen.quantile(SHARE) <= most, "{name}: {seen}; without it {calm}");
        Ok(row(name, &seen, Some((cost, time)), made))
    }

    /// Starts the attack on a runtime; it ends with the runtime. `made` counts its streams,
    /// circuits or introductions.
    fn start(&self, runtime: &Runtime, cluster: &Cluster<'_>, made: &Arc<AtomicU64>) -> Result<()> {
        let (onion, made) = (cluster.onion()?, Arc::clone(made));
        if self.form == Form::Unanswered {
            let points =
                look(&onion)?.into_iter().find_map(|held| held.content).context("no descriptor is published")?.points;
            let introducer = runtime.block_on(Introducer::start())?;
            runtime.spawn(introductions(introducer, onion.parse()?, points, made));
        } else {
            let socks = self.clients.iter().map(Client::socks).collect();
            runtime.spawn(circuits(self.form, socks, onion, made));
        }
        Ok(())
    }
}

/// Sends ten introductions a second, to the introduction points in turn.
async fn introductions(introducer: Introducer, to: ServiceId, points: Vec<IntroPoint>, made: Arc<AtomicU64>) {
    let (introducer, mut tasks) = (Arc::new(introducer), JoinSet::new());
    for point in points.iter().cycle() {
        let (introducer, point, made) = (Arc::clone(&introducer), point.clone(), Arc::clone(&made));
        tasks.spawn(async move {
            let done = introducer.introduce(to, &point).await;
            made.fetch_add(u64::from(done.is_ok()), Ordering::Relaxed);
        });
        while tasks.try_join_next().is_some() {}
        sleep(Duration::from_millis(100)).await;
    }
}

/// Opens the circuits of an attack and keeps them in use.
async fn circuits(form: Form, socks: Vec<std::net::SocketAddr>, onion: String, spent: Arc<AtomicU64>) {
    let mut tasks = JoinSet::new();
    for (number, socks) in socks.iter().flat_map(|socks| std::iter::repeat_n(*socks, CIRCUITS)).enumerate() {
        let (onion, spent) = (onion.clone(), Arc::clone(&spent));
        tasks.spawn(async move {
            // Spread out, because a stock client builds only some circuits a second.
            sleep(Duration::from_millis(40) * number as u32).await;
            match form {
                Form::Unused => {
                    for round in 0_u64.. {
                        let user = format!("{number}-{round}");
                        let _ = timeout(VISIT, stream(socks, &user, &onion, 81)).await;
                        spent.fetch_add(1, Ordering::Relaxed);
                        // With two hundred tasks this is about fifteen circuits a second.
                        sleep(Duration::from_secs(12)).await;
                    }
                }
                _ => hold(form, socks, &number.to_string(), &onion, &spent).await,
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Holds streams on one circuit, and replaces those that the node closes.
async fn hold(form: Form, socks: std::net::SocketAddr, user: &str, onion: &str, spent: &AtomicU64) {
    let (mut held, mut written): (Vec<TcpStream>, _) = (Vec::new(), Instant::now());
    loop {
        held.retain(|stream| !matches!(stream.try_read(&mut [0; 64]), Ok(0)));
        if held.len() < STREAMS
            && let Ok(Ok(stream)) = timeout(VISIT, stream(socks, user, onion, 80)).await
        {
            spent.fetch_add(1, Ordering::Relaxed);
            held.push(stream);
        }
        if form == Form::Trickle && written.elapsed() > Duration::from_secs(3) {
            written = Instant::now();
            for stream in &mut held {
                let _ = stream.write_all(b"G").await;
            }
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Opens a stream through a stock client, on the circuit of this SOCKS user (RFC 1928 and 1929).
async fn stream(socks: std::net::SocketAddr, user: &str, host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(socks).await?;
    stream.write_all(&[5, 1, 2]).await?;
    stream.read_exact(&mut [0; 2]).await?;
    let login = [&[1, user.len() as u8], user.as_bytes(), &[1, b'x']].concat();
    stream.write_all(&login).await?;
    stream.read_exact(&mut [0; 2]).await?;
    let request = [&[5, 1, 0, 3, host.len() as u8], host.as_bytes(), &port.to_be_bytes()].concat();
    stream.write_all(&request).await?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).await?;
    if answer[1] == 0 { Ok(stream) } else { Err(std::io::Error::other(format!("SOCKS error {}", answer[1]))) }
}

/// Results of consecutive requests: the durations of the served ones, and the number of failures.
struct Visits {
    served: Vec<Duration>,
    failed: usize,
}

impl Visits {
    fn asked(&self) -> usize {
        self.served.len() + self.failed
    }

    fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.served.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or(VISIT)
    }

    fn p95(&self) -> Duration {
        self.quantile(0.95)
    }
}

impl std::fmt::Display for Visits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (median, p95) = (self.quantile(0.5).as_secs_f64(), self.p95().as_secs_f64());
        write!(f, "{} of {} served, median {median:.2} s, p95 {p95:.2} s", self.served.len(), self.asked())
    }
}

/// Sends requests one after the other, each on new circuits, for `time` or, if that is `None`, as
/// long as the short form lasts.
fn visits(client: &Client, what: &str, cluster: &Cluster<'_>, time: Option<Duration>) -> Result<Visits> {
    let url = format!("http://{}/", cluster.onion()?);
    let (start, mut seen) = (Instant::now(), Visits { served: Vec::new(), failed: 0 });
    let goes_on = |seen: &Visits| match time {
        Some(time) => start.elapsed() < time,
        None if seen.served.len() >= FEWEST => seen.asked() < VISITS && start.elapsed() < SHORT,
        None => seen.asked() < VISITS && start.elapsed() < SHORT_LIMIT,
    };
    while goes_on(&seen) {
        match client.get_isolated(&format!("visit{}", seen.asked()), &url, VISIT) {
            Ok(answer) if answer.status == 200 => seen.served.push(answer.elapsed),
            Ok(answer) => {
                eprintln!("{what}: status {}", answer.status);
                seen.failed += 1;
            }
            Err(error) => {
                eprintln!("{what}: {error:#}");
                seen.failed += 1;
            }
        }
        std::thread::sleep(if time.is_some() { PACE } else { SHORT_PACE });
    }
    Ok(seen)
}

/// The resources that node and attacker use.
struct Cost {
    node_cpu_ms: u64,
    node_rss_kib: u64,
    node_files: usize,
    attacker_cpu_ms: u64,
}

impl Cost {
    fn of(node: &Node, clients: &[Client]) -> Result<Self> {
        let vitals = node.vitals().ok_or_else(|| anyhow::anyhow!("{} is not running", node.name()))?;
        let attacker_cpu_ms = clients.iter().filter_map(Client::vitals).map(|vitals| vitals.cpu_ms).sum();
        Ok(Self { node_cpu_ms: vitals.cpu_ms, node_rss_kib: vitals.rss_kib, node_files: vitals.files, attacker_cpu_ms })
    }

    fn since(self, before: &Self) -> Self {
        Self {
            node_cpu_ms: self.node_cpu_ms - before.node_cpu_ms,
            attacker_cpu_ms: self.attacker_cpu_ms.saturating_sub(before.attacker_cpu_ms),
            ..self
        }
    }
}

fn row(name: &str, seen: &Visits, cost: Option<(Cost, Duration)>, made: u64) -> String {
    let cost = cost.map_or("- | - | - | - | -".into(), |(cost, time)| {
        let share = |ms: u64| format!("{:.0} %", ms as f64 / time.as_millis() as f64 * 100.0);
        format!(
            "{made} | {} | {} | {} | {}",
            share(cost.attacker_cpu_ms),
            share(cost.node_cpu_ms),
            cost.node_rss_kib / 1024,
            cost.node_files
        )
    });
    let (served, asked) = (seen.served.len(), seen.asked());
    format!(
        "| {name} | {served} of {asked} | {:.2} | {:.2} | {cost} |",
        seen.quantile(0.5).as_secs_f64(),
        seen.p95().as_secs_f64()
    )
}

fn print(rows: &[String]) {
    eprintln!(
        "| attack | served | median (s) | p95 (s) | made | attacker's processor | node's processor | node's memory (MiB) | \
         node's open files |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n{}",
        rows.join("\n")
    );
}
