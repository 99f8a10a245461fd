//! The cluster's task: the only one that changes the [`Coordinator`]. All input reaches it as
//! events, in order; its decisions go out in watches that the other tasks reconcile towards.
//!
//! It does no slow work: a lease or a heartbeat must never wait for a disk or a peer. The state for
//! the disk goes out in a watch, too (see [`super::writer`]).
//!
//! The coordinator is behind a mutex because other tasks read it: [`Cluster::look`] lends it as
//! `&Coordinator`, so they cannot change it. Messages with replies would copy hundreds of members
//! for each `status` or joiner. A reader holds the lock while it copies or checks state in memory,
//! never across an await or a disk access. A decision that must take effect before any later one
//! (admitting a joiner) becomes an event; [`Cluster::send_event_and_wait`] returns once it is part
//! of the state that the next reader sees.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::bytes::VarBytes;
use rustbalance_gossip::coordinator::{Action, Coordinator, Event, Leadership};
use rustbalance_gossip::facts::SharedFacts;
use rustbalance_gossip::id::{ClusterId, NodeId, ServiceId};
use rustbalance_gossip::record::{Chain, MemberCertificate, Phase, Renewal, Revocation, Role};
use rustbalance_gossip::signed::{Statement, Verified};
use rustbalance_gossip::stand_in::UnattendedPoint;
use rustbalance_gossip::time::Now;
use rustbalance_gossip::view::{Condition, MemberView, View};
use rustbalance_mesh::{Mesh, Update};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::alarms::Alarms;
use super::writer::DesiredState;
use crate::clock::{Clock, date, unix_now};
use crate::drive::{Driver, Jobs, Machine, Shell};
use crate::keys::AuthoritySecret;
use crate::link::MemberSet;
use crate::publish::plan::DesiredContent;
use crate::{balance, publish, sync};

/// Events that may wait for the cluster's task.
const QUEUE: usize = 256;
/// Time in the mesh after which all members that are alive count as heard: then new introduction
/// points may be chosen.
const MEMBERS_HEARD_AFTER: Duration = Duration::from_secs(6);
/// The cluster's task wakes at least this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// An event if there is one, and the sender to notify once it has been handled.
type Message = (Option<Event>, Option<oneshot::Sender<()>>);

/// The handle of the cluster's task. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    messages: mpsc::Sender<Message>,
    coordinator: Arc<Mutex<Coordinator>>,
    clock: Clock,
}

/// The decisions for one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceDecisions {
    /// The input of the publisher.
    pub publish: publish::task::WantedPublication,
    /// The input of the task for this node's own introduction points.
    pub balance: balance::task::WantedPoints,
    /// The points at which this node is to stand in.
    pub stand_in: BTreeSet<UnattendedPoint>,
}

/// The decisions for each service of the cluster.
pub type DecisionsByService = BTreeMap<ServiceId, ServiceDecisions>;

/// The decisions for the node. The members for its links go out in [`ClusterParts::members`].
pub struct Decisions {
    /// The decisions for each service.
    pub services: watch::Receiver<DecisionsByService>,
    /// Whether this node is the publisher.
    pub publishes: watch::Receiver<bool>,
    /// The condition of this node: its phase, or why it cannot serve.
    pub phase: watch::Receiver<Condition>,
    /// Why this node is no longer a member; `None` while it is one.
    pub excluded: watch::Receiver<Option<String>>,
    /// The WireGuard announcements of the members, this node's among them.
    pub endpoints: watch::Receiver<SealedEndpoints>,
}

/// The sealed WireGuard announcement of each member that has one.
pub type SealedEndpoints = BTreeMap<NodeId, VarBytes>;

/// The channels to and from the disk writer (see [`super::writer`]).
pub struct Disk {
    /// The state that should be on disk.
    pub(super) wanted: watch::Receiver<DesiredState>,
    /// The term that is on disk; the writer reports it.
    pub(super) stored_term: watch::Sender<u64>,
}

/// The cluster's task has ended because the daemon is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the daemon is stopping")]
pub struct Stopping;

impl Cluster {
    /// Queues an event.
    ///
    /// # Errors
    /// The cluster's task has ended.
    pub async fn send_event(&self, event: Event) -> Result<(), Stopping> {
        self.messages.send((Some(event), None)).await.map_err(|_| Stopping)
    }

