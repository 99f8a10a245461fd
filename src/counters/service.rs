//! What a node counts for one onion address and for each of its ports.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Upper bounds in milliseconds of C tor's histograms of circuits.
const CIRCUIT_TIMES: &[u64] = &[1000, 5000, 10_000, 30_000, 60_000];
/// Upper bounds in milliseconds of the time in which a client is met: C tor's are too coarse to
/// show when clients wait longer than usual.
const MEETING_TIMES: &[u64] = &[100, 250, 500, 1000, 2500, 5000, 10_000, 30_000];
/// Upper bounds in milliseconds of the time in which a target is connected; the default limit is
/// 5 s.
const CONNECT_TIMES: &[u64] = &[1, 5, 25, 100, 500, 1000, 5000];

/// The counts of one onion address on this node, from the daemon's start.
#[derive(Debug)]
pub struct ServiceCounters {
    /// Valid introductions.
    pub introductions: AtomicU64,
    /// Introductions refused as replays.
    pub replayed: AtomicU64,
    /// Introductions that cannot be read.
    pub malformed: AtomicU64,
    /// Clients that were met.
    pub rendezvous: AtomicU64,
    /// Clients that could not be met at their rendezvous point.
    pub rendezvous_failed: AtomicU64,
    /// Clients' circuits open now.
    pub rendezvous_open: AtomicU64,
    /// Time to build the circuit to an introduction point.
    pub intro_circuit_time: Histogram,
    /// Time to build the circuit to a rendezvous point.
    pub rendezvous_circuit_time: Histogram,
    /// Time from the arrival of an introduction until its client is met.
    pub rendezvous_time: Histogram,
    ports: Mutex<BTreeMap<u16, Arc<PortCounters>>>,
}

impl Default for ServiceCounters {
    fn default() -> Self {
        Self {
            introductions: AtomicU64::new(0),
            replayed: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            rendezvous: AtomicU64::new(0),
            rendezvous_failed: AtomicU64::new(0),
            rendezvous_open: AtomicU64::new(0),
            intro_circuit_time: Histogram::new(CIRCUIT_TIMES),
            rendezvous_circuit_time: Histogram::new(CIRCUIT_TIMES),
            rendezvous_time: Histogram::new(MEETING_TIMES),
            ports: Mutex::default(),
        }
    }
}

impl ServiceCounters {
    /// The counts of a virtual port.
    pub fn port(&self, port: u16) -> Arc<PortCounters> {
        Arc::clone(self.ports.lock().entry(port).or_default())
    }

    /// All ports that have counts, by number.
    pub fn ports(&self) -> Vec<(u16, Arc<PortCounters>)> {
        self.ports.lock().iter().map(|(port, counters)| (*port, Arc::clone(counters))).collect()
    }

    /// Counts a client that was met; its circuit counts as open until the result is dropped.
    pub fn meet(self: &Arc<Self>) -> OpenRendezvous {
        add_one(&self.rendezvous);
        add_one(&self.rendezvous_open);
        OpenRendezvous(Arc::clone(self))
    }
}

/// A client's open circuit.
#[derive(Debug)]
pub struct OpenRendezvous(Arc<ServiceCounters>);

impl Drop for OpenRendezvous {
    fn drop(&mut self) {
        self.0.rendezvous_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The counts of one virtual port on this node, from the daemon's start.
#[derive(Debug)]
pub struct PortCounters {
    /// Client streams open now.
    pub streams_open: AtomicU64,
    /// Client streams accepted.
    pub streams_accepted: AtomicU64,
    /// Bytes from clients that were delivered to the target.
    pub bytes_from_clients: AtomicU64,
    /// Bytes from the target that were delivered to clients.
    pub bytes_to_clients: AtomicU64,
    /// Time to connect the target, for the streams of clients.
    pub connect_time: Histogram,
}

impl Default for PortCounters {
    fn default() -> Self {
        Self {
            streams_open: AtomicU64::new(0),
            streams_accepted: AtomicU64::new(0),
            bytes_from_clients: AtomicU64::new(0),
            bytes_to_clients: AtomicU64::new(0),
            connect_time: Histogram::new(CONNECT_TIMES),
        }
    }
}

/// How often events took how long.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds in milliseconds, rising.
    bounds: &'static [u64],
    /// One count for each bound, and one for what took longer than the last.
    counts: Box<[AtomicU64]>,
    sum_micros: AtomicU64,
}

/// The values of a [`Histogram`] at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramValues {
    /// For each bucket its upper bound in seconds, infinite for the last, and the events in this
    /// bucket alone.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of all times, in seconds.
    pub sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum_micros: AtomicU64::new(0) }
    }

    /// Counts an event that took this long.
    pub fn observe(&self, took: Duration) {
        let bucket = self.bounds.partition_point(|bound| Duration::from_millis(*bound) < took);
        if let Some(count) = self.counts.get(bucket) {
            add_one(count);
        }
        self.sum_micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The current values.
    pub fn values(&self) -> HistogramValues {
        let bounds = self.bounds.iter().map(|millis| *millis as f64 / 1e3).chain([f64::INFINITY]);
        let buckets = bounds.zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed))).collect();
        HistogramValues { buckets, sum: self.sum_micros.load(Ordering::Relaxed) as f64 / 1e6 }
    }
}

/// Adds one.
pub fn add_one(cell: &AtomicU64) {
    cell.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_falls_into_the_first_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::new(&[100, 1000]);
        for millis in [1, 100, 101, 1000, 1001, 9000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let values = histogram.values();
        assert_eq!(values.buckets, [(0.1, 2), (1.0, 2), (f64::INFINITY, 2)]);
        assert!((values.sum - 11.203).abs() < 1e-9, "{}", values.sum);
    }

    #[test]
    fn a_circuit_is_open_until_it_is_dropped() {
        let service = Arc::new(ServiceCounters::default());
        let (first, second) = (service.meet(), service.meet());
        drop(first);
        let counts = || (service.rendezvous.load(Ordering::Relaxed), service.rendezvous_open.load(Ordering::Relaxed));
        assert_eq!(counts(), (2, 1));
        drop(second);
        assert_eq!(counts(), (2, 0));
    }
}
