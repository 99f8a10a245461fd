//! The verified picture of the cluster, folded from records and liveness.
//!
//! [`View::ingest`] is the one way in for what comes off the wire: it checks, then folds, or says why not
//! ([`Rejection`]). What is read here has been verified. [`View::refresh`] lets time pass.
//!
//! Two nodes that have ingested the same records, in whatever order and however often, agree on who is a member, which
//! claim to the lease is the best and what became of each invitation.

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

use std::collections::BTreeMap;
use std::time::Duration;

pub use condition::Condition;
pub use fold::{MAX_FENCE, MAX_REVISIONS};
pub use ingest::MAX_BOOT_JUMP;
pub use pending::DEFAULT_WAITING;
pub use rejection::{RefusedRecords, Rejection};

use crate::facts::{AllFacts, Facts};
use crate::id::{AuthorityId, ClusterId, NodeId, ServiceId};
use crate::lease::{Claim, MAX_TTL, Rank};
use crate::liveness::{Liveness, Patience};
use crate::record::{
    AnyRecord, Heartbeat, Invitation, Lease, Listed, Member, NodeCard, PeriodId, Phase, RecordKind, Revocation, Role,
    ServedPoint,
};
use crate::signed::{Check, Strict, Verified};
use crate::time::Now;
use instances::Instances;
use pending::Pending;

/// Most nodes in a cluster.
pub const MAX_NODES: usize = 1024;

/// Whether a node whose certificates are sound counts as a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Member,
    /// Not any more: its certificate is past its end.
    Expired,
    /// Never again: it was revoked.
    Revoked,
    /// Never: it joined with a token that others had used up.
    Overdrawn,
}

/// One node as this one sees it.
#[derive(Debug, Clone)]
pub struct MemberView {
    /// Its certificates, checked.
    pub member: Member,
    /// Whether it counts.
    pub standing: Standing,
    /// The newest record of each kind that it said of itself.
    records: BTreeMap<RecordKind, AnyRecord>,
    /// True if it is heard now.
    pub alive: bool,
    /// True if it was heard at any time since this process started.
    pub been_alive: bool,
    /// When it was last heard, on the monotonic clock.
    pub last_heard: Option<Duration>,
    /// When its heartbeats showed last that two processes run with its key, on the monotonic clock;
    /// `None` if never.
    pub doubled: Option<Duration>,
    instances: Instances,
    /// When a beat of it came last that was too old to prove that it lives.
    doubted: Option<Duration>,
    /// When its newest lease came.
    lease_seen: Duration,
    /// The highest revision that it has announced for each service and period. Each node has a map of its own, so that no
    /// node can have another's forgotten.
    revisions: BTreeMap<ServiceId, BTreeMap<PeriodId, u64>>,
    /// The highest term it ever claimed.
    claimed: u64,
    /// The earliest issue date of its certificates.
    joined: u64,
    /// Its rank for the term and with the priority for which it was asked last.
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
            doubled: None,
            instances: Instances::default(),
            doubted: None,
            lease_seen: Duration::ZERO,
            revisions: BTreeMap::new(),
            claimed: 0,
            joined,
            rank: None,
        }
    }

    /// Who.
    pub fn node(&self) -> NodeId {
        self.member.node()
    }

    /// The newest record of each kind that it said of itself.
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

    /// Its phase, as its newest heartbeat says; `Joining` before the first.
    pub fn phase(&self) -> Phase {
        self.heartbeat().map_or(Phase::Joining, |beat| beat.phase)
    }

    /// Its priority in elections, lower first; the last before its card has come.
    pub fn priority(&self) -> u8 {
        self.card().map_or(u8::MAX, |card| card.priority)
    }

    /// Its share of intro points relative to the others', 1 to 100.
    pub fn weight(&self) -> u8 {
        self.card().map_or(NodeCard::DEFAULT_WEIGHT, |card| card.weight)
    }

    /// True if it could take the lease over.
    pub(crate) fn is_eligible(&self) -> bool {
        self.standing == Standing::Member
            && self.alive
            && self.member.role() == Role::Publisher
            && !matches!(self.phase(), Phase::Joining | Phase::Gone)
    }

    /// Its place in the queue for a term: whoever is draining comes after all others.
    fn queue(&mut self, term: u64) -> (bool, Rank) {
        let (priority, node) = (self.priority(), self.node());
        let known = self.rank.filter(|(of, with, _)| (*of, *with) == (term, priority));
        let (_, _, rank) =
            *self.rank.insert(known.unwrap_or_else(|| (term, priority, Rank::new(priority, term, node))));
        (self.phase() == Phase::Draining, rank)
    }
}

/// What changed in the view. Joined with `|=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// Who is a member, alive, in which phase, with which card.
    pub members: bool,
    /// Facts of any kind.
    pub facts: bool,
    /// Invitations.
    pub invitations: bool,
    /// What may stand in a descriptor.
    pub points: bool,
    /// Leases.
    pub leases: bool,
    /// Revocations.
    pub revocations: bool,
    /// What is published.
    pub publications: bool,
    /// Which services the cluster has, and how they are set.
    pub services: bool,
    /// A node that was heard as a member turns out to have been evicted long before.
    pub misled: bool,
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
        self.services |= other.services;
        self.misled |= other.misled;
    }
}

