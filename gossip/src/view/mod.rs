//! The verified picture of the cluster, folded from records and liveness.
//!
//! Everything that comes off the wire enters through [`View::ingest`]: it checks a record, then
//! folds it or returns a [`RecordRejection`]. Everything read from a view has been verified.
//! [`View::refresh`] lets time pass.
//!
//! Two nodes that have ingested the same records, in any order and any number of times, agree on
//! the members, on the best claim to the lease and on the state of each invitation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use condition::Condition;
pub use fold::{MAX_FENCE, MAX_REVISIONS};
pub use ingest::MAX_BOOT_JUMP;
pub use pending::DEFAULT_WAITING;
pub use rejection::{RecordRejection, RefusedRecords};

use crate::facts::{AllFacts, Facts};
use crate::id::{AuthorityId, ClusterId, NodeId, ServiceId};
use crate::lease::{Claim, MAX_TTL, Rank};
use crate::liveness::{Liveness, Patience};
use crate::record::{
    AnyRecord, Endpoint, Heartbeat, Invitation, Lease, Listed, Member, NodeCard, NodeReport, PeriodId, Phase,
    RecordKind, Revocation, Role, ServedPoint,
};
use crate::signed::{Check, Strict, Verified};
use crate::time::Now;
use instances::Instances;
use pending::Pending;

mod condition;
mod facts;
mod fold;
mod ingest;
mod instances;
mod pending;
mod rejection;
mod services;
#[cfg(test)]
mod tests;

/// Most nodes in a cluster.
pub const MAX_NODES: usize = 1024;

/// Whether a node whose certificates are sound counts as a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It counts as a member.
    Member,
    /// Its certificate has expired; a renewed one makes it a member again.
    Expired,
    /// It was revoked, which is final.
    Revoked,
    /// It joined with a token that others had used up.
    Overdrawn,
}

/// One node as this node sees it.
#[derive(Debug, Clone)]
pub struct MemberView {
    /// Its certificates, which have been checked.
    pub member: Member,
    /// Whether it counts as a member.
    pub standing: Standing,
    /// Its own newest record of each kind.
    records: BTreeMap<RecordKind, AnyRecord>,
    /// True if its heartbeats show that it is alive now.
    pub alive: bool,
    /// True if it was alive at any time since this process started.
    pub been_alive: bool,
    /// When its last heartbeat was taken in, on the monotonic clock; `None` if never.
    pub last_heard: Option<Duration>,
    /// The same on the wall clock, in seconds since the Unix epoch.
    heard_unix: Option<u64>,
    /// When its heartbeats last showed that two processes run with its key, on the monotonic clock;
    /// `None` if never.
    pub duplicate_key_seen: Option<Duration>,
    instances: Instances,
    /// When a heartbeat of it was last refused as too old, on the monotonic clock.
    stale_heartbeat_at: Option<Duration>,
    /// When its newest lease arrived, on the monotonic clock.
    lease_seen: Duration,
    /// The highest revision that it has announced for each service and period. Each node has its
    /// own map, so that no node can displace the revisions of another.
    revisions: BTreeMap<ServiceId, BTreeMap<PeriodId, u64>>,
    /// The highest term it ever claimed; 0 if none.
    claimed: u64,
    /// The earliest issue date of its member certificates, in seconds since the Unix epoch.
    joined: u64,
    /// A cache: its rank, with the term and the priority for which it was computed last.
    rank: Option<(u64, u8, Rank)>,
}

impl MemberView {
    fn new(member: Member) -> Self {
        let joined = member.certificate.issued;
        Self {
            member,
            standing: Standing::Member,
            records: BTreeMap::new(),
            alive: false,
            been_alive: false,
            last_heard: None,
            heard_unix: None,
            duplicate_key_seen: None,
            instances: Instances::default(),
            stale_heartbeat_at: None,
            lease_seen: Duration::ZERO,
            revisions: BTreeMap::new(),
            claimed: 0,
            joined,
            rank: None,
        }
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        self.member.node()
    }

