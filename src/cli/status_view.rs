//! The status for people: first whether clients are served, then the problems, then the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use rustbalance_gossip::coordinator::Isolated;
use rustbalance_gossip::view::Condition;

use super::output::{Paint, bytes, moment, plural, time};
use super::wireguard_view;
use crate::control::{AlarmStatus, InvitationStatus, MemberStatus, Status};

/// Most nodes that an alarm names.
const MOST_NODES: usize = 6;
/// Most ports that are listed one by one because only some nodes serve them.
const MOST_PORTS: usize = 5;
/// Characters of an address or id that are shown.
const SHORT: usize = 8;

/// The whole status as text, which ends with a newline.
pub(super) fn view(status: &Status, paint: Paint) -> String {
    let mut text = String::new();
    head(&mut text, status, paint);
    members(&mut text, status, paint);
    ports(&mut text, status, paint);
    publication(&mut text, status, paint);
    invitations(&mut text, status, paint);
    wireguard_view::peers(&mut text, &status.wireguard, paint);
    tail(&mut text, status);
    text
}

/// The problems that the operator has to look at, the worst first.
fn problems(status: &Status) -> Vec<String> {
    let mut list: Vec<String> = status.alarms.iter().map(alarm).collect();
    if !status.tor.ready {
        let percent = (status.tor.fraction * 100.0) as u8;
        list.push(format!("Tor is not ready ({percent}%): {}", status.tor.message));
    }
    list.extend(status.isolated.map(isolated));
    for member in &status.members {
        if let Some(seconds) = member.doubled_seconds {
            list.push(format!(
                "two processes run with the key of node {}, as seen {} ago: its state directory was copied; delete all \
                 copies but one, and start that one",
                short(&member.node),
                time(seconds)
            ));
        }
    }
    if let Some(other_publisher) = &status.other_publisher {
        let effect =
            if other_publisher.readable { "clients reach it" } else { "only clients that it has authorized reach it" };
        list.push(format!(
            "a publisher that is not a member has published this address {} ago, and {effect} until this node has \
             published again: stop the old service that has the address's key; if there is none, others have the key, \
             and only a new address is safe",
            time(other_publisher.seen_seconds)
        ));
    }
    match (&status.publisher, &status.publication) {
        (None, _) => list.push("no publisher is known: the address will not be kept up to date".into()),
        (Some(_), None) => list.push("no published descriptor is known yet".into()),
        (Some(_), Some(publication)) => {
            if publication.intro_points.is_empty() {
                list.push("no introduction points are published: clients cannot reach the address".into());
            }
            for period in publication.periods.iter().filter(|period| period.confirmed < period.directories) {
                list.push(format!(
                    "period {}: {} of {} directories hold the newest descriptor",
                    period.number, period.confirmed, period.directories
                ));
            }
        }
    }
    if status.phase == Condition::Draining {
        list.push("this node drains: it takes no new clients until `rustbalance resume`, also after a restart".into());
    }
    if let Some(allowed) = status.files_allowed.filter(|allowed| *allowed < status.files_needed) {
        list.push(format!(
            "only {allowed} open files are allowed, and [limits] streams needs {}: this node serves fewer clients at once; \
             raise the limit (LimitNOFILE= in the unit, `ulimit -n` in a shell) and restart the daemon",
            status.files_needed
        ));
    }
    list.extend(wireguard_view::problem(&status.wireguard));
    for port in status.ports.iter().filter(|port| !port.healthy) {
        let why = port.error.as_deref().unwrap_or("not checked yet");
        list.push(format!("port {}: the target {} does not answer: {why}", port.port, port.target));
    }
    list.extend(unevenly_served_ports(&status.members));
    for member in status.members.iter().filter(|member| !member.me && !member.alive) {
        match (member.phase, member.last_heard_seconds) {
            (Some(Condition::Gone), _) => {}
            (_, None) => list.push(format!("node {} has not been heard since this one started", short(&member.node))),
            (_, Some(seconds)) => {
                list.push(format!("node {} has been silent for {}", short(&member.node), time(seconds as u64)));
            }
        }
    }
    let serving = |member: &&MemberStatus| member.alive && member.phase == Some(Condition::Healthy);
    if !status.members.is_empty() && !status.members.iter().any(|member| serving(&member)) {
        list.push("no node is healthy".into());
    }
    for member in status.members.iter().filter(serving).filter(|member| member.published == 0) {
        list.push(format!("node {} is healthy, but not published yet", short(&member.node)));
    }
    list
}

