//! Telling systemd how the service is (`sd_notify(3)`). Outside systemd every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// The control socket answers (systemd's `READY=1`). How far Tor and the node are is in [`status`].
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// One line for `systemctl status`.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The ordered shutdown has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// If systemd watches over this service (`WatchdogSec=`), tells it twice an interval that the runtime is alive.
pub async fn keep_watchdog() {
    let mut microseconds = 0;
    if !sd_notify::watchdog_enabled(false, &mut microseconds) {
        return;
    }
    let half = Duration::from_micros(microseconds / 2).max(Duration::from_millis(10));
    loop {
        tell(&[NotifyState::Watchdog]);
        tokio::time::sleep(half).await;
    }
}

fn tell(states: &[NotifyState<'_>]) {
    // Without NOTIFY_SOCKET this is no error; with one that does not answer there is nothing better to do.
    if let Err(error) = sd_notify::notify(false, states) {
        debug!(%error, "cannot tell systemd");
    }
}