    /// Its own newest record of each kind.
    pub fn records(&self) -> impl Iterator<Item = &AnyRecord> + '_ {
        self.records.values()
    }

    /// Its newest record of a kind.
    fn newest<T: Listed>(&self, kind: RecordKind) -> Option<&Verified<T>> {
        self.records.get(&kind).and_then(T::of)
    }

    /// Its newest card.
    pub fn card(&self) -> Option<&Verified<NodeCard>> {
        self.newest(RecordKind::Card)
    }

    /// Its newest heartbeat.
    pub fn heartbeat(&self) -> Option<&Verified<Heartbeat>> {
        self.newest(RecordKind::Heartbeat)
    }

    /// Its newest lease, live or not.
    pub fn lease(&self) -> Option<&Verified<Lease>> {
        self.newest(RecordKind::Lease)
    }

    /// Its newest WireGuard keys and addresses, sealed, if it has announced any since its last
    /// restart.
    pub fn endpoint(&self) -> Option<&Verified<Endpoint>> {
        self.newest::<Endpoint>(RecordKind::Endpoint)
            .filter(|record| !record.sealed.0.is_empty() && self.is_of_this_start(record.seq))
    }

    /// Seconds by which this machine's clock was ahead of this node's when its newest heartbeat
    /// arrived, if it is alive. The time that the heartbeat was under way counts as ahead.
    pub fn clock_ahead(&self) -> Option<i64> {
        let (arrived, sent) = (i64::try_from(self.heard_unix?).ok()?, i64::try_from(self.heartbeat()?.unix).ok()?);
        arrived.checked_sub(sent).filter(|_| self.alive)
    }

    /// Its report, if it has announced one since its last restart.
    pub fn report(&self) -> Option<&Verified<NodeReport>> {
        self.newest::<NodeReport>(RecordKind::Report).filter(|record| self.is_of_this_start(record.seq))
    }

    /// Its phase, as its newest heartbeat states it; `Joining` before the first.
    pub fn phase(&self) -> Phase {
        self.heartbeat().map_or(Phase::Joining, |beat| beat.phase)
    }

    /// Its priority in elections, lower first; the last place (255) before its card has arrived.
    pub fn priority(&self) -> u8 {
        self.card().map_or(u8::MAX, |card| card.priority)
    }

    /// Its share of intro points relative to the others', 1 to 100.
    pub fn weight(&self) -> u8 {
        self.card().map_or(NodeCard::DEFAULT_WEIGHT, |card| card.weight)
    }

    /// True if it may take over the lease.
    pub(crate) fn is_eligible(&self) -> bool {
        self.standing == Standing::Member
            && self.alive
            && self.member.role() == Role::Publisher
            && !matches!(self.phase(), Phase::Joining | Phase::Gone)
    }

    /// Its place in the queue for a term: draining nodes come after all others.
    fn queue(&mut self, term: u64) -> (bool, Rank) {
        let (priority, node) = (self.priority(), self.node());
        let known = self.rank.filter(|(of, with, _)| (*of, *with) == (term, priority));
        let (_, _, rank) =
            *self.rank.insert(known.unwrap_or_else(|| (term, priority, Rank::new(priority, term, node))));
        (self.phase() == Phase::Draining, rank)
    }
}

/// Which parts of the view changed. Combined with `|=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// The members: which nodes they are, whether they are alive, their phases, their cards.
    pub members: bool,
    /// Facts of any kind.
    pub facts: bool,
    /// The invitations and their redeemers.
    pub invitations: bool,
    /// The introduction points that may be listed in a descriptor.
    pub points: bool,
    /// Leases of any node.
    pub leases: bool,
    /// The set of revoked nodes.
    pub revocations: bool,
    /// The periods and revisions that publishers announce.
    pub publications: bool,
    /// The WireGuard keys and addresses that members announce.
    pub endpoints: bool,
    /// The services of the cluster, and their settings.
    pub services: bool,
    /// A revocation arrived late: a node that counted as a living member had been evicted before.
    pub heard_evicted_node: bool,
}

impl std::ops::BitOrAssign for Changes {
    fn bitor_assign(&mut self, other: Self) {
        self.members |= other.members;
        self.facts |= other.facts;
        self.invitations |= other.invitations;
        self.points |= other.points;
        self.leases |= other.leases;
        self.revocations |= other.revocations;
        self.publications |= other.publications;
        self.endpoints |= other.endpoints;
        self.services |= other.services;
        self.heard_evicted_node |= other.heard_evicted_node;
    }
}

/// Whether an introduction point announced by a node can be its own and may be listed in a
/// descriptor. The answer needs Tor's encodings or keys, which this crate does not have.
pub type PointCheck = Box<dyn Fn(NodeId, &ServedPoint) -> bool + Send + Sync>;

