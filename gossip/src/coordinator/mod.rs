//! One node's part in the cluster, whole: `handle(event, now) -> actions`.
//!
//! The caller feeds it what happens (records from the gossip, its own intro points and health, what the operator wants,
//! what the disk and the directories have taken) and does what it says. It reads no clock and does no IO: it is told the
//! time with every event, and [`Coordinator::next_timeout`] says when it wants an [`Event::Tick`] at the latest.
//!
//! After every event it does not react to that event but looks at the whole again, in this order: is this node still a
//! member; where is it in its life; is a heartbeat due; who publishes; what of others' facts is to be passed on; what
//! should stand in the descriptor of each service. The last is for the publisher; the others look at it when they beat.

mod admit;
mod isolation;
mod own;
mod planning;
mod serving;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

pub use admit::{LISTEN_BEFORE_ADMITTING, NotYet};
pub use isolation::Isolated;
pub use settings::{Action, Event, Leadership, Settings};

use crate::id::{ClusterId, NodeId, ServiceId};
use crate::lease::{Election, Situation, Step};
use crate::record::{Chain, Heartbeat, IntroPoint, Invitation, Member, Phase, RecordKind, Role};
use crate::signed::{Check, Sign};
use crate::source::Source;
use crate::stand_in::{self, Orphan};
pub use crate::time::Now;
use crate::view::{Changes, Condition, PointCheck, Rejection, Standing, View};
use isolation::Isolation;
use own::Voice;
use planning::Planner;
use serving::{Publishing, Serving};

/// How long all is not said anew again after it was, because a higher word of our own came back.
const REISSUE_PAUSE: Duration = Duration::from_secs(10);
/// A wall clock that runs ahead of the other by more was set forward.
const CLOCK_STEP: Duration = Duration::from_secs(2);
/// How often a node says again what changes seldom. A hostile member can have others believe that they have heard it all;
/// who does never asks for it, and would else miss it until it changes.
const REPEAT: Duration = Duration::from_secs(300);

