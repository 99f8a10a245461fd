//! Input from directories and clients, that is descriptors and INTRODUCE2 payloads; and
//! introduction points of other members, which this node puts into descriptors.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustbalance::tor::arti::ClientRequest;
use rustbalance::tor::descriptor::{self, DescriptorContent, DescriptorParameters, MAX_DESCRIPTOR, PeriodCredentials};
use rustbalance::tor::subprotocols;
use rustbalance_gossip::bytes::{FixedBytes, VarBytes};
use rustbalance_gossip::id::NodeId;
use rustbalance_gossip::plan::{Choice, choose};
use rustbalance_gossip::record::{Fitness, IntroPoint, MAX_INTRO_POINTS, RelayId};
use rustbalance_gossip::source::Candidate;

use super::Seed;
use super::script::{Script, ScriptBuilder};
use super::world::{NOW, PERIOD, point, world};

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn credentials() -> &'static PeriodCredentials {
    static CREDENTIALS: OnceLock<PeriodCredentials> = OnceLock::new();
    CREDENTIALS.get_or_init(|| PeriodCredentials::derive(&world().master, PERIOD, now()).unwrap())
}

fn build(points: &[IntroPoint]) -> String {
    let content = DescriptorContent { revision: 77, points: points.to_vec(), subprotocols: subprotocols::granted() };
    descriptor::build(credentials(), &content, DescriptorParameters::default(), now()).unwrap()
}

/// A descriptor from a directory. Only one signed with the service's key may be accepted, and that
/// key has only ever signed descriptors whose points were made by [`point`].
pub(crate) fn descriptor(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(content) = descriptor::read(text, world().cluster.first_service(), PERIOD, now()) else { return false };
    assert!(text.len() <= MAX_DESCRIPTOR);
    assert!((1..=MAX_INTRO_POINTS).contains(&content.points.len()) && content.points.is_sorted());
    for read in &content.points {
        assert_eq!(*read, point(read.relay.rsa.0[0]), "an introduction point that was never signed");
        descriptor::check_point(read).unwrap();
    }
    true
}

pub(crate) fn descriptor_seeds() -> Vec<Seed> {
    let text = build(&[point(1)]);
    let other = |from: &str, to: &str| text.replacen(from, to, 1);
    vec![
        Seed::good("one", text.as_str()),
        Seed::good("three", build(&[point(1), point(2), point(3)])),
        Seed::bad("version", other("hs-descriptor 3", "hs-descriptor 4")),
        Seed::bad("revision", other("revision-counter 77", "revision-counter 78")),
        Seed::bad("cut", &text.as_bytes()[..text.len() / 2]),
    ]
}

/// Introduction points offered by two members. A descriptor is built from a choice among the valid
/// ones; it must read back as it was built.
pub(crate) fn points(bytes: &[u8]) -> bool {
    let mut script = Script::new(bytes);
    let mut offered = BTreeMap::new();
    while !script.is_over() && offered.len() < MAX_INTRO_POINTS {
        let point = offer(&mut script);
        // A record with the same session key twice is refused earlier, so the map keeps one of
        // each.
        offered.insert(point.session_key, point);
    }
    let offered: Vec<IntroPoint> =
        offered.into_values().filter(|point| descriptor::check_point(point).is_ok()).collect();
    if offered.is_empty() {
        return false;
    }
    let (ours, theirs) = offered.split_at(offered.len() / 2);
    let candidates = [(1, ours), (2, theirs)].map(|(id, points)| {
        let source = NodeId::from_public_key([id; 32]).into();
        Candidate { source, fitness: Fitness::Healthy, weight: 1, points, subprotocols: &[] }
    });
    let chosen = choose(&candidates, &Choice::default(), MAX_INTRO_POINTS, 0).points;
    let mut chosen: Vec<IntroPoint> = chosen.into_iter().map(|(_, point)| point).collect();
    let text = build(&chosen);
    assert!(text.len() <= MAX_DESCRIPTOR);
    let content = descriptor::read(&text, world().cluster.first_service(), PERIOD, now()).unwrap();
    chosen.sort();
    assert_eq!((content.revision, content.points), (77, chosen));
    true
}

