//! The engine on Arti does what every engine must, on the private Tor network.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rustbalance::tor::Engine;
use rustbalance::tor::arti::{ArtiConfig, ArtiEngine};
use rustbalance_gossip::record::RelayId;
use rustbalance_testnet::{Network, Relay};
use tempfile::TempDir;

#[cfg(test)]
#[path = "../../src/tor/conformance.rs"]
mod conformance;

/// The private network, and the Tor clients made for the suite.
struct ArtiStage<'n> {
    network: &'n Network,
    folder: TempDir,
    clients: AtomicUsize,
    killed: Mutex<Vec<&'n Relay>>,
}

#[async_trait]
impl conformance::Stage for ArtiStage<'_> {
    async fn engine(&self) -> Arc<dyn Engine> {
        let number = self.clients.fetch_add(1, Ordering::Relaxed);
        start(self.network, &self.folder.path().join(number.to_string()))
    }

    async fn kill_relay(&self, relay: RelayId) -> bool {
        let fingerprint = data_encoding::HEXUPPER.encode(&relay.rsa.0);
        let relay = self.network.relays().iter().find(|known| known.rsa_fingerprint == fingerprint).unwrap();
        relay.kill().unwrap();
        self.killed.lock().unwrap().push(relay);
        true
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn short(&self) -> Duration {
        Duration::from_secs(10)
    }
}

impl Drop for ArtiStage<'_> {
    /// The other tests want these relays.
    fn drop(&mut self) {
        for relay in self.killed.lock().unwrap().drain(..) {
            if let Err(e) = relay.restart() {
                eprintln!("{} does not come back: {e:#}", relay.nickname);
            }
        }
    }
}

/// An engine of its own folder.
fn start(network: &Network, folder: &Path) -> Arc<ArtiEngine> {
    let [state_dir, cache_dir] = ["state", "cache"].map(|name| folder.join(name));
    for folder in [&state_dir, &cache_dir] {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).unwrap();
    }
    ArtiEngine::start(ArtiConfig { toml: network.arti_toml(), state_dir, cache_dir }).unwrap()
}

/// Runs the suite. One relay is killed on the way and started again at the end.
pub(crate) async fn conforms(network: &Network) {
    let folder = tempfile::tempdir().unwrap();
    let stage = ArtiStage { network, folder, clients: AtomicUsize::new(0), killed: Mutex::default() };
    conformance::all(&stage).await;
}
