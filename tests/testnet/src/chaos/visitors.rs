//! Visitors: stock clients that ask for the service all the while, and the ledger of what they got.
//!
//! *Regulars* keep one Tor client, with all that it remembers (descriptors, introduction points that failed), and come
//! on new circuits each time. *Newcomers* start one that knows no descriptor and has no guards, every fifth not even the
//! network's directory; they try until they are served. Nobody waits longer than [`PATIENCE`] before trying again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::{Mutex, MutexGuard};

use super::directories::Directories;
use super::ledger::{Cause, Ledger, Visit};
use crate::client::{Client, Warmth};
use crate::network::Network;

/// How long a person looks at an empty page before trying again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two visits of one visitor.
const PAUSE: Duration = Duration::from_millis(1500);
/// How long a regular keeps a circuit. With tor's ten minutes the memory of a node would rise for ten minutes after each
/// of its restarts, for the circuits alone.
const DIRTINESS: Duration = Duration::from_secs(60);
/// How long a newcomer tries.
const PERSISTENCE: Duration = Duration::from_secs(180);
/// How many newcomers come with the network's directory, for each without.
const WARM: usize = 4;

/// The visitors of one service. Each of the two kinds is a method that runs until [`Visitors::dismiss`].
#[derive(Debug)]
pub struct Visitors<'n> {
    network: &'n Network,
    url: String,
    /// What answers are to be expected.
    names: Vec<String>,
    started: Instant,
    ledger: Mutex<Ledger>,
    newcomers: AtomicUsize,
    not_started: AtomicUsize,
    dismissed: AtomicBool,
}

/// A visitor's Tor.
struct Caller {
    client: Client,
    directories: Directories,
}

impl Caller {
    fn new(client: Client) -> Result<Self> {
        let directories = Directories::of(&client)?;
        Ok(Self { client, directories })
    }
}

impl<'n> Visitors<'n> {
    /// Those of an onion address whose sites answer one of these names. `started` is the time 0 of their visits.
    pub fn new(network: &'n Network, onion: &str, names: &[&str], started: Instant) -> Self {
        Self {
            network,
            url: format!("http://{onion}/"),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            started,
            ledger: Mutex::default(),
            newcomers: AtomicUsize::new(0),
            not_started: AtomicUsize::new(0),
            dismissed: AtomicBool::new(false),
        }
    }

    /// A regular: visits until dismissed. An error means that its Tor client could not be started.
    pub fn regular(&self, name: &str) -> Result<()> {
        let mut caller = Caller::new(self.network.brief_client(name, Warmth::Warm, DIRTINESS)?)?;
        let mut count = 0_usize;
        while !self.is_dismissed() {
            count += 1;
            self.visit(&mut caller, name, &format!("visit{count}"));
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Newcomers, one after the other, until dismissed.
    pub fn newcomers(&self) {
        while !self.is_dismissed() {
            let number = self.newcomers.fetch_add(1, Ordering::Relaxed) + 1;
            let warmth = if number.is_multiple_of(WARM + 1) { Warmth::Fresh } else { Warmth::Warm };
            // One whose Tor does not even reach the network says nothing about the service.
            match self.network.client("newcomer", warmth).and_then(Caller::new) {
                Ok(mut caller) => self.newcomer(&mut caller, &format!("newcomer {number}")),
                Err(_) => _ = self.not_started.fetch_add(1, Ordering::Relaxed),
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn newcomer(&self, caller: &mut Caller, name: &str) {
        let deadline = Instant::now() + PERSISTENCE;
        let mut count = 0_usize;
        while !self.is_dismissed() && Instant::now() < deadline {
            count += 1;
            if self.visit(caller, name, &format!("try{count}")) {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// One visit, on circuits of its own; whether it was served.
    fn visit(&self, caller: &mut Caller, visitor: &str, circuits: &str) -> bool {
        let begun = self.started.elapsed();
        let answer = caller.client.get_isolated(circuits, &self.url, PATIENCE);
        let outcome = match answer {
            Ok(answer) if answer.status == 200 && self.names.contains(&answer.text()) => Ok(answer.text()),
            Ok(_) => Err(Cause::WrongBody),
            Err(error) => Err(match Cause::of(&error) {
                Cause::Timeout if self.is_dead(caller.directories.awaited()) => Cause::DeadDirectory,
                cause => cause,
            }),
        };
        let served = outcome.is_ok();
        let visit = Visit { visitor: visitor.to_owned(), begun, ended: self.started.elapsed(), outcome };
        self.lock().add(visit);
        served
    }

    /// Whether a directory that a client says to wait for has died.
    fn is_dead(&self, awaited: Result<Option<&str>>) -> bool {
        let Ok(Some(awaited)) = awaited else { return false };
        self.network.relays().iter().any(|relay| relay.rsa_fingerprint == awaited && !relay.is_running())
    }

    /// Lets all go after the visit they are at.
    pub fn dismiss(&self) {
        self.dismissed.store(true, Ordering::SeqCst);
    }

    fn is_dismissed(&self) -> bool {
        self.dismissed.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// Looks at the ledger.
    pub fn look<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.lock())
    }

    /// How many newcomers have come, and how many of them had a Tor client that did not start.
    pub fn newcomers_so_far(&self) -> (usize, usize) {
        (self.newcomers.load(Ordering::Relaxed), self.not_started.load(Ordering::Relaxed))
    }
}
