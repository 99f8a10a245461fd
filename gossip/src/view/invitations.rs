//! The invitations known, each the merger of all its versions, and who joined with a token that was used up.
//!
//! Publishers that are cut off from each other may let different nodes in with one token. Every version says who
//! redeemed it; merged, it may be more than it has uses. Then the nodes with the lowest (issue date of the member
//! certificate, node id) stand, and the others are not members: every node that knows the same certificates computes
//! the same. The merger is a semilattice (any order, any repetition, one result), so replayed versions are harmless.

use std::collections::{BTreeMap, BTreeSet};

use super::Rejection;
use crate::id::{InvitationId, NodeId};
use crate::record::{Invitation, RecordKind};
use crate::signed::Verified;

/// Most invitations kept.
pub const MAX_INVITATIONS: usize = 512;

/// One invitation.
#[derive(Debug, Clone)]
struct Known {
    merged: Invitation,
    /// The last signed version that says all that is known, if one does.
    whole: Option<Verified<Invitation>>,
}

/// All invitations known.
#[derive(Debug, Clone, Default)]
pub struct Invitations {
    known: BTreeMap<InvitationId, Known>,
}

/// Joins two versions of one invitation: the stricter of every bound.
fn merge(into: &mut Invitation, other: &Invitation) {
    into.redeemed.extend(other.redeemed.iter().copied());
    into.revoked |= other.revoked;
    into.uses = into.uses.min(other.uses);
    into.expires = into.expires.min(other.expires);
    into.issued = into.issued.min(other.issued);
    into.role = into.role.max(other.role);
}

impl Invitations {
    /// Folds a version whose signature has been checked. True if it said anything new, or is the first to say all.
    pub(super) fn fold(&mut self, version: Verified<Invitation>, unix: u64) -> Result<bool, Rejection> {
        if version.uses == 0 || version.uses > Invitation::MAX_USES {
            return Err(Rejection::Bounds("number of uses"));
        }
        let token = version.token;
        let Some(known) = self.known.get_mut(&token) else {
            self.make_room(unix)?;
            self.known.insert(token, Known { merged: (*version).clone(), whole: Some(version) });
            return Ok(true);
        };
        let (before, unsigned) = (known.merged.clone(), known.whole.is_none());
        merge(&mut known.merged, &version);
        if *version == known.merged {
            known.whole = Some(version);
        } else if before != known.merged {
            known.whole = None;
        }
        Ok(before != known.merged || (unsigned && known.whole.is_some()))
    }

    fn make_room(&mut self, unix: u64) -> Result<(), Rejection> {
        if self.known.len() < MAX_INVITATIONS {
            return Ok(());
        }
        let oldest = self.known.iter().min_by_key(|(_, known)| known.merged.expires);
        match oldest.map(|(token, known)| (*token, known.merged.is_kept(unix))) {
            Some((token, false)) => {
                self.known.remove(&token);
                Ok(())
            }
            _ => Err(Rejection::TooMany("invitations")),
        }
    }

    /// Each one, merged from all its versions.
    pub fn iter(&self) -> impl Iterator<Item = &Invitation> + '_ {
        self.known.values().map(|known| &known.merged)
    }

    /// One, merged from all its versions.
    pub fn get(&self, token: &InvitationId) -> Option<&Invitation> {
        self.known.get(token).map(|known| &known.merged)
    }

    /// Those whose merger nobody has signed as a whole, as far as is known: a holder of the authority key should.
    pub fn unsigned(&self) -> impl Iterator<Item = &Invitation> + '_ {
        self.known.values().filter(|known| known.whole.is_none()).map(|known| &known.merged)
    }

    /// A signed version of this one that says all that is known.
    pub fn whole(&self, token: &InvitationId) -> Option<&Verified<Invitation>> {
        self.known.get(token).and_then(|known| known.whole.as_ref())
    }

    /// True while it is worth passing on.
    pub(crate) fn is_current(&self, kind: &RecordKind, unix: u64) -> bool {
        match kind {
            RecordKind::Invitation(token) => self.get(token).is_some_and(|invitation| invitation.is_kept(unix)),
            _ => true,
        }
    }

    /// Who of these (issue date and id of all nodes that joined with `token`) came after it was used up.
    pub(super) fn overdrawn(&self, token: &InvitationId, mut joined: Vec<(u64, NodeId)>) -> BTreeSet<NodeId> {
        let Some(invitation) = self.get(token) else { return BTreeSet::new() };
        joined.sort_unstable();
        joined.into_iter().skip(usize::from(invitation.uses)).map(|(_, node)| node).collect()
    }
}
