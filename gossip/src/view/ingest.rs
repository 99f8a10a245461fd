//! Accepts a record into the view, or refuses it.
//!
//! The checks, in this order: the record can be read, is signed by its signer, is of this cluster,
//! is newer than the known one but not absurdly so, has every field within its bounds, and its
//! signer is a member. Nothing in the view changes before all of them have passed.

use super::services::start;
use super::{Changes, MAX_NODES, MemberView, RecordRejection, Standing, View};
use crate::id::NodeId;
use crate::record::{AnyRecord, Chain, Member, NodeCard, RecordKind, Signer};
use crate::signed::Verified;
use crate::time::Now;

/// Most restarts of a node between two of its records of one kind. The first record of a kind may
/// be from any of the first 2^31 starts.
pub const MAX_BOOT_JUMP: u64 = 1 << 20;

/// Refuses a sequence number that is not above the known one, or too far above it.
fn follows(known: Option<&AnyRecord>, record: &AnyRecord) -> Result<(), RecordRejection> {
    let known = known.map(|known| known.seq());
    if let Some(known) = known.filter(|known| record.seq() <= *known) {
        return Err(RecordRejection::Stale { known, got: record.seq() });
    }
    let furthest = known.map_or(1 << 31, |known| start(known) + MAX_BOOT_JUMP);
    if start(record.seq()) > furthest { Err(RecordRejection::Jump("sequence number")) } else { Ok(()) }
}

impl View {
    /// Checks a record that was received as one of `origin`, and folds it into the view.
    ///
    /// A record whose signer's card has not arrived yet is kept (bounded) and ingested with the
    /// card. A record that is known already changes nothing and is not an error.
    ///
    /// # Errors
    ///
    /// The reason why the record was refused. It is counted in [`View::refused`], except for
    /// [`RecordRejection::Unknown`]: such a record waits for its card.
    pub fn ingest(
        &mut self,
        origin: NodeId,
        kind: RecordKind,
        bytes: &[u8],
        now: Now,
    ) -> Result<Changes, RecordRejection> {
        let outcome = match kind.signer() {
            Signer::Node => self.take_record(origin, kind, bytes, now),
            Signer::Authority | Signer::Unknown => self.take_fact(kind, bytes, now),
        };
        // A record that waits for a card is not refused yet.
        if let Err(rejection) = &outcome
            && *rejection != RecordRejection::Unknown
        {
            self.refused.count(rejection);
        }
        outcome
    }

    /// Ingests a record that a node signed about itself.
    fn take_record(
        &mut self,
        origin: NodeId,
        kind: RecordKind,
        bytes: &[u8],
        now: Now,
    ) -> Result<Changes, RecordRejection> {
        if origin == self.me {
            return Err(RecordRejection::Own);
        }
        if self.revoked(&origin) {
            return Err(RecordRejection::Revoked);
        }
        if kind != RecordKind::Card && !self.nodes.contains_key(&origin) {
            for _ in 0..self.pending.keep(origin, kind, bytes) {
                self.refused.count(&RecordRejection::TooMany("records without a card"));
            }
            return Err(RecordRejection::Unknown);
        }
        let known = self.nodes.get(&origin).and_then(|node| node.records.get(&kind));
        let Some(record) = self.open_own(origin, kind, bytes, known)? else { return Ok(Changes::default()) };
        if let Err(rejection) = follows(known, &record) {
            if let (RecordRejection::Stale { .. }, AnyRecord::Heartbeat(beat)) = (&rejection, &record) {
                self.on_stale_heartbeat(beat, now);
            }
            return Err(rejection);
        }
        record.check_bounds()?;
        // The signer of a card need not be a member now: the card brings the certificates.
        let mut changes = Changes::default();
        if let AnyRecord::Card(card) = &record {
            changes |= self.admit_by_card(card, now)?;
        } else {
            self.check_standing(origin)?;
        }
        changes |= self.fold_record(record, now)?;
        Ok(changes)
    }

