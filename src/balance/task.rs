//! The shell of [`BalancePlan`] that keeps this node's introduction points open, through the
//! [`Engine`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rustbalance_gossip::bytes::FixedBytes;
use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::{IntroPoint, PointNonce, RelayId, ServedPoint};
use rustbalance_gossip::time::Now;
use tokio::sync::{mpsc, watch};
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::circuit;
use super::keeping::Keeping;
use super::plan::{Action, BalancePlan, Event, Lifetime, SlotId, Stored};
use crate::blocking::on_disk;
use crate::clock::{Clock, unix_now};
use crate::drive::{Driver, Jobs, Shell};
use crate::sync::publish;
use crate::tor::{Engine, Incoming, IntroPointKeys, IntroRequest, OpenIntroPoint, RelayChoice, ServiceGuard};

/// Interval at which introductions are counted.
pub(super) const COUNT_EVERY: Duration = Duration::from_secs(10);
/// New introductions of a slot after which its count is written to disk.
const WORTH_NOTING: u64 = 256;

/// Storage of the points and their keys, kept across restarts.
pub trait IntroPointStore: Send + Sync {
    /// The points from before a restart.
    fn restore(&self) -> Result<Vec<Stored>, String>;
    /// The keys of a slot, made if it has none.
    fn keys(&self, slot: SlotId) -> Result<IntroPointKeys, String>;
    /// Stores a slot: its relay, number of introductions, lifetime, and whether it has retired.
    fn note(&self, stored: &Stored) -> Result<(), String>;
    /// Forgets a slot, its keys and its replay log.
    fn forget(&self, slot: SlotId) -> Result<(), String>;
}

/// The cluster's requirements for this node's points.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedPoints {
    /// Whether the relays of the other members are known, so that new ones may be chosen.
    pub others_points_known: bool,
    /// Relays of this node that another member uses too, with precedence: to be left.
    pub must_leave: BTreeSet<RelayId>,
    /// Relays of the other members: not to be chosen.
    pub avoid: BTreeSet<RelayId>,
}

/// One open point, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointStatus {
    /// Its public description.
    pub point: IntroPoint,
    /// When it was made, in seconds since the Unix epoch.
    pub created: u64,
    /// Introductions so far.
    pub introductions: u64,
    /// True if it has retired: it serves clients with an old descriptor, and no other node knows
    /// it.
    pub retired: bool,
}

/// What the canary asks for when clients do not get through at this node's points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointRepair {
    /// Replace the point with this session key by one at another relay.
    Replace(FixedBytes<32>),
    /// Make the circuits of all points again, at the same relays and with the same keys.
    Reopen,
}

/// The task, with everything it needs.
pub struct Balance {
    /// The Tor client that opens the points.
    pub engine: Arc<dyn Engine>,
    /// The service whose clients come.
    pub service: ServiceId,
    /// The storage of the points and their keys.
    pub store: Arc<dyn IntroPointStore>,
    /// Bounds against floods.
    pub limits: Arc<ServiceGuard>,
    /// The queue for client streams.
    pub streams: mpsc::Sender<Incoming>,
    /// How many points to keep.
    pub points: watch::Receiver<usize>,
    /// The current requirements of the cluster.
    pub wanted: watch::Receiver<WantedPoints>,
    /// What the canary asks for.
    pub repairs: mpsc::Receiver<PointRepair>,
    /// Whether this node keeps its points.
    pub keeping: watch::Receiver<Keeping>,
    /// The points to advertise, written by the task.
    pub advertised: watch::Sender<Vec<ServedPoint>>,
    /// The open points, written by the task for `status`.
    pub status: watch::Sender<Vec<PointStatus>>,
}

/// An input of the shell.
enum Input {
    WantedPoints(WantedPoints),
    /// Another number of points is to be kept.
    Number(usize),
    Repair(PointRepair),
    Keeping(Keeping),
    /// It is time to count introductions.
    Count,
    Opened(SlotId, Result<(Arc<dyn OpenIntroPoint>, PointNonce), String>),
    Lost(SlotId, String),
}

struct Open {
    handle: Arc<dyn OpenIntroPoint>,
    stored: Stored,
    /// Introductions before this circuit, and the number that is on disk.
    before: u64,
    noted: u64,
    /// The job that waits for the loss of the circuit; aborted when the slot is closed.
    watcher: tokio::task::AbortHandle,
}

struct BalanceShell {
    balance: Balance,
    open: BTreeMap<SlotId, Open>,
    /// The slots that are not open.
    known: BTreeMap<SlotId, Stored>,
    count: Interval,
}

