//! The state machine of one node: `handle(event, now) -> actions`.
//!
//! The caller passes in events (records from gossip, the node's own intro points and health,
//! requests of the operator, confirmations of the disk and the directories) and carries out the
//! actions. The coordinator reads no clock and does no IO: each event carries the time, and
//! [`Coordinator::next_timeout`] returns when it needs an [`Event::Tick`] at the latest.
//!
//! It decides nothing itself but runs the state machines that do. After every event each of them
//! evaluates the whole situation again:
//!
//! 1. `lifecycle`: is this node still a member, isolated, joined; its [`Phase`];
//! 2. `speaker`: which of its own records are due although they have not changed (`serving` finds
//!    those that have);
//! 3. the election ([`crate::lease`]): which node publishes;
//! 4. `facts`: which facts of the authority it announces in its own gossip;
//! 5. `renewal`: which certificates it renews;
//! 6. `planning`, one for each service: what the descriptor should list. The publisher plans after
//!    every event, other nodes with each heartbeat.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use admit::{AdmissionDelay, LISTEN_BEFORE_ADMITTING};
pub use isolation::Isolated;
pub use settings::{Action, Event, Leadership, Preferences, Settings};

use crate::bytes::VarBytes;
use crate::id::{ClusterId, InvitationId, NodeId, ServiceId};
use crate::lease::Election;
use crate::record::{Chain, IntroPoint, Invitation, Member, Phase, ProblemCode, RecordKind, Signer, Subprotocol};
use crate::signed::{Check, Sign};
use crate::source::Source;
use crate::stand_in::{self, UnattendedPoint};
pub use crate::time::Now;
use crate::view::{Changes, Condition, PointCheck, RecordRejection, View};
use electing::ElectionState;
use facts::ForwardedFacts;
use lifecycle::{LifeCycle, LifeStep, Surroundings};
use planning::Planner;
use serving::{Publishing, Serving};
use speaker::{Announcements, Speaker};

mod admit;
mod electing;
mod facts;
mod isolation;
mod lifecycle;
mod own;
mod planning;
mod renewal;
mod serving;
mod settings;
mod speaker;
#[cfg(test)]
mod tests;

/// If the wall clock advances by this much more than the monotonic one, it was set forward.
const CLOCK_STEP: Duration = Duration::from_secs(2);

/// The state machine of one node, and all it knows of its cluster. See the module's documentation.
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
    /// When the view must be refreshed next, on the monotonic clock.
    refresh_at: Duration,
    life: LifeCycle,
    speaker: Speaker,
    announcements: Announcements,
    election: Election,
    queue: ElectionState,
    forwarded: ForwardedFacts,
    /// The services that this node serves.
    serving: BTreeMap<ServiceId, Serving>,
    /// The services that this node has published, or failed to publish.
    publishing: BTreeMap<ServiceId, Publishing>,
    /// This node's sealed WireGuard keys and addresses; `None` until it has had any.
    endpoint: Option<VarBytes>,
    /// The problems of this node itself.
    problems: BTreeSet<ProblemCode>,
    /// True once this process has announced a report.
    reported: bool,
    /// One planner for each service of the cluster.
    planners: BTreeMap<ServiceId, Planner>,
}

impl Coordinator {
    /// A node at its start. `key` is the node's signing key; `member` holds the certificates of its
    /// membership.
    pub fn new(settings: Settings, key: Box<dyn Sign + Send + Sync>, member: Member) -> Self {
        let (me, first) = (member.node(), member.authority.cluster.first_service());
        Self {
            cluster: member.authority.cluster,
            me,
            view: View::new(member.clone(), settings.patience, settings.term)
                .with_waiting(settings.preferences.waiting),
            member,
            last: None,
            started: Now { mono: Duration::ZERO, unix: 0 },
            refresh_at: Duration::ZERO,
            life: LifeCycle::new(settings.joining, settings.instance, settings.restored),
            speaker: Speaker::new(key, settings.boot),
            announcements: Announcements::default(),
            election: Election::new(me, settings.timing, settings.term),
            queue: ElectionState::new(settings.term),
            forwarded: ForwardedFacts::default(),
            serving: BTreeMap::new(),
            publishing: BTreeMap::new(),
            endpoint: None,
            problems: BTreeSet::new(),
            reported: false,
            planners: BTreeMap::from([(first, Planner::new(first))]),
            settings,
        }
    }

    /// Checks signatures with `check` (see [`Check`]).
    pub fn with_check(mut self, check: Box<dyn Check + Send + Sync>) -> Self {
        self.view = self.view.with_check(check);
        self
    }

    /// Accepts from other nodes only introduction points that pass `check`.
    pub fn with_point_check(mut self, check: PointCheck) -> Self {
        self.view = self.view.with_point_check(check);
        self
    }

