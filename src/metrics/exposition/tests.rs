//! The text of a made-up node, and what must hold for every metric.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use regex::Regex;
use rustbalance_gossip::id::ServiceId;

use super::*;
use crate::counters::{Counter, Counters};
use crate::metrics::tests::status;

/// A node that has served two clients of one address.
fn reading() -> Reading {
    let (status, counters) = (status(), Counters::default());
    let service = counters.service(ServiceId::from_public_key([0x5a; 32]));
    std::mem::forget(service.meet());
    service.rendezvous_circuit_time.observe(Duration::from_millis(1500));
    service.port(80).connect_time.observe(Duration::from_millis(3));
    service.port(80).bytes_to_clients.fetch_add(70_000, std::sync::atomic::Ordering::Relaxed);
    counters.count(Counter::StreamsIdle);
    Reading { status, counters }
}

/// The lines of a text that do not begin with `#`, as series and value.
fn values(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let values: Vec<_> = lines.map(|line| line.rsplit_once(' ').unwrap()).collect();
    let series: BTreeSet<_> = values.iter().map(|(series, _)| *series).collect();
    assert_eq!(series.len(), values.len(), "a series appears twice");
    values.into_iter().map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

#[test]
fn both_formats_have_the_same_values_under_the_same_names() {
    let text = open_metrics(reading()).unwrap();
    assert!(text.ends_with("# EOF\n"));
    let older = as_text(&text);
    assert!(!older.contains("EOF") && !older.contains("UNIT") && !older.contains(" unknown\n"));
    assert_eq!(values(&text), values(&older));
    let onion = ServiceId::from_public_key([0x5a; 32]).to_string();
    let onion = onion.trim_end_matches(".onion");
    for (series, value) in [
        (format!("tor_hs_rdv_num_total{{onion=\"{onion}\"}}"), 1.0),
        (format!("tor_hs_rdv_established_count{{onion=\"{onion}\"}}"), 1.0),
        (format!("tor_hs_intro_rejected_intro_req_count{{onion=\"{onion}\",reason=\"replay\"}}"), 0.0),
        (format!("tor_hs_app_read_bytes_total{{onion=\"{onion}\",port=\"80\"}}"), 70_000.0),
        (format!("tor_hs_rend_circ_build_time_bucket{{le=\"1000.0\",onion=\"{onion}\"}}"), 0.0),
        (format!("tor_hs_rend_circ_build_time_bucket{{le=\"5000.0\",onion=\"{onion}\"}}"), 1.0),
        (format!("tor_hs_rend_circ_build_time_bucket{{le=\"+Inf\",onion=\"{onion}\"}}"), 1.0),
        (format!("tor_hs_rend_circ_build_time_sum{{onion=\"{onion}\"}}"), 1500.0),
        (format!("rustbalance_target_connect_seconds_bucket{{le=\"0.005\",onion=\"{onion}\",port=\"80\"}}"), 1.0),
        ("rustbalance_streams_idle_total".into(), 1.0),
        ("rustbalance_ready".into(), 1.0),
        ("rustbalance_member_up{node=\"bbbbbbbb\",role=\"worker\"}".into(), 0.0),
        ("rustbalance_build_info{version=\"1.2 \\\"\\\\\\n\"}".into(), 1.0),
    ] {
        assert_eq!(values(&older).get(&series), Some(&value), "{series} in:\n{older}");
    }
    for line in [
        "# TYPE tor_hs_rdv_num counter",
        "# TYPE rustbalance_build info",
        "# TYPE tor_hs_rdv_error_count unknown",
        "# UNIT rustbalance_uptime_seconds seconds",
        "# UNIT tor_hs_app_read_bytes bytes",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}");
    }
    for line in [
        "# TYPE tor_hs_rdv_num_total counter",
        "# TYPE rustbalance_build_info gauge",
        "# HELP rustbalance_build_info The version of the daemon.",
        "# TYPE tor_hs_rdv_error_count untyped",
        "# TYPE tor_hs_rend_circ_build_time histogram",
    ] {
        assert!(older.lines().any(|other| other == line), "{line}");
    }
}

/// The labels that may exist. Each is about this cluster, its configuration or this program.
const LABELS: [&str; 15] = [
    "address",
    "cluster",
    "condition",
    "kind",
    "name",
    "node",
    "onion",
    "outcome",
    "period",
    "port",
    "reason",
    "role",
    "route",
    "state",
    "version",
];

#[test]
fn every_metric_is_named_as_prometheus_asks_and_has_only_labels_that_may_exist() {
    let form = Regex::new("^(rustbalance|tor_hs|onion_service)_[a-z0-9_]+[a-z0-9]$").unwrap();
    let mut names = BTreeSet::new();
    for metric in all() {
        let Metric { name, kind, labels, help, .. } = &metric;
        assert!(form.is_match(name), "{name}");
        assert!(names.insert(name.clone()), "{name} is there twice");
        assert!(help.ends_with('.') && !help.contains(['\n', '"', '\\', '|']), "{name}: {help}");
        assert!(labels.iter().all(|label| LABELS.contains(label)), "{name}: {labels:?}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert_eq!(name.ends_with("_info"), *kind == Kind::Info, "{name}");
        assert!(*kind != Kind::BareCounter || name.starts_with("tor_hs_"), "{name}");
        for (values, _) in metric.samples(&reading()) {
            assert_eq!(values.len(), labels.len(), "{name}");
        }
    }
}

#[test]
fn a_nodes_own_address_is_never_whole_and_its_points_are_not_named() {
    let reading = reading();
    let text = open_metrics(reading.clone()).unwrap();
    for member in &reading.status.members {
        assert!(text.contains(&member.node[..8]) && !text.contains(&member.node[..12]), "{}", member.node);
    }
    for point in &reading.status.intro_points {
        assert!(!text.contains(&point.relay) && !text.contains(&point.session_key));
    }
    assert!(!text.contains("127.0.0.1"), "a target");
}
