//! What a coordinator is told once, and what passes in and out of it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::id::{NodeId, ServiceId};
use crate::lease::Timing;
use crate::liveness::Patience;
use crate::outage::OutageSecret;
use crate::record::{AnyFact, Chain, MAX_INTRO_POINTS, NodeCard, PublishedPeriod, RecordKind, ServedPoint};
use crate::view::DEFAULT_WAITING;

/// What a coordinator is told at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Lower is asked first to publish.
    pub priority: u8,
    /// Share of intro points relative to the others', 1 to 100.
    pub weight: u8,
    /// The program's version, at most 64 bytes.
    pub version: String,
    /// The virtual ports that this node serves, none of them 0.
    pub ports: BTreeSet<u16>,
    /// How often this node has started, this time included, from disk: the upper half of every sequence number.
    pub boot: u64,
    /// A random number in this process's heartbeats: it distinguishes two processes with one key.
    pub instance: u64,
    /// The highest term on disk.
    pub term: u64,
    /// When silence means death, and how often this node beats.
    pub patience: Patience,
    /// The times of the election.
    pub timing: Timing,
    /// How long to look for the others before going on without them.
    pub joining: Duration,
    /// Most intro points in the descriptor, at most [`MAX_INTRO_POINTS`].
    pub intro_points: usize,
    /// How long the same nodes stand in the descriptor when there are more than places, in seconds.
    pub rotation: u64,
    /// Keeps the points of silent nodes in the descriptor for a while, for times drawn with this;
    /// `None`: they leave at once.
    pub hide_outages: Option<OutageSecret>,
    /// Most records kept that came before their signer's card.
    pub waiting: usize,
}

impl Settings {
    /// The defaults, for a node that starts for the `boot`th time, has drawn `instance` and has
    /// `term` on disk.
    pub fn new(boot: u64, instance: u64, term: u64) -> Self {
        Self {
            priority: NodeCard::DEFAULT_PRIORITY,
            weight: NodeCard::DEFAULT_WEIGHT,
            version: env!("CARGO_PKG_VERSION").into(),
            ports: BTreeSet::new(),
            boot,
            instance,
            term,
            patience: Patience::default(),
            timing: Timing::default(),
            joining: Duration::from_secs(45),
            intro_points: MAX_INTRO_POINTS,
            rotation: 3600,
            hide_outages: None,
            waiting: DEFAULT_WAITING,
        }
    }
}

/// What happens to a node.
#[derive(Debug, Clone)]
pub enum Event {
    /// A record has come by gossip.
    Record {
        /// Under whose name it stands there.
        origin: NodeId,
        /// As what it stands there.
        kind: RecordKind,
        /// The record.
        bytes: Vec<u8>,
    },
    /// Time has passed: [`super::Coordinator::next_timeout`] is reached. Also a good first event.
    Tick,
    /// The introduction points at which this node waits for clients of a service now.
    IntroPoints {
        /// The service.
        service: ServiceId,
        /// The points, those it prefers first.
        points: Vec<ServedPoint>,
    },
    /// Whether this node's target of a service passes its health check.
    Ready {
        /// The service.
        service: ServiceId,
        /// Whether it does.
        ready: bool,
    },
    /// The mesh has been reached: at least one link is up.
    MeshReached,
    /// Whether the other members seem to have shut this node out: it reaches no publisher, and at
    /// least one is there but accepts none of this node's discovery keys. Then this node was
    /// evicted while it was away, or has missed a change of keys, and the others will reach it.
    /// Until then it must not take them for dead.
    ShutOut(bool),
    /// The newest discovery key on this node's disk, at the start and after every change.
    DiscoveryKey {
        /// How many revocations its maker knew: its generation.
        counted: u32,
    },
    /// This node cannot publish a service, for a reason of its own such as a full disk: if it should, let another. Forgotten
    /// with the next [`Event::Published`] of that service.
    CannotPublish {
        /// The service.
        service: ServiceId,
    },
    /// Leave the descriptor, serve those who still come, let another publish.
    Drain,
    /// End of [`Event::Drain`].
    Resume,
    /// Say goodbye, for a shutdown or for good. Nothing more is said afterwards; a restart comes back.
    Leave,
    /// The term of an [`Action::StoreTerm`] is on disk, or a higher one.
    TermStored(u64),
    /// What is on the directories of a service now, and (at the start) what the disk knows of it.
    Published {
        /// The service.
        service: ServiceId,
        /// Its periods.
        periods: Vec<PublishedPeriod>,
    },
    /// A fact that this node has signed with the authority key, or that its disk knows.
    Fact(AnyFact),
    /// Members known from the answer to a join or from disk. If there are any, this must be the first event: a node
    /// that knows of no others waits for none.
    KnownMembers(Vec<Chain>),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this term to disk (fsynced), then send [`Event::TermStored`]. Never write a lower one over a higher one.
    StoreTerm(u64),
    /// Say this in the gossip, in place of what was said there of the same kind.
    Gossip {
        /// As what.
        kind: RecordKind,
        /// The record.
        bytes: Vec<u8>,
    },
    /// Say it no longer.
    Retract(RecordKind),
    /// Publish, or stop publishing. A publisher reconciles the directories with [`super::Coordinator::desired_points`] of
    /// each service, and publishes again once [`crate::view::View::revisions`] has a higher revision than its own: two
    /// publishers that could not hear each other end like this.
    Leadership(Leadership),
    /// Who is a member, alive, revoked or in which phase has changed: links, the lists on disk
    /// ([`super::Coordinator::chains`], [`crate::view::View::revocations`]: what all nodes forget was never said). If
    /// [`crate::view::View::overdrawn`] has any, a holder of the authority key revokes them.
    MembersChanged,
    /// Invitations have changed: the join port, the list on disk ([`crate::facts::Facts::wholes`]), and if
    /// [`crate::facts::Facts::unsigned`] has any, a holder of the authority key signs them anew.
    InvitationsChanged,
    /// Facts of any kind have changed: what neighbours are sent, and the disk ([`crate::view::View::facts`]).
    FactsChanged,
    /// Forget what gossip has brought and hear it again: an evicted node had this one hold it for a
    /// member, and may have had it believe that it has heard all that others say.
    RestartGossip,
    /// This node is not a member any more, for the reason told. Final: nothing more is said or done.
    Excluded(String),
}

/// Whether this node publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// It does not.
    Follower,
    /// It does.
    Publisher {
        /// In this term.
        term: u64,
    },
}
