//! The state of a node as it reports it: the answer to [`super::Request::Status`], and unchanged
//! the output of `status --json`.
//!
//! Nothing in it is secret: ids, counts, and texts from the operator's configuration.

use std::collections::BTreeMap;

use rustbalance_gossip::coordinator::Isolated;
use rustbalance_gossip::record::Role;
use rustbalance_gossip::view::Condition;
use serde::{Deserialize, Serialize};

use super::CanaryStatus;
use super::problem::Problem;
use crate::display::short;
use crate::display::time;

/// The state of a node, and its view of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The cluster's id, the address of its first service.
    pub cluster: String,
    /// This node's own address.
    pub node: String,
    /// This node's role.
    pub role: Role,
    /// This node's condition.
    pub phase: Condition,
    /// Time since the daemon's start, or since its Tor client was replaced, in seconds. What is
    /// counted since the start is counted from then on.
    pub uptime_seconds: u64,
    /// The connection to the Tor network.
    pub tor: Bootstrap,
    /// Tor clients that were replaced within the process.
    #[serde(default)]
    pub tor_renewals: TorRenewals,
    /// The publisher, as far as this node knows.
    pub publisher: Option<PublisherStatus>,
    /// The members, this node among them.
    pub members: Vec<MemberStatus>,
    /// This node's introduction points.
    pub intro_points: Vec<IntroPointStatus>,
    /// The introduction points at which this node stands in for silent nodes.
    pub stand_ins: Vec<StandInStatus>,
    /// The published descriptors, as far as this node knows.
    pub publication: Option<PublicationStatus>,
    /// What each directory of the descriptor has confirmed; empty unless this node is the
    /// publisher.
    #[serde(default)]
    pub directories: Vec<DirectoryStatus>,
    /// Another publisher of the address, which is not a member, if this node has seen one in the
    /// last three hours.
    pub other_publisher: Option<OtherPublisherStatus>,
    /// The virtual ports and their targets on this node.
    pub ports: Vec<PortStatus>,
    /// Client traffic of this node.
    pub traffic: TrafficStatus,
    /// What this node holds for its clients now, and the bounds.
    #[serde(default)]
    pub usage: UsageStatus,
    /// Refusals since the daemon's start, by the name of their counter.
    pub refused: BTreeMap<String, u64>,
    /// This node's links to other members.
    pub links: Vec<LinkStatus>,
    /// The invitations this node knows.
    pub invitations: Vec<InvitationStatus>,
    /// Invitations with which the key of the address was given to more nodes than they were made
    /// for, until acknowledged here.
    pub alarms: Vec<AlarmStatus>,
    /// The generation of this node's newest discovery key: the number of revocations that it
    /// counts.
    pub discovery_generation: u32,
    /// Open files that the system allows the daemon; `None` where there is no limit.
    #[serde(default)]
    pub files_allowed: Option<u64>,
    /// Free space on the disk of the state directory, in bytes; `None` if the system does not say.
    #[serde(default)]
    pub disk_free_bytes: Option<u64>,
    /// Open files that `[limits]` needs.
    #[serde(default)]
    pub files_needed: u64,
    /// Why this node must not publish, admit or rotate keys now; `None` if it may.
    pub isolated: Option<Isolated>,
    /// How this machine's clock compares with others.
    #[serde(default)]
    pub clock: ClockStatus,
    /// The faster route between members that know each other's addresses.
    #[serde(default)]
    pub wireguard: WireguardStatus,
    /// What is wrong and what to do, the worst first: [`Status::find_problems`].
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// What this node found when it used its services as a client.
    #[serde(default)]
    pub canary: CanaryStatus,
}

impl Status {
    /// Why this node does not serve new clients now, in a sentence for the operator; `None` if it
    /// does.
    pub fn unready(&self) -> Option<String> {
        let published = self.members.iter().any(|member| member.me && member.published > 0);
        match self.phase {
            _ if !self.tor.ready => Some(format!("Tor is not ready: {}", self.tor.message)),
            Condition::Healthy if published => None,
            Condition::Healthy => Some("this node's introduction points are not published yet".into()),
            phase => Some(format!("this node is {phase}: see `rustbalance status`")),
        }
    }
}

