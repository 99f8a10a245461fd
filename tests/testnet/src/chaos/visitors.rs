//! Visitors are stock clients that keep requesting the service; a ledger records what they got.
//!
//! *Regulars* keep one Tor client with everything that it remembers (descriptors, introduction
//! points that failed), and use new circuits for each visit. A *newcomer* starts a Tor client that
//! knows no descriptor and has no guards; every fifth one lacks even the network's directory
//! documents. It tries until it is served, for three minutes at most. No visitor waits longer than
//! [`PATIENCE`] before it tries again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::{Mutex, MutexGuard};

use super::directories::Directories;
use super::ledger::{Cause, Ledger, Visit};
use crate::client::{Client, Warmth};
use crate::network::Network;

/// How long a visitor waits for an answer, as a person would, before it tries again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two visits of one visitor.
const PAUSE: Duration = Duration::from_millis(1500);
/// How long a regular uses a circuit. With tor's ten minutes, the circuits alone would let the
/// memory of a node rise for ten minutes after each of its restarts.
const DIRTINESS: Duration = Duration::from_secs(60);
/// How long a newcomer tries.
const PERSISTENCE: Duration = Duration::from_secs(180);
/// Number of newcomers with the network's directory documents, for each newcomer without.
const WARM: usize = 4;

/// The visitors of one service. [`Visitors::regular`] and [`Visitors::newcomers`] each run until
/// [`Visitors::dismiss`].
#[derive(Debug)]
pub struct Visitors<'n> {
    network: &'n Network,
    url: String,
    /// The expected answers: the names of the nodes.
    names: Vec<String>,
    started: Instant,
    ledger: Mutex<Ledger>,
    newcomers: AtomicUsize,
    not_started: AtomicUsize,
    dismissed: AtomicBool,
}

/// A visitor's Tor client, and the directories that it asks.
struct VisitorClient {
    client: Client,
    directories: Directories,
}

impl VisitorClient {
    fn new(client: Client) -> Result<Self> {
        let directories = Directories::of(&client)?;
        Ok(Self { client, directories })
    }
}

impl<'n> Visitors<'n> {
    /// The visitors of an onion address whose sites answer one of `names`. The times of their
    /// visits count from `started`.
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

    /// Runs a regular until it is dismissed. An error means that its Tor client could not be
    /// started.
    pub fn regular(&self, name: &str) -> Result<()> {
        let mut caller = VisitorClient::new(self.network.brief_client(name, Warmth::Warm, DIRTINESS)?)?;
        let mut count = 0_usize;
        while !self.is_dismissed() {
            count += 1;
            self.visit(&mut caller, name, &format!("visit{count}"));
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Runs newcomers, one after the other, until they are dismissed.
    pub fn newcomers(&self) {
        while !self.is_dismissed() {
            let number = self.newcomers.fetch_add(1, Ordering::Relaxed) + 1;
            let warmth = if number.is_multiple_of(WARM + 1) { Warmth::Fresh } else { Warmth::Warm };
            // A newcomer whose Tor does not even reach the network says nothing about the service.
            match self.network.client("newcomer", warmth).and_then(VisitorClient::new) {
                Ok(mut caller) => self.newcomer(&mut caller, &format!("newcomer {number}")),
                Err(_) => _ = self.not_started.fetch_add(1, Ordering::Relaxed),
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn newcomer(&self, caller: &mut VisitorClient, name: &str) {
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

    /// Makes one visit, on circuits of its own. Returns whether it was served.
    fn visit(&self, caller: &mut VisitorClient, visitor: &str, circuits: &str) -> bool {
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

    /// Whether the directory that a client waits for has died.
    fn is_dead(&self, awaited: Result<Option<&str>>) -> bool {
        let Ok(Some(awaited)) = awaited else { return false };
        self.network.relays().iter().any(|relay| relay.rsa_fingerprint == awaited && !relay.is_running())
    }

    /// Dismisses all visitors; each ends after its present visit.
    pub fn dismiss(&self) {
        self.dismissed.store(true, Ordering::SeqCst);
    }

    fn is_dismissed(&self) -> bool {
        self.dismissed.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// Calls `look` with the ledger.
    pub fn look<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.lock())
    }

    /// The number of newcomers so far, and how many of them had a Tor client that did not start.
    pub fn newcomers_so_far(&self) -> (usize, usize) {
        (self.newcomers.load(Ordering::Relaxed), self.not_started.load(Ordering::Relaxed))
    }
}
