//! Searches an address with a given beginning, on several threads.
//!
//! Each thread begins at a start of its own, and at a new one after each key that it finds: keys
//! from one start are related, because a thief of one secret could try the distances to the others.
//! [`rustbalance_vanity`] walks from the public key of the start; only this module adds
//! the distance to a secret. With [`Origin::Public`] there is no secret here at all.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustbalance_gossip::id::ServiceId;
use rustbalance_vanity::{Prefixes, SearchError, Table};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::keys::{IdentitySecret, KeyOffset};
use engine::Worker;

pub use engine::{Engine, GpuUnavailable};

mod engine;

/// How long [`measure`] searches.
const MEASURED: Duration = Duration::from_millis(200);
/// Most finds that wait for their receiver; then the threads wait.
const WAITING: usize = 16;
/// Interval between two looks whether all threads have stopped. A pass of the processor takes less.
const STOP_POLL: Duration = Duration::from_millis(1);

/// Where the starts of a search come from.
#[derive(Debug, Clone, Copy)]
pub enum Origin {
    /// Each start is a new secret key.
    Fresh,
    /// Each start is a random distance away from this public key.
    Public(ServiceId),
}

/// What a search has found.
#[derive(Debug)]
pub enum Found {
    /// A new secret key, which no other key is related to.
    Key(IdentitySecret),
    /// The distance of the found key from a public key.
    Distance(Distance),
}

/// A key that was found from a public key alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distance {
    /// The public key where the search began.
    pub origin: ServiceId,
    /// The distance of the found key from it.
    pub offset: KeyOffset,
    /// The found address.
    pub address: ServiceId,
}

/// The first line of the text of a [`Distance`].
const DISTANCE_TITLE: &str = "rustbalance vanity offset, version 1";

/// Why a text is not a [`Distance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DistanceError {
    /// Another text, or a damaged one.
    #[error("is not an offset as `rustbalance vanity --from` writes it")]
    Form,
    /// Its parts contradict each other.
    #[error("is damaged: the key at this offset from {origin} is not {address}")]
    Mismatch {
        /// The public key where the search began.
        origin: ServiceId,
        /// The found address that it names.
        address: ServiceId,
    },
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let multiple = self.offset.multiple();
        writeln!(f, "{DISTANCE_TITLE}\norigin {}\noffset {multiple}\naddress {}", self.origin, self.address)
    }
}

impl FromStr for Distance {
    type Err = DistanceError;

    fn from_str(text: &str) -> Result<Self, DistanceError> {
        let mut lines = text.trim().lines().map(str::trim);
        if lines.next() != Some(DISTANCE_TITLE) {
            return Err(DistanceError::Form);
        }
        let mut field = |name| lines.next().and_then(|line| line.strip_prefix(name)).ok_or(DistanceError::Form);
        let origin = field("origin ")?.parse().map_err(|_| DistanceError::Form)?;
        let multiple = field("offset ")?.parse().map_err(|_| DistanceError::Form)?;
        let address = field("address ")?.parse().map_err(|_| DistanceError::Form)?;
        let offset = KeyOffset::new(multiple).ok_or(DistanceError::Form)?;
        if offset.from_public(origin) != Some(address) {
            return Err(DistanceError::Mismatch { origin, address });
        }
        Ok(Self { origin, offset, address })
    }
}

impl Found {
    /// The found address.
    pub fn address(&self) -> ServiceId {
        match self {
            Self::Key(key) => key.service_id(),
            Self::Distance(distance) => distance.address,
        }
    }
}

/// Why a search ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum VanityError {
    /// The search cannot begin.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// The graphics processor has failed.
    #[cfg(feature = "gpu")]
    #[error("{0}; without `--gpu` the processor searches")]
    Gpu(#[from] rustbalance_vanity_gpu::GpuError),
    /// A found key is not what its start and its distance give.
    #[error("the search is in error: {0} is not the key at its distance from the start; please report this")]
    Wrong(ServiceId),
    /// A thread has ended.
    #[error("a thread of the search has ended unexpectedly; please report this")]
    Ended,
}

