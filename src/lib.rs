//! RustBalance: one onion address, served by many machines.

pub mod balance;
pub mod keys;
pub mod publish;
pub mod store;
pub mod tor;
