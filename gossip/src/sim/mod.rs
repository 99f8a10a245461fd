//! A seeded simulation of whole clusters, for tests only (feature `sim`).
//!
//! This is a test harness: what cannot go on stops it.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

mod founder;

pub use founder::{FOUNDED, Founder, Identity, point, relay, sign};
