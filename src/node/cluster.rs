//! The cluster actor: the one task that owns the [`Coordinator`]. Everything that happens reaches it as an event, in
//! order; what it decides goes out over watches that the other tasks reconcile towards.
//!
//! It does no slow work itself: a lease or a heartbeat must never wait for a disk or a peer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustbalance_gossip::coordinator::{Action, Coordinator, Event, Leadership, Now};
use rustbalance_gossip::mesh::{Mesh, Update};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::link::MemberSet;
use crate::store::Store;
use crate::{balance, publish};

/// Events and questions that may wait for the actor.
const QUEUE: usize = 256;
/// The longest the actor sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// A question put to the coordinator inside its task.
type Question = Box<dyn FnOnce(&Coordinator, Now) + Send>;

enum Message {
    Event(Box<Event>),
    Question(Question),
}

/// The way to the actor. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    messages: mpsc::Sender<Message>,
}

/// What the actor decides, for the tasks that carry it out.
pub struct Decisions {
    /// For the publisher task.
    pub publish: watch::Receiver<publish::task::Wanted>,
    /// For the intro-point task.
    pub balance: watch::Receiver<balance::task::Wanted>,
    /// For the links.
    pub members: watch::Receiver<MemberSet>,
    /// Why this node is no member any more, once it is not.
    pub excluded: watch::Receiver<Option<String>>,
}

/// The actor has ended: the daemon is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the daemon is stopping")]
pub struct Stopping;

impl Cluster {
    /// Tells it of something that happened.
    pub async fn tell(&self, event: Event) -> Result<(), Stopping> {
        self.messages.send(Message::Event(Box::new(event))).await.map_err(|_| Stopping)
    }

    /// Looks at its state.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Coordinator, Now) -> T + Send + 'static,
    ) -> Result<T, Stopping> {
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |coordinator, now| {
            // Whoever asked may have given up meanwhile.
            let _ = answer.send(question(coordinator, now));
        });
        self.messages.send(Message::Question(question)).await.map_err(|_| Stopping)?;
        answered.await.map_err(|_| Stopping)
    }
}

/// What the actor is made of.
pub struct Parts {
    /// The decisions themselves.
    pub coordinator: Coordinator,
    /// The mesh to gossip on.
    pub mesh: Mesh,
    /// What comes from it.
    pub updates: mpsc::Receiver<Update>,
    /// Where terms and what was learnt are kept.
    pub store: Arc<Store>,
    /// How many introduction points this node keeps.
    pub intro_points: usize,
}

/// The actor.
struct Actor {
    parts: Parts,
    started: Instant,
    publish: watch::Sender<publish::task::Wanted>,
    balance: watch::Sender<balance::task::Wanted>,
    members: watch::Sender<MemberSet>,
    excluded: watch::Sender<Option<String>>,
    /// Disk writes under way; each gives the event that says it is done.
    writes: JoinSet<Option<Event>>,
}

/// Seconds since the Unix epoch.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Makes the actor; it runs once [`Starting::run`] is polled.
pub fn start(parts: Parts) -> (Cluster, Decisions, Starting) {
    let (messages, inbox) = mpsc::channel(QUEUE);
    let (publish, publish_watch) = watch::channel(publish::task::Wanted::default());
    let wanted = balance::task::Wanted { points: parts.intro_points, ..Default::default() };
    let (balance, balance_watch) = watch::channel(wanted);
    let (members, members_watch) = watch::channel(MemberSet::default());
    let (excluded, excluded_watch) = watch::channel(None);
    let decisions =
        Decisions { publish: publish_watch, balance: balance_watch, members: members_watch, excluded: excluded_watch };
    let writes = JoinSet::new();
    let actor = Actor { parts, started: Instant::now(), publish, balance, members, excluded, writes };
    (Cluster { messages }, decisions, Starting { actor, inbox })
}

/// An actor that does not run yet.
pub struct Starting {
    actor: Actor,
    inbox: mpsc::Receiver<Message>,
}

impl Starting {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let Self { mut actor, mut inbox } = self;
        actor.handle(Event::Tick);
        loop {
            let now = actor.started.elapsed();
            let wake = actor.parts.coordinator.next_timeout().unwrap_or(now + LONGEST_SLEEP).min(now + LONGEST_SLEEP);
            tokio::select! {
                () = stop.cancelled() => return,
                message = inbox.recv() => match message {
                    None => return,
                    Some(Message::Event(event)) => actor.handle(*event),
                    Some(Message::Question(question)) => question(&actor.parts.coordinator, actor.now()),
                },
                update = actor.parts.updates.recv() => match update {
                    None => return,
                    Some(Update { origin, kind, bytes }) => actor.handle(Event::Record { origin, kind, bytes }),
                },
                Some(written) = actor.writes.join_next() => if let Ok(Some(event)) = written { actor.handle(event) },
                () = tokio::time::sleep_until(actor.started + wake) => actor.handle(Event::Tick),
            }
        }
    }
}

