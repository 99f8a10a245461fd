//! Bounds on the rendezvous circuits of clients and of members, node-wide.
//!
//! [`plan::CircuitPlan`] decides which circuit may be built, and which is closed when there is no
//! room. [`Circuits`] is its shell: it reads the clock, draws the ids that leave the program, and
//! signals the circuits that must close. A [`Place`] stands for one circuit, from the introduction
//! to its end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Refused, RefusedCounts};
use crate::counters::OpenRendezvous;
use plan::{Action, CircuitPlan, Event};

pub use exported::{ExportedCircuitId, ExportedCircuitIdError};
pub(crate) use plan::{ATTEMPT_LIMIT, CircuitBounds, MEETING_LIMIT, RendezvousPoint};

mod exported;
mod plan;

/// Names a client's circuit for as long as the engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CircuitId(pub u64);

/// How many circuits of clients there are now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CircuitCounts {
    /// Circuits in the making: their client was introduced, and is not met yet.
    pub making: usize,
    /// Open circuits.
    pub open: usize,
}

/// An open circuit of a client, as operators see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenCircuit {
    /// The id that the application sees.
    pub id: ExportedCircuitId,
    /// Time since the client was met.
    pub age: Duration,
    /// Streams open now.
    pub streams: usize,
    /// Bytes that its streams have carried, both ways together.
    pub bytes: u64,
}

/// Minimum interval between two reports that bytes move on a stream: each report takes a lock.
const REPORT: Duration = Duration::from_millis(500);

/// The circuits to one kind of service. An engine has one of these for the cluster's services and
/// one for the node's own service.
pub(crate) struct Circuits {
    origin: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    plan: CircuitPlan,
    /// Circuits in the making or open, until one is closed.
    known: HashMap<CircuitId, KnownCircuit>,
    exported: HashMap<ExportedCircuitId, CircuitId>,
}

struct KnownCircuit {
    exported: ExportedCircuitId,
    /// Cancelled when the circuit must close.
    closed: CancellationToken,
    bytes: Arc<AtomicU64>,
}

impl Default for Circuits {
    fn default() -> Self {
        Self { origin: Instant::now(), state: Mutex::default() }
    }
}

impl Circuits {
    /// A place for a client that waits at this rendezvous point. If none is free, counts that in
    /// `refused` and returns `None`.
    pub(crate) fn introduce(
        self: &Arc<Self>,
        at: RendezvousPoint,
        bounds: CircuitBounds,
        refused: &RefusedCounts,
    ) -> Option<Place> {
        let mut state = self.state();
        let actions = state.plan.handle(Event::Introduced { at, bounds }, self.origin.elapsed());
        let id = state.carry_out(actions, refused)?;
        let (exported, closed, bytes) = (state.unused_id(), CancellationToken::new(), Arc::default());
        state.exported.insert(exported, id);
        state.known.insert(id, KnownCircuit { exported, closed: closed.clone(), bytes: Arc::clone(&bytes) });
        let (circuits, refused, open) = (Arc::clone(self), refused.clone(), OnceLock::new());
        Some(Place { id, exported, circuits, closed, bounds, refused, bytes, open })
    }

    /// The open circuits.
    pub(crate) fn open(&self) -> Vec<OpenCircuit> {
        let (state, now) = (self.state(), self.origin.elapsed());
        let circuit = |(id, since, streams): (CircuitId, Duration, usize)| {
            let known = state.known.get(&id)?;
            let (age, bytes) = (now.saturating_sub(since), known.bytes.load(Ordering::Relaxed));
            Some(OpenCircuit { id: known.exported, age, streams, bytes })
        };
        state.plan.open().filter_map(circuit).collect()
    }

    /// Closes a circuit with all its streams; false if there is none with this id.
    pub(crate) fn close(&self, id: ExportedCircuitId) -> bool {
        let mut state = self.state();
        let Some(id) = state.exported.get(&id).copied() else { return false };
        state.plan.handle(Event::Ended(id), self.origin.elapsed());
        state.close(id);
        true
    }

    /// Closes the open circuits that have had no stream for `idle`.
    pub(crate) fn close_idle(&self, idle: Duration) {
        let mut state = self.state();
        for id in state.plan.close_idle(idle, self.origin.elapsed()) {
            state.close(id);
        }
    }

