//! The WireGuard fast path: a faster route for links between members that are willing to know each
//! other's addresses.
//!
//! An [`Engine`] is a running WireGuard that carries byte streams between nodes. It works towards
//! a [`Desired`] state, and knows neither records nor gossip. [`Userspace`] is the engine inside
//! this process. [`WireguardRoute`] makes a [`crate::link::Route`] of any engine.

pub use engine::{
    Desired, Engine, EngineError, MOST_ENDPOINTS, MOST_PEERS, Peer, PeerProblem, PeerStatus, TunnelStream,
    channel_binding,
};
pub use keys::{WeakKey, WireguardKey, WireguardSecret};
pub use route::WireguardRoute;
pub use userspace::Userspace;

#[cfg(test)]
mod conformance;
mod engine;
mod keys;
mod route;
#[cfg(test)]
mod tests;
mod userspace;
