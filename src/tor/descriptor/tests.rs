//! Tests of building and reading descriptors.

use super::*;
use crate::keys::PointSeed;
use proptest::prelude::*;
use rustbalance_gossip::record::PointNonce;
use std::sync::OnceLock;
use tor_protover::named::RELAY_CRYPT_CGO;

const PERIOD: PeriodId = PeriodId { number: 20_000, length_minutes: 1440, offset_seconds: 43_200 };

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn master(fill: u8) -> IdentitySecret {
    let mut bytes = Zeroizing::new([fill; 64]);
    bytes[0] &= 248;
    bytes[31] = bytes[31] & 63 | 64;
    IdentitySecret::from_expanded(&bytes).unwrap()
}

fn specifier(kind: u8, body: &[u8]) -> VarBytes {
    VarBytes([&[kind, u8::try_from(body.len()).unwrap()], body].concat())
}

/// A point with an IPv4 and an IPv6 address: the longest that honest nodes produce.
fn point(relay: u8) -> IntroPoint {
    let secrets = PointSeed::from_bytes(&Zeroizing::new([relay; 32])).secrets(PointNonce(FixedBytes([relay; 16])));
    let relay = RelayId { rsa: FixedBytes([relay; 20]), ed25519: FixedBytes([relay; 32]) };
    IntroPoint {
        relay,
        link_specifiers: vec![
            specifier(0, &[127, 0, 0, 1, 0x13, 0x88]),
            specifier(2, &relay.rsa.0),
            specifier(3, &relay.ed25519.0),
            specifier(1, &[9; 18]),
        ],
        onion_key: FixedBytes([relay.rsa.0[0]; 32]),
        session_key: FixedBytes(secrets.session_key()),
        encryption_key: FixedBytes(secrets.encryption_key()),
    }
}

fn points(count: u8) -> Vec<IntroPoint> {
    (1..=count).map(point).collect()
}

fn credentials() -> PeriodCredentials {
    PeriodCredentials::derive(&master(7), PERIOD, now()).unwrap()
}

fn content(points: &[IntroPoint]) -> DescriptorContent {
    DescriptorContent { revision: 77, points: points.to_vec(), subprotocols: subprotocols::granted() }
}

fn built(points: &[IntroPoint]) -> Result<String, TorError> {
    build(&credentials(), &content(points), DescriptorParameters::default(), now())
}

fn parsed(text: &str) -> HsDesc {
    let (blinded, subcredential) = blinded(master(7).service_id(), time_period(PERIOD).unwrap()).unwrap();
    HsDesc::parse_decrypt_validate(text, &blinded.id(), &subcredential, None).unwrap().dangerously_assume_timely()
}

