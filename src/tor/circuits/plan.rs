//! Decides which circuits to clients are built, and which are closed when there is no room.
//!
//! The entry point is [`CircuitPlan::handle`]. A circuit is *in the making* from its introduction
//! until it reaches the client at the rendezvous point (the client is *met*), then *open*.
//!
//! 1. **In the making.** A rendezvous point that never answers must not block other clients. If all
//!    places are taken, a newcomer replaces the first circuit found in this order: one whose
//!    rendezvous point is not in the network's directory (a client can invent any number of these);
//!    one older than [`PATIENCE`], at the rendezvous point with the most places; one at the
//!    rendezvous point with the most places, if it has at least two more than the newcomer's. If
//!    there is none, the newcomer is refused. It is also refused while the open circuits are at
//!    their bound and rule 3 allows none of them to be replaced. A newcomer whose own rendezvous
//!    point is not in the directory never replaces a circuit whose rendezvous point is.
//! 2. **Attempts.** A quick failure (a badly chosen path) is tried again, up to [`ATTEMPTS`]
//!    attempts in total. A slow failure is mostly the rendezvous point's fault: [`SLOW_ATTEMPTS`]
//!    of these end the client's circuit, or a single one while more than half of the places are
//!    taken.
//! 3. **Open.** A circuit ends by itself [`FIRST_STREAM`] after the client was met, or [`IDLE`]
//!    after its last stream; only accepted streams count. If all places are taken, a newcomer
//!    replaces the first circuit found in this order: one on which no byte has moved yet; one
//!    without a stream; any other. Within each group the longest idle goes first, and a circuit
//!    idle for less than [`PATIENCE`] is never replaced.
//! 4. **Refused streams.** If the operator has set a number, an open circuit on which that many
//!    streams were refused within [`REFUSALS_PERIOD`] because it exceeds a limit is closed.
//! 5. **At the end.** A node that stops has circuits without a stream closed much sooner
//!    ([`CircuitPlan::close_idle`]), so that their clients come to other nodes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{CircuitCounts, CircuitId};

/// Time limit from an introduction to RENDEZVOUS1, over all attempts. Few clients wait longer.
pub(crate) const MEETING_LIMIT: Duration = Duration::from_secs(30);
/// Time limit for one attempt.
pub(crate) const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// Most attempts for one client.
const ATTEMPTS: u32 = 6;
/// Most attempts for one client that fail slowly.
const SLOW_ATTEMPTS: u32 = 3;
/// An attempt that fails after this long is a slow failure: most working relays answer within two
/// seconds.
const SLOW: Duration = Duration::from_secs(2);
/// Pause before the next attempt, multiplied by the number of failures.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// A circuit that is younger, or idle for less, may belong to a client that waits for Tor.
const PATIENCE: Duration = Duration::from_secs(5);
/// A circuit that never had a stream ends after this. It is short because a client builds a circuit
/// when it has a request to send.
const FIRST_STREAM: Duration = Duration::from_secs(30);
/// A circuit ends this long after its last stream. That is longer than a C tor client keeps an
/// unused circuit (10 minutes).
const IDLE: Duration = Duration::from_secs(15 * 60);
/// Longest interval between two checks of a circuit with open streams.
const LOOK: Duration = Duration::from_secs(60);

/// Period in which the refused streams of a circuit are counted.
const REFUSALS_PERIOD: Duration = Duration::from_secs(60);

/// The relay at which a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RendezvousPoint {
    /// The relay's RSA identity.
    pub(crate) relay: [u8; 20],
    /// Whether the network's directory lists it with the same keys and addresses.
    pub(crate) listed: bool,
}

/// Bounds on circuits, node-wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CircuitBounds {
    /// Most circuits in the making at once; at least 1.
    pub(crate) making: usize,
    /// Most circuits open at once.
    pub(crate) open: usize,
    /// Streams that are refused on one circuit within a minute before it is closed; `None`: it
    /// stays open.
    pub(crate) refusals: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A client waits at this rendezvous point.
    Introduced { at: RendezvousPoint, bounds: CircuitBounds },
    /// The circuit has reached the client; `most` is the bound on open circuits.
    Met { id: CircuitId, most: usize },
    /// A client asks for a stream.
    Asked(CircuitId),
    /// The request was answered.
    Answered(CircuitId),
    /// A stream was accepted.
    Accepted(CircuitId),
    /// Bytes have moved on a stream.
    Moved(CircuitId),
    /// An accepted stream has ended.
    Released(CircuitId),
    /// A stream was refused because its circuit exceeds a limit; `most` is the number at which the
    /// circuit is closed.
    Exceeded { id: CircuitId, most: u32 },
    /// The circuit is closed, or its building has failed.
    Ended(CircuitId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Build the circuit to the client that was introduced.
    Make(CircuitId),
    /// Refuse the circuit of the event.
    Refuse,
    /// Stop building this circuit.
    GiveUp(CircuitId),
    /// Close this open circuit.
    Close(CircuitId),
    /// Close this open circuit: too many of its streams were refused.
    CloseForRefusals(CircuitId),
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
    since: Duration,
    /// Whether a stream was ever accepted.
    accepted: bool,
    streams: usize,
    /// Requests for streams that are not answered yet.
    requests: usize,
    /// Last time the circuit was opened, or a request was answered or a stream ended.
    rests: Duration,
    /// Last time the circuit was opened, or a stream on it was accepted or ended: the idle time
    /// limits count from here.
    kept: Duration,
    /// Whether bytes have ever moved on it.
    used: bool,
    /// Last time the circuit was opened or bytes moved on it. Opening streams does not count, so a
    /// client cannot hold a place by streams that carry nothing.
    moved: Duration,
    /// Streams refused since the time, at most [`REFUSALS_PERIOD`] ago when the next one counts.
    refusals: (u32, Duration),
}

