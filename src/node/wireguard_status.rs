//! WireGuard in `status`, and the answers to the requests that switch it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rustbalance_gossip::id::NodeId;
use tracing::info;

use super::control::{Daemon, RunningParts, not_yet};
use super::wireguard::{WireguardHandle, WireguardState};
use crate::control::{Response, WireguardPeerStatus, WireguardStatus, WireguardSwitch};
use crate::link::{LinkStatus, RouteKind, RouteState};
use crate::wireguard::{Engine, NotAPeer, PeerStatus};

impl Daemon {
    /// Switches WireGuard on or off until the next start.
    pub(super) async fn switch_wireguard(&self, on: bool) -> Response {
        let Some(RunningParts { wireguard, .. }) = self.running.get() else { return not_yet() };
        info!(name: "wireguard_switched", on, "the operator switches WireGuard");
        let until = "until the next start, which follows `enabled` in [wireguard]";
        match wireguard.switch(on).await {
            WireguardState::On { listens, endpoints, .. } if on => Response::done(format!(
                "WireGuard is on: it listens on {} (UDP), and the other members learn {}; {until}",
                listed(&listens),
                if endpoints.is_empty() { "no address".into() } else { listed(&endpoints) }
            )),
            WireguardState::Failed(why) if on => {
                Response::refused(format!("WireGuard cannot run, and is tried again every few seconds: {why}"))
            }
            WireguardState::Off if !on => {
                Response::done(format!("WireGuard is off: everything goes over Tor; {until}"))
            }
            _ => Response::refused("WireGuard has not changed in time: see `rustbalance wireguard status`"),
        }
    }
}

fn listed(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// Another member, and the silence after which it is taken for dead.
pub(super) struct OtherMember {
    pub(super) node: NodeId,
    /// While its links do not show whether it answers, or it does.
    pub(super) usual: Duration,
    /// While they show that it does not.
    pub(super) unreachable: Duration,
}

/// WireGuard as `status` shows it. `members` are the other members, and `links` all links.
pub(super) fn status(handle: &WireguardHandle, members: &[OtherMember], links: &[LinkStatus]) -> WireguardStatus {
    let (state, problem) = match handle.state() {
        WireguardState::Off => (WireguardSwitch::Off, None),
        WireguardState::Starting => (WireguardSwitch::Starting, None),
        WireguardState::Failed(why) => (WireguardSwitch::Failed, Some(why)),
        WireguardState::On { listens, endpoints, refused } => {
            let known = handle.engine().status();
            let peer = |member: &OtherMember| peer(member, known.get(&member.node), refused.get(&member.node), links);
            let shown = |addresses: Vec<SocketAddr>| addresses.iter().map(ToString::to_string).collect();
            return WireguardStatus {
                state: WireguardSwitch::On,
                problem: None,
                listens: shown(listens),
                endpoints: shown(endpoints),
                peers: members.iter().map(peer).collect(),
            };
        }
    };
    WireguardStatus { state, problem, ..WireguardStatus::default() }
}

fn peer(
    member: &OtherMember,
    known: Option<&PeerStatus>,
    refused: Option<&NotAPeer>,
    links: &[LinkStatus],
) -> WireguardPeerStatus {
    let of_peer: BTreeMap<RouteKind, &LinkStatus> =
        links.iter().filter(|link| link.peer == member.node).map(|link| (link.route, link)).collect();
    let link = of_peer.get(&RouteKind::WIREGUARD);
    let proven = link.is_some_and(|link| link.state == RouteState::Proven);
    let watched = link.is_some_and(|link| link.watched);
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    WireguardPeerStatus {
        node: member.node.to_string(),
        route: of_peer.values().find(|link| link.carries).map(|link| link.route.to_string()),
        proven,
        reason: (!proven).then(|| reason(known, refused, link.map(|link| link.state))),
        endpoint: known.and_then(|known| known.endpoint).map(|endpoint| endpoint.to_string()),
        round_trip_ms: link.and_then(|link| link.round_trip).map(milliseconds),
        dead_after_ms: milliseconds(if watched { member.unreachable } else { member.usual }),
        last_handshake_seconds: known.and_then(|known| known.last_handshake).map(|ago| ago.as_secs()),
        bytes_in: known.map_or(0, |known| known.bytes_in),
        bytes_out: known.map_or(0, |known| known.bytes_out),
    }
}

/// Why the route to a peer is not proven.
fn reason(known: Option<&PeerStatus>, refused: Option<&NotAPeer>, link: Option<RouteState>) -> String {
    match (refused, known, link) {
        (Some(refused), ..) => refused.to_string(),
        (None, None, _) => "it does not announce WireGuard".into(),
        (None, Some(PeerStatus { problem: Some(problem), .. }), _) => problem.to_string(),
        (.., Some(RouteState::Degraded)) => "a probe was not answered in time".into(),
        (.., Some(_)) => "probes have to be answered first".into(),
        (.., None) => "no link is open over it yet".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::{PeerProblem, SealError};

    #[test]
    fn the_first_obstacle_is_the_reason() {
        let known = |problem| PeerStatus { problem, ..PeerStatus::default() };
        let closed = NotAPeer::Sealed(SealError::Closed);
        let tried = "203.0.113.7:7440".parse().unwrap();
        for (known, refused, link, expected) in [
            (None, None, None, "does not announce"),
            (None, Some(&closed), None, "discovery keys"),
            (Some(known(Some(PeerProblem::NoAnswer { tried }))), None, None, "203.0.113.7:7440 does not answer"),
            (Some(known(Some(PeerProblem::NoEndpoint))), None, None, "connect first"),
            (Some(known(None)), None, None, "no link"),
            (Some(known(None)), None, Some(RouteState::Probing), "probes have to be answered"),
            (Some(known(None)), None, Some(RouteState::Degraded), "not answered in time"),
        ] {
            let reason = reason(known.as_ref(), refused, link);
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
