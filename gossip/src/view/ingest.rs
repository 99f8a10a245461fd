//! How a record becomes part of the view, or does not.
//!
//! In this order: readable, signed by its signer, of this cluster, newer than what is known and not absurdly so, every
//! field within its bounds, its signer a member. Only then is anything changed.

use super::services::start;
use super::{Changes, MAX_NODES, MemberView, Rejection, Standing, View};
use crate::id::NodeId;
use crate::record::{AnyRecord, Chain, Member, NodeCard, RecordKind, Signer};
use crate::signed::Verified;
use crate::time::Now;

/// Most restarts that may lie between two records of one node, and twice over before the first.
pub const MAX_BOOT_JUMP: u64 = 1 << 20;

/// Whether a sequence number may follow the one known.
fn follows(known: Option<&AnyRecord>, record: &AnyRecord) -> Result<(), Rejection> {
    let known = known.map(|known| known.seq());
    if let Some(known) = known.filter(|known| record.seq() <= *known) {
        return Err(Rejection::Stale { known, got: record.seq() });
    }
    let furthest = known.map_or(1 << 31, |known| start(known) + MAX_BOOT_JUMP);
    if start(record.seq()) > furthest { Err(Rejection::Jump("sequence number")) } else { Ok(()) }
}

impl View {
    /// Takes in a record that came under the name of `origin`.
    ///
    /// A record whose signer's card has not come yet is kept (bounded) and taken in with the card. A record that is
    /// known already changes nothing and is no error.
    pub fn ingest(&mut self, origin: NodeId, kind: RecordKind, bytes: &[u8], now: Now) -> Result<Changes, Rejection> {
        let outcome = match kind.signer() {
            Signer::Node => self.take_record(origin, kind, bytes, now),
            Signer::Authority | Signer::Unknown => self.take_fact(kind, bytes, now),
        };
        // What waits for a card is not refused yet.
        if let Err(rejection) = &outcome
            && *rejection != Rejection::Unknown
        {
            self.refused.count(rejection);
        }
        outcome
    }

    /// Takes in what a node says of itself.
    fn take_record(&mut self, origin: NodeId, kind: RecordKind, bytes: &[u8], now: Now) -> Result<Changes, Rejection> {
        if origin == self.me {
            return Err(Rejection::Own);
        }
        if self.revoked(&origin) {
            return Err(Rejection::Revoked);
        }
        if kind != RecordKind::Card && !self.nodes.contains_key(&origin) {
            for _ in 0..self.pending.keep(origin, kind, bytes) {
                self.refused.count(&Rejection::TooMany("records without a card"));
            }
            return Err(Rejection::Unknown);
        }
        let known = self.nodes.get(&origin).and_then(|node| node.records.get(&kind));
        let Some(record) = self.open_own(origin, kind, bytes, known)? else { return Ok(Changes::default()) };
        if let Err(rejection) = follows(known, &record) {
            if let (Rejection::Stale { .. }, AnyRecord::Heartbeat(beat)) = (&rejection, &record) {
                self.take_stale_beat(beat, now);
            }
            return Err(rejection);
        }
        record.check_bounds()?;
        // The signer of a card need not be a member yet, or still: the card itself brings the certificates.
        let mut changes = Changes::default();
        if let AnyRecord::Card(card) = &record {
            changes |= self.admit_by_card(card, now)?;
        } else {
            self.check_standing(origin)?;
        }
        changes |= self.fold_record(record, now)?;
        Ok(changes)
    }

    /// Reads a record that `origin` says of itself. `None` if it is known, byte for byte.
    pub(crate) fn open_own(
        &self,
        origin: NodeId,
        kind: RecordKind,
        bytes: &[u8],
        known: Option<&AnyRecord>,
    ) -> Result<Option<AnyRecord>, Rejection> {
        let Some(record) = AnyRecord::open(kind, bytes, origin, known, &*self.check)? else { return Ok(None) };
        if record.node() != origin {
            return Err(Rejection::Origin);
        }
        if record.cluster() == self.cluster { Ok(Some(record)) } else { Err(Rejection::Cluster) }
    }

    fn check_standing(&self, origin: NodeId) -> Result<(), Rejection> {
        match self.nodes.get(&origin).map(|node| node.standing) {
            Some(Standing::Member) => Ok(()),
            Some(Standing::Expired) => Err(Rejection::Expired),
            Some(Standing::Overdrawn) => Err(Rejection::Overdrawn),
            Some(Standing::Revoked) => Err(Rejection::Revoked),
            None => Err(Rejection::Unknown),
        }
    }

    fn admit_by_card(&mut self, card: &Verified<NodeCard>, now: Now) -> Result<Changes, Rejection> {
        let member = card.chain.clone().verify_with(self.cluster, now.unix, &*self.check)?;
        if member.node() == card.node { self.admit(member, now) } else { Err(Rejection::Origin) }
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
}