/// Ports that some nodes serve and others do not. A client may reach any node, so all should serve
/// the same ports.
fn unevenly_served_ports(members: &[MemberStatus]) -> Vec<String> {
    let serving = members.iter().filter(|member| member.alive && member.phase != Some(Condition::Gone));
    let nodes: Vec<_> = serving.filter_map(|member| Some((short(&member.node), member.ports.as_ref()?))).collect();
    let all: BTreeSet<u16> = nodes.iter().flat_map(|(_, ports)| ports.iter().copied()).collect();
    let apart = all.into_iter().filter_map(|port| {
        let (with, without): (Vec<_>, Vec<_>) = nodes.iter().partition(|(_, ports)| ports.contains(&port));
        let names = |nodes: Vec<&(&str, &Vec<u16>)>| Vec::from_iter(nodes.iter().map(|(node, _)| *node)).join(", ");
        (!without.is_empty()).then(|| {
            format!(
                "port {port} is served by {} and not by {}, which refuses clients there: add [[port]] to its \
                 rustbalance.toml, or remove the port from the others",
                names(with),
                names(without)
            )
        })
    });
    let mut list: Vec<String> = apart.collect();
    // A hostile member may announce any number of ports.
    let more = list.len().saturating_sub(MOST_PORTS);
    list.truncate(MOST_PORTS);
    list.extend((more > 0).then(|| format!("{} more are served by only some nodes", plural(more, "port"))));
    list
}

/// The worst problem: a node that is not the operator's may have the key of the address.
fn alarm(alarm: &AlarmStatus) -> String {
    let named: Vec<_> = alarm.nodes.iter().take(MOST_NODES).map(|node| short(node)).collect();
    let more = if alarm.nodes.len() > MOST_NODES { ", ..." } else { "" };
    let id = short(&alarm.invitation);
    format!(
        "the key of the address has been given to {} ({}{more}) with invitation {id}, which was for {}: if one of them is not \
         yours, move to a new address; `rustbalance acknowledge {id}` ends this warning on this node",
        plural(alarm.nodes.len(), "node"),
        named.join(", "),
        alarm.uses
    )
}

/// The problem of an isolated node, with advice to the operator or the reason to wait.
fn isolated(why: Isolated) -> String {
    let advice = match why {
        Isolated::ShutOut => {
            "it was evicted (check `rustbalance status` on another node), or it missed key rotations and will be reached soon"
        }
        Isolated::LacksRevocations { .. } => "they arrive with the first link to another publisher",
        Isolated::SecondProcess => {
            "most likely a copy of its state directory runs on another machine; both stop: delete all copies but one"
        }
    };
    format!("this node does not publish, because {why}: {advice}")
}

fn head(text: &mut String, status: &Status, paint: Paint) {
    let _ = writeln!(text, "{}\n", paint.bold(&status.cluster));
    let problems = problems(status);
    if problems.is_empty() {
        let nodes = status.members.iter().filter(|member| member.published > 0).count();
        let _ = writeln!(text, "{} Served by {}.", paint.good("All is well."), plural(nodes, "node"));
    } else {
        let _ = writeln!(text, "{}", paint.bad(&format!("{}:", plural(problems.len(), "problem"))));
        for problem in problems {
            let _ = writeln!(text, "  ! {problem}");
        }
    }
    let tor = if status.tor.ready { "ready" } else { "not ready" };
    let publisher = match &status.publisher {
        None => "none known".into(),
        Some(publisher) if publisher.me => format!("this node, term {}", publisher.term),
        Some(publisher) => format!("{}, term {}", short(&publisher.node), publisher.term),
    };
    let _ = writeln!(
        text,
        "\nThis node   {} ({}, {}), up {}, version {}\nTor         {tor}\nPublisher   {publisher}",
        short(&status.node),
        status.role,
        status.phase,
        time(status.uptime_seconds),
        status.version,
    );
}

