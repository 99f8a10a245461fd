//! Blocking disk access inside an async task.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs `work`, which may wait for a disk, while tokio moves the other tasks of this thread to
/// another thread: a heartbeat must not wait for a disk. On a single-threaded runtime `work` just
/// runs.
pub fn on_disk<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
