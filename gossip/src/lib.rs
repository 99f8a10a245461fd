//! The protocol core of RustBalance: everything on which the nodes of a cluster must agree. It is
//! pure: it uses no Tor, async runtime, IO, clock or randomness of its own (gossip/.clippy.toml
//! bans their types). The crate `rustbalance-mesh` transports the records.

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
