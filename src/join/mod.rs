//! Joining: how a node with nothing but the master address and a token becomes a member (DESIGN, section 3).
//!
//! ```text
//! joiner                                                        publisher (perhaps through a worker, unread)
//!   Hello      version, cluster, nonce, ephemeral key        ->
//!                                                            <- Challenge  version, nonce, ephemeral key
//!   Redeem     node id, invitation, clock,                   ->
//!              signatures by token key and node key             checks, records the redemption, then:
//!                                                            <- Answer     role, publisher, sealed parcel
//! ```
//!
//! Both signatures of the joiner are over everything before them, so a captured join is worth nothing against another
//! challenge. The parcel is sealed for the joiner's ephemeral key and carries the publisher's signature over the same
//! transcript, and its certificates up to the master address. Who has not proven to hold a token learns nothing but the
//! version; the publisher does nothing costly for them.
//!
//! [`joiner`] and [`admitter`] decide, without a clock or a socket; [`redeem`], [`Door`] and [`carry`] move the bytes;
//! [`found`] and [`persist_joined`] write the state directory; [`invite`] makes a token.

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

pub use admitter::{Admission, Admissions, Effect, Event, Outcome, Publisher, Redemption};
pub use founding::{MEMBERSHIP_SECONDS, found, found_with, persist_joined};
pub use invite::{InviteError, MAX_LIFETIME, Terms, invite};
pub use joiner::{JoinError, Joined, Joiner, Step};
pub use message::Refusal;
pub use parcel::{JoinedService, MAX_PORTS, Parcel, ParcelError, PublisherSecrets};
pub use task::{Admitter, Door, DoorLimits, carry, redeem, refuse};
pub use token::{Token, TokenError};
pub use transcript::Fresh;

/// How far the clocks of joiner and publisher may be apart, in seconds.
pub const MAX_SKEW: u64 = 600;