    /// Queues an event and waits until it has been handled: later calls of [`Cluster::look`] see
    /// the result.
    ///
    /// # Errors
    /// The cluster's task has ended.
    pub async fn send_event_and_wait(&self, event: Event) -> Result<(), Stopping> {
        self.send_and_wait(Some(event)).await
    }

    /// Waits until everything that was queued before has been handled: the task is alive.
    ///
    /// # Errors
    /// The cluster's task has ended.
    pub async fn ping(&self) -> Result<(), Stopping> {
        self.send_and_wait(None).await
    }

    async fn send_and_wait(&self, event: Option<Event>) -> Result<(), Stopping> {
        let (done, dealt_with) = oneshot::channel();
        self.messages.send((event, Some(done))).await.map_err(|_| Stopping)?;
        dealt_with.await.map_err(|_| Stopping)
    }

    /// Reads the coordinator. `look` must not block: the cluster's task waits meanwhile.
    pub fn look<T>(&self, look: impl FnOnce(&Coordinator, Now) -> T) -> T {
        let now = self.clock.now();
        look(&lock(&self.coordinator), now)
    }
}

fn lock(coordinator: &Mutex<Coordinator>) -> MutexGuard<'_, Coordinator> {
    coordinator.lock()
}

/// The inputs of the cluster's task.
pub struct ClusterParts {
    /// Makes the decisions.
    pub coordinator: Coordinator,
    /// The mesh that carries the records.
    pub mesh: Mesh,
    /// Records that come from the mesh.
    pub updates: mpsc::Receiver<Update>,
    /// Facts that neighbours have handed over.
    pub facts: mpsc::Receiver<Vec<Update>>,
    /// The members that the links are to reach.
    pub members: watch::Sender<MemberSet>,
    /// The id of the cluster.
    pub cluster: ClusterId,
    /// The services whose state this node has on its disk. It serves those that the cluster has,
    /// too.
    pub services: Vec<ServiceId>,
    /// The alarms that more nodes joined as publishers with one invitation than it allows.
    pub alarms: Arc<Alarms>,
    /// Signs facts; `None` on workers.
    pub authority: Option<AuthoritySecret>,
    /// The state from disk, handled before all other events. Members come first, because a node
    /// that knows no other members does not wait to hear them.
    pub known: Vec<Event>,
}

/// The coordinator as a machine. It gets a tick every [`LONGEST_SLEEP`] even if it asks for none:
/// the wall clock may have been set, and the choice of points to stand in at changes with time
/// alone.
struct Shared(Arc<Mutex<Coordinator>>);

impl Machine for Shared {
    type Event = Event;
    type Action = Action;

    fn tick() -> Event {
        Event::Tick
    }

    fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        lock(&self.0).handle(event, now)
    }

    fn next_timeout(&self, now: Now) -> Option<Duration> {
        let latest = now.mono + LONGEST_SLEEP;
        Some(lock(&self.0).next_timeout().map_or(latest, |at| at.min(latest)))
    }
}

/// The inputs of the cluster's task.
enum Input {
    Message(Message),
    Record(Update),
    /// Facts that a neighbour has handed over.
    Facts(Vec<Update>),
    TermStored(u64),
}

/// Carries out the coordinator's actions.
struct ClusterShell {
    inbox: mpsc::Receiver<Message>,
    mesh: Mesh,
    updates: mpsc::Receiver<Update>,
    handed_over: mpsc::Receiver<Vec<Update>>,
    stored_term: watch::Receiver<u64>,
    /// All facts that this node knows, as of the last change.
    facts: Arc<SharedFacts>,
    /// Set by actions and handled once for all events: the disk may hold thousands of facts.
    members_changed: bool,
    invitations_changed: bool,
    facts_changed: bool,
    endpoints_changed: bool,
    /// Renewed certificates to be signed.
    renewals: Vec<MemberCertificate>,
    /// Senders to notify once the current events have been handled.
    waiting: Vec<oneshot::Sender<()>>,
    cluster: ClusterId,
    alarms: Arc<Alarms>,
    authority: Option<AuthoritySecret>,
    /// When this node reached the mesh, on the monotonic clock.
    joined: Option<Duration>,
    /// Whether the other members' introduction points are known. Before, this node opens no new
    /// ones: two nodes at one relay count only as one.
    others_points_known: bool,
    /// When `stand_ins` was computed last, on the monotonic clock.
    asked: Option<Duration>,
    /// The points to stand in at, as of `asked`.
    stand_ins: Vec<UnattendedPoint>,
    /// See [`ClusterParts::services`].
    served: Vec<ServiceId>,
    services: watch::Sender<DecisionsByService>,
    members: watch::Sender<MemberSet>,
    publishes: watch::Sender<bool>,
    phase: watch::Sender<Condition>,
    excluded: watch::Sender<Option<String>>,
    endpoints: watch::Sender<SealedEndpoints>,
    /// The state that should be on disk.
    desired: watch::Sender<DesiredState>,
}