/// The progress of the connection to Tor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// From 0.0 to 1.0, when it is complete.
    pub fraction: f32,
    /// True once circuits can be built.
    pub ready: bool,
    /// The step that it waits for, as a text for the operator.
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
    /// Time for which its lease is still good if it does not renew it, in seconds. It renews it
    /// long before.
    #[serde(default)]
    pub lease_left_seconds: u64,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its address.
    pub node: String,
    /// Its role.
    pub role: Role,
    /// The condition that it has announced; `None` if it has not been heard.
    pub phase: Option<Condition>,
    /// Whether this node believes it alive.
    pub alive: bool,
    /// Whether it is this node.
    pub me: bool,
    /// The invitation it joined with, by its id; `None` for the founder.
    pub invitation: Option<String>,
    /// How long ago its last sign of life came, in seconds; `None` if none has.
    pub last_heard_seconds: Option<f64>,
    /// The number of introduction points that it offers.
    pub intro_points: usize,
    /// The number of these that the publisher wants published.
    pub published: usize,
    /// Its priority as a publisher, the lowest first; `None` if it has not been heard.
    pub priority: Option<u8>,
    /// Its share of the introduction points relative to the others', 1 to 100; `None` if it has not
    /// been heard.
    pub weight: Option<u8>,
    /// The virtual ports it serves; `None` if it has not been heard.
    pub ports: Option<Vec<u16>>,
    /// How long ago its heartbeats last showed that two processes run with its key, in seconds;
    /// `None` if they never have.
    pub doubled_seconds: Option<u64>,
    /// When its membership ends unless it is renewed, in seconds since the Unix epoch; 0 in the
    /// answer of an older daemon.
    #[serde(default)]
    pub membership_ends: u64,
    /// The time until then, in seconds.
    #[serde(default)]
    pub membership_left_seconds: u64,
    /// The name that its operator gave it, if any. Not unique.
    #[serde(default)]
    pub name: Option<String>,
    /// The version of its program, as its card states it; `None` if it has not been heard.
    #[serde(default)]
    pub version: Option<String>,
    /// The problems that it reports of itself: names as in [`ProblemKind`](super::ProblemKind), and
    /// perhaps others of a later version.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl MemberStatus {
    /// The node for a person: the beginning of its address, after its name if it has one.
    pub(crate) fn label(&self) -> String {
        match &self.name {
            Some(name) => format!("{name} ({})", short(&self.node)),
            None => short(&self.node).into(),
        }
    }
}

/// One of this node's introduction points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntroPointStatus {
    /// The address whose clients it brings; empty in the answer of an older daemon.
    #[serde(default)]
    pub service: String,
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// `KP_hs_ipt_sid`, in hexadecimal.
    pub session_key: String,
    /// Time since it was established, in seconds.
    pub age_seconds: u64,
    /// Introductions it has brought.
    pub introductions: u64,
}

/// An introduction point of a silent node at which this node stands in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandInStatus {
    /// The node whose point it is.
    pub node: String,
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// Introductions that it has brought since this node began to serve at it.
    pub introductions: u64,
}

/// The descriptors that the publisher wants published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationStatus {
    /// The publisher.
    pub node: String,
    /// The term of its lease.
    pub term: u64,
    /// The periods that are published.
    pub periods: Vec<PublishedPeriodStatus>,
    /// The introduction points in the descriptor, sorted.
    pub intro_points: Vec<PublishedPointStatus>,
}

/// A publisher of the address that is not a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherPublisherStatus {
    /// How long ago a directory last held its descriptor in place of one of this node, in seconds.
    pub seen_seconds: u64,
    /// False if only authorized clients can read its descriptor.
    pub readable: bool,
}

