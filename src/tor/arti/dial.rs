//! Connections to other onion services, and the keys that open restricted ones. Each address has an
//! isolation group of its own: its circuits carry nothing else.
//!
//! Arti opens all streams to a service on one circuit, and caches the service's descriptor for a
//! quarter of an hour. After the other side was frozen or restarted, both are useless. So after a
//! failure the next connection to that address gets a new isolation group, and with it a new
//! descriptor and circuit (a *fresh start*). That is rate-limited, because Arti keeps the state of
//! a group for two days.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use arti_client::{DataStream, ErrorKind, HasKind, StreamPrefs, TorClient};
use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::id::{NodeId, OnionAddress};
use tokio::time::timeout;
use tor_hscrypto::pk::HsClientDescEncKey;
use tor_keymgr::KeystoreSelector;
use tor_rtcompat::PreferredRuntime;

use super::client::Shared;
use super::keys;
use super::stream::TorStream;
use crate::backoff::Backoff;
use crate::keys::DiscoverySecret;
use crate::stream::BoxStream;
use crate::tor::TorError;

/// Minimum intervals between two fresh starts to an address that is not reached.
const FRESH_STARTS: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(15 * 60));

/// Most addresses whose state is kept; above this, all state is dropped.
const MOST_ADDRESSES: usize = 4096;

/// The isolation groups and discovery keys of the addresses that were dialled.
#[derive(Default)]
pub(super) struct Dials {
    addresses: Mutex<HashMap<OnionAddress, Dial>>,
    /// The discovery keys for each restricted service; Arti uses the first one now.
    keys: Mutex<HashMap<OnionAddress, Vec<DiscoverySecret>>>,
}

/// State of one address.
struct Dial {
    prefs: StreamPrefs,
    /// Time of the last fresh start, and the number of those before it since the last success.
    fresh: Option<(Instant, u32)>,
}

impl Dial {
    fn new() -> Self {
        let mut prefs = StreamPrefs::new();
        prefs.new_isolation_group();
        Self { prefs, fresh: None }
    }
}

impl Dials {
    fn keys(&self) -> MutexGuard<'_, HashMap<OnionAddress, Vec<DiscoverySecret>>> {
        self.keys.lock()
    }

    /// Preferences with the isolation group of this address, which no other address shares.
    fn prefs(&self, to: OnionAddress) -> StreamPrefs {
        let mut addresses = self.addresses.lock();
        if addresses.len() >= MOST_ADDRESSES && !addresses.contains_key(&to) {
            addresses.clear();
        }
        addresses.entry(to).or_insert_with(Dial::new).prefs.clone()
    }

    /// Records a success: the next failure causes a fresh start at once.
    fn reached(&self, to: OnionAddress) {
        if let Some(dial) = self.addresses.lock().get_mut(&to) {
            dial.fresh = None;
        }
    }

    /// Records a failure. Makes a fresh start and returns true, unless the last one is too recent.
    fn failed(&self, to: OnionAddress, now: Instant) -> bool {
        let mut addresses = self.addresses.lock();
        if addresses.len() >= MOST_ADDRESSES && !addresses.contains_key(&to) {
            addresses.clear();
        }
        let dial = addresses.entry(to).or_insert_with(Dial::new);
        let starts = match dial.fresh {
            Some((since, starts)) if now.duration_since(since) < FRESH_STARTS.pause(starts) => return false,
            Some((_, starts)) => starts.saturating_add(1),
            None => 0,
        };
        dial.prefs.new_isolation_group();
        dial.fresh = Some((now, starts));
        true
    }
}

/// Connects, within `limit`. If a service rejects a discovery key, each of its keys is tried.
pub(super) async fn dial(shared: &Shared, to: OnionAddress, port: u16, limit: Duration) -> Result<BoxStream, TorError> {
    let connecting = async {
        let live = shared.ready().await?;
        let others = shared.dials.keys().get(&to).map_or(0, |keys| keys.len().saturating_sub(1));
        let mut outcome = connect(&live.tor, shared, to, port).await;
        for _ in 0..others {
            match &outcome {
                Err(error) if error.kind() == ErrorKind::OnionServiceWrongClientAuth => use_next_key(shared, to)?,
                _ => break,
            }
            outcome = connect(&live.tor, shared, to, port).await;
        }
        Ok(outcome)
    };
    let outcome = match timeout(limit, connecting).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(not_ready)) => return Err(not_ready),
        Err(_) => {
            shared.dials.failed(to, Instant::now());
            return Err(TorError::Timeout { what: format!("connecting to port {port} of {to}"), limit });
        }
    };
    match outcome {
        Ok(stream) => {
            shared.dials.reached(to);
            Ok(Box::new(TorStream::new(stream, None)))
        }
        Err(error) if error.kind() == ErrorKind::OnionServiceWrongClientAuth => {
            Err(TorError::ShutOut { to: to.to_string() })
        }
        Err(error) => {
            if !is_an_answer(error.kind()) {
                shared.dials.failed(to, Instant::now());
            }
            Err(TorError::Unreachable { to: to.to_string(), why: in_words(&error), source: Some(Box::new(error)) })
        }
    }
}

