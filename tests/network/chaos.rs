//! Chaos: nodes are killed, restarted, frozen, cut off and run out of disk space, relays and
//! authorities die, time periods change, and stock clients use the service all the time. At the end
//! every fault is over, and the whole cluster must recover.
//!
//! [`Driver`] (`tests/testnet/src/chaos`) draws the faults and their times from a seed; it always
//! leaves one publisher without a fault. The short form is a normal test, the long form is
//! `./scripts/soak.sh [MINUTES] [SEED]`. Each has its own network, because relays die in it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use rustbalance_testnet::chaos::{Bounds, Driver, Event, Report, Rules, Visitors};
use rustbalance_testnet::cluster::{Cluster, Node};
use rustbalance_testnet::{Network, Options};

use crate::support::{BINARY, ClusterPermit, DescriptorReader, Progress, agreed_publisher};
use stage::Stage;
use watch::Watch;

mod after;
mod stage;
mod watch;

/// Names of the nodes; a plan uses the first of them. The first [`PUBLISHERS`] are publishers.
const NAMES: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];
const PUBLISHERS: usize = 3;
/// Time limit for the recovery. It exceeds the bound of the plan, to distinguish a slow recovery
/// from none.
const PATIENCE: Duration = Duration::from_secs(300);
/// Lines of each node's log in the report of a run without full recovery.
const LAST_NEWS: usize = 200;
/// How long the visitors continue after the recovery.
const AFTERMATH: Duration = Duration::from_secs(10);

/// The size of the cluster and of the network, the faults, and the bounds of the result.
struct Plan {
    seed: u64,
    chaos: Duration,
    nodes: usize,
    /// Relays without the authorities. Each introduction point of a node, of which it has three,
    /// needs its own relay, and relays die.
    relays: usize,
    max_down_nodes: usize,
    max_dead_relays: usize,
    regulars: usize,
    newcomers: usize,
    /// Path of the report in JSON; `None`: no such report.
    file: Option<PathBuf>,
    bounds: Bounds,
}

/// The bounds are a minute above those of the long form, because the machine may be busy.
#[test]
fn clients_are_served_through_a_short_chaos() {
    let _turn = ClusterPermit::take();
    run(Plan {
        seed: drawn_seed(),
        chaos: Duration::from_secs(90),
        nodes: 4,
        relays: 12,
        max_down_nodes: 2,
        max_dead_relays: 1,
        regulars: 2,
        newcomers: 1,
        file: variable("RUSTBALANCE_SOAK_REPORT").map(PathBuf::from),
        bounds: Bounds {
            outage: Duration::from_secs(90),
            settled: Duration::from_secs(120),
            period_changes: 0,
            growth: 2.0,
            growth_kib: 64 << 10,
        },
    });
}

/// `RUSTBALANCE_SOAK_MINUTES` sets the length, `RUSTBALANCE_SOAK_SEED` the seed and
/// `RUSTBALANCE_SOAK_REPORT` the path of the report.
#[test]
#[ignore = "takes 25 minutes: ./scripts/soak.sh"]
fn soak() {
    let minutes: u64 =
        variable("RUSTBALANCE_SOAK_MINUTES").map_or(22, |text| text.parse().expect("minutes are a number"));
    run(Plan {
        seed: drawn_seed(),
        chaos: Duration::from_secs(60 * minutes),
        nodes: 5,
        relays: 18,
        max_down_nodes: 3,
        max_dead_relays: 2,
        regulars: 3,
        newcomers: 2,
        file: variable("RUSTBALANCE_SOAK_REPORT").map(PathBuf::from),
        bounds: Bounds {
            outage: Duration::from_secs(30),
            settled: Duration::from_secs(60),
            // The time period changes every 8 minutes.
            period_changes: usize::try_from(minutes / 8).unwrap_or(0),
            growth: 1.1,
            // Arti's pool of prebuilt circuits may grow to 512 in one process, at about 60 KiB
            // each, and has no setting.
            growth_kib: 32 << 10,
        },
    });
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The seed from the environment, or one from the clock.
fn drawn_seed() -> u64 {
    let asked = variable("RUSTBALANCE_SOAK_SEED");
    let of_clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs() % 1_000_000);
    asked.map_or_else(of_clock, |text| text.parse().expect("a seed is a number"))
}

