//! One Tor client after another in the same process.
//!
//! A client can end for good (see [`crate::tor::arti`]), or the canary can find that clients of the
//! service do not get through. The node then starts again as a new process would, but keeps its
//! configuration and the lock on its state directory. The new client knows the guards of the old
//! one, and fetches the network's directory again. If it ends soon, too, the process ends, for
//! systemd to start it. So it does where a client never was connected: a new one would not get
//! further without the old one's cache.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{NodeError, run_once};
use crate::blocking::on_disk;
use crate::canary::plan::CLIENT_TRIAL;
use crate::clock::unix_now;
use crate::config::LiveConfig;
use crate::store::Store;
use crate::tor::arti::carry_over;
use crate::tor::{Engine, TorError};

/// Clients that have taken the place of others in this process.
#[derive(Debug, Clone)]
pub(super) struct Renewals {
    pub(super) count: u64,
    /// When it last happened, and when that was in seconds since the Unix epoch.
    pub(super) last: Instant,
    pub(super) last_unix: u64,
    /// Why the client before could not stay.
    pub(super) why: String,
}

/// Runs a node on the engine that `make` makes, until `stop` or until it cannot continue. If the
/// cause is an engine that was connected, the node continues on a further one.
///
/// # Errors
/// See [`NodeError`]. That of an engine is returned if it had taken the place of another one less
/// than [`CLIENT_TRIAL`] before.
pub async fn run_with(
    mut make: impl FnMut(&Store) -> Result<Arc<dyn Engine>, NodeError>,
    store: Arc<Store>,
    live: Arc<LiveConfig>,
    stop: CancellationToken,
) -> Result<(), NodeError> {
    let mut renewals: Option<Renewals> = None;
    loop {
        let engine = make(&store)?;
        let bootstrap = engine.bootstrap();
        let on = Arc::clone(&engine);
        let outcome = run_once(on, renewals.clone(), Arc::clone(&store), Arc::clone(&live), stop.clone());
        let outcome = Box::pin(outcome).await;
        engine.shutdown().await;
        let Err(error) = outcome else { return Ok(()) };
        let was_connected = bootstrap.borrow().ready;
        let last = renewals.as_ref().map(|renewals| renewals.last);
        if stop.is_cancelled() || !was_connected || !may_renew(&error, last, Instant::now()) {
            return Err(error);
        }
        if let Err(failed) = on_disk(|| store.renew_arti(carry_over)) {
            warn!(name: "tor_client_not_renewed", error = %failed, "cannot make another Tor client in this process");
            return Err(error);
        }
        warn!(name: "tor_client_renewed", %error, "the node starts again in this process, with a new Tor client");
        let count = renewals.map_or(1, |before| before.count.saturating_add(1));
        renewals = Some(Renewals { count, last: Instant::now(), last_unix: unix_now(), why: error.to_string() });
    }
}

/// Whether another client may help, in this process. `renewed`: when the last one took the place of
/// another.
fn may_renew(error: &NodeError, renewed: Option<Instant>, now: Instant) -> bool {
    let is_of_client = matches!(error, NodeError::Tor(TorError::Stopped(_)) | NodeError::Unreachable(_));
    is_of_client && renewed.is_none_or(|at| now.duration_since(at) >= CLIENT_TRIAL)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_client_that_ends_soon_after_another_one_ends_the_process() {
        let (stopped, at) = (NodeError::Tor(TorError::Stopped("it expired".into())), Instant::now());
        assert!(may_renew(&stopped, None, at));
        assert!(may_renew(&NodeError::Unreachable("no point".into()), None, at));
        let almost = CLIENT_TRIAL.saturating_sub(Duration::from_secs(1));
        assert!(!may_renew(&stopped, Some(at), at + almost));
        assert!(may_renew(&stopped, Some(at), at + CLIENT_TRIAL));
        for lasting in [
            NodeError::StillUnreachable("no point".into()),
            NodeError::Tor(TorError::Files("others can write to them".into())),
            NodeError::Excluded("evicted".into()),
            NodeError::TaskEnded("gossip".into()),
        ] {
            assert!(!may_renew(&lasting, None, at), "{lasting}");
        }
    }
}
