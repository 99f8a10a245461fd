//! The status for people: first whether clients are served, then the problems, then the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use rustbalance_gossip::view::Condition;

use super::output::Paint;
use super::{canary_view, directories_view, wireguard_view};
use crate::control::{InvitationStatus, MemberStatus, Status, TorRenewals};
use crate::display::{bytes, moment, plural, short, time};

/// Most ports of a node that are shown.
const MOST_PORTS: usize = 4;

/// The whole status as text, which ends with a newline.
/// `directories`: with every directory of the descriptor, not only those without the newest one.
pub(super) fn view(status: &Status, directories: bool, paint: Paint) -> String {
    let mut text = String::new();
    head(&mut text, status, paint);
    members(&mut text, status, paint);
    ports(&mut text, status, paint);
    publication(&mut text, status, paint);
    directories_view::section(&mut text, status, directories, paint);
    invitations(&mut text, status, paint);
    wireguard_view::peers(&mut text, &status.wireguard, paint);
    canary_view::summary(&mut text, &status.canary);
    tail(&mut text, status);
    text
}

/// Whether clients are served, what is wrong and what to do, and who publishes.
fn head(text: &mut String, status: &Status, paint: Paint) {
    let _ = writeln!(text, "{}\n", paint.bold(&status.cluster));
    let nodes = status.members.iter().filter(|member| member.published > 0).count();
    let served = match nodes {
        0 => "No node is published, so clients are not served.".into(),
        _ => format!("Served by {}.", plural(nodes, "node")),
    };
    if status.problems.is_empty() {
        let _ = writeln!(text, "{} {served}", paint.good("All is well."));
    } else {
        let _ = writeln!(text, "{served} {}", paint.bad(&format!("{}:", plural(status.problems.len(), "problem"))));
        for problem in &status.problems {
            let _ = writeln!(text, "  ! {}", problem.text);
        }
    }
    let tor = format!("{}{}", if status.tor.ready { "ready" } else { "not ready" }, renewals(&status.tor_renewals));
    let publisher = match &status.publisher {
        None => "none known".into(),
        Some(publisher) => {
            let node = if publisher.me { "this node".into() } else { label(status, &publisher.node) };
            format!("{node}, term {}, for {} unless renewed", publisher.term, time(publisher.lease_left_seconds))
        }
    };
    let _ = writeln!(
        text,
        "\nThis node   {}, {}, {}, up {}, version {}\nTor         {tor}\nPublisher   {publisher}",
        label(status, &status.node),
        status.role,
        status.phase,
        time(status.uptime_seconds),
        status.version,
    );
}

/// The Tor clients that were replaced; nothing if none was.
fn renewals(renewals: &TorRenewals) -> String {
    let (Some(last), Some(why)) = (renewals.last, &renewals.why) else { return String::new() };
    format!(", replaced {}, last {}: {why}", plural(renewals.count as usize, "time"), moment(last))
}

/// A node by its address, with its name if it has one.
pub(super) fn label(status: &Status, node: &str) -> String {
    let member = status.members.iter().find(|member| member.node == node);
    member.map_or_else(|| short(node).into(), MemberStatus::label)
}

/// The members, those that need attention first.
fn members(text: &mut String, status: &Status, paint: Paint) {
    let publishes = |member: &MemberStatus| status.publisher.as_ref().is_some_and(|it| it.node == member.node);
    let mut sorted = Vec::from_iter(&status.members);
    sorted.sort_by_key(|member| (urgency(member), !publishes(member), !member.me, &member.node));
    let named = sorted.iter().any(|member| member.name.is_some());
    let mut titles = vec!["NODE", "ROLE", "STATE", "HEARD", "OFFERS", "PUBLISHED", "PRIORITY", "WEIGHT", "PORTS"];
    titles.extend(["VERSION", "ENDS IN", "INVITATION"]);
    if named {
        titles.insert(1, "NAME");
    }
    let first_number = 4 + usize::from(named);
    let mut table = table(&titles, &Vec::from_iter(first_number..first_number + 4));
    let dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    for member in sorted {
        let mark = if publishes(member) { "*" } else { "" };
        let mut row = vec![format!("{}{mark}", short(&member.node))];
        row.extend(named.then(|| dash(member.name.clone())));
        row.extend([
            member.role.to_string(),
            state(member),
            heard(member),
            member.intro_points.to_string(),
            member.published.to_string(),
            dash(member.priority.map(|value| value.to_string())),
            dash(member.weight.map(|value| value.to_string())),
            dash(member.ports.as_deref().map(port_list)),
            dash(member.version.clone()),
            time(member.membership_left_seconds),
            dash(member.invitation.as_deref().map(|id| short(id).into())),
        ]);
        table.add_row(row);
    }
    let title =
        "Nodes (* publishes; OFFERS and PUBLISHED count introduction points; ENDS IN: membership, unless renewed)";
    section(text, title, &table, paint);
}

/// How much a node needs attention, the most first: silent, not well, well, stopped in order.
fn urgency(member: &MemberStatus) -> u8 {
    match member.phase {
        Some(Condition::Gone) => 3,
        _ if !member.alive => 0,
        Some(Condition::Healthy) if member.problems.is_empty() && member.doubled_seconds.is_none() => 2,
        _ => 1,
    }
}

