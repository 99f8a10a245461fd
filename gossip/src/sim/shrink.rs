//! Makes a failing run smaller: fewer nodes, a shorter chaos, fewer faults, as long as the same
//! invariant breaks.
//!
//! Without one fault a run differs from there on, because the network draws other random numbers.
//! So this is a search, not a proof: the result breaks the invariant, but some of its faults may
//! still be needless.

use std::time::Duration;

use super::faults::Scenario;
use super::monitor::Invariant;
use super::report::{FORMING, Outcome, play};
use super::script::script;
use super::stopwatch::Stopwatch;

/// A scenario and the faults of its script that strike; all of them if `faults` is `None`.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) scenario: Scenario,
    pub(super) faults: Option<Vec<usize>>,
}

/// How long the search may take.
const PATIENCE: Duration = Duration::from_secs(90);

struct Search {
    invariant: Invariant,
    /// Time since the search began.
    watch: Stopwatch,
    best: Case,
}

impl Search {
    /// Keeps this case if it breaks the same invariant within [`PATIENCE`], and drops everything
    /// after the violation.
    fn offer(&mut self, case: Case) -> bool {
        if self.watch.elapsed() >= PATIENCE {
            return false;
        }
        let outcome = play(&case);
        let broken = outcome.violations.first().is_some_and(|first| first.invariant == self.invariant);
        if broken {
            self.best = case;
            self.cut_after(&outcome);
        }
        broken
    }

    /// Ends the chaos after the first violation: later faults do not contribute to it.
    fn cut_after(&mut self, outcome: &Outcome) {
        let scenario = &mut self.best.scenario;
        let Some(at) = outcome.violations.first().map(|first| first.at.saturating_sub(FORMING)) else { return };
        let until = Duration::from_secs(at.as_secs() + 1);
        if until < scenario.chaos && self.invariant != Invariant::Converges {
            scenario.chaos = until;
        }
        let planned = script(scenario);
        let faults = self.best.faults.get_or_insert_with(|| planned.iter().map(|planned| planned.number).collect());
        faults.retain(|number| *number < planned.len());
    }

    fn with_fewer_nodes(&mut self) {
        let sizes = [1, 2, 3, 4, 5, 7, 10, 15, 25, 50, 100, 200];
        for nodes in sizes.into_iter().filter(|nodes| *nodes < self.best.scenario.nodes).collect::<Vec<_>>() {
            let scenario = Scenario { nodes, ..self.best.scenario };
            if self.offer(Case { scenario, ..self.best.clone() }) {
                break;
            }
        }
    }

    fn with_shorter_chaos(&mut self) {
        while self.best.scenario.chaos > Duration::from_secs(10) {
            let scenario = Scenario { chaos: self.best.scenario.chaos / 2, ..self.best.scenario };
            if !self.offer(Case { scenario, ..self.best.clone() }) {
                break;
            }
        }
    }

    /// Leaves out halves of the faults, then quarters, down to single faults, until each one is
    /// needed.
    fn with_fewer_faults(&mut self) {
        let mut size = self.count().div_ceil(2);
        while size > 0 {
            let (mut from, mut any) = (0, false);
            while from < self.count() {
                let mut faults = self.best.faults.clone().unwrap_or_default();
                faults.drain(from..(from + size).min(faults.len()));
                let smaller = Case { faults: Some(faults), ..self.best.clone() };
                if self.offer(smaller) {
                    any = true;
                } else {
                    from += size;
                }
            }
            size = if size == 1 && any { 1 } else { size / 2 };
        }
    }

    fn count(&self) -> usize {
        self.best.faults.as_ref().map_or(0, Vec::len)
    }
}

/// The smallest case found within [`PATIENCE`] that breaks the same invariant.
pub(super) fn shrink(case: &Case, outcome: &Outcome) -> Case {
    let Some(first) = outcome.violations.first() else { return case.clone() };
    let mut search = Search { invariant: first.invariant, watch: Stopwatch::start(), best: case.clone() };
    search.cut_after(outcome);
    search.with_fewer_nodes();
    search.with_shorter_chaos();
    search.with_fewer_faults();
    search.with_fewer_nodes();
    search.best
}
