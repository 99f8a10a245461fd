//! Looks for the older self of a restored node: the machine that its backup was made on, if that
//! still runs. Two machines must not run with one key, and the older one must go on undisturbed.
//!
//! Until the search has ended, this node announces nothing: it has neither an onion service of its
//! own, nor links, nor gossip. It dials its own onion address. An answer proves that another
//! process has its key, because only a holder of the key can answer there. It drops the connection
//! before the handshake, so the older self notices nothing but a stream that ends. It also dials
//! other members, one with each attempt, to know whether dials succeed at all from here.
//!
//! The times are multiples of the heartbeat interval, as all times of the cluster's gossip are.

use std::sync::Arc;
use std::time::Duration;

use rustbalance_gossip::id::NodeId;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::NodeError;
use super::known;
use super::supervisor::PartResult;
use crate::blocking::on_disk;
use crate::clock::date;
use crate::discovery::KeyRing;
use crate::link::LINK_PORT;
use crate::store::{RestoredMark, Store};
use crate::systemd;
use crate::tor::{Engine, TorError};

/// Heartbeats between two attempts: 10 s.
const PAUSE: u32 = 5;
/// Time limit of a dial, in heartbeats: 30 s, three times as long as a rendezvous takes that
/// succeeds.
const DIAL: u32 = 15;
/// Silence, in heartbeats, after which the older self counts as off if another member was reached
/// meanwhile: a minute.
const QUIET: u32 = 30;
/// The same if none was reached: three minutes. In a cluster that has lost all nodes there is none.
const QUIET_ALONE: u32 = 90;
/// Fewest attempts, however long each takes.
const ATTEMPTS: u32 = 3;
/// Heartbeats after the start until the restore is forgotten: ten minutes. A restart before that
/// searches again.
const REMEMBERED: u32 = 300;

/// Why a restored node does not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// A process answered at this node's own address.
    Running,
    /// The own address has a descriptor, of the last three hours, that needs a newer discovery key
    /// than the backup has.
    NewerKey,
}

impl Found {
    fn explain(self, mark: RestoredMark, store: &Store) -> String {
        let made = date(mark.made).unwrap_or_else(|| mark.made.to_string());
        let what = match self {
            Self::Running => "another machine runs with the key of this node",
            Self::NewerKey => {
                "another machine had the key of this node within the last three hours, and may still run: this node's \
                 own service has a descriptor, which the keys in the backup do not open, because the cluster has \
                 changed its discovery key since"
            }
        };
        format!(
            "this node was restored from a backup of {made}, and {what}; that machine was not disturbed. If it is to \
             stay, delete {}. If this one is to replace it, stop that one for good, then start this one; if it is off \
             already, run `rustbalance restore --force` first. If it is lost and the backup is old, evict the node and \
             join again instead",
            store.dir().display()
        )
    }
}

/// What a dial of the own address has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Answered,
    NewerKey,
    Silent,
}

/// The verdict after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Refuse(Found),
    Continue,
    /// The older self counts as off. `reached`: another member was reached meanwhile.
    Start {
        reached: bool,
    },
}

/// The search: counts attempts. Times are since its start.
#[derive(Debug)]
struct Search {
    heartbeat: Duration,
    attempts: u32,
    reached: bool,
}

impl Search {
    fn new(heartbeat: Duration) -> Self {
        Self { heartbeat, attempts: 0, reached: false }
    }

    /// Takes the result of an attempt that ended after `passed`; `reached`: another member was
    /// reached with it.
    fn take(&mut self, attempt: Attempt, reached: bool, passed: Duration) -> Verdict {
        self.attempts += 1;
        self.reached |= reached;
        let quiet = self.heartbeat * if self.reached { QUIET } else { QUIET_ALONE };
        match attempt {
            Attempt::Answered => Verdict::Refuse(Found::Running),
            Attempt::NewerKey => Verdict::Refuse(Found::NewerKey),
            Attempt::Silent if self.attempts >= ATTEMPTS && passed >= quiet => Verdict::Start { reached: self.reached },
            Attempt::Silent => Verdict::Continue,
        }
    }
}

