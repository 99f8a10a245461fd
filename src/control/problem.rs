//! The problems that an operator has to look at, read from a [`Status`].

use std::collections::BTreeSet;

use rustbalance_gossip::coordinator::Isolated;
use rustbalance_gossip::record::{NEAR_END_SECONDS, ProblemCode};
use rustbalance_gossip::view::Condition;
use serde::{Deserialize, Serialize};

use super::status::{AlarmStatus, MemberStatus, PublicationStatus, Status};
use crate::display::{bytes, moment, plural, short, time};

/// Below this much free space on the disk, in bytes, a node cannot keep Tor's directory of the
/// network, of which an update takes some 20 MB beside the old one.
pub const LEAST_SPACE: u64 = 64 << 20;
/// Most nodes that an alarm names.
const MOST_NODES: usize = 6;
/// Most ports that are listed one by one because only some nodes serve them.
const MOST_PORTS: usize = 5;

/// What kind of problem, the worst first. The names never change: monitoring relies on them.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    strum::EnumIter,
    strum::IntoStaticStr,
    strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ProblemKind {
    /// More nodes have joined with an invitation than it allows.
    TokenOverdrawn,
    /// The daemon is not connected to Tor.
    TorNotReady,
    /// This machine's clock is wrong.
    ClockOff,
    /// This node must not publish.
    Isolated,
    /// Two processes run with the key of one node.
    DuplicateKey,
    /// A publisher of the address that is not a member.
    OtherPublisher,
    /// No publisher is known.
    NoPublisher,
    /// No descriptor is published, or one without introduction points.
    NotPublished,
    /// A directory does not hold the newest descriptor.
    DirectoryBehind,
    /// A node drains.
    Draining,
    /// The disk of the state directory is full.
    DiskFull,
    /// The system allows too few open files.
    FewOpenFiles,
    /// WireGuard is switched on, and does not run.
    WireguardDown,
    /// The target of a port does not answer.
    TargetDown,
    /// A port is served by some nodes only.
    PortsDiffer,
    /// A member is silent.
    NodeLost,
    /// No node is healthy.
    NoNodeHealthy,
    /// A healthy node's introduction points are not in the descriptor.
    NodeNotPublished,
    /// The canary did not reach what a client may use.
    CanaryFault,
    /// A membership should have been renewed, and ends soon.
    CertificateNearEnd,
    /// Another member reports a problem that this version does not know.
    MemberUnwell,
}

/// A problem with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind it is.
    pub kind: ProblemKind,
    /// What it is about: a node's address, a port, a period or an invitation. Empty if the kind
    /// says it all. A problem is the same one while kind and subject are. For a problem that
    /// another member reports of itself, that member's address.
    pub subject: String,
    /// The problem and the way out, for a person.
    pub text: String,
}

impl Problem {
    fn new(kind: ProblemKind, subject: impl ToString, text: impl Into<String>) -> Self {
        Self { kind, subject: subject.to_string(), text: text.into() }
    }
}

impl Status {
    /// The problems that this status shows, the worst first.
    pub fn find_problems(&self) -> Vec<Problem> {
        let mut list: Vec<Problem> = self.alarms.iter().map(overdrawn).collect();
        list.extend(self.own_problems());
        list.extend(self.publication_problems());
        list.extend(self.target_problems());
        list.extend(ports_that_differ(&self.members));
        list.extend(self.member_problems());
        list.extend(self.canary_problems());
        list.extend(self.members.iter().flat_map(reported));
        list.sort_by_key(|problem| problem.kind);
        list
    }

    /// The problems of this node itself, which it reports to the other members.
    pub fn own_problem_codes(&self) -> BTreeSet<ProblemCode> {
        let own = self.own_problems().into_iter().chain(self.target_problems());
        own.filter_map(|problem| <&str>::from(problem.kind).parse().ok()).collect()
    }