/// Whether an introduction point of which a node tells can be its own and stand in a descriptor: what takes Tor, or
/// keys, to say.
pub type PointCheck = Box<dyn Fn(NodeId, &ServedPoint) -> bool + Send + Sync>;

/// The cluster as this node knows it.
pub struct View {
    cluster: ClusterId,
    me: NodeId,
    /// The one key that signs for the cluster. The store and the discovery keys know one as well.
    authority: AuthorityId,
    /// When this process began, in seconds since the Unix epoch; 0 until that is known.
    began: u64,
    nodes: BTreeMap<NodeId, MemberView>,
    facts: AllFacts,
    liveness: Liveness,
    pending: Pending,
    refused: RefusedRecords,
    /// No claim below is believed: the highest term known before this process started.
    floor: u64,
    /// The highest term ever claimed. Never falls; claims of lower terms are void.
    claimed_term: u64,
    /// The best claim of that term that its holder has not given up.
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
    /// Knows only this node itself. `term`: the highest term on disk, below which no claim is believed.
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
            floor: term,
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

    /// Checks signatures in another way (see [`Check`]).
    pub fn with_check(mut self, check: Box<dyn Check + Send + Sync>) -> Self {
        self.check = check;
        self
    }

    /// Believes of a node only introduction points that pass this.
    pub fn with_point_check(mut self, check: PointCheck) -> Self {
        self.point_check = check;
        self
    }

    /// Keeps at most so many records that wait for their signer's card.
    pub fn with_waiting(mut self, most: usize) -> Self {
        self.pending.most = most;
        self
    }

    /// Notes when this process began, in seconds since the Unix epoch.
    pub(crate) fn begin(&mut self, unix: u64) {
        self.began = unix;
    }

