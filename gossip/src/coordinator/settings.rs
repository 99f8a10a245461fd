//! The settings of a coordinator, its events and its actions.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::bytes::VarBytes;
use crate::id::{NodeId, ServiceId};
use crate::lease::Timing;
use crate::liveness::Patience;
use crate::outage::OutageSecret;
use crate::record::{
    AnyFact, Chain, MAX_INTRO_POINTS, MemberCertificate, NodeCard, NodeName, ProblemCode, PublishedPeriod, RecordKind,
    ServedPoint, Subprotocol,
};
use crate::view::DEFAULT_WAITING;

/// The settings of a coordinator. All but the preferences stay as they are while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What the operator may change while it runs.
    pub preferences: Preferences,
    /// The program's version, at most 64 bytes.
    pub version: String,
    /// The subprotocols that this node grants to clients, at most
    /// [`MAX_SUBPROTOCOLS`](crate::record::MAX_SUBPROTOCOLS).
    pub subprotocols: BTreeSet<Subprotocol>,
    /// How often this node has started, including this start; counted on disk. It is the upper half
    /// of every sequence number.
    pub boot: u64,
    /// A random number in this process's heartbeats, which distinguishes two processes with one
    /// key.
    pub instance: u64,
    /// True if this node was restored from a backup and has not run for long since. It ends at the
    /// first heartbeat of another process with its key, so that the machine that the backup was
    /// made on, if it still runs, goes on undisturbed.
    pub restored: bool,
    /// The highest term on disk.
    pub term: u64,
    /// Heartbeat interval, and bounds of the silence after which a node counts as dead.
    pub patience: Patience,
    /// Durations of the election.
    pub timing: Timing,
    /// Time to look for other members before the node takes part without having reached any.
    pub joining: Duration,
    /// Maximum number of introduction points in a descriptor, at most [`MAX_INTRO_POINTS`].
    pub intro_points: usize,
    /// Length of a rotation epoch in seconds: the descriptor lists the same sources for this time
    /// when there are more of them than places.
    pub rotation: u64,
}

/// The settings that can change while a coordinator runs ([`Event::Preferences`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preferences {
    /// Priority in the election, 0 to 255: nodes with a lower one publish first.
    pub priority: u8,
    /// Weight of its share of the introduction points relative to other nodes, 1 to 100.
    pub weight: u8,
    /// The virtual ports that this node serves, none of them 0.
    pub ports: BTreeSet<u16>,
    /// Secret for the random times for which the points of silent nodes stay in the descriptor;
    /// `None`: they leave at once.
    pub hide_outages: Option<OutageSecret>,
    /// Maximum number of records kept that arrived before their signer's card.
    pub waiting: usize,
    /// The name that the operator gave this node, for the `status` of all nodes.
    pub name: Option<NodeName>,
}

impl Default for Preferences {
    fn default() -> Self {
        Self {
            priority: NodeCard::DEFAULT_PRIORITY,
            weight: NodeCard::DEFAULT_WEIGHT,
            ports: BTreeSet::new(),
            hide_outages: None,
            waiting: DEFAULT_WAITING,
            name: None,
        }
    }
}

impl Settings {
    /// The defaults for a node at its `boot`th start, with the random number `instance` and the
    /// highest stored term `term`.
    pub fn new(boot: u64, instance: u64, term: u64) -> Self {
        Self {
            preferences: Preferences::default(),
            version: env!("CARGO_PKG_VERSION").into(),
            subprotocols: BTreeSet::new(),
            boot,
            instance,
            restored: false,
            term,
            patience: Patience::default(),
            timing: Timing::default(),
            joining: Duration::from_secs(45),
            intro_points: MAX_INTRO_POINTS,
            rotation: 3600,
        }
    }
}

