//! `rustbalance run`: the daemon, in the foreground, until a signal or `leave` stops it.

use clap::Args;
use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Context, runtime, signals};
use crate::config::Config;
use crate::node::{self, NodeError};
use crate::open_files;
use crate::store::{self, Store};
use crate::systemd;

#[derive(Args)]
pub(super) struct Options {}

pub(super) fn execute(context: &Context, _options: Options) -> anyhow::Result<()> {
    context.log_as_daemon()?;
    serve(context)
}

/// Runs the node of the state directory. The caller has started logging.
pub(super) fn serve(context: &Context) -> anyhow::Result<()> {
    // First, so that one error names all files with wrong permissions, and that nothing is changed
    // in a directory of a later release.
    store::inspect(&context.dir).map_err(NodeError::from)?;
    let config = Config::load(&context.dir).map_err(NodeError::from)?;
    node::preflight(&context.dir, &config.arti).map_err(NodeError::from)?;
    let threads = runtime::daemon_threads(config.threads);
    info!(version = env!("CARGO_PKG_VERSION"), dir = %context.dir.display(), threads, "starting");
    runtime::run_on(threads, serve_until_signal(context, config))
}

async fn serve_until_signal(context: &Context, config: Config) -> anyhow::Result<()> {
    let shutdown = cancel_on_signals()?;
    tokio::spawn(systemd::keep_watchdog());
    if let Err(error) = open_files::raise() {
        warn!(%error, "cannot raise the soft limit of open files to the hard one");
    }
    let store = Store::open(&context.dir).map_err(NodeError::from)?;
    let outcome = node::run(store, config, shutdown).await;
    systemd::stopping();
    Ok(outcome?)
}

/// A token that SIGTERM or SIGINT cancels; a second one of them ends the process at once. SIGHUP
/// only logs a warning. A signal that was ignored when the process started (as `nohup` does with
/// SIGHUP) stays ignored.
fn cancel_on_signals() -> std::io::Result<CancellationToken> {
    let ignored = signals::ignored_at_start();
    let mut terminate = signals::listen(SignalKind::terminate(), &ignored)?;
    let mut interrupt = signals::listen(SignalKind::interrupt(), &ignored)?;
    let mut hangup = signals::listen(SignalKind::hangup(), &ignored)?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                () = signals::next(&mut terminate) => "SIGTERM",
                () = signals::next(&mut interrupt) => "SIGINT",
                () = signals::next(&mut hangup) => {
                    warn!(
                        "SIGHUP: the daemon does not reload its configuration; to apply a changed one, restart it \
                         (`systemctl restart rustbalance`)"
                    );
                    continue;
                }
            };
            if stopped.is_cancelled() {
                warn!(signal = name, "second signal: ending at once");
                std::process::exit(i32::from(super::FAILED));
            }
            info!(signal = name, "stopping; a second signal ends the process at once");
            systemd::stopping();
            stopped.cancel();
        }
    });
    Ok(stop)
}