/// 18 to 24 hours or 16,384 to 32,768 introductions, as C tor draws them.
fn draw_lifetime() -> Lifetime {
    let mut rng = rand::rng();
    Lifetime { seconds: rng.random_range(18 * 3600..24 * 3600), introductions: rng.random_range(16_384..32_768) }
}

impl Balance {
    /// Runs until `stop`.
    ///
    /// # Errors
    /// If the points on disk cannot be read, or a job panics.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), String> {
        let stored = self.store.restore()?;
        self.wanted.mark_changed();
        let known = stored.iter().map(|stored| (stored.slot, stored.clone())).collect();
        let points = *self.points.borrow_and_update();
        let (plan, count) = (BalancePlan::new(points), tokio::time::interval(COUNT_EVERY));
        let shell = BalanceShell { balance: self, open: BTreeMap::new(), known, count };
        let mut driver = Driver::new(plan, shell, Clock::start());
        // Stored points come first: new ones are only for what is missing after that.
        driver.handle([Event::MayChoose(false), Event::Restored(stored)]);
        driver.run(&stop).await.map_err(|error| error.to_string())
    }
}

impl Shell<BalancePlan> for BalanceShell {
    type Input = Input;

    async fn next(&mut self) -> Option<Input> {
        let Balance { wanted, points, repairs, keeping, .. } = &mut self.balance;
        tokio::select! {
            changed = wanted.changed() => changed.ok().map(|()| Input::WantedPoints(wanted.borrow_and_update().clone())),
            // Without a sender the number does not change any further.
            Ok(()) = points.changed() => Some(Input::Number(*points.borrow_and_update())),
            Some(repair) = repairs.recv() => Some(Input::Repair(repair)),
            Ok(()) = keeping.changed() => Some(Input::Keeping(*keeping.borrow_and_update())),
            _ = self.count.tick() => Some(Input::Count),
        }
    }

    fn take(&mut self, input: Input, jobs: &mut Jobs<Input>) -> Vec<Event> {
        match input {
            Input::WantedPoints(WantedPoints { others_points_known, must_leave, avoid }) => {
                vec![Event::RelaysOfOthers { must_leave, avoid }, Event::MayChoose(others_points_known)]
            }
            Input::Number(points) => vec![Event::Want(points)],
            Input::Repair(PointRepair::Replace(point)) => vec![Event::Deaf(point)],
            Input::Repair(PointRepair::Reopen) => {
                let open: Vec<_> = self.open.keys().copied().collect();
                open.into_iter().map(|slot| self.lost(slot)).collect()
            }
            Input::Keeping(Keeping::All) => Vec::new(),
            Input::Keeping(Keeping::UntilTaken) => vec![Event::HandOver],
            Input::Keeping(Keeping::Nothing) => {
                self.shut();
                vec![Event::HandOver]
            }
            Input::Count => self.count(),
            // The node stops, and its points are closed.
            Input::Opened(_, Ok(_)) if *self.balance.keeping.borrow() == Keeping::Nothing => Vec::new(),
            Input::Opened(slot, Ok((handle, nonce))) => vec![self.opened(slot, handle, nonce, jobs)],
            Input::Opened(slot, Err(error)) => {
                info!(
                    name: "point_open_failed",
                    slot = slot.0, %error,
                    "cannot open an introduction point, will try again"
                );
                vec![Event::OpenFailed(slot)]
            }
            Input::Lost(slot, why) => {
                info!(name: "point_lost", slot = slot.0, %why, "introduction point lost");
                vec![self.lost(slot)]
            }
        }
    }

    fn act(&mut self, action: Action, jobs: &mut Jobs<Input>) {
        match action {
            Action::Open { slot, relay } => self.open(slot, relay.into(), jobs),
            Action::Retire(slot) => self.retire(slot),
            Action::Close(slot) => self.close(slot),
            Action::Advertise(points) => {
                info!(name: "points_advertised", points = points.len(), "introduction points advertised");
                self.balance.advertised.send_replace(points);
            }
        }
    }

    /// Updates `status` with the open points.
    fn settle(&mut self, _: &BalancePlan, _: Now) -> Vec<Event> {
        let status = |open: &Open| PointStatus {
            point: open.handle.describe(),
            created: open.stored.created,
            introductions: open.stored.introductions,
            retired: open.stored.retired.is_some(),
        };
        publish(&self.balance.status, self.open.values().map(status).collect());
        Vec::new()
    }
}