    /// Problems of this process and its machine.
    fn own_problems(&self) -> Vec<Problem> {
        let mut list = Vec::new();
        if !self.tor.ready {
            let percent = (self.tor.fraction * 100.0) as u8;
            let text = format!("Tor is not ready ({percent}%): {}", self.tor.message);
            list.push(Problem::new(ProblemKind::TorNotReady, "", text));
        }
        list.extend(self.clock.problem_text().map(|text| Problem::new(ProblemKind::ClockOff, "", text)));
        list.extend(self.isolated.map(isolated));
        if self.phase == Condition::Draining {
            let text = "this node drains: it takes no new clients until `rustbalance resume`, also after a restart";
            list.push(Problem::new(ProblemKind::Draining, "", text));
        }
        if let Some(allowed) = self.files_allowed.filter(|allowed| *allowed < self.files_needed) {
            let text = format!(
                "only {allowed} open files are allowed, and [limits] streams needs {}: this node serves fewer clients at once; \
                 raise the limit (LimitNOFILE= in the unit, `ulimit -n` in a shell) and restart the daemon",
                self.files_needed
            );
            list.push(Problem::new(ProblemKind::FewOpenFiles, "", text));
        }
        if let Some(free) = self.disk_free_bytes.filter(|free| *free < LEAST_SPACE) {
            let text = format!(
                "only {} are free on the disk of the state directory: make room, or this node hands over the right to publish, \
                 and loses Tor's directory of the network",
                bytes(free)
            );
            list.push(Problem::new(ProblemKind::DiskFull, "", text));
        }
        if let Some(text) = self.wireguard.problem_text() {
            list.push(Problem::new(ProblemKind::WireguardDown, "", text));
        }
        list
    }

    /// Problems of what the directories hold.
    fn publication_problems(&self) -> Vec<Problem> {
        let mut list = Vec::new();
        if let Some(other) = &self.other_publisher {
            let effect =
                if other.readable { "clients reach it" } else { "only clients that it has authorized reach it" };
            let text = format!(
                "a publisher that is not a member has published this address {} ago, and {effect} until this node has \
                 published again: stop the old service that has the address's key; if there is none, others have the key, \
                 and only a new address is safe",
                time(other.seen_seconds)
            );
            list.push(Problem::new(ProblemKind::OtherPublisher, "", text));
        }
        let not_published = |text: &str| Problem::new(ProblemKind::NotPublished, "", text);
        match (&self.publisher, &self.publication) {
            (None, _) => {
                let text = "no publisher is known: the address will not be kept up to date";
                list.push(Problem::new(ProblemKind::NoPublisher, "", text));
            }
            (Some(_), None) => list.push(not_published("no published descriptor is known yet")),
            (Some(_), Some(publication)) => {
                if publication.intro_points.is_empty() {
                    list.push(not_published("no introduction points are published: clients cannot reach the address"));
                }
                list.extend(directories_behind(publication));
            }
        }
        list
    }

    fn target_problems(&self) -> impl Iterator<Item = Problem> {
        self.ports.iter().filter(|port| !port.healthy).map(|port| {
            let why = port.error.as_deref().unwrap_or("not checked yet");
            let text = format!("port {}: the target {} does not answer: {why}", port.port, port.target);
            Problem::new(ProblemKind::TargetDown, port.port, text)
        })
    }

    /// Services at which the last run of the canary found a fault.
    fn canary_problems(&self) -> impl Iterator<Item = Problem> {
        self.canary.services.iter().filter(|service| !service.well).map(|service| {
            let text = format!(
                "a client of {} had trouble at {}: {}; `rustbalance canary` tries again and shows more",
                short(&service.service),
                moment(service.at),
                service.trouble()
            );
            Problem::new(ProblemKind::CanaryFault, &service.service, text)
        })
    }

