//! The benchmark compares our proxied path with a plain C tor onion service: on the same network,
//! with the same site and the same clients, and in turns, so that other load on the machine affects
//! both alike.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustbalance_testnet::cluster::Cluster;
use rustbalance_testnet::{Client, Network, Options, Site, Warmth};

use crate::demo::RELAYS;

/// Size, in bytes, of the bodies whose throughput is measured.
pub(crate) const BODY: usize = 20_000_000;
/// How long one request may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The number of measurements.
pub(crate) struct BenchSizes {
    /// Starts of each kind of service.
    pub(crate) starts: usize,
    /// Requests, each on circuits of its own.
    pub(crate) requests: usize,
    /// Large bodies per subject.
    pub(crate) bodies: usize,
}

/// The measurements of one of the compared services.
struct Subject {
    name: &'static str,
    onion: String,
    /// Times from the start of the daemon to the first answer.
    starts: Vec<Duration>,
    /// Times of requests by clients without circuits or descriptors.
    first: Vec<Duration>,
    /// Times of requests on fresh circuits by a client that knows the descriptor.
    requests: Vec<Duration>,
    /// In bytes per second.
    throughput: Vec<f64>,
    failures: usize,
}

/// Runs the measurements, and prints a table in Markdown.
pub(crate) fn bench(binary: PathBuf, extent: &BenchSizes) -> Result<()> {
    let network =
        Network::boot_with_progress(Options { relays: RELAYS, ..Options::default() }, |line| eprintln!("{line}"))?;
    let mut starts = [Vec::new(), Vec::new()];
    for round in 1..=extent.starts {
        eprintln!("start {round} of {}", extent.starts);
        starts[0].push(c_tor_start(&network)?);
        starts[1].push(our_start(&network, &binary)?);
    }

    let site = Site::start("tor")?;
    let service = network.onion_service("reference", 80, site.addr())?;
    let single = Cluster::new(&network, &binary)?;
    single.grow(&["one"], &["publisher"])?;
    let triple = Cluster::new(&network, &binary)?;
    triple.grow(&["one", "two", "three"], &["publisher", "publisher", "worker"])?;
    let [tor_starts, our_starts] = starts;
    let mut subjects = [
        Subject::new("C tor", service.hostname().to_owned(), tor_starts),
        Subject::new("RustBalance, 1 node", single.onion()?, our_starts),
        Subject::new("RustBalance, 3 nodes", triple.onion()?, Vec::new()),
    ];
    for round in 1..=extent.requests {
        if round % 10 == 0 {
            eprintln!("request {round} of {}", extent.requests);
        }
        for subject in &mut subjects {
            // Every fourth round adds a request by a new client.
            if round % 4 == 1 {
                let client = network.client("newcomer", Warmth::Warm)?;
                subject.request(&client, round, true);
            }
            subject.request(network.main_client(), round, false);
        }
    }
    for round in 1..=extent.bodies {
        eprintln!("body {round} of {}", extent.bodies);
        for subject in &mut subjects {
            subject.body(network.main_client(), round)?;
        }
    }
    report(&subjects);
    Ok(())
}

/// Time from the start of a C tor with an onion service to the first answer. This tor starts with
/// the network's directory documents, while our daemon has to fetch them.
fn c_tor_start(network: &Network) -> Result<Duration> {
    let site = Site::start("tor")?;
    let client = network.client("first", Warmth::Warm)?;
    let started = Instant::now();
    let service = network.onion_service_hastily("starting", site.addr())?;
    first_answer(&client, service.hostname())?;
    Ok(started.elapsed())
}

/// Time from the start of our daemon to the first answer. Like C tor, it makes its keys in this
/// time.
fn our_start(network: &Network, binary: &PathBuf) -> Result<Duration> {
    let cluster = Cluster::new(network, binary)?;
    let client = network.client("first", Warmth::Warm)?;
    let started = Instant::now();
    let node = cluster.init("starting")?;
    node.run()?;
    // A client that asks too early remembers the failure. So this waits until the directories have
    // confirmed, as the measurement of C tor does.
    cluster.wait_until("a descriptor is published", LIMIT, || {
        ensure!(node.status()?.is_confirmed(), "not every directory has confirmed");
        Ok(())
    })?;
    first_answer(&client, &cluster.onion()?)?;
    Ok(started.elapsed())
}

