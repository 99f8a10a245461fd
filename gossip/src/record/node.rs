//! A node's own records.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::Chain;
use crate::bytes::{FixedBytes, VarBytes};
use crate::id::{ClusterId, NodeId, ServiceId};
use crate::signed::Statement;

/// Maximum number of introduction points in one record, and in one descriptor (rend-spec-v3:
/// clients reject more).
pub const MAX_INTRO_POINTS: usize = 20;

/// Maximum number of services of one cluster. A node has an [`IntroPoints`] (12 KiB) and a
/// [`Publication`] record (2 KiB) for each: 16 x 14 KiB, in base64 300 KiB of the 1 MiB that gossip
/// keeps of a node.
pub const MAX_SERVICES: usize = 16;

/// Maximum number of subprotocols in one record: more than Tor has defined for introductions, at 4
/// bytes each.
pub const MAX_SUBPROTOCOLS: usize = 16;

/// The phase of a node's life cycle. Its state for each service is its [`Fitness`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It has its certificate but has not reached the mesh.
    Joining,
    /// It takes part in the cluster.
    Active,
    /// It leaves all descriptors and still serves clients that come.
    Draining,
    /// It has said goodbye.
    Gone,
}

/// Whether a source can serve clients of one service, which decides whether its introduction points
/// may be listed in the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fitness {
    /// Its introduction points are open and its target answers.
    Healthy,
    /// It has been healthy since its start, but its target fails its health check now.
    Degraded,
    /// It leaves the descriptor and still serves clients that come.
    Draining,
    /// It has not been healthy since its start, or it has no introduction point.
    Down,
}

/// A node's card: its membership certificates and values that seldom change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCard {
    /// The cluster it is in.
    pub cluster: ClusterId,
    /// The node that signs.
    pub node: NodeId,
    /// Sequence number: rises with every card, also over restarts.
    pub seq: u64,
    /// The certificates of its membership.
    pub chain: Chain,
    /// Its mesh address; must be [`crate::address::mesh_address`] of the node id.
    pub address: Ipv6Addr,
    /// Priority in the election: nodes with a lower one publish first.
    pub priority: u8,
    /// Weight of its share of the introduction points relative to other nodes, 1 to 100.
    pub weight: u8,
    /// The program's version, for display only; at most 64 bytes.
    pub version: String,
    /// The virtual ports that the node serves: in rising order, none 0, at most
    /// [`NodeCard::MAX_PORTS`].
    pub ports: Vec<u16>,
}

impl NodeCard {
    /// Maximum number of virtual ports of one node.
    pub const MAX_PORTS: usize = 64;
    /// The priority of a node whose operator chose none.
    pub const DEFAULT_PRIORITY: u8 = 100;
    /// The weight of a node whose operator chose none, or whose card has not arrived yet.
    pub const DEFAULT_WEIGHT: u8 = 1;
}

impl Statement for NodeCard {
    const CONTEXT: &'static str = "rustbalance node card v1";
    const MAX_SIZE: usize = 4096;
}

/// A node's signed sign of life. Liveness is judged by heartbeats alone, never by the counters of
/// the gossip layer, which any peer can raise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The cluster it is in.
    pub cluster: ClusterId,
    /// The node that signs.
    pub node: NodeId,
    /// Sequence number: rises with every heartbeat, also over restarts.
    pub seq: u64,
    /// The phase of its life cycle.
    pub phase: Phase,
    /// Number of nodes that it hears now, at most 65,535. With it `status` distinguishes an
    /// isolated node from dead ones.
    pub hears: u16,
    /// Its clock, in seconds since the Unix epoch: shows the age of the heartbeat to a node that
    /// has heard none before.
    pub unix: u64,
    /// A random number of its process: two different numbers at a time mean two machines with one
    /// key.
    pub instance: u64,
}

impl Statement for Heartbeat {
    const CONTEXT: &'static str = "rustbalance heartbeat v2";
    const MAX_SIZE: usize = 512;
}

/// Both identities of a relay. C tor knows the relay of a circuit by the RSA one, Arti by either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelayId {
    /// SHA-1 fingerprint of the RSA identity key.
    pub rsa: FixedBytes<20>,
    /// Ed25519 identity key.
    pub ed25519: FixedBytes<32>,
}

impl RelayId {
    /// Both identities. Relays that share either one count as one relay, because some software
    /// identifies them by it.
    pub(crate) fn identities(&self) -> [&[u8]; 2] {
        [&self.rsa.0, &self.ed25519.0]
    }
}

impl std::fmt::Display for RelayId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "${}", data_encoding::HEXUPPER.encode(&self.rsa.0))
    }
}

/// Maximum total size of the link specifiers of one introduction point, in bytes: three times what
/// relays have today, and small enough that [`MAX_INTRO_POINTS`] such points fit into a descriptor.
pub const MAX_SPECIFIED: usize = 256;

