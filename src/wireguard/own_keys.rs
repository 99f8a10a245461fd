//! This node's WireGuard keys and their daily rotation: a successor is announced ahead, both are
//! accepted while the change goes round, then the former key is dropped.

use std::time::Duration;

use zeroize::Zeroizing;

use super::announcement::{DatedKey, MOST_KEYS, in_order_of_use};
use super::{WireguardKey, WireguardSecret};

/// Time for which a key is used.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// A successor is announced this long before its use begins, and its predecessor is accepted this
/// long after that: 1 h = 2 x 10 min of permitted clock skew, and time to reach members that were
/// away.
pub const OVERLAP: Duration = Duration::from_secs(3600);

/// Length of one key on disk: the time of its start (8 bytes, big-endian) and the secret.
const ENTRY: usize = 40;

/// One or two keys, in the order of their start.
#[derive(Debug)]
pub struct OwnKeys(Vec<OwnKey>);

#[derive(Debug)]
struct OwnKey {
    /// Start of its use, in seconds since the Unix epoch.
    from: u64,
    secret: WireguardSecret,
    /// Kept, because the plan compares it with every member's keys each second.
    public: WireguardKey,
}

impl OwnKey {
    fn new(from: u64, secret: WireguardSecret) -> Self {
        let public = secret.public();
        Self { from, secret, public }
    }
}

impl OwnKeys {
    /// The first key of a node, in use from `unix` on.
    pub fn new(secret: WireguardSecret, unix: u64) -> Self {
        Self(vec![OwnKey::new(unix, secret)])
    }

    /// Adds a successor or drops a key, if that is due at `unix`. True if something has changed:
    /// then the keys must be on disk before they are used.
    pub fn rotate(&mut self, unix: u64, make: impl FnOnce() -> WireguardSecret) -> bool {
        let soon = unix.saturating_add(OVERLAP.as_secs());
        let count = self.0.len();
        // Made under a clock that was far ahead: its time would not come.
        if let [_, successor] = self.0.as_slice()
            && successor.from > soon
        {
            self.0.pop();
        }
        if let [_, successor] = self.0.as_slice()
            && successor.from.saturating_add(OVERLAP.as_secs()) <= unix
        {
            self.0.remove(0);
        }
        let changed = self.0.len() != count;
        let is_due = |key: &OwnKey| key.from.saturating_add(LIFETIME.as_secs()) <= soon || key.from > soon;
        match self.0.as_mut_slice() {
            [only] if is_due(only) => {
                only.from = only.from.min(unix);
                self.0.push(OwnKey::new(soon, make()));
                true
            }
            _ => changed,
        }
    }

    /// The secrets, the one to use at `unix` first.
    pub fn secrets_at(&self, unix: u64) -> Vec<WireguardSecret> {
        in_order_of_use(&self.0, |key| key.from, unix).map(|key| key.secret.duplicate()).collect()
    }

    /// The public keys, as they are announced.
    pub fn announced(&self) -> Vec<DatedKey> {
        self.0.iter().map(|key| DatedKey { key: key.public, from: key.from }).collect()
    }

    /// Whether one of the keys has this public half.
    pub fn has(&self, key: &WireguardKey) -> bool {
        self.0.iter().any(|own| own.public == *key)
    }

    /// A copy; explicit, because it has secrets.
    pub fn duplicate(&self) -> Self {
        let copy = |key: &OwnKey| OwnKey { from: key.from, secret: key.secret.duplicate(), public: key.public };
        Self(self.0.iter().map(copy).collect())
    }