fn first_answer(client: &Client, onion: &str) -> Result<()> {
    let answer = client.get(&format!("http://{onion}/"), LIMIT)?;
    ensure!(answer.status == 200, "the first answer has status {}", answer.status);
    Ok(())
}

impl Subject {
    fn new(name: &'static str, onion: String, starts: Vec<Duration>) -> Self {
        Self { name, onion, starts, first: Vec::new(), requests: Vec::new(), throughput: Vec::new(), failures: 0 }
    }

    /// One request on circuits of its own.
    fn request(&mut self, client: &Client, round: usize, newcomer: bool) {
        match client.get_isolated(&format!("request{round}"), &format!("http://{}/", self.onion), LIMIT) {
            Ok(answer) if newcomer => self.first.push(answer.elapsed),
            Ok(answer) => self.requests.push(answer.elapsed),
            Err(error) => {
                eprintln!("{}: {error:#}", self.name);
                self.failures += 1;
            }
        }
    }

    /// One large body, on a connected circuit. The measured time begins with its first byte.
    fn body(&mut self, client: &Client, round: usize) -> Result<()> {
        let url = format!("http://{}/bytes/{BODY}", self.onion);
        let answer = client.get_isolated(&format!("body{round}"), &url, LIMIT)?;
        ensure!(answer.body.len() == BODY, "{} of {BODY} bytes came", answer.body.len());
        self.throughput.push(BODY as f64 / (answer.elapsed - answer.first_byte).as_secs_f64());
        Ok(())
    }
}

/// The value below which `share` of all values are; `None` if there are no values.
pub(crate) fn quantile<T: Copy + PartialOrd>(values: &[T], share: f64) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal));
    let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().checked_sub(1)?);
    sorted.get(index).copied()
}

/// Prints the table, with ratios to the first subject.
fn report(subjects: &[Subject]) {
    let seconds = |values: &[Duration], share| quantile(values, share).map(|value| value.as_secs_f64());
    type Measure = (&'static str, Box<dyn Fn(&Subject) -> Option<f64>>);
    let measures: [Measure; 6] = [
        ("start to first fetch, median (s)", Box::new(move |subject| seconds(&subject.starts, 0.5))),
        ("first fetch of a new client, median (s)", Box::new(move |subject| seconds(&subject.first, 0.5))),
        ("request on fresh circuits, median (s)", Box::new(move |subject| seconds(&subject.requests, 0.5))),
        ("request on fresh circuits, p95 (s)", Box::new(move |subject| seconds(&subject.requests, 0.95))),
        (
            "throughput of 20 MB, median (MB/s)",
            Box::new(|subject| quantile(&subject.throughput, 0.5).map(|value| value / 1e6)),
        ),
        ("failed requests", Box::new(|subject| Some(subject.failures as f64))),
    ];
    let names: Vec<&str> = subjects.iter().map(|subject| subject.name).collect();
    let rows = measures.iter().map(|(name, measure)| (*name, subjects.iter().map(measure).collect()));
    print_table(&names, rows);
    let of = &subjects[0];
    println!(
        "\n{} starts, {} first fetches, {} requests and {} bodies each; ratios to C tor.",
        of.starts.len(),
        of.first.len(),
        of.requests.len(),
        of.throughput.len()
    );
}

/// Prints a table in Markdown: a column for each subject, a row for each measure. Values carry
/// their ratio to the first subject's.
pub(crate) fn print_table<'a>(subjects: &[&str], rows: impl Iterator<Item = (&'a str, Vec<Option<f64>>)>) {
    println!("| |{}", subjects.iter().map(|name| format!(" {name} |")).collect::<String>());
    println!("|---|{}", "---:|".repeat(subjects.len()));
    for (name, values) in rows {
        let reference = values.first().copied().flatten();
        let mut row = format!("| {name} |");
        for (index, value) in values.into_iter().enumerate() {
            let cell = match (value, reference) {
                (None, _) => "-".to_owned(),
                (Some(value), Some(base)) if index > 0 && base > 0.0 => format!("{value:.2} ({:.2}×)", value / base),
                (Some(value), _) => format!("{value:.2}"),
            };
            row.push_str(&format!(" {cell} |"));
        }
        println!("{row}");
    }
}
