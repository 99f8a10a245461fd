//! RustBalance: one onion address, served by many machines.

pub mod config;
pub mod health;
pub mod keys;
pub mod proxy;
pub mod tor;