    /// This node's knowledge of the cluster.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether this node is the publisher now.
    pub fn leadership(&self) -> Leadership {
        self.election.leading().map_or(Leadership::Follower, |term| Leadership::Publisher { term })
    }

    /// Where this node is in its life cycle.
    pub fn phase(&self) -> Phase {
        self.life.phase()
    }

    /// The node's condition, computed from its phase and its fitness for the services it serves.
    pub fn condition(&self) -> Condition {
        let draining = self.life.is_draining();
        Condition::of(self.phase(), self.serving.values().map(|serving| serving.fitness(draining)))
    }

    /// The reason why this node is isolated now; `None` if it is not.
    pub fn isolation(&self, now: Now) -> Option<Isolated> {
        self.life.isolation(&Surroundings::of(&self.view), now.mono)
    }

    /// The points that the descriptor of this service should list, by session key. Every node
    /// computes them: the publisher after every event, other nodes at each heartbeat. Empty if no
    /// source can serve; then the published points should be left as they are.
    pub fn desired_points(&self, service: &ServiceId) -> &[(Source, IntroPoint)] {
        self.planners.get(service).map_or(&[], |planner| &planner.choice().points)
    }

    /// The subprotocols that the descriptor of this service should offer.
    pub fn desired_subprotocols(&self, service: &ServiceId) -> BTreeSet<Subprotocol> {
        self.planners.get(service).map(|planner| planner.choice().subprotocols.clone()).unwrap_or_default()
    }

    /// A number that rises with every change of [`Coordinator::desired_points`] or
    /// [`Coordinator::desired_subprotocols`] of this service.
    pub fn desired_version(&self, service: &ServiceId) -> u64 {
        self.planners.get(service).map_or(0, Planner::version)
    }

    /// The unattended points at which this node must serve. Costly with hundreds of nodes: once per
    /// second is enough.
    pub fn stand_ins(&self, now: Now) -> Vec<UnattendedPoint> {
        let out = self.phase() != Phase::Active || self.isolation(now).is_some();
        if out { Vec::new() } else { stand_in::share(&self.view, now.mono) }
    }

    /// An invitation, merged from all versions that this node knows; `None` if it knows none.
    pub fn invitation(&self, token: &InvitationId) -> Option<&Invitation> {
        self.view.invitations().get(token)
    }

    /// The certificates of every member, to be stored and sent to joiners.
    pub fn chains(&self) -> Vec<Chain> {
        self.view.members().map(|node| node.member.chain()).collect()
    }

