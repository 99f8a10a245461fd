//! Which circuits of clients are made, and which go when there is no room.
//!
//! Enter with [`CircuitPlan::handle`]. A circuit is *in the making* from its introduction until the
//! client is met, then *open*.
//!
//! 1. **In the making.** A rendezvous point that never answers must not hold up others. Where all
//!    places are taken, the first of these goes for a newcomer: one whose rendezvous point is not
//!    in the network's directory (a client can make up any number of these); one that has tried for
//!    [`PATIENCE`], at the rendezvous point that holds most places; one at the rendezvous point
//!    that holds most places, if it holds at least two more than the newcomer's. If there is none,
//!    the newcomer is refused; a newcomer that is not in the directory takes the place of such ones
//!    only.
//! 2. **Attempts.** What fails at once (a path chosen badly) is tried up to [`ATTEMPTS`] times. A
//!    slow failure is mostly the rendezvous point's: it is tried [`SLOW_ATTEMPTS`] times, and once
//!    where half of the places are taken.
//! 3. **Open.** A circuit ends by itself [`FIRST_STREAM`] after the client was met, or [`IDLE`]
//!    after its last stream; only accepted streams count. Where all places are taken, the first of
//!    these goes: one on which no byte has moved yet; one without a stream; one on which nothing
//!    moves; of each kind the longest idle, and none that is idle for less than [`PATIENCE`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::CircuitId;

/// From an introduction to RENDEZVOUS1, over all attempts. Few clients wait for longer.
pub(crate) const MEETING_LIMIT: Duration = Duration::from_secs(30);
/// The same for one attempt.
pub(crate) const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// Attempts for one client.
const ATTEMPTS: u32 = 6;
/// Of these, how many may fail slowly.
const SLOW_ATTEMPTS: u32 = 3;
/// A failure after this is slow: relays that work answer within two seconds, mostly.
const SLOW: Duration = Duration::from_secs(2);
/// Between two attempts, times the number of the attempt.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// A circuit to which nothing happened for less than this may be a client waiting for Tor.
const PATIENCE: Duration = Duration::from_secs(5);
/// A circuit without any stream yet ends after this: clients make one because they have a request
/// waiting.
const FIRST_STREAM: Duration = Duration::from_secs(30);
/// A circuit ends this long after its last stream. Longer than a C tor client keeps one itself (10
/// minutes).
const IDLE: Duration = Duration::from_secs(15 * 60);
/// How soon a circuit with a stream is looked at again.
const LOOK: Duration = Duration::from_secs(60);

/// Where a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RendezvousPoint {
    /// The relay's RSA identity.
    pub(crate) relay: [u8; 20],
    /// Whether the network's directory names it.
    pub(crate) listed: bool,
}

/// Bounds on circuits, node-wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CircuitBounds {
    /// In the making at once; at least 1.
    pub(crate) making: usize,
    /// Open at once.
    pub(crate) open: usize,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A client wants to be met.
    Introduced { at: RendezvousPoint, bounds: CircuitBounds },
    /// It is met; with the bound on open circuits.
    Met { id: CircuitId, most: usize },
    /// A stream was accepted.
    Accepted(CircuitId),
    /// Bytes have moved.
    Moved(CircuitId),
    /// An accepted stream has ended.
    Released(CircuitId),
    /// The circuit is over.
    Ended(CircuitId),
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Meet the client that was introduced.
    Make(CircuitId),
    /// Leave it.
    Refuse,
    /// Stop trying to meet this one.
    GiveUp(CircuitId),
    /// Close this open circuit.
    Close(CircuitId),
}

#[derive(Debug)]
struct Making {
    at: RendezvousPoint,
    since: Duration,
    failures: u32,
    slow_failures: u32,
}

#[derive(Debug)]
struct Open {
    /// Whether a stream was ever accepted.
    accepted: bool,
    streams: usize,
    /// When it was opened, or a stream on it was accepted or ended last: this keeps it from ending
    /// by itself.
    kept: Duration,
    /// Whether bytes have ever moved on it.
    used: bool,
    /// When it was opened, or bytes moved last: to open streams and say nothing on them is no use
    /// of a circuit.
    moved: Duration,
}

/// The circuits of clients.
#[derive(Debug, Default)]
pub(super) struct CircuitPlan {
    next: u64,
    making: BTreeMap<CircuitId, Making>,
    open: BTreeMap<CircuitId, Open>,
}