    /// Problems of the members as this node sees them.
    fn member_problems(&self) -> Vec<Problem> {
        let mut list: Vec<Problem> = self.members.iter().filter_map(duplicate_key).collect();
        list.extend(self.members.iter().filter_map(lost));
        list.extend(self.members.iter().filter_map(near_end));
        let serving = |member: &&MemberStatus| member.alive && member.phase == Some(Condition::Healthy);
        if !self.members.is_empty() && !self.members.iter().any(|member| serving(&member)) {
            list.push(Problem::new(ProblemKind::NoNodeHealthy, "", "no node is healthy"));
        }
        let unpublished = self.members.iter().filter(serving).filter(|member| member.published == 0);
        list.extend(unpublished.map(|member| {
            let text = format!("node {} is healthy, but not published yet", member.label());
            Problem::new(ProblemKind::NodeNotPublished, &member.node, text)
        }));
        list
    }
}

fn directories_behind(publication: &PublicationStatus) -> impl Iterator<Item = Problem> {
    publication.periods.iter().filter(|period| period.confirmed < period.directories).map(|period| {
        let text = format!(
            "period {}: {} of {} directories hold the newest descriptor",
            period.number, period.confirmed, period.directories
        );
        Problem::new(ProblemKind::DirectoryBehind, period.number, text)
    })
}

fn duplicate_key(member: &MemberStatus) -> Option<Problem> {
    let text = format!(
        "two processes run with the key of node {}, as seen {} ago: its state directory was copied; delete all copies but one, \
         and start that one",
        member.label(),
        time(member.doubled_seconds?)
    );
    Some(Problem::new(ProblemKind::DuplicateKey, &member.node, text))
}

fn lost(member: &MemberStatus) -> Option<Problem> {
    if member.me || member.alive || member.phase == Some(Condition::Gone) {
        return None;
    }
    let node = member.label();
    let text = match member.last_heard_seconds {
        None => format!("node {node} has not been heard since this one started"),
        Some(seconds) => format!("node {node} has been silent for {}", time(seconds as u64)),
    };
    Some(Problem::new(ProblemKind::NodeLost, &member.node, text))
}

/// A membership that no publisher has renewed in time.
fn near_end(member: &MemberStatus) -> Option<Problem> {
    let left = member.membership_left_seconds;
    if left >= NEAR_END_SECONDS {
        return None;
    }
    let (node, left) = (member.label(), time(left));
    let text = match member.alive {
        true => format!(
            "the membership of node {node} ends in {left}: it is renewed while a publisher runs, so start one, and check the \
             clocks of the machines; a worker whose membership has ended must join again"
        ),
        false => format!(
            "node {node} is away, and its membership ends in {left}: start it before, or it must join again (a publisher \
             need not); if it does not come back, evict it"
        ),
    };
    Some(Problem::new(ProblemKind::CertificateNearEnd, &member.node, text))
}

/// The problems that another member reports of itself. A member of an earlier version reports none,
/// and only its condition shows that it is not well.
fn reported(member: &MemberStatus) -> Vec<Problem> {
    if member.me || !member.alive {
        return Vec::new();
    }
    let by_condition = match member.phase {
        Some(Condition::Unhealthy) => Some(ProblemKind::TargetDown),
        Some(Condition::Draining) => Some(ProblemKind::Draining),
        _ => None,
    };
    let by_condition = by_condition.map(<&str>::from).filter(|_| member.problems.is_empty());
    let codes = member.problems.iter().map(String::as_str).chain(by_condition);
    codes.map(|code| problem_of_member(member, code)).collect()
}

/// The kinds that a node reports of itself. A hostile member may name any kind; another one proves
/// nothing about the cluster.
const REPORTED: [ProblemKind; 8] = [
    ProblemKind::TorNotReady,
    ProblemKind::ClockOff,
    ProblemKind::Isolated,
    ProblemKind::Draining,
    ProblemKind::DiskFull,
    ProblemKind::FewOpenFiles,
    ProblemKind::WireguardDown,
    ProblemKind::TargetDown,
];

