//! How a record becomes part of the view, or does not.
//!
//! In this order: readable, signed by whom it came from, its signer a member, of this cluster, newer than what is known
//! and not absurdly so, every field within its bounds. Only then is anything changed.

use std::time::Duration;

use super::services::start;
use super::{Changes, MAX_NODES, MemberView, Rejection, Standing, View};
use crate::address::mesh_address;
use crate::id::{ClusterId, InvitationId, NodeId, ServiceId};
use crate::lease::TERMS_PER_SECOND;
use crate::record::{
    Chain, Heartbeat, IntroPoint, IntroPoints, Invitation, Lease, MAX_INTRO_POINTS, MAX_SPECIFIED, Member, NodeCard,
    PeriodId, Phase, Publication, RecordKind, Revocation, Role,
};
use crate::signed::{Statement, Unverified, Verified};
use crate::time::Now;

/// Oldest beat that proves the life of a node that was not heard for as long. Two clocks, each up to ten minutes off as a
/// join allows, and the way through the mesh; and half of what honest nodes remember the last words of the dead for.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// Most restarts that may lie between two records of one node, and twice over before the first.
pub const MAX_BOOT_JUMP: u64 = 1 << 20;
/// Highest revision that a publisher is believed to have used: the clock gives less than 2^48.
const MAX_REVISION: u64 = 1 << 57;
/// Highest revision above which anybody goes, on such a word alone or for what a directory holds: whoever held the master
/// key once can make up any, and the highest of all has none above it. What goes above this one is believed, too.
pub const MAX_FENCE: u64 = 1 << 56;
/// Most periods in one publication.
pub(crate) const MAX_PERIODS: usize = 8;
/// Most periods of one publisher and service whose highest revision is remembered, in memory and on disk. At most three
/// are current at once.
pub const MAX_REVISIONS: usize = 16;
/// No period begins later, in seconds since the Unix epoch: the year 10000.
const MAX_PERIOD_START: u64 = 253_402_300_800;
/// Most revocations kept, in memory and on disk.
pub const MAX_REVOCATIONS: usize = 4096;
/// Age in seconds of a revocation that should have come earlier: more than the ten minutes by which
/// clocks may differ.
const LATE: u64 = 900;
/// Longest version string in a card, in bytes.
const MAX_VERSION: usize = 64;

/// What a node says of itself.
pub(crate) trait OwnWord: Statement {
    /// Which cluster it is about.
    fn cluster(&self) -> ClusterId;
    /// Who speaks.
    fn speaker(&self) -> NodeId;
    /// Its sequence number.
    fn seq(&self) -> u64;
    /// Whether every field is within its bounds.
    fn check_bounds(&self) -> Result<(), Rejection>;
}

macro_rules! own_word {
    ($($name:ident, $speaker:ident, |$it:ident| $bounds:expr;)*) => {
        $(impl OwnWord for $name {
            fn cluster(&self) -> ClusterId {
                self.cluster
            }
            fn speaker(&self) -> NodeId {
                self.$speaker
            }
            fn seq(&self) -> u64 {
                self.seq
            }
            fn check_bounds(&self) -> Result<(), Rejection> {
                let $it = self;
                $bounds
            }
        })*
    };
}

own_word! {
    NodeCard, node, |card| check_card(card);
    Heartbeat, node, |_beat| Ok(());
    IntroPoints, node, |record| {
        within(record.nonces.len() == record.points.len(), "number of nonces")?;
        check_points(&record.points)
    };
    Lease, holder, |_lease| Ok(());
    Publication, node, |publication| check_publication(publication);
}

fn within(condition: bool, what: &'static str) -> Result<(), Rejection> {
    if condition { Ok(()) } else { Err(Rejection::Bounds(what)) }
}

fn check_card(card: &NodeCard) -> Result<(), Rejection> {
    if card.address != mesh_address(&card.node) {
        return Err(Rejection::Address);
    }
    within((1..=100).contains(&card.weight), "weight")?;
    within(card.version.len() <= MAX_VERSION && !card.version.chars().any(char::is_control), "version")?;
    let rising = card.ports.is_sorted_by(|a, b| a < b) && !card.ports.contains(&0);
    within(rising && card.ports.len() <= NodeCard::MAX_PORTS, "ports")
}

