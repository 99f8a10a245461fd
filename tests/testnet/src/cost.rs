//! Measures what clients cost a service: processor time for bytes and requests, memory for
//! circuits, and how much of it is given back. A C tor onion service with the same site is measured
//! in the same run, in turns.

use std::fs;
use std::net::TcpStream;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustbalance_testnet::cluster::{Cluster, Node, Vitals};
use rustbalance_testnet::{Client, Network, Options, Site, Warmth};

use crate::bench::{BODY, LIMIT, print_table, quantile};
use crate::demo::RELAYS;

/// Requests under way at once, and circuits being built at once.
const AT_ONCE: usize = 24;
/// Stock clients that share the circuits.
const CLIENTS: usize = 4;
/// Rounds in which the services are asked in turns, so that what else the machine does meets all.
const ROUNDS: usize = 4;
/// After this time the work that follows a start, or a change, is over.
const SETTLING: Duration = Duration::from_secs(20);
/// After this time the memory of a burst must be given back.
const GIVEN_BACK: Duration = Duration::from_secs(120);

/// The daemons' log as an operator has it. Tests log more, which would be charged to the clients.
const LOG: &str = "warn,rustbalance=info,rustbalance_gossip=info";

/// The number of measurements of each service.
#[derive(Clone)]
pub(crate) struct CostSizes {
    /// Bodies of 20 MB.
    pub(crate) bodies: usize,
    /// Requests, each on circuits of its own.
    pub(crate) requests: usize,
    /// Circuits with one idle stream each, open at the same time.
    pub(crate) circuits: usize,
    /// Numbers of threads, each with a node of its own; empty for one node with the default.
    pub(crate) threads: Vec<usize>,
    /// The binary of another build, which is measured in the same turns.
    pub(crate) beside: Option<PathBuf>,
}

/// One of the compared services.
struct Subject<'a> {
    name: String,
    onion: String,
    vitals: Box<dyn Fn() -> Option<Vitals> + 'a>,
    memory: Memory,
    /// Processor milliseconds that the bodies took.
    bodies_ms: u64,
    /// Times that a thread of the service gave up its processor during the bodies.
    bodies_switches: u64,
    /// In bytes per second, of each body.
    throughput: Vec<f64>,
    /// Processor milliseconds that the requests took.
    requests_ms: u64,
    /// Time of each request.
    requests: Vec<Duration>,
    failures: usize,
    /// Circuits that could be opened.
    circuits: usize,
}

/// The memory of a service, in MiB.
#[derive(Default)]
struct Memory {
    at_rest: f64,
    before_circuits: f64,
    with_circuits: f64,
    /// Two minutes after the end of the circuits.
    afterwards: f64,
}

/// Runs the measurements, and prints a table in Markdown.
pub(crate) fn cost(binary: PathBuf, sizes: CostSizes) -> Result<()> {
    let network =
        Network::boot_with_progress(Options { relays: RELAYS, ..Options::default() }, |line| eprintln!("{line}"))?;
    let site = Site::start("tor")?;
    let service = network.onion_service("reference", 80, site.addr())?;
    let numbers = if sizes.threads.is_empty() { vec![None] } else { sizes.threads.iter().copied().map(Some).collect() };
    let nodes = numbers.iter().map(|threads| Serving::start(&network, &binary, *threads, "RustBalance"));
    let beside = sizes.beside.iter().map(|other| Serving::start(&network, other, numbers[0], "the other build"));
    let nodes = nodes.chain(beside).collect::<Result<Vec<_>>>()?;
    let clients = load_clients(&network)?;
    let c_tor = Subject::new("C tor".into(), service.hostname().to_owned(), Box::new(|| service.client().vitals()));
    let mut subjects = vec![c_tor];
    for node in &nodes {
        subjects.push(Subject::new(node.name(), node.cluster.onion()?, Box::new(|| node.node.vitals())));
    }
    std::thread::sleep(SETTLING);
    for subject in &mut subjects {
        subject.memory.at_rest = subject.mebibytes()?;
    }
    for round in 0..ROUNDS {
        for subject in &mut subjects {
            let count = share(sizes.bodies, round);
            eprintln!("{}: {count} bodies", subject.name);
            subject.bodies(&clients[0], count)?;
        }
    }
    for round in 0..ROUNDS {
        for subject in &mut subjects {
            let count = share(sizes.requests, round);
            eprintln!("{}: {count} requests", subject.name);
            subject.requests(&clients, count, round)?;
        }
    }
    // Their circuits would end in the middle of what follows.
    drop(clients);
    for subject in &mut subjects {
        eprintln!("{}: {} circuits", subject.name, sizes.circuits);
        subject.circuits(&network, sizes.circuits)?;
    }
    report(&subjects);
    Ok(())
}

