//! RustBalance: one onion address, served by many machines.

pub mod keys;
pub mod tor;

// The engine's conformance suite names this crate from within and, included by the network tests, from without.
#[cfg(test)]
extern crate self as rustbalance;