fn run(plan: Plan) {
    let report = match chaos(&plan) {
        Ok(report) => report,
        Err(error) => panic!("chaos from seed {}: {error:#}", plan.seed),
    };
    let missed = report.missed(&plan.bounds);
    eprintln!("\n{}", report.text());
    if let Some(file) = &plan.file {
        let text = serde_json::to_vec_pretty(&report).unwrap();
        std::fs::write(file, text).unwrap();
        eprintln!("the whole report, with all faults and samples, is in {}", file.display());
    }
    let replay = format!("RUSTBALANCE_SOAK_SEED={} draws the same faults", plan.seed);
    assert!(missed.is_empty(), "{replay}; missed goals:\n  {}", missed.join("\n  "));
}

/// Prints events and keeps them for the report.
struct EventLog {
    started: Instant,
    progress: Mutex<(Progress, Vec<(Duration, String)>)>,
}

impl EventLog {
    fn report(&self, what: std::fmt::Arguments<'_>) {
        let mut progress = self.progress.lock();
        progress.0.report(what);
        progress.1.push((self.started.elapsed(), what.to_string()));
    }
}

/// Stops the visitors and the watch when it is dropped.
struct StopOnDrop<'a>(&'a Visitors<'a>, &'a Watch<'a>);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.dismiss();
        self.1.end();
    }
}

/// Starts the nodes with small disks. If no disk can be mounted here, also returns why.
fn grow(cluster: &Cluster<'_>, names: &[&str], progress: &mut Progress) -> Result<(Vec<Arc<Node>>, Option<String>)> {
    let mut diskless = None;
    let mut run = |node: &Node| {
        if let Err(error) = node.confine() {
            diskless = Some(format!("full disks: {error:#}"));
        }
        node.run()
    };
    let first = cluster.init(names[0])?;
    run(&first)?;
    let mut nodes = vec![first];
    cluster.await_served(&nodes)?;
    for (index, name) in names.iter().enumerate().skip(1) {
        let role = if index < PUBLISHERS { "publisher" } else { "worker" };
        let node = cluster.join(name, &nodes[0].invite(role, 1, "1h")?)?;
        run(&node)?;
        nodes.push(node);
    }
    cluster.await_served(&nodes)?;
    progress.report(format_args!("{} nodes are published", nodes.len()));
    Ok((nodes, diskless))
}

/// Runs a plan on its own network.
fn chaos(plan: &Plan) -> Result<Report> {
    let mut progress = Progress::new("chaos");
    progress.report(format_args!("seed {}", plan.seed));
    let network = Network::boot(Options { relays: plan.relays, exits: 4, ..Options::default() })?;
    // A copy, so that a build during the run does not change the program that is restarted.
    let binary = network.base().join("rustbalance");
    std::fs::copy(BINARY, &binary)?;
    let cluster = Cluster::new(&network, &binary)?.cabled();
    let report = run_faults(plan, &cluster, progress);
    if report.as_ref().map_or(true, |report| !report.missed(&plan.bounds).is_empty()) {
        cluster.keep_logs();
    }
    report
}

/// Starts a cluster whose nodes can be cut off, and runs the faults of the plan on it.
fn run_faults(plan: &Plan, cluster: &Cluster<'_>, mut progress: Progress) -> Result<Report> {
    let network = cluster.network();
    let (nodes, diskless) = grow(cluster, &NAMES[..plan.nodes], &mut progress)?;
    let onion = cluster.onion()?;
    let eye = DescriptorReader::open(network)?;
    let authorities = network.relays().iter().filter(|relay| relay.dir_port.is_some()).count();
    let rules = Rules {
        publishers: PUBLISHERS,
        nodes: nodes.len(),
        relays: network.relays().len() - authorities,
        authorities,
        max_down_nodes: plan.max_down_nodes,
        max_silent_nodes: plan.max_down_nodes.min(2),
        max_dead_relays: plan.max_dead_relays,
        disks: diskless.is_none(),
        calm: plan.chaos,
    };
    let mut driver = Driver::new(rules, plan.seed);
    let witness = nodes[driver.witness()].name().to_owned();
    progress.report(format_args!("{witness} is the witness: its process is never killed or restarted"));

    let started = Instant::now();
    let event_log = EventLog { started, progress: Mutex::new((progress, Vec::new())) };
    let watch = Watch::new(&nodes, &onion, &eye, &event_log)?;
    let visitors = Visitors::new(network, &onion, &NAMES, started);
    let stage = Stage::new(network, &nodes, &watch, &event_log);
    let settled = thread::scope(|scope| {
        // Stops the other threads however this closure ends.
        let _dismissal = StopOnDrop(&visitors, &watch);
        for index in 0..plan.regulars {
            let visitors = &visitors;
            scope.spawn(move || visitors.regular(&format!("regular-{index}")));
        }
        for _ in 0..plan.newcomers {
            scope.spawn(|| visitors.newcomers());
        }
        for index in 0..nodes.len() {
            let watch = &watch;
            scope.spawn(move || watch.node(index));
        }
        scope.spawn(|| watch.directories());
        scope.spawn(|| watch.machine());
        let calm = play(&mut driver, plan.chaos, &stage, &watch, &event_log);
        let settled = await_whole(&stage, &nodes, &onion, &eye, calm);
        match &settled {
            Ok(took) => event_log
                .report(format_args!("everything has recovered {:.1} s after the calm began", took.as_secs_f64())),
            Err(missing) => event_log.report(format_args!("no full recovery in the calm: {missing}")),
        }
        thread::sleep(AFTERMATH);
        settled
    });

    let mut report = Report { seed: plan.seed, lasted: started.elapsed(), witness, ..Report::default() };
    report.skipped.extend(diskless);
    report.settled = Some(settled);
    stage.fill(&mut report);
    watch.fill(&mut report);
    visitors.look(|ledger| {
        report.requests = ledger.visits().len();
        report.failures = ledger.failures();
        report.failed = ledger.visits().iter().filter(|visit| visit.outcome.is_err()).cloned().collect();
        report.served = ledger.served();
        report.set_waits(&ledger.waits());
        report.outages = ledger.outages().into_iter().take(20).collect();
        report.silence = Some(ledger.longest_silence(started.elapsed()));
    });
    report.newcomers = visitors.newcomers_so_far();
    after::look(&nodes, &mut report);
    if matches!(report.settled, Some(Err(_))) {
        report.last_news = nodes.iter().map(|node| (node.name().to_owned(), node.last_news(LAST_NEWS))).collect();
    }
    report.timeline = std::mem::take(&mut event_log.progress.lock().1);
    Ok(report)
}

