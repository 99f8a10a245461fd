//! The thread that makes the calls to the kernel, which block, and the watch over it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::KernelError;
use super::device::Device;
use super::shared::Shared;
use super::table::Action;
use crate::causes::with_causes;

/// The time for one call. A call of a healthy kernel takes less than a millisecond.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(2);

/// The thread of one interface. Dropping it removes the interface, and waits for that.
pub(super) struct Worker {
    wake: Option<Sender<()>>,
    ended: Mutex<Receiver<()>>,
}

impl Worker {
    /// Starts the thread, which makes the interface with `make`. The receiver yields whether that
    /// was possible.
    pub(super) fn start<D: Device>(
        shared: Arc<Shared>,
        make: impl FnOnce() -> Result<D, KernelError> + Send + 'static,
    ) -> (Self, oneshot::Receiver<Result<(), KernelError>>) {
        let (made, outcome) = oneshot::channel();
        let (wake, woken) = channel();
        let (ends, ended) = channel();
        let work = move || {
            // Dropped last: the interface is gone then.
            let _ends: Sender<()> = ends;
            match make() {
                Ok(mut device) => {
                    if made.send(Ok(())).is_ok() {
                        serve(&shared, &mut device, &woken);
                    }
                }
                Err(error) => drop(made.send(Err(error))),
            }
        };
        // Without a thread, the receiver yields nothing.
        if let Err(error) = thread::Builder::new().name("wireguard".into()).spawn(work) {
            warn!(name: "kernel_wireguard_thread_failed", %error, "cannot start the thread of the kernel's WireGuard");
        }
        (Self { wake: Some(wake), ended: Mutex::new(ended) }, outcome)
    }

    /// Lets the thread look for what is to be done.
    pub(super) fn wake(&self) {
        // A thread that has ended has nothing to do.
        let _ = self.wake.as_ref().map(|wake| wake.send(()));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.wake = None;
        // Else the process could end before the interface is gone.
        if self.ended.get_mut().recv_timeout(CALL_LIMIT) == Err(RecvTimeoutError::Timeout) {
            warn!(
                name: "kernel_wireguard_silent",
                "the kernel does not answer: its WireGuard interface may be left over until the next start"
            );
        }
    }
}

/// Carries out the actions, and asks the kernel at intervals, until the engine is dropped or a
/// call fails.
fn serve(shared: &Shared, device: &mut impl Device, woken: &Receiver<()>) {
    let mut due = Instant::now();
    loop {
        if let Err(error) = step(shared, device, &mut due) {
            shared.fail(&with_causes(&error));
            return;
        }
        let pause = due.saturating_duration_since(Instant::now());
        match woken.recv_timeout(pause) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if shared.has_stopped() {
            return;
        }
    }
}

fn step(shared: &Shared, device: &mut impl Device, due: &mut Instant) -> Result<(), KernelError> {
    let actions = shared.take_actions();
    let is_due = *due <= Instant::now();
    if actions.is_empty() && !is_due {
        return Ok(());
    }
    if !shared.timed(|| device.is_there())? {
        return Err(KernelError::Gone(device.name().to_owned()));
    }
    for action in actions {
        shared.timed(|| carry_out(device, &action))?;
    }
    let measured = shared.timed(|| device.read())?;
    *due = shared.measure(&measured);
    // What follows from that does not wait for the next look.
    for action in shared.take_actions() {
        shared.timed(|| carry_out(device, &action))?;
    }
    Ok(())
}

fn carry_out(device: &mut impl Device, action: &Action) -> Result<(), KernelError> {
    debug!(?action, "the WireGuard interface changes");
    match action {
        Action::SetKey(secret) => device.set_key(secret),
        Action::Add(key, place) => device.add_peer(key, *place),
        Action::Give(key, address) => device.give_address(key, *address),
        Action::Rest(key) => device.rest(key),
        Action::Remove(key) => device.remove_peer(key),
        Action::AddRoute(address) => device.add_route(*address),
        Action::RemoveRoute(address) => device.remove_route(*address),
    }
}