/// Makes the cluster's task and handles the state from disk. The task runs once [`Starting::run`]
/// is polled.
pub fn start(parts: ClusterParts) -> (Cluster, Decisions, Disk, Starting) {
    let (messages, inbox) = mpsc::channel(QUEUE);
    let (services, services_watch) = watch::channel(DecisionsByService::new());
    let (publishes, publishes_watch) = watch::channel(false);
    let (phase, phase_watch) = watch::channel(Condition::Joining);
    let (excluded, excluded_watch) = watch::channel(None);
    let (endpoints, endpoints_watch) = watch::channel(SealedEndpoints::new());
    let decisions = Decisions {
        services: services_watch,
        publishes: publishes_watch,
        phase: phase_watch,
        excluded: excluded_watch,
        endpoints: endpoints_watch,
    };
    let (desired, wanted) = watch::channel(DesiredState::default());
    let (stored, stored_term) = watch::channel(0);
    let disk = Disk { wanted, stored_term: stored };
    let ClusterParts { coordinator, mesh, updates, facts: handed_over, members, cluster, alarms, authority, .. } =
        parts;
    let (served, known) = (parts.services, parts.known);
    let (coordinator, clock) = (Arc::new(Mutex::new(coordinator)), Clock::start());
    let handle = Cluster { messages, coordinator: Arc::clone(&coordinator), clock };
    let shell = ClusterShell {
        inbox,
        mesh,
        updates,
        handed_over,
        stored_term,
        facts: Arc::default(),
        members_changed: false,
        invitations_changed: false,
        facts_changed: false,
        endpoints_changed: false,
        renewals: Vec::new(),
        waiting: Vec::new(),
        cluster,
        alarms,
        authority,
        joined: None,
        others_points_known: false,
        asked: None,
        stand_ins: Vec::new(),
        served,
        services,
        members,
        publishes,
        phase,
        excluded,
        endpoints,
        desired,
    };
    let mut driver = Driver::new(Shared(coordinator), shell, clock);
    driver.handle(known);
    (handle, decisions, disk, Starting { driver })
}

/// The cluster's task before it runs.
pub struct Starting {
    driver: Driver<Shared, ClusterShell>,
}

impl Starting {
    /// Runs until `stop`. Returns the mesh, to be shut down.
    pub async fn run(mut self, stop: CancellationToken) -> Mesh {
        if let Err(error) = self.driver.run(&stop).await {
            error!(name: "cluster_task_failed", %error, "the cluster's task has failed");
        }
        self.driver.into_shell().mesh
    }
}

impl Shell<Shared> for ClusterShell {
    type Input = Input;

    async fn next(&mut self) -> Option<Input> {
        tokio::select! {
            message = self.inbox.recv() => message.map(Input::Message),
            update = self.updates.recv() => update.map(Input::Record),
            Some(facts) = self.handed_over.recv() => Some(Input::Facts(facts)),
            Ok(()) = self.stored_term.changed() => Some(Input::TermStored(*self.stored_term.borrow_and_update())),
        }
    }

    fn take(&mut self, input: Input, _: &mut Jobs<Input>) -> Vec<Event> {
        match input {
            Input::Message((event, done)) => {
                self.waiting.extend(done);
                event.into_iter().collect()
            }
            Input::Record(update) => vec![record(update)],
            Input::Facts(facts) => facts.into_iter().map(record).collect(),
            Input::TermStored(term) => vec![Event::TermStored(term)],
        }
    }