/// Carries out the driver's actions until the calm has begun and all faults are over. Returns when
/// the calm began.
fn play(driver: &mut Driver, chaos: Duration, stage: &Stage<'_>, watch: &Watch<'_>, event_log: &EventLog) -> Instant {
    thread::scope(|deeds| {
        let mut calm = None;
        loop {
            let now = event_log.started.elapsed();
            let failed = stage.supervise().into_iter().map(Event::Failed);
            let events = failed.chain(watch.whole().into_iter().map(Event::Whole)).chain([Event::Tick]);
            for action in events.flat_map(|event| driver.handle(event, now)).collect::<Vec<_>>() {
                stage.carry_out(action, deeds);
            }
            if now >= chaos && calm.is_none() {
                event_log.report(format_args!("the calm begins"));
                calm = Some(Instant::now());
            }
            if let Some(calm) = calm
                && (driver.is_all_whole() || calm.elapsed() > PATIENCE)
            {
                return calm;
            }
            thread::sleep(Duration::from_millis(200));
        }
    })
}

/// Waits until there is one publisher on which all nodes agree, and every directory holds its
/// descriptor with points of every node. Returns the time since the calm began, or what is missing.
/// A node whose disk was full may still end by itself, and is restarted.
fn await_whole(
    stage: &Stage<'_>,
    nodes: &[Arc<Node>],
    onion: &str,
    eye: &DescriptorReader,
    calm: Instant,
) -> Result<Duration, String> {
    let check = || {
        let (publisher, _) = agreed_publisher(nodes)?;
        let mut wanted = BTreeSet::new();
        for node in nodes {
            let status = node.status()?;
            ensure!(status.phase == "healthy", "{} is {}", node.name(), status.phase);
            ensure!(status.alive().len() == nodes.len(), "{} does not take all nodes for alive", node.name());
            ensure!(status.published_of(&status.node) > 0, "{} does not know that it is published", node.name());
            if status.node == publisher {
                for other in &status.members {
                    ensure!(status.published_of(&other.node) > 0, "{} is not published", other.node);
                }
                let points = status.publication.into_iter().flat_map(|publication| publication.intro_points);
                wanted = points.map(|point| point.session_key).collect();
            }
        }
        let held = eye.look(onion)?;
        ensure!(!held.is_empty(), "no directory is responsible");
        for one in &held {
            let (relay, keys) = (one.directory.relay, one.keys());
            let period = one.period.number;
            ensure!(keys == wanted, "{relay} in period {period} holds {} points, not {}", keys.len(), wanted.len());
        }
        Ok(())
    };
    loop {
        stage.supervise();
        match check() {
            Ok(()) => return Ok(calm.elapsed()),
            Err(error) if calm.elapsed() > PATIENCE => return Err(format!("{error:#}")),
            Err(_) => thread::sleep(Duration::from_millis(500)),
        }
    }
}
