//! The shell of `plan`: reads the clock, keeps the means to close each stream, and closes those
//! that must make room.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::copy::StreamActivity;
use super::plan::{Action, Event, RateBounds, StreamId, StreamPlan};
use crate::counters::Counter;
use crate::tor::CircuitId;

/// The places for streams, shared by all proxies of a node.
pub(super) struct StreamRoom {
    origin: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    plan: StreamPlan,
    /// Cancelled when the plan closes a stream.
    closing: HashMap<StreamId, CancellationToken>,
}

impl Default for StreamRoom {
    fn default() -> Self {
        Self { origin: Instant::now(), state: Mutex::default() }
    }
}

impl StreamRoom {
    /// Admits a stream of this circuit as one of at most `streams`, possibly closing another one
    /// for it; else returns the counter of the refusal.
    pub(super) fn admit(
        self: &Arc<Self>,
        circuit: CircuitId,
        streams: usize,
        rates: RateBounds,
    ) -> Result<Admitted, Counter> {
        let mut state = self.state();
        state.plan.bound(streams);
        state.plan.bound_circuits(rates);
        let mut refusal = Counter::StreamsOverLimit;
        for action in state.plan.handle(Event::Asked(circuit), self.origin.elapsed()) {
            match action {
                Action::Serve(id) => {
                    let closed = CancellationToken::new();
                    state.closing.insert(id, closed.clone());
                    let counts_bytes = rates.bytes.is_some();
                    return Ok(Admitted { id, room: Arc::clone(self), closed, counts_bytes });
                }
                Action::Close(id) => {
                    if let Some(closed) = state.closing.remove(&id) {
                        closed.cancel();
                    }
                }
                Action::RefuseShare => refusal = Counter::StreamsOverShare,
                Action::RefuseFull => refusal = Counter::StreamsOverLimit,
                Action::RefuseRate => refusal = Counter::CircuitStreamsOverRate,
                Action::Pause(_) => {}
            }
        }
        Err(refusal)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The place of one stream; free again when dropped.
pub(super) struct Admitted {
    id: StreamId,
    room: Arc<StreamRoom>,
    closed: CancellationToken,
    /// Whether the bytes of its circuit are bounded.
    counts_bytes: bool,
}

impl Admitted {
    /// Cancelled when another stream takes the place.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Reports activity of the stream.
    pub(super) fn report(&self, sign: StreamActivity) {
        let event = match sign {
            StreamActivity::Used => Event::Used(self.id),
            StreamActivity::Moved => Event::Moved(self.id),
        };
        self.room.state().plan.handle(event, self.room.origin.elapsed());
    }

    /// Reports bytes that the stream has carried. Returns how long it pauses, if it must.
    pub(super) fn carried(&self, bytes: u64) -> Option<Duration> {
        if !self.counts_bytes {
            return None;
        }
        let actions = self.room.state().plan.handle(Event::Carried(self.id, bytes), self.room.origin.elapsed());
        actions.into_iter().find_map(|action| match action {
            Action::Pause(pause) => Some(pause),
            _ => None,
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.room.state();
        state.plan.handle(Event::Ended(self.id), self.room.origin.elapsed());
        state.closing.remove(&self.id);
    }
}
