//! One node's part in the cluster, whole: `handle(event, now) -> actions`.
//!
//! The caller feeds it what happens (records from the gossip, its own intro points and health, what the operator wants,
//! what the disk and the directories have taken) and does what it says. It reads no clock and does no IO: it is told the
//! time with every event, and [`Coordinator::next_timeout`] says when it wants an [`Event::Tick`] at the latest.
//!
//! It decides nothing itself but orders the machines that do. After every event each of them looks at the whole again:
//!
//! 1. `lifecycle`: is this node still a member, isolated, joined; its [`Phase`];
//! 2. `speaker`: which of its own records are due though they have not changed (`serving` has those that have);
//! 3. the election ([`crate::lease`]): who publishes;
//! 4. `facts`: which facts of the authority it keeps in its gossip;
//! 5. `planning`, one for each service: what should stand in the descriptor. The publisher plans after every event, the
//!    others with each heartbeat.

mod admit;
mod electing;
mod facts;
mod isolation;
mod lifecycle;
mod own;
mod planning;
mod serving;
mod settings;
mod speaker;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

pub use admit::{LISTEN_BEFORE_ADMITTING, NotYet};
pub use isolation::Isolated;
pub use settings::{Action, Event, Leadership, Settings};

use crate::id::{ClusterId, InvitationId, NodeId, ServiceId};
use crate::lease::Election;
use crate::record::{Chain, IntroPoint, Invitation, Member, Phase, RecordKind, Signer};
use crate::signed::{Check, Sign};
use crate::source::Source;
use crate::stand_in::{self, Orphan};
pub use crate::time::Now;
use crate::view::{Changes, Condition, PointCheck, Rejection, View};
use electing::Queue;
use facts::ForwardedFacts;
use lifecycle::{LifeCycle, LifeStep, Surroundings};
use planning::Planner;
use serving::{Publishing, Serving};
use speaker::{Announcements, Speaker};

/// A wall clock that runs ahead of the other by more was set forward.
const CLOCK_STEP: Duration = Duration::from_secs(2);

/// The node's part in the cluster.
pub struct Coordinator {
    settings: Settings,
    cluster: ClusterId,
    me: NodeId,
    member: Member,
    view: View,
    /// The time at the last event; `None` before the first.
    last: Option<Now>,
    /// The time at the first event.
    started: Now,
    /// When the view next needs a tick.
    refresh_at: Duration,
    life: LifeCycle,
    speaker: Speaker,
    announcements: Announcements,
    election: Election,
    queue: Queue,
    forwarded: ForwardedFacts,
    /// The services that this node serves.
    serving: BTreeMap<ServiceId, Serving>,
    /// The services of which this node has published anything, or could not.
    publishing: BTreeMap<ServiceId, Publishing>,
    /// One for each service of the cluster.
    planners: BTreeMap<ServiceId, Planner>,
}

impl Coordinator {
    /// A node that starts. `key` is the node's own, of which `member` is the proof that it belongs.
    pub fn new(settings: Settings, key: Box<dyn Sign + Send + Sync>, member: Member) -> Self {
        let (me, first) = (member.node(), member.authority.cluster.first_service());
        Self {
            cluster: member.authority.cluster,
            me,
            view: View::new(member.clone(), settings.patience, settings.term).with_waiting(settings.waiting),
            member,
            last: None,
            started: Now { mono: Duration::ZERO, unix: 0 },
            refresh_at: Duration::ZERO,
            life: LifeCycle::new(settings.joining, settings.instance),
            speaker: Speaker::new(key, settings.boot),
            announcements: Announcements::default(),
            election: Election::new(me, settings.timing, settings.term),
            queue: Queue::new(settings.term),
            forwarded: ForwardedFacts::default(),
            serving: BTreeMap::new(),
            publishing: BTreeMap::new(),
            planners: BTreeMap::from([(first, Planner::new(first))]),
            settings,
        }
    }

    /// Checks signatures in another way (see [`Check`]).
    pub fn with_check(mut self, check: Box<dyn Check + Send + Sync>) -> Self {
        self.view = self.view.with_check(check);
        self
    }

    /// Believes of others only introduction points that pass this.
    pub fn with_point_check(mut self, check: PointCheck) -> Self {
        self.view = self.view.with_point_check(check);
        self
    }

    /// The cluster as this node knows it.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether this node publishes now.
    pub fn leadership(&self) -> Leadership {
        self.election.leading().map_or(Leadership::Follower, |term| Leadership::Publisher { term })
    }

    /// Where this node is in its life cycle.
    pub fn phase(&self) -> Phase {
        self.life.phase()
    }

    /// How this node is: its phase and its fitness for the services that it serves.
    pub fn condition(&self) -> Condition {
        let draining = self.life.is_draining();
        Condition::of(self.phase(), self.serving.values().map(|serving| serving.fitness(draining)))
    }

