//! One relay of the network, and operations on it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::process::{self, NETWORK_RECORD};

/// What a relay does in addition to relaying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Votes on the consensus.
    Authority,
    /// Connects to addresses outside of the network; here these are loopback addresses.
    Exit,
    /// Nothing else.
    Middle,
}

/// One relay of the network. Like every relay here it is a directory of onion services, too.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Relay {
    /// Its nickname, which is also the name of its folder.
    pub nickname: String,
    /// What it does in addition to relaying.
    pub role: Role,
    /// Its RSA identity: 40 upper-case hexadecimal digits.
    pub rsa_fingerprint: String,
    /// Its Ed25519 identity: base64 without padding.
    pub ed25519_id: String,
    /// Its port on 127.0.0.1 for connections from relays and clients.
    pub or_port: u16,
    /// Its control port on 127.0.0.1.
    pub control_port: u16,
    /// An authority's directory port on 127.0.0.1; `None` for other relays.
    pub dir_port: Option<u16>,
    /// The fingerprint of an authority's long-term identity key; `None` for other relays.
    pub(crate) v3_identity: Option<String>,
    /// The network's folder.
    #[serde(skip)]
    pub(crate) base: PathBuf,
}

impl Relay {
    /// The folder with its log (`notice.log`) and its data.
    pub fn folder(&self) -> PathBuf {
        self.base.join(&self.nickname)
    }

    /// Whether its process exists. A frozen one does.
    pub fn is_running(&self) -> bool {
        process::running(&self.base, &self.nickname).is_some()
    }

    /// Kills it, as a crash would. Does nothing if it is not running.
    pub fn kill(&self) -> Result<()> {
        process::kill(&self.base, &self.nickname)
    }

    /// Starts it again with the same identity and an empty memory; kills it first if it runs.
    /// Returns when it has joined the network. The consensus may count it as running some seconds
    /// later.
    pub fn restart(&self) -> Result<()> {
        self.kill()?;
        let _ = fs::remove_file(self.folder().join("notice.log"));
        process::launch(&self.base, &self.nickname, NETWORK_RECORD)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !bootstrapped(&self.folder()) {
            if Instant::now() > deadline {
                bail!(
                    "{} did not come back within 30 s; its log ends with:\n{}",
                    self.nickname,
                    log_tail(&self.folder())
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Freezes it: its connections stay open, but it answers nothing.
    pub fn stop(&self) -> Result<()> {
        process::signal(&self.base, &self.nickname, Signal::STOP)
    }

    /// Lets a frozen relay go on.
    pub fn cont(&self) -> Result<()> {
        process::signal(&self.base, &self.nickname, Signal::CONT)
    }
}

/// Whether the tor that logs to `folder` is ready.
pub(crate) fn bootstrapped(folder: &std::path::Path) -> bool {
    fs::read_to_string(folder.join("notice.log")).is_ok_and(|log| log.contains("Bootstrapped 100%"))
}

/// The last lines that the tor in `folder` wrote to its output and to its log.
pub(crate) fn log_tail(folder: &std::path::Path) -> String {
    ["stdout", "notice.log"]
        .iter()
        .filter_map(|name| fs::read(folder.join(name)).ok())
        .flat_map(|text| {
            let text = String::from_utf8_lossy(&text).into_owned();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            let skip = lines.len().saturating_sub(6);
            lines.into_iter().skip(skip)
        })
        .collect::<Vec<_>>()
        .join("\n")
}