/// Whether intro points are fit to stand in a descriptor.
pub(crate) fn check_points(points: &[IntroPoint]) -> Result<(), Rejection> {
    within(points.len() <= MAX_INTRO_POINTS, "number of intro points")?;
    let sound = |point: &IntroPoint| {
        (1..=8).contains(&point.link_specifiers.len())
            && point.link_specifiers.iter().all(|specifier| (2..=64).contains(&specifier.0.len()))
            && point.specified() <= MAX_SPECIFIED
    };
    within(points.iter().all(sound), "link specifiers")?;
    let mut keys: Vec<_> = points.iter().map(|point| point.session_key).collect();
    keys.sort_unstable();
    keys.dedup();
    within(keys.len() == points.len(), "session keys")
}

fn check_publication(publication: &Publication) -> Result<(), Rejection> {
    within(publication.periods.len() <= MAX_PERIODS, "number of periods")?;
    let sound =
        |id: &PeriodId| (1..=PeriodId::MAX_MINUTES).contains(&id.length_minutes) && id.start() < MAX_PERIOD_START;
    within(publication.periods.iter().all(|it| sound(&it.period)), "period")?;
    let sane = publication.periods.iter().all(|period| period.revision <= MAX_REVISION);
    if sane { Ok(()) } else { Err(Rejection::Jump("revision")) }
}

/// Whether a record stands under the key of the service that it is about.
fn is_under_its_key(key: ServiceId, service: ServiceId) -> Result<(), Rejection> {
    if key == service { Ok(()) } else { Err(Rejection::Origin) }
}

/// Whether a sequence number may follow the one known.
fn follows<T: OwnWord>(known: Option<&Verified<T>>, record: &Verified<T>) -> Result<(), Rejection> {
    let known_seq = known.map(|known| known.seq());
    if known_seq.is_some_and(|known| record.seq() <= known) {
        return Err(Rejection::Stale { known: known_seq.unwrap_or_default(), got: record.seq() });
    }
    let furthest = known_seq.map_or(1 << 31, |known| start(known) + MAX_BOOT_JUMP);
    if start(record.seq()) > furthest { Err(Rejection::Jump("sequence number")) } else { Ok(()) }
}

impl View {
    /// Takes in a record that came under the name of `origin`.
    ///
    /// A record whose signer's card has not come yet is kept (bounded) and taken in with the card. A record that is
    /// known already changes nothing and is no error.
    pub fn ingest(&mut self, origin: NodeId, kind: RecordKind, bytes: &[u8], now: Now) -> Result<Changes, Rejection> {
        let outcome = self.take_in(origin, kind, bytes, now);
        // What waits for a card is not refused yet.
        if let Err(rejection) = &outcome
            && *rejection != Rejection::Unknown
        {
            self.refused.count(rejection);
        }
        outcome
    }

