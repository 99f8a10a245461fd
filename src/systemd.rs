//! Reports the state of the service to systemd (`sd_notify(3)`). Outside systemd every call does
//! nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// Whether the service is between [`ready`] and [`stopping`]. Only then may a reload be reported:
/// its end is another `READY=1`.
static IS_UP: AtomicBool = AtomicBool::new(false);

/// Reports that the control socket answers (`READY=1`). The progress of Tor and the node goes into
/// [`status`].
pub fn ready() {
    IS_UP.store(true, Ordering::SeqCst);
    notify(&[NotifyState::Ready]);
}

/// A reload in progress. Its end is reported when this is dropped.
#[derive(Debug)]
pub struct Reloading(());

/// Reports that the configuration is being read again (`RELOADING=1`), unless the service has not
/// started yet or is stopping. Later versions of systemd need the time as well.
pub fn reloading() -> Option<Reloading> {
    let monotonic = NotifyState::monotonic_usec_now().ok().filter(|_| IS_UP.load(Ordering::SeqCst))?;
    notify(&[NotifyState::Reloading, monotonic]);
    Some(Reloading(()))
}

impl Drop for Reloading {
    fn drop(&mut self) {
        if IS_UP.load(Ordering::SeqCst) {
            notify(&[NotifyState::Ready]);
        }
    }
}

/// Sets the line that `systemctl status` shows.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// Reports that the ordered shutdown has begun.
pub fn stopping() {
    IS_UP.store(false, Ordering::SeqCst);
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// If systemd watches over this service (`WatchdogSec=`), reports twice per interval that the
/// runtime is alive.
pub async fn keep_watchdog() {
    let mut microseconds = 0;
    if !sd_notify::watchdog_enabled(false, &mut microseconds) {
        return;
    }
    let half = Duration::from_micros(microseconds / 2).max(Duration::from_millis(10));
    loop {
        notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(half).await;
    }
}

fn notify(states: &[NotifyState<'_>]) {
    // Without NOTIFY_SOCKET this does nothing. If systemd does not answer there is nothing better
    // to do.
    if let Err(error) = sd_notify::notify(false, states) {
        debug!(%error, "cannot notify systemd");
    }
}