/// What to search, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The beginnings of addresses.
    pub prefixes: Arc<Prefixes>,
    /// What runs it.
    pub engine: Engine,
    /// By how much the threads lower their priority (`nice`, 0 to 19).
    pub nice: i32,
    /// Where the starts come from.
    pub origin: Origin,
}

/// A running search. Dropping it stops its threads.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    found: Receiver<Result<Found, VanityError>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Keys tested by all threads.
    tested: AtomicU64,
}

impl Session {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the processor cannot run the path, or if the origin is not the key of a service.
    pub fn start(plan: &Plan) -> Result<Self, VanityError> {
        let table = Arc::new(Table::new());
        let shared = Arc::new(Shared::default());
        let (sender, found) = channel(WAITING);
        // An error of the plan is found before any thread starts.
        Start::draw(plan.origin)?.search(plan, &table)?;
        let one = || {
            let (plan, table, shared, sender) = (plan.clone(), Arc::clone(&table), Arc::clone(&shared), sender.clone());
            thread::spawn(move || {
                // A refusal leaves the priority as it is, which does no harm.
                let _ = rustix::process::nice(plan.nice);
                if let Err(error) = work(&plan, &table, &shared, &sender) {
                    // The receiver is gone if the search was stopped.
                    let _ = sender.blocking_send(Err(error));
                }
            })
        };
        let threads = (0..plan.engine.threads()).map(|_| one()).collect();
        Ok(Self { shared, threads, found })
    }

    /// The next find.
    ///
    /// # Errors
    /// A thread has failed; the search is over.
    pub async fn next(&mut self) -> Result<Found, VanityError> {
        self.found.recv().await.unwrap_or(Err(VanityError::Ended))
    }

    /// Keys tested by all threads until now.
    pub fn tested(&self) -> u64 {
        self.shared.tested.load(Ordering::Relaxed)
    }

