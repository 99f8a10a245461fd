//! What a node says of itself.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::Chain;
use crate::bytes::{FixedBytes, VarBytes};
use crate::id::{ClusterId, NodeId, ServiceId};
use crate::signed::Statement;

/// Most intro points in one record, and in one descriptor (rend-spec-v3: clients refuse more).
pub const MAX_INTRO_POINTS: usize = 20;

/// Most services of one cluster. Of each a node has an [`IntroPoints`] and a [`Publication`] record: 16 x (12 + 2) KiB, in
/// base64 300 KiB of the 1 MiB that gossip keeps of a node.
pub const MAX_SERVICES: usize = 16;

/// Where a node is in its life cycle. What it does for each service says [`Fitness`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It has its certificate and has not reached the mesh.
    Joining,
    /// It takes part.
    Active,
    /// It leaves all descriptors and still serves the clients that come.
    Draining,
    /// It has said goodbye.
    Gone,
}

/// Whether a source can serve clients of one service. It decides which introduction points may stand in the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fitness {
    /// It serves clients.
    Healthy,
    /// It has served clients since its start; its target fails its health check now.
    Degraded,
    /// It leaves the descriptor and still serves the clients that come.
    Draining,
    /// It has not served any client since its start: it has no introduction point, or its target does not answer.
    Down,
}

/// A node's card: its proof of membership and what seldom changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCard {
    /// The cluster it is in.
    pub cluster: ClusterId,
    /// Who speaks.
    pub node: NodeId,
    /// Rises with every card, over restarts too.
    pub seq: u64,
    /// The certificates.
    pub chain: Chain,
    /// Its mesh address; must be [`crate::address::mesh_address`] of the node id.
    pub address: Ipv6Addr,
    /// Lower is asked first to publish.
    pub priority: u8,
    /// Share of intro points relative to the others', 1 to 100.
    pub weight: u8,
    /// The program's version, for people.
    pub version: String,
    /// The virtual ports that the node serves: rising, none 0, at most [`NodeCard::MAX_PORTS`].
    pub ports: Vec<u16>,
}

impl NodeCard {
    /// Most virtual ports of one node.
    pub const MAX_PORTS: usize = 64;
    /// The priority of a node whose operator chose none.
    pub const DEFAULT_PRIORITY: u8 = 100;
    /// The weight of a node whose operator chose none, or whose card has not come yet.
    pub const DEFAULT_WEIGHT: u8 = 1;
}

impl Statement for NodeCard {
    const CONTEXT: &'static str = "rustbalance node card v1";
    const MAX_SIZE: usize = 4096;
}

/// Says "I live, and this is how I am". Liveness is judged by these alone, never by the gossip layer's own counters,
/// which any peer can raise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The cluster it is in.
    pub cluster: ClusterId,
    /// Who speaks.
    pub node: NodeId,
    /// Rises with every beat, over restarts too.
    pub seq: u64,
    /// Where it is in its life cycle.
    pub phase: Phase,
    /// The nodes it hears now: lets `status` tell one's own isolation from the others' death. At most 65,535.
    pub hears: u16,
    /// Its clock, in seconds since the Unix epoch: tells who has never heard it how old the beat is.
    pub unix: u64,
    /// Drawn at random by each process: two numbers at once are two machines with one key.
    pub instance: u64,
}

impl Statement for Heartbeat {
    const CONTEXT: &'static str = "rustbalance heartbeat v2";
    const MAX_SIZE: usize = 512;
}

/// A relay by both its identities. C tor knows the relay of a circuit by the RSA one, Arti by either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelayId {
    /// SHA-1 fingerprint of the RSA identity key.
    pub rsa: FixedBytes<20>,
    /// Ed25519 identity key.
    pub ed25519: FixedBytes<32>,
}

impl RelayId {
    /// Both identities: two relays that share either are one to somebody.
    pub(crate) fn identities(&self) -> [&[u8]; 2] {
        [&self.rsa.0, &self.ed25519.0]
    }
}

impl std::fmt::Display for RelayId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "${}", data_encoding::HEXUPPER.encode(&self.rsa.0))
    }
}

/// Longest link specifiers of one introduction point, together, in bytes: three times what relays have today, and so few that
/// [`MAX_INTRO_POINTS`] such points fit into a descriptor.
pub const MAX_SPECIFIED: usize = 256;

