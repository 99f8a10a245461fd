//! The alarm that more nodes hold the key of the address than the operator allowed.
//!
//! Two publishers that cannot hear each other may admit two nodes with one token. The second node
//! is evicted once they can, but it has the key, and only the operator can tell whether it is a
//! thief. So each node that learns of it logs it once, and shows it in `status` until its own
//! operator acknowledges it. No record can end the alarm: a holder of the key could sign one.

use std::collections::BTreeMap;

use parking_lot::{Mutex, MutexGuard};
use rustbalance_gossip::id::InvitationId;
use rustbalance_gossip::record::{Invitation, Role};
use tracing::error;

use crate::control::{AlarmStatus, InvitationPrefix};
use crate::display::short;
use crate::store::{KeyAlarm, MAX_ALARMS};

/// Maximum number of nodes that one log line names.
const MOST_NODES: usize = 6;

/// The alarms that this node knows. They are in memory; [`super::writer`] writes them to disk.
#[derive(Debug, Default)]
pub struct Alarms {
    known: Mutex<BTreeMap<InvitationId, KeyAlarm>>,
}

impl Alarms {
    /// Starts with the alarms of the last run.
    pub fn new(stored: Vec<KeyAlarm>) -> Self {
        let known = stored.into_iter().map(|alarm| (alarm.invitation, alarm)).collect();
        Self { known: Mutex::new(known) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InvitationId, KeyAlarm>> {
        self.known.lock()
    }

    /// Raises an alarm for each invitation with which more nodes joined as publishers than it
    /// allows, and logs the new alarms.
    pub(super) fn look_at<'a>(&self, invitations: impl Iterator<Item = &'a Invitation>) {
        let over = |it: &&Invitation| it.role == Role::Publisher && it.redeemed.len() > usize::from(it.uses);
        let mut known = self.lock();
        for invitation in invitations.filter(over) {
            let alarm = KeyAlarm::new(invitation);
            let room = known.len() < MAX_ALARMS;
            let new = match known.get_mut(&alarm.invitation) {
                Some(known) => known.merge(&alarm),
                None if room => known.insert(alarm.invitation, alarm.clone()).is_none(),
                None => false,
            };
            if new {
                let (id, nodes) = (alarm.invitation.to_string(), alarm.nodes.len());
                let named: Vec<_> = alarm.nodes.iter().take(MOST_NODES).map(|node| node.short()).collect();
                error!(
                    name: "key_overdrawn",
                    invitation = short(&id), uses = alarm.uses, nodes = named.join(" "),
                    "the key of the address has been given to {nodes} nodes with an invitation for fewer: if one of them \
                     is not yours, move to a new address; `rustbalance acknowledge {}` ends this alarm here", short(&id)
                );
            }
        }
    }

    /// All alarms, acknowledged or not, for the disk.
    pub(super) fn all(&self) -> Vec<KeyAlarm> {
        self.lock().values().cloned().collect()
    }

    /// The alarms that the operator has not acknowledged.
    pub(super) fn open(&self) -> Vec<AlarmStatus> {
        let known = self.lock();
        let status = |alarm: &KeyAlarm| AlarmStatus {
            invitation: alarm.invitation.to_string(),
            uses: alarm.uses,
            nodes: alarm.nodes.iter().map(ToString::to_string).collect(),
        };
        known.values().filter(|alarm| alarm.is_open()).map(status).collect()
    }

    /// Acknowledges an alarm for the nodes that it names now. A further node opens it again.
    ///
    /// # Errors
    /// A text for the operator, if no open alarm or several match the prefix.
    pub(super) fn acknowledge(&self, prefix: &InvitationPrefix) -> Result<KeyAlarm, String> {
        let mut known = self.lock();
        let open = known.values().filter(|alarm| alarm.is_open()).map(|alarm| alarm.invitation);
        let id = prefix.choose(open).map_err(|why| format!("there is no such alarm here: {why}"))?;
        let alarm = known.get_mut(&id).ok_or("there is no such alarm here")?;
        alarm.acknowledged = alarm.nodes.clone();
        Ok(alarm.clone())
    }
}
