//! Waiting for a disk inside a task.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs what may wait for a disk, while the other tasks of this thread go on in another: a heartbeat must not wait for
/// it. Where the runtime has but one thread, it just runs.
pub fn on_disk<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
