//! Every metric: name, kind, labels, meaning, and where its value comes from.
//!
//! Names and meanings are C tor's (`tor_hs_`) and Onionprobe's (`onion_service_`) where they are
//! the same, so that their dashboards work.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Reading;
use crate::counters::{Counter, HistogramValues};

mod cluster;
mod node;
mod service;

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only rises while the daemon runs.
    Counter,
    /// It rises and falls.
    Gauge,
    /// It is 1, and says something by its labels.
    Info,
    /// It counts durations.
    Histogram,
    /// A counter that C tor gives no `_total`. OpenMetrics does not allow this name for a counter,
    /// so the type is unknown there.
    BareCounter,
}

/// A metric.
pub(super) struct Metric {
    /// The name that a query uses; a histogram's without `_bucket`, `_sum` or `_count`.
    pub(super) name: Cow<'static, str>,
    pub(super) kind: Kind,
    /// The names of its labels.
    pub(super) labels: &'static [&'static str],
    /// Its meaning, in one sentence.
    pub(super) help: &'static str,
    read: Read,
}

/// Where the values come from.
enum Read {
    From(fn(&Reading, &mut Samples)),
    Counter(Counter),
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(f64),
    Histogram {
        /// For each bucket its upper bound, infinite for the last, and the events in it alone.
        buckets: Vec<(f64, u64)>,
        sum: f64,
    },
}

/// The values of one metric, by the values of its labels.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<Vec<String>, Value>);

impl Samples {
    /// Adds a value. Values with the same labels are added up: each combination appears once.
    fn add<const N: usize>(&mut self, labels: [&str; N], value: f64) {
        let sum = self.0.entry(labels.map(str::to_owned).to_vec()).or_insert(Value::Number(0.0));
        if let Value::Number(sum) = sum {
            *sum += value;
        }
    }

    /// Adds a count.
    fn count<const N: usize>(&mut self, labels: [&str; N], cell: &AtomicU64) {
        self.add(labels, cell.load(Ordering::Relaxed) as f64);
    }

    /// Adds 1 or 0.
    fn flag<const N: usize>(&mut self, labels: [&str; N], holds: bool) {
        self.add(labels, f64::from(u8::from(holds)));
    }

    /// Adds a histogram whose unit has this many in a second.
    fn histogram<const N: usize>(&mut self, labels: [&str; N], values: HistogramValues, per_second: f64) {
        let HistogramValues { buckets, sum } = values;
        let buckets = buckets.into_iter().map(|(bound, count)| (bound * per_second, count)).collect();
        let value = Value::Histogram { buckets, sum: sum * per_second };
        self.0.insert(labels.map(str::to_owned).to_vec(), value);
    }
}

impl IntoIterator for Samples {
    type Item = (Vec<String>, Value);
    type IntoIter = std::collections::btree_map::IntoIter<Vec<String>, Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Metric {
    fn new(
        name: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        help: &'static str,
        read: fn(&Reading, &mut Samples),
    ) -> Self {
        Self { name: Cow::Borrowed(name), kind, labels, help, read: Read::From(read) }
    }

    fn of(counter: Counter) -> Option<Self> {
        let name = Cow::Owned(counter.metric()?);
        Some(Self { name, kind: Kind::Counter, labels: &[], help: counter.help(), read: Read::Counter(counter) })
    }

    /// Its values.
    pub(super) fn samples(&self, reading: &Reading) -> Samples {
        let mut samples = Samples::default();
        match self.read {
            Read::From(read) => read(reading, &mut samples),
            Read::Counter(counter) => samples.add([], reading.counters.get(counter) as f64),
        }
        samples
    }
}

/// All metrics, in the order in which they are shown.
pub(super) fn all() -> Vec<Metric> {
    let mut all = Vec::new();
    all.extend(node::metrics());
    all.extend(service::metrics());
    all.extend(cluster::metrics());
    all.extend(Counter::all().filter_map(Metric::of));
    all
}

/// An address without `.onion`, as C tor's metrics have it.
fn bare(address: &str) -> &str {
    address.trim_end_matches(".onion")
}