    fn take_in(&mut self, origin: NodeId, kind: RecordKind, bytes: &[u8], now: Now) -> Result<Changes, Rejection> {
        let of_itself = !kind.is_fact();
        if of_itself && origin == self.me {
            return Err(Rejection::Own);
        }
        if of_itself && self.revoked(&origin) {
            return Err(Rejection::Revoked);
        }
        if of_itself && kind != RecordKind::Card && !self.nodes.contains_key(&origin) {
            for _ in 0..self.pending.keep(origin, kind, bytes) {
                self.refused.count(&Rejection::TooMany("records without a card"));
            }
            return Err(Rejection::Unknown);
        }
        match kind {
            RecordKind::Card => self.take_card(origin, bytes, now),
            RecordKind::Heartbeat => {
                let checked = self.check_word(origin, bytes, |node| node.heartbeat.as_ref());
                if matches!(checked, Err(Rejection::Stale { .. })) {
                    self.take_stale_beat(origin, bytes, now);
                }
                let Some(beat) = checked? else { return Ok(Changes::default()) };
                if self.is_too_old(&beat, now) {
                    self.doubt(&origin, now);
                    return Err(Rejection::Old);
                }
                Ok(self.fold_heartbeat(beat, now))
            }
            RecordKind::IntroPoints(service) => {
                let Some(points) = self.check_word(origin, bytes, |node| node.intro_points(&service))? else {
                    return Ok(Changes::default());
                };
                is_under_its_key(service, points.service)?;
                if !points.served().all(|served| (self.point_check)(origin, &served)) {
                    return Err(Rejection::Points);
                }
                self.fold_points(points)
            }
            RecordKind::Lease => {
                let Some(lease) = self.check_word(origin, bytes, |node| node.lease.as_ref())? else {
                    return Ok(Changes::default());
                };
                self.fold_lease(lease, now)
            }
            RecordKind::Publication(service) => {
                let Some(publication) = self.check_word(origin, bytes, |node| node.publication(&service))? else {
                    return Ok(Changes::default());
                };
                is_under_its_key(service, publication.service)?;
                self.fold_publication(publication, now)
            }
            RecordKind::Invitation(token) => self.take_invitation(token, bytes, now),
            RecordKind::Revocation(node) => self.take_revocation(node, bytes, now),
        }
    }

    /// What is checked of every word of a node about itself. `None`: it is known already, to the byte.
    fn check_signed<T: OwnWord>(
        &self,
        origin: NodeId,
        bytes: &[u8],
        known: impl Fn(&MemberView) -> Option<&Verified<T>>,
    ) -> Result<Option<Verified<T>>, Rejection> {
        let envelope = Unverified::<T>::from_bytes(bytes)?;
        let known = self.nodes.get(&origin).and_then(known);
        if known.is_some_and(|known| known.is_same(&envelope)) {
            return Ok(None);
        }
        let record = self.check_origin(origin, envelope)?;
        follows(known, &record)?;
        record.check_bounds()?;
        Ok(Some(record))
    }

    /// What holds of every record of a node about itself, be it new or not.
    fn check_origin<T: OwnWord>(&self, origin: NodeId, envelope: Unverified<T>) -> Result<Verified<T>, Rejection> {
        let record = envelope.verify_with(origin.public_key(), &*self.check)?;
        if record.speaker() != origin {
            return Err(Rejection::Origin);
        }
        if record.cluster() == self.cluster { Ok(record) } else { Err(Rejection::Cluster) }
    }

    /// The same, and that the speaker is a member.
    fn check_word<T: OwnWord>(
        &self,
        origin: NodeId,
        bytes: &[u8],
        known: impl Fn(&MemberView) -> Option<&Verified<T>>,
    ) -> Result<Option<Verified<T>>, Rejection> {
        let word = self.check_signed(origin, bytes, known)?;
        match self.nodes.get(&origin).map(|node| node.standing) {
            Some(Standing::Member) => Ok(word),
            Some(Standing::Expired) => Err(Rejection::Expired),
            Some(Standing::Overdrawn) => Err(Rejection::Overdrawn),
            Some(Standing::Revoked) => Err(Rejection::Revoked),
            None => Err(Rejection::Unknown),
        }
    }

    /// Whether a beat may be a replay: of a node that was not heard for so long that its last word may be forgotten, all
    /// that it ever said is new. Between those who hear each other no clock is asked; one that jumps silences nobody. A
    /// date in the future is believed: nobody can replay what has not been said, and a slow clock of ours must not make
    /// us deaf.
    fn is_too_old(&self, beat: &Heartbeat, now: Now) -> bool {
        let heard = self.nodes.get(&beat.node).and_then(|node| node.last_heard);
        let lost = heard.is_none_or(|at| now.mono.saturating_sub(at) > MAX_AGE);
        lost && beat.unix.saturating_add(MAX_AGE.as_secs()) < now.unix
    }

