//! What a node says about itself.

use rustbalance_gossip::coordinator::Isolated;
use rustbalance_gossip::view::Condition;
use strum::IntoEnumIterator;

use super::Kind::{Counter, Gauge, Info};
use super::{Metric, bare};
use crate::control::{ProblemKind, WireguardSwitch};
use crate::counters::{AlertOutcome, AlertState};
use crate::display::short;

/// All conditions of a node.
const CONDITIONS: [Condition; 6] = [
    Condition::Joining,
    Condition::Initializing,
    Condition::Healthy,
    Condition::Unhealthy,
    Condition::Draining,
    Condition::Gone,
];

/// The value of the label `reason` for a node that must not publish.
fn reason(isolated: Isolated) -> &'static str {
    match isolated {
        Isolated::ShutOut => "shut_out",
        Isolated::LacksRevocations { .. } => "lacks_revocations",
        Isolated::SecondProcess => "second_process",
        Isolated::ClockOff => "clock_off",
    }
}

pub(super) fn metrics() -> Vec<Metric> {
    let mut metrics = state();
    metrics.extend(alerts());
    metrics.extend(usage());
    metrics.extend(canary());
    metrics
}

fn state() -> Vec<Metric> {
    vec![
        Metric::new("rustbalance_build_info", Info, &["version"], "The version of the daemon.", |it, out| {
            out.flag([&it.status.version], true);
        }),
        Metric::new(
            "rustbalance_node_info",
            Info,
            &["cluster", "node", "role"],
            "The cluster by its first address, this node by the beginning of its own, and its role.",
            |it, out| {
                let role = it.status.role.to_string();
                out.flag([bare(&it.status.cluster), short(&it.status.node), &role], true);
            },
        ),
        Metric::new("rustbalance_uptime_seconds", Gauge, &[], "Time since the start of the daemon.", |it, out| {
            out.add([], it.status.uptime_seconds as f64)
        }),
        Metric::new(
            "rustbalance_ready",
            Gauge,
            &[],
            "1 while this node serves new clients, as /ready says: it is healthy, and its introduction points are published.",
            |it, out| out.flag([], it.status.unready().is_none()),
        ),
        Metric::new(
            "rustbalance_condition",
            Gauge,
            &["condition"],
            "1 for the condition that this node is in, 0 for the others.",
            |it, out| {
                for condition in CONDITIONS {
                    out.flag([&condition.to_string()], it.status.phase == condition);
                }
            },
        ),
        Metric::new(
            "rustbalance_isolated",
            Gauge,
            &["reason"],
            "1 for the reason why this node must not publish, admit nodes or rotate keys; 0 for the others.",
            |it, out| {
                for why in [
                    Isolated::ShutOut,
                    Isolated::LacksRevocations { known: 0, counted: 0 },
                    Isolated::SecondProcess,
                    Isolated::ClockOff,
                ] {
                    out.flag([reason(why)], it.status.isolated.is_some_and(|isolated| reason(isolated) == reason(why)));
                }
            },
        ),
        Metric::new(
            "rustbalance_clock_offset_seconds",
            Gauge,
            &[],
            "Seconds by which this machine's clock is ahead, negative if it is behind, as the Tor network or the median of the other members says; absent if nothing says it.",
            |it, out| it.status.clock.ahead_seconds.into_iter().for_each(|ahead| out.add([], ahead as f64)),
        ),
        Metric::new(
            "rustbalance_tor_ready",
            Gauge,
            &[],
            "1 once this node can build circuits through the Tor network.",
            |it, out| out.flag([], it.status.tor.ready),
        ),
        Metric::new(
            "rustbalance_tor_bootstrap_ratio",
            Gauge,
            &[],
            "Progress of the connection to the Tor network, 1 when it is complete.",
            |it, out| out.add([], f64::from(it.status.tor.fraction)),
        ),
        Metric::new(
            "rustbalance_tor_renewals_total",
            Counter,
            &[],
            "Tor clients that were replaced within the process, because they had stopped for good or no client got through.",
            |it, out| out.add([], it.status.tor_renewals.count as f64),
        ),
        Metric::new("rustbalance_wireguard_enabled", Gauge, &[], "1 if WireGuard is switched on.", |it, out| {
            out.flag([], it.status.wireguard.state != WireguardSwitch::Off)
        }),
        Metric::new("rustbalance_wireguard_up", Gauge, &[], "1 while WireGuard runs.", |it, out| {
            out.flag([], it.status.wireguard.state == WireguardSwitch::On);
        }),
    ]
}

