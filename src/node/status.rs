//! Gathers what `status` shows from the parts of the node.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustbalance_gossip::coordinator::{Coordinator, Isolated, Leadership};
use rustbalance_gossip::id::{NodeId, ServiceId};
use rustbalance_gossip::record::Invitation;
use rustbalance_gossip::source::Source;
use rustbalance_gossip::time::Now;
use rustbalance_gossip::view::{Condition, MemberView, RefusedRecords};
use rustbalance_mesh::MeshCounters;

use crate::balance::stand_in::task::StandInPoint;
use crate::balance::task::PointStatus;
use crate::control::{
    DirectoryStatus, IntroPointStatus, InvitationState, InvitationStatus, MemberStatus, OtherPublisherStatus,
    PortStatus, PublicationStatus, PublishedPeriodStatus, PublishedPointStatus, PublisherStatus, StandInStatus,
    TrafficStatus, UsageStatus,
};
use crate::counters::{Counter, Counters, PortCounters, ServiceCounters};
use crate::health::PortHealth;
use crate::publish::plan::DirectoryReport;
use crate::publish::task::OtherPublisherSeen;
use crate::tor::{CircuitBounds, CircuitCounts};

/// The part of `status` that comes from the coordinator.
pub(super) struct ClusterPart {
    pub(super) publisher: Option<PublisherStatus>,
    pub(super) members: Vec<MemberStatus>,
    pub(super) publication: Option<PublicationStatus>,
    pub(super) invitations: Vec<InvitationStatus>,
    pub(super) refused: RefusedRecords,
    pub(super) phase: Condition,
    pub(super) isolated: Option<Isolated>,
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Reads the coordinator's part of `status`.
pub(super) fn cluster_part(coordinator: &Coordinator, now: Now) -> ClusterPart {
    let view = coordinator.view();
    let service = view.cluster().first_service();
    let mut wanted: BTreeMap<Source, usize> = BTreeMap::new();
    let mut points: Vec<PublishedPointStatus> = Vec::new();
    for (source, point) in coordinator.desired_points(&service) {
        *wanted.entry(*source).or_default() += 1;
        points.push(PublishedPointStatus {
            node: source.to_string(),
            relay: point.relay.to_string(),
            session_key: hex(&point.session_key.0),
        });
    }
    points.sort_by(|a, b| (&a.node, &a.session_key).cmp(&(&b.node, &b.session_key)));
    let holder = match coordinator.leadership() {
        Leadership::Publisher { term } => Some((view.me(), term)),
        Leadership::Follower => view.holder(now).filter(|(node, _)| *node != view.me()),
    };
    ClusterPart {
        publisher: holder.map(|(node, term)| PublisherStatus {
            node: node.to_string(),
            term,
            me: node == view.me(),
            lease_left_seconds: view.lease_left(now).unwrap_or_default().as_secs(),
        }),
        members: view.members().map(|member| member_status(member, view.me(), &wanted, now)).collect(),
        publication: publication(coordinator, holder, points),
        invitations: view.invitations().iter().map(|it| invitation_status(it, now.unix)).collect(),
        refused: view.refused().clone(),
        phase: coordinator.condition(),
        isolated: coordinator.isolation(now),
    }
}

fn member_status(member: &MemberView, me: NodeId, wanted: &BTreeMap<Source, usize>, now: Now) -> MemberStatus {
    let node = member.node();
    MemberStatus {
        node: node.to_string(),
        role: member.member.role(),
        phase: member.heartbeat().map(|_| member.condition()),
        alive: member.alive,
        me: node == me,
        invitation: member.member.certificate.invitation.map(|invitation| invitation.to_string()),
        last_heard_seconds: member.last_heard.map(|heard| now.mono.saturating_sub(heard).as_secs_f64()),
        intro_points: member.all_intro_points().map(|record| record.points.len()).sum(),
        published: wanted.get(&node.into()).copied().unwrap_or(0),
        priority: member.card().map(|card| card.priority),
        weight: member.card().map(|card| card.weight),
        ports: member.card().map(|card| card.ports.clone()),
        doubled_seconds: member.duplicate_key_seen.map(|at| now.mono.saturating_sub(at).as_secs()),
        membership_ends: member.member.certificate.expires,
        membership_left_seconds: member.member.certificate.left(now.unix),
        name: member.report().and_then(|report| report.name.as_ref()).map(ToString::to_string),
        version: member.card().map(|card| card.version.chars().filter(char::is_ascii_graphic).collect()),
        problems: member.report().iter().flat_map(|report| &report.problems).map(ToString::to_string).collect(),
    }
}

/// The publication that the publisher has announced; `None` if there is no publisher, or before it
/// has announced one.
fn publication(
    coordinator: &Coordinator,
    holder: Option<(NodeId, u64)>,
    intro_points: Vec<PublishedPointStatus>,
) -> Option<PublicationStatus> {
    let (node, _) = holder?;
    let view = coordinator.view();
    let published = view.member(&node)?.publication(&view.cluster().first_service())?;
    let periods = published.periods.iter().map(|period| PublishedPeriodStatus {
        number: period.period.number,
        length_minutes: period.period.length_minutes,
        revision: period.revision,
        directories: period.directories,
        confirmed: period.confirmed,
    });
    Some(PublicationStatus { node: node.to_string(), term: published.term, periods: periods.collect(), intro_points })
}

fn invitation_status(invitation: &Invitation, unix: u64) -> InvitationStatus {
    let (used, uses) = (invitation.redeemed.len(), usize::from(invitation.uses));
    let state = match used {
        _ if used > uses => InvitationState::Overdrawn,
        _ if invitation.revoked => InvitationState::Revoked,
        _ if used == uses => InvitationState::Used,
        _ if unix > invitation.expires => InvitationState::Expired,
        _ => InvitationState::Open,
    };
    InvitationStatus {
        id: invitation.token.to_string(),
        role: invitation.role,
        uses: invitation.uses,
        redeemed: u16::try_from(used).unwrap_or(u16::MAX),
        nodes: invitation.redeemed.iter().map(ToString::to_string).collect(),
        expires: invitation.expires,
        state,
    }
}

/// This node's own introduction points.
pub(super) fn intro_points(service: ServiceId, points: &[PointStatus], unix: u64) -> Vec<IntroPointStatus> {
    let status = |point: &PointStatus| IntroPointStatus {
        service: service.to_string(),
        relay: point.point.relay.to_string(),
        session_key: hex(&point.point.session_key.0),
        age_seconds: unix.saturating_sub(point.created),
        introductions: point.introductions,
    };
    points.iter().map(status).collect()
}

/// The unattended points at which this node stands in.
pub(super) fn stand_ins(points: &[StandInPoint]) -> Vec<StandInStatus> {
    let status = |point: &StandInPoint| StandInStatus {
        node: point.node.to_string(),
        relay: point.relay.to_string(),
        introductions: point.introductions,
    };
    points.iter().map(status).collect()
}

/// How long another publisher of the address, which is not a member, is shown after it was last
/// seen. It may publish only every two hours, and a descriptor is served for three.
const OTHER_PUBLISHER_SHOWN: Duration = Duration::from_secs(3 * 3600);

/// The other publisher, while it may still be active.
pub(super) fn other_publisher(seen: &OtherPublisherSeen) -> Option<OtherPublisherStatus> {
    let ago = seen.at.elapsed();
    (ago < OTHER_PUBLISHER_SHOWN)
        .then_some(OtherPublisherStatus { seen_seconds: ago.as_secs(), readable: seen.readable })
}

/// What each directory has confirmed to this node, if it publishes.
pub(super) fn directories(service: ServiceId, reports: &[DirectoryReport]) -> Vec<DirectoryStatus> {
    let status = |report: &DirectoryReport| DirectoryStatus {
        service: service.to_string(),
        period: report.period.number,
        relay: report.directory.relay.to_string(),
        revision: report.confirmed.map(|(revision, _)| revision),
        confirmed_at: report.confirmed.map(|(_, at)| at),
        current: report.is_current,
        failures: report.failures,
    };
    reports.iter().map(status).collect()
}

/// The health of each port's target.
pub(super) fn ports(service: ServiceId, ports: &[PortHealth]) -> Vec<PortStatus> {
    let status = |port: &PortHealth| PortStatus {
        service: service.to_string(),
        port: port.port,
        target: port.target.to_string(),
        check: port.check.clone(),
        healthy: port.healthy,
        error: port.error.clone(),
    };
    ports.iter().map(status).collect()
}

/// Traffic through the proxy, of all services together.
pub(super) fn traffic(counters: &Counters) -> TrafficStatus {
    let ports: Vec<_> = counters.services().into_iter().flat_map(|(_, service)| service.ports()).collect();
    let sum = |count: fn(&PortCounters) -> &AtomicU64| {
        ports.iter().map(|(_, port)| count(port).load(Ordering::Relaxed)).sum()
    };
    TrafficStatus {
        streams_open: sum(|port| &port.streams_open),
        streams_total: sum(|port| &port.streams_accepted),
        bytes_from_clients: sum(|port| &port.bytes_from_clients),
        bytes_to_clients: sum(|port| &port.bytes_to_clients),
    }
}

/// The circuits of clients, and how many circuits and streams there may be.
pub(super) fn usage(circuits: CircuitCounts, bounds: CircuitBounds, streams: usize) -> UsageStatus {
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    UsageStatus {
        circuits_open: number(circuits.open),
        circuits_allowed: number(bounds.open),
        circuits_making: number(circuits.making),
        circuits_making_allowed: number(bounds.making),
        streams_allowed: number(streams),
        ..UsageStatus::default()
    }
}

/// The refusals since start, by counter name.
pub(super) fn refused(counters: &Counters) -> BTreeMap<String, u64> {
    Counter::all().map(|counter| (counter.name().to_owned(), counters.get(counter))).collect()
}

/// Copies the counts that the view of records and the mesh keep themselves, and adds up those of
/// the services.
pub(super) fn collect(counters: &Counters, records: &RefusedRecords, mesh: MeshCounters) {
    for (reason, count) in records.iter() {
        if let Some(counter) = Counter::named(&format!("record_{reason}")) {
            counters.set(counter, count);
        }
    }
    let MeshCounters { malformed, unknown_nodes, over_quota, spoofed_versions, restarts } = mesh;
    counters.set(Counter::GossipMalformed, malformed);
    counters.set(Counter::GossipUnknownNodes, unknown_nodes);
    counters.set(Counter::GossipOverQuota, over_quota);
    counters.set(Counter::GossipSpoofed, spoofed_versions);
    counters.set(Counter::GossipRestarts, restarts);
    let services = counters.services();
    let sum = |count: fn(&ServiceCounters) -> &AtomicU64| {
        services.iter().map(|(_, service)| count(service).load(Ordering::Relaxed)).sum()
    };
    counters.set(Counter::IntroductionsReplayed, sum(|service| &service.replayed));
    counters.set(Counter::IntroductionsMalformed, sum(|service| &service.malformed));
}
