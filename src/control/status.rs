//! What a node says of itself: the answer to [`super::Request::Status`], and the output of `status --json` as it is.
//!
//! Nothing in it is secret: ids, counts and the operator's own words.

use std::collections::BTreeMap;

use rustbalance_gossip::coordinator::Isolated;
use rustbalance_gossip::record::Role;
use rustbalance_gossip::view::Condition;
use serde::{Deserialize, Serialize};

/// The state of a node and its picture of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The master address.
    pub cluster: String,
    /// This node's own address.
    pub node: String,
    /// This node's role.
    pub role: Role,
    /// How this node is.
    pub phase: Condition,
    /// Since the daemon's start.
    pub uptime_seconds: u64,
    /// The connection to the Tor network.
    pub tor: Bootstrap,
    /// Who publishes, as far as this node knows.
    pub publisher: Option<PublisherStatus>,
    /// The members, this node among them.
    pub members: Vec<MemberStatus>,
    /// This node's introduction points.
    pub intro_points: Vec<IntroPointStatus>,
    /// Where this node stands in for others that do not answer.
    pub stand_ins: Vec<StandInStatus>,
    /// What is published, as far as this node knows.
    pub publication: Option<PublicationStatus>,
    /// Another publisher of the address that is no member, if this node has seen one in the last
    /// hours.
    pub stranger: Option<StrangerStatus>,
    /// The virtual ports and their targets on this node.
    pub ports: Vec<PortStatus>,
    /// What went through this node.
    pub traffic: TrafficStatus,
    /// What this node refused since start, by name.
    pub refused: BTreeMap<String, u64>,
    /// This node's links to other members.
    pub links: Vec<LinkStatus>,
    /// The invitations this node knows.
    pub invitations: Vec<InvitationStatus>,
    /// Tokens with which the key of the address was given to more nodes than they were made for,
    /// until acknowledged here.
    pub alarms: Vec<AlarmStatus>,
    /// How often the discovery key has been changed, as far as this node has the new ones.
    pub discovery_generation: u32,
    /// Open files that the system allows the daemon; `None` where there is no limit.
    #[serde(default)]
    pub files_allowed: Option<u64>,
    /// Open files that `[limits]` needs.
    #[serde(default)]
    pub files_needed: u64,
    /// Why this node does not publish, admit or rotate keys now, if it must not.
    pub isolated: Option<Isolated>,
}

/// How far the connection to Tor is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// 0.0 to 1.0.
    pub fraction: f32,
    /// True once circuits can be built.
    pub ready: bool,
    /// What is waited for, in words.
    pub message: String,
}

/// The publisher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublisherStatus {
    /// Its address.
    pub node: String,
    /// The term of its lease.
    pub term: u64,
    /// Whether it is this node.
    pub me: bool,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its address.
    pub node: String,
    /// Its role.
    pub role: Role,
    /// How it says it is; `None` if it has not been heard.
    pub phase: Option<Condition>,
    /// Whether this node believes it alive.
    pub alive: bool,
    /// Whether it is this node.
    pub me: bool,
    /// The invitation it joined with, by its id; `None` for the founder.
    pub invitation: Option<String>,
    /// How long ago its last sign of life came; `None` if none has.
    pub last_heard_seconds: Option<f64>,
    /// Introduction points it offers.
    pub intro_points: usize,
    /// Of these, those that the publisher wants published.
    pub published: usize,
    /// Lower is asked first to publish; `None` if it has not been heard.
    pub priority: Option<u8>,
    /// Its share of the introduction points; `None` if it has not been heard.
    pub weight: Option<u8>,
    /// The virtual ports it serves; `None` if it has not been heard.
    pub ports: Option<Vec<u16>>,
    /// How long ago its heartbeats showed last that two processes run with its key; `None` if they
    /// never have.
    pub doubled_seconds: Option<u64>,
}

/// One of this node's introduction points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntroPointStatus {
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// `KP_hs_ipt_sid`, in hexadecimal.
    pub session_key: String,
    /// Since it was established.
    pub age_seconds: u64,
    /// Introductions it has brought.
    pub introductions: u64,
}