    /// When to send [`Event::Tick`] at the latest, on the monotonic clock. `None` once the node is
    /// excluded or has said goodbye.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.has_ended() {
            return None;
        }
        // Only the publisher needs this: other nodes plan with their heartbeats.
        let hidden = self.planners.values().filter_map(Planner::hidden_until).min();
        let hidden = hidden.filter(|_| self.election.leading().is_some());
        let always = [self.announcements.next_deadline(), self.refresh_at];
        let sometimes = [self.life.next_deadline(), self.queue.next_deadline(), hidden];
        always.into_iter().chain(sometimes.into_iter().flatten()).min()
    }

    /// Processes an event and returns the actions, which the caller must carry out in their order.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        if self.has_ended() {
            // A node that has said goodbye serves on until another one has taken its points over,
            // and must hear whether one is left that can.
            if let Event::Record { origin, kind, bytes } = event
                && !self.life.is_excluded()
            {
                self.apply_record(origin, kind, &bytes, now);
            }
            return out;
        }
        let now = self.advance(now, &mut out);
        let mut changes = self.apply(event, now, &mut out);
        if now.mono >= self.refresh_at || self.announcements.is_heartbeat_due(now.mono) {
            changes |= self.view.refresh(now);
            self.refresh_at = self.view.next_deadline().unwrap_or(now.mono + self.view.patience().most);
        }
        self.reconcile(changes, now, &mut out);
        self.last = Some(now);
        out
    }

    /// True once the node is excluded or has said goodbye: no action follows.
    fn has_ended(&self) -> bool {
        self.life.is_excluded() || (self.life.is_leaving() && self.announcements.has_said_goodbye())
    }

    /// Handles the first event, and detects a clock that was stopped or set, and a process that was
    /// stopped.
    fn advance(&mut self, mut now: Now, out: &mut Vec<Action>) -> Now {
        let Some(last) = self.last else {
            self.begin(now, out);
            return now;
        };
        now.mono = now.mono.max(last.mono);
        let passed = now.mono - last.mono;
        // While a machine sleeps, the monotonic clock of most systems stands still; only the wall
        // clock shows it.
        let gone = Duration::from_secs(now.unix.saturating_sub(last.unix));
        if gone > passed + CLOCK_STEP {
            self.life.clock_stepped(now);
        }
        let slept = gone.saturating_sub(passed) >= self.settings.timing.ttl;
        if slept || passed > self.view.patience().longest_pause() {
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
        self.announce_report(now, out);
        // Give up the lease of an earlier run, so that other nodes need not wait until it expires.
        self.announce_lease(self.settings.term, Duration::ZERO, now, out);
    }

    fn apply(&mut self, event: Event, now: Now, out: &mut Vec<Action>) -> Changes {
        match event {
            Event::Tick => {}
            Event::Record { origin, kind, bytes } => return self.apply_record(origin, kind, &bytes, now),
            Event::IntroPoints { service, points } => {
                if let Err(error) = self.serve(service).set_points(points) {
                    tracing::error!(
                        name: "points_announce_failed",
                        %error, %service,
                        "cannot announce our own intro points"
                    );
                }
            }
            Event::Ready { service, ready } => self.serve(service).set_ready(ready),
            Event::MeshReached => self.life.reach_mesh(),
            Event::ShutOut(shut_out) => self.life.set_shut_out(shut_out),
            Event::ClockOff(clock_off) => self.life.set_clock_off(clock_off),
            Event::Unreachable(nodes) => {
                self.view.set_unreachable(nodes);
                self.refresh_at = now.mono;
            }
            Event::DiscoveryKey { counted } => self.life.set_counted(counted),
            Event::CannotPublish { service } => {
                self.publishing.entry(service).or_default().cannot_publish = self.election.leading().is_some();
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
            Event::Endpoint { sealed } => {
                self.endpoint = Some(sealed);
                return self.announce_endpoint(now, out);
            }
            Event::Problems(problems) if problems == self.problems => {}
            Event::Problems(problems) => {
                self.problems = problems;
                return self.announce_report(now, out);
            }
            Event::Preferences(preferences) => return self.prefer(preferences, now, out),
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

    fn fold(&mut self, fold: impl FnOnce(&mut View) -> Result<Changes, RecordRejection>) -> Changes {
        fold(&mut self.view).unwrap_or_else(|rejection| {
            tracing::warn!(name: "own_record_rejected", %rejection, "a record of our own was rejected");
            Changes::default()
        })
    }

    fn apply_record(&mut self, origin: NodeId, kind: RecordKind, bytes: &[u8], now: Now) -> Changes {
        if origin == self.me && kind.signer() == Signer::Node {
            self.on_own_record(kind, bytes, now);
            return Changes::default();
        }
        match self.view.ingest(origin, kind, bytes, now) {
            Ok(changes) => changes,
            Err(rejection) => {
                if rejection == RecordRejection::Old && self.view.refused().of(rejection.name()) == 1 {
                    tracing::warn!(
                        name: "heartbeat_stale",
                        origin = %origin.short(),
                        "stale heartbeat: this machine's clock is fast, the origin's clock is slow, or an old record of a \
                         dead node is being replayed"
                    );
                }
                tracing::debug!(origin = %origin.short(), kind = kind.key(), %rejection, "record rejected");
                Changes::default()
            }
        }
    }

    /// The state of a service, which this node serves from now on.
    fn serve(&mut self, service: ServiceId) -> &mut Serving {
        self.serving.entry(service).or_default()
    }

    /// Keeps a planner for each service of the cluster, and retracts the records about services
    /// that were removed.
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

    /// Has each state machine evaluate the whole situation again.
    fn reconcile(&mut self, mut changes: Changes, now: Now, out: &mut Vec<Action>) {
        match self.life.step(&Surroundings::of(&self.view), now) {
            Some(LifeStep::Excluded(reason)) => return self.exclude(reason, out),
            Some(LifeStep::Joined) => self.election.listen(now.mono),
            None => {}
        }
        if changes.services {
            self.follow_services(out);
        }
        if changes.members {
            changes |= self.follow_certificate(now, out);
        }
        let bounds = if self.announcements.begins() { self.settings.patience } else { self.view.patience() };
        let (phase, interval) = (self.phase(), bounds.interval);
        let due = self.announcements.step(phase, interval, now.mono);
        changes |= self.announce(due, now, out);
        self.elect(&mut changes, now, out);
        if due.heartbeat {
            self.renew(now, out);
        }
        if changes.facts {
            out.extend(self.forwarded.step(&self.view, self.member.role(), now.unix));
        }
        let plans_now = self.election.leading().is_some() || due.heartbeat;
        for planner in self.planners.values_mut() {
            planner.step(&self.view, &self.settings, changes.points, plans_now, now);
        }
        if changes.heard_evicted_node {
            out.push(Action::RestartGossip);
        }
        if changes.members || changes.revocations {
            out.push(Action::MembersChanged);
        }
        if changes.endpoints || changes.members {
            out.push(Action::EndpointsChanged);
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