fn members(text: &mut String, status: &Status, paint: Paint) {
    let mut table = table(
        &["NODE", "ROLE", "STATE", "HEARD", "OFFERS", "PUBLISHED", "PRIORITY", "WEIGHT", "INVITATION"],
        &[4, 5, 6, 7],
    );
    let dash = |value: Option<u8>| value.map_or("-".into(), |value| value.to_string());
    for member in &status.members {
        let mark = match &status.publisher {
            Some(publisher) if publisher.node == member.node => "*",
            _ => "",
        };
        table.add_row([
            format!("{}{mark}", short(&member.node)),
            member.role.to_string(),
            state(member),
            heard(member),
            member.intro_points.to_string(),
            member.published.to_string(),
            dash(member.priority),
            dash(member.weight),
            member.invitation.as_deref().map_or("-", short).into(),
        ]);
    }
    section(text, "Nodes (* publishes; OFFERS and PUBLISHED count introduction points)", &table, paint);
}

fn state(member: &MemberStatus) -> String {
    match (member.phase, member.alive) {
        (Some(Condition::Gone), _) => "gone".into(),
        (_, false) => "silent".into(),
        (None, true) => "unknown".into(),
        (Some(phase), true) => phase.to_string(),
    }
}

fn heard(member: &MemberStatus) -> String {
    match member.last_heard_seconds {
        _ if member.me => "this node".into(),
        None => "never".into(),
        Some(seconds) if seconds < 5.0 => "now".into(),
        Some(seconds) => format!("{} ago", time(seconds as u64)),
    }
}

fn ports(text: &mut String, status: &Status, paint: Paint) {
    let mut table = table(&["PORT", "TARGET", "STATE"], &[]);
    for port in &status.ports {
        let state = if port.healthy { "answers" } else { "down" };
        table.add_row([port.port.to_string(), port.target.clone(), state.into()]);
    }
    section(text, "Ports", &table, paint);
}

fn publication(text: &mut String, status: &Status, paint: Paint) {
    let Some(publication) = &status.publication else { return };
    let mut table = table(&["PERIOD", "REVISION", "DIRECTORIES"], &[]);
    for period in &publication.periods {
        let held = format!("{} of {}", period.confirmed, period.directories);
        table.add_row([period.number.to_string(), period.revision.to_string(), held]);
    }
    let what = plural(publication.intro_points.len(), "introduction point");
    section(text, &format!("Published: {what}"), &table, paint);
}

fn invitations(text: &mut String, status: &Status, paint: Paint) {
    if !status.invitations.is_empty() {
        section(text, "Invitations", &invitation_table(&status.invitations, false), paint);
    }
}

/// The invitations, those that still admit nodes first. `nodes`: with the nodes that have joined.
pub(super) fn invitation_table(invitations: &[InvitationStatus], nodes: bool) -> Table {
    let titles = ["INVITATION", "ROLE", "USED", "UNTIL", "STATE", "NODES"];
    let mut table = table(if nodes { &titles } else { &titles[..5] }, &[]);
    let mut sorted = Vec::from_iter(invitations);
    sorted.sort_by_key(|invitation| (invitation.state, invitation.expires));
    for invitation in sorted {
        let joined = invitation.nodes.iter().map(|node| short(node));
        let mut row = vec![
            short(&invitation.id).into(),
            invitation.role.to_string(),
            format!("{} of {}", invitation.redeemed, invitation.uses),
            moment(invitation.expires),
            invitation.state.to_string(),
        ];
        row.extend(nodes.then(|| if joined.len() == 0 { "-".into() } else { Vec::from_iter(joined).join(" ") }));
        table.add_row(row);
    }
    table
}

fn tail(text: &mut String, status: &Status) {
    let traffic = &status.traffic;
    let introductions: u64 = status.intro_points.iter().map(|point| point.introductions).sum();
    let _ = writeln!(
        text,
        "\nTraffic     {} open, {} since start, {} from clients, {} to clients",
        plural(traffic.streams_open as usize, "stream"),
        traffic.streams_total,
        bytes(traffic.bytes_from_clients),
        bytes(traffic.bytes_to_clients),
    );
    let own = plural(status.intro_points.len(), "introduction point");
    let _ = writeln!(text, "Clients     {own} kept, {introductions} introductions");
    let _ = writeln!(text, "Usage       {}", usage(status));
    if !status.stand_ins.is_empty() {
        let _ = writeln!(text, "Standing in {}", stand_ins(status));
    }
    let _ = writeln!(text, "Links       {}", links(status));
    let refused: Vec<_> =
        status.refused.iter().filter(|(_, count)| **count > 0).map(|(name, count)| format!("{count} {name}")).collect();
    if !refused.is_empty() {
        let _ = writeln!(text, "Refused     {}", refused.join(", "));
    }
}