async fn connect(
    tor: &TorClient<PreferredRuntime>,
    shared: &Shared,
    to: OnionAddress,
    port: u16,
) -> Result<DataStream, arti_client::Error> {
    let attempt = shared.attempts.turn().await;
    let prefs = shared.dials.prefs(to);
    let connected = tor.connect_with_prefs((to.to_string(), port), &prefs).await;
    attempt.ended(&connected);
    connected
}

/// True if this error shows that the circuit and the descriptor work, so that a fresh start would
/// not help.
fn is_an_answer(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::RemoteConnectionRefused
            | ErrorKind::RemoteStreamClosed
            | ErrorKind::RemoteStreamReset
            | ErrorKind::RemoteStreamError
            | ErrorKind::OnionServiceMissingClientAuth
    )
}

/// Why a service was not reached, as text for the operator.
fn in_words(error: &arti_client::Error) -> String {
    match error.kind() {
        ErrorKind::OnionServiceNotFound => "no directory has its descriptor: it is down, or has never been up".into(),
        ErrorKind::OnionServiceNotRunning => "it is not running".into(),
        ErrorKind::OnionServiceMissingClientAuth => "it requires a discovery key, and we have none for it".into(),
        ErrorKind::RemoteConnectionRefused => "it refuses that port".into(),
        _ => error.to_string(),
    }
}

/// Sets the discovery keys for the own service of `node`, in place of earlier ones.
pub(super) fn trust_discovery(shared: &Shared, node: NodeId, keys: &[&DiscoverySecret]) -> Result<(), TorError> {
    let mut all = shared.dials.keys();
    if let Some(first) = keys.first() {
        hand_over(shared, node.address(), first)?;
    }
    all.insert(node.address(), keys.iter().map(|key| key.duplicate()).collect());
    Ok(())
}

/// Switches to the next discovery key of a service, after the current one was rejected.
fn use_next_key(shared: &Shared, to: OnionAddress) -> Result<(), TorError> {
    let mut all = shared.dials.keys();
    let Some(keys) = all.get_mut(&to).filter(|keys| keys.len() > 1) else { return Ok(()) };
    keys.rotate_left(1);
    hand_over(shared, to, &keys[0])
}

/// Puts the key for a service into Arti's key store, in place of any other.
fn hand_over(shared: &Shared, to: OnionAddress, key: &DiscoverySecret) -> Result<(), TorError> {
    let failed = |error: arti_client::Error| {
        TorError::Invalid(format!("cannot store the discovery key for {to}: {error}"), Some(Box::new(error)))
    };
    let tor = shared.client()?;
    let (id, secret) = (keys::service_id(to), keys::discovery_secret(key));
    match tor.get_service_discovery_key(id).map_err(failed)? {
        Some(known) if known == HsClientDescEncKey::from(&secret) => return Ok(()),
        Some(_) => drop(tor.remove_service_discovery_key(KeystoreSelector::Primary, id).map_err(failed)?),
        None => {}
    }
    tor.insert_service_discovery_key(KeystoreSelector::Primary, id, secret).map_err(failed).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_starts_become_rarer_until_one_succeeds() {
        let (dials, to, start) = (Dials::default(), OnionAddress::from_public_key([1; 32]), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let fresh: Vec<u64> = (0..3600).filter(|second| dials.failed(to, at(*second))).collect();
        assert_eq!(fresh, [0, 10, 30, 70, 150, 310, 630, 1270, 2170, 3070]);
        assert!(!dials.failed(to, at(3601)));
        dials.reached(to);
        assert!(dials.failed(to, at(3602)));
    }
}
