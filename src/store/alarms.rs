//! Alarms that more nodes joined as publishers with one token than it was made for. An alarm is
//! kept until the operator acknowledges it, even if the token expired long ago.

use std::collections::BTreeSet;

use rustbalance_gossip::id::{InvitationId, NodeId};
use rustbalance_gossip::record::Invitation;
use serde::{Deserialize, Serialize};

use super::kind::Kind;
use super::{Store, StoreError};

/// Most alarms kept. A member that can fabricate more holds the key of the address, which the first
/// alarm already reports.
pub const MAX_ALARMS: usize = 64;

/// More nodes joined as publishers with one token than it was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyAlarm {
    /// The token's public half.
    pub invitation: InvitationId,
    /// Number of nodes that the token was made for.
    pub uses: u16,
    /// Every node that received the key with this token. Only the operator knows which of them must
    /// not have it.
    pub nodes: BTreeSet<NodeId>,
    /// The nodes that the operator of this node has acknowledged.
    pub acknowledged: BTreeSet<NodeId>,
}

impl KeyAlarm {
    /// An alarm about `invitation` that the operator has not acknowledged.
    pub fn new(invitation: &Invitation) -> Self {
        Self {
            invitation: invitation.token,
            uses: invitation.uses,
            nodes: invitation.redeemed.clone(),
            acknowledged: BTreeSet::new(),
        }
    }

    /// True until the operator has acknowledged all nodes.
    pub fn is_open(&self) -> bool {
        !self.nodes.is_subset(&self.acknowledged)
    }

    /// Adds the nodes and acknowledgements of another version; none is ever removed. True if any
    /// was new.
    pub fn merge(&mut self, other: &Self) -> bool {
        let before = (self.nodes.len(), self.acknowledged.len());
        self.nodes.extend(&other.nodes);
        self.acknowledged.extend(&other.acknowledged);
        before != (self.nodes.len(), self.acknowledged.len())
    }
}

impl Store {
    /// The stored alarms.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn alarms(&self) -> Result<Vec<KeyAlarm>, StoreError> {
        self.list(Kind::Alarms, MAX_ALARMS)
    }

    /// Merges `given` into the stored alarms. New alarms beyond [`MAX_ALARMS`] are dropped.
    ///
    /// # Errors
    /// The file is damaged, or cannot be read or written.
    pub fn put_alarms(&self, given: &[KeyAlarm]) -> Result<(), StoreError> {
        let _changing = self.change();
        let mut kept = self.alarms()?;
        let mut changed = false;
        for alarm in given {
            let room = kept.len() < MAX_ALARMS;
            match kept.iter_mut().find(|known| known.invitation == alarm.invitation) {
                Some(known) => changed |= known.merge(alarm),
                None if room => {
                    kept.push(alarm.clone());
                    changed = true;
                }
                None => {}
            }
        }
        if changed { self.put_value(Kind::Alarms, &kept) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledged_alarm_opens_again_for_another_node_and_never_by_an_older_version() {
        let node = |byte| NodeId::from_public_key([byte; 32]);
        let of = |nodes: &[u8], acknowledged: &[u8]| KeyAlarm {
            invitation: InvitationId::from_public_key([9; 32]),
            uses: 1,
            nodes: nodes.iter().map(|byte| node(*byte)).collect(),
            acknowledged: acknowledged.iter().map(|byte| node(*byte)).collect(),
        };
        let mut alarm = of(&[1, 2], &[]);
        assert!(alarm.is_open());
        assert!(alarm.merge(&of(&[1, 2], &[1, 2])) && !alarm.is_open());
        assert!(!alarm.merge(&of(&[1, 2], &[])) && !alarm.is_open());
        assert!(alarm.merge(&of(&[3], &[])) && alarm.is_open());
    }
}
