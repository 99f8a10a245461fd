//! The open circuits of clients, as the command shows them.

use serde::{Deserialize, Serialize};

use crate::tor::{ExportedCircuitId, OpenCircuit};

/// Most circuits in one answer: those that have carried most.
const MOST: usize = 10_000;

/// An open circuit of a client on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitStatus {
    /// The address that the application sees with `proxy_protocol`.
    pub address: ExportedCircuitId,
    /// The same as a number, the last 32 bits of the address.
    pub number: u32,
    /// Time since the client was met, in seconds.
    pub age_seconds: u64,
    /// Streams open now.
    pub streams_open: u64,
    /// Bytes that its streams have carried, both ways together.
    pub bytes: u64,
}

/// The open circuits of clients on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitList {
    /// How many there are.
    pub open: u64,
    /// The circuits that have carried most, at most 10,000 of them, those with most bytes first.
    pub circuits: Vec<CircuitStatus>,
}

impl From<Vec<OpenCircuit>> for CircuitList {
    fn from(mut open: Vec<OpenCircuit>) -> Self {
        open.sort_by_key(|circuit| (std::cmp::Reverse((circuit.bytes, circuit.streams, circuit.age)), circuit.id));
        let status = |circuit: &OpenCircuit| CircuitStatus {
            address: circuit.id,
            number: circuit.id.number(),
            age_seconds: circuit.age.as_secs(),
            streams_open: circuit.streams as u64,
            bytes: circuit.bytes,
        };
        Self { open: open.len() as u64, circuits: open.iter().take(MOST).map(status).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_list_of_any_length_has_the_circuits_that_carried_most_and_fits_into_an_answer() {
        let circuit = |number: u32| OpenCircuit {
            id: ExportedCircuitId::new(0xffff_0001 + number).unwrap(),
            age: Duration::from_secs(u64::from(u32::MAX)),
            streams: 128,
            bytes: u64::MAX - u64::from(number),
        };
        let mut open: Vec<_> = (0..20_000).map(circuit).collect();
        open.reverse();
        let list = CircuitList::from(open);
        assert_eq!((list.open, list.circuits.len()), (20_000, MOST));
        assert_eq!(list.circuits[0].number, 0xffff_0001);
        let answer = serde_json::to_vec(&crate::control::Response::Circuits(list)).unwrap();
        assert!((answer.len() as u64) < crate::control::MAX_RESPONSE, "{} bytes", answer.len());
    }
}
