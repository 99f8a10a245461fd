//! What an onion service of this node refuses, counted under a name that says whose streams they were.

use crate::counters::{Counter, Counters};

/// What a service refuses, drops or closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// An introduction seen before.
    Replay,
    /// An introduction that cannot be read.
    Malformed,
    /// An introduction for which a queue or all places for circuits were full.
    Introduction,
    /// An introduction given up for others because its rendezvous point did not answer.
    GivenUp,
    /// An open circuit, closed to make room for others.
    Circuit,
    /// A stream of a circuit that has the most it may have.
    Stream,
    /// A stream that found too many waiting to be taken.
    Queue,
}

/// Whose service it is.
#[derive(Debug, Clone, Copy, Default)]
enum Service {
    #[default]
    Clients,
    Members,
}

/// Counts for one service.
#[derive(Debug, Clone, Default)]
pub struct RefusedCounts {
    counters: Counters,
    service: Service,
}

impl RefusedCounts {
    /// For the services that the cluster's clients use.
    pub fn of_clients(counters: Counters) -> Self {
        Self { counters, service: Service::Clients }
    }

    /// For the node's own service, which other members use.
    pub fn of_members(counters: Counters) -> Self {
        Self { counters, service: Service::Members }
    }

    /// One more.
    pub fn count(&self, what: Refused) {
        self.counters.count(self.counter(what));
    }

    /// How often since the start. Several kinds may share a counter.
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
