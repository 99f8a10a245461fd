//! RustBalance: one onion address, served by many machines.

pub mod keys;
pub mod store;
pub mod tor;
