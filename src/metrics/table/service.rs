//! What a node says about the onion addresses that it serves, and their ports.

use std::collections::BTreeMap;

use super::Kind::{BareCounter, Counter, Gauge, Histogram};
use super::{Metric, Samples, bare};
use crate::counters::{PortCounters, ServiceCounters};
use crate::display::short;
use crate::metrics::Reading;

/// C tor's histograms count milliseconds.
const MILLISECONDS: f64 = 1e3;
const SECONDS: f64 = 1.0;

/// Calls `add` for each service with its address.
fn each_service(it: &Reading, mut add: impl FnMut(&str, &ServiceCounters)) {
    for (service, counters) in it.counters.services() {
        add(bare(&service.to_string()), &counters);
    }
}

/// Calls `add` for each port of each service, with the address and the port.
fn each_port(it: &Reading, mut add: impl FnMut([&str; 2], &PortCounters)) {
    each_service(it, |onion, counters| {
        for (port, counters) in counters.ports() {
            add([onion, &port.to_string()], &counters);
        }
    });
}

/// The number of introduction points that this node has open for each service.
fn points(it: &Reading, out: &mut Samples) {
    each_service(it, |onion, _| out.add([onion], 0.0));
    it.status.intro_points.iter().for_each(|point| out.add([bare(&point.service)], 1.0));
}

pub(super) fn metrics() -> Vec<Metric> {
    let mut metrics = introductions();
    metrics.extend(rendezvous());
    metrics.extend(streams());
    metrics.extend(descriptor());
    metrics
}

fn introductions() -> Vec<Metric> {
    vec![
        Metric::new(
            "tor_hs_intro_num_total",
            Counter,
            &["onion"],
            "Introductions of clients that are valid.",
            |it, out| each_service(it, |onion, service| out.count([onion], &service.introductions)),
        ),
        Metric::new(
            "tor_hs_intro_established_count",
            Gauge,
            &["onion"],
            "Introduction points that this node has open.",
            points,
        ),
        Metric::new(
            "tor_hs_intro_rejected_intro_req_count",
            BareCounter,
            &["onion", "reason"],
            "Introductions refused as replays, or because they cannot be read.",
            |it, out| {
                each_service(it, |onion, service| {
                    out.count([onion, "replay"], &service.replayed);
                    out.count([onion, "invalid_introduce2"], &service.malformed);
                });
            },
        ),
        Metric::new(
            "tor_hs_intro_circ_build_time",
            Histogram,
            &["onion"],
            "Milliseconds to build the circuit to an introduction point.",
            |it, out| {
                each_service(it, |onion, service| {
                    out.histogram([onion], service.intro_circuit_time.values(), MILLISECONDS);
                });
            },
        ),
    ]
}

fn rendezvous() -> Vec<Metric> {
    vec![
        Metric::new(
            "tor_hs_rdv_num_total",
            Counter,
            &["onion"],
            "Clients met at their rendezvous points.",
            |it, out| each_service(it, |onion, service| out.count([onion], &service.rendezvous)),
        ),
        Metric::new(
            "tor_hs_rdv_established_count",
            Gauge,
            &["onion"],
            "Circuits of clients that are open.",
            |it, out| each_service(it, |onion, service| out.count([onion], &service.rendezvous_open)),
        ),
        Metric::new(
            "tor_hs_rdv_error_count",
            BareCounter,
            &["onion", "reason"],
            "Clients whose rendezvous point could not be reached, after all attempts.",
            |it, out| {
                each_service(it, |onion, service| out.count([onion, "rp_conn_failure"], &service.rendezvous_failed));
            },
        ),
        Metric::new(
            "tor_hs_rend_circ_build_time",
            Histogram,
            &["onion"],
            "Milliseconds to build the circuit to a rendezvous point.",
            |it, out| {
                each_service(it, |onion, service| {
                    out.histogram([onion], service.rendezvous_circuit_time.values(), MILLISECONDS);
                });
            },
        ),
        Metric::new(
            "rustbalance_rendezvous_seconds",
            Histogram,
            &["onion"],
            "Time from the arrival of an introduction until its client is met.",
            |it, out| {
                each_service(it, |onion, service| out.histogram([onion], service.rendezvous_time.values(), SECONDS));
            },
        ),
    ]
}