    /// How many there are now.
    pub(crate) fn counts(&self) -> CircuitCounts {
        self.state().plan.counts()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// Carries out the actions; returns the circuit that may be built, if there is one.
    fn carry_out(&mut self, actions: Vec<Action>, refused: &RefusedCounts) -> Option<CircuitId> {
        let mut made = None;
        for action in actions {
            match action {
                Action::Make(id) => made = Some(id),
                Action::Refuse => refused.count(Refused::Introduction),
                Action::GiveUp(id) | Action::Close(id) | Action::CloseForRefusals(id) => {
                    refused.count(match action {
                        Action::GiveUp(_) => Refused::GivenUp,
                        Action::CloseForRefusals(_) => Refused::Abuse,
                        _ => Refused::Circuit,
                    });
                    self.close(id);
                }
            }
        }
        made
    }

    fn unused_id(&self) -> ExportedCircuitId {
        let mut rng = rand::rng();
        loop {
            let id = ExportedCircuitId::draw(&mut rng);
            if !self.exported.contains_key(&id) {
                return id;
            }
        }
    }

    fn close(&mut self, id: CircuitId) {
        if let Some(known) = self.forget(id) {
            known.closed.cancel();
        }
    }

    fn forget(&mut self, id: CircuitId) -> Option<KnownCircuit> {
        let known = self.known.remove(&id)?;
        self.exported.remove(&known.exported);
        Some(known)
    }
}

/// The place of one client's circuit, which is being built or open. Dropping it frees the place.
pub(crate) struct Place {
    id: CircuitId,
    exported: ExportedCircuitId,
    circuits: Arc<Circuits>,
    closed: CancellationToken,
    bounds: CircuitBounds,
    refused: RefusedCounts,
    bytes: Arc<AtomicU64>,
    /// Set once the client is met.
    open: OnceLock<OpenRendezvous>,
}

impl Place {
    pub(crate) fn id(&self) -> CircuitId {
        self.id
    }

    /// The id of the circuit outside of this program.
    pub(crate) fn exported(&self) -> ExportedCircuitId {
        self.exported
    }

    /// Cancelled when the circuit must close: to make room for another, because of its refused
    /// streams, or because the operator says so.
    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Reports that an attempt to reach the rendezvous point failed after `took`. Returns the pause
    /// before the next attempt; `None` means to give up.
    pub(crate) fn failed(&self, took: Duration) -> Option<Duration> {
        let mut state = self.circuits.state();
        state.plan.failed(self.id, took, self.bounds.making, self.circuits.origin.elapsed())
    }

    /// Reports that the circuit to the client is complete, and counts the client as met. False if
    /// there is no room for another open circuit; that is counted.
    pub(crate) fn met(&self) -> bool {
        let mut state = self.circuits.state();
        let event = Event::Met { id: self.id, most: self.bounds.open };
        let actions = state.plan.handle(event, self.circuits.origin.elapsed());
        let is_refused = actions.contains(&Action::Refuse);
        state.carry_out(actions, &self.refused);
        if !is_refused {
            self.open.get_or_init(|| self.refused.service.meet());
        }
        !is_refused
    }

    /// How long the circuit may stay open if nothing happens on it; zero when it must end.
    pub(crate) fn left(&self) -> Duration {
        self.circuits.state().plan.left(self.id, self.circuits.origin.elapsed())
    }

    /// Reports that a client asks for a stream. The request counts until the returned value is
    /// dropped.
    pub(crate) fn asked(self: &Arc<Self>) -> StreamQuestion {
        self.apply(Event::Asked(self.id));
        StreamQuestion(Arc::clone(self))
    }

    /// Reports an accepted stream. The circuit is kept open until the returned value is dropped.
    pub(crate) fn accepted(self: &Arc<Self>) -> StreamUse {
        self.apply(Event::Accepted(self.id));
        StreamUse { place: Arc::clone(self), reported: None }
    }

    /// Reports that a stream was refused because the circuit exceeds a limit on its streams. If
    /// that happens too often, the circuit is closed.
    pub(crate) fn exceeded(&self) {
        let Some(most) = self.bounds.refusals else { return };
        let mut state = self.circuits.state();
        let actions = state.plan.handle(Event::Exceeded { id: self.id, most }, self.circuits.origin.elapsed());
        state.carry_out(actions, &self.refused);
    }

    fn apply(&self, event: Event) {
        self.circuits.state().plan.handle(event, self.circuits.origin.elapsed());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.apply(Event::Ended(self.id));
        self.circuits.state().forget(self.id);
    }
}

/// Held by a client's request for a stream until it is answered.
pub(crate) struct StreamQuestion(Arc<Place>);

impl StreamQuestion {
    /// The circuit of the request.
    pub(crate) fn place(&self) -> &Arc<Place> {
        &self.0
    }
}

impl Drop for StreamQuestion {
    fn drop(&mut self) {
        self.0.apply(Event::Answered(self.0.id));
    }
}

/// Held by an accepted stream: keeps its circuit from ending as idle.
pub(crate) struct StreamUse {
    place: Arc<Place>,
    reported: Option<Instant>,
}

impl StreamUse {
    /// Reports that `bytes` may have moved on the stream.
    pub(crate) fn moved(&mut self, bytes: usize) {
        self.place.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.reported.is_none_or(|reported| reported.elapsed() >= REPORT) {
            self.reported = Some(Instant::now());
            self.place.apply(Event::Moved(self.place.id));
        }
    }
}

impl Drop for StreamUse {
    fn drop(&mut self) {
        self.place.apply(Event::Released(self.place.id));
    }
}