/// The cluster as this node knows it.
pub struct View {
    cluster: ClusterId,
    me: NodeId,
    /// The only authority of the cluster. Members certified by another one are refused, because the
    /// store and the discovery keys support only one.
    authority: AuthorityId,
    /// When this process began, in seconds since the Unix epoch; 0 until that is known.
    began: u64,
    nodes: BTreeMap<NodeId, MemberView>,
    facts: AllFacts,
    liveness: Liveness,
    pending: Pending,
    refused: RefusedRecords,
    /// Highest term known before this process started; claims of lower terms are not believed.
    initial_term: u64,
    /// The highest term ever claimed. Never falls; claims of lower terms are void.
    claimed_term: u64,
    /// The best claim to `claimed_term` that its holder has not given up.
    best: Option<Claim>,
    highest_term: u64,
    check: Box<dyn Check + Send + Sync>,
    point_check: PointCheck,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("me", &self.me)
            .field("nodes", &self.nodes.len())
            .field("best", &self.best)
            .finish()
    }
}

impl View {
    /// A view that knows only this node itself. `term` is the highest term on disk: claims of lower
    /// terms are not believed.
    pub fn new(member: Member, patience: Patience, term: u64) -> Self {
        let me = member.node();
        let mut view = Self {
            cluster: member.authority.cluster,
            me,
            authority: member.authority_id(),
            began: 0,
            nodes: BTreeMap::new(),
            facts: AllFacts::default(),
            liveness: Liveness::new(patience),
            pending: Pending::default(),
            refused: RefusedRecords::default(),
            initial_term: term,
            claimed_term: term,
            best: None,
            highest_term: term,
            check: Box::new(Strict),
            point_check: Box::new(|_, _| true),
        };
        let mut own = MemberView::new(member);
        own.alive = true;
        view.nodes.insert(me, own);
        view
    }

    /// Checks signatures with `check` instead of [`Strict`].
    pub fn with_check(mut self, check: Box<dyn Check + Send + Sync>) -> Self {
        self.check = check;
        self
    }

    /// Refuses a node's introduction points unless all of them pass `check`.
    pub fn with_point_check(mut self, check: PointCheck) -> Self {
        self.point_check = check;
        self
    }

    /// Keeps at most `most` records that wait for their signer's card; [`DEFAULT_WAITING`]
    /// otherwise.
    pub fn with_waiting(mut self, most: usize) -> Self {
        self.set_waiting(most);
        self
    }

    /// Keeps at most `most` such records from now on. If there are more, the oldest are dropped
    /// when the next one arrives.
    pub(crate) fn set_waiting(&mut self, most: usize) {
        self.pending.most = most;
    }

    /// Sets when this process began, in seconds since the Unix epoch.
    pub(crate) fn begin(&mut self, unix: u64) {
        self.began = unix;
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// This node's id.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// All members, this node included, ordered by id.
    pub fn members(&self) -> impl Iterator<Item = &MemberView> + '_ {
        self.nodes.values().filter(|node| node.standing == Standing::Member)
    }

    /// One member; `None` if the node is not, or no longer, a member.
    pub fn member(&self, node: &NodeId) -> Option<&MemberView> {
        self.nodes.get(node).filter(|node| node.standing == Standing::Member)
    }