    /// Stops the search. Returns what was found and not yet received.
    pub fn stop(&mut self) -> Vec<Found> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut rest = Vec::new();
        // A thread with a find may wait for room in the channel.
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            rest.extend(self.received());
            thread::sleep(STOP_POLL);
        }
        self.threads.clear();
        rest.extend(self.received());
        rest
    }

    /// Finds that have arrived. Errors of threads no longer matter.
    fn received(&mut self) -> impl Iterator<Item = Found> {
        std::iter::from_fn(|| self.found.try_recv().ok()).flatten()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Where one thread begins.
enum Start {
    Secret(IdentitySecret),
    Public { origin: ServiceId, offset: KeyOffset, start: ServiceId },
}

impl Start {
    fn draw(origin: Origin) -> Result<Self, VanityError> {
        let rng = &mut rand::rng();
        Ok(match origin {
            Origin::Fresh => Self::Secret(IdentitySecret::generate(rng)),
            Origin::Public(origin) => {
                let offset = KeyOffset::random(rng);
                let start = offset.from_public(origin).ok_or(SearchError::Start)?;
                Self::Public { origin, offset, start }
            }
        })
    }

    fn search(&self, plan: &Plan, table: &Arc<Table>) -> Result<Worker, VanityError> {
        let public = match self {
            Self::Secret(secret) => secret.service_id(),
            Self::Public { start, .. } => *start,
        };
        plan.engine.search(&public, &plan.prefixes, table)
    }

    /// What was found at this distance from the start; computed again from the start, and compared.
    fn found(&self, multiple: u64, address: ServiceId) -> Result<Found, VanityError> {
        let found = match self {
            Self::Secret(secret) => {
                let offset = KeyOffset::new(multiple.into()).ok_or(VanityError::Wrong(address))?;
                Found::Key(offset.from_secret(secret, &mut rand::rng()))
            }
            Self::Public { origin, offset, .. } => {
                let offset = offset.plus(multiple);
                let address = offset.from_public(*origin).ok_or(SearchError::Start)?;
                Found::Distance(Distance { origin: *origin, offset, address })
            }
        };
        if found.address() == address { Ok(found) } else { Err(VanityError::Wrong(address)) }
    }
}

/// Searches until it is stopped.
fn work(
    plan: &Plan,
    table: &Arc<Table>,
    shared: &Shared,
    found: &Sender<Result<Found, VanityError>>,
) -> Result<(), VanityError> {
    loop {
        let start = Start::draw(plan.origin)?;
        let mut search = start.search(plan, table)?;
        let hit = loop {
            if shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let (tested, hits) = search.run()?;
            shared.tested.fetch_add(tested, Ordering::Relaxed);
            // Only one key of each start.
            if let Some(hit) = hits.first() {
                break *hit;
            }
        };
        let address = ServiceId::from_public_key(hit.public);
        if found.blocking_send(start.found(hit.offset, address)).is_err() {
            return Ok(());
        }
    }
}

/// Keys that one thread of this plan tests in a second, measured for a fifth of a second.
///
/// # Errors
/// If the processor cannot run the path, or if the origin is not the key of a service.
pub fn measure(plan: &Plan) -> Result<f64, VanityError> {
    let mut search = Start::draw(plan.origin)?.search(plan, &Arc::new(Table::new()))?;
    let begun = Instant::now();
    let mut tested = 0;
    while begun.elapsed() < MEASURED {
        tested += search.run()?.0;
    }
    Ok(tested as f64 / begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustbalance_gossip::signed::Sign;
    use rustbalance_vanity::Path;

    fn plan(prefixes: &[&str], origin: Origin) -> Plan {
        let prefixes: Vec<_> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
        let engine = Engine::Processor { path: Path::best(), threads: 2 };
        Plan { prefixes: Arc::new(Prefixes::new(&prefixes)), engine, nice: 0, origin }
    }

    #[tokio::test]
    async fn found_keys_have_the_prefix_and_share_nothing() {
        let mut session = Session::start(&plan(&["ab", "rb"], Origin::Fresh)).unwrap();
        let mut keys = Vec::new();
        for _ in 0..6 {
            let Found::Key(key) = session.next().await.unwrap() else { panic!("a distance from no origin") };
            let address = key.service_id().to_string();
            assert!(address.starts_with("ab") || address.starts_with("rb"), "{address}");
            assert_eq!(key.expanded()[0] & 7, 0);
            keys.push(key);
        }
        assert!(session.tested() > 0);
        for (index, key) in keys.iter().enumerate() {
            for other in &keys[index + 1..] {
                // Keys of one start would differ in their lowest eight bytes only.
                assert_ne!(key.expanded()[8..31], other.expanded()[8..31]);
                assert_ne!(key.expanded()[32..], other.expanded()[32..]);
            }
        }
        session.stop();
        let tested = session.tested();
        assert_eq!(session.tested(), tested, "no thread goes on");
    }

    #[tokio::test]
    async fn the_distance_from_a_public_key_gives_the_secret_at_home() {
        let home = IdentitySecret::generate(&mut rand::rng());
        let mut session = Session::start(&plan(&["zz"], Origin::Public(home.service_id()))).unwrap();
        let Found::Distance(distance) = session.next().await.unwrap() else { panic!("a secret from a public key") };
        let key = distance.offset.from_secret(&home, &mut rand::rng());
        assert_eq!(key.public_key(), *distance.address.public_key());
        assert!(key.service_id().to_string().starts_with("zz"));
        assert_eq!(distance.origin, home.service_id());
    }

    #[test]
    fn an_origin_that_is_not_a_key_is_refused_before_any_thread_starts() {
        let refused = Session::start(&plan(&["a"], Origin::Public(ServiceId::from_public_key([2; 32]))));
        assert!(matches!(refused, Err(VanityError::Search(SearchError::Start))));
    }
}