    /// Opens a record that `origin` signed about itself. `None` if it equals `known` byte for byte.
    pub(crate) fn open_own(
        &self,
        origin: NodeId,
        kind: RecordKind,
        bytes: &[u8],
        known: Option<&AnyRecord>,
    ) -> Result<Option<AnyRecord>, RecordRejection> {
        let Some(record) = AnyRecord::open(kind, bytes, origin, known, &*self.check)? else { return Ok(None) };
        if record.node() != origin {
            return Err(RecordRejection::Origin);
        }
        if record.cluster() == self.cluster { Ok(Some(record)) } else { Err(RecordRejection::Cluster) }
    }

    fn check_standing(&self, origin: NodeId) -> Result<(), RecordRejection> {
        match self.nodes.get(&origin).map(|node| node.standing) {
            Some(Standing::Member) => Ok(()),
            Some(Standing::Expired) => Err(RecordRejection::Expired),
            Some(Standing::Overdrawn) => Err(RecordRejection::Overdrawn),
            Some(Standing::Revoked) => Err(RecordRejection::Revoked),
            None => Err(RecordRejection::Unknown),
        }
    }

    fn admit_by_card(&mut self, card: &Verified<NodeCard>, now: Now) -> Result<Changes, RecordRejection> {
        let member = card.chain.clone().verify_with(self.cluster, now.unix, &*self.check)?;
        if member.node() == card.node { self.admit(member, now) } else { Err(RecordRejection::Origin) }
    }

    /// Admits a member by certificates from elsewhere than its own card: the answer to a join, or
    /// the disk.
    ///
    /// # Errors
    ///
    /// The reason why the certificates were refused, which is counted like that of a record.
    pub fn admit_chain(&mut self, chain: Chain, now: Now) -> Result<Changes, RecordRejection> {
        let outcome = chain
            .verify_with(self.cluster, now.unix, &*self.check)
            .map_err(RecordRejection::from)
            .and_then(|member| if member.node() == self.me { Ok(Changes::default()) } else { self.admit(member, now) });
        if let Err(rejection) = &outcome {
            self.refused.count(rejection);
        }
        outcome
    }

    /// Adds a member whose certificates have been checked, or renews its certificates. Then ingests
    /// the records that waited for it.
    pub(super) fn admit(&mut self, member: Member, now: Now) -> Result<Changes, RecordRejection> {
        let node = member.node();
        // A publisher holds the master key and could certify a second authority, whose facts the
        // other nodes could not store.
        if member.authority_id() != self.authority {
            return Err(RecordRejection::Authority);
        }
        if self.revoked(&node) {
            return Err(RecordRejection::Revoked);
        }
        let changed = Changes { members: true, points: true, ..Changes::default() };
        if let Some(known) = self.nodes.get_mut(&node) {
            let age = |it: &Member| (it.certificate.expires, it.certificate.issued, it.role());
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
            // Which redeemers are members must not depend on the order in which certificates
            // arrive.
            if earlier || tokens.first() != tokens.last() {
                tokens.into_iter().flatten().for_each(|token| changes |= self.update_redeemers(&token));
            }
            return Ok(changes);
        }
        self.make_room()?;
        let token = member.certificate.invitation;
        self.nodes.insert(node, MemberView::new(member));
        let mut changes = changed;
        if let Some(token) = token {
            changes |= self.update_redeemers(&token);
        }
        for (kind, bytes) in self.pending.take(node) {
            // `ingest` counts the refusal of a record that waited; it must not undo the card.
            if let Ok(more) = self.ingest(node, kind, &bytes, now) {
                changes |= more;
            }
        }
        Ok(changes)
    }

    fn make_room(&mut self) -> Result<(), RecordRejection> {
        if self.nodes.len() < MAX_NODES {
            return Ok(());
        }
        // Only a revoked or expired node is dropped: its revocation, or the date in its
        // certificate, still keeps it out.
        let mut lost =
            self.nodes.values().filter(|node| matches!(node.standing, Standing::Revoked | Standing::Expired));
        let Some(lost) = lost.next().map(MemberView::node).filter(|lost| *lost != self.me) else {
            return Err(RecordRejection::TooMany("nodes"));
        };
        self.nodes.remove(&lost);
        self.liveness.forget(&lost);
        Ok(())
    }
}