fn why(result: Result<impl std::fmt::Debug, TorError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_descriptor_reads_as_it_was_built() {
    for count in [1, 3, 10, 20] {
        let text = built(&points(count)).unwrap();
        assert_eq!(read(&text, master(7).service_id(), PERIOD, now()).unwrap(), content(&points(count)));
    }
}

#[test]
fn the_largest_descriptor_is_within_the_directories_bound() {
    let mut largest = points(20);
    for point in &mut largest {
        // Unknown types: a hostile member may add invented specifiers up to the bound.
        while point.specified() < MAX_SPECIFIED {
            let size = (MAX_SPECIFIED - point.specified()).min(MAX_LINK_SPECIFIER);
            point.link_specifiers.push(specifier(9, &vec![0; size - 2]));
        }
        assert!(check_point(point).is_ok(), "{point:?}");
    }
    assert!(built(&largest).unwrap().len() <= MAX_DESCRIPTOR);
    let text = built(&points(20)).unwrap();
    let tight = DescriptorParameters { max_size: text.len() - 1, ..Default::default() };
    assert!(build(&credentials(), &content(&points(20)), tight, now()).is_err());
}

#[test]
fn a_descriptor_is_never_empty_nor_too_full_nor_twice_at_one_relay() {
    assert_eq!(why(built(&[])), "a descriptor has 1 to 20 introduction points, not 0");
    assert_eq!(why(built(&points(21))), "a descriptor has 1 to 20 introduction points, not 21");
    let mut twice = point(2);
    twice.session_key = point(3).session_key;
    assert_eq!(why(built(&[point(2), twice])), "two introduction points are at one relay");
}

#[test]
fn congestion_control_is_advertised_where_asked() {
    let none = DescriptorParameters { sendme_increment: None, ..Default::default() };
    for parameters in [none, DescriptorParameters::default()] {
        let parsed = parsed(&build(&credentials(), &content(&points(1)), parameters, now()).unwrap());
        let increment = parsed.flow_control().map(|(protocols, increment)| {
            assert!(protocols.supports_named_subver(FLOWCTRL_CC));
            increment.get()
        });
        assert_eq!(increment, parameters.sendme_increment);
        let offers_cgo = parsed.declared_capabilities().supports_named_subver(RELAY_CRYPT_CGO);
        assert_eq!(offers_cgo, increment.is_some(), "CGO needs congestion control");
    }
}

#[test]
fn a_descriptor_offers_the_subprotocols_of_its_content() {
    for (offered, line) in [(subprotocols::granted(), "Relay=5-6"), (BTreeSet::new(), "")] {
        let content = DescriptorContent { subprotocols: offered, ..content(&points(2)) };
        let text = build(&credentials(), &content, DescriptorParameters::default(), now()).unwrap();
        assert_eq!(parsed(&text).declared_capabilities().to_string(), line);
        assert_eq!(read(&text, master(7).service_id(), PERIOD, now()).unwrap(), content);
    }
}

#[test]
fn an_inconsistent_point_is_refused() {
    assert!(check_point(&point(1)).is_ok());
    let spoilt = |spoil: fn(&mut IntroPoint)| {
        let mut point = point(1);
        spoil(&mut point);
        assert_eq!(check_point(&point).is_ok(), built(&[point.clone()]).is_ok());
        why(check_point(&point))
    };
    assert!(spoilt(|point| point.relay.rsa.0[0] ^= 1).ends_with("do not lead to that relay"));
    assert!(spoilt(|point| point.relay.ed25519.0[0] ^= 1).ends_with("do not lead to that relay"));
    assert!(spoilt(|point| drop(point.link_specifiers.remove(1))).ends_with("do not lead to that relay"));
    assert!(
        spoilt(|point| point.link_specifiers.retain(|specifier| specifier.0[0] > 1))
            .ends_with("do not lead to that relay")
    );
    assert!(spoilt(|point| point.link_specifiers.push(specifier(2, &[8; 20]))).ends_with("do not lead to that relay"));
    assert!(spoilt(|point| point.link_specifiers[0].0.push(1)).ends_with("cannot be read"));
    assert!(spoilt(|point| point.link_specifiers.push(specifier(9, &[0; 63]))).ends_with("cannot be read"));
    assert!(
        spoilt(|point| point.link_specifiers.extend((0..5).map(|_| specifier(9, &[])))).ends_with("cannot be read")
    );
    assert!(spoilt(|point| point.link_specifiers.extend((0..4).map(|_| specifier(9, &[0; 62])))).ends_with("too long"));
    // u = -1 has no counterpart on the Edwards curve.
    let nowhere: fn(&mut IntroPoint) = |point| {
        point.encryption_key.0 = [0xff; 32];
        (point.encryption_key.0[0], point.encryption_key.0[31]) = (0xec, 0x7f);
    };
    assert!(spoilt(nowhere).ends_with("not a valid key"));
    assert!(spoilt(|point| point.session_key.0 = [2; 32]).ends_with("not a valid key"));
}

#[test]
fn a_descriptor_of_another_address_or_period_or_time_is_not_believed() {
    let text = built(&points(3)).unwrap();
    let id = master(7).service_id();
    let next = PeriodId { number: PERIOD.number + 1, ..PERIOD };
    assert!(read(&text, master(8).service_id(), PERIOD, now()).is_err());
    assert!(read(&text, id, next, now()).is_err());
    assert!(read(&text, id, PERIOD, now() + CERTIFICATE_LIFETIME + Duration::from_secs(3600)).is_err());
    assert!(read(&text, id, PeriodId { length_minutes: 0, ..PERIOD }, now()).is_err());
    assert!(read(&text, id, PeriodId { length_minutes: u32::MAX, ..PERIOD }, now()).is_err());
    assert!(read(&"a".repeat(MAX_DESCRIPTOR + 1), id, PERIOD, now()).is_err());
}

#[test]
fn expiring_credentials_are_not_used() {
    let late = now() + CERTIFICATE_LIFETIME - Duration::from_secs(3600);
    let result = build(&credentials(), &content(&points(1)), DescriptorParameters::default(), late);
    assert!(why(result).contains("derive new ones"));
}

#[test]
fn revisions_rise_with_the_clock_and_are_alike_at_all_publishers() {
    let (one, other) = (credentials(), credentials());
    let revisions: Vec<u64> = (0..100).map(|second| one.revision(Duration::from_secs(second * 997))).collect();
    assert!(revisions.is_sorted_by(|earlier, later| earlier < later));
    assert!(one.revision(Duration::from_secs(5)) < one.revision(Duration::from_secs(6)));
    assert_eq!(one.revision(Duration::from_secs(4242)), other.revision(Duration::from_secs(4242)));
    assert_ne!(one.signing.verifying_key(), other.signing.verifying_key());
}

#[test]
fn debug_output_of_credentials_shows_no_secret() {
    let shown = format!("{:?}", credentials());
    assert!(shown.ends_with("redacted)"), "{shown}");
    assert!(shown.len() < 120, "{shown}");
}

fn genuine() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| built(&points(2)).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_text_is_no_descriptor(text in "(hs-descriptor 3\n)?(descriptor-lifetime \\PC{0,9}\n)?\\PC{0,300}") {
        prop_assert!(read(&text, master(7).service_id(), PERIOD, now()).is_err());
    }

    #[test]
    fn a_changed_descriptor_is_not_believed(at in any::<prop::sample::Index>(), byte in 0_u8..128) {
        let mut bytes = genuine().as_bytes().to_vec();
        let at = at.index(bytes.len());
        let changed = bytes[at] != byte;
        bytes[at] = byte;
        let result = read(std::str::from_utf8(&bytes).unwrap(), master(7).service_id(), PERIOD, now());
        // White space at the very end is not signed, so it may change; the content must not.
        match result {
            Ok(content) => prop_assert_eq!(content.points, points(2)),
            Err(_) => prop_assert!(changed),
        }
    }

    #[test]
    fn a_descriptor_cut_short_is_not_believed(at in any::<prop::sample::Index>()) {
        let text = genuine();
        let cut = &text[..at.index(text.len() - 1)];
        prop_assert!(read(cut, master(7).service_id(), PERIOD, now()).is_err());
    }

    #[test]
    fn arbitrary_points_never_make_an_unreadable_descriptor(
        session in any::<[u8; 32]>(), encryption in any::<[u8; 32]>(), onion in any::<[u8; 32]>(),
        body in prop::collection::vec(any::<u8>(), 0..70),
    ) {
        let mut hostile = point(1);
        hostile.session_key = FixedBytes(session);
        hostile.encryption_key = FixedBytes(encryption);
        hostile.onion_key = FixedBytes(onion);
        hostile.link_specifiers.push(VarBytes(body));
        if check_point(&hostile).is_ok() {
            let text = built(&[hostile.clone(), point(2)]).unwrap();
            let content = read(&text, master(7).service_id(), PERIOD, now()).unwrap();
            prop_assert_eq!(content.points.len(), 2);
        } else {
            prop_assert!(built(&[hostile]).is_err());
        }
    }
}

#[test]
fn the_revision_is_readable_where_the_points_are_not() {
    let credentials = PeriodCredentials::derive(&master(7), PERIOD, SystemTime::now()).unwrap();
    let restricted = build_restricted(&credentials, &points(3), 12_345);
    let (address, now) = (master(7).service_id(), SystemTime::now());
    assert!(read(&restricted, address, PERIOD, now).is_err());
    assert_eq!(read_revision(&restricted, address, PERIOD, now).unwrap(), 12_345);
    // Another address, another period, a changed revision, an expired certificate, too long.
    assert!(read_revision(&restricted, master(8).service_id(), PERIOD, now).is_err());
    let next = PeriodId { number: PERIOD.number + 1, ..PERIOD };
    assert!(read_revision(&restricted, address, next, now).is_err());
    let higher = restricted.replace("revision-counter 12345", "revision-counter 99999");
    assert!(read_revision(&higher, address, PERIOD, now).is_err());
    assert!(read_revision(&restricted, address, PERIOD, now + Duration::from_secs(55 * 3600)).is_err());
    assert!(read_revision(&"x".repeat(MAX_DESCRIPTOR + 1), address, PERIOD, now).is_err());
}
