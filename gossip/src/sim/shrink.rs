//! Makes a failing run smaller: fewer nodes, a shorter chaos, fewer faults, as long as the same invariant breaks.
//!
//! A run with a fault less is another run: messages are drawn anew from there. So this is a search, not a proof: what it
//! finds breaks, and what it could not leave out may still be needless.

use std::time::Duration;

use super::faults::Scenario;
use super::monitor::Invariant;
use super::report::{FORMING, Outcome, play};
use super::script::script;
use super::stopwatch::Stopwatch;

/// A run: a scenario, and which of the faults in its script strike; all, if it does not say.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) scenario: Scenario,
    pub(super) faults: Option<Vec<usize>>,
}

/// How long the search may take.
const PATIENCE: Duration = Duration::from_secs(90);

struct Search {
    invariant: Invariant,
    /// Since the search began.
    watch: Stopwatch,
    best: Case,
}

impl Search {
    /// Takes this case if it breaks the same invariant; ends it where that happened, if that was in the chaos.
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

    /// What comes after the first violation has no part in it.
    fn cut_after(&mut self, outcome: &Outcome) {
        let scenario = &mut self.best.scenario;
        let Some(at) = outcome.violations.first().map(|first| first.at.saturating_sub(FORMING)) else { return };
        let until = Duration::from_secs(at.as_secs() + 1);
        if until < scenario.chaos && self.invariant != Invariant::Converges {
            scenario.chaos = until;
        }
        let planned = script(scenario);
        let faults = self.best.faults.get_or_insert_with(|| planned.iter().map(|it| it.number).collect());
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

    /// Leaves out halves, quarters and so on down to single faults, until no single one can be left out.
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

/// The smallest case found within a minute and a half that breaks what this one broke.
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
