//! Helpers for state that tasks share.

use tokio::sync::watch;

/// Sets a watch, waking its receivers only if the value has changed. Returns whether it has.
pub(crate) fn publish<T: PartialEq>(to: &watch::Sender<T>, value: T) -> bool {
    to.send_if_modified(|held| {
        let changed = *held != value;
        if changed {
            *held = value;
        }
        changed
    })
}
