//! WireGuard in the status for people.

use super::output::Paint;
use super::status_view::{section, table};
use crate::control::{WireguardPeerStatus, WireguardStatus, WireguardSwitch};
use crate::display::{bytes, short, time};

/// WireGuard as `rustbalance wireguard status` shows it; ends with a newline.
pub(super) fn wireguard_view(status: &WireguardStatus, paint: Paint) -> String {
    let mut text = String::new();
    let sentence = match (status.state, status.problem_text()) {
        (_, Some(problem)) => format!("{problem}\n"),
        (WireguardSwitch::Off, None) => "WireGuard is off: everything goes over Tor, and no member learns this node's \
             address.\n"
            .into(),
        (WireguardSwitch::Starting, None) => "WireGuard starts.\n".into(),
        (_, None) => String::new(),
    };
    text.push_str(&sentence);
    peers(&mut text, status, paint);
    text.trim_start().to_owned()
}

/// The other members, while WireGuard runs.
pub(super) fn peers(text: &mut String, status: &WireguardStatus, paint: Paint) {
    if status.state != WireguardSwitch::On {
        return;
    }
    let mut table = table(
        &["NODE", "ROUTE", "ROUND TRIP", "DEAD AFTER", "HANDSHAKE", "IN", "OUT", "ADDRESS", "NOT PROVEN BECAUSE"],
        &[2, 3, 4, 5, 6],
    );
    for peer in &status.peers {
        table.add_row(row(peer));
    }
    let announced = match status.endpoints.as_slice() {
        [] => "no address is announced".into(),
        endpoints => format!("the others learn {}", endpoints.join(" and ")),
    };
    section(text, &format!("WireGuard: listens on {}, {announced}", status.listens.join(" and ")), &table, paint);
}

fn row(peer: &WireguardPeerStatus) -> [String; 9] {
    let dash = || "-".to_owned();
    [
        short(&peer.node).into(),
        peer.route.clone().unwrap_or_else(dash),
        peer.round_trip_ms.map_or_else(dash, |milliseconds| format!("{milliseconds} ms")),
        format!("{:.1} s", peer.dead_after_ms as f64 / 1000.0),
        peer.last_handshake_seconds.map_or_else(dash, |seconds| format!("{} ago", time(seconds))),
        bytes(peer.bytes_in),
        bytes(peer.bytes_out),
        peer.endpoint.clone().unwrap_or_else(dash),
        peer.reason.clone().unwrap_or_else(dash),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> WireguardStatus {
        let proven = WireguardPeerStatus {
            node: "bb".repeat(8),
            route: Some("wireguard".into()),
            proven: true,
            reason: None,
            endpoint: Some("203.0.113.8:7440".into()),
            round_trip_ms: Some(41),
            dead_after_ms: 3012,
            last_handshake_seconds: Some(72),
            bytes_in: 9000,
            bytes_out: 1 << 21,
        };
        let without = WireguardPeerStatus {
            node: "cc".repeat(8),
            route: Some("tor".into()),
            proven: false,
            reason: Some("it does not announce WireGuard".into()),
            endpoint: None,
            round_trip_ms: None,
            dead_after_ms: 10_000,
            last_handshake_seconds: None,
            bytes_in: 0,
            bytes_out: 0,
        };
        WireguardStatus {
            state: WireguardSwitch::On,
            problem: None,
            listens: vec!["10.0.0.7:7440".into()],
            endpoints: vec!["203.0.113.7:7440".into()],
            peers: vec![proven, without],
        }
    }

    #[test]
    fn each_peer_is_shown_with_its_route_or_the_reason() {
        insta::assert_snapshot!(wireguard_view(&running(), Paint(false)));
    }

    #[test]
    fn what_does_not_run_says_so() {
        let view = |state, problem: Option<&str>| {
            let status = WireguardStatus { state, problem: problem.map(str::to_owned), ..WireguardStatus::default() };
            wireguard_view(&status, Paint(false))
        };
        assert!(view(WireguardSwitch::Off, None).contains("is off: everything goes over Tor"));
        let failed = view(WireguardSwitch::Failed, Some("the port is in use"));
        assert_eq!(failed, "WireGuard cannot run, so everything goes over Tor: the port is in use\n");
    }
}
