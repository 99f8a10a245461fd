//! Chooses the route by which frames go to one peer. No IO, no clock, no randomness: the time is an
//! argument.
//!
//! The base route (Tor) needs no proof but the handshake of its link, whose pings notice when it
//! dies. Every other route must answer probes before it carries frames, and can lose that state:
//!
//! ```text
//! unproven --link opens--> probing --probes answered in a row--> proven
//!    ^                        |        degraded <--a probe unanswered for 1 s--|
//!    |<--3 unanswered, or the link ends--|-- degraded --answered in a row--> proven
//! ```
//!
//! Frames go by the best proven route; if there is none, by the best one with an open link. The
//! base is proven while its link is open. At first one answer proves a route. After a failure, 5
//! answers in a row prove it; each failure within a minute of the last proof doubles that number,
//! up to 40.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::RouteKind;

/// Interval between probes, and the time limit for the answer. With 1 s, a dead route gets no new
/// frames after 2 s, and its link is closed after 4 s.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// Probes in a row without an answer after which the link is closed.
const MOST_MISSED: u32 = 3;
/// Answers in a row that prove a route again after a failure: minimum and maximum.
const ANSWERS_TO_RETURN: (u32, u32) = (5, 40);
/// A route that was proven for this time is forgiven its earlier failures.
const STEADY: Duration = Duration::from_secs(60);

/// The state of one route to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteState {
    /// No link is open over it.
    Unproven,
    /// Both sides are authenticated, and not enough probes have been answered yet.
    Probing,
    /// It carries frames, unless a better route is proven.
    Proven,
    /// A probe was not answered in time: frames go by another route if there is one.
    Degraded,
}

impl fmt::Display for RouteState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unproven => "unproven",
            Self::Probing => "probing",
            Self::Proven => "proven",
            Self::Degraded => "degraded",
        })
    }
}

/// An event of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathEvent {
    /// A link has opened over this route and replaces any other over it.
    Opened(RouteKind),
    /// The link over this route has ended.
    LinkEnd(RouteKind),
    /// The peer has answered the probe of this number.
    Answered(RouteKind, u64),
    /// Time has passed.
    Tick,
}

/// An action that the path asks its owner for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathAction {
    /// Send a probe of this number.
    Probe(RouteKind, u64),
    /// A probe was not answered in time. `late`: that was noticed so much later that this process
    /// must have been stopped.
    Missed { late: bool },
    /// Close the link: no probe is answered.
    Close(RouteKind),
    /// Frames no longer go by this route: move those that wait there to the chosen one.
    Leave(RouteKind),
}

/// The routes to one peer, and the chosen one.
#[derive(Debug)]
pub(super) struct Path {
    /// Best first; the last is the base.
    routes: Vec<RouteProgress>,
    chosen: Option<RouteKind>,
}

/// One of the routes of a path.
#[derive(Debug)]
struct RouteProgress {
    kind: RouteKind,
    is_base: bool,
    state: RouteState,
    /// The number of the latest probe; its answer is missing while `is_waiting`.
    probe: u64,
    is_waiting: bool,
    next_probe: Option<Instant>,
    answered: u32,
    missed: u32,
    /// Answers in a row that prove the route.
    required: u32,
    proven_at: Option<Instant>,
}

impl RouteProgress {
    fn new(kind: RouteKind, is_base: bool) -> Self {
        Self {
            kind,
            is_base,
            state: RouteState::Unproven,
            probe: 0,
            is_waiting: false,
            next_probe: None,
            answered: 0,
            missed: 0,
            required: 1,
            proven_at: None,
        }
    }

    fn open(&mut self, now: Instant) {
        (self.answered, self.missed, self.is_waiting) = (0, 0, false);
        if self.is_base {
            self.state = RouteState::Proven;
        } else {
            self.state = RouteState::Probing;
            self.next_probe = Some(now);
        }
    }

    fn end(&mut self, now: Instant) {
        if self.state == RouteState::Proven {
            self.fail(now);
        }
        (self.state, self.next_probe) = (RouteState::Unproven, None);
    }

