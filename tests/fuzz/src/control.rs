//! Both ends of the control socket: the daemon reads a request, a command reads an answer. Real
//! sockets are used, so that the limit on a line and the handling of its end are tested too.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustbalance::control::{
    AlarmStatus, Bootstrap, CanaryDirectoryState, CanaryDirectoryStatus, CanaryPointState, CanaryPointStatus,
    CanaryRepairStatus, CanaryRunStatus, CanaryStatus, CircuitList, ClockStatus, DirectoryStatus, Handler,
    IntroPointStatus, InvitationState, InvitationStatus, LinkStatus, MemberStatus, OtherPublisherStatus, PortStatus,
    PublicationStatus, PublishedPeriodStatus, PublishedPointStatus, PublisherStatus, Request, Response, SOCKET_NAME,
    StandInStatus, Status, TorRenewals, TrafficStatus, UsageStatus, WireguardPeerStatus, WireguardStatus,
    WireguardSwitch, bind, call, serve,
};
use rustbalance_gossip::record::Role;
use rustbalance_gossip::view::Condition;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::world::{scratch, world};
use super::{Seed, block_on};

/// The longest line that the daemon reads, in bytes, with its line feed.
const MAX_REQUEST: usize = 4096;
/// Time limit for an answer.
const LIMIT: Duration = Duration::from_secs(5);

thread_local! {
    static DAEMON: OnceCell<TempDir> = const { OnceCell::new() };
    static IMPOSTOR: OnceCell<(TempDir, Arc<UnixListener>)> = const { OnceCell::new() };
}

/// Answers every request with the request itself, as JSON.
struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, request: Request) -> Response {
        Response::done(serde_json::to_string(&request).unwrap())
    }
}

/// A request from a command. The daemon always answers with one line, here with the request as it
/// decoded it.
pub(crate) fn request(bytes: &[u8]) -> bool {
    let dir = || {
        let dir = scratch();
        block_on(async {
            let listener = bind(dir.path()).unwrap();
            // The server task runs whenever this thread waits for a future, until the process ends.
            drop(tokio::spawn(serve(listener, Arc::new(Echo), CancellationToken::new())));
        });
        dir
    };
    let path = DAEMON.with(|cell| cell.get_or_init(dir).path().join(SOCKET_NAME));
    let line = block_on(async {
        let mut stream = UnixStream::connect(path).await.unwrap();
        // The daemon may close the stream before it has read everything.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut line = Vec::new();
        stream.read_to_end(&mut line).await.unwrap();
        line
    });
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "not one line: {line:?}");
    match serde_json::from_slice(&line).unwrap() {
        Response::Done { message } => {
            let first = bytes.split(|byte| *byte == b'\n').next().unwrap();
            assert!(first.len() < MAX_REQUEST);
            let understood: Request = serde_json::from_str(&message).unwrap();
            assert_eq!(serde_json::from_slice::<Request>(first).unwrap(), understood);
            true
        }
        Response::Refused { .. } => false,
        other => panic!("an answer of the wrong kind: {other:?}"),
    }
}

pub(crate) fn request_seeds() -> Vec<Seed> {
    let line = |request: &Request| [&serde_json::to_vec(request).unwrap()[..], b"\n"].concat();
    let invite = Request::Invite { role: Role::Publisher, expires_seconds: 86_400, uses: 1 };
    let node = world().nodes[1].to_string();
    vec![
        Seed::good("status", line(&Request::Status {})),
        Seed::good("invite", line(&invite)),
        Seed::good("leave", line(&Request::Leave {})),
        Seed::good("drain", line(&Request::Drain {})),
        Seed::good("resume", line(&Request::Resume {})),
        Seed::good("reload", line(&Request::Reload {})),
        Seed::good("canary", line(&Request::Canary {})),
        Seed::good("test-alert", line(&Request::TestAlert {})),
        Seed::good("recent-log", line(&Request::RecentLog {})),
        Seed::good("circuits", line(&Request::Circuits {})),
        Seed::good("kill-circuit", &b"{\"request\":\"kill_circuit\",\"circuit\":\"0x12ab34cd\"}\n"[..]),
        Seed::bad("kill-no-circuit", &b"{\"request\":\"kill_circuit\",\"circuit\":\"::1\"}\n"[..]),
        Seed::good("evict", line(&Request::Evict { node: node.parse().unwrap() })),
        Seed::bad("evict-whom", &b"{\"request\":\"evict\",\"node\":\"a b\"}\n"[..]),
        Seed::bad("no-end", &b"{\"request\":\"status\"}"[..]),
        Seed::bad("unknown", &b"{\"request\":\"status\",\"loud\":true}\n"[..]),
        Seed::bad("long", [&b"{\"request\":\"status\"}"[..], &[b' '; MAX_REQUEST], b"\n"].concat()),
        Seed::bad("deep", [&[b'['; 2000][..], b"\n"].concat()),
    ]
}