impl Open {
    fn new(now: Duration) -> Self {
        Self {
            since: now,
            accepted: false,
            streams: 0,
            requests: 0,
            rests: now,
            kept: now,
            used: false,
            moved: now,
            refusals: (0, now),
        }
    }
}

/// The circuits to one kind of service, with the rules of this module.
#[derive(Debug, Default)]
pub(super) struct CircuitPlan {
    next: u64,
    making: BTreeMap<CircuitId, Making>,
    open: BTreeMap<CircuitId, Open>,
}

impl CircuitPlan {
    /// Handles an event at `now`, the time since any fixed origin.
    pub(super) fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Introduced { at, bounds } => return self.introduced(at, bounds, now),
            Event::Met { id, most } => return self.met(id, most, now),
            Event::Asked(id) => self.note(id, |open| open.requests += 1),
            Event::Answered(id) => self.note(id, |open| {
                open.rests = now;
                open.requests = open.requests.saturating_sub(1);
            }),
            Event::Accepted(id) => self.note(id, |open| {
                (open.accepted, open.kept) = (true, now);
                open.streams += 1;
            }),
            Event::Released(id) => self.note(id, |open| {
                (open.kept, open.rests) = (now, now);
                open.streams = open.streams.saturating_sub(1);
            }),
            Event::Exceeded { id, most } => return self.exceeded(id, most, now),
            Event::Moved(id) => self.note(id, |open| (open.used, open.moved) = (true, now)),
            Event::Ended(id) => {
                self.making.remove(&id);
                self.open.remove(&id);
            }
        }
        Vec::new()
    }

    /// How many circuits there are now.
    pub(super) fn counts(&self) -> CircuitCounts {
        CircuitCounts { making: self.making.len(), open: self.open.len() }
    }

    /// The open circuits, each with the time at which its client was met and its open streams.
    pub(super) fn open(&self) -> impl Iterator<Item = (CircuitId, Duration, usize)> {
        self.open.iter().map(|(id, open)| (*id, open.since, open.streams))
    }

    /// Forgets the open circuits that have had neither a stream nor a request for one for `idle`,
    /// and returns them: they are to be closed.
    pub(super) fn close_idle(&mut self, idle: Duration, now: Duration) -> Vec<CircuitId> {
        let is_idle = |open: &mut Open| open.streams == 0 && open.requests == 0 && now >= open.rests + idle;
        self.open.extract_if(.., |_, open| is_idle(open)).map(|(id, _)| id).collect()
    }

    /// How long this open circuit may stay open if nothing happens.
    pub(super) fn left(&self, id: CircuitId, now: Duration) -> Duration {
        let Some(open) = self.open.get(&id) else { return Duration::ZERO };
        match (open.streams, open.accepted) {
            (0, false) => (open.kept + FIRST_STREAM).saturating_sub(now),
            (0, true) => (open.kept + IDLE).saturating_sub(now),
            _ => LOOK,
        }
    }

    /// Handles an attempt that failed after `took`. Returns the pause before the next one, or
    /// `None` to give up. `most` is the bound on circuits in the making.
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
        self.open.insert(id, Open::new(now));
        actions
    }

    fn exceeded(&mut self, id: CircuitId, most: u32, now: Duration) -> Vec<Action> {
        let Some(open) = self.open.get_mut(&id) else { return Vec::new() };
        if now >= open.refusals.1 + REFUSALS_PERIOD {
            open.refusals = (0, now);
        }
        open.refusals.0 += 1;
        if open.refusals.0 < most {
            return Vec::new();
        }
        self.open.remove(&id);
        vec![Action::CloseForRefusals(id)]
    }

    fn note(&mut self, id: CircuitId, change: impl FnOnce(&mut Open)) {
        if let Some(open) = self.open.get_mut(&id) {
            change(open);
        }
    }

    /// The circuit in the making that a newcomer replaces.
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

    /// The open circuit that a newcomer replaces.
    fn least_used(&self, now: Duration) -> Option<CircuitId> {
        let idle = |open: &Open| now.saturating_sub(open.moved);
        let waiting = self.open.iter().filter(|(_, open)| idle(open) >= PATIENCE);
        waiting.max_by_key(|(id, open)| (!open.used, open.streams == 0, idle(open), Reverse(**id))).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests;
