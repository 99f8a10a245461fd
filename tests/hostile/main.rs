//! Hostile peers against whole daemons, on the Tor network in memory: real links, real gossip, real joins.
//!
//! Each test is one hostility of somebody with real keys where it takes any. Each shows that the
//! cluster stays healthy and serves all the while, that nothing hostile is believed, and that
//! `status` counts what was refused. In [`tor`] nobody is hostile: a node loses its Tor client; nor
//! in [`newcomer`]: a node joins; nor in [`operators`]; nor in [`upgrades`], [`later`] and [`services`]. In [`outages`] an observer looks.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]
#![allow(clippy::disallowed_methods)]

mod authority;
mod away;
mod clients;
mod copies;
mod disks;
mod door;
mod evicted;
#[path = "../fixtures/state.rs"]
mod fixtures;
mod hand;
mod intruder;
mod later;
mod links;
mod member;
mod newcomer;
mod operators;
mod outages;
mod raw_gossip;
mod records;
mod returning;
mod services;
mod tokens;
mod tor;
mod town;
mod upgrades;
mod workers;
