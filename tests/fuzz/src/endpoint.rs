//! What a member announces of its WireGuard, after it was opened: any member may have sealed it.

use rustbalance::wireguard::{Announcement, DatedKey, MOST_ENDPOINTS, MOST_KEYS, WireguardSecret, is_possible};
use rustbalance_gossip::record::Endpoint;
use zeroize::Zeroizing;

use super::Seed;
use super::world::NOW;

/// Reads an announcement. An accepted one is within its bounds, and is read back as it was.
pub(crate) fn endpoint(bytes: &[u8]) -> bool {
    let Ok(announcement) = Announcement::from_bytes(bytes) else { return false };
    assert!(bytes.len() <= Endpoint::MAX_SEALED);
    assert!((1..=MOST_KEYS).contains(&announcement.keys.len()));
    assert!(announcement.endpoints.len() <= MOST_ENDPOINTS);
    assert!(announcement.endpoints.iter().all(is_possible));
    let [first, .., last] = announcement.keys.as_slice() else {
        return written_again(&announcement);
    };
    assert!(first.from < last.from && first.key != last.key);
    for unix in [0, first.from, last.from.saturating_sub(1), last.from, u64::MAX] {
        let order = announcement.keys_at(unix);
        assert_eq!(order.len(), announcement.keys.len());
        assert_eq!(order[0], if unix < last.from { first.key } else { last.key });
    }
    written_again(&announcement)
}

fn written_again(announcement: &Announcement) -> bool {
    let again = announcement.to_bytes().unwrap();
    assert_eq!(Announcement::from_bytes(&again).as_ref(), Ok(announcement));
    true
}

pub(crate) fn endpoint_seeds() -> Vec<Seed> {
    let key = |n| WireguardSecret::from_bytes(&Zeroizing::new([n; 32])).public();
    let seed = |starts: &[u64], endpoints: &[&str]| {
        let keys = starts.iter().enumerate().map(|(at, from)| DatedKey { key: key(at as u8 + 1), from: *from });
        let endpoints = endpoints.iter().map(|text| text.parse().unwrap());
        Announcement { keys: keys.collect(), endpoints: endpoints.collect() }.to_bytes().unwrap()
    };
    vec![
        Seed::good("one", seed(&[NOW], &["203.0.113.7:7440"])),
        Seed::good("behind-nat", seed(&[NOW], &[])),
        Seed::good("rotation", seed(&[NOW, NOW + 3600], &["[2001:db8::7]:7440", "10.0.0.7:1", "127.0.0.1:65535"])),
        Seed::bad("no-key", seed(&[], &["203.0.113.7:7440"])),
        Seed::bad("three-keys", seed(&[1, 2, 3], &[])),
        Seed::bad("order", seed(&[2, 1], &[])),
        Seed::bad("multicast", seed(&[NOW], &["224.0.0.1:7440"])),
        Seed::bad("many", seed(&[NOW], &["203.0.113.7:7440"; MOST_ENDPOINTS + 1])),
    ]
}
