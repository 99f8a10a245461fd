//! RustBalance on a private Tor network: the daemons run as processes, the clients are stock C tor,
//! and python3-stem reads the descriptors that the directories hold. Every claim of the README
//! about a cluster's behaviour has a scenario here.
//!
//! Most scenarios share one network. Few clusters run on it at the same time, so that load on the
//! machine does not distort measurements. A failed scenario leaves the daemons' logs in
//! `network-failures` in cargo's target folder.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]
#![allow(clippy::disallowed_methods)]

mod carrier;
mod cgo;
mod changes_of_time_period;
mod chaos;
mod damage;
mod deaths;
mod disks;
#[cfg(test)]
mod engine;
mod eviction;
mod freezing;
#[path = "../hostile/hand.rs"]
mod hand;
mod hostile;
mod hosts;
mod introducer;
#[path = "../hostile/intruder.rs"]
mod intruder;
mod joining;
mod lockout;
mod needles;
#[path = "../hostile/raw_gossip.rs"]
mod raw_gossip;
mod returning;
mod rolling;
mod secrets;
mod services;
mod serving;
mod support;
mod twin;
mod vanity;
mod wire;