impl BalanceShell {
    fn open(&mut self, slot: SlotId, relay: RelayChoice, jobs: &mut Jobs<Input>) {
        let engine = Arc::clone(&self.balance.engine);
        let (service, limits, streams) =
            (self.balance.service, Arc::clone(&self.balance.limits), self.balance.streams.clone());
        let keys = on_disk(|| self.balance.store.keys(slot));
        jobs.spawn(async move {
            let opened = async {
                // Until Tor has a directory, an attempt would fail for no fault of the relay. If
                // the engine has ended, the attempt itself says so.
                let _ = engine.bootstrap().wait_for(|bootstrap| bootstrap.ready).await;
                let keys = keys?;
                let nonce = keys.secrets.nonce;
                let request = IntroRequest { service, keys, relay, limits };
                let opened = circuit::open(&*engine, request, streams).await;
                opened.map(|handle| (handle, nonce))
            };
            Input::Opened(slot, opened.await)
        });
    }

    fn opened(
        &mut self,
        slot: SlotId,
        handle: Arc<dyn OpenIntroPoint>,
        nonce: PointNonce,
        jobs: &mut Jobs<Input>,
    ) -> Event {
        let point = handle.describe();
        let stored = match self.known.remove(&slot) {
            Some(known) => known,
            None => {
                let (relay, created, lifetime) = (point.relay, unix_now(), draw_lifetime());
                Stored { slot, relay, created, introductions: 0, lifetime, retired: None }
            }
        };
        if let Err(error) = on_disk(|| self.balance.store.note(&stored)) {
            warn!(
                name: "point_store_failed",
                %error,
                "cannot store an introduction point: a restart loses it, and its clients must connect again"
            );
        }
        debug!(slot = slot.0, relay = %point.relay, "introduction point open");
        let watched = Arc::clone(&handle);
        let watcher = jobs.spawn(async move { Input::Lost(slot, watched.lost().await) });
        let (before, lifetime) = (stored.introductions, stored.lifetime);
        self.open.insert(slot, Open { handle, stored, before, noted: before, watcher });
        Event::Opened(slot, ServedPoint { point, nonce }, lifetime)
    }

    /// Drops the circuit of a slot. The slot stays known.
    fn lost(&mut self, slot: SlotId) -> Event {
        self.note_count(slot);
        if let Some(open) = self.open.remove(&slot) {
            open.watcher.abort();
            self.known.insert(slot, open.stored);
        }
        Event::Lost(slot)
    }

    /// Stores that a point has retired. A point that was never open is not known here and is not
    /// stored.
    fn retire(&mut self, slot: SlotId) {
        let open = self.open.get_mut(&slot).map(|open| &mut open.stored);
        let Some(stored) = open.or_else(|| self.known.get_mut(&slot)) else { return };
        stored.retired = Some(unix_now());
        if let Err(error) = on_disk(|| self.balance.store.note(stored)) {
            warn!(
                name: "point_retire_failed",
                %error,
                "cannot store that an introduction point has retired: a restart may advertise it again"
            );
        }
    }

    fn close(&mut self, slot: SlotId) {
        self.known.remove(&slot);
        if let Some(open) = self.open.remove(&slot) {
            open.watcher.abort();
        }
        if let Err(error) = on_disk(|| self.balance.store.forget(slot)) {
            warn!(name: "point_keys_remove_failed", %error, "cannot remove the keys of a closed introduction point");
        }
    }

    /// Closes all circuits. The points stay on disk, for the next start.
    fn shut(&mut self) {
        for (slot, open) in std::mem::take(&mut self.open) {
            open.watcher.abort();
            self.known.insert(slot, open.stored);
        }
    }

    /// Updates the count of a slot from its circuit; returns the new count.
    fn note_count(&mut self, slot: SlotId) -> Option<u64> {
        let open = self.open.get_mut(&slot)?;
        let count = open.before + open.handle.introductions();
        open.stored.introductions = count;
        if count >= open.noted + WORTH_NOTING {
            open.noted = count;
            if let Err(error) = on_disk(|| self.balance.store.note(&open.stored)) {
                warn!(name: "introduction_count_store_failed", %error, "cannot store the count of introductions");
            }
        }
        Some(count)
    }

    fn count(&mut self) -> Vec<Event> {
        let open: Vec<_> = self.open.keys().copied().collect();
        let counted = |slot| self.note_count(slot).map(|count| Event::Introductions(slot, count));
        open.into_iter().filter_map(counted).collect()
    }
}
