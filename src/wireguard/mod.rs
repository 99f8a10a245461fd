//! The WireGuard fast path: a faster route for links between members that are willing to know each
//! other's addresses.
//!
//! An [`Engine`] is a running WireGuard that carries byte streams between nodes. It works towards
//! a [`Desired`] state, and knows neither records nor gossip. [`Userspace`] is the engine inside
//! this process, [`Kernel`] that of the Linux kernel. [`WireguardRoute`] makes a
//! [`crate::link::Route`] of any engine.
//!
//! [`WireguardPlan`] computes the desired state from the members' announcements, which [`open`]
//! opens, and from this node's own keys ([`OwnKeys`]), which rotate daily.

pub use announcement::{Announcement, AnnouncementError, DatedKey, MOST_KEYS, is_possible};
pub use engine::{
    Desired, Engine, EngineError, MOST_ENDPOINTS, MOST_PEERS, Peer, PeerProblem, PeerStatus, TunnelStream,
    channel_binding,
};
pub use host::default_addresses;
pub use kernel::{Kernel, KernelError};
pub use keys::{WeakKey, WireguardKey, WireguardSecret};
pub use own_keys::{LIFETIME, OVERLAP, OwnKeys};
pub use plan::{NotAPeer, PlanAction, Situation, WireguardPlan};
pub use route::WireguardRoute;
pub use sealing::{SealError, open, seal};
pub use slot::EngineSlot;
pub use userspace::Userspace;

mod announcement;
#[cfg(test)]
mod conformance;
mod engine;
mod host;
mod kernel;
mod keys;
mod own_keys;
mod plan;
mod route;
mod sealing;
mod slot;
#[cfg(test)]
mod tests;
pub mod userspace;