    /// Why this node must keep still now, if it must.
    pub fn isolation(&self, now: Now) -> Option<Isolated> {
        self.life.isolation(&Surroundings::of(&self.view), now.mono)
    }

    /// What the descriptor of this service should list, by session key. Every node computes it, the publisher after every
    /// event, the others at each heartbeat. Empty if no source can serve: then the published points are left as they are.
    pub fn desired_points(&self, service: &ServiceId) -> &[(Source, IntroPoint)] {
        self.planners.get(service).map_or(&[], |planner| &planner.choice().points)
    }

    /// Rises with every change of [`Coordinator::desired_points`] of this service.
    pub fn desired_version(&self, service: &ServiceId) -> u64 {
        self.planners.get(service).map_or(0, Planner::version)
    }

    /// The points of others at which this node is to serve. Not cheap with hundreds of nodes: once a second is enough.
    pub fn stand_ins(&self, now: Now) -> Vec<Orphan> {
        let out = self.phase() != Phase::Active || self.isolation(now).is_some();
        if out { Vec::new() } else { stand_in::share(&self.view, now.mono) }
    }

    /// An invitation as this node knows it: merged from all its versions.
    pub fn invitation(&self, token: &InvitationId) -> Option<&Invitation> {
        self.view.invitations().get(token)
    }

    /// The certificates of every member, for the disk and for joiners.
    pub fn chains(&self) -> Vec<Chain> {
        self.view.members().map(|node| node.member.chain()).collect()
    }