    /// A heartbeat below the newest is good for one thing: it may have been made by a second
    /// process with the node's key.
    fn take_stale_beat(&mut self, origin: NodeId, bytes: &[u8], now: Now) {
        let envelope = Unverified::<Heartbeat>::from_bytes(bytes).map_err(Rejection::from);
        let Ok(beat) = envelope.and_then(|envelope| self.check_origin(origin, envelope)) else { return };
        if let Some(node) = self.nodes.get_mut(&origin).filter(|node| node.instances.outlasts(&beat)) {
            node.doubled = Some(now.mono);
        }
    }

    fn doubt(&mut self, origin: &NodeId, now: Now) {
        if let Some(node) = self.nodes.get_mut(origin) {
            node.doubted = Some(now.mono);
        }
    }

    fn take_card(&mut self, origin: NodeId, bytes: &[u8], now: Now) -> Result<Changes, Rejection> {
        let Some(card) = self.check_signed(origin, bytes, |node| node.card.as_ref())? else {
            return Ok(Changes::default());
        };
        // Its signer need not be a member yet, or still: the card itself brings the certificates.
        let member = card.chain.clone().verify_with(self.cluster, now.unix, &*self.check)?;
        if member.node() != origin {
            return Err(Rejection::Origin);
        }
        let mut changes = self.admit(member, now)?;
        changes |= self.fold_card(card);
        Ok(changes)
    }

    /// Takes in the certificates of a member known from elsewhere than its own card (the answer to a join, the disk).
    pub fn admit_chain(&mut self, chain: Chain, now: Now) -> Result<Changes, Rejection> {
        let outcome = chain
            .verify_with(self.cluster, now.unix, &*self.check)
            .map_err(Rejection::from)
            .and_then(|member| if member.node() == self.me { Ok(Changes::default()) } else { self.admit(member, now) });
        if let Err(rejection) = &outcome {
            self.refused.count(rejection);
        }
        outcome
    }

    /// Makes room for a member whose certificates have been checked, or renews them, and takes in what waited for it.
    fn admit(&mut self, member: Member, now: Now) -> Result<Changes, Rejection> {
        let node = member.node();
        // A publisher could certify a second authority, whose facts the others could not store.
        if member.authority_id() != self.authority {
            return Err(Rejection::Authority);
        }
        if self.revoked(&node) {
            return Err(Rejection::Revoked);
        }
        let changed = Changes { members: true, points: true, ..Changes::default() };
        if let Some(known) = self.nodes.get_mut(&node) {
            let age = |it: &Member| (it.certificate.issued, it.certificate.expires, it.role());
            let joined = known.joined.min(member.certificate.issued);
            let earlier = std::mem::replace(&mut known.joined, joined) != joined;
            let mut tokens = vec![known.member.certificate.invitation];
            let mut changes = Changes::default();
            if age(&member) > age(&known.member) {
                tokens.push(member.certificate.invitation);
                known.member = member;
                changes |= self.refresh(now);
                self.rank_claims();
                changes |= changed;
            }
            // Who stands must not depend on the order in which certificates come.
            if earlier || tokens.first() != tokens.last() {
                tokens.into_iter().flatten().for_each(|token| changes |= self.judge_redeemers(&token));
            }
            return Ok(changes);
        }
        self.make_room()?;
        let token = member.certificate.invitation;
        self.nodes.insert(node, MemberView::new(member));
        let mut changes = changed;
        if let Some(token) = token {
            changes |= self.judge_redeemers(&token);
        }
        for (kind, bytes) in self.pending.take(node) {
            // A refusal of one that waited is counted like any other, and must not undo the card.
            if let Ok(more) = self.ingest(node, kind, &bytes, now) {
                changes |= more;
            }
        }
        Ok(changes)
    }

    fn make_room(&mut self) -> Result<(), Rejection> {
        if self.nodes.len() < MAX_NODES {
            return Ok(());
        }
        // Whoever can never speak again is forgotten first; its revocation or expiry still keeps it out.
        let mut lost = self.nodes.values().filter(|it| matches!(it.standing, Standing::Revoked | Standing::Expired));
        let Some(lost) = lost.next().map(MemberView::node).filter(|lost| *lost != self.me) else {
            return Err(Rejection::TooMany("nodes"));
        };
        self.nodes.remove(&lost);
        self.liveness.forget(&lost);
        Ok(())
    }

