//! The real engine, on Arti's public crates.
//!
//! `config` reads Arti's configuration, `client` holds the Tor client and watches it; `dial` and
//! `own_service` use it as it is. The master address has no `tor-hsservice` behind it:
//! `intro_point` makes the points, `introduction` reads what clients send there, `rendezvous` meets
//! them, `stream` hands their requests over, `directories` puts descriptors where clients look. `attempts` decides when
//! any of them may try to build a circuit.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance_gossip::id::{NodeId, OnionAddress, ServiceId};
use rustbalance_gossip::record::PeriodId;
use tokio::sync::{mpsc, watch};

use super::{
    Bootstrap, Directory, Engine, Incoming, IntroRequest, Listening, OpenIntroPoint, OwnService, Period, TorError,
};
use crate::keys::DiscoverySecret;
use crate::stream::BoxStream;

pub use config::{ArtiConfig, check};
pub use introduction::{Asked, Unanswerable};

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
mod memory;
mod own_service;
mod rendezvous;
mod salvage;
mod stream;

/// Filters, in the form of `tracing`, that leave out what Arti repeats with every circuit while the network cannot be
/// reached: ten lines a second that say no more than the one of `tor_guardmgr`, which stays.
pub const REPEATED_WARNINGS: &str = "tor_circmgr::hspool=error,tor_netdir=error";

/// The engine on Arti. Dropped, it stops.
///
/// Arti itself lets go of its directories only at the network's next consensus. Another engine of the same process may
/// be started on them all the same: it reads them and takes them over as soon as they are free. One that cannot connect
/// that way stops after half an hour.
pub struct ArtiEngine {
    shared: Arc<client::Shared>,
}

impl ArtiEngine {
    /// Makes the Tor client and returns; it connects to the network in the background, see [`Engine::bootstrap`].
    /// Must be called within a Tokio runtime. An error names what is wrong with the configuration.
    pub fn start(config: ArtiConfig) -> Result<Arc<Self>, TorError> {
        Ok(Arc::new(Self { shared: client::start(config)? }))
    }

    /// Ends all circuits and services, and returns once they have ended, or after 5 s.
    pub async fn shutdown(&self) {
        self.shared.close("it was shut down").await;
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
}
