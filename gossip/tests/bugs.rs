//! The simulation proves itself: five plausible bugs, put in one at a time around the same node, are each caught.

#![allow(missing_docs, clippy::panic, clippy::print_stderr, clippy::unwrap_used)]

use rustbalance_gossip::sim::{Bug, Invariant, Scenario, Weights, run};

/// Runs seeds until one breaks something; it must be one of these. `SIM_BUG` and `./scripts/sim.sh` show the runs.
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