/// An introduction point of another node, at which this one serves while the other does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandInStatus {
    /// Whose it is.
    pub node: String,
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// Introductions it has brought since this node serves at it.
    pub introductions: u64,
}

/// What the publisher wants published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationStatus {
    /// Who says so.
    pub node: String,
    /// In which term.
    pub term: u64,
    /// Period by period.
    pub periods: Vec<PublishedPeriodStatus>,
    /// The introduction points in the descriptor, sorted.
    pub intro_points: Vec<PublishedPointStatus>,
}

/// A publisher of the address that is no member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrangerStatus {
    /// How long ago a directory last held a descriptor of it in place of one of this node.
    pub seen_seconds: u64,
    /// False if only clients that it has authorized can read its descriptor.
    pub readable: bool,
}

/// What is published for one time period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPeriodStatus {
    /// Its number.
    pub number: u64,
    /// Its length.
    pub length_minutes: u32,
    /// The highest revision used.
    pub revision: u64,
    /// Directories responsible.
    pub directories: u16,
    /// Directories that hold the newest descriptor.
    pub confirmed: u16,
}

/// An introduction point in the descriptor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPointStatus {
    /// Whose.
    pub node: String,
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// `KP_hs_ipt_sid`, in hexadecimal.
    pub session_key: String,
}

/// A virtual port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// The port that clients see.
    pub port: u16,
    /// Where its streams go.
    pub target: String,
    /// Whether the target answers.
    pub healthy: bool,
    /// The last failure, if it does not.
    pub error: Option<String>,
}

/// What went through the proxy, since start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficStatus {
    /// Streams open now.
    pub streams_open: u64,
    /// Streams accepted.
    pub streams_total: u64,
    /// Bytes that clients sent.
    pub bytes_from_clients: u64,
    /// Bytes that clients got.
    pub bytes_to_clients: u64,
}

/// A link to another member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The other's address.
    pub peer: String,
    /// The route it goes over: "tor".
    pub route: String,
    /// What is known of that route: "proven", "degraded", "probing" or "unproven".
    pub state: String,
    /// Whether gossip with the other goes over this link: one for each peer does.
    pub carries: bool,
    /// Whether this node dialled.
    pub outgoing: bool,
    /// Since it was made.
    pub age_seconds: u64,
    /// Frames received.
    pub frames_in: u64,
    /// Frames sent.
    pub frames_out: u64,
    /// Bytes received, of frames and their lengths.
    pub bytes_in: u64,
    /// Bytes sent, likewise.
    pub bytes_out: u64,
    /// Messages dropped: of the other's because it sent too much, of ours because too many waited.
    pub dropped: u64,
    /// From the last question to its answer, in milliseconds; `None` before the first answer.
    pub round_trip_ms: Option<u64>,
}

/// An invitation: public, the token is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationStatus {
    /// The public half of the token, in hexadecimal.
    pub id: String,
    /// What the joiner becomes.
    pub role: Role,
    /// How many nodes may join with it.
    pub uses: u16,
    /// How many have.
    pub redeemed: u16,
    /// The addresses of those that have, members still or not.
    pub nodes: Vec<String>,
    /// When it ends, in seconds since the Unix epoch.
    pub expires: u64,
    /// Whether a node can join with it now.
    pub state: InvitationState,
}

/// The key of the address was given to more nodes than the operator wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmStatus {
    /// The invitation, by its id.
    pub invitation: String,
    /// How many nodes it was made for.
    pub uses: u16,
    /// The addresses of all nodes that joined with it.
    pub nodes: Vec<String>,
}

/// Whether an invitation still admits nodes, or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InvitationState {
    /// Nodes can join with it.
    Open,
    /// All its uses are taken.
    Used,
    /// More nodes have joined than may, at publishers that could not hear each other: some of them
    /// are expelled.
    Overdrawn,
    /// Taken back.
    Revoked,
    /// Past its end.
    Expired,
}

impl std::fmt::Display for InvitationState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Used => "used up",
            Self::Overdrawn => "overdrawn",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        })
    }
}
