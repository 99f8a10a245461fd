//! The signed statements that nodes gossip.
//!
//! A node's own records (card, heartbeat, endpoint, report, intro points, lease, publication) are
//! signed by its key and carry a sequence number that rises over restarts. Facts (invitations,
//! revocations, services, renewals) are signed by the cluster's authority key, so that any node may
//! forward them.

pub use certificate::{
    AuthorityCertificate, Chain, ChainError, DiscoveryKey, MEMBERSHIP_SECONDS, Member, MemberCertificate,
    NEAR_END_SECONDS, Role,
};
pub use endpoint::Endpoint;
pub use fact::Fact;
pub use invitation::Invitation;
pub use kinds::{AnyFact, AnyRecord, KINDS, KindInfo, Listed, MAX_RECORD, OpenError, RecordKind, Signer};
pub use node::{
    Fitness, Heartbeat, IntroPoint, IntroPoints, Lease, MAX_INTRO_POINTS, MAX_SERVICES, MAX_SPECIFIED,
    MAX_SUBPROTOCOLS, NodeCard, PeriodId, Phase, PointNonce, Publication, PublishedPeriod, RelayId, ServedPoint,
    Subprotocol,
};
pub use own::{Keyed, NodeRecord, OutOfBounds};
pub(crate) use own::{MAX_PERIODS, check_points};
pub use renewal::Renewal;
pub use report::{BadText, NodeName, NodeReport, ProblemCode};
pub use revocation::Revocation;
pub use service::{Service, Setting};
pub use short::ShortHeartbeat;
pub use unknown::{MAX_KEY, UnknownFact, UnknownKey};

mod certificate;
mod endpoint;
mod fact;
mod invitation;
mod kinds;
mod node;
mod own;
mod renewal;
mod report;
mod revocation;
mod service;
mod short;
mod unknown;
