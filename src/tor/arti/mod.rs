//! The real engine, on Arti's public crates.

mod directories;
