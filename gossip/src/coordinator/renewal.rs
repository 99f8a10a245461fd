//! Decides which certificates this node renews as a publisher, and takes over its own renewed one.
//!
//! The leaseholder renews the certificate of each member that is alive once half of its lifetime is
//! left. If none does, the other publishers do at three eighths. A publisher renews its own in any
//! case, even if it has expired: it holds the key that signs certificates, so the end of its own
//! one protects no other node.
//!
//! A silent node is not renewed, so a machine that is gone for good drops out of the cluster by
//! itself. Neither is a node that is no longer a member: a worker whose certificate has expired
//! joins again.

use super::{Action, Coordinator, Now};
use crate::record::{MEMBERSHIP_SECONDS, Role};
use crate::view::{Changes, MemberView, Standing};

/// With less than this left, in seconds, the leaseholder renews a certificate.
const LEADER_RENEWS: u64 = MEMBERSHIP_SECONDS / 2;
/// With less than this left, in seconds, any publisher renews it: almost four days later.
const ANY_RENEWS: u64 = MEMBERSHIP_SECONDS * 3 / 8;
/// Most certificates to renew with one heartbeat. The members of a cluster that was set up in one
/// hour are due in one hour.
const AT_ONCE: usize = 16;

impl Coordinator {
    /// Asks for the certificates that this node has to renew now.
    pub(super) fn renew(&self, now: Now, out: &mut Vec<Action>) {
        if self.member.role() != Role::Publisher {
            return;
        }
        // An isolated node may not know which nodes were revoked.
        let limit = match self.election.leading() {
            _ if self.isolation(now).is_some() => 0,
            Some(_) => LEADER_RENEWS,
            None => ANY_RENEWS,
        };
        let due = |node: &&MemberView| {
            let left = node.member.certificate.left(now.unix);
            match node.standing {
                Standing::Member | Standing::Expired if node.node() == self.me => left < LEADER_RENEWS,
                Standing::Member => node.alive && left < limit,
                _ => false,
            }
        };
        let renewed = self.view.nodes().filter(due).map(|node| node.member.certificate.renewed(now.unix));
        out.extend(renewed.take(AT_ONCE).map(Action::Renew));
    }

    /// Announces this node's own certificates once the view has later ones.
    pub(super) fn follow_certificate(&mut self, now: Now, out: &mut Vec<Action>) -> Changes {
        let renewed = self.view.node(&self.me).map(|own| &own.member).filter(|member| **member != self.member);
        let Some(member) = renewed.cloned() else { return Changes::default() };
        tracing::info!(
            name: "own_membership_renewed",
            expires = member.certificate.expires,
            "this node's membership was renewed"
        );
        self.member = member;
        self.announce_card(now, out)
    }
}

#[cfg(test)]
mod tests;