impl Actor {
    fn now(&self) -> Now {
        Now { mono: self.started.elapsed(), unix: unix_now() }
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        for action in self.parts.coordinator.handle(event, now) {
            self.carry_out(action);
        }
        self.decide(now);
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Gossip { kind, bytes } => self.parts.mesh.set(kind, bytes),
            Action::Retract(kind) => self.parts.mesh.retract(kind),
            Action::StoreTerm(term) => self.store_term(term),
            Action::Leadership(Leadership::Publisher { term }) => info!(term, "this node publishes now"),
            Action::Leadership(Leadership::Follower) => info!("another node publishes now"),
            Action::Excluded(why) => {
                error!(%why, "this node is no member of the cluster any more");
                self.excluded.send_replace(Some(why));
            }
            Action::MembersChanged => self.keep_members(),
            Action::InvitationsChanged => self.keep_invitations(),
            Action::DesiredChanged => {}
        }
    }

    /// A term is used only once it is on disk.
    fn store_term(&mut self, term: u64) {
        let store = Arc::clone(&self.parts.store);
        self.writes.spawn_blocking(move || match store.advance_term(term) {
            Ok(()) => Some(Event::TermStored(term)),
            Err(error) => {
                warn!(term, %error, "cannot store the term, so this node cannot publish");
                None
            }
        });
    }

    /// Known members are kept so that a restart finds its way back when the others have new neighbours.
    fn keep_members(&mut self) {
        let view = self.parts.coordinator.view();
        let chains: Vec<_> = view.members().map(|member| member.member.chain()).collect();
        let revocations: Vec<_> = view.revocations().cloned().collect();
        let store = Arc::clone(&self.parts.store);
        self.writes.spawn_blocking(move || {
            if let Err(error) = store.put_members(&chains).and_then(|()| store.put_revocations(&revocations)) {
                warn!(%error, "cannot store the list of members");
            }
            None
        });
    }

    fn keep_invitations(&mut self) {
        let invitations: Vec<_> = self.parts.coordinator.view().invitations().cloned().collect();
        let store = Arc::clone(&self.parts.store);
        self.writes.spawn_blocking(move || {
            if let Err(error) = store.put_invitations(&invitations) {
                warn!(%error, "cannot store the invitations");
            }
            None
        });
    }

    /// Brings the watches up to date with the coordinator's state.
    fn decide(&mut self, now: Now) {
        let coordinator = &self.parts.coordinator;
        let term = match coordinator.leadership() {
            Leadership::Publisher { term } => Some(term),
            Leadership::Follower => None,
        };
        let points = coordinator.desired(now).points.into_iter().map(|(_, point)| point).collect();
        let floors: BTreeMap<_, _> = coordinator.view().revisions().into_iter().collect();
        replace(&self.publish, publish::task::Wanted { term, points, floors });
        replace(&self.balance, self.balance_wanted());
        replace(&self.members, self.member_set());
    }

    /// Relays of the others, told apart by who wins a conflict.
    fn balance_wanted(&self) -> balance::task::Wanted {
        let view = self.parts.coordinator.view();
        let me = view.me();
        let (mut stronger, mut weaker) = (BTreeSet::new(), BTreeSet::new());
        for member in view.members().filter(|member| member.alive && member.node() != me) {
            let relays = if member.node() < me { &mut stronger } else { &mut weaker };
            relays.extend(member.intro_points().iter().map(|point| point.relay));
        }
        balance::task::Wanted { points: self.parts.intro_points, stronger, weaker }
    }

    fn member_set(&self) -> MemberSet {
        let view = self.parts.coordinator.view();
        MemberSet {
            members: view.members().map(|member| member.node()).collect(),
            revoked: view.revocations().map(|revocation| revocation.node).collect(),
        }
    }
}

/// Sends only what is new, so that nobody wakes for nothing.
fn replace<T: PartialEq>(watch: &watch::Sender<T>, value: T) {
    watch.send_if_modified(|held| {
        let changed = *held != value;
        if changed {
            *held = value;
        }
        changed
    });
}
