//! The tasks of a node that run until it stops, each under the name that a failure report shows.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::{Id, JoinSet};

use super::NodeError;

/// How a task of [`Tasks`] ends: `Ok` when it stops by itself, which no task should do while the
/// node runs.
pub(super) type Ended = Result<(), NodeError>;

/// A set of named tasks. Dropped, all of them are aborted.
#[derive(Default)]
pub(super) struct Tasks {
    set: JoinSet<Ended>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts a task. `name` is what an operator reads when it ends: "the NAME task has ended".
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = Ended> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Waits for the first task to end, and says why; for ever if there is none.
    pub(super) async fn first_end(&mut self) -> NodeError {
        let Some(ended) = self.set.join_next_with_id().await else { return std::future::pending().await };
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            // It has panicked; the panic's own message is on standard error.
            Err(error) => (error.id(), Ok(())),
        };
        let name = self.names.get(&id).copied().unwrap_or("unnamed");
        outcome.err().unwrap_or(NodeError::TaskEnded(name))
    }

    /// Aborts all tasks and waits until they are gone.
    pub(super) async fn shutdown(&mut self) {
        self.set.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_returns_or_fails_is_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("quiet", std::future::pending());
        tasks.spawn("panicking", async { panic!("as the test wants it") });
        let error = tasks.first_end().await;
        assert_eq!(error.to_string(), "the panicking task has ended unexpectedly: please report this with the log");
        tasks.spawn("returning", async { Ok(()) });
        assert!(matches!(tasks.first_end().await, NodeError::TaskEnded("returning")));
        tasks.spawn("failing", async { Err(NodeError::IntroPoints("no key".into())) });
        assert!(matches!(tasks.first_end().await, NodeError::IntroPoints(_)));
        tasks.shutdown().await;
    }
}
