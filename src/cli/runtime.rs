//! The tokio runtime on which a command runs.
//!
//! It always has worker threads of its own, and is never a current-thread runtime: a task that
//! waits for a disk passes the other tasks of its thread on to another one (see
//! [`crate::blocking`]), so that heartbeats go on. Few threads are cheaper than many: a thread
//! that has nothing to do sleeps, and waking it for each cell of a client's stream costs more than
//! what it then does (docs/DECISIONS.md, "One thread for two processors").

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use tokio::runtime::Builder;

/// Runs a command that is not the daemon.
pub(super) fn run(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    run_on(1, command)
}

/// Runs a command on this number of worker threads.
pub(super) fn run_on(threads: usize, command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build()?.block_on(command)
}

/// Worker threads of the daemon: those configured, or else one for two processors that this
/// process may use. The others are for the targets, which are on the same host.
pub(super) fn daemon_threads(configured: Option<usize>) -> usize {
    configured.unwrap_or_else(|| threads_for(available_parallelism().map_or(1, NonZeroUsize::get)))
}

fn threads_for(processors: usize) -> usize {
    (processors / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::runtime::{Handle, RuntimeFlavor};

    #[test]
    fn half_of_the_processors_are_left_to_the_targets() {
        assert_eq!([1, 2, 3, 4, 8].map(threads_for), [1, 1, 1, 2, 4]);
    }

    #[test]
    fn the_configured_number_of_threads_is_used() {
        for threads in [1, 3] {
            let check = async {
                assert_eq!(Handle::current().metrics().num_workers(), threads);
                assert_eq!(Handle::current().runtime_flavor(), RuntimeFlavor::MultiThread);
                Ok(())
            };
            run_on(daemon_threads(Some(threads)), check).unwrap();
        }
    }
}
