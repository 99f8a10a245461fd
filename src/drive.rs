//! The loop that runs every state machine of this program.
//!
//! A [`Machine`] decides; it has no clock, no randomness and no IO. A [`Shell`] waits for inputs
//! and carries out what the machine decides; slow work runs as a job, whose result comes back as an
//! input. A [`Driver`] connects the two: inputs become events, events become actions, and the
//! machine gets a tick when its timeout passes without an input.

use std::future::Future;
use std::time::Duration;

use rustbalance_gossip::time::Now;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::clock::Clock;

/// A state machine that decides on its whole state after every event.
pub trait Machine {
    /// An event that it handles.
    type Event;
    /// An action that it asks for.
    type Action;

    /// The event of time passing, with no other news.
    fn tick() -> Self::Event;

    /// Applies an event and returns the actions that follow, in order.
    fn handle(&mut self, event: Self::Event, now: Now) -> Vec<Self::Action>;

    /// When the machine wants a tick if nothing else happens, on the monotonic clock; `None` for
    /// never. A time in the past means now; a time that stays in the past after the tick keeps a
    /// processor busy.
    fn next_timeout(&self, now: Now) -> Option<Duration>;
}

/// Jobs under way. The result of each is an input; its log lines are in the span of its shell.
pub struct Jobs<I>(JoinSet<I>);

impl<I: Send + 'static> Jobs<I> {
    /// Starts a job. A job that is aborted through the handle gives no input.
    pub fn spawn(&mut self, job: impl Future<Output = I> + Send + 'static) -> AbortHandle {
        self.0.spawn(job.in_current_span())
    }

    /// Starts a job that computes for long or waits for a disk, on a thread of its own. It cannot
    /// be aborted.
    pub fn spawn_blocking(&mut self, job: impl FnOnce() -> I + Send + 'static) {
        let span = Span::current();
        self.0.spawn_blocking(move || span.in_scope(job));
    }
}

/// Connects a machine to the outside: turns inputs into events, and carries out actions.
pub trait Shell<M: Machine>: Send {
    /// An input from outside, or the result of a job.
    type Input: Send + 'static;

    /// Waits for the next input from outside; `None` if no more can come, which ends the loop. Must
    /// be cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<Self::Input>> + Send;

    /// Turns an input into events. Must not wait.
    fn take(&mut self, input: Self::Input, jobs: &mut Jobs<Self::Input>) -> Vec<M::Event>;

    /// Carries out an action. Must not wait: slow work is a job.
    fn act(&mut self, action: M::Action, jobs: &mut Jobs<Self::Input>);

    /// Called once all events at hand have been handled, to publish the machine's state to its
    /// watchers. Events that it returns are handled next, and then it is called again.
    fn settle(&mut self, _machine: &M, _now: Now) -> Vec<M::Event> {
        Vec::new()
    }
}

/// A job has panicked; the machine would wait for its result in vain.
#[derive(Debug, thiserror::Error)]
#[error("a job has failed: {0}")]
pub struct JobPanicked(JoinError);

/// A machine in its shell. Dropping it aborts its jobs.
pub struct Driver<M: Machine, S: Shell<M>> {
    machine: M,
    shell: S,
    clock: Clock,
    jobs: Jobs<S::Input>,
}

impl<M: Machine, S: Shell<M>> Driver<M, S> {
    /// A driver whose loop has not begun. The machine is given the time of `clock`.
    pub fn new(machine: M, shell: S, clock: Clock) -> Self {
        Self { machine, shell, clock, jobs: Jobs(JoinSet::new()) }
    }

    /// Handles events that are known before the loop begins.
    pub fn handle(&mut self, events: impl IntoIterator<Item = M::Event>) {
        self.handle_batch(events.into_iter().collect());
    }

    /// Runs until `stop` is cancelled or the shell has no more input.
    pub async fn run(&mut self, stop: &CancellationToken) -> Result<(), JobPanicked> {
        loop {
            let timeout = self.machine.next_timeout(self.clock.now()).and_then(|at| self.clock.instant(at));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                input = self.shell.next() => match input {
                    Some(input) => self.take(input),
                    None => return Ok(()),
                },
                Some(done) = self.jobs.0.join_next() => match done {
                    Ok(input) => self.take(input),
                    Err(error) if error.is_panic() => return Err(JobPanicked(error)),
                    // The shell aborted the job and expects no result.
                    Err(_) => {}
                },
                () = until(timeout) => self.handle([M::tick()]),
            }
        }
    }

    /// The shell, for what it holds after the loop.
    pub fn into_shell(self) -> S {
        self.shell
    }

    fn take(&mut self, input: S::Input) {
        let events = self.shell.take(input, &mut self.jobs);
        self.handle_batch(events);
    }

    fn handle_batch(&mut self, mut events: Vec<M::Event>) {
        loop {
            for event in events {
                for action in self.machine.handle(event, self.clock.now()) {
                    self.shell.act(action, &mut self.jobs);
                }
            }
            events = self.shell.settle(&self.machine, self.clock.now());
            if events.is_empty() {
                return;
            }
        }
    }
}

/// Waits until `at`; forever if it is `None`.
async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
