//! The product on a real Tor network: daemons as processes, stock C tor clients, and python3-stem to read what the
//! directories hold. Every claim that the README makes of a cluster's behaviour has a scenario here.
//!
//! All scenarios share one network and take turns on it, so that what is measured is the product and not the machine.
//! A failed one leaves the daemons' logs in `network-failures` in cargo's target folder.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]
#![allow(clippy::disallowed_methods)]

mod carrier;
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
mod introducer;
#[path = "../hostile/intruder.rs"]
mod intruder;
mod joining;
mod lockout;
mod needles;
#[path = "../hostile/raw_gossip.rs"]
mod raw_gossip;
mod returning;
mod secrets;
mod services;
mod serving;
mod support;
mod twin;
mod wire;