/// A cluster of one node.
struct Serving<'n> {
    cluster: Cluster<'n>,
    node: Arc<Node>,
    /// `None` for the daemon's default.
    threads: Option<usize>,
    build: &'static str,
}

impl<'n> Serving<'n> {
    fn start(network: &'n Network, binary: &Path, threads: Option<usize>, build: &'static str) -> Result<Self> {
        let cluster = Cluster::logging(network, binary, LOG)?;
        let node = cluster.init("one")?;
        if let Some(threads) = threads {
            let path = node.state().join("rustbalance.toml");
            let text = fs::read_to_string(&path).context("cannot read the node's configuration")?;
            // Above the first table, because the key belongs to none.
            fs::write(&path, format!("threads = {threads}\n{text}"))?;
        }
        node.run()?;
        cluster.await_served(&[Arc::clone(&node)])?;
        Ok(Self { cluster, node, threads, build })
    }

    fn name(&self) -> String {
        match self.threads {
            None => self.build.into(),
            Some(1) => format!("{}, 1 thread", self.build),
            Some(threads) => format!("{}, {threads} threads", self.build),
        }
    }
}

/// Stock clients that make the load.
fn load_clients(network: &Network) -> Result<Vec<Client>> {
    (0..CLIENTS).map(|_| network.client("load", Warmth::Warm)).collect()
}

impl<'a> Subject<'a> {
    fn new(name: String, onion: String, vitals: Box<dyn Fn() -> Option<Vitals> + 'a>) -> Self {
        Self {
            name,
            onion,
            vitals,
            memory: Memory::default(),
            bodies_ms: 0,
            bodies_switches: 0,
            throughput: Vec::new(),
            requests_ms: 0,
            requests: Vec::new(),
            failures: 0,
            circuits: 0,
        }
    }

    fn vitals(&self) -> Result<Vitals> {
        (self.vitals)().with_context(|| format!("{} does not run", self.name))
    }

    fn mebibytes(&self) -> Result<f64> {
        Ok(self.vitals()?.rss_kib as f64 / 1024.0)
    }

    fn bodies(&mut self, client: &Client, count: usize) -> Result<()> {
        let url = format!("http://{}/bytes/{BODY}", self.onion);
        // The first one builds the circuit.
        client.get_isolated("bodies", &format!("http://{}/", self.onion), LIMIT)?;
        let before = self.vitals()?;
        for _ in 0..count {
            let answer = client.get_isolated("bodies", &url, LIMIT)?;
            ensure!(answer.body.len() == BODY, "{} of {BODY} bytes came", answer.body.len());
            self.throughput.push(BODY as f64 / (answer.elapsed - answer.first_byte).as_secs_f64());
        }
        let after = self.vitals()?;
        self.bodies_ms += after.cpu_ms - before.cpu_ms;
        // A thread that has ended takes its count with it.
        self.bodies_switches += after.switches.saturating_sub(before.switches);
        Ok(())
    }

    fn requests(&mut self, clients: &[Client], count: usize, round: usize) -> Result<()> {
        let url = format!("http://{}/", self.onion);
        let before = self.vitals()?.cpu_ms;
        let answers = side_by_side(count, |number| {
            let client = &clients[number % clients.len()];
            client.get_isolated(&format!("request{round}-{number}"), &url, LIMIT).map(|answer| answer.elapsed)
        });
        self.requests_ms += self.vitals()?.cpu_ms - before;
        for answer in answers {
            match answer {
                Ok(elapsed) => self.requests.push(elapsed),
                Err(error) => {
                    eprintln!("{}: {error:#}", self.name);
                    self.failures += 1;
                }
            }
        }
        ensure!(!self.requests.is_empty(), "{} answered no request", self.name);
        Ok(())
    }