/// An input of the coordinator.
#[derive(Debug, Clone)]
pub enum Event {
    /// A record has arrived by gossip.
    Record {
        /// The node in whose gossiped state it was found.
        origin: NodeId,
        /// The kind named by its key there.
        kind: RecordKind,
        /// The encoded record.
        bytes: Vec<u8>,
    },
    /// Time has passed: [`super::Coordinator::next_timeout`] is reached. It may be the first event.
    Tick,
    /// This node's introduction points for a service have changed.
    IntroPoints {
        /// The service.
        service: ServiceId,
        /// The points, the preferred ones first.
        points: Vec<ServedPoint>,
    },
    /// Whether this node's target of a service passes its health check.
    Ready {
        /// The service.
        service: ServiceId,
        /// True if it passes.
        ready: bool,
    },
    /// The mesh has been reached: at least one link is up.
    MeshReached,
    /// Whether other members seem to have shut this node out: it reaches no publisher, and at least
    /// one that is up accepts none of this node's discovery keys. Then this node was evicted or
    /// missed a key rotation while it was away. Other members can still reach it; until then it
    /// must not take them for dead.
    ShutOut(bool),
    /// Whether this machine's clock is off by more than other nodes accept. Then the node must not
    /// publish.
    ClockOff(bool),
    /// The members that have stopped to answer on every link that this node has with them
    /// ([`crate::contact`]); sent after every change. They are dead after a shorter silence.
    Unreachable(BTreeSet<NodeId>),
    /// The newest discovery key on this node's disk; sent at the start and after every change.
    DiscoveryKey {
        /// Number of revocations that its maker knew: the key's generation.
        counted: u32,
    },
    /// This node cannot publish a service for a local reason such as a full disk: another publisher
    /// should take over. Cleared by the next [`Event::Published`] of that service.
    CannotPublish {
        /// The service.
        service: ServiceId,
    },
    /// Drain: leave the descriptors, serve clients that still come, and hand over the lease.
    Drain,
    /// Ends [`Event::Drain`].
    Resume,
    /// Say goodbye, for a shutdown or for good. The node announces nothing afterwards; a restart
    /// brings it back.
    Leave,
    /// The term of an [`Action::StoreTerm`], or a higher one, is on disk.
    TermStored(u64),
    /// The published periods of a service have changed; sent at the start with those on disk.
    Published {
        /// The service.
        service: ServiceId,
        /// The periods, in any order.
        periods: Vec<PublishedPeriod>,
    },
    /// This node's WireGuard keys and addresses, sealed; empty if it takes no WireGuard packets any
    /// more. Nothing is announced before the first.
    Endpoint {
        /// The content of the record, at most
        /// [`Endpoint::MAX_SEALED`](crate::record::Endpoint::MAX_SEALED) bytes.
        sealed: VarBytes,
    },
    /// The problems of this node itself, for the `status` of all nodes; sent after every change.
    /// Those beyond [`NodeReport::MAX_PROBLEMS`](crate::record::NodeReport::MAX_PROBLEMS) are
    /// dropped.
    Problems(BTreeSet<ProblemCode>),
    /// The operator has changed the settings that may change.
    Preferences(Preferences),
    /// A fact that this node has signed with the authority key, or has read from disk.
    Fact(AnyFact),
    /// Members known from the answer to a join or from disk. If there are any, this must be the
    /// first event: a node that knows no other member joins and claims the lease without waiting
    /// for others.
    KnownMembers(Vec<Chain>),
}

/// An output of the coordinator, to be carried out by its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this term to disk (fsynced), then send [`Event::TermStored`]. Never replace a higher
    /// term by a lower one.
    StoreTerm(u64),
    /// Announce this record by gossip; it replaces the one of the same kind.
    Gossip {
        /// The kind of the record.
        kind: RecordKind,
        /// The encoded record.
        bytes: Vec<u8>,
    },
    /// Remove the record of this kind from the gossip.
    Retract(RecordKind),
    /// Publish, or stop publishing. A publisher reconciles the directories with
    /// [`super::Coordinator::desired_points`] of each service. It publishes again once
    /// [`crate::view::View::revisions`] has a higher revision than its own; that is how a conflict
    /// between two publishers that could not hear each other ends.
    Leadership(Leadership),
    /// Membership, liveness, revocations or phases have changed. Update the links and the lists on
    /// disk ([`super::Coordinator::chains`], [`crate::view::View::revocations`]); a statement that
    /// all nodes lose is lost for good. A holder of the authority key revokes the nodes in
    /// [`crate::view::View::overdrawn`].
    MembersChanged,
    /// Invitations have changed. Update the join port and the list on disk
    /// ([`crate::facts::Facts::complete_statements`]). A holder of the authority key signs those in
    /// [`crate::facts::Facts::unsigned`] again.
    InvitationsChanged,
    /// Facts of any kind have changed. Update those sent to neighbours and those on disk
    /// ([`crate::view::View::facts`]).
    FactsChanged,
    /// A member's WireGuard keys or addresses have changed
    /// ([`crate::view::MemberView::endpoint`]).
    EndpointsChanged,
    /// Sign this certificate with the authority key, and send the
    /// [`Renewal`](crate::record::Renewal) that carries it as an [`Event::Fact`]. Repeated with
    /// each heartbeat until it is done. Only publishers are asked to.
    Renew(MemberCertificate),
    /// Discard the gossiped state and fetch it again: this node took an evicted node for a member,
    /// and that node may have made it believe that it already has the newest records of others.
    RestartGossip,
    /// This node is no longer a member, for this reason. Final: no further action follows.
    Excluded(String),
}

/// Whether this node is the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// Another node publishes, or none.
    Follower,
    /// This node publishes.
    Publisher {
        /// The term of its lease.
        term: u64,
    },
}