    pub(crate) fn fold_card(&mut self, card: Verified<NodeCard>) -> Changes {
        let Some(node) = self.nodes.get_mut(&card.node) else { return Changes::default() };
        // Everybody says its card again every few minutes: nothing is to be done, or written to disk, for that.
        let again = |known: &Verified<NodeCard>| NodeCard { seq: card.seq, ..(**known).clone() } == *card;
        let changed = !node.card.as_ref().is_some_and(again);
        node.card = Some(card);
        Changes { members: changed, points: changed, ..Changes::default() }
    }

    pub(crate) fn fold_heartbeat(&mut self, beat: Verified<Heartbeat>, now: Now) -> Changes {
        let (id, phase) = (beat.node, beat.phase);
        let turned = id != self.me && self.liveness.beat(id, phase == Phase::Gone, now.mono);
        let alive = id == self.me || self.liveness.is_alive(&id);
        let Some(node) = self.nodes.get_mut(&id) else { return Changes::default() };
        let changed = turned || node.phase() != phase || node.heartbeat.is_none();
        let restarted = node.heartbeat.as_ref().is_some_and(|known| start(known.seq) != start(beat.seq));
        if id != self.me && node.instances.take(&beat) {
            node.doubled = Some(now.mono);
        }
        node.heartbeat = Some(beat);
        node.alive = alive;
        node.been_alive |= alive;
        node.last_heard = Some(now.mono);
        Changes { members: changed, points: changed || restarted, ..Changes::default() }
    }

    pub(crate) fn fold_points(&mut self, points: Verified<IntroPoints>) -> Result<Changes, Rejection> {
        let Some(node) = self.nodes.get_mut(&points.node) else { return Ok(Changes::default()) };
        let (service, before) = (points.service, node.fitness(&points.service));
        let records = node.records_mut(service, points.seq)?;
        let moved = records.intro_points.as_ref().is_none_or(|known| known.points != points.points);
        records.intro_points = Some(points);
        Ok(Changes { points: moved || node.fitness(&service) != before, ..Changes::default() })
    }

    pub(crate) fn fold_lease(&mut self, lease: Verified<Lease>, now: Now) -> Result<Changes, Rejection> {
        let Some(node) = self.nodes.get_mut(&lease.holder) else { return Ok(Changes::default()) };
        if node.member.role() != Role::Publisher {
            return Err(Rejection::Role);
        }
        if lease.holder != self.me && lease.term > now.unix.saturating_mul(TERMS_PER_SECOND) {
            return Err(Rejection::Jump("term"));
        }
        self.highest_term = self.highest_term.max(lease.term);
        // A lease given up is no claim: a node gives up whatever it may have held when it starts.
        if lease.ttl_ms > 0 {
            node.claimed = node.claimed.max(lease.term);
            self.claimed_term = self.claimed_term.max(lease.term);
        }
        // Who gives up what it does not hold, as everybody does at a start, changes no order.
        let ranks = lease.ttl_ms > 0 || self.best.is_some_and(|best| best.holder == lease.holder);
        node.lease = Some(lease);
        node.lease_seen = now.mono;
        if ranks {
            self.rank_claims();
        }
        Ok(Changes { leases: true, ..Changes::default() })
    }

    pub(crate) fn fold_publication(
        &mut self,
        publication: Verified<Publication>,
        now: Now,
    ) -> Result<Changes, Rejection> {
        let Some(node) = self.nodes.get_mut(&publication.node) else { return Ok(Changes::default()) };
        if node.member.role() != Role::Publisher {
            return Err(Rejection::Role);
        }
        let records = node.records_mut(publication.service, publication.seq)?;
        for period in &publication.periods {
            let highest = records.revisions.entry(period.period).or_default();
            *highest = (*highest).max(period.revision.min(MAX_FENCE));
        }
        while records.revisions.len() > MAX_REVISIONS {
            // An announcement of the far past or future must not have the present forgotten.
            let furthest = records.revisions.keys().copied().max_by_key(|id| (id.start().abs_diff(now.unix), *id));
            furthest.map(|id| records.revisions.remove(&id));
        }
        let changed = records.publication.as_ref().is_none_or(|known| known.periods != publication.periods);
        records.publication = Some(publication);
        Ok(Changes { publications: changed, ..Changes::default() })
    }

