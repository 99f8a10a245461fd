//! Writes the state of the cluster's task to disk.
//!
//! The cluster's task puts the state that should be on disk into a watch, and this task writes
//! whatever differs from what it wrote before. So the cluster's task never waits for the disk; if
//! the state changes often, only the newest is written; and a failed write is tried again.

use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::record::{AnyFact, Chain};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::warn;

use crate::blocking::on_disk;
use crate::clock::unix_now;
use crate::store::{KeyAlarm, Store, StoreError};

/// Interval between attempts after a failed write.
const RETRY: Duration = Duration::from_secs(10);

/// The state that should be on disk.
#[derive(Debug, Clone, Default)]
pub(super) struct DesiredState {
    /// The highest term that this node has claimed or seen.
    pub(super) term: u64,
    /// The chains of all members, including this node.
    pub(super) members: Vec<Chain>,
    /// The facts of every kind, each signed as a whole.
    pub(super) facts: Vec<AnyFact>,
    /// The alarms that more nodes joined as publishers with one invitation than it allows.
    pub(super) alarms: Vec<KeyAlarm>,
}

/// Writes until the cluster's task has ended; then tries once to write its last state. Reports in
/// `stored` the term that is on disk.
pub(super) async fn write_all(
    store: Arc<Store>,
    mut wanted: watch::Receiver<DesiredState>,
    stored: watch::Sender<u64>,
) {
    let mut written = DesiredState::default();
    loop {
        let next = wanted.borrow_and_update().clone();
        let whole = on_disk(|| write(&store, next, &mut written, &stored));
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = sleep(RETRY), if !whole => {}
        }
    }
}

/// Writes what differs; false if a write failed.
fn write(store: &Store, wanted: DesiredState, written: &mut DesiredState, stored: &watch::Sender<u64>) -> bool {
    let DesiredState { term, members, facts, alarms } = wanted;
    // The term comes first because the election waits for it.
    let mut whole = put("the term (this node cannot publish)", term, &mut written.term, |term| store.raise_term(*term));
    if whole {
        stored.send_if_modified(|last_stored| std::mem::replace(last_stored, term) != term);
    }
    whole &= put("the members", members, &mut written.members, |list| store.put_members(list));
    whole &= put("the facts", facts, &mut written.facts, |list| store.put_facts(list, unix_now()));
    whole & put("the alarms", alarms, &mut written.alarms, |list| store.put_alarms(list))
}

fn put<T: PartialEq>(
    what: &'static str,
    wanted: T,
    written: &mut T,
    put: impl FnOnce(&T) -> Result<(), StoreError>,
) -> bool {
    if wanted == *written {
        return true;
    }
    match put(&wanted) {
        Ok(()) => *written = wanted,
        Err(error) => {
            warn!(name: "state_write_failed", what, %error, "cannot write state to disk, will try again");
            return false;
        }
    }
    true
}
