//! Which points of others this node serves at: a reconciler between those that fall to it and those it has.
//!
//! Enter with [`Plan::handle`]; [`Plan::next_timeout`] says when to come again. A point that falls to this node is opened
//! at its relay. A circuit that is lost was most likely taken back by the node, alive after all, or by another publisher
//! that sees the cluster otherwise: it is tried again, more and more rarely, so that two never fight for a point in
//! earnest. One that does not fall to this node any more is kept for [`HOLD`]: the node that has come back makes its
//! circuit anew, and clients are served until then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustbalance_gossip::stand_in::Orphan;
use rustbalance_gossip::time::Now;

use crate::backoff::Backoff;
use crate::balance::circuit::Circuit;
use crate::drive::Machine;

/// How long a point is served on after it has ceased to fall to this node.
pub const HOLD: Duration = Duration::from_secs(60);
/// Pause after the first setback, and the longest: who has taken a point back shall keep it.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(600));
/// The longest pause before a circuit that could not be made, which may well be for this node's own network.
const RETRY: Duration = Duration::from_secs(60);

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The points that fall to this node now.
    Wanted(BTreeSet<Orphan>),
    /// A point is open.
    Opened(Orphan),
    /// A point could not be opened.
    OpenFailed(Orphan),
    /// The circuit of a point ended.
    Lost(Orphan),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a point. Answer with `Opened` or `OpenFailed`.
    Open(Orphan),
    /// Close a point if it is open, and forget it.
    Forget(Orphan),
}

#[derive(Debug)]
struct Held {
    circuit: Circuit,
    /// How often it could not be opened, or was lost.
    setbacks: u32,
    /// Since when it does not fall to this node any more.
    unwanted: Option<Duration>,
}

/// The reconciler. Owns no clock, no circuit.
#[derive(Debug, Default)]
pub struct Plan {
    held: BTreeMap<Orphan, Held>,
}

impl Machine for Plan {
    type Event = Event;
    type Action = Action;

    fn tick() -> Event {
        Event::Tick
    }

    fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let (mono, mut actions) = (now.mono, Vec::new());
        match event {
            Event::Tick => {}
            Event::Wanted(wanted) => self.want(wanted, mono),
            Event::Opened(orphan) => match self.held.get_mut(&orphan) {
                Some(held) => held.circuit = Circuit::Up,
                None => actions.push(Action::Forget(orphan)),
            },
            Event::OpenFailed(orphan) => self.set_back(&orphan, RETRY, mono),
            Event::Lost(orphan) => self.set_back(&orphan, PAUSES.longest, mono),
        }
        self.reconcile(mono, &mut actions);
        actions
    }

    fn next_timeout(&self, _: Now) -> Option<Duration> {
        let due = |held: &Held| match held.circuit {
            Circuit::Down { not_before } => Some(not_before),
            Circuit::Opening => None,
            Circuit::Up => held.unwanted.map(|since| since + HOLD),
        };
        self.held.values().filter_map(due).min()
    }
}

impl Plan {
    fn want(&mut self, wanted: BTreeSet<Orphan>, mono: Duration) {
        for (orphan, held) in &mut self.held {
            held.unwanted = if wanted.contains(orphan) { None } else { held.unwanted.or(Some(mono)) };
        }
        for orphan in wanted {
            let circuit = Circuit::Down { not_before: mono };
            self.held.entry(orphan).or_insert(Held { circuit, setbacks: 0, unwanted: None });
        }
    }

    fn set_back(&mut self, orphan: &Orphan, longest: Duration, mono: Duration) {
        let Some(held) = self.held.get_mut(orphan) else { return };
        let pause = Backoff { longest, ..PAUSES }.pause(held.setbacks);
        held.setbacks = held.setbacks.saturating_add(1);
        held.circuit = Circuit::Down { not_before: mono + pause };
    }

    fn reconcile(&mut self, mono: Duration, actions: &mut Vec<Action>) {
        let over = |held: &mut Held| match held.circuit {
            Circuit::Down { .. } => held.unwanted.is_some(),
            Circuit::Opening => false,
            Circuit::Up => held.unwanted.is_some_and(|since| mono >= since + HOLD),
        };
        let over = self.held.extract_if(.., |_, held| over(held));
        actions.extend(over.map(|(orphan, _)| Action::Forget(orphan)));
        for (orphan, held) in &mut self.held {
            if held.circuit.is_due(mono) {
                held.circuit = Circuit::Opening;
                actions.push(Action::Open(orphan.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