/// The descriptor of one time period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPeriodStatus {
    /// Its number.
    pub number: u64,
    /// Its length, in minutes.
    pub length_minutes: u32,
    /// The highest revision used.
    pub revision: u64,
    /// Directories responsible.
    pub directories: u16,
    /// Directories that hold the newest descriptor.
    pub confirmed: u16,
}

/// Tor clients that were replaced, because they had stopped for good or no client got through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorRenewals {
    /// How many, since the start of the process.
    pub count: u64,
    /// When the last one was, in seconds since the Unix epoch.
    pub last: Option<u64>,
    /// Why the last one was.
    pub why: Option<String>,
}

/// A directory of a descriptor, as the publisher knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryStatus {
    /// The service whose descriptor it is.
    pub service: String,
    /// The number of the time period.
    pub period: u64,
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// The revision that it confirmed last, by accepting or by returning it; null if it has
    /// confirmed none since this node began to publish, or has returned something else.
    pub revision: Option<u64>,
    /// When it confirmed that, in seconds since the Unix epoch.
    pub confirmed_at: Option<u64>,
    /// Whether that is the newest descriptor.
    pub current: bool,
    /// Attempts to upload or to read back that have failed in a row.
    pub failures: u32,
}

/// An introduction point in the descriptor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPointStatus {
    /// The node whose point it is.
    pub node: String,
    /// The relay, as `$FINGERPRINT`.
    pub relay: String,
    /// `KP_hs_ipt_sid`, in hexadecimal.
    pub session_key: String,
}

/// A virtual port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// The address that has the port; empty in the answer of an older daemon.
    #[serde(default)]
    pub service: String,
    /// The port that clients see.
    pub port: u16,
    /// Where its streams go.
    pub target: String,
    /// What is asked of the target: `connect`, or as in `HTTP GET /health`; empty in the answer of
    /// an older daemon.
    #[serde(default)]
    pub check: String,
    /// Whether the target answers as it should.
    pub healthy: bool,
    /// The last failure, if it does not.
    pub error: Option<String>,
}

/// Client traffic through the proxy since the daemon's start.
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

/// What a node holds for its clients now, and how much it may hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageStatus {
    /// Resident memory of the daemon, in bytes, pages of its program file included; `None` where
    /// the system does not say.
    pub memory_bytes: Option<u64>,
    /// Bytes that may wait in the daemon for slow clients and targets; above that, the circuits
    /// that hold most are closed. `None` where the system does not say how much memory there is.
    pub waiting_bytes_allowed: Option<u64>,
    /// Clients' circuits open now.
    pub circuits_open: u64,
    /// Clients' circuits that may be open at once: `[limits] open_rendezvous`, or less on a host
    /// with little memory.
    pub circuits_allowed: u64,
    /// Clients' circuits being built now.
    pub circuits_making: u64,
    /// Clients' circuits that may be in the making at once.
    pub circuits_making_allowed: u64,
    /// Clients' streams that may be open at once: `[limits] streams`, or less if the system allows
    /// too few open files.
    pub streams_allowed: u64,
}

/// A link to another member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The other's address.
    pub peer: String,
    /// The route it goes over: "tor".
    pub route: String,
    /// The state of that route: "proven", "degraded", "probing" or "unproven".
    pub state: String,
    /// Whether gossip with the other goes over this link: one for each peer does.
    pub carries: bool,
    /// Whether this node dialled.
    pub outgoing: bool,
    /// Time since it was made, in seconds.
    pub age_seconds: u64,
    /// Frames received.
    pub frames_in: u64,
    /// Frames sent.
    pub frames_out: u64,
    /// Bytes received, of frames and their length fields.
    pub bytes_in: u64,
    /// Bytes sent, likewise.
    pub bytes_out: u64,
    /// Messages dropped, in both directions together: received ones above the rate limit, and own
    /// ones because the queue of the link was full.
    pub dropped: u64,
    /// The last measured round trip, in milliseconds; `None` before the first answer.
    pub round_trip_ms: Option<u64>,
}

