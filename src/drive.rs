//! The one loop around the machines of this program.
//!
//! A [`Machine`] decides and has no clock, no chance and no IO. A [`Shell`] waits for what happens and carries out what
//! the machine decides; slow work is a job of its own, whose result comes back as an input. A [`Driver`] brings the two
//! together: each input becomes events, each event actions, and when nothing comes the machine gets its tick in time.

use std::future::Future;
use std::time::Duration;

use rustbalance_gossip::time::Now;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::clock::Clock;

/// Decides. After every event it looks at its whole state.
pub trait Machine {
    /// What can happen.
    type Event;
    /// What is to be done.
    type Action;

    /// The event that says nothing but that time has passed.
    fn tick() -> Self::Event;

    /// Takes note of what happened and says what to do, in order.
    fn handle(&mut self, event: Self::Event, now: Now) -> Vec<Self::Action>;

    /// When it wants a tick if nothing else happens, on the monotonic clock. A time that is past is now; one that stays
    /// past after the tick would keep a processor busy.
    fn next_timeout(&self, now: Now) -> Option<Duration>;
}

/// Work under way; each job ends in an input. What a job logs is in the span of its shell.
pub struct Jobs<I>(JoinSet<I>);

impl<I: Send + 'static> Jobs<I> {
    /// Starts a job. Aborted by the handle, it has no result.
    pub fn spawn(&mut self, job: impl Future<Output = I> + Send + 'static) -> AbortHandle {
        self.0.spawn(job.in_current_span())
    }

    /// Starts a job that computes for long or waits for a disk. It cannot be aborted.
    pub fn spawn_blocking(&mut self, job: impl FnOnce() -> I + Send + 'static) {
        let span = Span::current();
        self.0.spawn_blocking(move || span.in_scope(job));
    }
}

/// Carries out what a machine decides.
pub trait Shell<M: Machine>: Send {
    /// What comes from outside or from a job.
    type Input: Send + 'static;

    /// Waits for the next input from outside; `None` once there will be none, which ends the loop. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<Self::Input>> + Send;

    /// What an input means to the machine. Must not wait.
    fn take(&mut self, input: Self::Input, jobs: &mut Jobs<Self::Input>) -> Vec<M::Event>;

    /// Does what the machine says. Must not wait: what takes time is a job.
    fn act(&mut self, action: M::Action, jobs: &mut Jobs<Self::Input>);

    /// Looks at the machine once all events at hand have been handled: brings what others see up to date. What comes back
    /// is handled next, and then it looks again.
    fn settle(&mut self, _machine: &M, _now: Now) -> Vec<M::Event> {
        Vec::new()
    }
}

/// A job has panicked, so that the machine would wait for its result in vain.
#[derive(Debug, thiserror::Error)]
#[error("a job has failed: {0}")]
pub struct JobPanicked(JoinError);

/// A machine in its shell. Dropped, its jobs are aborted.
pub struct Driver<M: Machine, S: Shell<M>> {
    machine: M,
    shell: S,
    clock: Clock,
    jobs: Jobs<S::Input>,
}

impl<M: Machine, S: Shell<M>> Driver<M, S> {
    /// One that has not begun. The machine sees the time of `clock`.
    pub fn new(machine: M, shell: S, clock: Clock) -> Self {
        Self { machine, shell, clock, jobs: Jobs(JoinSet::new()) }
    }

    /// Handles what is known before anything happens.
    pub fn handle(&mut self, events: impl IntoIterator<Item = M::Event>) {
        self.handle_batch(events.into_iter().collect());
    }

    /// Runs until `stop` or until the shell has no more input.
    ///
    /// # Errors
    /// If a job panics.
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
                    // The shell has aborted it, and so wants no result.
                    Err(_) => {}
                },
                () = until(timeout) => self.handle([M::tick()]),
            }
        }
    }

    /// What is left of the shell.
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

/// Until then; forever without a time.
async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
