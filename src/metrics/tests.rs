//! A made-up node for the tests of this module.

use rustbalance_gossip::id::ServiceId;
use rustbalance_gossip::record::Role;
use rustbalance_gossip::view::Condition;

use crate::control::{
    Bootstrap, CanaryStatus, IntroPointStatus, LinkStatus, MemberStatus, PortStatus, PublicationStatus, TorRenewals,
};
use crate::control::{PublishedPeriodStatus, PublishedPointStatus, PublisherStatus, Status};

fn member(letter: &str, me: bool) -> MemberStatus {
    MemberStatus {
        node: format!("{}.onion", letter.repeat(56)),
        role: if me { Role::Publisher } else { Role::Worker },
        phase: Some(Condition::Healthy),
        alive: me,
        me,
        invitation: None,
        last_heard_seconds: Some(1.5),
        intro_points: 3,
        published: 3,
        priority: Some(100),
        weight: Some(1),
        ports: Some(vec![80]),
        doubled_seconds: None,
        membership_ends: 1_800_000_000,
        membership_left_seconds: 2_000_000,
        name: Some("web-1".into()),
        version: Some("0.1.0".into()),
        problems: Vec::new(),
    }
}

/// A node that serves; another member is silent. The version has all characters that are escaped.
pub(super) fn status() -> Status {
    let (service, me, other) =
        (ServiceId::from_public_key([0x5a; 32]).to_string(), member("a", true), member("b", false));
    let (relay, session_key) = ("$0123456789ABCDEF".to_owned(), "feedbeeffeedbeef".to_owned());
    let period =
        |number| PublishedPeriodStatus { number, length_minutes: 1440, revision: 9, directories: 6, confirmed: 5 };
    let point = PublishedPointStatus { node: me.node.clone(), relay: relay.clone(), session_key: session_key.clone() };
    let link = |route: &str| LinkStatus {
        peer: other.node.clone(),
        route: route.into(),
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
    };
    Status {
        version: "1.2 \"\\\n".into(),
        cluster: service.clone(),
        node: me.node.clone(),
        role: Role::Publisher,
        phase: Condition::Healthy,
        uptime_seconds: 60,
        tor: Bootstrap { fraction: 1.0, ready: true, message: "connected".into() },
        tor_renewals: TorRenewals::default(),
        publisher: Some(PublisherStatus { node: me.node.clone(), term: 3, me: true, lease_left_seconds: 20 }),
        intro_points: vec![IntroPointStatus {
            service: service.clone(),
            relay,
            session_key,
            age_seconds: 5,
            introductions: 7,
        }],
        stand_ins: Vec::new(),
        publication: Some(PublicationStatus {
            node: me.node.clone(),
            term: 3,
            periods: vec![period(20_001), period(20_000)],
            intro_points: vec![point],
        }),
        directories: Vec::new(),
        other_publisher: None,
        ports: vec![PortStatus {
            service,
            port: 80,
            target: "127.0.0.1:8080".into(),
            check: "connect".into(),
            healthy: true,
            error: None,
        }],
        traffic: Default::default(),
        usage: Default::default(),
        refused: Default::default(),
        // The same link twice, as for a moment after both sides have dialled.
        links: vec![link("tor"), link("tor"), link("wireguard")],
        invitations: Vec::new(),
        alarms: Vec::new(),
        discovery_generation: 0,
        files_allowed: Some(1024),
        disk_free_bytes: Some(1 << 30),
        files_needed: 9000,
        isolated: None,
        clock: Default::default(),
        wireguard: Default::default(),
        problems: Vec::new(),
        canary: CanaryStatus {
            runs: 9,
            failures: 2,
            last_success: Some(1_795_362_000),
            repairs: [("republish".to_owned(), 1)].into(),
            ..CanaryStatus::default()
        },
        members: vec![me, other],
    }
}
