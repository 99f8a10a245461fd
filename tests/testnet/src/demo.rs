//! The demonstration: three nodes with one address, a stock client served by each of them, and the
//! death of the publisher.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use parking_lot::Mutex;
use rustbalance_testnet::cluster::{Cluster, Node};
use rustbalance_testnet::{Network, Options};

/// Relays in addition to the authorities: enough for every introduction point to have a relay of
/// its own.
pub(crate) const RELAYS: usize = 11;
/// The nodes, in the order in which they join.
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];
/// Maximum number of fresh clients until each node has answered. A run in ten million needs more.
const MAX_VISITORS: usize = 45;
/// Fresh clients after the takeover; each of them must be served.
const VISITORS_AFTER: usize = 6;
/// How long the takeover may take.
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(90);

#[derive(Default)]
struct Measurements {
    boot: Duration,
    first_answer: Duration,
    complete: Duration,
    fetches: Vec<Duration>,
    served: BTreeMap<String, usize>,
    takeover: Duration,
    clean: Duration,
    failed_meanwhile: usize,
    visitors_meanwhile: usize,
    back: Duration,
}

/// Runs the demonstration. The error says what went wrong.
pub(crate) fn demo(binary: PathBuf) -> Result<()> {
    let stage = Stage::new();
    let mut measured = Measurements::default();
    stage.title("RustBalance: one .onion address, served by three machines, none of which matters more than another");

    stage.step("A private Tor network boots: C tor processes on loopback, no internet");
    let network =
        Network::boot_with_progress(Options { relays: RELAYS, ..Options::default() }, |line| stage.note(line))?;
    measured.boot = stage.since_step();

    stage.step("Three nodes start; each has a site of its own, which answers the node's name");
    let cluster = Cluster::new(&network, binary)?;
    let nodes = start_nodes(&stage, &cluster, &mut measured)?;

    stage.step("Stock Tor clients, each without any memory, fetch the address until every node has answered");
    visit_until_all_served(&stage, &cluster, &mut measured)?;

    stage.step("The publisher dies: kill -9, without a goodbye");
    let (dead, heir) = kill_the_publisher(&stage, &cluster, &nodes, &mut measured)?;

    stage.step("The dead node is run again");
    let started = Instant::now();
    dead.run()?;
    cluster.await_served(&nodes)?;
    measured.back = started.elapsed();
    stage.note(&format!("{} is in the descriptor again, and {} still publishes", dead.name(), heir.name()));
    let publisher = dead.status()?.publisher.context("no node publishes")?;
    ensure!(publisher.node == heir.status()?.node, "the lease has moved although its holder is alive");

    stage.summary(&cluster.onion()?, &dead, &heir, &measured);
    Ok(())
}

fn start_nodes(stage: &Stage, cluster: &Cluster<'_>, measured: &mut Measurements) -> Result<Vec<Arc<Node>>> {
    let started = Instant::now();
    let first = cluster.init(NAMES[0])?;
    first.run()?;
    let onion = cluster.onion()?;
    stage.note(&format!("{}: rustbalance init; rustbalance run", first.name()));
    stage.note(&format!("the address is {onion}"));
    cluster.wait_until("a client is served", Duration::from_secs(90), || cluster.fetch())?;
    measured.first_answer = started.elapsed();
    stage.note(&format!("a client was served {:.1} s after init", measured.first_answer.as_secs_f64()));
    let mut nodes = vec![first];
    for (name, role) in [(NAMES[1], "publisher"), (NAMES[2], "worker")] {
        let token = nodes[0].invite(role, 1, "1h")?;
        let began = Instant::now();
        let node = cluster.join(name, &token)?;
        node.run()?;
        let took = began.elapsed().as_secs_f64();
        stage.note(&format!("{name}: rustbalance join {}... as a {role} ({took:.1} s); rustbalance run", &onion[..12]));
        nodes.push(node);
    }
    cluster.await_served(&nodes)?;
    measured.complete = started.elapsed();
    let status = nodes[0].status()?;
    let publication = status.publication.context("nothing is published")?;
    stage.note(&format!(
        "one descriptor names {} introduction points of 3 nodes, on every directory, {:.1} s after init",
        publication.intro_points.len(),
        measured.complete.as_secs_f64()
    ));
    Ok(nodes)
}

fn visit_until_all_served(stage: &Stage, cluster: &Cluster<'_>, measured: &mut Measurements) -> Result<()> {
    while measured.served.len() < NAMES.len() {
        let visitor = measured.fetches.len() + 1;
        if visitor > MAX_VISITORS {
            bail!("{MAX_VISITORS} visitors were served only by {:?}", measured.served.keys());
        }
        let (name, took) = cluster.fetch().with_context(|| cluster.diagnosis())?;
        stage.note(&format!("visitor {visitor:2} was served by {name:5} in {:.2} s", took.as_secs_f64()));
        measured.fetches.push(took);
        *measured.served.entry(name).or_default() += 1;
    }
    Ok(())
}

