//! Generates the tables of `docs/METRICS.md`, and tests that the file is up to date. With
//! `RUSTBALANCE_WRITE_DOCS=1` the test writes the file.

use std::fmt::Write;
use std::path::Path;

use super::table::{Kind, Metric, all};

/// Everything after this line is generated.
const MARK: &str = "<!-- generated from src/metrics/table.rs -->\n";
const RULES: &str = include_str!("../../scripts/monitoring/rules.yml");
const DASHBOARD: &str = include_str!("../../scripts/monitoring/dashboard.json");

/// True if `text` names the metric, or one of the series that a histogram has.
fn names(text: &str, metric: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.match_indices(metric).any(|(at, _)| {
        let rest = &text[at + metric.len()..];
        let rest = ["_bucket", "_sum", "_count"].iter().find_map(|end| rest.strip_prefix(end)).unwrap_or(rest);
        !text[..at].bytes().next_back().is_some_and(is_part) && !rest.bytes().next().is_some_and(is_part)
    })
}

/// The alerts that use a metric, and the dashboard if it does.
fn users(metric: &Metric) -> String {
    let mut users = Vec::new();
    for rule in RULES.split("- alert: ").skip(1) {
        let (name, body) = rule.split_once('\n').unwrap();
        if names(body, &metric.name) {
            users.push(name.to_owned());
        }
    }
    users.extend(names(DASHBOARD, &metric.name).then(|| "dashboard".to_owned()));
    users.join(", ")
}

fn document() -> String {
    let mut text = String::from("\n| name | type | labels | meaning | used by |\n|---|---|---|---|---|\n");
    for metric in all() {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Info => "info",
            Kind::Histogram => "histogram",
            Kind::BareCounter => "counter (untyped)",
        };
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, labels, used) = (&metric.name, labels.join(", "), users(&metric));
        let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {} | {used} |", metric.help);
    }
    text
}

#[test]
fn the_document_lists_every_metric() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md");
    let now = std::fs::read_to_string(&path).unwrap();
    let (written, table) = now.split_once(MARK).expect("docs/METRICS.md has no mark before its table");
    if std::env::var_os("RUSTBALANCE_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{written}{MARK}{}", document())).unwrap();
        return;
    }
    assert!(
        table == document(),
        "docs/METRICS.md is out of date: RUSTBALANCE_WRITE_DOCS=1 cargo test --workspace --lib metrics::"
    );
}
