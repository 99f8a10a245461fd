//! The cluster actor: the one task that owns the [`Coordinator`]. Everything that happens reaches it as an event, in
//! order; what it decides goes out over watches that the other tasks reconcile towards.
//!
//! It does no slow work itself: a lease or a heartbeat must never wait for a disk or a peer. What should be on disk is a
//! watch, too (see [`super::writer`]).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustbalance_gossip::coordinator::{Action, Coordinator, Event, Leadership};
use rustbalance_gossip::facts::Facts;
use rustbalance_gossip::id::ClusterId;
use rustbalance_gossip::record::{Phase, Revocation, Role};
use rustbalance_gossip::signed::{Statement, Verified};
use rustbalance_gossip::stand_in::Orphan;
use rustbalance_gossip::time::Now;
use rustbalance_mesh::{Mesh, Update};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::alarms::Alarms;
use super::writer::{self, Kept};
use crate::clock::unix_now;
use crate::keys::AuthoritySecret;
use crate::link::MemberSet;
use crate::store::Store;
use crate::{balance, publish};

/// Events and questions that may wait for the actor.
const QUEUE: usize = 256;
/// In the mesh, this long is enough to hear of all who live: then new introduction points may be chosen.
const ACQUAINTANCE: Duration = Duration::from_secs(6);
/// The longest the actor sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// An event, and whom to tell once it has been dealt with.
type Message = (Event, Option<oneshot::Sender<()>>);

/// The way to the actor. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    messages: mpsc::Sender<Message>,
    coordinator: Arc<Mutex<Coordinator>>,
    started: Instant,
}

/// What the actor decides, for the tasks that carry it out.
pub struct Decisions {
    /// For the publisher task.
    pub publish: watch::Receiver<publish::task::Wanted>,
    /// For the intro-point task.
    pub balance: watch::Receiver<balance::task::Wanted>,
    /// For the task that stands in for others.
    pub stand_in: watch::Receiver<BTreeSet<Orphan>>,
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
        self.messages.send((event, None)).await.map_err(|_| Stopping)
    }

    /// The same, and waits until it has been dealt with: whoever looks afterwards sees it.
    pub async fn tell_and_wait(&self, event: Event) -> Result<(), Stopping> {
        let (done, dealt_with) = oneshot::channel();
        self.messages.send((event, Some(done))).await.map_err(|_| Stopping)?;
        dealt_with.await.map_err(|_| Stopping)
    }

    /// Waits until the actor has ended.
    pub async fn ended(&self) {
        self.messages.closed().await;
    }

    /// Looks at its state.
    pub fn look<T>(&self, look: impl FnOnce(&Coordinator, Now) -> T) -> T {
        let now = now(self.started);
        look(&lock(&self.coordinator), now)
    }
}

fn lock(coordinator: &Mutex<Coordinator>) -> MutexGuard<'_, Coordinator> {
    coordinator.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now(started: Instant) -> Now {
    Now { mono: started.elapsed(), unix: unix_now() }
}

/// What the actor is made of.
pub struct Parts {
    /// The decisions themselves.
    pub coordinator: Coordinator,
    /// The mesh to gossip on.
    pub mesh: Mesh,
    /// What comes from it.
    pub updates: mpsc::Receiver<Update>,
    /// Facts that neighbours have handed over.
    pub facts: mpsc::Receiver<Vec<Update>>,
    /// Where terms and what was learnt are kept.
    pub store: Arc<Store>,
    /// Publishers' tokens that more nodes have used than may.
    pub alarms: Arc<Alarms>,
    /// Signs what concerns others; publishers have it.
    pub authority: Option<AuthoritySecret>,
    /// What the disk knows, told before anything else happens: members first, because a node that knows of no others
    /// waits for none.
    pub known: Vec<Event>,
}

/// The actor.
struct Actor {
    coordinator: Arc<Mutex<Coordinator>>,
    mesh: Mesh,
    updates: mpsc::Receiver<Update>,
    handed_over: mpsc::Receiver<Vec<Update>>,
    /// All facts that this node knows, as of the last change.
    facts: Arc<Facts>,
    /// Revocations known as of the last change; there are never fewer.
    revoked: usize,
    cluster: ClusterId,
    alarms: Arc<Alarms>,
    authority: Option<AuthoritySecret>,
    started: Instant,
    /// When the mesh was reached.
    joined: Option<Instant>,
    /// Whether it is known where the others wait for clients: two nodes at one relay are worth one.
    others_known: bool,
    publish: watch::Sender<publish::task::Wanted>,
    balance: watch::Sender<balance::task::Wanted>,
    stand_in: watch::Sender<BTreeSet<Orphan>>,
    /// When it was last asked where to stand in.
    asked: Option<Instant>,
    members: watch::Sender<MemberSet>,
    excluded: watch::Sender<Option<String>>,
    /// What should be on disk.
    kept: watch::Sender<Kept>,
}

