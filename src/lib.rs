//! RustBalance: one onion address, served by many machines.

// Tests have targets of their own on loopback.
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

// The conformance suites name this crate from within and, included by the network tests, from without.
#[cfg(test)]
extern crate self as rustbalance;