/// WireGuard on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardStatus {
    /// Whether it runs.
    pub state: WireguardSwitch,
    /// Why it does not run although it is switched on; `None` otherwise.
    pub problem: Option<String>,
    /// Where it listens, as address and UDP port.
    pub listens: Vec<String>,
    /// The addresses that this node announces to the other members.
    pub endpoints: Vec<String>,
    /// The other members; empty while it does not run.
    pub peers: Vec<WireguardPeerStatus>,
}

/// How this machine's clock compares with others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// Seconds by which it is ahead, negative if it is behind; `None` if nothing to compare it with
    /// is known.
    pub ahead_seconds: Option<i64>,
    /// What says so: `directory` (the least possible difference), `relays` or `members`.
    pub witness: Option<String>,
    /// True if it is proven to be off by more than half an hour. Then this node does not publish.
    pub proven: bool,
}

impl ClockStatus {
    /// Seconds from which on a difference is a problem. Heartbeats take some seconds, and clocks
    /// that a time service keeps differ by less than one.
    const WARN_AT: u64 = 60;

    /// What is wrong with the clock and what to do, as a sentence; `None` if nothing is.
    pub fn problem_text(&self) -> Option<String> {
        let ahead = self.ahead_seconds.filter(|ahead| self.proven || ahead.unsigned_abs() >= Self::WARN_AT)?;
        let direction = if ahead > 0 { "ahead" } else { "behind" };
        let witness = match self.witness.as_deref() {
            Some("directory") => "by what the directory of the Tor network says, at the least",
            Some("relays") => "by the clocks of several relays",
            _ => "by the median of the other members",
        };
        let effect = match self.proven {
            true => "this node does not publish until it is right",
            false => "from half an hour on, nodes ignore each other",
        };
        let off = time(ahead.unsigned_abs());
        Some(format!(
            "this machine's clock is {off} {direction}, {witness}: set it (`timedatectl` shows its time service); {effect}"
        ))
    }
}

impl WireguardStatus {
    /// Why WireGuard does not run although it is switched on, as a sentence.
    pub fn problem_text(&self) -> Option<String> {
        self.problem.as_ref().map(|problem| format!("WireGuard cannot run, so everything goes over Tor: {problem}"))
    }
}

/// Whether WireGuard runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireguardSwitch {
    /// It is switched off.
    #[default]
    Off,
    /// It is switched on, and starts.
    Starting,
    /// It is switched on, and cannot run.
    Failed,
    /// It runs.
    On,
}

/// Another member, as WireGuard sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardPeerStatus {
    /// Its address.
    pub node: String,
    /// The route by which messages go to it now, such as "wireguard" or "tor"; `None` if there is
    /// no link with it.
    pub route: Option<String>,
    /// Whether WireGuard is proven as a route to it.
    pub proven: bool,
    /// Why it is not; `None` if it is.
    pub reason: Option<String>,
    /// Where packets to it go, as address and UDP port; `None` if no address is known.
    pub endpoint: Option<String>,
    /// The last measured round trip over WireGuard, in milliseconds; `None` before the first.
    pub round_trip_ms: Option<u64>,
    /// Silence after which this node takes it for dead, in milliseconds: shorter while both its
    /// routes, WireGuard and Tor, would show at once that it does not answer.
    pub dead_after_ms: u64,
    /// Time since the last handshake of the tunnel, in seconds; `None` if there is no session.
    pub last_handshake_seconds: Option<u64>,
    /// Bytes of WireGuard packets received from it since WireGuard was switched on.
    pub bytes_in: u64,
    /// Bytes of WireGuard packets sent to it, likewise.
    pub bytes_out: u64,
}

/// An invitation: public, the token is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationStatus {
    /// The public half of the token, in hexadecimal.
    pub id: String,
    /// The role of the joiner.
    pub role: Role,
    /// How many nodes may join with it.
    pub uses: u16,
    /// How many nodes have joined with it.
    pub redeemed: u16,
    /// The addresses of the nodes that have, whether they are still members or not.
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
    /// are evicted.
    Overdrawn,
    /// It was revoked.
    Revoked,
    /// It has expired.
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
