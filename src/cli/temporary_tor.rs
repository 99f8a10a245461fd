//! A Tor client for the time of one command, in a directory of its own that is removed afterwards.

use anyhow::Context as _;

use super::progress::{Progress, bootstrap};
use crate::tor::Engine as _;
use crate::tor::arti::{ArtiConfig, ArtiEngine};

/// Connects to Tor with these settings of Arti (TOML), does `work`, and stops Tor again. A daemon
/// that runs keeps its own connection.
pub(super) async fn with_tor<T>(
    arti: String,
    progress: &mut Progress,
    work: impl AsyncFnOnce(&ArtiEngine, &mut Progress) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let folder = tempfile::Builder::new().prefix("rustbalance-tor-").tempdir().context("no temporary directory")?;
    let (state_dir, cache_dir) = (folder.path().join("state"), folder.path().join("cache"));
    let engine = ArtiEngine::start(ArtiConfig { toml: arti, state_dir, cache_dir })?;
    let outcome = match bootstrap(&engine, progress).await {
        Ok(()) => work(&engine, progress).await,
        Err(error) => Err(error),
    };
    engine.shutdown().await;
    outcome
}
