//! The parsers of short texts from people and members: addresses, address prefixes, targets, ports,
//! record keys.

use std::net::IpAddr;

use rustbalance::config::check_virtual_port;
use rustbalance::control::NodePrefix;
use rustbalance::proxy::{MAX_UNIX_PATH, Target, is_private};
use rustbalance::typed;
use rustbalance_gossip::id::{NodeId, OnionAddress, ServiceId};
use rustbalance_gossip::record::RecordKind;

use super::Seed;
use super::world::world;

/// Gives the same text to every parser; true if one accepts it.
pub(crate) fn text(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let outcomes = [address(text), prefix(text), target(text), record_key(text), port(text)];
    outcomes.contains(&true)
}

fn address(text: &str) -> bool {
    let address = text.parse::<OnionAddress>();
    // An error quotes at most a part of a long text.
    let shown = |error: &dyn std::fmt::Display| error.to_string().len();
    assert!(address.as_ref().err().is_none_or(|error| shown(error) < 1200));
    assert_eq!(text.parse::<NodeId>().map(|id| id.address()), address);
    assert_eq!(text.parse::<ServiceId>().map(|id| id.address()), address);
    if let Ok(address) = address {
        assert_eq!(address.to_string(), text, "an address has one form");
    }
    // `typed::address` accepts more forms than the strict parser.
    let Ok(typed) = typed::address::<OnionAddress>(text) else { return false };
    assert!(text.to_ascii_lowercase().contains(typed.to_string().trim_end_matches(".onion")));
    assert!(address.is_err() || address == Ok(typed));
    true
}

fn prefix(text: &str) -> bool {
    let Ok(prefix) = text.parse::<NodePrefix>() else { return false };
    let written = prefix.to_string();
    assert!((1..=56).contains(&written.len()) && written.bytes().all(|byte| byte.is_ascii_graphic()));
    assert_eq!(written.parse(), Ok(prefix.clone()));
    if let Ok(node) = prefix.choose(world().nodes.iter().map(|node| (*node, None))) {
        assert!(node.to_string().starts_with(&typed::label(&written)));
    }
    // A number is also a name; whether it is taken is up to the parser of ports here.
    text.bytes().any(|byte| !byte.is_ascii_digit())
}

fn target(text: &str) -> bool {
    let Ok(target) = text.parse::<Target>() else { return false };
    match &target {
        Target::Tcp(address) => assert!(address.ip().is_loopback() && address.port() != 0),
        Target::Localhost(port) => assert_ne!(*port, 0),
        Target::Private(address) => assert!(is_private(address.ip()) && address.port() != 0),
        Target::Name(name, port) => assert!(name.as_str().parse::<IpAddr>().is_err() && *port != 0),
        Target::Onion(_, port) => assert_ne!(*port, 0),
        Target::Unix(path) => assert!(path.is_absolute() && path.as_os_str().len() <= MAX_UNIX_PATH),
    }
    assert_eq!(target.to_string().parse(), Ok(target));
    true
}

fn record_key(text: &str) -> bool {
    let Some(kind) = RecordKind::from_key(text) else { return false };
    assert_eq!(kind.key(), text, "a kind has one key");
    true
}

fn port(text: &str) -> bool {
    text.parse().is_ok_and(|port| check_virtual_port(port).is_ok_and(|good| good == port && good != 0))
}

pub(crate) fn text_seeds() -> Vec<Seed> {
    let world = world();
    let address = world.nodes[0].to_string();
    vec![
        Seed::good("address", address.as_str()),
        Seed::good("shouted-address", format!(" {}\n", address.to_uppercase().replace(".ONION", ""))),
        Seed::good("pasted-address", format!("http://www.{address}:80/path?x#y")),
        Seed::bad("mistyped-address", address.replacen(&address[..1], if &address[..1] == "a" { "b" } else { "a" }, 1)),
        Seed::good("prefix", &address.as_bytes()[..8]),
        Seed::good("name", "Web-1.example_b"),
        Seed::good("ipv4", "127.0.0.1:8080"),
        Seed::good("ipv6", "[::1]:8080"),
        Seed::good("localhost", "LocalHost:80"),
        Seed::good("socket", "unix:/run/app.sock"),
        Seed::good("private", "10.0.0.1:80"),
        Seed::good("host-name", "web:80"),
        Seed::good("onion", format!("{address}:80")),
        Seed::bad("elsewhere", "203.0.113.7:80"),
        Seed::bad("mapped", "[::ffff:127.0.0.1]:80"),
        Seed::good("card", RecordKind::Card.key()),
        Seed::good("invitation", RecordKind::Invitation(world.token_id).key()),
        Seed::good("revocation", RecordKind::Revocation(world.nodes[1]).key()),
        Seed::good("port", "443"),
        Seed::bad("link-port", "7440"),
    ]
}