    /// When to send [`Event::Tick`] at the latest, on the monotonic clock. `None` when all is said and done.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.has_ended() {
            return None;
        }
        // The others plan with their heartbeats.
        let hidden = self.planners.values().filter_map(Planner::hidden_until).min();
        let hidden = hidden.filter(|_| self.election.leading().is_some());
        let always = [self.announcements.next_deadline(), self.refresh_at];
        let sometimes = [self.life.next_deadline(), self.queue.next_deadline(), hidden];
        always.into_iter().chain(sometimes.into_iter().flatten()).min()
    }

    /// Takes in what has happened and says what is to be done, in this order.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        if self.has_ended() {
            return out;
        }
        let now = self.advance(now, &mut out);
        let mut changes = self.take(event, now, &mut out);
        if now.mono >= self.refresh_at || self.announcements.is_heartbeat_due(now.mono) {
            changes |= self.view.refresh(now);
            self.refresh_at = self.view.next_deadline().unwrap_or(now.mono + self.view.patience().most);
        }
        self.reconcile(changes, now, &mut out);
        self.last = Some(now);
        out
    }

    /// True once it is excluded or has said goodbye: nothing follows.
    fn has_ended(&self) -> bool {
        self.life.is_excluded() || (self.life.is_leaving() && self.announcements.has_said_goodbye())
    }

    /// Notices the first event, a clock that stood and a process that was stopped.
    fn advance(&mut self, mut now: Now, out: &mut Vec<Action>) -> Now {
        let Some(last) = self.last else {
            self.begin(now, out);
            return now;
        };
        now.mono = now.mono.max(last.mono);
        let passed = now.mono - last.mono;
        // The monotonic clock of most systems stands while the machine sleeps; then only the other one tells.
        let gone = Duration::from_secs(now.unix.saturating_sub(last.unix));
        if gone > passed + CLOCK_STEP {
            self.life.clock_stepped(now);
        }
        let slept = gone.saturating_sub(passed) >= self.settings.timing.ttl;
        if slept || passed > self.view.patience().interval * 3 {
            self.view.amnesty(now.mono);
            self.refresh_at = now.mono;
        }
        if slept || passed >= self.view.patience().least {
            let mut steps = Vec::new();
            self.election.interrupted(now.mono, &mut steps);
            self.perform(&steps, now, out);
        }
        now
    }

    fn begin(&mut self, now: Now, out: &mut Vec<Action>) {
        self.started = now;
        self.life.begin(now);
        self.announcements.begin(now.mono);
        self.election.listen(now.mono);
        self.view.begin(now.unix);
        self.announce_card(now, out);
        // Nodes that believe a lease of this node from before its restart must not wait until it is too old.
        self.announce_lease(self.settings.term, Duration::ZERO, now, out);
    }

    fn take(&mut self, event: Event, now: Now, out: &mut Vec<Action>) -> Changes {
        match event {
            Event::Tick => {}
            Event::Record { origin, kind, bytes } => return self.take_record(origin, kind, &bytes, now),
            Event::IntroPoints { service, points } => {
                if let Err(error) = self.serve(service).set_points(points) {
                    tracing::error!(%error, %service, "our own intro points cannot be gossiped");
                }
            }
            Event::Ready { service, ready } => self.serve(service).set_ready(ready),
            Event::MeshReached => self.life.reach_mesh(),
            Event::ShutOut(shut_out) => self.life.set_shut_out(shut_out),
            Event::DiscoveryKey { counted } => self.life.set_counted(counted),
            Event::CannotPublish { service } => {
                self.publishing.entry(service).or_default().unable = self.election.leading().is_some();
            }
            Event::Drain => self.life.set_draining(true),
            Event::Resume => {
                self.life.set_draining(false);
                self.queue.resume();
            }
            Event::Leave => self.life.leave(),
            Event::TermStored(term) => {
                self.election.stored(term);
                return Changes { leases: true, ..Changes::default() };
            }
            Event::Published { service, periods } => {
                self.publishing.entry(service).or_default().set_published(periods);
                return self.announce_publication(service, now, out);
            }
            Event::Fact(fact) => return self.fold(|view| view.fold_fact(fact, now)),
            Event::KnownMembers(chains) => {
                let mut changes = Changes::default();
                for chain in chains {
                    changes |= self.view.admit_chain(chain, now).unwrap_or_default();
                }
                return changes;
            }
        }
        Changes::default()
    }

    fn fold(&mut self, fold: impl FnOnce(&mut View) -> Result<Changes, Rejection>) -> Changes {
        fold(&mut self.view).unwrap_or_else(|rejection| {
            tracing::warn!(%rejection, "a record of our own is refused");
            Changes::default()
        })
    }

    fn take_record(&mut self, origin: NodeId, kind: RecordKind, bytes: &[u8], now: Now) -> Changes {
        if origin == self.me && kind.signer() == Signer::Node {
            self.hear_own(kind, bytes, now);
            return Changes::default();
        }
        match self.view.ingest(origin, kind, bytes, now) {
            Ok(changes) => changes,
            Err(rejection) => {
                if rejection == Rejection::Old && self.view.refused().of(rejection.name()) == 1 {
                    tracing::warn!(
                        origin = %origin.short(),
                        "stale heartbeat: this machine's clock is fast, or that one's slow, or an old record of a dead \
                         node is being replayed"
                    );
                }
                tracing::debug!(origin = %origin.short(), kind = kind.key(), %rejection, "record refused");
                Changes::default()
            }
        }
    }

    /// This node serves that service from now on.
    fn serve(&mut self, service: ServiceId) -> &mut Serving {
        self.serving.entry(service).or_default()
    }

    /// Plans for the services that the cluster has, and announces nothing more of those that it has no longer.
    fn follow_services(&mut self, out: &mut Vec<Action>) {
        let services = self.view.services();
        self.planners.retain(|service, _| services.contains(service));
        for service in &services {
            self.planners.entry(*service).or_insert_with(|| Planner::new(*service));
        }
        let removed = |service: &ServiceId| !services.contains(service);
        out.extend(
            self.serving
                .extract_if(.., |service, _| removed(service))
                .map(|(service, _)| Action::Retract(RecordKind::IntroPoints(service))),
        );
        out.extend(
            self.publishing
                .extract_if(.., |service, _| removed(service))
                .map(|(service, _)| Action::Retract(RecordKind::Publication(service))),
        );
    }

    /// Has each machine look at the whole again.
    fn reconcile(&mut self, mut changes: Changes, now: Now, out: &mut Vec<Action>) {
        match self.life.step(&Surroundings::of(&self.view), now) {
            Some(LifeStep::Excluded(reason)) => return self.exclude(reason, out),
            Some(LifeStep::Joined) => self.election.listen(now.mono),
            None => {}
        }
        if changes.services {
            self.follow_services(out);
        }
        let (phase, interval) = (self.phase(), self.view.patience().interval);
        let due = self.announcements.step(phase, interval, now.mono);
        changes |= self.announce(due, now, out);
        self.elect(&mut changes, now, out);
        if changes.facts {
            out.extend(self.forwarded.step(&self.view, self.member.role(), now.unix));
        }
        let pressing = self.election.leading().is_some() || due.heartbeat;
        for planner in self.planners.values_mut() {
            planner.step(&self.view, &self.settings, changes.points, pressing, now);
        }
        if changes.misled {
            out.push(Action::RestartGossip);
        }
        if changes.members || changes.revocations {
            out.push(Action::MembersChanged);
        }
        if changes.invitations {
            out.push(Action::InvitationsChanged);
        }
        if changes.facts {
            out.push(Action::FactsChanged);
        }
    }

    fn exclude(&mut self, reason: &str, out: &mut Vec<Action>) {
        if self.election.leading().is_some() {
            out.push(Action::Leadership(Leadership::Follower));
        }
        self.election.listen(Duration::ZERO);
        out.push(Action::Excluded(reason.into()));
    }
}