/// Makes the actor; it runs once [`Starting::run`] is polled.
pub fn start(parts: Parts) -> (Cluster, Decisions, Starting) {
    let (messages, inbox) = mpsc::channel(QUEUE);
    let (publish, publish_watch) = watch::channel(publish::task::Wanted::default());
    let (balance, balance_watch) = watch::channel(balance::task::Wanted::default());
    let (stand_in, stand_in_watch) = watch::channel(BTreeSet::new());
    let (members, members_watch) = watch::channel(MemberSet::default());
    let (excluded, excluded_watch) = watch::channel(None);
    let decisions = Decisions {
        publish: publish_watch,
        balance: balance_watch,
        stand_in: stand_in_watch,
        members: members_watch,
        excluded: excluded_watch,
    };
    let (kept, wanted) = watch::channel(Kept::default());
    let (stored, stored_term) = watch::channel(0);
    let writer = tokio::spawn(writer::write_all(Arc::clone(&parts.store), wanted, stored));
    let Parts { coordinator, mesh, updates, facts: handed_over, store, alarms, authority, known } = parts;
    let (coordinator, started, cluster) = (Arc::new(Mutex::new(coordinator)), Instant::now(), store.cluster());
    let handle = Cluster { messages, coordinator: Arc::clone(&coordinator), started };
    let mut actor = Actor {
        coordinator,
        mesh,
        updates,
        handed_over,
        facts: Arc::default(),
        revoked: 0,
        cluster,
        alarms,
        authority,
        started,
        joined: None,
        others_known: false,
        publish,
        balance,
        stand_in,
        asked: None,
        members,
        excluded,
        kept,
    };
    actor.handle_all(known);
    (handle, decisions, Starting { actor, inbox, stored_term, writer })
}

/// An actor that does not run yet.
pub struct Starting {
    actor: Actor,
    inbox: mpsc::Receiver<Message>,
    stored_term: watch::Receiver<u64>,
    writer: JoinHandle<()>,
}

impl Starting {
    /// Runs until `stop`, and until what it wrote last is on disk. Gives the mesh back, to be shut down.
    pub async fn run(self, stop: CancellationToken) -> Mesh {
        let Self { mut actor, mut inbox, mut stored_term, writer } = self;
        actor.until(&stop, &mut inbox, &mut stored_term).await;
        let Actor { mesh, kept, .. } = actor;
        drop(kept);
        if writer.await.is_err() {
            error!("the task that writes to disk has failed");
        }
        mesh
    }
}

impl Actor {
    async fn until(
        &mut self,
        stop: &CancellationToken,
        inbox: &mut mpsc::Receiver<Message>,
        stored_term: &mut watch::Receiver<u64>,
    ) {
        loop {
            let now = self.started.elapsed();
            let wake = lock(&self.coordinator).next_timeout().unwrap_or(now + LONGEST_SLEEP).min(now + LONGEST_SLEEP);
            tokio::select! {
                () = stop.cancelled() => return,
                message = inbox.recv() => match message {
                    None => return,
                    Some((event, done)) => {
                        self.handle(event);
                        // Whoever waited may have given up.
                        let _ = done.map(|done| done.send(()));
                    }
                },
                update = self.updates.recv() => match update {
                    None => return,
                    Some(update) => self.handle(record(update)),
                },
                Some(facts) = self.handed_over.recv() => self.handle_all(facts.into_iter().map(record)),
                Ok(()) = stored_term.changed() => {
                    let term = *stored_term.borrow_and_update();
                    self.handle(Event::TermStored(term));
                }
                () = tokio::time::sleep_until(self.started + wake) => self.handle(Event::Tick),
            }
        }
    }

    fn handle(&mut self, event: Event) {
        self.handle_all([event]);
    }

