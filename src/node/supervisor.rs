//! Starts, watches and stops the parts of a node, or of one of its services.
//!
//! A part is a named task that must not end while the node runs. It may use every part started
//! before it, so parts are stopped in the reverse order of their start, each within its own limit.
//! When a part ends by itself, those that use it end soon after, in any order:
//! [`Supervisor::first_end`] names the one of them that was started first, which is the cause.

use std::future::Future;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, error, warn};

use super::NodeError;

/// The result of a part: `Ok` if it was stopped, or if its input has ended.
pub(super) type PartResult = Result<(), NodeError>;

/// Time after the first end in which further ends are collected. Parts that fail with Tor notice it
/// at their next call, within milliseconds; 1 s allows for a busy machine.
const CAUSE_WAIT: Duration = Duration::from_secs(1);
/// Time limit for parts that can be dropped at any await: only one that computes or blocks takes
/// any time.
const PROMPT: Duration = Duration::from_secs(5);

/// Parts in the order of their start. Dropping it aborts all of them.
#[derive(Default)]
pub(super) struct Supervisor {
    tasks: JoinSet<PartResult>,
    parts: Vec<Part>,
    /// The span of everything that the parts log.
    span: Option<Span>,
}

struct Part {
    name: String,
    stop: CancellationToken,
    task: AbortHandle,
    limit: Duration,
    /// The result of the part; `None` while it runs.
    ended: Option<PartResult>,
}

impl Supervisor {
    /// A supervisor whose parts log in a span.
    pub(super) fn in_span(span: Span) -> Self {
        Self { span: Some(span), ..Self::default() }
    }

