//! What a node knows of the cluster: members, lease, links, invitations.

use super::Kind::{Counter, Gauge};
use super::{Metric, Samples};
use crate::control::{InvitationState, LinkStatus};
use crate::display::short;
use crate::metrics::Reading;

pub(super) fn metrics() -> Vec<Metric> {
    let mut metrics = lease();
    metrics.extend(members());
    metrics.extend(links());
    metrics
}

fn lease() -> Vec<Metric> {
    vec![
        Metric::new("rustbalance_publisher_known", Gauge, &[], "1 while this node knows of a publisher.", |it, out| {
            out.flag([], it.status.publisher.is_some())
        }),
        Metric::new("rustbalance_publishing", Gauge, &[], "1 while this node is the publisher.", |it, out| {
            out.flag([], it.status.publisher.as_ref().is_some_and(|publisher| publisher.me));
        }),
        Metric::new(
            "rustbalance_lease_term",
            Gauge,
            &[],
            "The term of the lease: it rises when another node begins to publish.",
            |it, out| it.status.publisher.iter().for_each(|publisher| out.add([], publisher.term as f64)),
        ),
        Metric::new(
            "rustbalance_invitations_open",
            Gauge,
            &[],
            "Invitations with which nodes can join now.",
            |it, out| {
                let open = it.status.invitations.iter().filter(|invitation| invitation.state == InvitationState::Open);
                out.add([], open.count() as f64);
            },
        ),
        Metric::new(
            "rustbalance_invitations_overdrawn",
            Gauge,
            &[],
            "Invitations with which more nodes got the key of the address than may, until acknowledged on this node.",
            |it, out| out.add([], it.status.alarms.len() as f64),
        ),
        Metric::new(
            "rustbalance_stand_ins",
            Gauge,
            &[],
            "Introduction points of silent nodes at which this node stands in.",
            |it, out| out.add([], it.status.stand_ins.len() as f64),
        ),
    ]
}

fn members() -> Vec<Metric> {
    vec![
        Metric::new(
            "rustbalance_member_up",
            Gauge,
            &["node", "role"],
            "1 while this node believes the member alive.",
            |it, out| {
                for member in &it.status.members {
                    out.flag([short(&member.node), &member.role.to_string()], member.alive);
                }
            },
        ),
        Metric::new(
            "rustbalance_member_condition",
            Gauge,
            &["node", "condition"],
            "1 for the condition that the member has announced; absent for the others.",
            |it, out| {
                for member in &it.status.members {
                    let condition = member.phase.map(|condition| condition.to_string());
                    condition.into_iter().for_each(|condition| out.flag([short(&member.node), &condition], true));
                }
            },
        ),
        Metric::new(
            "rustbalance_member_last_heard_seconds",
            Gauge,
            &["node"],
            "Time since the member's last sign of life; absent for a member that was not heard.",
            |it, out| {
                for member in &it.status.members {
                    member.last_heard_seconds.into_iter().for_each(|ago| out.add([short(&member.node)], ago));
                }
            },
        ),
        Metric::new(
            "rustbalance_member_introduction_points",
            Gauge,
            &["node"],
            "Introduction points that the member offers.",
            |it, out| {
                for member in &it.status.members {
                    out.add([short(&member.node)], member.intro_points as f64);
                }
            },
        ),
        Metric::new(
            "rustbalance_member_published_introduction_points",
            Gauge,
            &["node"],
            "Introduction points of the member that the publisher wants published.",
            |it, out| {
                for member in &it.status.members {
                    out.add([short(&member.node)], member.published as f64);
                }
            },
        ),
        Metric::new(
            "rustbalance_member_duplicate_key",
            Gauge,
            &["node"],
            "1 if heartbeats have shown that two processes run with the member's key.",
            |it, out| {
                for member in &it.status.members {
                    out.flag([short(&member.node)], member.doubled_seconds.is_some());
                }
            },
        ),
        Metric::new(
            "rustbalance_membership_expiry_timestamp_seconds",
            Gauge,
            &["node"],
            "When the member's membership ends unless it is renewed. Publishers renew it 15 days before.",
            |it, out| {
                for member in &it.status.members {
                    out.add([short(&member.node)], member.membership_ends as f64);
                }
            },
        ),
    ]
}

fn each_link(it: &Reading, out: &mut Samples, number: fn(&LinkStatus) -> f64) {
    for link in &it.status.links {
        out.add([short(&link.peer), &link.route], number(link));
    }
}

fn links() -> Vec<Metric> {
    vec![
        Metric::new(
            "rustbalance_links",
            Gauge,
            &["route", "state"],
            "Links to other members, by route and by what is known of it.",
            |it, out| {
                for link in &it.status.links {
                    out.add([&link.route, &link.state], 1.0);
                }
            },
        ),
        Metric::new(
            "rustbalance_link_received_bytes_total",
            Counter,
            &["node", "route"],
            "Bytes received on the link with the member; begins at 0 when the link is made again.",
            |it, out| each_link(it, out, |link| link.bytes_in as f64),
        ),
        Metric::new(
            "rustbalance_link_sent_bytes_total",
            Counter,
            &["node", "route"],
            "Bytes sent on the link with the member; begins at 0 when the link is made again.",
            |it, out| each_link(it, out, |link| link.bytes_out as f64),
        ),
        Metric::new(
            "rustbalance_link_dropped_messages_total",
            Counter,
            &["node", "route"],
            "Messages dropped in both directions; begins at 0 when the link is made again.",
            |it, out| each_link(it, out, |link| link.dropped as f64),
        ),
        Metric::new(
            "rustbalance_link_round_trip_seconds",
            Gauge,
            &["node", "route"],
            "The last measured round trip on the link with the member; absent before the first.",
            |it, out| {
                for link in &it.status.links {
                    let labels = [short(&link.peer), link.route.as_str()];
                    link.round_trip_ms.into_iter().for_each(|millis| out.add(labels, millis as f64 / 1e3));
                }
            },
        ),
        Metric::new(
            "rustbalance_wireguard_peer_proven",
            Gauge,
            &["node"],
            "1 while WireGuard is proven as a route to the member.",
            |it, out| {
                for peer in &it.status.wireguard.peers {
                    out.flag([short(&peer.node)], peer.proven);
                }
            },
        ),
    ]
}
