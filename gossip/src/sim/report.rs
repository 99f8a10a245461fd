//! Runs scenarios, and prints for a failure the command that replays it.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::faults::{Bug, Scenario};
use super::monitor::{Invariant, Violation};
use super::script::Fault;
use super::shrink::{Case, shrink};
use super::stopwatch::Stopwatch;
use super::world::World;

/// The outcome of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Broken invariants, in order.
    pub violations: Vec<Violation>,
    /// Time from the last fault until all nodes agreed; `None` if they did not.
    pub settled: Option<Duration>,
    /// Messages delivered, and records handed to coordinators.
    pub traffic: (u64, u64),
    /// How often each fault found something to strike.
    pub struck: BTreeMap<Fault, u64>,
    /// Processes killed while a term was on its way to disk.
    pub killed_while_storing: u64,
    /// Every fault that struck, in order.
    pub log: Vec<String>,
    /// Simulated time of the run.
    pub lasted: Duration,
}

/// Time for the cluster to form before the first fault.
pub(super) const FORMING: Duration = Duration::from_secs(60);

/// Runs a scenario to its end, or until an invariant is broken.
pub fn run(scenario: Scenario) -> Outcome {
    play(&Case { scenario, faults: None })
}

/// The same, with only the faults that the case names.
pub(super) fn play(case: &Case) -> Outcome {
    let scenario = case.scenario;
    let mut world = World::new(scenario);
    world.run_until(FORMING);
    world.begin_chaos(case.faults.as_deref());
    let mut settled = None;
    let chaos_ends = FORMING + scenario.chaos;
    while world.now < chaos_ends && world.violations.is_empty() {
        world.run_until((world.now + Duration::from_secs(10)).min(chaos_ends));
    }
    if world.violations.is_empty() {
        world.end_chaos();
        settled = settle(&mut world, chaos_ends);
    }
    let World { violations, traffic, struck, killed_while_storing, log, now, .. } = world;
    Outcome { violations, settled, traffic, struck, killed_while_storing, log, lasted: now }
}

/// How long a necessary change (a new period, a lost point) may take to reach the directories.
const LAG: Duration = Duration::from_secs(5);

/// Waits for agreement, then checks that it lasts. Before the time limit, late effects of the chaos
/// may break the agreement again; after it, only for [`LAG`]. Returns the time from `since` until
/// the agreement that lasted.
fn settle(world: &mut World, since: Duration) -> Option<Duration> {
    let limit = since + world.scenario.settle;
    let end = limit + world.scenario.watch;
    let mut agreed: Option<Duration> = None;
    let mut last = world.now;
    while world.now < end && world.violations.is_empty() {
        world.run_until(world.now + Duration::from_secs(1));
        match world.unsettled() {
            None => {
                agreed.get_or_insert(world.now);
                last = world.now;
            }
            Some(_) if world.now < limit => agreed = None,
            Some(_) if world.now <= last + LAG => {}
            Some(why) => {
                let what = format!("not settled {} s after the last fault: {why}", (world.now - since).as_secs());
                world.violations.push(Violation { invariant: Invariant::Converges, at: world.now, what });
            }
        }
    }
    agreed.map(|at| at - since)
}

#[expect(clippy::disallowed_methods, reason = "a developer steers a sweep from the command line")]
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(name: &str) -> Option<u64> {
    env(name).map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// The numbers in `SIM_FAULTS`, separated by commas, or "none". `None` if the variable is not set.
fn faults() -> Option<Vec<usize>> {
    let text = env("SIM_FAULTS")?;
    let one = |part: &str| part.parse().unwrap_or_else(|_| panic!("SIM_FAULTS={text}: {part:?} is not a number"));
    Some(text.split(',').filter(|part| *part != "none").map(one).collect())
}

/// A random seed of 24 bits, short enough to be typed.
#[expect(clippy::disallowed_types, reason = "fresh seeds find what the pinned ones do not")]
fn fresh_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish() >> 40
}