    /// Marks the route degraded. If it was proven for less than [`STEADY`], it must answer more
    /// probes in a row to be proven again.
    fn fail(&mut self, now: Instant) {
        let steady = self.proven_at.is_some_and(|at| now.saturating_duration_since(at) >= STEADY);
        self.required = if steady {
            ANSWERS_TO_RETURN.0
        } else {
            self.required.saturating_mul(2).clamp(ANSWERS_TO_RETURN.0, ANSWERS_TO_RETURN.1)
        };
        self.state = RouteState::Degraded;
    }

    fn answer(&mut self, number: u64, now: Instant) {
        let in_time = self.is_waiting && number == self.probe;
        if number == 0 || number > self.probe || self.state == RouteState::Unproven {
            return;
        }
        // A late answer shows that the link is alive, not that the route is good.
        self.missed = 0;
        if !in_time {
            return;
        }
        self.is_waiting = false;
        self.answered = self.answered.saturating_add(1);
        if self.state != RouteState::Proven && self.answered >= self.required {
            (self.state, self.proven_at) = (RouteState::Proven, Some(now));
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<PathAction>) {
        let Some(due) = self.next_probe.filter(|at| *at <= now) else { return };
        if self.is_waiting {
            actions.push(PathAction::Missed { late: now.saturating_duration_since(due) >= PROBE_PAUSE });
            (self.answered, self.missed) = (0, self.missed + 1);
            if self.state == RouteState::Proven {
                self.fail(now);
            }
            if self.missed >= MOST_MISSED {
                (self.state, self.next_probe) = (RouteState::Unproven, None);
                actions.push(PathAction::Close(self.kind));
                return;
            }
        }
        (self.probe, self.is_waiting, self.next_probe) = (self.probe + 1, true, Some(now + PROBE_PAUSE));
        actions.push(PathAction::Probe(self.kind, self.probe));
    }
}

impl Path {
    /// A path over these routes, best first, the base last.
    pub(super) fn new(routes: &Arc<[RouteKind]>) -> Self {
        let base = routes.len().saturating_sub(1);
        let routes = routes.iter().enumerate().map(|(i, kind)| RouteProgress::new(*kind, i == base)).collect();
        Self { routes, chosen: None }
    }

    /// The route of the next frame; `None` if no link is open.
    pub(super) fn chosen(&self) -> Option<RouteKind> {
        self.chosen
    }

    /// The state of a route.
    pub(super) fn state(&self, kind: RouteKind) -> RouteState {
        self.routes
            .iter()
            .find(|progress| progress.kind == kind)
            .map_or(RouteState::Unproven, |progress| progress.state)
    }

    /// When [`PathEvent::Tick`] is due.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.routes.iter().filter_map(|progress| progress.next_probe).min()
    }

    /// Applies an event and the time, then chooses the route again; returns the actions.
    pub(super) fn handle(&mut self, event: PathEvent, now: Instant) -> Vec<PathAction> {
        let kind = match event {
            PathEvent::Opened(kind) | PathEvent::LinkEnd(kind) | PathEvent::Answered(kind, _) => Some(kind),
            PathEvent::Tick => None,
        };
        let route = self.routes.iter_mut().find(|progress| Some(progress.kind) == kind);
        match (event, route) {
            (PathEvent::Opened(_), Some(route)) => route.open(now),
            (PathEvent::LinkEnd(_), Some(route)) => route.end(now),
            (PathEvent::Answered(_, number), Some(route)) => route.answer(number, now),
            _ => {}
        }
        let mut actions = Vec::new();
        self.routes.iter_mut().for_each(|progress| progress.tick(now, &mut actions));
        let chosen = self.choose();
        if chosen != self.chosen {
            actions.extend(self.chosen.map(PathAction::Leave));
            self.chosen = chosen;
        }
        actions
    }

    fn choose(&self) -> Option<RouteKind> {
        let proven = self.routes.iter().find(|progress| progress.state == RouteState::Proven);
        let open = || self.routes.iter().find(|progress| progress.state != RouteState::Unproven);
        proven.or_else(open).map(|progress| progress.kind)
    }
}

#[cfg(test)]
mod tests;