    /// The cluster's name.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Every member, this node included, by id.
    pub fn members(&self) -> impl Iterator<Item = &MemberView> + '_ {
        self.nodes.values().filter(|node| node.standing == Standing::Member)
    }

    /// One member; `None` if it is not, or no longer, one.
    pub fn member(&self, node: &NodeId) -> Option<&MemberView> {
        self.nodes.get(node).filter(|node| node.standing == Standing::Member)
    }

    /// Every node whose certificates are sound, member or not, by id.
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

    /// True if the node was revoked, whether it was ever known or not.
    pub fn revoked(&self, node: &NodeId) -> bool {
        self.facts.revocations.get(node).is_some()
    }

    /// The facts known, of every kind.
    pub fn facts(&self) -> &AllFacts {
        &self.facts
    }

    /// The revocations known.
    pub fn revocations(&self) -> &Facts<Revocation> {
        &self.facts.revocations
    }

    /// Nodes that joined with a token that others had used up. Whoever holds the authority key should revoke them, so
    /// that those who never see all the certificates know it too.
    pub fn overdrawn(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.values().filter(|node| node.standing == Standing::Overdrawn).map(MemberView::node)
    }

    /// The invitations known.
    pub fn invitations(&self) -> &Facts<Invitation> {
        &self.facts.invitations
    }

    /// How often records were refused, by reason.
    pub fn refused(&self) -> &RefusedRecords {
        &self.refused
    }

    pub(crate) fn count_refusal(&mut self, rejection: &Rejection) {
        self.refused.count(rejection);
    }

    /// A term that this node itself claimed before is out there.
    pub(crate) fn raise_term(&mut self, term: u64) {
        self.highest_term = self.highest_term.max(term);
    }

    /// True if any other member is heard now.
    pub(crate) fn hears_any(&self) -> bool {
        self.members().any(|node| node.alive && node.node() != self.me)
    }

    /// How many other members are heard now.
    pub fn hears(&self) -> usize {
        self.members().filter(|node| node.alive && node.node() != self.me).count()
    }

    /// True if every other member has been heard since then (on the monotonic clock) and is alive.
    pub fn heard_all_since(&self, mono: Duration) -> bool {
        self.members().all(|node| node.node() == self.me || (node.alive && node.last_heard >= Some(mono)))
    }

    /// True if no other member is known.
    pub fn is_alone(&self) -> bool {
        self.members().all(|node| node.node() == self.me)
    }

    /// The publisher and its term, as far as this node believes in one now.
    pub fn holder(&self, now: Now) -> Option<(NodeId, u64)> {
        let best = self.best.filter(|_| self.is_best_live(now.mono))?;
        Some((best.holder, best.term))
    }

    /// The best claim to the highest term ever claimed that its holder, a member still, has not given up; live or not.
    pub fn best_claim(&self) -> Option<Claim> {
        self.best
    }

    /// The highest term seen in any lease, or on disk at the start.
    pub fn highest_term(&self) -> u64 {
        self.highest_term
    }

    /// Finds the best claim anew, after a change of leases or of members.
    fn rank_claims(&mut self) {
        let leases = self.members().filter(|node| node.member.role() == Role::Publisher);
        let leases = leases.filter_map(MemberView::lease);
        let claims = leases.filter(|lease| lease.ttl_ms > 0 && lease.term == self.claimed_term);
        self.best = claims.map(|lease| Claim::of(lease)).max();
    }

    /// Some who were members are none, or are again: ranks the claims of those who are. A publisher goes on believing no
    /// term below one that was ever claimed, and claims a higher one itself; who cannot do that would wait for ever for
    /// somebody to go above the claim of a node that the others had thrown out before they heard of it.
    fn rank_members_claims(&mut self) {
        if self.nodes.get(&self.me).is_some_and(|own| own.member.role() != Role::Publisher) {
            let claimed = self.members().map(|node| node.claimed).max();
            self.claimed_term = claimed.unwrap_or_default().max(self.floor);
        }
        self.rank_claims();
    }

    /// True if the best claim's lease is good and its holder lives.
    pub(crate) fn is_best_live(&self, mono: Duration) -> bool {
        self.best.is_some_and(|best| self.is_live(&best.holder, best.term, mono))
    }

    /// True if a living node holds a good lease of a term that is too low to be believed here.
    pub(crate) fn is_lower_live(&self, mono: Duration) -> bool {
        // Most have no such memory: they need not look.
        let floored = self.floor > 0;
        floored
            && self.members().any(|node| {
                node.lease()
                    .is_some_and(|lease| lease.term < self.floor && self.is_live(&node.node(), lease.term, mono))
            })
    }

    /// True if `holder` has a good lease of `term` and lives. Who has just renewed a lease is taken to live until the
    /// shortest silence that means death is over: after a start, leases come before the beats that prove life. So is who
    /// goes on saying what is dated too long ago: if our own clock is fast, everybody does, and the lease is good.
    fn is_live(&self, holder: &NodeId, term: u64, mono: Duration) -> bool {
        let Some(node) = self.member(holder).filter(|node| node.member.role() == Role::Publisher) else { return false };
        let Some(lease) = node.lease().filter(|lease| lease.term == term) else { return false };
        let age = mono.saturating_sub(node.lease_seen);
        let ttl = Duration::from_millis(lease.ttl_ms.into()).min(MAX_TTL);
        let doubted = node.doubted.is_some_and(|at| mono.saturating_sub(at) < self.patience().least);
        age < ttl && (node.alive || doubted || (age < self.patience().least && !self.liveness.is_gone(holder)))
    }

    /// True if this node may be elected.
    pub(crate) fn may_publish(&self) -> bool {
        self.member(&self.me).is_some_and(MemberView::is_eligible)
    }

    /// How many eligible nodes stand before this one in the queue for `term`.
    pub(crate) fn place(&mut self, term: u64) -> usize {
        let own = self.nodes.get_mut(&self.me).filter(|own| own.standing == Standing::Member);
        let Some(own) = own.map(|own| own.queue(term)) else { return usize::MAX };
        self.nodes
            .values_mut()
            .filter_map(|node| node.is_eligible().then(|| node.queue(term)))
            .filter(|it| *it < own)
            .count()
    }

    /// True if another node could take the lease over and is not about to leave itself.
    pub(crate) fn has_successor(&self) -> bool {
        self.members().any(|node| node.node() != self.me && node.is_eligible() && node.phase() != Phase::Draining)
    }

    /// True if every other publisher is heard now, or has said goodbye.
    pub fn hears_all_publishers(&self) -> bool {
        let publishers = self.members().filter(|node| node.member.role() == Role::Publisher);
        publishers.filter(|node| node.node() != self.me).all(|node| node.alive || node.phase() == Phase::Gone)
    }

    /// True if another member, alive or not, is a publisher.
    pub(crate) fn has_other_publisher(&self) -> bool {
        self.members().any(|node| node.node() != self.me && node.member.role() == Role::Publisher)
    }

    /// How often nodes beat and when silence means death, in a cluster of this size.
    pub(crate) fn patience(&self) -> Patience {
        self.liveness.patience()
    }

    /// This process was stopped until now: nobody is judged by the silence meanwhile.
    pub(crate) fn amnesty(&mut self, mono: Duration) {
        self.liveness.amnesty(mono);
    }

    /// Lets time pass: who has been silent too long is dead, whose certificate has ended is no member.
    pub fn refresh(&mut self, now: Now) -> Changes {
        let mut changes = Changes::default();
        self.liveness.adapt(self.members().count());
        for dead in self.liveness.expire(now.mono) {
            if let Some(node) = self.nodes.get_mut(&dead) {
                node.alive = false;
                changes |= Changes { members: true, points: true, ..Changes::default() };
            }
        }
        changes |= self.judge_again(|node| {
            let expired = node.member.certificate.expires < now.unix;
            match node.standing {
                Standing::Member if expired => Standing::Expired,
                Standing::Expired if !expired => Standing::Member,
                other => other,
            }
        });
        changes
    }

    /// When [`View::refresh`] must be called at the latest.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.liveness.next_deadline()
    }
}
