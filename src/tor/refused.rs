//! Counts what the onion services of this node refuse, separately for clients and for members.

use crate::counters::{Counter, Counters};

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
    /// A stream on a circuit that is at its limit of streams.
    Stream,
    /// A stream that found the queue of incoming streams full.
    Queue,
}

/// The users of a service.
#[derive(Debug, Clone, Copy, Default)]
enum Service {
    #[default]
    Clients,
    Members,
}

/// Counts what the services of one kind refuse.
#[derive(Debug, Clone, Default)]
pub struct RefusedCounts {
    counters: Counters,
    service: Service,
}

impl RefusedCounts {
    /// Counts for the cluster's services, which clients use.
    pub fn of_clients(counters: Counters) -> Self {
        Self { counters, service: Service::Clients }
    }

    /// Counts for the node's own service, which other members use.
    pub fn of_members(counters: Counters) -> Self {
        Self { counters, service: Service::Members }
    }

    /// Adds one.
    pub fn count(&self, what: Refused) {
        self.counters.count(self.counter(what));
    }

    /// The count since the start. Several kinds may share a counter.
    pub fn get(&self, what: Refused) -> u64 {
        self.counters.get(self.counter(what))
    }

    fn counter(&self, what: Refused) -> Counter {
        match (self.service, what) {
            (Service::Clients, Refused::Replay) => Counter::IntroductionsReplayed,
            (Service::Clients, Refused::Malformed) => Counter::IntroductionsMalformed,
            (Service::Clients, Refused::Introduction) => Counter::IntroductionsOverLimit,
            (Service::Clients, Refused::GivenUp) => Counter::IntroductionsGivenUp,
            (Service::Clients, Refused::Circuit) => Counter::CircuitsEvicted,
            (Service::Clients, Refused::Stream) => Counter::CircuitStreamsOverLimit,
            (Service::Clients, Refused::Queue) => Counter::StreamsQueueFull,
            (Service::Members, Refused::Stream | Refused::Queue) => Counter::LinkStreamsOverLimit,
            (Service::Members, _) => Counter::LinkCircuitsOverLimit,
        }
    }
}
