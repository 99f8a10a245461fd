//! Selects the facts of the authority that this node announces in its own gossip. Many nodes
//! announce each fact, so that it outlives the node that announced it first.
//!
//! Which role forwards which kind is set in the table of kinds
//! ([`crate::record::Fact::BY_WORKERS`]).

use std::collections::BTreeMap;

use super::Action;
use crate::record::{RecordKind, Role};
use crate::view::View;

/// The facts in this node's gossip, each with the signature of the statement announced there.
#[derive(Debug, Default)]
pub(super) struct ForwardedFacts {
    known: BTreeMap<RecordKind, [u8; 64]>,
}

impl ForwardedFacts {
    /// Updates the gossip of a node with this role to the facts of its view, at `unix` seconds
    /// since the epoch.
    pub(super) fn step(&mut self, view: &View, role: Role, unix: u64) -> Vec<Action> {
        let (mut forwarded, mut actions) = (BTreeMap::new(), Vec::new());
        let entries = view.facts().entries();
        for entry in entries.filter(|entry| entry.is_announced_by(role) && entry.is_kept(unix)) {
            let (kind, before) = (entry.kind, self.known.get(&entry.kind).copied());
            // No single signed statement equals the merged fact yet: keep announcing the previous
            // one.
            let Some(signature) = entry.whole.map(|whole| whole.signature()).or(before) else { continue };
            if before != Some(signature)
                && let Some(bytes) = entry.whole.and_then(|whole| whole.record())
            {
                actions.push(Action::Gossip { kind, bytes });
            }
            forwarded.insert(kind, signature);
        }
        let over = self.known.keys().filter(|kind| !forwarded.contains_key(kind));
        actions.extend(over.map(|kind| Action::Retract(*kind)));
        self.known = forwarded;
        actions
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
    fn each_fact_is_forwarded_once_and_retracted_after_it_has_expired() {
        let founder = Founder::new(1);
        let mut view = View::new(founder.node(0, Role::Publisher).member, Patience::default(), 0);
        let mut facts = ForwardedFacts::default();
        let invitation = founder.invitation(1, 3, &[]);
        let kind = RecordKind::Invitation(invitation.token);
        let bytes = invitation.to_bytes().unwrap();
        let expires = invitation.expires;
        view.fold_fact(invitation, NOW).unwrap();
        view.fold_fact(founder.revoke(founder.node(1, Role::Worker).node()), NOW).unwrap();
        let mut of_worker = ForwardedFacts::default();
        assert_eq!(of_worker.step(&view, Role::Worker, NOW.unix).len(), 1, "workers forward revocations alone");
        let actions = facts.step(&view, Role::Publisher, NOW.unix);
        assert!(actions.len() == 2 && actions.contains(&Action::Gossip { kind, bytes }));
        assert_eq!(facts.step(&view, Role::Publisher, NOW.unix), vec![]);
        let later = expires + 8 * 86_400;
        assert_eq!(facts.step(&view, Role::Publisher, later), vec![Action::Retract(kind)]);
    }
}
