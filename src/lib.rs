//! RustBalance: one onion address, served by many machines.

pub mod frame;
pub mod join;
pub mod keys;
pub mod store;
pub mod tor;
