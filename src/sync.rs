//! Small things that tasks share state with.

use tokio::sync::watch;

/// Sets a watch, and wakes who waits for it only if the value is another one. True then.
pub(crate) fn publish<T: PartialEq>(to: &watch::Sender<T>, value: T) -> bool {
    to.send_if_modified(|held| {
        let changed = *held != value;
        if changed {
            *held = value;
        }
        changed
    })
}