    /// The form on disk.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MOST_KEYS * ENTRY));
        for OwnKey { from, secret, .. } in &self.0 {
            bytes.extend_from_slice(&from.to_be_bytes());
            bytes.extend_from_slice(secret.as_bytes());
        }
        bytes
    }

    /// Reads the output of [`OwnKeys::to_bytes`]; `None` if it is not one or two keys in the order
    /// of their start.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        if !rest.is_empty() || !(1..=MOST_KEYS).contains(&entries.len()) {
            return None;
        }
        let read = |entry: &[u8; ENTRY]| {
            let (from, secret) = entry.split_first_chunk::<8>()?;
            let secret = Zeroizing::new(<[u8; 32]>::try_from(secret).ok()?);
            Some(OwnKey::new(u64::from_be_bytes(*from), WireguardSecret::from_bytes(&secret)))
        };
        let keys = entries.iter().map(read).collect::<Option<Vec<_>>>()?;
        keys.is_sorted_by(|one, next| one.from < next.from).then_some(Self(keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    const START: u64 = 1_800_000_000;

    fn secret() -> WireguardSecret {
        WireguardSecret::generate(&mut rand::rng())
    }

    fn publics(keys: &OwnKeys) -> Vec<WireguardKey> {
        keys.announced().iter().map(|dated| dated.key).collect()
    }

    #[test]
    fn a_successor_is_announced_an_hour_ahead_and_the_former_key_leaves_an_hour_after() {
        let mut keys = OwnKeys::new(secret(), START);
        let first = publics(&keys)[0];
        let mut seen = Vec::new();
        for minute in 0..=26 * 60 {
            let now = START + minute * 60;
            if keys.rotate(now, secret) {
                let used = keys.secrets_at(now)[0].public() == first;
                seen.push((minute as f64 / 60.0, keys.announced().len(), used));
            }
        }
        // In the 24th hour the successor is announced, and used one hour later.
        assert_eq!(seen, [(23.0, 2, true), (25.0, 1, false)]);
        assert!(!keys.has(&first));
    }

    /// Property: whatever the clock does, there is a key, it is announced, and at most two are.
    #[test]
    fn a_clock_that_jumps_leaves_keys_that_work_and_rotate() {
        let mut keys = OwnKeys::new(secret(), START);
        let jumps = [0, 23 * HOUR, 24 * HOUR, 400 * 24 * HOUR, 400 * 24 * HOUR + HOUR, 5 * HOUR, 6 * HOUR, 30 * HOUR];
        for jump in jumps.into_iter().chain([0, 400_000 * 24 * HOUR, 3 * HOUR]) {
            let now = START.saturating_add(jump);
            keys.rotate(now, secret);
            let announced = publics(&keys);
            assert!((1..=MOST_KEYS).contains(&announced.len()));
            assert!(announced.contains(&keys.secrets_at(now)[0].public()), "{jump}");
            let again = OwnKeys::from_bytes(&keys.to_bytes()).unwrap();
            assert_eq!(publics(&again), announced, "{jump}");
            assert!(!keys.rotate(now, secret), "a second rotation at the same time");
        }
        // After the clock has stood right for a day and two hours, all keys of before are gone.
        let before = publics(&keys);
        for hour in 3..32 {
            keys.rotate(START + hour * HOUR, secret);
        }
        assert!(before.iter().all(|key| !keys.has(key)));
    }

    #[test]
    fn bytes_that_are_not_keys_are_refused() {
        let mut keys = OwnKeys::new(secret(), START);
        keys.rotate(START + 23 * HOUR, secret);
        let bytes = keys.to_bytes();
        for end in 0..bytes.len() {
            assert_eq!(OwnKeys::from_bytes(&bytes[..end]).is_some(), end == ENTRY, "{end} bytes");
        }
        let turned = [&bytes[ENTRY..], &bytes[..ENTRY]].concat();
        assert!(OwnKeys::from_bytes(&turned).is_none());
        assert!(OwnKeys::from_bytes(&[&bytes[..], &bytes[..ENTRY]].concat()).is_none());
    }

    #[test]
    fn debug_output_shows_no_secret() {
        assert!(format!("{:?}", OwnKeys::new(secret(), START)).contains("WireguardSecret(redacted)"));
    }
}
