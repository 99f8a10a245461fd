//! Counts what the onion services of this node refuse, separately for clients and for members.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustbalance_gossip::id::ServiceId;

use crate::counters::{Counter, Counters, ServiceCounters, add_one};

/// An introduction, circuit or stream that a service refuses, drops or closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// An introduction that was received before.
    Replay,
    /// An introduction that cannot be decrypted or parsed.
    Malformed,
    /// An introduction that found its queue full, waited too long there, came while the network's
    /// directory was out of date, or found no free place for a circuit.
    Introduction,
    /// A circuit that was still being built, given up for another client.
    GivenUp,
    /// An open circuit, closed to make room for another.
    Circuit,
    /// An open circuit, closed because too many of its streams were refused.
    Abuse,
    /// A stream on a circuit that is at its limit of streams.
    Stream,
    /// A stream that found the queue of incoming streams full.
    Queue,
}

/// The users of a service.
#[derive(Debug, Clone, Copy, Default)]
enum Users {
    #[default]
    Clients,
    Members,
}

/// Counts what the services of one kind refuse.
#[derive(Debug, Clone, Default)]
pub struct RefusedCounts {
    counters: Counters,
    users: Users,
    /// What else is counted for the service. Nothing shows it for the node's own service, or before
    /// [`RefusedCounts::of_service`] was called.
    pub service: Arc<ServiceCounters>,
}

impl RefusedCounts {
    /// Counts for the cluster's services, which clients use.
    pub fn of_clients(counters: Counters) -> Self {
        Self { counters, users: Users::Clients, service: Arc::default() }
    }

    /// Counts for the node's own service, which other members use.
    pub fn of_members(counters: Counters) -> Self {
        Self { counters, users: Users::Members, service: Arc::default() }
    }

    /// Counts in the same counters, for this one of the cluster's services.
    pub fn of_service(&self, service: ServiceId) -> Self {
        Self { service: self.counters.service(service), ..self.clone() }
    }

    /// Adds one.
    pub fn count(&self, what: Refused) {
        match self.of_one_service(what) {
            Some(cell) => add_one(cell),
            None => self.counters.count(self.counter(what)),
        }
    }

    /// The count since the start. Several kinds may share a counter.
    pub fn get(&self, what: Refused) -> u64 {
        match self.of_one_service(what) {
            Some(cell) => cell.load(Ordering::Relaxed),
            None => self.counters.get(self.counter(what)),
        }
    }

    /// The count that is kept for each service; `status` shows the sum of all.
    fn of_one_service(&self, what: Refused) -> Option<&AtomicU64> {
        match (self.users, what) {
            (Users::Clients, Refused::Replay) => Some(&self.service.replayed),
            (Users::Clients, Refused::Malformed) => Some(&self.service.malformed),
            _ => None,
        }
    }

    fn counter(&self, what: Refused) -> Counter {
        match (self.users, what) {
            (Users::Clients, Refused::Replay) => Counter::IntroductionsReplayed,
            (Users::Clients, Refused::Malformed) => Counter::IntroductionsMalformed,
            (Users::Clients, Refused::Introduction) => Counter::IntroductionsOverLimit,
            (Users::Clients, Refused::GivenUp) => Counter::IntroductionsGivenUp,
            (Users::Clients, Refused::Circuit) => Counter::CircuitsEvicted,
            (Users::Clients, Refused::Abuse) => Counter::CircuitsOverLimit,
            (Users::Clients, Refused::Stream) => Counter::CircuitStreamsOverLimit,
            (Users::Clients, Refused::Queue) => Counter::StreamsQueueFull,
            (Users::Members, Refused::Stream | Refused::Queue) => Counter::LinkStreamsOverLimit,
            (Users::Members, _) => Counter::LinkCircuitsOverLimit,
        }
    }
}
