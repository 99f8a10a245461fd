//! What RustBalance nodes must agree on. No Tor, no sockets, no clock, no randomness of its own.

pub mod address;
pub mod bytes;
pub mod codec;
pub mod coordinator;
pub mod facts;
pub mod id;
pub mod lease;
pub mod liveness;
pub mod mesh;
pub mod outage;
pub mod plan;
pub mod record;
pub mod signed;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod stand_in;
pub mod time;
pub mod view;