/// What the daemon holds for clients, of what it may hold.
fn usage(status: &Status) -> String {
    let usage = &status.usage;
    let memory = usage.memory_bytes.map(|resident| format!("{} of memory, ", bytes(resident)));
    format!(
        "{}{} of {} circuits, {} of {} streams",
        memory.unwrap_or_default(),
        usage.circuits_open,
        usage.circuits_allowed,
        status.traffic.streams_open,
        usage.streams_allowed,
    )
}

/// The nodes for which this node stands in, and the introductions that it has answered for them.
fn stand_ins(status: &Status) -> String {
    let nodes: BTreeSet<&str> = status.stand_ins.iter().map(|point| short(&point.node)).collect();
    let introductions: u64 = status.stand_ins.iter().map(|point| point.introductions).sum();
    format!(
        "at {} of {}, {introductions} introductions",
        plural(status.stand_ins.len(), "introduction point"),
        Vec::from_iter(nodes).join(", ")
    )
}

/// The number of links over each route, and the round-trip times of those that carry gossip. Over
/// Tor, these times show the state of the network.
fn links(status: &Status) -> String {
    let carrying = status.links.iter().filter(|link| link.carries);
    let times: Vec<u64> = carrying.filter_map(|link| link.round_trip_ms).collect();
    let seconds = |milliseconds: &u64| *milliseconds as f64 / 1000.0;
    let mut routes = BTreeMap::<&str, usize>::new();
    status.links.iter().for_each(|link| *routes.entry(&link.route).or_default() += 1);
    let open = match routes.len() {
        0 | 1 => format!("{} open", status.links.len()),
        _ => {
            let routes: Vec<_> = routes.iter().map(|(route, count)| format!("{count} over {route}")).collect();
            format!("{} open", routes.join(" and "))
        }
    };
    match (times.iter().min(), times.iter().max()) {
        (Some(least), Some(most)) if least == most => format!("{open}, answering after {:.1} s", seconds(least)),
        (Some(least), Some(most)) => {
            format!("{open}, answering after {:.1} to {:.1} s", seconds(least), seconds(most))
        }
        _ => open,
    }
}

