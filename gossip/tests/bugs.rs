//! The simulation catches each of five plausible bugs, put into the harness one at a time.

#![allow(missing_docs, clippy::panic, clippy::print_stderr, clippy::unwrap_used)]

use rustbalance_gossip::sim::{Bug, Invariant, Scenario, Weights, run, sweep};

/// Runs up to twenty seeds until one breaks an invariant, which must be one of `expected`.
/// `SIM_BUG` with `./scripts/sim.sh` shows such runs.
fn is_caught(bug: Bug, weights: Weights, expected: &[Invariant]) {
    let run = |seed| run(Scenario { bug: Some(bug), weights, ..Scenario::new(seed, 5) });
    let caught = (1..=20).find_map(|seed| run(seed).violations.into_iter().next());
    assert!(caught.as_ref().is_some_and(|first| expected.contains(&first.invariant)), "{bug:?}: {caught:?}");
}

const CRASHES: Weights = Weights { crash: 6, restart: 8, ..Weights::NONE };

#[test]
fn an_election_that_forgets_its_term_is_caught() {
    is_caught(Bug::ForgetsTerm, CRASHES, &[Invariant::Terms]);
}

#[test]
fn a_revision_from_the_clock_alone_is_caught() {
    is_caught(Bug::ClockRevision, Weights { point: 8, ..CRASHES }, &[Invariant::Revisions]);
}

#[test]
fn a_view_that_trusts_unverified_records_is_caught() {
    let expected = [Invariant::OneHolder, Invariant::NoDeadPoints, Invariant::Converges];
    is_caught(Bug::TrustsUnverified, Weights { forge: 10, ..CRASHES }, &expected);
}

#[test]
fn a_plan_that_keeps_the_dead_is_caught() {
    is_caught(Bug::KeepsDead, CRASHES, &[Invariant::NoDeadPoints, Invariant::Converges]);
}

#[test]
fn a_lease_renewed_by_its_loser_is_caught() {
    let weights = Weights { partition: 6, heal: 8, freeze: 6, ..CRASHES };
    is_caught(Bug::LoserRenews, weights, &[Invariant::OneHolder, Invariant::Converges]);
}

/// The report of a sweep: a run with fewer nodes and faults than the one that failed, the faults
/// that struck, and the command that replays it.
#[test]
fn a_failure_is_reduced_and_reported_with_the_command_that_replays_it() {
    let weights = Weights { join: 2, partition: 2, heal: 4, point: 6, ..CRASHES };
    let make = |seed, nodes| Scenario { bug: Some(Bug::KeepsDead), weights, ..Scenario::new(seed, nodes) };
    let whole = run(make(7, 6));
    let panic = std::panic::catch_unwind(|| sweep("bugs", &[(7, 6)], 0, 6, make)).unwrap_err();
    let report = panic.downcast_ref::<String>().unwrap();
    let struck = report.lines().filter(|line| line.contains(" s, fault ")).count();
    assert!((1..=2).contains(&struck) && struck < whole.log.len(), "{} faults before, now: {report}", whole.log.len());
    assert!(!report.contains("with 6 nodes") && report.contains("NoDeadPoints broken at"), "{report}");
    assert!(report.contains("replay: SIM_BUG=keeps-dead SIM_SEED=7 SIM_NODES="), "{report}");
    assert!(report.contains("SIM_FAULTS=") && report.contains("--test bugs"), "{report}");
}
