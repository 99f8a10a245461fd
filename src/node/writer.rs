//! Brings to disk what the cluster's task has learnt, beside it.
//!
//! The cluster's task says in a watch what should be on disk, and this task writes what differs from what it has written.
//! So that one waits for no disk; however often something changes, nothing is lost and only the newest is written; and
//! what could not be written is tried again.

use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::record::{AnyFact, Chain};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::warn;

use crate::blocking::on_disk;
use crate::clock::unix_now;
use crate::store::{KeyAlarm, Store, StoreError};

/// Between two attempts at what could not be written.
const RETRY: Duration = Duration::from_secs(10);

/// What should be on disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    /// The highest term that this node has claimed or seen.
    pub(super) term: u64,
    /// The members, this node among them.
    pub(super) members: Vec<Chain>,
    /// The facts of every kind, each signed as a whole.
    pub(super) facts: Vec<AnyFact>,
    /// Publishers' tokens that more nodes have used than may.
    pub(super) alarms: Vec<KeyAlarm>,
}

/// Writes until the cluster's task has ended and what it wanted last has been tried. Says in `stored` which term is on
/// disk.
pub(super) async fn write_all(store: Arc<Store>, mut wanted: watch::Receiver<Kept>, stored: watch::Sender<u64>) {
    let mut written = Kept::default();
    loop {
        let next = wanted.borrow_and_update().clone();
        let whole = on_disk(|| write(&store, next, &mut written, &stored));
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = sleep(RETRY), if !whole => {}
        }
    }
}

/// Writes what differs; false if something could not be written.
fn write(store: &Store, wanted: Kept, written: &mut Kept, stored: &watch::Sender<u64>) -> bool {
    let Kept { term, members, facts, alarms } = wanted;
    // The term first, for the election waits for it.
    let mut whole = put("the term (this node cannot publish)", term, &mut written.term, |term| store.raise_term(*term));
    if whole {
        stored.send_if_modified(|told| std::mem::replace(told, term) != term);
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
            warn!(what, %error, "cannot store what was learnt, will try again");
            return false;
        }
    }
    true
}
