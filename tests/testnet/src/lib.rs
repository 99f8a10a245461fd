//! A private Tor network of C tor processes on loopback, for tests and the demo.
//!
//! [`Network::boot`] starts directory authorities, relays and a stock client, and waits until the client can use every
//! relay. Nothing reaches the internet. Everything is blocking, and everything is bounded in time.
//!
//! # What is left behind: nothing
//!
//! Every tor process, and every daemon of a [`cluster`], is recorded by its pid before it runs, and killed only after `/proc/PID/cmdline` shows that it is
//! still ours. Three things do the killing, each for what the one before it cannot see:
//!
//! 1. dropping [`Network`] (also while a panic unwinds);
//! 2. a *reaper*, a small `sh` in its own process group that waits for the end of a pipe only we hold: it acts when the
//!    harness ends in any other way, `kill -9` included;
//! 3. tor itself, which polls the harness's pid (`__OwningControllerProcess`), should the reaper be killed too.
//!
//! Leftovers of an earlier run are also swept when a network is booted at the same place.
//!
//! # Sharing
//!
//! [`Network::shared`] gives all tests of a process one network. Started under `rustbalance-testnet run DIR -- CMD`, it
//! attaches to that one instead, so that several test programs use one network.

// It listens and connects on loopback, for tests alone.
#![allow(clippy::disallowed_methods)]

mod cable;
pub mod chaos;
mod client;
pub mod cluster;
mod control;
mod decrypt;
mod facts;
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

pub use client::{Client, Warmth};
pub use control::{Control, Reply, ReplyLine};
pub use decrypt::{DecryptedDescriptor, DecryptedIntroPoint, decrypt};
pub use http::{Refusal, Response};
pub use network::Network;
pub use onion::OnionService;
pub use options::Options;
pub use published::PublishedDescriptor;
pub use relay::{Relay, Role};
pub use site::Site;

/// The variable that names a running network's folder; [`Network::shared`] attaches to it.
pub const ENV_DIR: &str = "RUSTBALANCE_TESTNET";
/// The variable that holds the address of the warm client's SOCKS port, for commands under `run`.
pub const ENV_SOCKS: &str = "RUSTBALANCE_TESTNET_SOCKS";
/// The variable that names the file with Arti's configuration for the network, for commands under `run`.
pub const ENV_ARTI: &str = "RUSTBALANCE_TESTNET_ARTI";
/// Set to anything, it keeps folders (and with them tor's logs) that would be removed.
pub const ENV_KEEP: &str = "RUSTBALANCE_TESTNET_KEEP";