fn streams() -> Vec<Metric> {
    vec![
        Metric::new(
            "tor_hs_app_write_bytes_total",
            Counter,
            &["onion", "port"],
            "Bytes of clients that were delivered to the target.",
            |it, out| each_port(it, |labels, port| out.count(labels, &port.bytes_from_clients)),
        ),
        Metric::new(
            "tor_hs_app_read_bytes_total",
            Counter,
            &["onion", "port"],
            "Bytes of the target that were delivered to clients.",
            |it, out| each_port(it, |labels, port| out.count(labels, &port.bytes_to_clients)),
        ),
        Metric::new(
            "rustbalance_streams_open",
            Gauge,
            &["onion", "port"],
            "Streams of clients that are open.",
            |it, out| each_port(it, |labels, port| out.count(labels, &port.streams_open)),
        ),
        Metric::new(
            "rustbalance_streams_accepted_total",
            Counter,
            &["onion", "port"],
            "Streams of clients that were accepted.",
            |it, out| each_port(it, |labels, port| out.count(labels, &port.streams_accepted)),
        ),
        Metric::new(
            "rustbalance_target_connect_seconds",
            Histogram,
            &["onion", "port"],
            "Time to connect the target for a client's stream.",
            |it, out| each_port(it, |labels, port| out.histogram(labels, port.connect_time.values(), SECONDS)),
        ),
        Metric::new(
            "rustbalance_target_up",
            Gauge,
            &["onion", "port"],
            "1 while the target of the port answers health checks.",
            |it, out| {
                for port in &it.status.ports {
                    out.flag([bare(&port.service), &port.port.to_string()], port.healthy);
                }
            },
        ),
    ]
}

/// Adds a number for each published period of the first service, the older period first.
fn each_period(it: &Reading, out: &mut Samples, number: fn(&crate::control::PublishedPeriodStatus) -> f64) {
    let periods = it.status.publication.iter().flat_map(|publication| &publication.periods);
    let by_number: BTreeMap<_, _> = periods.map(|period| (period.number, period)).collect();
    for (period, name) in by_number.values().zip(["older", "newer"]) {
        out.add([bare(&it.status.cluster), name], number(period));
    }
}

/// What the node knows of the descriptor of the cluster's first service. In Onionprobe `name` is
/// what its operator calls the service.
fn descriptor() -> Vec<Metric> {
    vec![
        Metric::new(
            "onion_service_introduction_points_number",
            Gauge,
            &["name", "address"],
            "Introduction points in the descriptor of the cluster's first address.",
            |it, out| {
                let (name, address) = (short(&it.status.cluster), it.status.cluster.as_str());
                let points = it.status.publication.as_ref().map_or(0, |publication| publication.intro_points.len());
                out.add([name, address], points as f64);
            },
        ),
        Metric::new(
            "onion_service_descriptor_reachable",
            Gauge,
            &["name", "address"],
            "1 if the publisher has read the newest descriptor of each period back from a directory.",
            |it, out| {
                let periods = it.status.publication.as_ref().map_or(&[][..], |publication| &publication.periods);
                let reachable = !periods.is_empty() && periods.iter().all(|period| period.confirmed > 0);
                out.flag([short(&it.status.cluster), &it.status.cluster], reachable);
            },
        ),
        Metric::new(
            "rustbalance_descriptor_revision",
            Gauge,
            &["onion", "period"],
            "The highest revision used in each of the published time periods.",
            |it, out| each_period(it, out, |period| period.revision as f64),
        ),
        Metric::new(
            "rustbalance_descriptor_directories",
            Gauge,
            &["onion", "period"],
            "Directories that are responsible for the descriptor.",
            |it, out| each_period(it, out, |period| f64::from(period.directories)),
        ),
        Metric::new(
            "rustbalance_descriptor_confirmed_directories",
            Gauge,
            &["onion", "period"],
            "Directories that hold the newest descriptor, as the publisher has read it back.",
            |it, out| each_period(it, out, |period| f64::from(period.confirmed)),
        ),
        Metric::new(
            "rustbalance_other_publisher",
            Gauge,
            &[],
            "1 if a publisher that is not a member has published the address in the last three hours.",
            |it, out| out.flag([], it.status.other_publisher.is_some()),
        ),
    ]
}