    /// Takes in events in order, then looks once at what they have changed: the disk may know of thousands.
    fn handle_all(&mut self, events: impl IntoIterator<Item = Event>) {
        let (mut members, mut invitations) = (false, false);
        for event in events {
            let actions = lock(&self.coordinator).handle(event, now(self.started));
            for action in actions {
                match action {
                    Action::MembersChanged => members = true,
                    Action::InvitationsChanged => invitations = true,
                    action => self.carry_out(action),
                }
            }
        }
        if members {
            self.members_changed();
        }
        if invitations {
            self.invitations_changed();
        }
        let revoked = lock(&self.coordinator).view().revocations().len();
        if invitations || revoked != self.revoked {
            self.revoked = revoked;
            self.facts = Arc::new(Facts::of(lock(&self.coordinator).view(), unix_now()));
        }
        self.decide();
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Gossip { kind, bytes } => {
                if let Err(error) = self.mesh.set(kind, &bytes) {
                    error!(%error, kind = kind.key(), "cannot gossip");
                }
            }
            Action::Retract(kind) => self.mesh.retract(kind),
            Action::RestartGossip => self.mesh.restart(),
            Action::StoreTerm(term) => self.store_term(term),
            Action::Leadership(Leadership::Publisher { term }) => info!(term, "this node publishes now"),
            Action::Leadership(Leadership::Follower) => info!("this node has stopped publishing"),
            Action::Excluded(why) => {
                error!(%why, "this node is no member of the cluster any more");
                self.excluded.send_replace(Some(why));
            }
            // Dealt with once for all events.
            Action::MembersChanged | Action::InvitationsChanged => {}
        }
    }

    /// A term is used only once it is on disk.
    fn store_term(&mut self, term: u64) {
        self.kept.send_if_modified(|kept| {
            let higher = term > kept.term;
            kept.term = kept.term.max(term);
            higher
        });
    }

    /// Known members are kept, so that a restart finds its way back; whoever joined with a used-up token is revoked.
    fn members_changed(&mut self) {
        let coordinator = Arc::clone(&self.coordinator);
        let overdrawn: Vec<_> = {
            let coordinator = lock(&coordinator);
            let view = coordinator.view();
            let members: BTreeSet<_> = view.members().map(|member| member.node()).collect();
            self.mesh.set_seeds(members.iter().copied().filter(|node| *node != view.me()).collect());
            self.mesh.set_members(members);
            view.overdrawn().filter(|node| !view.revoked(node)).collect()
        };
        for node in overdrawn {
            warn!(node = %node.short(), "expelled: it joined with an invitation that other nodes had used up");
            if let Some(signed) = self.sign(Revocation { cluster: self.cluster, node, revoked: unix_now() }) {
                self.handle(Event::Revocation(signed));
            }
        }
        let (chains, revocations) = {
            let coordinator = lock(&coordinator);
            (coordinator.chains(), coordinator.view().revocations().cloned().collect::<Vec<_>>())
        };
        self.kept.send_if_modified(|kept| put(&mut kept.members, chains) | put(&mut kept.revocations, revocations));
    }

    /// Invitations are kept; versions that two publishers changed at once are signed anew as what they merge to.
    fn invitations_changed(&mut self) {
        let merged: Vec<_> = lock(&self.coordinator).view().invitations().unsigned().cloned().collect();
        for invitation in merged {
            if let Some(signed) = self.sign(invitation) {
                self.handle(Event::Invitation(signed));
            }
        }
        let whole: Vec<_> = {
            let coordinator = lock(&self.coordinator);
            let known = coordinator.view().invitations();
            self.alarms.look_at(known.iter());
            known.iter().filter_map(|invitation| known.whole(&invitation.token)).cloned().collect()
        };
        let alarms = self.alarms.all();
        self.kept.send_if_modified(|kept| put(&mut kept.invitations, whole) | put(&mut kept.alarms, alarms));
    }

    /// As the cluster's authority, if this node has its key.
    fn sign<T: Statement>(&self, statement: T) -> Option<Verified<T>> {
        let authority = self.authority.as_ref()?;
        Verified::sign(statement, authority).inspect_err(|error| error!(%error, "cannot sign")).ok()
    }

    /// Brings the watches up to date with the coordinator's state.
    fn decide(&mut self) {
        let coordinator = lock(&self.coordinator);
        let view = coordinator.view();
        if coordinator.phase() != Phase::Joining {
            let since = self.joined.get_or_insert_with(Instant::now);
            let acquainted = view.is_alone() || view.heard_all_since(Duration::ZERO);
            self.others_known |= acquainted || since.elapsed() >= ACQUAINTANCE;
        }
        let term = match coordinator.leadership() {
            Leadership::Publisher { term } => Some(term),
            Leadership::Follower => None,
        };
        let service = self.cluster.first_service();
        let points = coordinator.desired_points(&service).iter().map(|(_, point)| point.clone()).collect();
        let (floors, of_others) = (view.revisions(&service), view.revisions_of_others(&service));
        let unheard = !view.hears_all_publishers();
        replace(&self.publish, publish::task::Wanted { term, points, floors, of_others, unheard });
        let (stronger, weaker) = (view.relays_to_leave(&service), view.relays_of_others(&service));
        replace(&self.balance, balance::task::Wanted { others_known: self.others_known, stronger, weaker });
        if self.asked.is_none_or(|at| at.elapsed() >= LONGEST_SLEEP) {
            self.asked = Some(Instant::now());
            replace(&self.stand_in, coordinator.stand_ins(now(self.started)).into_iter().collect());
        }
        let members = view.members().map(|member| member.node()).collect();
        let publishers = view.members().filter(|member| member.member.role() == Role::Publisher);
        let publishers = publishers.map(|member| member.node()).collect();
        let revoked = view.revocations().map(|revocation| (revocation.node, revocation.clone())).collect();
        replace(&self.members, MemberSet { members, publishers, revoked, facts: Arc::clone(&self.facts) });
    }
}

fn record(Update { origin, kind, bytes }: Update) -> Event {
    Event::Record { origin, kind, bytes }
}

/// Sends only what is new, so that nobody wakes for nothing.
fn replace<T: PartialEq>(watch: &watch::Sender<T>, value: T) {
    watch.send_if_modified(|held| put(held, value));
}

/// True if that changes it.
fn put<T: PartialEq>(held: &mut T, value: T) -> bool {
    let changed = *held != value;
    if changed {
        *held = value;
    }
    changed
}

#[cfg(test)]
mod tests;