/// Waits until it is known whether the older self runs. False if `stop` comes first. Returns at
/// once if the node was not restored, or if the operator has said that the older self is off.
///
/// # Errors
/// [`NodeError::OlderSelf`] if it runs or may run; the Tor client fails for good; or the state
/// directory cannot be read.
pub(super) async fn await_silence(
    engine: &dyn Engine,
    store: &Store,
    heartbeat: Duration,
    stop: &CancellationToken,
) -> Result<bool, NodeError> {
    let Some(mark) = store.restored()?.filter(|mark| !mark.forced) else { return Ok(true) };
    let made = date(mark.made).unwrap_or_else(|| mark.made.to_string());
    info!(
        name: "restored_searching",
        backup = made,
        "restored: looking for the machine that the backup was made on, before this node announces anything"
    );
    systemd::status("restored: looking for the machine that the backup was made on");
    match stop.run_until_cancelled(search(engine, store, heartbeat)).await {
        None => Ok(false),
        Some(Err(error)) => Err(error),
        Some(Ok(Verdict::Refuse(found))) => Err(NodeError::OlderSelf(found.explain(mark, store))),
        Some(Ok(Verdict::Start { reached: false } | Verdict::Continue)) => {
            warn!(
                name: "restored_alone",
                "neither the machine that the backup was made on nor any other member answers: this node starts. If that \
                 machine comes back, both stop"
            );
            Ok(true)
        }
        Some(Ok(Verdict::Start { reached: true })) => {
            info!(
                name: "restored_unanswered",
                "the machine that the backup was made on does not answer: this node takes its place"
            );
            Ok(true)
        }
    }
}

/// Dials until there is a verdict.
async fn search(engine: &dyn Engine, store: &Store, heartbeat: Duration) -> Result<Verdict, NodeError> {
    let (me, ring) = (store.node_id(), store.discovery()?);
    let others: Vec<_> = known::members(store)?.members.into_iter().filter(|node| *node != me).collect();
    let (began, limit) = (Instant::now(), heartbeat * DIAL);
    let (mut search, mut others) = (Search::new(heartbeat), others.iter().cycle());
    loop {
        let (own, other) = tokio::join!(dial(engine, &ring, me, limit), async {
            match others.next() {
                Some(other) => dial(engine, &ring, *other, limit).await,
                None => Ok(Attempt::Silent),
            }
        });
        let reached = other? != Attempt::Silent;
        match search.take(own?, reached, began.elapsed()) {
            Verdict::Continue => sleep(heartbeat * PAUSE).await,
            verdict => return Ok(verdict),
        }
    }
}

/// Dials a node's own service, and drops the connection.
async fn dial(engine: &dyn Engine, ring: &KeyRing, node: NodeId, limit: Duration) -> Result<Attempt, TorError> {
    engine.trust_discovery(node, &ring.secrets())?;
    match engine.dial(node.address(), LINK_PORT, limit).await {
        Ok(_) => Ok(Attempt::Answered),
        Err(TorError::ShutOut { .. }) => Ok(Attempt::NewerKey),
        Err(error) if error.is_transient() => Ok(Attempt::Silent),
        Err(error) => Err(error),
    }
}

/// Forgets the restore once the node has run for a while. Never ends by itself.
pub(super) async fn forget(store: Arc<Store>, heartbeat: Duration) -> PartResult {
    if store.restored()?.is_some() {
        sleep(heartbeat * REMEMBERED).await;
        match on_disk(|| store.forget_restored()) {
            Ok(()) => info!(
                name: "restored_done",
                "this node has taken the place of the machine that its backup was made on"
            ),
            Err(error) => warn!(
                name: "restored_forget_failed",
                %error,
                "cannot forget that this node was restored: the next start searches again"
            ),
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(2);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_answer_at_the_own_address_ends_the_search_at_once() {
        let mut search = Search::new(HEARTBEAT);
        assert_eq!(search.take(Attempt::Silent, true, at(50)), Verdict::Continue);
        assert_eq!(search.take(Attempt::Answered, true, at(70)), Verdict::Refuse(Found::Running));
        assert_eq!(Search::new(HEARTBEAT).take(Attempt::NewerKey, false, at(1)), Verdict::Refuse(Found::NewerKey));
    }

    #[test]
    fn the_node_starts_after_a_minute_of_silence_if_another_member_was_reached() {
        let mut search = Search::new(HEARTBEAT);
        assert_eq!(search.take(Attempt::Silent, false, at(59)), Verdict::Continue);
        assert_eq!(search.take(Attempt::Silent, true, at(61)), Verdict::Continue, "two attempts do not suffice");
        assert_eq!(search.take(Attempt::Silent, false, at(62)), Verdict::Start { reached: true });
    }

    #[test]
    fn the_node_starts_after_three_minutes_if_no_member_was_reached() {
        let mut search = Search::new(HEARTBEAT);
        for seconds in [30, 60, 90, 120, 179] {
            assert_eq!(search.take(Attempt::Silent, false, at(seconds)), Verdict::Continue);
        }
        assert_eq!(search.take(Attempt::Silent, false, at(180)), Verdict::Start { reached: false });
    }
}
