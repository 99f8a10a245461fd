//! How a fact becomes part of the view, and what a new fact changes there.

use std::collections::BTreeSet;

use super::{Changes, MemberView, RecordRejection, Standing, View};
use crate::id::{InvitationId, NodeId, ServiceId};
use crate::record::{AnyFact, Fact, OpenError, RecordKind, Signer};
use crate::record_kinds;
use crate::signed::VerifyError;
use crate::time::Now;

/// A revocation older than this, in seconds, should have arrived earlier. More than the ten minutes
/// by which clocks may differ.
const LATE: u64 = 900;

/// Generates `View::fold_fact`: it merges a fact of any kind into the container of its kind and
/// calls the `learn_` method of that kind.
macro_rules! learns {
    (
        own $own:tt
        keyed $keyed:tt
        facts { $($Fact:ident($fact:literal, $Id:ty): $FactType:ty, $facts:ident => $learn:ident;)* }
    ) => {
        impl View {
            /// Folds a fact whose signature has been checked.
            pub(crate) fn fold_fact(&mut self, fact: impl Into<AnyFact>, now: Now) -> Result<Changes, RecordRejection> {
                let fact = fact.into();
                if fact.cluster() != self.cluster {
                    return Err(RecordRejection::Cluster);
                }
                let mut changes = Changes { facts: true, ..Changes::default() };
                match fact {
                    $(AnyFact::$Fact(statement) => {
                        let id = Fact::id(&*statement);
                        if !self.facts.$facts.fold(statement, now.unix)? {
                            return Ok(Changes::default());
                        }
                        changes |= self.$learn(id, now);
                    })*
                    AnyFact::Unknown(fact) => changes.facts = self.facts.unknown.fold(fact, now.unix)?,
                }
                Ok(changes)
            }
        }
    };
}

record_kinds!(learns);

impl View {
    pub(super) fn take_fact(&mut self, kind: RecordKind, bytes: &[u8], now: Now) -> Result<Changes, RecordRejection> {
        if self.facts.has(kind, bytes) {
            return Ok(Changes::default());
        }
        match AnyFact::read(kind, bytes, self.authority.public_key(), &*self.check) {
            Ok(fact) => self.fold_fact(fact, now),
            // A record of a later version, signed by its node: only gossip carries it.
            Err(OpenError::Verify(VerifyError::Signer)) if kind.signer() == Signer::Unknown => Ok(Changes::default()),
            Err(OpenError::Verify(VerifyError::Signer)) => Err(RecordRejection::Authority),
            Err(error) => Err(error.into()),
        }
    }

    fn learn_invitation(&mut self, token: InvitationId, _now: Now) -> Changes {
        let mut changes = Changes { invitations: true, ..Changes::default() };
        changes |= self.update_redeemers(&token);
        changes
    }

    /// Services are read where they are used, so the view draws no conclusion from a new one.
    fn learn_service(&mut self, _service: ServiceId, _now: Now) -> Changes {
        Changes { services: true, ..Changes::default() }
    }

    /// Takes the certificate of a renewal, this node's own among them. One that cannot be used,
    /// such as that of a revoked node, changes nothing.
    fn learn_renewal(&mut self, node: NodeId, now: Now) -> Changes {
        let Some(own) = self.nodes.get(&self.me) else { return Changes::default() };
        let renewal = self.facts.renewals.get(&node);
        let Some(chain) = renewal.and_then(|renewal| renewal.chain(&own.member.authority).ok()) else {
            return Changes::default();
        };
        let renewed = chain.verify_with(self.cluster, now.unix, &*self.check).map_err(RecordRejection::from);
        renewed.and_then(|member| self.admit(member, now)).unwrap_or_else(|rejection| {
            tracing::debug!(node = %node.short(), %rejection, "a renewed certificate is not used");
            self.refused.count(&rejection);
            Changes::default()
        })
    }

    fn learn_revocation(&mut self, node: NodeId, now: Now) -> Changes {
        let revoked = self.facts.revocations.get(&node).map_or(now.unix, |revocation| revocation.revoked);
        let late = revoked < self.began || revoked.saturating_add(LATE) < now.unix;
        let mut changes = Changes { members: true, points: true, revocations: true, ..Changes::default() };
        if let Some(known) = self.nodes.get_mut(&node) {
            changes.heard_evicted_node = known.alive && late;
            known.standing = Standing::Revoked;
            known.alive = false;
            changes.leases = known.lease().is_some();
            self.rank_members_claims();
        }
        self.pending.take(node);
        changes
    }

    /// Decides again which of the nodes that joined with `token` did so after it was used up.
    ///
    /// Publishers that are cut off from each other may admit different nodes with one token. The
    /// merged invitation then has more redeemers than uses. The nodes with the lowest (issue date
    /// of the member certificate, node id) are members, the others are not: every node that knows
    /// the same certificates computes the same result.
    pub(super) fn update_redeemers(&mut self, token: &InvitationId) -> Changes {
        let with_token = |node: &MemberView| node.member.certificate.invitation == Some(*token);
        let uses = self.facts.invitations.get(token).map_or(usize::MAX, |invitation| invitation.uses.into());
        let joined: BTreeSet<(u64, NodeId)> =
            self.nodes.values().filter(|node| with_token(node)).map(|node| (node.joined, node.node())).collect();
        let overdrawn: BTreeSet<NodeId> = joined.into_iter().skip(uses).map(|(_, node)| node).collect();
        self.update_standings(|node| match (node.standing, overdrawn.contains(&node.node())) {
            (other, _) if !with_token(node) => other,
            (Standing::Revoked, _) => Standing::Revoked,
            (_, true) => Standing::Overdrawn,
            (Standing::Overdrawn, false) => Standing::Member,
            (other, false) => other,
        })
    }

    /// Gives each node the standing that `judge` returns, and ranks the claims again if any
    /// changed.
    pub(super) fn update_standings(&mut self, judge: impl Fn(&MemberView) -> Standing) -> Changes {
        let mut changes = Changes::default();
        for node in self.nodes.values_mut() {
            let standing = judge(node);
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
