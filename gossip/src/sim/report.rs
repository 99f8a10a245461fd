//! Runs scenarios, and tells of a failure how to see it again.

use std::time::Duration;

use super::faults::{Bug, Scenario};
use super::monitor::{Invariant, Violation};
use super::world::World;

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    /// What broke, in order.
    pub violations: Vec<Violation>,
    /// How long after the last fault all agreed.
    pub settled: Option<Duration>,
    /// Messages delivered, and records handed to coordinators.
    pub traffic: (u64, u64),
}

/// Time for the cluster to form before the first fault.
const FORMING: Duration = Duration::from_secs(60);

/// Runs a scenario to its end, or to the first broken invariant.
pub fn run(scenario: Scenario) -> Outcome {
    let mut world = World::new(scenario);
    world.run_until(FORMING);
    world.begin_chaos();
    let mut settled = None;
    let chaos_ends = FORMING + scenario.chaos;
    while world.now < chaos_ends && world.violations.is_empty() {
        world.run_until((world.now + Duration::from_secs(10)).min(chaos_ends));
    }
    if world.violations.is_empty() {
        world.end_chaos();
        settled = settle(&mut world, chaos_ends);
    }
    Outcome { violations: world.violations, settled, traffic: world.traffic }
}

/// How long a change that has to come (a new period, a point that is lost) may take to reach the directories.
const LAG: Duration = Duration::from_secs(5);

/// Waits for agreement, then watches it last. What the chaos has left under way may still come until the limit.
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

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(name: &str) -> Option<u64> {
    env(name).map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Runs `seeds` scenarios beginning with seed `first`, each made by `make` of a seed and a number of nodes, and panics
/// with the command that replays the first failure.
///
/// The environment has the last word: `SIM_SEED` runs one seed, `SIM_SEEDS` that many, `SIM_FROM` is the first,
/// `SIM_NODES` the size, `SIM_CHAOS` the seconds of chaos, `SIM_BUG` the bug to be caught.
pub fn sweep(test: &str, first: u64, seeds: u64, nodes: usize, make: impl Fn(u64, usize) -> Scenario) {
    let nodes = number("SIM_NODES").map_or(nodes, |nodes| nodes as usize);
    let (first, seeds) = match number("SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (number("SIM_FROM").unwrap_or(first), number("SIM_SEEDS").unwrap_or(seeds)),
    };
    let bug =
        env("SIM_BUG").map(|name| Bug::by_name(&name).unwrap_or_else(|| panic!("SIM_BUG={name} is no known bug")));
    let with = |seed, nodes| {
        let scenario = make(seed, nodes);
        let chaos = number("SIM_CHAOS").map_or(scenario.chaos, Duration::from_secs);
        Scenario { chaos, bug: bug.or(scenario.bug), ..scenario }
    };
    let mut slowest = Duration::ZERO;
    for seed in first..first + seeds {
        let outcome = run(with(seed, nodes));
        slowest = slowest.max(outcome.settled.unwrap_or_default());
        if !outcome.violations.is_empty() {
            fail(test, with(seed, nodes), &outcome);
        }
    }
    eprintln!("{test}: {seeds} seeds of {nodes} nodes, all settled within {:.0} s", slowest.as_secs_f64());
}

/// Looks for a smaller failure near a failed run, and panics with it.
fn fail(test: &str, scenario: Scenario, outcome: &Outcome) -> ! {
    let mut small = scenario;
    let mut seen = outcome.violations.clone();
    if env("SIM_SEED").is_none() {
        for nodes in 2..scenario.nodes {
            let fewer = Scenario { nodes, ..small };
            let outcome = run(fewer);
            if !outcome.violations.is_empty() {
                (small, seen) = (fewer, outcome.violations);
                break;
            }
        }
        while small.chaos > Duration::from_secs(20) {
            let shorter = Scenario { chaos: small.chaos / 2, ..small };
            let outcome = run(shorter);
            if outcome.violations.is_empty() {
                break;
            }
            (small, seen) = (shorter, outcome.violations);
        }
    }
    let lines: Vec<String> = seen.iter().take(5).map(ToString::to_string).collect();
    let bug = scenario.bug.and_then(|bug| Bug::ALL.iter().find(|(_, known)| *known == bug));
    let bug = bug.map_or(String::new(), |(name, _)| format!("SIM_BUG={name} "));
    panic!(
        "seed {} with {} nodes:\n  {}\nreplay: {bug}SIM_SEED={} SIM_NODES={} SIM_CHAOS={} cargo test -p rustbalance-gossip --test {test}",
        small.seed,
        small.nodes,
        lines.join("\n  "),
        small.seed,
        small.nodes,
        small.chaos.as_secs(),
    );
}
