//! Which facts of the authority this node keeps in its own gossip: the node that announced one first may be gone.
//!
//! Publishers forward invitations, every member forwards revocations: if a single node is left that knows of one, all
//! shall know it.

use std::collections::BTreeMap;

use super::Action;
use crate::record::{RecordKind, Role};
use crate::view::View;

/// The facts that stand in this node's gossip.
#[derive(Debug, Default)]
pub(super) struct ForwardedFacts {
    known: BTreeMap<RecordKind, Vec<u8>>,
}

impl ForwardedFacts {
    /// Brings the gossip of a node of this role up to date with the facts of its view, at `unix` seconds since the epoch.
    pub(super) fn step(&mut self, view: &View, role: Role, unix: u64) -> Vec<Action> {
        let mut facts = self.revocations(view);
        if role == Role::Publisher {
            facts.extend(self.invitations(view, unix));
        }
        let news = facts.iter().filter(|(kind, bytes)| self.known.get(kind) != Some(bytes));
        let mut actions: Vec<Action> =
            news.map(|(kind, bytes)| Action::Gossip { kind: *kind, bytes: bytes.clone() }).collect();
        let gone = self.known.keys().filter(|kind| !facts.contains_key(kind));
        actions.extend(gone.map(|kind| Action::Retract(*kind)));
        self.known = facts;
        actions
    }

    fn invitations(&self, view: &View, unix: u64) -> BTreeMap<RecordKind, Vec<u8>> {
        let invitations = view.invitations();
        let forwarded = invitations.iter().filter_map(|invitation| {
            let kind = RecordKind::Invitation(invitation.token);
            // Until a publisher signs the merger as a whole, what this node forwards already is better than nothing.
            let whole = invitations.whole(&invitation.token).and_then(|whole| whole.to_bytes().ok());
            let bytes = whole.or_else(|| self.known.get(&kind).cloned())?;
            invitations.is_current(&kind, unix).then_some((kind, bytes))
        });
        forwarded.collect()
    }

    fn revocations(&self, view: &View) -> BTreeMap<RecordKind, Vec<u8>> {
        let forwarded = view.revocations().filter_map(|revocation| {
            let kind = RecordKind::Revocation(revocation.node);
            // The first of a node stays, and a node that starts hears of all, one after the other.
            let bytes = self.known.get(&kind).cloned().or_else(|| revocation.to_bytes().ok())?;
            Some((kind, bytes))
        });
        forwarded.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::liveness::Patience;
    use crate::sim::{FOUNDED, Founder};
    use crate::time::Now;

    const NOW: Now = Now { mono: Duration::ZERO, unix: FOUNDED };

    #[test]
    fn each_fact_is_forwarded_once_and_taken_back_when_it_is_over() {
        let founder = Founder::new(1);
        let mut view = View::new(founder.node(0, Role::Publisher).member, Patience::default(), 0);
        let mut facts = ForwardedFacts::default();
        let invitation = founder.invitation(1, 3, &[]);
        let kind = RecordKind::Invitation(invitation.token);
        let bytes = invitation.to_bytes().unwrap();
        let expires = invitation.expires;
        view.fold_invitation(invitation, NOW).unwrap();
        view.fold_revocation(founder.revoke(founder.node(1, Role::Worker).node()), NOW).unwrap();
        let mut of_worker = ForwardedFacts::default();
        assert_eq!(of_worker.step(&view, Role::Worker, NOW.unix).len(), 1, "workers forward revocations alone");
        let actions = facts.step(&view, Role::Publisher, NOW.unix);
        assert!(actions.len() == 2 && actions.contains(&Action::Gossip { kind, bytes }));
        assert_eq!(facts.step(&view, Role::Publisher, NOW.unix), vec![]);
        let later = expires + 8 * 86_400;
        assert_eq!(facts.step(&view, Role::Publisher, later), vec![Action::Retract(kind)]);
    }
}