/// The first ports of a node; a hostile one may announce 64.
fn port_list(ports: &[u16]) -> String {
    let shown: Vec<_> = ports.iter().take(MOST_PORTS).map(u16::to_string).collect();
    let more = if ports.len() > MOST_PORTS { ",..." } else { "" };
    if shown.is_empty() { "-".into() } else { format!("{}{more}", shown.join(",")) }
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

#[cfg(test)]
pub(super) mod tests {
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
            membership_ends: 1_797_000_000,
            membership_left_seconds: 25 * 86_400 + 7200,
            name: me.then(|| "web-1".into()),
            version: Some("0.1.0".into()),
            problems: Vec::new(),
        }
    }

    pub(crate) fn well() -> Status {
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
            tor_renewals: TorRenewals::default(),
            publisher: Some(PublisherStatus { node: "bb".repeat(8), term: 4, me: false, lease_left_seconds: 24 }),
            members: vec![member("aa", true), member("bb", false)],
            intro_points: vec![IntroPointStatus {
                service: "aa".repeat(28),
                relay: "$AB".into(),
                session_key: "00".into(),
                age_seconds: 60,
                introductions: 17,
            }],
            stand_ins: Vec::new(),
            directories: Vec::new(),
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
                check: "connect".into(),
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
            disk_free_bytes: Some(9 << 30),
            alarms: Vec::new(),
            isolated: None,
            clock: Default::default(),
            wireguard: WireguardStatus::default(),
            canary: CanaryStatus::default(),
            problems: Vec::new(),
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
        assert_eq!(well().find_problems(), []);
        insta::assert_snapshot!(view(&well(), false, Paint(false)));
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
        status.problems = status.find_problems();
        insta::assert_snapshot!(view(&status, false, Paint(false)));
    }

    #[test]
    fn problems_that_a_member_reports_show_with_its_name_and_what_to_do() {
        let mut status = well();
        let other = &mut status.members[1];
        other.name = Some("web-2".into());
        other.problems = vec!["disk_full".into(), "zombie_mode".into()];
        let texts = problems(&status);
        assert!(texts[0].contains("web-2 (bbbbbbbb)") && texts[0].contains("make room"), "{texts:?}");
        assert!(texts[1].contains("zombie_mode") && texts.len() == 2, "{texts:?}");
        // A hostile member names what only this node can find.
        status.members[1].problems = vec!["token_overdrawn".into(), "node_lost".into()];
        assert!(status.find_problems().iter().all(|problem| problem.kind == ProblemKind::MemberUnwell));
        // A member of an earlier version reports nothing.
        for (phase, kind) in [(Condition::Unhealthy, "target"), (Condition::Draining, "drains")] {
            let mut status = well();
            status.members[1].phase = Some(phase);
            assert!(problems(&status)[0].contains(kind), "{:?}", problems(&status));
        }
        assert_eq!(well().own_problem_codes().len(), 0);
        let full = Status { disk_free_bytes: Some(1 << 20), ..well() };
        assert_eq!(Vec::from_iter(full.own_problem_codes().iter().map(|code| code.as_str())), ["disk_full"]);
        assert!(problems(&full)[0].contains("1.0 MiB are free"), "{:?}", problems(&full));
    }

    #[test]
    fn a_membership_near_its_end_is_a_problem_that_says_what_to_do() {
        for (alive, what) in [(true, "start one"), (false, "evict it")] {
            let mut status = well();
            (status.members[1].membership_left_seconds, status.members[1].alive) = (3 * 86_400, alive);
            let texts = problems(&status);
            assert!(texts.iter().any(|text| text.contains("ends in 3d") && text.contains(what)), "{texts:?}");
        }
    }

    #[test]
    fn nodes_that_need_attention_come_first() {
        let mut status = well();
        let with = |letter: &str, change: fn(&mut MemberStatus)| {
            let mut member = member(letter, false);
            change(&mut member);
            member
        };
        status.members.push(with("cc", |member| member.problems = vec!["disk_full".into()]));
        status.members.push(with("dd", |member| member.alive = false));
        status.members.push(with("ee", |member| member.phase = Some(Condition::Gone)));
        let text = view(&status, false, Paint(false));
        let places: Vec<_> =
            ["  dddd", "  cccc", "  bbbbbbbb*", "  aaaaaaaa ", "  eeee"].map(|node| text.find(node).unwrap()).into();
        assert!(places.is_sorted(), "{text}");
    }

    fn problems(status: &Status) -> Vec<String> {
        status.find_problems().into_iter().map(|problem| problem.text).collect()
    }

    #[test]
    fn too_few_open_files_are_a_problem_with_its_numbers() {
        let with = |files_allowed| problems(&Status { files_allowed, ..well() });
        assert_eq!((with(None).len(), with(Some(4352)).len()), (0, 0));
        let problem = with(Some(1024)).join("\n");
        assert!(problem.contains("only 1024 open files") && problem.contains("needs 4352"), "{problem}");
    }

    #[test]
    fn a_tor_client_that_was_replaced_is_shown_with_the_reason() {
        let tor_renewals = TorRenewals { count: 2, last: Some(1_790_000_000), why: Some("it expired".into()) };
        let text = view(&Status { tor_renewals, ..well() }, false, Paint(false));
        assert!(text.contains("ready, replaced 2 times, last 2026-09-21 14:13:20 UTC: it expired\n"), "{text}");
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
        assert!(!view(&status, false, Paint(false)).contains('\x1b'));
        assert!(view(&status, false, Paint(true)).contains('\x1b'));
    }
}
