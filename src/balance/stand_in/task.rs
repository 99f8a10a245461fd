//! The thin shell that stands in for silent nodes: feeds [`Plan`] and carries out its actions over the [`Engine`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustbalance_gossip::id::{NodeId, ServiceId};
use rustbalance_gossip::record::RelayId;
use rustbalance_gossip::stand_in::Orphan;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::plan::{Action, Event, Plan};
use crate::balance::circuit;
use crate::balance::task::COUNT_EVERY;
use crate::keys::{AuthoritySecret, IntroPointSecrets, PointSeed};
use crate::sync::publish;
use crate::tor::{
    Engine, Incoming, IntroPointKeys, IntroRequest, OpenIntroPoint, RelayChoice, ReplayLog, ServiceGuard,
};

/// A point of another node at which this one serves, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandInPoint {
    /// Whose it is.
    pub node: NodeId,
    /// Where.
    pub relay: RelayId,
    /// Introductions since this node serves at it.
    pub introductions: u64,
}

/// Everything the task needs.
pub struct StandIn {
    /// Tor.
    pub engine: Arc<dyn Engine>,
    /// Whose clients come.
    pub service: ServiceId,
    /// Gives the keys of everybody's points.
    pub authority: AuthoritySecret,
    /// Bounds against floods, shared with this node's own points.
    pub limits: Arc<ServiceGuard>,
    /// Where client streams go.
    pub streams: mpsc::Sender<Incoming>,
    /// The points that fall to this node, changing.
    pub wanted: watch::Receiver<BTreeSet<Orphan>>,
    /// Where it serves, for `status`.
    pub status: watch::Sender<Vec<StandInPoint>>,
}

/// What a job has to say of a point.
enum Done {
    Opened(Result<Arc<dyn OpenIntroPoint>, String>),
    Lost(String),
}

struct Running {
    stand_in: StandIn,
    plan: Plan,
    started: Instant,
    /// Each held by the job that waits for the loss of its circuit; the abort of the job closes it.
    open: BTreeMap<Orphan, AbortHandle>,
    /// What was seen at each point since this node began to serve at it.
    seen: BTreeMap<Orphan, Arc<ReplayLog>>,
    jobs: JoinSet<(Orphan, Done)>,
}

impl StandIn {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), String> {
        let mut wanted = self.wanted.clone();
        wanted.mark_changed();
        let mut running = Running {
            stand_in: self,
            plan: Plan::default(),
            started: Instant::now(),
            open: BTreeMap::new(),
            seen: BTreeMap::new(),
            jobs: JoinSet::new(),
        };
        let mut count = tokio::time::interval(COUNT_EVERY);
        loop {
            let now = running.started.elapsed();
            let timeout = running.plan.next_timeout().unwrap_or(now + COUNT_EVERY);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = wanted.changed() => {
                    if changed.is_err() { return Ok(()) }
                    let latest = wanted.borrow_and_update().clone();
                    running.tell(Event::Wanted(latest));
                }
                Some(done) = running.jobs.join_next() => match done {
                    Ok((orphan, done)) => running.done(orphan, done),
                    // What it was to answer will not come: to begin anew is safer than to wait for it.
                    Err(error) if error.is_panic() => return Err(error.to_string()),
                    Err(_) => {}
                },
                _ = count.tick() => running.show(),
                () = tokio::time::sleep_until(running.started + timeout) => running.tell(Event::Tick),
            }
        }
    }

    /// The keys of a point. That they are those of which its node has told was checked when it did.
    fn secrets(&self, orphan: &Orphan) -> IntroPointSecrets {
        PointSeed::derive(&self.authority, orphan.node).secrets(orphan.served.nonce)
    }
}

impl Running {
    fn tell(&mut self, event: Event) {
        for action in self.plan.handle(event, self.started.elapsed()) {
            match action {
                Action::Open(orphan) => self.open(orphan),
                Action::Forget(orphan) => self.forget(&orphan),
            }
        }
        self.show();
    }

    fn open(&mut self, orphan: Orphan) {
        let StandIn { engine, service, limits, streams, .. } = &self.stand_in;
        let (engine, limits, streams) = (Arc::clone(engine), Arc::clone(limits), streams.clone());
        let replays = Arc::clone(self.seen.entry(orphan.clone()).or_insert_with(|| Arc::new(ReplayLog::ephemeral())));
        let request = IntroRequest {
            service: *service,
            keys: IntroPointKeys { secrets: self.stand_in.secrets(&orphan), replays },
            relay: RelayChoice::Exactly(orphan.served.point.relay),
            limits,
        };
        self.jobs.spawn(async move {
            let opened = circuit::open(&*engine, request, streams).await;
            (orphan, Done::Opened(opened))
        });
    }

    fn done(&mut self, orphan: Orphan, done: Done) {
        let (node, relay) = (orphan.node.short(), orphan.served.point.relay);
        match done {
            Done::Opened(Ok(handle)) => {
                info!(%node, %relay, "standing in for a silent node at an introduction point");
                let lost = orphan.clone();
                let holder = self.jobs.spawn(async move { (lost, Done::Lost(handle.lost().await)) });
                self.open.insert(orphan.clone(), holder);
                self.tell(Event::Opened(orphan));
            }
            Done::Opened(Err(error)) => {
                debug!(%node, %relay, %error, "cannot stand in for a silent node, will try again");
                self.tell(Event::OpenFailed(orphan));
            }
            Done::Lost(why) => {
                info!(%node, %relay, %why, "no longer standing in at an introduction point");
                self.open.remove(&orphan);
                self.tell(Event::Lost(orphan));
            }
        }
    }

    fn forget(&mut self, orphan: &Orphan) {
        self.seen.remove(orphan);
        if let Some(holder) = self.open.remove(orphan) {
            holder.abort();
            info!(node = %orphan.node.short(), "gave an introduction point of another node up");
        }
    }

    fn show(&self) {
        let status = |orphan: &Orphan| StandInPoint {
            node: orphan.node,
            relay: orphan.served.point.relay,
            introductions: self.seen.get(orphan).map_or(0, |seen| seen.len() as u64),
        };
        let points = self.open.keys().map(status).collect();
        publish(&self.stand_in.status, points);
    }
}

#[cfg(test)]
mod tests;