impl CircuitPlan {
    /// Takes what happened at `now`, the time since any fixed origin.
    pub(super) fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Introduced { at, bounds } => return self.introduced(at, bounds, now),
            Event::Met { id, most } => return self.met(id, most, now),
            Event::Accepted(id) => self.note(id, |open| {
                (open.accepted, open.kept) = (true, now);
                open.streams += 1;
            }),
            Event::Released(id) => self.note(id, |open| {
                open.kept = now;
                open.streams = open.streams.saturating_sub(1);
            }),
            Event::Moved(id) => self.note(id, |open| (open.used, open.moved) = (true, now)),
            Event::Ended(id) => {
                self.making.remove(&id);
                self.open.remove(&id);
            }
        }
        Vec::new()
    }

    /// How long this open circuit may stay if nothing happens.
    pub(super) fn left(&self, id: CircuitId, now: Duration) -> Duration {
        let Some(open) = self.open.get(&id) else { return Duration::ZERO };
        match (open.streams, open.accepted) {
            (0, false) => (open.kept + FIRST_STREAM).saturating_sub(now),
            (0, true) => (open.kept + IDLE).saturating_sub(now),
            _ => LOOK,
        }
    }

    /// An attempt has failed after `took`: how long to wait for the next one, or `None` to give up.
    /// `most` is the bound on circuits in the making.
    pub(super) fn failed(&mut self, id: CircuitId, took: Duration, most: usize, now: Duration) -> Option<Duration> {
        let is_pressed = self.making.len() * 2 > most;
        let making = self.making.get_mut(&id)?;
        making.failures += 1;
        making.slow_failures += u32::from(took >= SLOW);
        let slow = if is_pressed { 1 } else { SLOW_ATTEMPTS };
        let pause = RETRY_PAUSE * making.failures;
        let in_time = now + pause < making.since + MEETING_LIMIT;
        (making.failures < ATTEMPTS && making.slow_failures < slow && in_time).then_some(pause)
    }

    fn introduced(&mut self, at: RendezvousPoint, bounds: CircuitBounds, now: Duration) -> Vec<Action> {
        if self.open.len() >= bounds.open && self.least_used(now).is_none() {
            return vec![Action::Refuse];
        }
        let mut actions = Vec::new();
        if self.making.len() >= bounds.making {
            let Some(victim) = self.least_likely(at, now) else { return vec![Action::Refuse] };
            self.making.remove(&victim);
            actions.push(Action::GiveUp(victim));
        }
        self.next += 1;
        let id = CircuitId(self.next);
        self.making.insert(id, Making { at, since: now, failures: 0, slow_failures: 0 });
        actions.push(Action::Make(id));
        actions
    }

    fn met(&mut self, id: CircuitId, most: usize, now: Duration) -> Vec<Action> {
        if self.making.remove(&id).is_none() {
            return vec![Action::Refuse];
        }
        let mut actions = Vec::new();
        if self.open.len() >= most {
            let Some(victim) = self.least_used(now) else { return vec![Action::Refuse] };
            self.open.remove(&victim);
            actions.push(Action::Close(victim));
        }
        self.open.insert(id, Open { accepted: false, streams: 0, kept: now, used: false, moved: now });
        actions
    }

    fn note(&mut self, id: CircuitId, change: impl FnOnce(&mut Open)) {
        if let Some(open) = self.open.get_mut(&id) {
            change(open);
        }
    }

    /// The circuit in the making that goes for a newcomer.
    fn least_likely(&self, newcomer: RendezvousPoint, now: Duration) -> Option<CircuitId> {
        let mut places: HashMap<[u8; 20], usize> = HashMap::new();
        for making in self.making.values() {
            *places.entry(making.at.relay).or_default() += 1;
        }
        let of_newcomer = places.get(&newcomer.relay).copied().unwrap_or(0);
        let rank = |making: &Making| {
            let taken = places.get(&making.at.relay).copied().unwrap_or(0);
            let age = now.saturating_sub(making.since);
            match making.at.listed {
                false if newcomer.listed => Some((2, taken, age)),
                true if !newcomer.listed => None,
                _ if age >= PATIENCE => Some((1, taken, age)),
                _ => (taken > of_newcomer + 1).then_some((0, taken, age)),
            }
        };
        let ranked = self.making.iter().filter_map(|(id, making)| rank(making).map(|rank| (rank, *id)));
        ranked.max_by_key(|(rank, id)| (*rank, Reverse(*id))).map(|(_, id)| id)
    }

    /// The open circuit that goes for a newcomer.
    fn least_used(&self, now: Duration) -> Option<CircuitId> {
        let idle = |open: &Open| now.saturating_sub(open.moved);
        let waiting = self.open.iter().filter(|(_, open)| idle(open) >= PATIENCE);
        waiting.max_by_key(|(id, open)| (!open.used, open.streams == 0, idle(open), Reverse(**id))).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests;
