//! The shell of [`StandInPlan`] that stands in for silent nodes, through the [`Engine`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustbalance_gossip::id::{NodeId, ServiceId};
use rustbalance_gossip::record::RelayId;
use rustbalance_gossip::stand_in::UnattendedPoint;
use rustbalance_gossip::time::Now;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::plan::{Action, Event, StandInPlan};
use crate::balance::circuit;
use crate::balance::keeping::Keeping;
use crate::balance::task::COUNT_EVERY;
use crate::clock::Clock;
use crate::drive::{Driver, Jobs, Shell};
use crate::keys::{AuthoritySecret, IntroPointSecrets, PointSeed};
use crate::sync::publish;
use crate::tor::{
    Engine, Incoming, IntroPointKeys, IntroRequest, OpenIntroPoint, RelayChoice, ReplayLog, ServiceGuard,
};

/// A point of another node at which this one serves, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandInPoint {
    /// The node whose point it is.
    pub node: NodeId,
    /// The relay of the point.
    pub relay: RelayId,
    /// Introductions since this node began to serve at it.
    pub introductions: u64,
}

/// The task, with everything it needs.
pub struct StandIn {
    /// The Tor client that opens the points.
    pub engine: Arc<dyn Engine>,
    /// The service whose clients come.
    pub service: ServiceId,
    /// Derives the keys of every node's points.
    pub authority: AuthoritySecret,
    /// Bounds against floods, shared with this node's own points.
    pub limits: Arc<ServiceGuard>,
    /// The queue for client streams.
    pub streams: mpsc::Sender<Incoming>,
    /// The points that are assigned to this node now.
    pub wanted: watch::Receiver<BTreeSet<UnattendedPoint>>,
    /// Whether this node keeps the points at which it serves.
    pub keeping: watch::Receiver<Keeping>,
    /// The points at which it serves, written by the task for `status`.
    pub status: watch::Sender<Vec<StandInPoint>>,
}

/// An input of the shell.
enum Input {
    Wanted(BTreeSet<UnattendedPoint>),
    Keeping(Keeping),
    /// It is time to count introductions.
    Count,
    Opened(UnattendedPoint, Result<Arc<dyn OpenIntroPoint>, String>),
    Lost(UnattendedPoint, String),
}

struct StandInShell {
    stand_in: StandIn,
    /// The jobs that hold each open point and wait for the loss of its circuit. Aborting the job
    /// closes the point.
    open: BTreeMap<UnattendedPoint, AbortHandle>,
    /// The introductions seen at each point since this node began to serve at it.
    seen: BTreeMap<UnattendedPoint, Arc<ReplayLog>>,
    count: Interval,
}

impl StandIn {
    /// Runs until `stop`.
    ///
    /// # Errors
    /// If a job panics.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), String> {
        self.wanted.mark_changed();
        let count = tokio::time::interval(COUNT_EVERY);
        let shell = StandInShell { stand_in: self, open: BTreeMap::new(), seen: BTreeMap::new(), count };
        Driver::new(StandInPlan::default(), shell, Clock::start()).run(&stop).await.map_err(|error| error.to_string())
    }

    /// The keys of a point. The view has checked, when the point was announced, that it has these
    /// keys.
    fn secrets(&self, unattended: &UnattendedPoint) -> IntroPointSecrets {
        PointSeed::derive(&self.authority, unattended.node).secrets(unattended.served.nonce)
    }
}

impl Shell<StandInPlan> for StandInShell {
    type Input = Input;

    async fn next(&mut self) -> Option<Input> {
        let StandIn { wanted, keeping, .. } = &mut self.stand_in;
        tokio::select! {
            changed = wanted.changed() => changed.ok().map(|()| Input::Wanted(wanted.borrow_and_update().clone())),
            Ok(()) = keeping.changed() => Some(Input::Keeping(*keeping.borrow_and_update())),
            _ = self.count.tick() => Some(Input::Count),
        }
    }

    fn take(&mut self, input: Input, jobs: &mut Jobs<Input>) -> Vec<Event> {
        let named = |unattended: &UnattendedPoint| (unattended.node.short(), unattended.served.point.relay);
        match input {
            Input::Wanted(wanted) => vec![Event::Wanted(wanted)],
            Input::Keeping(keeping) => {
                if keeping == Keeping::Nothing {
                    std::mem::take(&mut self.open).into_values().for_each(|holder| holder.abort());
                }
                // A point that is not wanted stays open until another node takes it.
                if keeping == Keeping::All { Vec::new() } else { vec![Event::Wanted(BTreeSet::new())] }
            }
            Input::Count => Vec::new(),
            Input::Opened(unattended, Ok(handle)) => {
                let (node, relay) = named(&unattended);
                info!(name: "stand_in_begun", %node, %relay, "standing in for a silent node at an introduction point");
                let lost = unattended.clone();
                let holder = jobs.spawn(async move { Input::Lost(lost, handle.lost().await) });
                self.open.insert(unattended.clone(), holder);
                vec![Event::Opened(unattended)]
            }
            Input::Opened(unattended, Err(error)) => {
                let (node, relay) = named(&unattended);
                debug!(%node, %relay, %error, "cannot stand in for a silent node, will try again");
                vec![Event::OpenFailed(unattended)]
            }
            Input::Lost(unattended, why) => {
                let (node, relay) = named(&unattended);
                info!(name: "stand_in_ended", %node, %relay, %why, "no longer standing in at an introduction point");
                self.open.remove(&unattended);
                vec![Event::Lost(unattended)]
            }
        }
    }

    fn act(&mut self, action: Action, jobs: &mut Jobs<Input>) {
        match action {
            Action::Open(unattended) => self.open(unattended, jobs),
            Action::Forget(unattended) => self.forget(&unattended),
        }
    }

    /// Updates `status` with the points at which this node serves.
    fn settle(&mut self, _: &StandInPlan, _: Now) -> Vec<Event> {
        let status = |unattended: &UnattendedPoint| StandInPoint {
            node: unattended.node,
            relay: unattended.served.point.relay,
            introductions: self.seen.get(unattended).map_or(0, |seen| seen.len() as u64),
        };
        publish(&self.stand_in.status, self.open.keys().map(status).collect());
        Vec::new()
    }
}

impl StandInShell {
    fn open(&mut self, unattended: UnattendedPoint, jobs: &mut Jobs<Input>) {
        let StandIn { engine, service, limits, streams, .. } = &self.stand_in;
        let (engine, limits, streams) = (Arc::clone(engine), Arc::clone(limits), streams.clone());
        let replays =
            Arc::clone(self.seen.entry(unattended.clone()).or_insert_with(|| Arc::new(ReplayLog::ephemeral())));
        let request = IntroRequest {
            service: *service,
            keys: IntroPointKeys { secrets: self.stand_in.secrets(&unattended), replays },
            relay: RelayChoice::Exactly(unattended.served.point.relay),
            limits,
        };
        jobs.spawn(async move {
            let opened = circuit::open(&*engine, request, streams).await;
            Input::Opened(unattended, opened)
        });
    }

    fn forget(&mut self, unattended: &UnattendedPoint) {
        self.seen.remove(unattended);
        if let Some(holder) = self.open.remove(unattended) {
            holder.abort();
            info!(
                name: "stand_in_given_up",
                node = %unattended.node.short(),
                "gave up an introduction point of another node"
            );
        }
    }
}

#[cfg(test)]
mod tests;
