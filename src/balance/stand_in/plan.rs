//! Which points of silent nodes this node serves at: a reconciler between the unattended points
//! that are assigned to it and those it has.
//!
//! Enter with [`StandInPlan::handle`]; [`StandInPlan::next_timeout`] says when to call it again. A
//! point that is assigned to this node is opened at its relay. If its circuit is lost, it was most
//! likely taken back by the node, alive after all, or taken by another publisher with another view
//! of the cluster. The point is retried with growing pauses, so that two nodes do not compete for
//! it for long. A point that is no longer assigned is kept for [`HOLD`]: the node that has come
//! back opens its own circuit in that time, and clients are served until then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustbalance_gossip::stand_in::UnattendedPoint;
use rustbalance_gossip::time::Now;

use crate::backoff::Backoff;
use crate::balance::circuit::Circuit;
use crate::drive::Machine;

/// How long a point is kept after it is no longer assigned to this node.
pub const HOLD: Duration = Duration::from_secs(60);
/// First and longest pause before a lost point is opened again: the node that took it back should
/// keep it.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(600));
/// Longest pause after a failed attempt, whose cause may well be this node's own network.
const RETRY: Duration = Duration::from_secs(60);

/// An event that the plan handles.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The points that are assigned to this node now.
    Wanted(BTreeSet<UnattendedPoint>),
    /// A point is open.
    Opened(UnattendedPoint),
    /// A point could not be opened.
    OpenFailed(UnattendedPoint),
    /// The circuit of a point ended.
    Lost(UnattendedPoint),
}

/// An action that the task carries out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a point. Answer with `Opened` or `OpenFailed`.
    Open(UnattendedPoint),
    /// Close a point if it is open, and forget it.
    Forget(UnattendedPoint),
}

#[derive(Debug)]
struct PointState {
    circuit: Circuit,
    /// How often the point could not be opened, or was lost.
    setbacks: u32,
    /// Since when the point is not assigned to this node; `None` while it is.
    unwanted: Option<Duration>,
}

/// The reconciler. It has no clock and no circuits.
#[derive(Debug, Default)]
pub struct StandInPlan {
    held: BTreeMap<UnattendedPoint, PointState>,
}

impl Machine for StandInPlan {
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
            Event::Opened(unattended) => match self.held.get_mut(&unattended) {
                Some(held) => held.circuit = Circuit::Up,
                None => actions.push(Action::Forget(unattended)),
            },
            Event::OpenFailed(unattended) => self.set_back(&unattended, RETRY, mono),
            Event::Lost(unattended) => self.set_back(&unattended, PAUSES.longest, mono),
        }
        self.reconcile(mono, &mut actions);
        actions
    }

    fn next_timeout(&self, _: Now) -> Option<Duration> {
        let due = |held: &PointState| match held.circuit {
            Circuit::Down { not_before } => Some(not_before),
            Circuit::Opening => None,
            Circuit::Up => held.unwanted.map(|since| since + HOLD),
        };
        self.held.values().filter_map(due).min()
    }
}

impl StandInPlan {
    fn want(&mut self, wanted: BTreeSet<UnattendedPoint>, mono: Duration) {
        for (unattended, held) in &mut self.held {
            held.unwanted = if wanted.contains(unattended) { None } else { held.unwanted.or(Some(mono)) };
        }
        for unattended in wanted {
            let circuit = Circuit::Down { not_before: mono };
            self.held.entry(unattended).or_insert(PointState { circuit, setbacks: 0, unwanted: None });
        }
    }

    fn set_back(&mut self, unattended: &UnattendedPoint, longest: Duration, mono: Duration) {
        let Some(held) = self.held.get_mut(unattended) else { return };
        let pause = Backoff { longest, ..PAUSES }.pause(held.setbacks);
        held.setbacks = held.setbacks.saturating_add(1);
        held.circuit = Circuit::Down { not_before: mono + pause };
    }

    fn reconcile(&mut self, mono: Duration, actions: &mut Vec<Action>) {
        let over = |held: &mut PointState| match held.circuit {
            Circuit::Down { .. } => held.unwanted.is_some(),
            Circuit::Opening => false,
            Circuit::Up => held.unwanted.is_some_and(|since| mono >= since + HOLD),
        };
        let over = self.held.extract_if(.., |_, held| over(held));
        actions.extend(over.map(|(unattended, _)| Action::Forget(unattended)));
        for (unattended, held) in &mut self.held {
            if held.circuit.is_due(mono) {
                held.circuit = Circuit::Opening;
                actions.push(Action::Open(unattended.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