    fn take_invitation(&mut self, token: InvitationId, bytes: &[u8], now: Now) -> Result<Changes, Rejection> {
        let version = self.check_authority(Unverified::<Invitation>::from_bytes(bytes)?)?;
        if version.token != token {
            return Err(Rejection::Origin);
        }
        self.fold_invitation(version, now)
    }

    pub(crate) fn fold_invitation(&mut self, version: Verified<Invitation>, now: Now) -> Result<Changes, Rejection> {
        if version.cluster != self.cluster {
            return Err(Rejection::Cluster);
        }
        let token = version.token;
        let mut changes = Changes { invitations: self.invitations.fold(version, now.unix)?, ..Changes::default() };
        if changes.invitations {
            changes |= self.judge_redeemers(&token);
        }
        Ok(changes)
    }

    fn take_revocation(&mut self, node: NodeId, bytes: &[u8], now: Now) -> Result<Changes, Rejection> {
        let envelope = Unverified::<Revocation>::from_bytes(bytes)?;
        if self.revocations.get(&node).is_some_and(|known| known.is_same(&envelope)) {
            return Ok(Changes::default());
        }
        let revocation = self.check_authority(envelope)?;
        if revocation.node != node {
            return Err(Rejection::Origin);
        }
        self.fold_revocation(revocation, now)
    }

    pub(crate) fn fold_revocation(&mut self, revocation: Verified<Revocation>, now: Now) -> Result<Changes, Rejection> {
        if revocation.cluster != self.cluster {
            return Err(Rejection::Cluster);
        }
        let (node, revoked) = (revocation.node, revocation.revoked);
        let late = revoked < self.began || revoked.saturating_add(LATE) < now.unix;
        if self.revoked(&node) {
            return Ok(Changes::default());
        }
        if self.revocations.len() >= MAX_REVOCATIONS {
            return Err(Rejection::TooMany("revocations"));
        }
        self.revocations.insert(node, revocation);
        let mut changes = Changes { members: true, points: true, revocations: true, ..Changes::default() };
        if let Some(known) = self.nodes.get_mut(&node) {
            changes.misled = known.alive && late;
            known.standing = Standing::Revoked;
            known.alive = false;
            changes.leases = known.lease.is_some();
            self.rank_members_claims();
        }
        self.pending.take(node);
        Ok(changes)
    }

    fn check_authority<T: Statement>(&self, record: Unverified<T>) -> Result<Verified<T>, Rejection> {
        let signer = *record.claimed_signer();
        if self.authority.public_key() != &signer {
            return Err(Rejection::Authority);
        }
        Ok(record.verify_with(&signer, &*self.check)?)
    }

    /// Decides anew who of those that joined with `token` came after it was used up.
    fn judge_redeemers(&mut self, token: &InvitationId) -> Changes {
        let with_token = |node: &MemberView| node.member.certificate.invitation == Some(*token);
        let joined =
            self.nodes.values().filter(|node| with_token(node)).map(|node| (node.joined, node.node())).collect();
        let overdrawn = self.invitations.overdrawn(token, joined);
        let mut changes = Changes::default();
        for node in self.nodes.values_mut().filter(|node| with_token(node)) {
            let standing = match (node.standing, overdrawn.contains(&node.node())) {
                (Standing::Revoked, _) => Standing::Revoked,
                (_, true) => Standing::Overdrawn,
                (Standing::Overdrawn, false) => Standing::Member,
                (other, false) => other,
            };
            if standing != node.standing {
                node.standing = standing;
                changes |= Changes { members: true, points: true, leases: true, ..Changes::default() };
            }
        }
        if changes.leases {
            self.rank_members_claims();
        }
        changes
    }
}
