//! `rustbalance run`: the daemon, in the foreground, until a signal or `leave` stops it.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Context, runtime, signals};
use crate::blocking::on_disk;
use crate::config::{Config, LiveConfig, LogConfig};
use crate::log::{self, LogLevel};
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
    // Before anything takes time: a signal that arrives meanwhile waits until it can be handled.
    let signals = Signals::listen()?;
    // Next, so that one error names all files with wrong permissions, and that nothing is changed
    // in a directory of a later release.
    store::inspect(&context.dir).map_err(NodeError::from)?;
    let config = Config::load(&context.dir).map_err(NodeError::from)?;
    node::preflight(&context.dir, &config.arti).map_err(NodeError::from)?;
    let threads = runtime::daemon_threads(config.threads);
    info!(name: "starting", version = env!("CARGO_PKG_VERSION"), dir = %context.dir.display(), threads, "starting");
    runtime::run_on(threads, serve_until_signal(context, config, signals))
}

async fn serve_until_signal(context: &Context, config: Config, signals: Signals) -> anyhow::Result<()> {
    let (live, shutdown) = (Arc::new(LiveConfig::new(config)), CancellationToken::new());
    tokio::spawn(signals.follow(context.dir.clone(), Arc::clone(&live), shutdown.clone()));
    tokio::spawn(follow_log_config(live.log()));
    tokio::spawn(log::report_repeated());
    if let Err(error) = open_files::raise() {
        warn!(name: "open_files_raise_failed", %error, "cannot raise the soft limit of open files to the hard one");
    }
    let store = Store::open(&context.dir).map_err(NodeError::from)?;
    let outcome = node::run(store, live, shutdown).await;
    systemd::stopping();
    Ok(outcome?)
}

/// Logs as the configuration says, now and after each reload.
async fn follow_log_config(mut config: watch::Receiver<LogConfig>) {
    loop {
        let LogConfig { level, safe_logging } = *config.borrow_and_update();
        log::set_safe(safe_logging);
        if !log::set_level(level) && level.is_some() {
            warn!(
                name: "log_setting_without_effect",
                "[log] level has no effect, because {} is set", log::FILTER_VARIABLE
            );
        }
        debug!(level = level.map(LogLevel::name), "the level of the log is set");
        if config.changed().await.is_err() {
            return;
        }
    }
}

/// The signals that the daemon listens for. A signal that was ignored when the process started (as
/// `nohup` does with SIGHUP) stays ignored.
struct Signals {
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
    hangup: Option<Signal>,
}

impl Signals {
    /// Listens from now on. Signals that arrive before the daemon's runtime exists are kept for it.
    fn listen() -> std::io::Result<Self> {
        // tokio keeps the signals of a process in one place, whichever runtime has asked for them.
        let first = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _entered = first.enter();
        let ignored = signals::ignored_at_start();
        Ok(Self {
            terminate: signals::listen(SignalKind::terminate(), &ignored)?,
            interrupt: signals::listen(SignalKind::interrupt(), &ignored)?,
            hangup: signals::listen(SignalKind::hangup(), &ignored)?,
        })
    }

    /// Cancels `stop` on SIGTERM or SIGINT; a second one of them ends the process at once. SIGHUP
    /// has the configuration in `dir` read again, until the daemon stops.
    async fn follow(mut self, dir: PathBuf, live: Arc<LiveConfig>, stop: CancellationToken) {
        loop {
            let name = tokio::select! {
                () = signals::next(&mut self.terminate) => "SIGTERM",
                () = signals::next(&mut self.interrupt) => "SIGINT",
                () = signals::next(&mut self.hangup) => {
                    if !stop.is_cancelled() {
                        // The outcome is logged.
                        let _ = on_disk(|| node::reload(&dir, &live));
                    }
                    continue;
                }
            };
            if stop.is_cancelled() {
                warn!(name: "second_signal", signal = name, "second signal: ending at once");
                log::finish();
                std::process::exit(i32::from(super::FAILED));
            }
            info!(name: "stopping_by_signal", signal = name, "stopping; a second signal ends the process at once");
            systemd::stopping();
            stop.cancel();
        }
    }
}