    /// Opens the circuits, then ends their clients: a client that keeps running closes circuits
    /// without streams only after minutes, and asking it for a new identity does not change that.
    fn circuits(&mut self, network: &Network, count: usize) -> Result<()> {
        let clients = load_clients(network)?;
        // Without what the requests have left.
        std::thread::sleep(SETTLING);
        self.memory.before_circuits = self.mebibytes()?;
        let opened = side_by_side(count, |number| {
            clients[number % clients.len()].open_isolated(&format!("circuit{number}"), &self.onion, 80, LIMIT)
        });
        let streams: Vec<TcpStream> = opened.into_iter().flatten().collect();
        self.circuits = streams.len();
        ensure!(self.circuits > 0, "{} accepted no stream", self.name);
        self.memory.with_circuits = self.mebibytes()?;
        drop(streams);
        drop(clients);
        std::thread::sleep(GIVEN_BACK);
        self.memory.afterwards = self.mebibytes()?;
        Ok(())
    }

    /// Bytes of the bodies.
    fn bytes(&self) -> f64 {
        (self.throughput.len() * BODY) as f64
    }

    /// Memory of one open circuit with its stream, in KiB.
    fn memory_per_circuit(&self) -> f64 {
        (self.memory.with_circuits - self.memory.before_circuits).max(0.0) * 1024.0 / self.circuits as f64
    }
}

/// The part of `count` that belongs to this round.
fn share(count: usize, round: usize) -> usize {
    count * (round + 1) / ROUNDS - count * round / ROUNDS
}

/// Does something `count` times, at most [`AT_ONCE`] at a time; the results are in no order.
fn side_by_side<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
                    numbers.take_while(|number| *number < count).map(&work).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Prints the table, with ratios to the first subject.
fn report(subjects: &[Subject<'_>]) {
    type Measure = (&'static str, fn(&Subject<'_>) -> f64);
    let measures: [Measure; 11] = [
        ("memory at rest (MiB)", |subject| subject.memory.at_rest),
        ("processor for a GB downloaded (s)", |subject| subject.bodies_ms as f64 / subject.bytes() * 1e6),
        ("task switches for a MB downloaded", |subject| subject.bodies_switches as f64 / subject.bytes() * 1e6),
        ("throughput of 20 MB, median (MB/s)", |subject| quantile(&subject.throughput, 0.5).unwrap_or_default() / 1e6),
        ("processor for a request on fresh circuits, 24 at once (ms)", |subject| {
            subject.requests_ms as f64 / subject.requests.len() as f64
        }),
        ("such a request, median (s)", |subject| request_time(subject, 0.5)),
        ("such a request, p95 (s)", |subject| request_time(subject, 0.95)),
        ("failed requests", |subject| subject.failures as f64),
        ("memory of an open circuit with an idle stream (KiB)", |subject| subject.memory_per_circuit()),
        ("memory with these circuits open (MiB)", |subject| subject.memory.with_circuits),
        ("memory two minutes after their end (MiB)", |subject| subject.memory.afterwards),
    ];
    let names: Vec<&str> = subjects.iter().map(|subject| subject.name.as_str()).collect();
    let rows = measures.iter().map(|(name, measure)| (*name, subjects.iter().map(|it| Some(measure(it))).collect()));
    print_table(&names, rows);
    let open: Vec<String> = subjects.iter().map(|subject| subject.circuits.to_string()).collect();
    println!(
        "\n{} bodies and {} requests each, {} circuits; ratios to C tor.",
        subjects[0].throughput.len(),
        subjects[0].requests.len() + subjects[0].failures,
        open.join(" and ")
    );
}

fn request_time(subject: &Subject<'_>, quantity: f64) -> f64 {
    quantile(&subject.requests, quantity).unwrap_or_default().as_secs_f64()
}