fn canary() -> Vec<Metric> {
    vec![
        Metric::new(
            "rustbalance_canary_runs_total",
            Counter,
            &[],
            "Runs in which this node used its addresses as a client would.",
            |it, out| out.add([], it.status.canary.runs as f64),
        ),
        Metric::new(
            "rustbalance_canary_failures_total",
            Counter,
            &[],
            "Such runs that found a fault; those that only tried a fault again count, too.",
            |it, out| out.add([], it.status.canary.failures as f64),
        ),
        Metric::new(
            "rustbalance_canary_last_success_timestamp_seconds",
            Gauge,
            &[],
            "When such a run last found no fault; absent if none has since the start.",
            |it, out| it.status.canary.last_success.into_iter().for_each(|at| out.add([], at as f64)),
        ),
        Metric::new(
            "rustbalance_canary_repairs_total",
            Counter,
            &["kind"],
            "Repairs that followed: republish, replace_point, rebuild_circuits. A renew_tor shows in \
             rustbalance_tor_renewals_total alone, because these counts begin again after it.",
            |it, out| it.status.canary.repairs.iter().for_each(|(kind, count)| out.add([kind], *count as f64)),
        ),
    ]
}

fn alerts() -> Vec<Metric> {
    vec![
        Metric::new(
            "rustbalance_problems",
            Gauge,
            &["kind"],
            "Problems that status shows, by their kind.",
            |it, out| {
                for kind in ProblemKind::iter() {
                    let count = it.status.problems.iter().filter(|problem| problem.kind == kind).count();
                    out.add([kind.into()], count as f64);
                }
            },
        ),
        Metric::new(
            "rustbalance_alerts_total",
            Counter,
            &["state", "outcome"],
            "Alerts of this node, on each of their ways out: delivered, failed after all attempts, or dropped because too many waited.",
            |it, out| {
                for (state, outcome) in
                    AlertState::iter().flat_map(|state| AlertOutcome::iter().map(move |it| (state, it)))
                {
                    out.add([state.into(), outcome.into()], it.counters.alerts().get(state, outcome) as f64);
                }
            },
        ),
    ]
}

fn usage() -> Vec<Metric> {
    vec![
        Metric::new(
            "rustbalance_resident_memory_bytes",
            Gauge,
            &[],
            "Resident memory of the daemon; absent where the system does not say.",
            |it, out| it.status.usage.memory_bytes.into_iter().for_each(|bytes| out.add([], bytes as f64)),
        ),
        Metric::new(
            "rustbalance_waiting_allowed_bytes",
            Gauge,
            &[],
            "Bytes that may wait in the daemon for slow clients and targets; absent where the system does not say.",
            |it, out| it.status.usage.waiting_bytes_allowed.into_iter().for_each(|bytes| out.add([], bytes as f64)),
        ),
        Metric::new(
            "rustbalance_open_files_allowed",
            Gauge,
            &[],
            "Open files that the system allows the daemon; absent if there is no limit.",
            |it, out| it.status.files_allowed.into_iter().for_each(|files| out.add([], files as f64)),
        ),
        Metric::new(
            "rustbalance_open_files_needed",
            Gauge,
            &[],
            "Open files that [limits] streams needs.",
            |it, out| out.add([], it.status.files_needed as f64),
        ),
        Metric::new(
            "rustbalance_circuits_open",
            Gauge,
            &[],
            "Circuits of clients that are open, of all services together.",
            |it, out| out.add([], it.status.usage.circuits_open as f64),
        ),
        Metric::new(
            "rustbalance_circuits_allowed",
            Gauge,
            &[],
            "Circuits of clients that may be open at once.",
            |it, out| out.add([], it.status.usage.circuits_allowed as f64),
        ),
        Metric::new(
            "rustbalance_circuits_making",
            Gauge,
            &[],
            "Circuits of clients that are being built.",
            |it, out| out.add([], it.status.usage.circuits_making as f64),
        ),
        Metric::new(
            "rustbalance_circuits_making_allowed",
            Gauge,
            &[],
            "Circuits of clients that may be in the making at once.",
            |it, out| out.add([], it.status.usage.circuits_making_allowed as f64),
        ),
        Metric::new(
            "rustbalance_streams_allowed",
            Gauge,
            &[],
            "Streams of clients that may be open at once, of all services together.",
            |it, out| out.add([], it.status.usage.streams_allowed as f64),
        ),
    ]
}
