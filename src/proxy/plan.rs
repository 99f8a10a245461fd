//! Which client streams stay when there are too many: a newcomer is served, and the stream that
//! matters least is closed.
//!
//! Enter with [`StreamPlan::handle`]. Each stream is a connection to a target, so the bounds here
//! protect the application, too:
//!
//! 1. Above three quarters of `streams`, a circuit that holds [`SHARE`] of them gets no more.
//! 2. An unused stream is one on which the client has not sent a byte. If an eighth of `streams`
//!    are unused, a newcomer replaces the one that has been unused for longest, provided that is at
//!    least [`PATIENCE`].
//! 3. If `streams` are open, a newcomer replaces the first of these that exists: a stream that has
//!    been unused for [`PATIENCE`]; one idle for [`PATIENCE`] on a circuit that holds more than
//!    [`SHARE`]; any that is idle for [`PATIENCE`] (of each kind, the longest idle); the longest
//!    idle on the circuit that holds most streams, if it holds at least two more than the
//!    newcomer's.
//! 4. If none of these exists, the newcomer is refused: every circuit has its share, and every
//!    stream moves.
//! 5. The operator may bound what one circuit does, whatever the others do: `rates` refuses the
//!    streams that it opens too fast, and slows down those that carry too much.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::tor::CircuitId;
use rates::CircuitRates;

pub(super) use rates::RateBounds;

mod rates;

/// Streams that one circuit may open under pressure: browsers open up to six to a site at once.
pub(super) const SHARE: usize = 8;
/// A stream counts as idle only after this time without a byte: the round trips of Tor take one to
/// three seconds, and a client that waits for one must not lose its stream.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// A newcomer replaces an unused stream once `streams` divided by this are unused.
const UNUSED_PART: usize = 8;

/// Identifies a stream for as long as the proxy runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StreamId(u64);

/// An event that the plan handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A client asks for a stream on this circuit.
    Asked(CircuitId),
    /// The client has sent its first bytes.
    Used(StreamId),
    /// Bytes have moved, either way.
    Moved(StreamId),
    /// The stream has carried this many bytes. Reported only if the bytes of circuits are bounded.
    Carried(StreamId, u64),
    /// The stream is over.
    Ended(StreamId),
}

/// An action that the proxy carries out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Serve the stream that the client asked for.
    Serve(StreamId),
    /// Close this stream, to make room for it.
    Close(StreamId),
    /// Refuse it: its circuit holds its share.
    RefuseShare,
    /// Refuse it: there is no stream that may be closed for it.
    RefuseFull,
    /// Refuse it: its circuit opens streams too fast.
    RefuseRate,
    /// Let the stream that carried the bytes carry no more for this long.
    Pause(Duration),
}

#[derive(Debug)]
struct Stream {
    circuit: CircuitId,
    used: bool,
    /// When it was asked for, or last moved.
    moved: Duration,
}

/// The streams that are open or being connected.
#[derive(Debug, Default)]
pub(super) struct StreamPlan {
    most: usize,
    next: u64,
    streams: BTreeMap<StreamId, Stream>,
    on_circuit: HashMap<CircuitId, usize>,
    unused: usize,
    rates: CircuitRates,
}

impl StreamPlan {
    /// Allows at most `most` streams at once from now on. Those that are open stay.
    pub(super) fn bound(&mut self, most: usize) {
        self.most = most;
    }

    /// Bounds each circuit like this from now on.
    pub(super) fn bound_circuits(&mut self, bounds: RateBounds) {
        self.rates.bound(bounds);
    }

    /// Applies an event at `now`, the time since any fixed origin; returns what to do, in order.
    pub(super) fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Asked(circuit) => return self.asked(circuit, now),
            Event::Used(id) => self.note(id, true, now),
            Event::Moved(id) => self.note(id, false, now),
            Event::Carried(id, bytes) => {
                let circuit = self.streams.get(&id).map(|stream| stream.circuit);
                let pause = circuit.and_then(|circuit| self.rates.carry(circuit, bytes, now));
                return pause.map(Action::Pause).into_iter().collect();
            }
            Event::Ended(id) => self.remove(id),
        }
        Vec::new()
    }

    fn asked(&mut self, circuit: CircuitId, now: Duration) -> Vec<Action> {
        if !self.rates.ask(circuit, now) {
            return vec![Action::RefuseRate];
        }
        let held = self.held(circuit);
        if self.is_pressed() && held >= SHARE {
            return vec![Action::RefuseShare];
        }
        let victim = match (self.streams.len() >= self.most, self.unused >= (self.most / UNUSED_PART).max(1)) {
            (true, _) => match self.least(held, now) {
                None => return vec![Action::RefuseFull],
                victim => victim,
            },
            (false, true) => self.longest_unused(now),
            (false, false) => None,
        };
        if let Some(victim) = victim {
            self.remove(victim);
        }
        let id = StreamId(self.next);
        self.next += 1;
        self.streams.insert(id, Stream { circuit, used: false, moved: now });
        *self.on_circuit.entry(circuit).or_default() += 1;
        self.unused += 1;
        victim.map(Action::Close).into_iter().chain([Action::Serve(id)]).collect()
    }

    /// The stream that has been unused for longest, if that is at least [`PATIENCE`].
    fn longest_unused(&self, now: Duration) -> Option<StreamId> {
        let unused = self.streams.iter().filter(|(_, stream)| !stream.used && now >= stream.moved + PATIENCE);
        unused.min_by_key(|(id, stream)| (stream.moved, **id)).map(|(id, _)| *id)
    }

    /// The stream that matters least (see point 3 above) if a newcomer may replace one; `held` is
    /// the number of streams on the newcomer's circuit.
    fn least(&self, held: usize, now: Duration) -> Option<StreamId> {
        let rank = |stream: &Stream| {
            let on_circuit = self.held(stream.circuit);
            let idle = now.saturating_sub(stream.moved);
            match (idle >= PATIENCE, stream.used) {
                (true, false) => Some((3, 0, idle)),
                (true, true) if on_circuit > SHARE => Some((2, 0, idle)),
                (true, true) => Some((1, 0, idle)),
                (false, _) => (on_circuit > held + 1).then_some((0, on_circuit, idle)),
            }
        };
        let ranked = self.streams.iter().filter_map(|(id, stream)| rank(stream).map(|rank| (rank, *id)));
        // Among streams of equal rank, the oldest.
        ranked.max_by_key(|(rank, id)| (*rank, std::cmp::Reverse(*id))).map(|(_, id)| id)
    }

    fn note(&mut self, id: StreamId, used: bool, now: Duration) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.moved = now;
        if used && !stream.used {
            stream.used = true;
            self.unused -= 1;
        }
    }

    fn remove(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else { return };
        self.unused -= usize::from(!stream.used);
        if let Some(held) = self.on_circuit.get_mut(&stream.circuit) {
            *held -= 1;
            if *held == 0 {
                self.on_circuit.remove(&stream.circuit);
            }
        }
    }

    /// The number of streams on this circuit.
    fn held(&self, circuit: CircuitId) -> usize {
        self.on_circuit.get(&circuit).copied().unwrap_or(0)
    }

    /// True if more than three quarters of the allowed streams are open.
    fn is_pressed(&self) -> bool {
        self.streams.len() * 4 > self.most * 3
    }
}

#[cfg(test)]
mod tests;
