//! What RustBalance nodes must agree on.
//!
//! Pure: no Tor, no runtime, no IO, no clock, no randomness of its own (`gossip/.clippy.toml` bans
//! them by type). `rustbalance_mesh` carries the records. The way in:
//!
//! * [`coordinator::Coordinator`] is one node's part in the cluster:
//!   `handle(event, now) -> actions`.
//! * [`record`] has everything that nodes sign, [`signed`] how it is signed and verified.
//! * [`view::View`] is the verified picture of the cluster; [`lease`] elects the publisher from it,
//!   [`plan`] chooses the introduction points of a descriptor.
//!
//! # Examples
//!
//! A cluster of one: the node waits for others in vain, then takes the lease and publishes.
//!
//! ```
//! use std::time::Duration;
//!
//! use ed25519_dalek::SigningKey;
//! use rustbalance_gossip::coordinator::{Action, Coordinator, Event, Leadership, Settings};
//! use rustbalance_gossip::id::{AuthorityId, ClusterId, NodeId, ServiceId};
//! use rustbalance_gossip::record::{AuthorityCertificate, Member, MemberCertificate, Role};
//! use rustbalance_gossip::signed::{Sign, Verified};
//! use rustbalance_gossip::time::Now;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The key of the address certifies an authority, and that certifies a member.
//! let [address, authority, node] = [1, 2, 3].map(|seed| SigningKey::from_bytes(&[seed; 32]));
//! let cluster = ClusterId::named_by(ServiceId::from_public_key(address.public_key()));
//! let founded = 1_800_000_000;
//! let certificate = AuthorityCertificate {
//!     cluster,
//!     authority: AuthorityId::from_public_key(authority.public_key()),
//!     issued: founded,
//! };
//! let membership = MemberCertificate {
//!     cluster,
//!     node: NodeId::from_public_key(node.public_key()),
//!     role: Role::Publisher,
//!     issued: founded,
//!     expires: founded + 365 * 86_400,
//!     invitation: None,
//! };
//! let member = Member {
//!     authority: Verified::sign(certificate, &address)?,
//!     certificate: Verified::sign(membership, &authority)?,
//! };
//!
//! // First start, a random instance number, no term on disk yet.
//! let mut coordinator = Coordinator::new(Settings::new(1, 42, 0), Box::new(node), member);
//! let mut now = Now { mono: Duration::ZERO, unix: founded + 60 };
//! let mut events = vec![Event::Tick];
//! let term = 'publishes: loop {
//!     for event in std::mem::take(&mut events) {
//!         for action in coordinator.handle(event, now) {
//!             match action {
//!                 // A shell writes the term to disk before it answers.
//!                 Action::StoreTerm(term) => events.push(Event::TermStored(term)),
//!                 Action::Leadership(Leadership::Publisher { term }) => break 'publishes term,
//!                 // Records to announce, and what this example has no use for.
//!                 _ => {}
//!             }
//!         }
//!     }
//!     if events.is_empty() {
//!         now = now.plus(Duration::from_secs(1));
//!         events.push(Event::Tick);
//!     }
//! };
//! assert_eq!(term, 1);
//! # Ok(())
//! # }
//! ```

pub mod address;
pub mod bytes;
pub mod codec;
pub mod contact;
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
