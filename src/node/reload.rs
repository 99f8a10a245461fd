//! Applies the configuration file again while the daemon runs: on SIGHUP, and for `rustbalance
//! reload`.

use std::path::Path;

use tracing::{info, warn};

use super::preflight::check_arti;
use super::warn_of_few_files;
use crate::causes::with_causes;
use crate::config::{Change, Config, ConfigError, LiveConfig, Reloaded};
use crate::redact;
use crate::systemd;
use crate::tor::TorError;

/// Why a configuration was refused. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// A file cannot be read, or has mistakes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Tor's settings are not valid: the next start would fail.
    #[error("Tor's settings cannot be used")]
    Tor(#[source] TorError),
}

/// Reads the configuration in the state directory `dir` and applies it, or refuses it whole. The
/// log has one line about it, without onion addresses.
///
/// # Errors
/// See [`ReloadError`].
pub fn reload(dir: &Path, live: &LiveConfig) -> Result<Reloaded, ReloadError> {
    // Dropped at the end, which reports that the reload is over.
    let _reloading = systemd::reloading();
    let outcome = live.reload(|| read(dir));
    match &outcome {
        Ok(Reloaded { applied, after_restart }) if applied.is_empty() && after_restart.is_empty() => {
            info!(name: "config_unchanged", "the configuration was read again: nothing has changed");
        }
        Ok(Reloaded { applied, after_restart }) => {
            info!(
                name: "config_changed",
                applied = listed(applied), after_restart = listed(after_restart),
                "the configuration has changed"
            );
            warn_of_few_files(live.proxy().borrow().streams);
        }
        Err(error) => {
            let error = redact::onion_addresses(&in_one_line(&with_causes(error)));
            warn!(name: "config_refused", error, "the configuration is refused, and the running one stays");
        }
    }
    outcome
}

fn read(dir: &Path) -> Result<Config, ReloadError> {
    let config = Config::load(dir)?;
    check_arti(dir, &config.arti).map_err(ReloadError::Tor)?;
    Ok(config)
}

fn listed(changes: &[Change]) -> String {
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A list of mistakes without its line breaks.
fn in_one_line(text: &str) -> String {
    text.replace(":\n  ", ": ").replace("\n  ", "; ")
}

#[cfg(test)]
mod tests;