/// The node's part in the cluster.
pub struct Coordinator {
    settings: Settings,
    cluster: ClusterId,
    me: NodeId,
    member: Member,
    voice: Voice,
    view: View,
    election: Election,
    /// The time at the last event; `None` before the first.
    last: Option<Now>,
    started: Duration,
    /// The same on the other clock, in seconds since the Unix epoch.
    started_unix: u64,
    next_beat: Duration,
    beaten: Option<Duration>,
    refresh_at: Duration,
    elect_at: Option<Duration>,
    /// This node's place in the queue for a term, until somebody comes, goes or changes.
    place: Option<(u64, usize)>,
    said_phase: Option<Phase>,
    joined: bool,
    draining: bool,
    /// The lease was given up for the drain; if it comes back all the same, nobody else wanted it.
    handed_over: bool,
    leaving: bool,
    isolation: Isolation,
    /// Whether this node was isolated at the last event, and when that may change by time alone.
    isolated: bool,
    isolate_at: Option<Duration>,
    /// The services that this node serves.
    serving: BTreeMap<ServiceId, Serving>,
    /// The services of which this node has published anything, or could not.
    publishing: BTreeMap<ServiceId, Publishing>,
    last_term: u64,
    /// When all was last said anew, and when it is to be again.
    reissued: Option<Duration>,
    reissue_at: Option<Duration>,
    /// When what changes seldom is to be said again.
    repeat_at: Duration,
    excluded: bool,
    /// Facts signed by the authority that stand in our own gossip.
    passed_on: BTreeMap<RecordKind, Vec<u8>>,
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
            voice: Voice::new(key, settings.boot),
            view: View::new(member.clone(), settings.patience, settings.term).with_waiting(settings.waiting),
            election: Election::new(me, settings.timing, settings.term),
            member,
            last: None,
            started: Duration::ZERO,
            started_unix: 0,
            next_beat: Duration::ZERO,
            beaten: None,
            refresh_at: Duration::ZERO,
            elect_at: None,
            place: None,
            said_phase: None,
            joined: false,
            draining: false,
            handed_over: false,
            leaving: false,
            isolation: Isolation::new(settings.instance),
            isolated: false,
            isolate_at: None,
            serving: BTreeMap::new(),
            publishing: BTreeMap::new(),
            last_term: settings.term,
            reissued: None,
            reissue_at: None,
            repeat_at: Duration::ZERO,
            excluded: false,
            passed_on: BTreeMap::new(),
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
        if self.leaving || self.excluded {
            Phase::Gone
        } else if !self.joined {
            Phase::Joining
        } else if self.draining {
            Phase::Draining
        } else {
            Phase::Active
        }
    }

    /// How this node is: its phase and its fitness for the services that it serves.
    pub fn condition(&self) -> Condition {
        Condition::of(self.phase(), self.serving.values().map(|serving| serving.fitness(self.draining)))
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
        let out = !self.joined || self.draining || self.leaving || self.excluded;
        if out || self.isolation(now).is_some() { Vec::new() } else { stand_in::share(&self.view, now.mono) }
    }

    /// When to send [`Event::Tick`] at the latest, on the monotonic clock. `None` when all is said and done.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.excluded || (self.leaving && self.said_phase == Some(Phase::Gone)) {
            return None;
        }
        let joining = (!self.joined && !self.isolated).then_some(self.started + self.settings.joining);
        // The others choose when they beat.
        let hidden = self.planners.values().filter_map(Planner::hidden_until).min();
        let hidden = hidden.filter(|_| self.election.leading().is_some());
        let always = [self.next_beat, self.refresh_at, self.repeat_at];
        let sometimes = [self.elect_at, joining, self.reissue_at, self.isolate_at, hidden];
        always.into_iter().chain(sometimes.into_iter().flatten()).min()
    }

    /// Takes in what has happened and says what is to be done, in this order.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        if self.excluded || (self.leaving && self.said_phase == Some(Phase::Gone)) {
            return out;
        }
        let now = self.advance(now, &mut out);
        let mut changes = self.take(event, now, &mut out);
        if now.mono >= self.refresh_at || now.mono >= self.next_beat {
            changes |= self.view.refresh(now);
            self.refresh_at = self.view.next_deadline().unwrap_or(now.mono + self.view.patience().most);
        }
        self.reconcile(changes, now, &mut out);
        self.last = Some(now);
        out
    }

    /// Notices the first event, a clock that stood and a process that was stopped.
    fn advance(&mut self, mut now: Now, out: &mut Vec<Action>) -> Now {
        let Some(last) = self.last else {
            (self.started, self.started_unix) = (now.mono, now.unix);
            self.next_beat = now.mono;
            self.repeat_at = now.mono + REPEAT;
            self.election.listen(now.mono);
            self.isolation.begin(now);
            self.view.begin(now.unix);
            self.say_card(out);
            // Whoever believes a lease of this node from before its restart must not wait until it is too old.
            self.say_lease(self.settings.term, Duration::ZERO, now, out);
            return now;
        };
        now.mono = now.mono.max(last.mono);
        let passed = now.mono - last.mono;
        // The monotonic clock of most systems stands while the machine sleeps; then only the other one tells.
        let gone = Duration::from_secs(now.unix.saturating_sub(last.unix));
        if gone > passed + CLOCK_STEP {
            // The clock was slow before: what was dated since then may be of an earlier process.
            self.isolation.begin(now);
        }
        let slept =
            Duration::from_secs(now.unix.saturating_sub(last.unix)).saturating_sub(passed) >= self.settings.timing.ttl;
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

    fn take(&mut self, event: Event, now: Now, out: &mut Vec<Action>) -> Changes {
        match event {
            Event::Tick => {}
            Event::Record { origin, kind, bytes } => return self.take_record(origin, kind, &bytes, now),
            Event::IntroPoints { service, points } => {
                if let Err(rejection) = self.serve(service).set_points(points) {
                    tracing::error!(%rejection, %service, "our own intro points cannot be gossiped");
                }
            }
            Event::Ready { service, ready } => self.serve(service).set_ready(ready),
            Event::MeshReached => self.join(now),
            Event::ShutOut(shut_out) => self.isolation.set_shut_out(shut_out),
            Event::DiscoveryKey { counted } => self.isolation.set_counted(counted),
            Event::CannotPublish { service } => {
                self.publishing.entry(service).or_default().unable = self.election.leading().is_some();
            }
            Event::Drain => self.draining = true,
            Event::Resume => (self.draining, self.handed_over) = (false, false),
            Event::Leave => self.leaving = true,
            Event::TermStored(term) => {
                self.election.stored(term);
                return Changes { leases: true, ..Changes::default() };
            }
            Event::Published { service, periods } => {
                self.publishing.entry(service).or_default().set_published(periods);
                return self.say_publication(service, now, out);
            }
            Event::Invitation(invitation) => return self.fold(|view| view.fold_invitation(invitation, now)),
            Event::Revocation(revocation) => return self.fold(|view| view.fold_revocation(revocation, now)),
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
        if origin == self.me && !kind.is_fact() {
            self.hear_own(kind, bytes, now);
            return Changes::default();
        }
        match self.view.ingest(origin, kind, bytes, now) {
            Ok(changes) => changes,
            Err(rejection) => {
                if rejection == Rejection::Old && self.view.refused().of(rejection.name()) == 1 {
                    tracing::warn!(
                        origin = %origin.short(),
                        "a member's word is old: this machine's clock is fast, or that one's slow, or somebody repeats \
                         what a dead node once said"
                    );
                }
                tracing::debug!(origin = %origin.short(), kind = kind.key(), %rejection, "record refused");
                Changes::default()
            }
        }
    }

    /// This node serves that service from now on, and plans for it.
    fn serve(&mut self, service: ServiceId) -> &mut Serving {
        self.planners.entry(service).or_insert_with(|| Planner::new(service));
        self.serving.entry(service).or_default()
    }

    /// Looks at the whole again.
    fn reconcile(&mut self, mut changes: Changes, now: Now, out: &mut Vec<Action>) {
        if self.is_excluded(now, out) {
            return;
        }
        self.isolate(now);
        self.live(now);
        if self.reissue_at.is_some_and(|at| now.mono >= at) {
            (self.reissue_at, self.reissued) = (None, Some(now.mono));
            self.say_all(now, out);
        } else if now.mono >= self.repeat_at {
            self.repeat(now, out);
        }
        changes |= self.announce_services(out);
        changes |= self.beat(now, out);
        self.elect(&mut changes, now, out);
        self.pass_on(&changes, now, out);
        self.plan(&changes, now);
        if changes.misled {
            out.push(Action::RestartGossip);
        }
        if changes.members || changes.revocations {
            out.push(Action::MembersChanged);
        }
        if changes.invitations {
            out.push(Action::InvitationsChanged);
        }
    }

    /// Chooses what should stand in the descriptors.
    fn plan(&mut self, changes: &Changes, now: Now) {
        let pressing = self.election.leading().is_some() || self.beaten == Some(now.mono);
        for planner in self.planners.values_mut() {
            planner.step(&self.view, &self.settings, changes.points, pressing, now);
        }
    }

    fn is_excluded(&mut self, now: Now, out: &mut Vec<Action>) -> bool {
        let reason = match self.view.own_standing() {
            Standing::Member if self.isolation.must_end(now.mono) => {
                "this node's key is in use by a second process, most likely on another machine with a copy of this state directory; both stop. Delete all copies but one, and start that one: a state directory may be moved, never run twice"
            }
            Standing::Member => return false,
            Standing::Expired => {
                "this node's member certificate has expired: check this machine's clock; if it is right, join again with a new invitation"
            }
            Standing::Revoked => {
                "this node was evicted from the cluster: it comes back only under a new key, with a new invitation"
            }
            Standing::Overdrawn => {
                "this node joined with an invitation that others had used up at the same time: join again with a new one"
            }
        };
        if self.election.leading().is_some() {
            out.push(Action::Leadership(Leadership::Follower));
        }
        self.election.listen(Duration::ZERO);
        self.excluded = true;
        out.push(Action::Excluded(reason.into()));
        true
    }

    fn join(&mut self, now: Now) {
        if !self.joined {
            self.joined = true;
            self.election.listen(now.mono);
        }
    }

    /// Why this node must keep still now, if it must.
    pub fn isolation(&self, now: Now) -> Option<Isolated> {
        self.isolation.reason(self.view.revocations().len(), self.view.has_other_publisher(), now.mono)
    }

    fn isolate(&mut self, now: Now) {
        self.isolation.compare(self.view.revocations().len(), now);
        let why = self.isolation(now);
        self.isolate_at = self.isolation.next_deadline(now.mono);
        if self.isolated != why.is_some() {
            match why {
                // A node that has just joined is in this state until its first link.
                Some(why @ Isolated::LacksRevocations { .. }) => tracing::info!(%why, "this node is isolated"),
                Some(why) => tracing::warn!(%why, "this node is isolated: it does not publish, admit or rotate keys"),
                None => tracing::info!("this node is isolated no longer"),
            }
        }
        self.isolated = why.is_some();
    }

    /// Moves on in life.
    fn live(&mut self, now: Now) {
        let waited = now.mono >= self.started + self.settings.joining && !self.isolated;
        if !self.joined && (waited || self.view.is_alone() || self.view.hears_any()) {
            self.join(now);
        }
    }

    fn beat(&mut self, now: Now, out: &mut Vec<Action>) -> Changes {
        let phase = self.phase();
        if now.mono < self.next_beat && self.said_phase == Some(phase) {
            return Changes::default();
        }
        self.next_beat = now.mono + self.view.patience().interval;
        self.beaten = Some(now.mono);
        self.said_phase = Some(phase);
        let hears = u16::try_from(self.view.hears()).unwrap_or(u16::MAX);
        let (cluster, node, unix, instance) = (self.cluster, self.me, now.unix, self.settings.instance);
        let Some((beat, bytes)) = self.voice.say(|seq| Heartbeat { cluster, node, seq, phase, hears, unix, instance })
        else {
            return Changes::default();
        };
        out.push(Action::Gossip { kind: RecordKind::Heartbeat, bytes });
        self.view.fold_heartbeat(beat, now)
    }

    fn elect(&mut self, changes: &mut Changes, now: Now, out: &mut Vec<Action>) {
        if self.member.role() != Role::Publisher {
            return;
        }
        if changes.members {
            self.place = None;
        }
        let mut steps = Vec::new();
        let mut situation = self.situation(now);
        self.election.step(&situation, now.mono, &mut steps);
        self.handed_over |= situation.hand_over && self.draining;
        let leading = self.election.leading().is_some();
        self.publishing.values_mut().for_each(|publishing| publishing.unable &= leading);
        if !steps.is_empty() {
            changes.leases = true;
            self.perform(&steps, now, out);
            situation = self.situation(now);
        }
        self.elect_at = self.election.next_deadline(&situation).filter(|at| *at > now.mono);
    }

    fn place(&mut self, term: u64) -> usize {
        let known = self.place.filter(|(of, _)| *of == term);
        let (_, place) = *self.place.insert(known.unwrap_or_else(|| (term, self.view.place(term))));
        place
    }

    fn situation(&mut self, now: Now) -> Situation {
        let (best, live) = (self.view.best_claim(), self.view.is_best_live(now.mono));
        let highest = self.view.highest_term();
        let leading = self.election.leading().is_some();
        let mut situation = Situation { best, live, highest, ..Situation::default() };
        if live && !leading {
            return situation;
        }
        let may = self.joined && !self.leaving && !self.isolated && self.view.may_publish();
        // Who leads stands in no queue; the others' ranks need not be computed for it.
        let next = self.election.stored_term().max(highest) + 1;
        situation.place = may.then(|| if leading { 0 } else { self.place(next) });
        let unable = self.publishing.values().any(|publishing| publishing.unable);
        let unwilling = unable || (self.draining && !self.handed_over);
        situation.hand_over = leading && unwilling && self.view.has_successor();
        if !leading {
            situation.alone = self.view.is_alone();
            situation.complete = self.election.listening_since().is_some_and(|since| self.view.heard_all_since(since));
            situation.lower = self.view.is_lower_live(now.mono);
        }
        situation
    }

    fn perform(&mut self, steps: &[Step], now: Now, out: &mut Vec<Action>) {
        for step in steps {
            match *step {
                Step::Store(term) => out.push(Action::StoreTerm(term)),
                Step::Renew(term) => self.say_lease(term, self.settings.timing.ttl, now, out),
                Step::GiveUp(term) => self.say_lease(term, Duration::ZERO, now, out),
                Step::Lead(term) => {
                    self.last_term = term;
                    out.push(Action::Leadership(Leadership::Publisher { term }));
                }
                Step::Follow => out.push(Action::Leadership(Leadership::Follower)),
            }
        }
    }

    /// Keeps the authority's facts alive in our own gossip: who said them first may be gone. Publishers do so with
    /// invitations, everybody with revocations: if a single node is left that knows of one, all shall.
    fn pass_on(&mut self, changes: &Changes, now: Now, out: &mut Vec<Action>) {
        if !(changes.invitations || changes.revocations) {
            return;
        }
        let publisher = self.member.role() == Role::Publisher;
        let invitations = self.view.invitations();
        let mut facts: BTreeMap<RecordKind, Vec<u8>> = BTreeMap::new();
        for invitation in invitations.iter().filter(|_| publisher) {
            let kind = RecordKind::Invitation(invitation.token);
            // Until somebody signs the merger as a whole, what we say of it already is better than nothing.
            let whole = invitations.whole(&invitation.token).and_then(|whole| whole.to_bytes().ok());
            let bytes = whole.or_else(|| self.passed_on.get(&kind).cloned());
            if let Some(bytes) = bytes.filter(|_| invitations.is_current(&kind, now.unix)) {
                facts.insert(kind, bytes);
            }
        }
        for revocation in self.view.revocations() {
            let kind = RecordKind::Revocation(revocation.node);
            // The first of a node stays, and a node that starts hears of all, one after the other.
            let bytes = self.passed_on.get(&kind).cloned().or_else(|| revocation.to_bytes().ok());
            facts.extend(bytes.map(|bytes| (kind, bytes)));
        }
        for (kind, bytes) in &facts {
            if self.passed_on.get(kind) != Some(bytes) {
                out.push(Action::Gossip { kind: *kind, bytes: bytes.clone() });
            }
        }
        out.extend(self.passed_on.keys().filter(|kind| !facts.contains_key(kind)).map(|kind| Action::Retract(*kind)));
        self.passed_on = facts;
    }

    /// An invitation as this node knows it: merged from all its versions.
    pub fn invitation(&self, token: &crate::id::InvitationId) -> Option<&Invitation> {
        self.view.invitations().get(token)
    }

    /// The certificates of every member, for the disk and for joiners.
    pub fn chains(&self) -> Vec<Chain> {
        self.view.members().map(|node| node.member.chain()).collect()
    }
}