/// An introduction point as a descriptor lists it (rend-spec-v3, section 2.5.2.2). All fields are
/// public.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IntroPoint {
    /// The relay that hosts the point.
    pub relay: RelayId,
    /// The relay's link specifiers, each encoded as in an EXTEND2 cell (type, length, body): 1 to 8
    /// of 2 to 64 bytes each, together at most [`MAX_SPECIFIED`] bytes.
    pub link_specifiers: Vec<VarBytes>,
    /// The relay's ntor onion key.
    pub onion_key: FixedBytes<32>,
    /// `KP_hs_ipt_sid`, Ed25519: identifies the point at its relay.
    pub session_key: FixedBytes<32>,
    /// `KP_hss_ntor`, Curve25519: clients encrypt introductions with it.
    pub encryption_key: FixedBytes<32>,
}

impl IntroPoint {
    /// Total size of its link specifiers in bytes.
    pub fn specified(&self) -> usize {
        self.link_specifiers.iter().map(|specifier| specifier.0.len()).sum()
    }
}

/// A random number from which, with its node's seed, the keys of one introduction point are
/// derived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PointNonce(pub FixedBytes<16>);

/// An introduction point as the node that serves at it announces it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServedPoint {
    /// The point as a descriptor lists it.
    pub point: IntroPoint,
    /// Its keys are derived from this and a seed that only its node and the publishers have, so
    /// that a publisher can stand in for the node.
    pub nonce: PointNonce,
}

/// A capability of the Tor protocol: the protocol's number and the version (tor-spec, "Subprotocol
/// versioning"). Relay=6 is (2, 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subprotocol(pub u8, pub u8);

/// A node's introduction points for one service, and whether it can serve the clients of that
/// service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntroPoints {
    /// The cluster it is in.
    pub cluster: ClusterId,
    /// The node that signs.
    pub node: NodeId,
    /// Sequence number: rises with every change, also over restarts.
    pub seq: u64,
    /// The service. A node has one such record for each service.
    pub service: ServiceId,
    /// Whether the node can serve clients of the service.
    pub fitness: Fitness,
    /// The introduction points, at most [`MAX_INTRO_POINTS`].
    pub points: Vec<IntroPoint>,
    /// The nonce of each point, in the same order.
    pub nonces: Vec<PointNonce>,
    /// The subprotocols that the node grants to clients who request them in their introduction: in
    /// rising order, at most [`MAX_SUBPROTOCOLS`]. Empty for nodes of versions without this field.
    #[serde(default)]
    pub subprotocols: Vec<Subprotocol>,
}

impl IntroPoints {
    /// The points, each with its nonce.
    pub fn served(&self) -> impl Iterator<Item = ServedPoint> + '_ {
        let pairs = self.points.iter().zip(&self.nonces);
        pairs.map(|(point, nonce)| ServedPoint { point: point.clone(), nonce: *nonce })
    }
}

impl Statement for IntroPoints {
    const CONTEXT: &'static str = "rustbalance intro points v2";
    const MAX_SIZE: usize = 12_288;
}

/// The right to publish, as its holder states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The node that signs and holds it.
    pub holder: NodeId,
    /// Sequence number: rises with every renewal, also over restarts.
    pub seq: u64,
    /// The term, which only rises from holder to holder.
    pub term: u64,
    /// The holder's priority when it claimed. With the term and the holder it decides between two
    /// claims to one term, so the record alone gives every node the same winner.
    pub priority: u8,
    /// Time to live after it was first received, in milliseconds. 0 gives the lease up.
    pub ttl_ms: u32,
}

impl Statement for Lease {
    const CONTEXT: &'static str = "rustbalance lease v1";
    const MAX_SIZE: usize = 512;
}

/// A time period of onion-service descriptors (rend-spec-v3, section 2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeriodId {
    /// The number of the period, counted from the epoch.
    pub number: u64,
    /// Length of the period in minutes.
    pub length_minutes: u32,
    /// Offset of the first period from the epoch, in seconds.
    pub offset_seconds: u32,
}

impl PeriodId {
    /// Longest period that Tor's consensus may set, in minutes.
    pub const MAX_MINUTES: u32 = 14_400;

    /// Start of the period, in seconds since the Unix epoch.
    pub fn start(&self) -> u64 {
        let length = u64::from(self.length_minutes) * 60;
        self.number.saturating_mul(length).saturating_add(self.offset_seconds.into())
    }
}

/// The state of a publisher's descriptors for one period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPeriod {
    /// The time period of the descriptors.
    pub period: PeriodId,
    /// The highest revision counter that the publisher has used.
    pub revision: u64,
    /// Number of responsible directories that hold its newest descriptor.
    pub confirmed: u16,
    /// Number of directories responsible for the period.
    pub directories: u16,
}

/// The descriptors that a publisher has published of one service. The next publisher uses higher
/// revisions, and `status` shows it on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The node that signs.
    pub node: NodeId,
    /// Sequence number: rises with every change, also over restarts.
    pub seq: u64,
    /// The service. A node has one such record for each service.
    pub service: ServiceId,
    /// The term in which it published.
    pub term: u64,
    /// The published periods, at most 8.
    pub periods: Vec<PublishedPeriod>,
}

impl Statement for Publication {
    const CONTEXT: &'static str = "rustbalance publication v2";
    const MAX_SIZE: usize = 2048;
}
