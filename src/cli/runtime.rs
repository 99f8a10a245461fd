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
pub(super) fn run<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    run_on(1, command)
}

/// Runs a command on this number of worker threads.
pub(super) fn run_on<T>(threads: usize, command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    keep_capabilities();
    Builder::new_multi_thread().worker_threads(threads).enable_all().build()?.block_on(command)
}

/// Keeps what systemd has given to this process (`wireguard-kernel.conf`) from the programs that it
/// starts, such as pluggable transports. Before there are other threads: each has a set of its own.
fn keep_capabilities() {
    // A kernel without ambient capabilities (before 4.3) has none to clear.
    let _ = rustix::thread::clear_ambient_capability_set();
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

    #[test]
    fn a_program_that_is_started_gets_no_capability_by_inheritance() {
        use rustix::thread::{CapabilitySet, capabilities, configure_capability_in_ambient_set, set_capabilities};
        let ambient = || {
            let output = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap().stdout;
            let status = String::from_utf8(output).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("CapAmb:")).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let of_a_thread = std::thread::spawn(move || {
            let mut sets = capabilities(None).unwrap();
            sets.inheritable |= sets.permitted;
            set_capabilities(None, sets).unwrap();
            // Without privileges there is nothing to inherit.
            if configure_capability_in_ambient_set(CapabilitySet::NET_ADMIN, true).is_ok() {
                assert_ne!(ambient(), 0);
            }
            run(async move {
                assert_eq!(ambient(), 0);
                Ok(())
            })
            .unwrap();
        });
        of_a_thread.join().unwrap();
    }
}
