//! The engine for the real Tor network, on Arti's public crates.
//!
//! `config` reads Arti's configuration; `client` holds the Tor client and watches it; `dial` and
//! `own_service` use its normal interface. A service of the cluster cannot run on `tor-hsservice`,
//! so the other modules implement the service side: `intro_point` opens introduction points,
//! `introduction` reads INTRODUCE2 cells, `rendezvous` builds the circuit to the client, `stream`
//! passes on its stream requests, and `directories` uploads descriptors. `visit` is the client side
//! of an introduction, for checks of this node's own services. `attempts` decides when any of them
//! may build a circuit.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::id::{NodeId, OnionAddress, ServiceId};
use rustbalance_gossip::record::PeriodId;
use tokio::sync::{mpsc, watch};

use super::{
    Bootstrap, CircuitCounts, Directory, Engine, ExportedCircuitId, Incoming, IntroRequest, Listening, NetworkTime,
    OpenCircuit, OpenIntroPoint, OwnService, Period, TorError, Visit, VisitError,
};
use crate::keys::DiscoverySecret;
use crate::stream::BoxStream;

pub use config::{ArtiConfig, check};
pub use introduction::{ClientRequest, IntroductionError};

mod attempts;
mod client;
mod config;
mod dial;
mod directories;
pub mod disaster;
mod intro_point;
mod introduction;
mod keys;
mod lateness;
mod maker;
mod own_service;
mod rendezvous;
mod salvage;
mod stream;
mod visit;

/// Log filters, in the syntax of `tracing`, that suppress the warnings which Arti repeats with
/// every circuit while the network is unreachable: ten lines a second. The one line of
/// `tor_guardmgr` that reports the same stays.
pub const REPEATED_WARNINGS: &str = "tor_circmgr::hspool=error,tor_netdir=error";

/// The folder of guards, circuit timeouts and vanguards in Arti's state directory, a JSON file
/// each.
const STATE_FILES: &str = "state";

/// The engine on Arti. Dropping it stops it.
///
/// After that, Arti releases its state directory and cache only at the network's next consensus. A
/// new engine of the same process can be started on them earlier: it only reads them until they are
/// free, then takes them over. If it cannot connect in this state, it stops after half an hour.
pub struct ArtiEngine {
    shared: Arc<client::Shared>,
}

impl ArtiEngine {
    /// Makes the Tor client, which connects to the network in the background (see
    /// [`Engine::bootstrap`]). Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// If the configuration is not valid, or the files of the Tor client cannot be used.
    pub fn start(config: ArtiConfig) -> Result<Arc<Self>, TorError> {
        Ok(Arc::new(Self { shared: client::start(config)? }))
    }
}

impl Drop for ArtiEngine {
    fn drop(&mut self) {
        self.shared.stop("it is no longer used");
    }
}

#[async_trait]
impl Engine for ArtiEngine {
    fn bootstrap(&self) -> watch::Receiver<Bootstrap> {
        self.shared.bootstrap.clone()
    }

    async fn dial(&self, to: OnionAddress, port: u16, limit: Duration) -> Result<BoxStream, TorError> {
        dial::dial(&self.shared, to, port, limit).await
    }

    fn trust_discovery(&self, node: NodeId, keys: &[&DiscoverySecret]) -> Result<(), TorError> {
        dial::trust_discovery(&self.shared, node, keys)
    }

    async fn listen(
        &self,
        service: OwnService,
        streams: mpsc::Sender<Incoming>,
    ) -> Result<Box<dyn Listening>, TorError> {
        own_service::listen(Arc::clone(&self.shared), service, streams).await
    }

    async fn open_intro_point(
        &self,
        request: IntroRequest,
        streams: mpsc::Sender<Incoming>,
    ) -> Result<Box<dyn OpenIntroPoint>, TorError> {
        intro_point::open(Arc::clone(&self.shared), request, streams).await
    }

    fn time(&self) -> NetworkTime {
        self.shared.time()
    }

    fn client_circuits(&self) -> CircuitCounts {
        self.shared.circuits.counts()
    }

    fn open_client_circuits(&self) -> Vec<OpenCircuit> {
        self.shared.circuits.open()
    }

    fn close_client_circuit(&self, id: ExportedCircuitId) -> bool {
        self.shared.circuits.close(id)
    }

    fn close_idle_circuits(&self, idle: Duration) {
        self.shared.circuits.close_idle(idle);
    }

    async fn publication(&self, service: ServiceId) -> Result<Vec<Period>, TorError> {
        self.shared.live()?.directories.publication(service).await
    }

    fn network_changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.clone()
    }

    async fn upload(
        &self,
        to: &Directory,
        period: PeriodId,
        descriptor: &str,
        limit: Duration,
    ) -> Result<(), TorError> {
        self.shared.live()?.directories.upload(to, period, descriptor, limit).await
    }

    async fn fetch(
        &self,
        from: &Directory,
        service: ServiceId,
        period: PeriodId,
        limit: Duration,
    ) -> Result<Option<String>, TorError> {
        self.shared.live()?.directories.fetch(from, service, period, limit).await
    }

    async fn client_directories(&self, service: ServiceId) -> Result<(PeriodId, Vec<Directory>), TorError> {
        self.shared.live()?.directories.of_clients(service)
    }

    async fn visit(&self, visit: Visit, limit: Duration) -> Result<(), VisitError> {
        visit::visit(&self.shared, visit, limit).await
    }

    fn renew_circuits(&self) {
        // A client that has stopped has no circuits.
        let Ok(live) = self.shared.live() else { return };
        if let Err(error) = live.pool.retire_all_circuits() {
            tracing::warn!(name: "circuits_give_up_failed", %error, "cannot give up the circuits that wait to be used");
        }
    }

    async fn shutdown(&self) {
        self.shared.close("it was shut down").await;
    }
}

/// Copies the guards and what else should outlive a client from the state directory of one into
/// that of the next: a client with new guards each time could be led to a relay of an attacker.
///
/// # Errors
/// If a file cannot be copied.
pub fn carry_over(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (from.join(STATE_FILES), to.join(STATE_FILES));
    fs::DirBuilder::new().mode(0o700).create(&to)?;
    let entries = match fs::read_dir(&from) {
        // The client has not stored anything.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_file() && Path::new(&name).extension().is_some_and(|it| it == "json") {
            let copy = to.join(name);
            fs::copy(entry.path(), &copy)?;
            File::open(copy)?.sync_all()?;
        }
    }
    File::open(&to)?.sync_all()?;
    to.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
