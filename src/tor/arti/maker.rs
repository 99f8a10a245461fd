//! Makes Tor clients, one after another, that share one state directory and one cache on disk.

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arti_client::config::TorClientConfig;
use arti_client::{BootstrapBehavior, TorClient};
use tokio::time::{sleep, timeout};
use tor_rtcompat::PreferredRuntime;

use super::config::{ArtiConfig, configure};
use super::salvage::{Salvage, Verdict};
use crate::blocking::on_disk;
use crate::causes::with_causes;
use crate::tor::TorError;

/// How long to wait until a dropped client releases the cache, and the interval of the checks. A
/// client that was completely made releases the cache only when it receives a new consensus, so
/// never if it failed before it requested one.
pub(super) const RELEASE_WAIT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(100));

/// The lock file in Arti's cache. Only the client that holds the lock writes there; in Arti all
/// others wait for it without a time limit.
pub(super) const CACHE_LOCK: &str = "dir.lock";

/// Makes clients that use the same state directory and cache; before each, sets damaged files
/// aside.
pub(super) struct Maker {
    config: TorClientConfig,
    runtime: PreferredRuntime,
    pub(super) salvage: Salvage,
    state_dir: PathBuf,
    pub(super) cache_dir: PathBuf,
}

impl Maker {
    pub(super) fn new(config: &ArtiConfig) -> Result<Self, TorError> {
        let runtime = PreferredRuntime::current()
            .map_err(|error| TorError::Config("there is no Tokio runtime".into(), Some(Box::new(error))))?;
        let ArtiConfig { state_dir, cache_dir, .. } = config.clone();
        let salvage = Salvage::new(&state_dir, &cache_dir);
        Ok(Self { config: configure(config)?, runtime, salvage, state_dir, cache_dir })
    }

    /// True if a client holds the cache's lock. False if the lock file cannot be opened: Arti then
    /// reports the error itself.
    pub(super) fn cache_is_held(&self) -> bool {
        let lock = File::options().read(true).write(true).open(self.cache_dir.join(CACHE_LOCK));
        lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Waits until the failed client releases the cache: a new client could only read it before.
    /// The error contains `failed`, the reason why that client failed.
    pub(super) async fn wait_cache_released(&self, failed: &str) -> Result<(), TorError> {
        let (limit, pause) = RELEASE_WAIT;
        let free = async {
            while on_disk(|| self.cache_is_held()) {
                sleep(pause).await;
            }
        };
        timeout(limit, free).await.map_err(|_| TorError::State {
            dir: self.state_dir.clone(),
            why: format!("{failed}; another attempt needs a new process, because this client keeps its cache locked"),
        })
    }

    pub(super) fn make(&mut self) -> Result<Arc<TorClient<PreferredRuntime>>, TorError> {
        self.salvage.set_aside_damaged();
        loop {
            let made = TorClient::with_runtime(self.runtime.clone())
                .config(self.config.clone())
                .bootstrap_behavior(BootstrapBehavior::Manual)
                .create_unbootstrapped();
            let error = match made {
                Ok(tor) => return Ok(tor),
                Err(error) => error,
            };
            match self.salvage.judge(&error, true) {
                Verdict::Again => {}
                Verdict::Wait => return Err(TorError::State { dir: self.state_dir.clone(), why: with_causes(&error) }),
                Verdict::Hopeless(why) => return Err(why),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_client_releases_its_cache() {
        let folder = tempfile::tempdir().unwrap();
        let [state_dir, cache_dir] = ["state", "cache"].map(|name| folder.path().join(name));
        let config = ArtiConfig { toml: String::new(), state_dir, cache_dir };
        let mut maker = Maker::new(&config).unwrap();
        maker.wait_cache_released("there is none").await.unwrap();
        let tor = maker.make().unwrap();
        assert!(maker.cache_is_held());
        drop(tor);
        maker.wait_cache_released("it was dropped").await.unwrap();
    }
}
