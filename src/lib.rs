//! RustBalance: one onion address, served by many machines.

pub mod cli;
pub mod config;
pub mod control;
pub mod health;
pub mod keys;
pub mod log;
pub mod proxy;
pub mod systemd;
pub mod tor;
