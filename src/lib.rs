//! RustBalance: one onion address, served by many machines.
