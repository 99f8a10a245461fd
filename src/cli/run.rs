//! `rustbalance run`: the daemon, in the foreground, until it is told to stop.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Context;
use crate::config::Config;
use crate::node::{self, NodeError};
use crate::store::Store;
use crate::systemd;

#[derive(Args)]
pub(super) struct Options {}

pub(super) async fn execute(context: &Context, _options: Options) -> anyhow::Result<()> {
    context.log_as_daemon()?;
    serve(context).await
}

/// Runs the node of the state directory. Logging has been started.
pub(super) async fn serve(context: &Context) -> anyhow::Result<()> {
    let config = Config::load(&context.dir).map_err(NodeError::from)?;
    let shutdown = stop_on_signals()?;
    tokio::spawn(systemd::keep_watchdog());
    info!(version = env!("CARGO_PKG_VERSION"), dir = %context.dir.display(), "starting");
    let store = Store::open(&context.dir).map_err(NodeError::from)?;
    let outcome = node::run(store, config, shutdown).await;
    systemd::stopping();
    Ok(outcome?)
}

/// Cancelled by SIGTERM, SIGINT or SIGHUP; a second one ends the process at once.
fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hangup.recv() => "SIGHUP",
            };
            if told.is_cancelled() {
                warn!("{name} again: ending at once");
                std::process::exit(i32::from(super::FAILED));
            }
            info!("{name}: stopping; once more ends at once");
            systemd::stopping();
            told.cancel();
        }
    });
    Ok(stop)
}