    fn act(&mut self, action: Action, _: &mut Jobs<Input>) {
        match action {
            Action::Gossip { kind, bytes } => {
                if let Err(error) = self.mesh.set(kind, &bytes) {
                    error!(name: "record_announce_failed", %error, kind = kind.key(), "cannot announce a record");
                }
            }
            Action::Retract(kind) => self.mesh.retract(kind),
            Action::RestartGossip => self.mesh.restart(),
            Action::StoreTerm(term) => self.store_term(term),
            Action::Leadership(Leadership::Publisher { term }) => info!(
                name: "publisher_begun",
                term,
                "this node publishes now"
            ),
            Action::Leadership(Leadership::Follower) => info!(
                name: "publisher_ended",
                "this node has stopped publishing"
            ),
            Action::Excluded(why) => {
                error!(name: "excluded", %why, "this node is no longer a member of the cluster");
                self.excluded.send_replace(Some(why));
            }
            Action::MembersChanged => self.members_changed = true,
            Action::InvitationsChanged => self.invitations_changed = true,
            Action::FactsChanged => self.facts_changed = true,
            Action::EndpointsChanged => self.endpoints_changed = true,
            Action::Renew(certificate) => self.renewals.push(certificate),
        }
    }

    /// Updates the watches. Returns the facts that this node must sign as the authority, as events.
    fn settle(&mut self, machine: &Shared, now: Now) -> Vec<Event> {
        let coordinator = lock(&machine.0);
        let (members, invitations) = (mem::take(&mut self.members_changed), mem::take(&mut self.invitations_changed));
        let mut signed: Vec<_> = mem::take(&mut self.renewals).into_iter().filter_map(|it| self.renew(it)).collect();
        if members {
            signed.extend(self.apply_members(coordinator.view(), coordinator.chains()));
        }
        if invitations {
            signed.extend(self.apply_invitations(coordinator.view()));
        }
        if mem::take(&mut self.facts_changed) {
            self.apply_facts(coordinator.view(), now);
        }
        if mem::take(&mut self.endpoints_changed) {
            let sealed = |member: &MemberView| Some((member.node(), member.endpoint()?.sealed.clone()));
            sync::publish(&self.endpoints, coordinator.view().members().filter_map(sealed).collect());
        }
        self.decide(&coordinator, now);
        if signed.is_empty() {
            for done in self.waiting.drain(..) {
                // The waiting task may have given up.
                let _ = done.send(());
            }
        }
        signed
    }
}

impl ClusterShell {
    /// Asks the writer to store a term. A term is used only once it is on disk.
    fn store_term(&mut self, term: u64) {
        self.desired.send_if_modified(|desired| {
            let higher = term > desired.term;
            desired.term = desired.term.max(term);
            higher
        });
    }

    /// Passes the members to the mesh and to disk, where a restart finds them. Revokes nodes that
    /// joined with an invitation that was used up.
    fn apply_members(&mut self, view: &View, chains: Vec<Chain>) -> Vec<Event> {
        let members: BTreeSet<_> = view.members().map(|member| member.node()).collect();
        self.mesh.set_seeds(members.iter().copied().filter(|node| *node != view.me()).collect());
        self.mesh.set_members(members);
        self.desired.send_if_modified(|desired| put(&mut desired.members, chains));
        let evict = |node: NodeId| {
            warn!(
                name: "member_evicted_overdrawn",
                node = %node.short(),
                "evicted: it joined with an invitation that other nodes had used up"
            );
            let revocation = Revocation { cluster: self.cluster, node, revoked: unix_now() };
            self.sign(revocation).map(|signed| Event::Fact(signed.into()))
        };
        view.overdrawn().filter(|node| !view.revoked(node)).filter_map(evict).collect()
    }

    /// Raises alarms. Signs the merged version of each invitation that two publishers changed at
    /// the same time.
    fn apply_invitations(&mut self, view: &View) -> Vec<Event> {
        let known = view.invitations();
        self.alarms.look_at(known.iter());
        let alarms = self.alarms.all();
        self.desired.send_if_modified(|desired| put(&mut desired.alarms, alarms));
        known.unsigned().cloned().filter_map(|merged| Some(Event::Fact(self.sign(merged)?.into()))).collect()
    }