/// The problem that `code` names, of another member. What to do is to be done there.
fn problem_of_member(member: &MemberStatus, code: &str) -> Problem {
    let kind = code.parse().ok().filter(|kind| REPORTED.contains(kind)).unwrap_or(ProblemKind::MemberUnwell);
    let node = member.label();
    let what = match kind {
        ProblemKind::TargetDown => "the target of a port does not answer: look at the application on its host",
        ProblemKind::Draining => "it drains, and takes no new clients until `rustbalance resume` there",
        ProblemKind::ClockOff => "its clock is wrong: set it, and look at its time service",
        ProblemKind::DiskFull => "the disk of its state directory is full: make room",
        ProblemKind::FewOpenFiles => "the system allows it too few open files, so it serves fewer clients at once",
        ProblemKind::WireguardDown => "WireGuard is switched on there and does not run: its messages go over Tor",
        ProblemKind::TorNotReady => "it is not connected to Tor",
        ProblemKind::Isolated => "it must not publish for now",
        _ => {
            let text = format!("node {node} reports {code:?}: `rustbalance status` there says what to do");
            return Problem::new(kind, &member.node, text);
        }
    };
    let text = format!("node {node}: {what}; `rustbalance status` there says more");
    Problem::new(kind, &member.node, text)
}

/// Ports that some nodes serve and others do not. A client may reach any node, so all should serve
/// the same ports.
fn ports_that_differ(members: &[MemberStatus]) -> Vec<Problem> {
    let serving = members.iter().filter(|member| member.alive && member.phase != Some(Condition::Gone));
    let nodes: Vec<_> = serving.filter_map(|member| Some((member.label(), member.ports.as_ref()?))).collect();
    let all: BTreeSet<u16> = nodes.iter().flat_map(|(_, ports)| ports.iter().copied()).collect();
    let apart = all.into_iter().filter_map(|port| {
        let (with, without): (Vec<_>, Vec<_>) = nodes.iter().partition(|(_, ports)| ports.contains(&port));
        let names =
            |nodes: Vec<&(String, &Vec<u16>)>| Vec::from_iter(nodes.iter().map(|(node, _)| node.as_str())).join(", ");
        (!without.is_empty()).then(|| {
            let text = format!(
                "port {port} is served by {} and not by {}, which refuses clients there: add [[port]] to its \
                 rustbalance.toml, or remove the port from the others",
                names(with),
                names(without)
            );
            Problem::new(ProblemKind::PortsDiffer, port, text)
        })
    });
    let mut list: Vec<Problem> = apart.collect();
    // A hostile member may announce any number of ports.
    let more = list.len().saturating_sub(MOST_PORTS);
    list.truncate(MOST_PORTS);
    list.extend((more > 0).then(|| {
        let text = format!("{} more are served by only some nodes", plural(more, "port"));
        Problem::new(ProblemKind::PortsDiffer, "more", text)
    }));
    list
}

/// The worst problem: a node that is not the operator's may have the key of the address.
fn overdrawn(alarm: &AlarmStatus) -> Problem {
    let named: Vec<_> = alarm.nodes.iter().take(MOST_NODES).map(|node| short(node)).collect();
    let more = if alarm.nodes.len() > MOST_NODES { ", ..." } else { "" };
    let id = short(&alarm.invitation);
    let text = format!(
        "the key of the address has been given to {} ({}{more}) with invitation {id}, which was for {}: if one of them is not \
         yours, move to a new address; `rustbalance acknowledge {id}` ends this warning on this node",
        plural(alarm.nodes.len(), "node"),
        named.join(", "),
        alarm.uses
    );
    Problem::new(ProblemKind::TokenOverdrawn, &alarm.invitation, text)
}

/// The problem of an isolated node, with advice to the operator or the reason to wait.
fn isolated(why: Isolated) -> Problem {
    let advice = match why {
        Isolated::ShutOut => {
            "it was evicted (check `rustbalance status` on another node), or it missed key rotations and will be reached soon"
        }
        Isolated::LacksRevocations { .. } => "they arrive with the first link to another publisher",
        Isolated::ClockOff => "set it; no restart is needed",
        Isolated::SecondProcess => {
            "most likely a copy of its state directory runs on another machine; both stop: delete all copies but one"
        }
    };
    Problem::new(ProblemKind::Isolated, "", format!("this node does not publish, because {why}: {advice}"))
}
