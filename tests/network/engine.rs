//! Runs the conformance suite of Tor engines on the Arti engine, on a private Tor network.

use std::fs::DirBuilder;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use conformance::Visitor;
use parking_lot::Mutex;
use rustbalance::tor::arti::{ArtiConfig, ArtiEngine};
use rustbalance::tor::{Engine, TorError};
use rustbalance_gossip::id::OnionAddress;
use rustbalance_gossip::record::RelayId;
use rustbalance_testnet::{Network, Options, Relay, Warmth};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[path = "../../src/tor/conformance.rs"]
mod conformance;

/// The private network and the Tor clients that the suite has started.
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

    async fn guest(&self, to: OnionAddress, port: u16, limit: Duration) -> Result<Visitor, TorError> {
        // Starting a client blocks until its process is ready.
        let client = tokio::task::block_in_place(|| self.network.client("guest", Warmth::Warm)).unwrap();
        let late = |_| TorError::Timeout { what: "a stock client's visit".into(), limit };
        let stream = timeout(limit, socks_connect(client.socks(), to, port)).await.map_err(late)?;
        let stream = stream.map_err(|error| TorError::Unreachable {
            to: to.to_string(),
            why: error.to_string(),
            source: Some(error.into()),
        })?;
        Ok(Visitor { stream: Box::new(stream), life: Box::new(client) })
    }

    async fn kill_relay(&self, relay: RelayId) -> bool {
        let fingerprint = data_encoding::HEXUPPER.encode(&relay.rsa.0);
        let relay = self.network.relays().iter().find(|known| known.rsa_fingerprint == fingerprint).unwrap();
        relay.kill().unwrap();
        self.killed.lock().push(relay);
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
    /// Restarts the killed relays for the other tests.
    fn drop(&mut self) {
        for relay in self.killed.lock().drain(..) {
            if let Err(error) = relay.restart() {
                eprintln!("{} cannot be restarted: {error:#}", relay.nickname);
            }
        }
    }
}

/// Opens a connection through a C tor client's SOCKS port (RFC 1928, without authentication, by
/// host name).
pub(crate) async fn socks_connect(socks: SocketAddr, to: OnionAddress, port: u16) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(socks).await?;
    stream.write_all(&[5, 1, 0]).await?;
    stream.read_exact(&mut [0; 2]).await?;
    let name = to.to_string();
    let request = [&[5, 1, 0, 3, u8::try_from(name.len()).unwrap()], name.as_bytes(), &port.to_be_bytes()].concat();
    stream.write_all(&request).await?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).await?;
    if answer[1] == 0 { Ok(stream) } else { Err(io::Error::other(format!("SOCKS error {}", answer[1]))) }
}

/// Starts an engine with its state in `folder`.
fn start(network: &Network, folder: &Path) -> Arc<ArtiEngine> {
    let [state_dir, cache_dir] = ["state", "cache"].map(|name| folder.join(name));
    for folder in [&state_dir, &cache_dir] {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).unwrap();
    }
    ArtiEngine::start(ArtiConfig { toml: network.arti_toml(), state_dir, cache_dir }).unwrap()
}

/// Runs the suite, which kills a relay; the relay is restarted at the end.
pub(crate) async fn conforms(network: &Network) {
    let folder = tempfile::tempdir().unwrap();
    let stage = ArtiStage { network, folder, clients: AtomicUsize::new(0), killed: Mutex::default() };
    conformance::all(&stage).await;
}

/// Uses its own network, because the suite kills a relay.
#[test]
fn the_arti_engine_passes_the_conformance_suite() {
    let network = Network::boot(Options::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(conforms(&network));
}
