//! The progress of a long operation, on standard error: a moving bar on a terminal, a line for each
//! new step elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::timeout;

use crate::tor::Engine;
use crate::tor::arti::ArtiEngine;

/// How long Tor's bootstrap may make no progress before it counts as failed.
const BOOTSTRAP_PATIENCE: Duration = Duration::from_secs(180);

/// A long operation under way. Its bar disappears when this is dropped.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    /// Starts the bar, if standard error is a terminal.
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(100);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, last: String::new() }
    }

    /// Shows the current step, and how far it is (0.0 to 1.0); `None` if that is not known.
    pub(super) fn step(&mut self, message: &str, fraction: Option<f32>) {
        match &self.bar {
            Some(bar) => {
                let form = match fraction {
                    Some(_) => "{spinner} {bar:24} {percent:>3}% {wide_msg}",
                    None => "{spinner} {wide_msg} {elapsed}",
                };
                if let Ok(style) = ProgressStyle::with_template(form) {
                    bar.set_style(style);
                }
                bar.set_position((fraction.unwrap_or_default().clamp(0.0, 1.0) * 100.0) as u64);
                bar.set_message(message.to_owned());
            }
            None if message != self.last => {
                let _ = writeln!(io::stderr(), "{message}");
            }
            None => {}
        }
        message.clone_into(&mut self.last);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Waits until Tor is ready, or does not get any further.
pub(super) async fn bootstrap(engine: &ArtiEngine, progress: &mut Progress) -> anyhow::Result<()> {
    let mut state = engine.bootstrap();
    let mut furthest = -1.0;
    let mut since = tokio::time::Instant::now();
    loop {
        let now = state.borrow_and_update().clone();
        if now.ready {
            return Ok(());
        }
        if now.fraction > furthest {
            (furthest, since) = (now.fraction, tokio::time::Instant::now());
        }
        let text = if now.message.is_empty() { "connecting to Tor".into() } else { format!("Tor: {}", now.message) };
        progress.step(&text, Some(now.fraction));
        let left = BOOTSTRAP_PATIENCE.saturating_sub(since.elapsed());
        match timeout(left, state.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => bail!("Tor has stopped: {}", now.message),
            Err(_) => bail!(
                "Tor's bootstrap does not get beyond {:.0} % ({}): check this machine's network and clock, and whether it needs \
                 bridges (--arti-config)",
                now.fraction * 100.0,
                now.message
            ),
        }
    }
}