/// An answer from a daemon. If the command decodes it, encoding and decoding it again gives the
/// same answer.
pub(crate) fn status(bytes: &[u8]) -> bool {
    let impostor = || {
        let dir = scratch();
        let listener = block_on(async { UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap() });
        (dir, Arc::new(listener))
    };
    let (dir, listener) = IMPOSTOR.with(|cell| {
        let (dir, listener) = cell.get_or_init(impostor);
        (dir.path().to_owned(), Arc::clone(listener))
    });
    let answer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = [0; 64];
        assert!(stream.read(&mut asked).await.unwrap() > 0);
        let _ = stream.write_all(bytes).await;
    };
    let (outcome, ()) = block_on(async { tokio::join!(call(&dir, &Request::Status {}, LIMIT), answer) });
    let Ok(response) = outcome else { return false };
    let written = serde_json::to_string(&response).unwrap();
    let again: Response = serde_json::from_str(&written).unwrap();
    assert_eq!(rounded(again), rounded(response));
    true
}

/// The answer without fractions: JSON does not keep their last digit.
fn rounded(response: Response) -> Response {
    let without_fractions = |mut run: CanaryRunStatus| {
        run.directories.iter_mut().for_each(|it| it.seconds = 0.0);
        run.points.iter_mut().for_each(|it| it.seconds = 0.0);
        run
    };
    let mut status = match response {
        Response::Status(status) => status,
        Response::Canary { services } => {
            return Response::Canary { services: services.into_iter().map(without_fractions).collect() };
        }
        other => return other,
    };
    status.canary.services = status.canary.services.into_iter().map(without_fractions).collect();
    status.tor.fraction = status.tor.fraction.round();
    for member in &mut status.members {
        member.last_heard_seconds = None;
    }
    Response::Status(status)
}

pub(crate) fn status_seeds() -> Vec<Seed> {
    let line = |response: &Response| [&serde_json::to_vec(response).unwrap()[..], b"\n"].concat();
    let (master, token) = (world().cluster.to_string(), rustbalance::control::TokenText("rb1-".into()));
    vec![
        Seed::good("status", line(&Response::Status(Box::new(example())))),
        Seed::good(
            "invited",
            line(&Response::Invited { master, token, id: "00".into(), expires: 1_800_000_000, note: None }),
        ),
        Seed::good("canary", line(&Response::Canary { services: canary().services })),
        Seed::good("circuits", line(&Response::Circuits(CircuitList::default()))),
        Seed::good("done", line(&Response::done("it is done"))),
        Seed::good(
            "reloaded",
            line(&Response::Reloaded { applied: vec!["[a] b changed from 1 to 2".into()], after_restart: Vec::new() }),
        ),
        Seed::good("recent-log", line(&Response::RecentLog { lines: vec![" INFO a: b".into()] })),
        Seed::good("refused", line(&Response::refused("it is not done"))),
        Seed::bad("no-end", &b"{\"response\":\"done\",\"message\":\"\"}"[..]),
        Seed::bad("nothing", &b""[..]),
        Seed::bad("other-version", &b"{\"response\":\"status\",\"version\":\"9\"}\n"[..]),
    ]
}

fn wireguard_peer() -> WireguardPeerStatus {
    WireguardPeerStatus {
        node: world().nodes[2].to_string(),
        route: Some("wireguard".into()),
        proven: false,
        reason: Some("probes have to be answered first".into()),
        endpoint: Some("203.0.113.8:7440".into()),
        round_trip_ms: Some(41),
        dead_after_ms: 3000,
        last_handshake_seconds: Some(72),
        bytes_in: 1,
        bytes_out: 2,
    }
}

