//! A private Tor network of C tor processes on loopback, for tests and the demo.
//!
//! [`Network::boot`] starts directory authorities, relays and a stock client, and waits until the
//! client can use every relay. Nothing reaches the internet. All calls block, and every wait has a
//! time limit.
//!
//! # Nothing is left behind
//!
//! The pid of every tor process, and of every daemon of a [`cluster`], is recorded before the
//! process runs. The process is killed only after `/proc/PID/cmdline` shows that it is still ours.
//! Three mechanisms kill, each for the cases that the one before it misses:
//!
//! 1. dropping [`Network`], also while a panic unwinds;
//! 2. a *reaper*, a small `sh` in its own process group that waits for the end of a pipe which only
//!    the harness holds: it acts when the harness ends in any other way, including `kill -9`;
//! 3. tor itself, which polls the harness's pid (`__OwningControllerProcess`), in case the reaper
//!    is killed too.
//!
//! Booting a network also ends what an earlier run left in the same folder.
//!
//! # Sharing
//!
//! [`Network::shared`] gives all tests of a process one network. Under `rustbalance-testnet run` it
//! attaches to that command's network instead, so that several test programs share it.
//!
//! # Examples
//!
//! A cluster of three nodes, and a stock client that fetches its address (not run here: it takes a
//! minute and needs Debian's `tor`).
//!
//! ```no_run
//! use rustbalance_testnet::cluster::Cluster;
//! use rustbalance_testnet::{Network, Options};
//!
//! # fn main() -> anyhow::Result<()> {
//! let network = Network::boot(Options::default())?;
//! let names = ["alpha", "beta", "gamma"];
//! let (cluster, _nodes) = Cluster::start(&network, "target/debug/rustbalance", &names)?;
//! let (served_by, elapsed) = cluster.fetch()?;
//! println!("{served_by} answered after {elapsed:?}");
//! # Ok(())
//! # }
//! ```

// This crate listens and connects on loopback, and only tests use it.
#![allow(clippy::disallowed_methods)]

pub use client::{Client, Warmth};
pub use control::{Control, Reply, ReplyLine};
pub use decrypt::{DecryptedDescriptor, DecryptedIntroPoint, decrypt};
pub use http::{Refusal, Response};
pub use network::Network;
pub use onion::{OnionService, Uploads};
pub use options::Options;
pub use published::PublishedDescriptor;
pub use relay::{Relay, Role};
pub use site::Site;

mod cable;
pub mod chaos;
mod client;
pub mod cluster;
mod control;
mod decrypt;
mod facts;
mod helper;
pub mod hosts;
mod http;
mod keys;
pub mod namespace;
mod network;
mod onion;
mod options;
mod process;
mod published;
mod relay;
mod site;
mod torrc;

/// The variable that names a running network's folder; [`Network::shared`] attaches to it.
pub const ENV_DIR: &str = "RUSTBALANCE_TESTNET";
/// The variable that holds the address of the warm client's SOCKS port, for commands under `run`.
pub const ENV_SOCKS: &str = "RUSTBALANCE_TESTNET_SOCKS";
/// The variable that names the file with Arti's configuration for the network, for commands under
/// `run`.
pub const ENV_ARTI: &str = "RUSTBALANCE_TESTNET_ARTI";
/// If this is set to any value, folders (and tor's logs in them) are kept that would otherwise be
/// removed.
pub const ENV_KEEP: &str = "RUSTBALANCE_TESTNET_KEEP";