    /// Starts a part that ends once its token is cancelled; it is aborted if that takes longer than
    /// `limit`. Operators see `name` in the error if the part ends by itself.
    pub(super) fn start<F>(
        &mut self,
        name: impl Into<String>,
        limit: Duration,
        work: impl FnOnce(CancellationToken) -> F,
    ) where
        F: Future<Output = PartResult> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let span = self.span.clone().unwrap_or_else(Span::none);
        let task = self.tasks.spawn(work(stop.clone()).instrument(span));
        self.parts.push(Part { name: name.into(), stop, task, limit, ended: None });
    }

    /// Starts a part that is dropped at its next await when it is stopped.
    pub(super) fn spawn(&mut self, name: impl Into<String>, work: impl Future<Output = PartResult> + Send + 'static) {
        self.start(name, PROMPT, |stop| async move { stop.run_until_cancelled_owned(work).await.unwrap_or(Ok(())) });
    }

    /// Waits until a part ends by itself; returns the cause. Never returns while all parts run.
    /// Cancel-safe.
    pub(super) async fn first_end(&mut self) -> NodeError {
        if !self.has_lost_a_part() {
            self.next_end().await;
        }
        let _ = timeout(CAUSE_WAIT, async {
            loop {
                self.next_end().await;
            }
        })
        .await;
        let cause = self.parts.iter_mut().find_map(|part| part.ended.take().map(|ended| (&part.name, ended)));
        match cause {
            Some((_, Err(error))) => error,
            Some((name, Ok(()))) => NodeError::TaskEnded(name.clone()),
            None => std::future::pending().await,
        }
    }

    fn has_lost_a_part(&self) -> bool {
        self.parts.iter().any(|part| part.ended.is_some())
    }

    /// Stops all parts, newest first. Each part has ended before the one started before it is
    /// stopped.
    pub(super) async fn stop(mut self) {
        while let Some(last) = self.parts.len().checked_sub(1) {
            self.stop_part(last).await;
            self.parts.truncate(last);
        }
        // An aborted part runs until its next await.
        self.tasks.shutdown().await;
    }

    async fn stop_part(&mut self, index: usize) {
        let Some(Part { name, stop, task, limit, .. }) = self.parts.get(index) else { return };
        let (name, task, limit) = (name.clone(), task.clone(), *limit);
        stop.cancel();
        let gone = async {
            while self.parts.get(index).is_some_and(|part| part.ended.is_none()) && !task.is_finished() {
                self.next_end().await;
            }
        };
        if timeout(limit, gone).await.is_err() {
            warn!(name: "part_aborted", part = name, ?limit, "part did not stop in time, so it is aborted");
            task.abort();
        }
        if let Some(Some(Err(error))) = self.parts.get(index).map(|part| &part.ended) {
            debug!(part = name, %error, "part failed while it stopped");
        }
    }

    /// Records the next end of a part; never returns if all have ended.
    async fn next_end(&mut self) {
        match self.tasks.join_next_with_id().await {
            Some(Ok((id, ended))) => self.note(id, ended),
            Some(Err(failed)) => self.note_failure(&failed),
            None => std::future::pending().await,
        }
    }

    fn note_failure(&mut self, failed: &JoinError) {
        if failed.is_panic()
            && let Some(part) = self.parts.iter().find(|part| part.task.id() == failed.id())
        {
            error!(name: "part_panicked", part = part.name, error = %failed, "a part of this node has panicked");
        }
        self.note(failed.id(), Ok(()));
    }

    fn note(&mut self, id: Id, ended: PartResult) {
        if let Some(part) = self.parts.iter_mut().find(|part| part.task.id() == id) {
            part.ended = Some(ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// Events in the order in which they happened.
    type Diary = Arc<Mutex<Vec<String>>>;

    fn note(diary: &Diary, line: impl Into<String>) {
        diary.lock().push(line.into());
    }

    /// Starts a part that takes `takes` to stop.
    fn part(supervisor: &mut Supervisor, diary: &Diary, name: &'static str, takes: Duration) {
        let diary = Arc::clone(diary);
        supervisor.start(name, Duration::from_secs(5), move |stop| async move {
            stop.cancelled().await;
            note(&diary, format!("{name} is asked"));
            tokio::time::sleep(takes).await;
            note(&diary, format!("{name} is gone"));
            Ok(())
        });
    }

    #[tokio::test]
    async fn a_part_that_panics_returns_or_fails_is_named() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("quiet", std::future::pending());
        supervisor.spawn("panicking", async { panic!("as the test wants it") });
        let error = supervisor.first_end().await;
        assert_eq!(
            error.to_string(),
            "the part \"panicking\" of this node has ended unexpectedly: please report this with the log"
        );
        supervisor.spawn("returning", async { Ok(()) });
        assert!(matches!(supervisor.first_end().await, NodeError::TaskEnded(name) if name == "returning"));
        supervisor.spawn("failing", async { Err(NodeError::IntroPoints("no key".into())) });
        assert!(matches!(supervisor.first_end().await, NodeError::IntroPoints(_)));
        supervisor.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_part_that_was_started_first_is_named_if_several_end_together() {
        let mut supervisor = Supervisor::default();
        let (alive, watch) = tokio::sync::watch::channel(());
        supervisor.spawn("cause", async move {
            tokio::time::sleep(Duration::from_secs(9)).await;
            drop(alive);
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(())
        });
        for name in ["user", "another user"] {
            let mut watch = watch.clone();
            supervisor.spawn(name, async move {
                let _ = watch.changed().await;
                Err(NodeError::IntroPoints("what it needs is gone".into()))
            });
        }
        // Interrupted in between, `first_end` loses nothing.
        assert!(timeout(Duration::from_secs(9), supervisor.first_end()).await.is_err());
        assert!(timeout(Duration::from_millis(100), supervisor.first_end()).await.is_err());
        assert!(matches!(supervisor.first_end().await, NodeError::TaskEnded(name) if name == "cause"));
    }

    #[tokio::test(start_paused = true)]
    async fn parts_stop_one_after_another_the_newest_first() {
        let (mut supervisor, diary) = (Supervisor::default(), Diary::default());
        part(&mut supervisor, &diary, "first", Duration::ZERO);
        part(&mut supervisor, &diary, "second", Duration::from_secs(3));
        supervisor.spawn("without an end", std::future::pending());
        supervisor.spawn("ended before", async { Ok(()) });
        tokio::task::yield_now().await;
        supervisor.stop().await;
        assert_eq!(*diary.lock(), ["second is asked", "second is gone", "first is asked", "first is gone"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_stop_in_time_is_cut_off() {
        let (mut supervisor, diary) = (Supervisor::default(), Diary::default());
        part(&mut supervisor, &diary, "first", Duration::ZERO);
        part(&mut supervisor, &diary, "slow", Duration::from_secs(60));
        let before = tokio::time::Instant::now();
        supervisor.stop().await;
        assert_eq!(before.elapsed(), Duration::from_secs(5));
        assert_eq!(*diary.lock(), ["slow is asked", "first is asked", "first is gone"]);
    }

    #[tokio::test(start_paused = true)]
    async fn parts_do_not_outlive_their_supervisor() {
        let mut supervisor = Supervisor::default();
        let (held, mut dropped) = tokio::sync::watch::channel(());
        supervisor.start("endless", Duration::from_secs(5), |_| async move {
            let _held = held;
            std::future::pending().await
        });
        drop(supervisor);
        assert!(timeout(Duration::from_secs(1), dropped.changed()).await.expect("the part still runs").is_err());
    }
}
