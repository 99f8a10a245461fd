//! Reports the state of the service to systemd (`sd_notify(3)`). Outside systemd every call does
//! nothing.

use std::future::Future;
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

/// If systemd watches over this service (`WatchdogSec=`), reports twice per interval that it is
/// alive, each time after `is_alive` has returned. A report that does not come has systemd end and
/// restart the service.
pub async fn keep_watchdog<F: Future<Output = ()>>(is_alive: impl Fn() -> F) {
    let mut microseconds = 0;
    if !sd_notify::watchdog_enabled(false, &mut microseconds) {
        return;
    }
    let half = Duration::from_micros(microseconds / 2).max(Duration::from_millis(10));
    report_while_alive(half, is_alive, || notify(&[NotifyState::Watchdog])).await;
}

/// Calls `report` at this interval, each time after `is_alive` has returned.
async fn report_while_alive<F: Future<Output = ()>>(interval: Duration, is_alive: impl Fn() -> F, report: impl Fn()) {
    loop {
        is_alive().await;
        report();
        tokio::time::sleep(interval).await;
    }
}

fn notify(states: &[NotifyState<'_>]) {
    // Without NOTIFY_SOCKET this does nothing. If systemd does not answer there is nothing better
    // to do.
    if let Err(error) = sd_notify::notify(false, states) {
        debug!(%error, "cannot notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::sync::watch;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_is_reported_while_the_task_that_decides_hangs() {
        let (hangs, hanging) = watch::channel(false);
        let reports = std::sync::Arc::new(AtomicU32::new(0));
        let counted = std::sync::Arc::clone(&reports);
        let is_alive = move || {
            let mut hanging = hanging.clone();
            async move { drop(hanging.wait_for(|hangs| !hangs).await) }
        };
        let report = move || _ = counted.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move { report_while_alive(Duration::from_secs(30), is_alive, report).await });
        let after = async |seconds| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            reports.load(Ordering::SeqCst)
        };
        assert_eq!(after(61).await, 3);
        hangs.send_replace(true);
        assert_eq!(after(600).await, 3, "systemd ends the daemon");
        hangs.send_replace(false);
        assert_eq!(after(1).await, 4);
    }
}