/// A valid introduction point with some of its fields replaced.
fn offer(script: &mut Script<'_>) -> IntroPoint {
    let (spoilt, relay) = (script.byte(), script.byte());
    let mut offered = point(relay);
    let spoils = |part: u8| spoilt & (1 << part) != 0;
    if spoils(0) {
        offered.session_key = FixedBytes(script.array());
    }
    if spoils(1) {
        offered.encryption_key = FixedBytes(script.array());
    }
    if spoils(2) {
        offered.onion_key = FixedBytes(script.array());
    }
    if spoils(3) {
        offered.relay = RelayId { rsa: FixedBytes(script.array()), ed25519: FixedBytes(script.array()) };
    }
    if spoils(4) {
        let at = script.choice(offered.link_specifiers.len());
        offered.link_specifiers[at] = VarBytes(script.bytes().to_vec());
    }
    if spoils(5) {
        offered.link_specifiers.push(VarBytes(script.bytes().to_vec()));
    }
    offered
}

pub(crate) fn points_seeds() -> Vec<Seed> {
    let good = |relay: u8| ScriptBuilder::default().byte(0).byte(relay);
    let spoilt = |part: u8| ScriptBuilder::default().byte(1 << part).byte(1);
    let ipv6 = [&[1, 18][..], &[9; 18]].concat();
    let many = (0..20).flat_map(|relay| good(relay).0).collect::<Vec<u8>>();
    vec![
        Seed::good("one", good(1).0),
        Seed::good("many", many),
        Seed::good("ipv6", spoilt(5).bytes(&ipv6).0),
        Seed::good("unknown-specifier", spoilt(5).bytes(&[99, 3, 1, 2, 3]).0),
        Seed::good("onion-key", spoilt(2).rest(&[0xff; 32]).0),
        Seed::bad("session-key", spoilt(0).rest(&[2; 32]).0),
        Seed::bad("encryption-key", spoilt(1).rest(&[&[0xec][..], &[0xff; 30], &[0x7f]].concat()).0),
        Seed::bad("relay", spoilt(3).rest(&[3; 52]).0),
        Seed::bad("specifier", spoilt(4).byte(0).bytes(&[0, 6, 127, 0, 0]).0),
        Seed::bad("second-identity", spoilt(5).bytes(&[&[2, 20][..], &[8; 20]].concat()).0),
    ]
}

/// The decrypted part of an INTRODUCE2 cell, which any client can make.
pub(crate) fn introduction(bytes: &[u8]) -> bool {
    let taken = ClientRequest::read(bytes).is_ok();
    if taken {
        // Bytes after the payload are padding, whatever their value.
        assert!(ClientRequest::read(&[bytes, &[0; 50]].concat()).is_ok());
        assert!(ClientRequest::read(&[bytes, &[0xff; 50]].concat()).is_ok());
    }
    taken
}

pub(crate) fn introduction_seeds() -> Vec<Seed> {
    // Rendezvous cookie, extensions, ntor key, link specifiers.
    let payload = |extensions: &[u8], key: u8, specifiers: &[u8]| {
        [&[2; 20][..], extensions, &[key, 0, 32], &[9; 32], specifiers].concat()
    };
    let specifiers = [&[2, 0, 6, 127, 0, 0, 1, 0x13, 0x88, 2, 20][..], &[7; 20]].concat();
    vec![
        Seed::good("plain", payload(&[0], 1, &specifiers)),
        Seed::good("no-specifiers", payload(&[0], 1, &[0])),
        Seed::good("congestion-control", payload(&[1, 1, 0], 1, &specifiers)),
        Seed::good("proof-of-work", payload(&[1, 2, 4, 1, 2, 3, 4], 1, &specifiers)),
        Seed::bad("other-key", payload(&[0], 2, &specifiers)),
        Seed::good("cgo", payload(&[2, 1, 0, 3, 2, 2, 6], 1, &specifiers)),
        Seed::bad("cgo-alone", payload(&[1, 3, 2, 2, 6], 1, &specifiers)),
        Seed::bad("other-protocols", payload(&[2, 1, 0, 3, 4, 2, 5, 2, 6], 1, &specifiers)),
        Seed::bad("cut", payload(&[0], 1, &specifiers[..20])),
    ]
}
