//! What RustBalance nodes must agree on. Pure: no Tor, no runtime, no IO, no clock, no randomness of its own
//! (gossip/.clippy.toml bans them by type). `rustbalance-mesh` carries the records.

pub mod address;
pub mod bytes;
pub mod codec;
pub mod coordinator;
pub mod facts;
pub mod hash;
pub mod id;
pub mod lease;
pub mod liveness;
pub mod neighbours;
pub mod outage;
pub mod plan;
pub mod record;
pub mod signed;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod source;
pub mod stand_in;
pub mod time;
pub mod view;