pub(super) fn table(titles: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    // Never wrapped to the terminal: a cut line is easier to read than a folded one.
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(titles);
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

pub(super) fn section(text: &mut String, title: &str, table: &Table, paint: Paint) {
    let _ = writeln!(text, "\n{}", paint.bold(title));
    for line in table.to_string().lines() {
        let _ = writeln!(text, " {}", line.trim_end());
    }
}

/// The beginning of an address or id.
pub(super) fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::*;
    use rustbalance_gossip::record::Role;

    fn member(name: &str, me: bool) -> MemberStatus {
        MemberStatus {
            node: name.repeat(8),
            role: Role::Publisher,
            phase: Some(Condition::Healthy),
            alive: true,
            me,
            invitation: (!me).then(|| "c0ffee00c0ffee00".into()),
            last_heard_seconds: Some(1.2),
            intro_points: 3,
            published: 3,
            priority: Some(100),
            weight: Some(1),
            ports: Some(vec![80]),
            doubled_seconds: None,
        }
    }

    fn well() -> Status {
        let point =
            |node: &str| PublishedPointStatus { node: node.repeat(8), relay: "$AB".into(), session_key: "00".into() };
        Status {
            version: "0.1.0".into(),
            cluster: "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion".into(),
            node: "aa".repeat(8),
            role: Role::Publisher,
            phase: Condition::Healthy,
            uptime_seconds: 11_100,
            tor: Bootstrap { fraction: 1.0, ready: true, message: "connected".into() },
            publisher: Some(PublisherStatus { node: "bb".repeat(8), term: 4, me: false }),
            members: vec![member("aa", true), member("bb", false)],
            intro_points: vec![IntroPointStatus {
                service: "aa".repeat(28),
                relay: "$AB".into(),
                session_key: "00".into(),
                age_seconds: 60,
                introductions: 17,
            }],
            stand_ins: Vec::new(),
            other_publisher: None,
            publication: Some(PublicationStatus {
                node: "bb".repeat(8),
                term: 4,
                periods: vec![PublishedPeriodStatus {
                    number: 20_779,
                    length_minutes: 1440,
                    revision: 3_105_223_411,
                    directories: 8,
                    confirmed: 8,
                }],
                intro_points: vec![point("aa"), point("bb")],
            }),
            ports: vec![PortStatus {
                service: "aa".repeat(28),
                port: 80,
                target: "127.0.0.1:8080".into(),
                healthy: true,
                error: None,
            }],
            traffic: TrafficStatus {
                streams_open: 2,
                streams_total: 40,
                bytes_from_clients: 9000,
                bytes_to_clients: 1 << 21,
            },
            usage: UsageStatus {
                memory_bytes: Some(30 << 20),
                waiting_bytes_allowed: Some(512 << 20),
                circuits_open: 3,
                circuits_allowed: 4096,
                circuits_making: 1,
                circuits_making_allowed: 256,
                streams_allowed: 4096,
            },
            refused: [("replays".to_string(), 0), ("streams_idle".to_string(), 2)].into(),
            links: vec![LinkStatus {
                peer: "bb".repeat(8),
                route: "tor".into(),
                state: "proven".into(),
                carries: true,
                outgoing: true,
                age_seconds: 9,
                frames_in: 1,
                frames_out: 2,
                bytes_in: 100,
                bytes_out: 200,
                dropped: 0,
                round_trip_ms: Some(340),
            }],
            discovery_generation: 1,
            files_allowed: Some(65_536),
            files_needed: 4352,
            alarms: Vec::new(),
            isolated: None,
            wireguard: WireguardStatus::default(),
            invitations: vec![InvitationStatus {
                id: "c0ffee00c0ffee00".into(),
                role: Role::Worker,
                uses: 2,
                redeemed: 1,
                nodes: vec!["bb".repeat(8)],
                expires: 1_795_362_000,
                state: InvitationState::Open,
            }],
        }
    }

    #[test]
    fn a_healthy_cluster_is_shown_without_problems() {
        insta::assert_snapshot!(view(&well(), Paint(false)));
    }

    #[test]
    fn a_cluster_in_trouble_is_shown_with_its_problems() {
        let mut status = well();
        status.tor = Bootstrap { fraction: 0.45, ready: false, message: "fetching the directory".into() };
        status.members[1].alive = false;
        status.members[1].last_heard_seconds = Some(190.0);
        status.members.push(MemberStatus {
            phase: None,
            alive: false,
            last_heard_seconds: None,
            intro_points: 0,
            published: 0,
            priority: None,
            weight: None,
            ports: None,
            role: Role::Worker,
            ..member("cc", false)
        });
        status.members[0].published = 0;
        status.members.push(MemberStatus { ports: Some(vec![22, 80]), ..member("ee", false) });
        status.ports[0].healthy = false;
        status.ports[0].error = Some("Connection refused (os error 111)".into());
        status.publication.as_mut().unwrap().periods[0].confirmed = 5;
        status.invitations.clear();
        status.alarms = vec![AlarmStatus {
            invitation: "c0ffee00c0ffee00".into(),
            uses: 1,
            nodes: vec!["bb".repeat(8), "dd".repeat(8)],
        }];
        let stand_in = |relay: &str| StandInStatus { node: "bb".repeat(8), relay: relay.into(), introductions: 4 };
        status.stand_ins = vec![stand_in("$AB"), stand_in("$CD")];
        insta::assert_snapshot!(view(&status, Paint(false)));
    }

    #[test]
    fn too_few_open_files_are_a_problem_with_its_numbers() {
        let with = |files_allowed| problems(&Status { files_allowed, ..well() });
        assert_eq!((with(None).len(), with(Some(4352)).len()), (0, 0));
        let problem = with(Some(1024)).join("\n");
        assert!(problem.contains("only 1024 open files") && problem.contains("needs 4352"), "{problem}");
    }

    #[test]
    fn another_publisher_of_the_address_is_a_problem() {
        for readable in [true, false] {
            let status =
                Status { other_publisher: Some(OtherPublisherStatus { seen_seconds: 720, readable }), ..well() };
            let [problem] = problems(&status).try_into().unwrap();
            assert!(problem.contains("12m ago") && problem.contains("stop the old service"), "{problem}");
            assert_eq!(problem.contains("authorized"), !readable);
        }
    }

    #[test]
    fn a_node_that_has_just_started_is_shown() {
        let mut status = well();
        (status.publisher, status.publication) = (None, None);
        status.members.clear();
        assert_eq!(problems(&status), ["no publisher is known: the address will not be kept up to date"]);
        assert!(!view(&status, Paint(false)).contains('\x1b'));
        assert!(view(&status, Paint(true)).contains('\x1b'));
    }
}