/// Runs the `pinned` seeds, each with its number of nodes, then `fresh` random seeds with `nodes`
/// nodes. `make` makes the scenario from a seed and a number of nodes. On a failure it looks for a
/// smaller one and panics with the command that replays it.
///
/// Environment variables override this. `SIM_SEED` runs one seed and does not make it smaller,
/// `SIM_FAULTS` with only these faults. `SIM_SEEDS` is the number of fresh seeds, without pinned
/// ones, and `SIM_FROM` the first of them. `SIM_NODES` sets the number of nodes, `SIM_CHAOS` the
/// seconds of chaos, `SIM_BUG` the bug, `SIM_THREADS` the number of runs at once.
pub fn sweep(
    test: &str,
    pinned: &[(u64, usize)],
    fresh: u64,
    nodes: usize,
    make: impl Fn(u64, usize) -> Scenario + Sync,
) {
    let nodes = number("SIM_NODES").map_or(nodes, |nodes| nodes as usize);
    let first = number("SIM_FROM").unwrap_or_else(fresh_seed);
    let from_first = |count| (first..first + count).map(|seed| (seed, nodes));
    let seeds: Vec<(u64, usize)> = match (number("SIM_SEED"), number("SIM_SEEDS")) {
        (Some(seed), _) => vec![(seed, nodes)],
        (None, Some(seeds)) => from_first(seeds).collect(),
        (None, None) => pinned.iter().copied().chain(from_first(fresh)).collect(),
    };
    let bug =
        env("SIM_BUG").map(|name| Bug::by_name(&name).unwrap_or_else(|| panic!("SIM_BUG={name} is not a known bug")));
    let case = |(seed, nodes)| {
        let scenario = make(seed, nodes);
        let chaos = number("SIM_CHAOS").map_or(scenario.chaos, Duration::from_secs);
        Case { scenario: Scenario { chaos, bug: bug.or(scenario.bug), ..scenario }, faults: faults() }
    };
    let watch = Stopwatch::start();
    let outcomes = run_all(&seeds, &case);
    if let Some((seed, outcome)) = outcomes.iter().find(|(_, outcome)| !outcome.violations.is_empty()) {
        fail(test, case(*seed), outcome);
    }
    let mut sum = Outcome::default();
    for (_, outcome) in outcomes {
        sum.settled = sum.settled.max(outcome.settled);
        sum.traffic = (sum.traffic.0 + outcome.traffic.0, sum.traffic.1 + outcome.traffic.1);
        sum.killed_while_storing += outcome.killed_while_storing;
        sum.lasted += outcome.lasted;
        for (fault, count) in outcome.struck {
            *sum.struck.entry(fault).or_default() += count;
        }
    }
    let (settled, wall) = (sum.settled.unwrap_or_default().as_secs(), watch.elapsed().as_secs_f64());
    eprintln!(
        "{test}: {} seeds of {nodes} nodes (fresh from {first}), {:.1} simulated hours in {wall:.0} s, all settled within {settled} s",
        seeds.len(),
        sum.lasted.as_secs_f64() / 3600.0,
    );
    eprintln!(
        "  {} messages, {} records; killed while storing: {}; struck: {:?}",
        sum.traffic.0, sum.traffic.1, sum.killed_while_storing, sum.struck
    );
}

/// Runs these seeds, several at a time, until one breaks an invariant. The outcomes are in the
/// order of the seeds.
#[expect(clippy::disallowed_methods, reason = "spreads the seeds over all processors; each run is one thread's")]
fn run_all(seeds: &[(u64, usize)], case: &(impl Fn((u64, usize)) -> Case + Sync)) -> Vec<((u64, usize), Outcome)> {
    let threads = number("SIM_THREADS")
        .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |threads| threads as usize);
    let next = AtomicU64::new(0);
    let outcomes = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, seeds.len().max(1)) {
            scope.spawn(|| {
                while let Some((place, seed)) = take(&next, seeds) {
                    let outcome = play(&case(seed));
                    let broken = !outcome.violations.is_empty();
                    outcomes.lock().unwrap().insert(place, (seed, outcome));
                    if broken {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    outcomes.into_inner().unwrap().into_values().collect()
}

fn take(next: &AtomicU64, seeds: &[(u64, usize)]) -> Option<(usize, (u64, usize))> {
    let place = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).ok()?;
    seeds.get(place).map(|seed| (place, *seed))
}

/// Looks for a smaller run that fails in the same way, and panics with the command that replays it.
fn fail(test: &str, case: Case, outcome: &Outcome) -> ! {
    let seed = case.scenario.seed;
    eprintln!("{test}: seed {seed} with {} nodes breaks: {}", case.scenario.nodes, outcome.violations[0]);
    eprintln!("  as it is: {}", command(test, &case));
    let small = if env("SIM_SEED").is_none() { shrink(&case, outcome) } else { case };
    let seen = play(&small);
    let lines: Vec<String> = seen.violations.iter().take(5).map(ToString::to_string).collect();
    panic!(
        "seed {seed} with {} nodes and {} faults:\n  {}\nbreaks:\n  {}\nreplay: {}",
        small.scenario.nodes,
        seen.log.len(),
        seen.log.join("\n  "),
        lines.join("\n  "),
        command(test, &small),
    );
}

/// The command line that replays a case.
fn command(test: &str, case: &Case) -> String {
    let bug = case.scenario.bug.and_then(|bug| Bug::ALL.iter().find(|(_, known)| *known == bug));
    let bug = bug.map_or(String::new(), |(name, _)| format!("SIM_BUG={name} "));
    let faults = case.faults.as_ref().map_or(String::new(), |faults| {
        let numbers: Vec<String> = faults.iter().map(ToString::to_string).collect();
        format!("SIM_FAULTS={} ", if numbers.is_empty() { "none".into() } else { numbers.join(",") })
    });
    format!(
        "{bug}SIM_SEED={} SIM_NODES={} SIM_CHAOS={} {faults}cargo test -p rustbalance-gossip --test {test}",
        case.scenario.seed,
        case.scenario.nodes,
        case.scenario.chaos.as_secs(),
    )
}
