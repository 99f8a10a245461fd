//! RustBalance: one onion address, served by many machines.

// Tests connect to their own targets on loopback.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod backoff;
pub mod balance;
pub mod blocking;
pub mod bucket;
mod causes;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod counters;
pub mod descriptors;
pub mod discovery;
pub mod drive;
pub mod frame;
pub mod health;
pub mod join;
pub mod keys;
pub mod link;
pub mod log;
pub mod node;
mod places;
pub mod proxy;
pub mod publish;
mod shell;
pub mod store;
pub mod stream;
mod sync;
mod syntax;
pub mod systemd;
pub mod tor;
pub mod typed;

// The conformance suites are compiled into this crate and into the network tests, and name it
// `rustbalance` in both.
#[cfg(test)]
extern crate self as rustbalance;