/// Kills the publisher and watches what visitors get meanwhile. Returns the dead node and the node
/// that publishes now.
fn kill_the_publisher(
    stage: &Stage,
    cluster: &Cluster<'_>,
    nodes: &[Arc<Node>],
    measured: &mut Measurements,
) -> Result<(Arc<Node>, Arc<Node>)> {
    let publisher = nodes[0].status()?.publisher.context("no node publishes")?.node;
    let mut dead = None;
    let mut rest = Vec::new();
    for node in nodes {
        match node.status()?.node == publisher {
            true => dead = Some(Arc::clone(node)),
            false => rest.push(Arc::clone(node)),
        }
    }
    let dead = dead.context("the publisher is not one of the nodes")?;
    dead.kill9()?;
    let killed = Instant::now();
    stage.note(&format!("{} is dead; {} and {} are left", dead.name(), rest[0].name(), rest[1].name()));

    let heir = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch_takeover(stage, cluster, &rest, &publisher, killed));
        // Visitors come until the takeover is complete.
        while !watcher.is_finished() {
            let at = killed.elapsed().as_secs_f64();
            measured.visitors_meanwhile += 1;
            match cluster.fetch() {
                Ok((name, took)) => {
                    stage.note(&format!("+{at:4.1} s  a visitor was served by {name} in {:.1} s", took.as_secs_f64()));
                }
                Err(error) => {
                    measured.failed_meanwhile += 1;
                    stage.note(&format!("+{at:4.1} s  a visitor was not served: {}", error.root_cause()));
                }
            }
        }
        watcher.join().unwrap_or_else(|_| Err(anyhow!("the thread that watches the takeover panicked")))
    });
    let (heir, takeover, clean) = heir?;
    (measured.takeover, measured.clean) = (takeover, clean);
    for _ in 0..VISITORS_AFTER {
        let (name, took) = cluster.fetch().with_context(|| cluster.diagnosis())?;
        ensure!(name != dead.name(), "the dead {name} has served");
        let at = killed.elapsed().as_secs_f64();
        stage.note(&format!("+{at:4.1} s  a visitor was served by {name} in {:.1} s", took.as_secs_f64()));
    }
    Ok((dead, heir))
}

/// Watches the remaining nodes until one of them publishes and every directory has its descriptor
/// without the dead node. Returns that node, the time until it took over, and the time until all
/// directories had the descriptor, both since the kill.
fn watch_takeover(
    stage: &Stage,
    cluster: &Cluster<'_>,
    rest: &[Arc<Node>],
    dead: &str,
    killed: Instant,
) -> Result<(Arc<Node>, Duration, Duration)> {
    let heir = cluster.wait_until("another takes over", TAKEOVER_PATIENCE, || {
        for node in rest {
            let status = node.status()?;
            if let Some(publisher) = status.publisher.filter(|publisher| publisher.me) {
                return Ok((Arc::clone(node), publisher.term));
            }
        }
        bail!("none of the remaining nodes publishes")
    });
    let (heir, term) = heir?;
    let takeover = killed.elapsed();
    stage.loud(&format!("+{:4.1} s  {} took over, in term {term}", takeover.as_secs_f64(), heir.name()));
    cluster.wait_until("every directory holds a descriptor without the dead", TAKEOVER_PATIENCE, || {
        let status = heir.status()?;
        let own = status.publication.as_ref().is_some_and(|publication| publication.node == status.node);
        ensure!(own && status.published_of(dead) == 0, "the dead node is still published");
        ensure!(status.is_confirmed(), "not every directory has confirmed");
        Ok(())
    })?;
    let clean = killed.elapsed();
    stage.loud(&format!("+{:4.1} s  every directory holds a descriptor without the dead one", clean.as_secs_f64()));
    Ok((heir, takeover, clean))
}

/// The terminal output: in colour on a terminal, plain elsewhere.
struct Stage {
    started: Instant,
    step: Mutex<(usize, Instant)>,
    colour: bool,
}

impl Stage {
    fn new() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let started = Instant::now();
        let colour = std::io::stdout().is_terminal() && !plain;
        Self { started, step: Mutex::new((0, started)), colour }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn title(&self, text: &str) {
        println!("\n{}", self.paint("1", text));
    }

    fn step(&self, text: &str) {
        let mut step = self.step.lock();
        *step = (step.0 + 1, Instant::now());
        let number = step.0;
        println!("\n{} {}", self.paint("1;36", &format!("{number}.")), self.paint("1", text));
    }

    fn since_step(&self) -> Duration {
        self.step.lock().1.elapsed()
    }

    fn note(&self, text: &str) {
        let clock = format!("{:6.1} s", self.started.elapsed().as_secs_f64());
        println!("   {}  {text}", self.paint("2", &clock));
    }

    /// A highlighted note.
    fn loud(&self, text: &str) {
        self.note(&self.paint("1;32", text));
    }

    fn summary(&self, onion: &str, dead: &Node, heir: &Node, measured: &Measurements) {
        let seconds = |duration: Duration| format!("{:.1} s", duration.as_secs_f64());
        let mut fetches = measured.fetches.clone();
        fetches.sort_unstable();
        let shares: Vec<_> = measured.served.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let answered = measured.visitors_meanwhile - measured.failed_meanwhile;
        self.title("What was measured");
        for (what, value) in [
            ("the address", onion.to_owned()),
            ("boot of the test network", seconds(measured.boot)),
            ("from init to the first client served", seconds(measured.first_answer)),
            ("from init to three nodes on every directory", seconds(measured.complete)),
            ("clients until each node had served", format!("{} ({})", fetches.len(), shares.join(", "))),
            ("a fetch by a fresh client, median", seconds(fetches[fetches.len() / 2])),
            ("kill -9 of the publisher until another had taken over", seconds(measured.takeover)),
            ("until every directory had a descriptor without it", seconds(measured.clean)),
            ("clients served meanwhile", format!("{answered} of {}", measured.visitors_meanwhile)),
            ("clients served from then on", format!("all, {VISITORS_AFTER} of {VISITORS_AFTER}")),
            ("from run until the dead one was back", seconds(measured.back)),
        ] {
            println!("   {what:54} {}", self.paint("1", &value));
        }
        println!(
            "\n{} was the publisher and died; {} publishes now, and {} serves again as one of three. In all {}.",
            dead.name(),
            heir.name(),
            dead.name(),
            seconds(self.started.elapsed())
        );
    }
}
