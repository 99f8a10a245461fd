//! Writes a [`Reading`] in Prometheus' text formats.

use std::fmt::{self, Write};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::Reading;
use super::table::{Kind, Metric, Samples, Value, all};

/// A format of the metrics, as a scraper asks for it in the header `Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics, which Prometheus asks for.
    OpenMetrics,
    /// Prometheus' older text format, for everything that does not ask for OpenMetrics.
    Text,
}

impl Format {
    /// The format for a scraper with this `Accept`.
    pub(super) fn accepted(accept: &str) -> Self {
        match accept.contains("application/openmetrics-text") {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// The value of the header `Content-Type`.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All metrics of a reading in OpenMetrics.
///
/// # Errors
/// Only if a text cannot be formatted.
pub(super) fn open_metrics(reading: Reading) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ReadingCollector(reading)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct ReadingCollector(Reading);

impl Collector for ReadingCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        all().iter().try_for_each(|metric| encode(metric, metric.samples(&self.0), &mut encoder))
    }
}

fn encode(metric: &Metric, samples: Samples, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let kind = match metric.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Info => MetricType::Info,
        Kind::Histogram => MetricType::Histogram,
        Kind::BareCounter => MetricType::Unknown,
    };
    // The crate appends the unit and the suffix of the kind to the name.
    let name = match metric.kind {
        Kind::Counter => metric.name.trim_end_matches("_total"),
        Kind::Info => metric.name.trim_end_matches("_info"),
        _ => &metric.name,
    };
    let (name, unit) = match (name.strip_suffix("_seconds"), name.strip_suffix("_bytes")) {
        (Some(name), _) => (name, Some(Unit::Seconds)),
        (_, Some(name)) => (name, Some(Unit::Bytes)),
        _ => (name, None),
    };
    let mut encoder = encoder.encode_descriptor(name, metric.help, unit.as_ref(), kind)?;
    for (values, value) in samples {
        let labels: Vec<(&str, String)> = metric.labels.iter().copied().zip(values).collect();
        match (metric.kind, labels.is_empty()) {
            (Kind::Info, _) => encoder.encode_info(&labels)?,
            (_, true) => encode_value(metric.kind, value, &mut encoder)?,
            (_, false) => encode_value(metric.kind, value, &mut encoder.encode_family(&labels)?)?,
        }
    }
    Ok(())
}

fn encode_value(kind: Kind, value: Value, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Number(number)) => encoder.encode_counter::<NoLabelSet, _, f64>(&number, None),
        (_, Value::Number(number)) => encoder.encode_gauge(&number),
        (_, Value::Histogram { buckets, sum }) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        }
    }
}

/// The same metrics in the older text format. There the name of a counter has its suffix also where
/// its type is declared, and some types do not exist.
pub(super) fn as_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        let mut parts = line.splitn(4, ' ');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("#"), Some("HELP"), _, meaning) => help = meaning,
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                let help = help.take().unwrap_or_default();
                // Writing to a string does not fail.
                let _ = write!(text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
            }
            (Some("#"), ..) => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests;