/// One introduction point, as far as a descriptor needs to know it (rend-spec-v3, section 2.5.2.2). All public.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IntroPoint {
    /// The relay.
    pub relay: RelayId,
    /// Its link specifiers, each encoded as in an EXTEND2 cell (type, length, body). At most 8 of at most 64 bytes, together at
    /// most [`MAX_SPECIFIED`].
    pub link_specifiers: Vec<VarBytes>,
    /// The relay's ntor onion key.
    pub onion_key: FixedBytes<32>,
    /// `KP_hs_ipt_sid`: names the point to its relay, Ed25519.
    pub session_key: FixedBytes<32>,
    /// `KP_hss_ntor`: encrypts introductions, Curve25519.
    pub encryption_key: FixedBytes<32>,
}

impl IntroPoint {
    /// What its link specifiers take together, in bytes.
    pub fn specified(&self) -> usize {
        self.link_specifiers.iter().map(|specifier| specifier.0.len()).sum()
    }
}

/// Names the keys of one introduction point among all that its node's seed gives. Drawn at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PointNonce(pub FixedBytes<16>);

/// An introduction point as the node that serves at it tells of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServedPoint {
    /// What a descriptor says of it.
    pub point: IntroPoint,
    /// What its keys are derived with, besides a seed that only its node and the publishers have: so that one of them can
    /// stand in for the node.
    pub nonce: PointNonce,
}

/// The intro points at which a node waits for the clients of one service now, and whether it can serve them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntroPoints {
    /// The cluster it is in.
    pub cluster: ClusterId,
    /// The node that signs.
    pub node: NodeId,
    /// Rises with every change, over restarts too.
    pub seq: u64,
    /// Whose clients are meant. The record has a key of its own for each service.
    pub service: ServiceId,
    /// Whether the node can serve them.
    pub fitness: Fitness,
    /// At most [`MAX_INTRO_POINTS`].
    pub points: Vec<IntroPoint>,
    /// One for each point, in the same order.
    pub nonces: Vec<PointNonce>,
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
    /// Who speaks and holds it.
    pub holder: NodeId,
    /// Rises with every renewal, over restarts too.
    pub seq: u64,
    /// Only rises, from holder to holder.
    pub term: u64,
    /// The holder's priority when it claimed: with the term and the holder it decides between two claims of one term,
    /// so that the record alone tells every node the same winner.
    pub priority: u8,
    /// For how long it is good after it was first seen, in milliseconds. 0 gives it up.
    pub ttl_ms: u32,
}

impl Statement for Lease {
    const CONTEXT: &'static str = "rustbalance lease v1";
    const MAX_SIZE: usize = 512;
}

/// A time period of onion-service descriptors (rend-spec-v3, section 2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeriodId {
    /// Its number.
    pub number: u64,
    /// Its length in minutes.
    pub length_minutes: u32,
    /// Offset of the first period from the epoch, in seconds.
    pub offset_seconds: u32,
}

impl PeriodId {
    /// Longest period that Tor's consensus may ask for.
    pub const MAX_MINUTES: u32 = 14_400;

    /// When it begins, in seconds since the Unix epoch.
    pub fn start(&self) -> u64 {
        let length = u64::from(self.length_minutes) * 60;
        self.number.saturating_mul(length).saturating_add(self.offset_seconds.into())
    }
}

/// What a publisher has put on the directories for one period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPeriod {
    /// Which period.
    pub period: PeriodId,
    /// The highest revision it has used.
    pub revision: u64,
    /// Directories that hold its newest descriptor.
    pub confirmed: u16,
    /// Directories responsible.
    pub directories: u16,
}

/// What a publisher has published of one service: the next publisher uses higher revisions, and `status` shows it on
/// every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The node that signs.
    pub node: NodeId,
    /// Rises with every change, over restarts too.
    pub seq: u64,
    /// Whose descriptors these are. The record has a key of its own for each service.
    pub service: ServiceId,
    /// The term it published in.
    pub term: u64,
    /// At most 8 periods.
    pub periods: Vec<PublishedPeriod>,
}

impl Statement for Publication {
    const CONTEXT: &'static str = "rustbalance publication v2";
    const MAX_SIZE: usize = 2048;
}