    /// All nodes whose certificates are sound, members or not, ordered by id.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &MemberView> + '_ {
        self.nodes.values()
    }

    /// One node whose certificates are sound, member or not.
    pub fn node(&self, node: &NodeId) -> Option<&MemberView> {
        self.nodes.get(node)
    }

    /// True if the node is a member now.
    pub fn is_member(&self, node: &NodeId) -> bool {
        self.member(node).is_some()
    }

    /// This node's standing.
    pub fn own_standing(&self) -> Standing {
        self.nodes.get(&self.me).map_or(Standing::Member, |node| node.standing)
    }

    /// True if the node was revoked, even if its certificates never arrived here.
    pub fn revoked(&self, node: &NodeId) -> bool {
        self.facts.revocations.get(node).is_some()
    }

    /// All facts known, of every kind.
    pub fn facts(&self) -> &AllFacts {
        &self.facts
    }

    /// The revocations known.
    pub fn revocations(&self) -> &Facts<Revocation> {
        &self.facts.revocations
    }

    /// Nodes that joined with a token that others had used up. A holder of the authority key should
    /// revoke them, so that nodes which never see all the certificates exclude them too.
    pub fn overdrawn(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.values().filter(|node| node.standing == Standing::Overdrawn).map(MemberView::node)
    }

    /// The invitations known.
    pub fn invitations(&self) -> &Facts<Invitation> {
        &self.facts.invitations
    }

    /// Records refused since the start, by reason.
    pub fn refused(&self) -> &RefusedRecords {
        &self.refused
    }

    pub(crate) fn count_refusal(&mut self, rejection: &RecordRejection) {
        self.refused.count(rejection);
    }

    /// Raises the highest term seen. For a lease that an earlier process of this node signed and
    /// that gossip still has.
    pub(crate) fn raise_term(&mut self, term: u64) {
        self.highest_term = self.highest_term.max(term);
    }

    /// True if any other member is alive.
    pub(crate) fn hears_any(&self) -> bool {
        self.members().any(|node| node.alive && node.node() != self.me)
    }

    /// Number of other members that are alive.
    pub fn hears(&self) -> usize {
        self.members().filter(|node| node.alive && node.node() != self.me).count()
    }

    /// True if every other member is alive and was heard at `mono` (monotonic clock) or later.
    pub fn heard_all_since(&self, mono: Duration) -> bool {
        self.members().all(|node| node.node() == self.me || (node.alive && node.last_heard >= Some(mono)))
    }

    /// True if no other member is known.
    pub fn is_alone(&self) -> bool {
        self.members().all(|node| node.node() == self.me)
    }

    /// The publisher and its term; `None` if this node knows of no live lease that it believes.
    pub fn holder(&self, now: Now) -> Option<(NodeId, u64)> {
        let best = self.best.filter(|_| self.is_best_live(now.mono))?;
        Some((best.holder, best.term))
    }

    /// Time for which the lease of the publisher is still good here, if it is not renewed; `None`
    /// if there is no publisher.
    pub fn lease_left(&self, now: Now) -> Option<Duration> {
        let (holder, _) = self.holder(now)?;
        let node = self.member(&holder)?;
        let ttl = Duration::from_millis(node.lease()?.ttl_ms.into()).min(MAX_TTL);
        Some((node.lease_seen + ttl).saturating_sub(now.mono))
    }

    /// The best claim to the highest term ever claimed, live or not. Its holder is still a member
    /// and has not given it up.
    pub fn best_claim(&self) -> Option<Claim> {
        self.best
    }

    /// The highest term seen in any lease, or on disk at the start.
    pub fn highest_term(&self) -> u64 {
        self.highest_term
    }

    /// Computes the best claim again, after a change of leases or of members.
    fn rank_claims(&mut self) {
        let leases = self.members().filter(|node| node.member.role() == Role::Publisher);
        let leases = leases.filter_map(MemberView::lease);
        let claims = leases.filter(|lease| lease.ttl_ms > 0 && lease.term == self.claimed_term);
        self.best = claims.map(|lease| Claim::of(lease)).max();
    }

    /// Ranks the claims again after the membership changed. A publisher keeps the highest term ever
    /// claimed, even by a node since evicted, because it can claim a higher one. A worker cannot:
    /// it falls back to the highest term claimed by a current member. Otherwise it would wait for
    /// ever if the publishers evicted that node before they saw its claim.
    fn rank_members_claims(&mut self) {
        if self.nodes.get(&self.me).is_some_and(|own| own.member.role() != Role::Publisher) {
            let claimed = self.members().map(|node| node.claimed).max();
            self.claimed_term = claimed.unwrap_or_default().max(self.initial_term);
        }
        self.rank_claims();
    }

    /// True if the lease of the best claim is live (see `is_live`).
    pub(crate) fn is_best_live(&self, mono: Duration) -> bool {
        self.best.is_some_and(|best| self.is_live(&best.holder, best.term, mono))
    }

    /// True if another lease is live whose term is too low to be believed here.
    pub(crate) fn is_lower_live(&self, mono: Duration) -> bool {
        // Without a term on disk no term is too low, so the search can be skipped.
        let floored = self.initial_term > 0;
        floored
            && self.members().any(|node| {
                node.lease()
                    .is_some_and(|lease| lease.term < self.initial_term && self.is_live(&node.node(), lease.term, mono))
            })
    }

    /// True if `holder` has an unexpired lease of `term` and is alive, or may be: a holder that has
    /// not said goodbye and is not lost gets the shortest silence that means death from the arrival
    /// of its lease, because after our start leases arrive before enough heartbeats. It gets the
    /// same time after a heartbeat that was refused as too old, because a fast clock here makes all
    /// heartbeats look old.
    fn is_live(&self, holder: &NodeId, term: u64, mono: Duration) -> bool {
        let Some(node) = self.member(holder).filter(|node| node.member.role() == Role::Publisher) else { return false };
        let Some(lease) = node.lease().filter(|lease| lease.term == term) else { return false };
        let age = mono.saturating_sub(node.lease_seen);
        let ttl = Duration::from_millis(lease.ttl_ms.into()).min(MAX_TTL);
        let stale_heartbeat_at =
            node.stale_heartbeat_at.is_some_and(|at| mono.saturating_sub(at) < self.patience().least);
        let ended = self.liveness.is_gone(holder) || self.liveness.is_lost(holder);
        age < ttl && (node.alive || stale_heartbeat_at || (age < self.patience().least && !ended))
    }

    /// True if this node may take the lease.
    pub(crate) fn may_publish(&self) -> bool {
        self.member(&self.me).is_some_and(MemberView::is_eligible)
    }

    /// Number of eligible nodes before this one in the queue for `term`; `usize::MAX` if this node
    /// is not a member.
    pub(crate) fn place(&mut self, term: u64) -> usize {
        let own = self.nodes.get_mut(&self.me).filter(|own| own.standing == Standing::Member);
        let Some(own) = own.map(|own| own.queue(term)) else { return usize::MAX };
        self.nodes
            .values_mut()
            .filter_map(|node| node.is_eligible().then(|| node.queue(term)))
            .filter(|place| *place < own)
            .count()
    }

    /// True if another node may take over the lease and is not draining.
    pub fn has_successor(&self) -> bool {
        self.members().any(|node| node.node() != self.me && node.is_eligible() && node.phase() != Phase::Draining)
    }

    /// True if every other publisher is alive, or has announced that it stops.
    pub fn hears_all_publishers(&self) -> bool {
        let publishers = self.members().filter(|node| node.member.role() == Role::Publisher);
        publishers.filter(|node| node.node() != self.me).all(|node| node.alive || node.phase() == Phase::Gone)
    }

    /// True if another member, alive or not, is a publisher.
    pub(crate) fn has_other_publisher(&self) -> bool {
        self.members().any(|node| node.node() != self.me && node.member.role() == Role::Publisher)
    }

    /// The heartbeat interval and the silence that means death, in a cluster of this size.
    pub(crate) fn patience(&self) -> Patience {
        self.liveness.patience()
    }

    /// Sets the nodes that answer on none of their links with this node.
    pub(crate) fn set_unreachable(&mut self, nodes: BTreeSet<NodeId>) {
        self.liveness.set_unreachable(nodes);
    }

    /// Silence after which this node takes another one for dead. `unreachable`: if that one answers
    /// on none of its links with this node.
    pub fn allowed_silence(&self, node: &NodeId, unreachable: bool) -> Duration {
        self.liveness.allowance(node, unreachable)
    }

    /// This process was stopped until now: the silence of others in the meantime proves nothing.
    pub(crate) fn amnesty(&mut self, mono: Duration) {
        self.liveness.amnesty(mono);
    }

    /// Lets time pass: a node that has been silent too long is no longer alive, and one whose
    /// certificate has expired is no longer a member.
    pub fn refresh(&mut self, now: Now) -> Changes {
        let mut changes = Changes::default();
        self.liveness.adapt(self.members().count());
        for dead in self.liveness.expire(now.mono) {
            if let Some(node) = self.nodes.get_mut(&dead) {
                node.alive = false;
                changes |= Changes { members: true, points: true, ..Changes::default() };
            }
        }
        changes |= self.update_standings(|node| {
            let expired = node.member.certificate.expires < now.unix;
            match node.standing {
                Standing::Member if expired => Standing::Expired,
                Standing::Expired if !expired => Standing::Member,
                other => other,
            }
        });
        changes
    }

    /// When [`View::refresh`] must be called at the latest, on the monotonic clock; `None` if no
    /// other node is alive.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.liveness.next_deadline()
    }
}
