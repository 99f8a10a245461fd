//! Joining: how a node that has only the master address and a token becomes a member
//! (docs/PROTOCOL.md, section 7).
//!
//! ```text
//! joiner                                          publisher (a worker may carry it, unread)
//!   Hello      version, cluster, nonce,        ->
//!              ephemeral key
//!                                              <- Challenge  version, nonce, ephemeral key
//!   Redeem     node id, invitation, clock,     ->
//!              signatures by token key            checks, records the redemption, then:
//!              and node key
//!                                              <- Answer     role, publisher, sealed parcel
//! ```
//!
//! Both signatures of the joiner cover all earlier messages, so a captured join is useless against
//! another challenge. The parcel is sealed for the joiner's ephemeral key. It carries the
//! publisher's signature over the same transcript, and the publisher's certificates up to the
//! master address. A peer that has not proved that it holds a token learns only the version, and
//! the publisher does nothing costly for it.
//!
//! [`joiner`] and [`admitter`] decide, without a clock or a socket; [`redeem`], [`Door`] and
//! [`carry`] do the IO; [`found`] and [`persist_joined`] write the state directory; [`invite()`]
//! makes a token.

pub use admitter::{Admission, Admissions, Effect, Event, Outcome, Publisher, Redemption};
pub use founding::{found, found_with, persist_joined};
pub use invite::{InviteError, MAX_LIFETIME, Terms, invite};
pub use joiner::{JoinError, Joined, Joiner, Step};
pub use message::JoinRefusal;
pub use parcel::{JoinedService, MAX_PORTS, Parcel, ParcelError, PublisherSecrets};
pub use task::{Admitter, Door, DoorLimits, carry, redeem, refuse};
pub use token::{Token, TokenError};
pub use transcript::Fresh;

mod admitter;
mod founding;
mod invite;
mod joiner;
mod message;
mod parcel;
mod task;
#[cfg(test)]
mod tests;
mod token;
pub mod transcript;

/// Maximum difference between the clocks of joiner and publisher, in seconds.
pub const MAX_SKEW: u64 = 600;