    /// Passes the facts of every kind to the neighbours and to disk.
    fn apply_facts(&mut self, view: &View, now: Now) {
        let known = view.facts();
        self.facts = Arc::new(known.shared(now.unix));
        self.desired.send_if_modified(|desired| put(&mut desired.facts, known.complete_statements()));
    }

    /// Signs a member's renewed certificate, and the fact that carries it.
    fn renew(&self, certificate: MemberCertificate) -> Option<Event> {
        let (node, expires) = (certificate.node, certificate.expires);
        let renewal = self.sign(Renewal::of(&self.sign(certificate)?))?;
        info!(name: "membership_renewed", node = %node.short(), expires = date(expires), "renewed the membership");
        Some(Event::Fact(renewal.into()))
    }

    /// Signs as the cluster's authority; `None` if this node does not have its key.
    fn sign<T: Statement>(&self, statement: T) -> Option<Verified<T>> {
        let authority = self.authority.as_ref()?;
        Verified::sign(statement, authority)
            .inspect_err(|error| {
                error!(
                    name: "sign_failed",
                    %error,
                    "cannot sign"
                )
            })
            .ok()
    }

    /// The decisions for one service.
    fn wanted(&self, coordinator: &Coordinator, service: ServiceId, term: Option<u64>) -> ServiceDecisions {
        let view = coordinator.view();
        let points = coordinator.desired_points(&service).iter().map(|(_, point)| point.clone()).collect();
        let (floors, of_others) = (view.revisions(&service), view.revisions_of_others(&service));
        let unheard = !view.hears_all_publishers();
        let content = DesiredContent { points, subprotocols: coordinator.desired_subprotocols(&service) };
        let publish = publish::task::WantedPublication { term, content, floors, of_others, unheard };
        let (must_leave, avoid) = (view.relays_to_leave(&service), view.relays_of_others(&service));
        let balance = balance::task::WantedPoints { others_points_known: self.others_points_known, must_leave, avoid };
        let stand_in = self.stand_ins.iter().filter(|unattended| unattended.service == service).cloned().collect();
        ServiceDecisions { publish, balance, stand_in }
    }

    /// Updates the watches from the coordinator's state.
    fn decide(&mut self, coordinator: &Coordinator, now: Now) {
        let view = coordinator.view();
        if coordinator.phase() != Phase::Joining {
            let since = *self.joined.get_or_insert(now.mono);
            let acquainted = view.is_alone() || view.heard_all_since(Duration::ZERO);
            self.others_points_known |= acquainted || now.mono - since >= MEMBERS_HEARD_AFTER;
        }
        let term = match coordinator.leadership() {
            Leadership::Publisher { term } => Some(term),
            Leadership::Follower => None,
        };
        sync::publish(&self.publishes, term.is_some());
        sync::publish(&self.phase, coordinator.condition());
        if self.asked.is_none_or(|at| now.mono - at >= LONGEST_SLEEP) {
            self.asked = Some(now.mono);
            self.stand_ins = coordinator.stand_ins(now);
        }
        let wanted = |service| (service, self.wanted(coordinator, service, term));
        let services = view.services();
        let served = self.served.iter().copied().filter(|service| services.contains(service));
        sync::publish(&self.services, served.map(wanted).collect());
        let members = view.members().map(|member| member.node()).collect();
        let publishers = view.members().filter(|member| member.member.role() == Role::Publisher);
        let publishers = publishers.map(|member| member.node()).collect();
        let revoked =
            view.revocations().complete_statements().map(|revocation| (revocation.node, revocation.clone())).collect();
        let ends = view.members().map(|member| (member.node(), member.member.certificate.expires)).collect();
        let own = view.member(&view.me()).map(|own| Arc::new(own.member.clone()));
        let facts = Arc::clone(&self.facts);
        sync::publish(&self.members, MemberSet { members, publishers, revoked, ends, own, facts });
    }
}

fn record(Update { origin, kind, bytes }: Update) -> Event {
    Event::Record { origin, kind, bytes }
}

/// Replaces the value; true if it changes.
fn put<T: PartialEq>(held: &mut T, value: T) -> bool {
    let changed = *held != value;
    if changed {
        *held = value;
    }
    changed
}

#[cfg(test)]
pub(super) mod tests;