/// A status in which every list has an entry.
fn example() -> Status {
    let (node, relay, session_key) = (world().nodes[1].to_string(), format!("${}", "A".repeat(40)), "ab".repeat(32));
    let member = MemberStatus {
        node: node.clone(),
        role: Role::Worker,
        phase: Some(Condition::Healthy),
        alive: true,
        me: false,
        invitation: Some(world().token_id.to_string()),
        last_heard_seconds: Some(1.5),
        intro_points: 3,
        published: 2,
        priority: Some(100),
        weight: None,
        ports: Some(vec![80]),
        doubled_seconds: None,
        membership_ends: 1_800_000_000,
        membership_left_seconds: 2_000_000,
        name: Some("web-1".into()),
        version: Some("0.1.0".into()),
        problems: vec!["disk_full".into()],
    };
    let period =
        PublishedPeriodStatus { number: 20_000, length_minutes: 1440, revision: 9, directories: 6, confirmed: 5 };
    let point = PublishedPointStatus { node: node.clone(), relay: relay.clone(), session_key: session_key.clone() };
    Status {
        version: "0.1.0".into(),
        cluster: world().cluster.to_string(),
        node: node.clone(),
        role: Role::Publisher,
        phase: Condition::Healthy,
        uptime_seconds: 60,
        tor: Bootstrap { fraction: 0.5, ready: true, message: "connected".into() },
        tor_renewals: TorRenewals { count: 1, last: Some(5), why: Some("expired".into()) },
        publisher: Some(PublisherStatus { node: node.clone(), term: 3, me: true, lease_left_seconds: 20 }),
        members: vec![member],
        intro_points: vec![IntroPointStatus {
            service: node.clone(),
            relay: relay.clone(),
            session_key,
            age_seconds: 5,
            introductions: 7,
        }],
        directories: vec![DirectoryStatus {
            service: "aaaa".into(),
            period: 7,
            relay: "$AB".into(),
            revision: Some(9),
            confirmed_at: Some(10),
            current: true,
            failures: 0,
        }],
        other_publisher: Some(OtherPublisherStatus { seen_seconds: 9, readable: true }),
        stand_ins: vec![StandInStatus { node: node.clone(), relay, introductions: 2 }],
        publication: Some(PublicationStatus {
            node: node.clone(),
            term: 3,
            periods: vec![period],
            intro_points: vec![point],
        }),
        ports: vec![PortStatus {
            service: node.clone(),
            port: 80,
            target: "127.0.0.1:8080".into(),
            check: "connect".into(),
            healthy: false,
            error: Some("x".into()),
        }],
        traffic: TrafficStatus::default(),
        usage: UsageStatus::default(),
        refused: [("link_busy".to_owned(), 3)].into(),
        links: vec![LinkStatus {
            peer: node,
            route: "tor".into(),
            state: "proven".into(),
            carries: true,
            outgoing: true,
            age_seconds: 5,
            frames_in: 1,
            frames_out: 2,
            bytes_in: 90,
            bytes_out: 200,
            dropped: 0,
            round_trip_ms: Some(800),
        }],
        invitations: vec![InvitationStatus {
            id: world().token_id.to_string(),
            role: Role::Worker,
            uses: 3,
            redeemed: 1,
            nodes: Vec::new(),
            expires: 1_800_000_000,
            state: InvitationState::Open,
        }],
        alarms: vec![AlarmStatus { invitation: world().token_id.to_string(), uses: 1, nodes: Vec::new() }],
        discovery_generation: 0,
        files_allowed: None,
        disk_free_bytes: Some(1 << 30),
        files_needed: 4352,
        isolated: None,
        clock: ClockStatus { ahead_seconds: Some(-9), witness: Some("members".into()), proven: true },
        wireguard: WireguardStatus {
            state: WireguardSwitch::On,
            problem: None,
            listens: vec!["10.0.0.7:7440".into()],
            endpoints: vec!["203.0.113.7:7440".into()],
            peers: vec![wireguard_peer()],
        },
        problems: Vec::new(),
        canary: canary(),
    }
}

/// A canary that has found a fault of each sort.
fn canary() -> CanaryStatus {
    let (relay, session_key) = (format!("${}", "A".repeat(40)), "ab".repeat(32));
    let run = CanaryRunStatus {
        service: world().cluster.to_string(),
        at: 1_795_362_000,
        well: false,
        problem: Some("x".into()),
        directories: vec![CanaryDirectoryStatus {
            relay: relay.clone(),
            period: 20_000,
            state: CanaryDirectoryState::Old,
            revision: Some(8),
            why: Some("revision 9 was announced".into()),
            seconds: 0.5,
        }],
        points: vec![CanaryPointStatus {
            node: Some(world().nodes[1].to_string()),
            me: true,
            relay,
            session_key,
            state: CanaryPointState::Rendezvous,
            why: Some("x".into()),
            seconds: 1.5,
        }],
    };
    CanaryStatus {
        enabled: true,
        runs: 2,
        failures: 1,
        last_success: Some(1_795_361_000),
        repairs: [("replace_point".to_owned(), 1)].into(),
        last_repair: Some(CanaryRepairStatus { at: 1_795_362_000, kind: "replace_point".into(), why: "x".into() }),
        services: vec![run],
    }
}
